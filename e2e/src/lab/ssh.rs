//! OpenSSH between nodes, of the system's own release, as administrators have it: the host is known, and a key logs in.

use std::time::Duration;

use super::{Lab, Node, Process, exec, image, node};

/// The key of a host that has an sshd.
const HOST_KEY: &str = "/etc/ssh/ssh_host_ed25519_key";
/// The key by which a node's root logs in elsewhere, where `ssh` looks for one.
const USER_KEY: &str = "/root/.ssh/id_ed25519";

const LOOK_DEADLINE: Duration = Duration::from_secs(30);

/// Nodes have no OpenSSH.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("make the archive")]
    Image(#[from] image::Error),
    #[error("ask a node")]
    Node(#[from] node::Error),
    #[error("follow sshd")]
    Exec(#[from] exec::Error),
    #[error("sshd does not listen: {0}")]
    Deaf(String),
}

impl Lab {
    /// Puts OpenSSH on all nodes, without any key. They have it until they boot again.
    pub async fn add_ssh(&self) -> Result<(), Error> {
        let archive = image::ssh(self.kernel).await?;
        for node in &self.nodes {
            let there = node.install(&archive)?;
            let unpack = format!("cd / && cpio -idmu <{there}");
            node.run(&unpack, LOOK_DEADLINE).await?;
        }
        Ok(())
    }
}

impl Node {
    /// Starts an sshd with a key of its own; returns once it listens.
    pub async fn sshd(&self) -> Result<Process, Error> {
        let prepare = format!("mkdir -p /run/sshd && {}", keygen(HOST_KEY));
        self.run(&prepare, LOOK_DEADLINE).await?;
        let argv = ["/usr/sbin/sshd", "-D", "-e"];
        let sshd = self.spawn(&argv, &[], "sshd").await?;
        if sshd.logged("Server listening on 0.0.0.0", LOOK_DEADLINE).await? {
            Ok(sshd)
        } else {
            Err(Error::Deaf(sshd.read_log()?))
        }
    }

    /// Lets root of this node log in to another one as root, which it finds by its name. That one's key it does not know yet.
    pub async fn logs_in_to(&self, other: &Self) -> Result<(), Error> {
        let hosts = format!("127.0.0.1 localhost\n{} {}\n", other.address(), other.name());
        self.put("/etc/hosts", hosts.as_bytes(), 0o644).await?;
        let make = format!(
            "mkdir -p /root/.ssh && {} && cat {USER_KEY}.pub",
            keygen(USER_KEY)
        );
        let key = self.run(&make, LOOK_DEADLINE).await?;
        other
            .put("/root/.ssh/authorized_keys", key.as_bytes(), 0o600)
            .await?;
        Ok(())
    }

    /// Tells this node the key of another one that has an sshd.
    pub async fn knows(&self, other: &Self) -> Result<(), Error> {
        let key = other.run(&format!("cat {HOST_KEY}.pub"), LOOK_DEADLINE).await?;
        let known = format!("{} {key}", other.name());
        self.put("/root/.ssh/known_hosts", known.as_bytes(), 0o600)
            .await?;
        Ok(())
    }
}

/// Makes a key that needs no passphrase.
fn keygen(path: &str) -> String {
    format!("ssh-keygen -q -t ed25519 -N '' -f {path}")
}
