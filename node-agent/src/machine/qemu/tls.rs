//! The certificates of a migration's stream: where they are until QEMU has read them, and how it gets them.
//!
//! ```text
//!  DIRECTORY/POD-UID/ca.pem         the CA of this end, which is reported
//!                    cert.pem       this end's certificate
//!                    key.pem        and its key, until QEMU has them
//!                    migration      which migration they are for, once QEMU has tried them
//! ```
//! All of it is in memory, never on a disk, and only root can read it. It outlives the agent, because the source's agent may be restarted
//! between its report and the transfer. QEMU gets copies by a descriptor, in a directory of its own, on a file system that is mounted nowhere.
//! So it need not be able to read any file, and it can reach nothing else from there. That directory is gone once QEMU has read it.

use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use hybridnic_qmp::{
    Client, QmpError,
    commands::{MigrationParameters, TlsEndpoint},
};
use jiff::Timestamp;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use super::certificates::{self, End};
use crate::broker::Broker;

/// The id of the certificates' object in QEMU.
pub const ID: &str = "hybridnic-tls";

/// The group ffdhe2048 of RFC 7919. No handshake uses it, because the certificates have elliptic curves; but a QEMU that listens makes
/// parameters of its own where it finds none, which takes from 0.1 s to many seconds.
const DH_PARAMETERS: &str = "-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
";

/// After this no certificate is valid any more.
const OUTLIVED: Duration = Duration::from_hours(48);

/// Where certificates lie.
#[derive(Clone, Debug)]
pub struct Keys {
    root: PathBuf,
}

/// Why there are no certificates.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Their directory cannot be used.
    #[error("cannot keep certificates in {path}")]
    Directory {
        /// It, or what in it.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Their directory may be written to a disk.
    #[error("{0} is not in memory (tmpfs), the only place where keys may be")]
    OnDisk(PathBuf),
    /// They cannot be made.
    #[error("cannot make certificates")]
    Make(#[from] rcgen::Error),
}

/// Certificates of one end of a VM's migration.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The CA's, in PEM.
    pub ca: String,
    end: End,
    migration: String,
    home: PathBuf,
}

impl Keys {
    /// Those in this directory; it is made when it is needed.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Makes those of the VM's migration again, and forgets any others that it has.
    pub fn make(&self, pod_uid: &str, migration: &str, end: End) -> Result<Kept, TlsError> {
        self.prepare()?;
        self.forget(pod_uid);
        let made = certificates::make(migration, end, Timestamp::now())?;
        let home = self.home(pod_uid)?;
        let write = || {
            DirBuilder::new().mode(0o700).create(&home)?;
            put(&home.join("cert.pem"), &made.certificate, 0o400)?;
            put(&home.join("key.pem"), &made.key, 0o400)?;
            put(&home.join("ca.pem"), &made.ca, 0o400)
        };
        write().map_err(|source| TlsError::Directory {
            path: home.clone(),
            source,
        })?;
        Ok(Kept {
            ca: made.ca,
            end,
            migration: migration.to_owned(),
            home,
        })
    }

    /// What was made for this end of the VM's migration, and tried.
    pub fn kept(&self, pod_uid: &str, migration: &str, end: End) -> Option<Kept> {
        let home = self.home(pod_uid).ok()?;
        let ca = fs::read_to_string(home.join("ca.pem")).ok()?;
        let kept = Kept {
            ca,
            end,
            migration: migration.to_owned(),
            home,
        };
        let whose = fs::read_to_string(kept.home.join("migration")).ok()?;
        (whose == kept.whose()).then_some(kept)
    }

    /// Whether there is anything of the VM's.
    pub fn has(&self, pod_uid: &str) -> bool {
        self.home(pod_uid).is_ok_and(|home| home.exists())
    }

    /// Forgets what was made for the VM.
    pub fn forget(&self, pod_uid: &str) {
        if let Ok(home) = self.home(pod_uid) {
            // There may be nothing; and what is left is removed when it expires.
            let _ = fs::remove_dir_all(home);
        }
    }

    /// Forgets what is no longer useful: that of VMs that went while no agent was there.
    pub fn sweep(&self) {
        let Ok(homes) = fs::read_dir(&self.root) else {
            return;
        };
        for home in homes.flatten() {
            let age = |made: SystemTime| made.elapsed().unwrap_or_default();
            let made = home.metadata().and_then(|metadata| metadata.modified());
            if made.is_ok_and(|made| age(made) > OUTLIVED) {
                let _ = fs::remove_dir_all(home.path());
            }
        }
    }

    fn prepare(&self) -> Result<(), TlsError> {
        let fail = |source| TlsError::Directory {
            path: self.root.clone(),
            source,
        };
        DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&self.root)
            .map_err(fail)?;
        let there = statfs(&self.root).map_err(|errno| fail(errno.into()))?;
        if there.filesystem_type() != TMPFS_MAGIC {
            return Err(TlsError::OnDisk(self.root.clone()));
        }
        fs::set_permissions(&self.root, Permissions::from_mode(0o700)).map_err(fail)
    }

    fn home(&self, pod_uid: &str) -> Result<PathBuf, TlsError> {
        let sound = !pod_uid.is_empty() && pod_uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let path = self.root.join(if sound { pod_uid } else { "-" });
        let source = io::ErrorKind::InvalidInput.into();
        if sound {
            Ok(path)
        } else {
            Err(TlsError::Directory { path, source })
        }
    }
}

fn put(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    // Whatever the agent's umask.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(text.as_bytes())
}

fn endpoint(end: End) -> TlsEndpoint {
    match end {
        End::Source => TlsEndpoint::Client,
        End::Target => TlsEndpoint::Server,
    }
}

impl Kept {
    /// Whether QEMU may still be given them.
    pub fn has_key(&self) -> bool {
        self.key().exists()
    }

    fn key(&self) -> PathBuf {
        self.home.join("key.pem")
    }

    fn whose(&self) -> String {
        format!("{} {}", self.end, self.migration)
    }

    /// Sees whether QEMU can use them: it reads them, and forgets them again. From then on they are kept.
    pub async fn try_out(&self, client: &Client, broker: &dyn Broker) -> Result<(), LoadError> {
        unload(client).await?;
        self.give(client, broker, &self.ca).await?;
        remove(client).await?;
        put(&self.home.join("migration"), &self.whose(), 0o400).map_err(LoadError::Files)
    }

    /// Gives QEMU this end's, and the CA of the only other end that it may talk to. Then the key is nowhere but in QEMU.
    pub async fn load(&self, client: &Client, broker: &dyn Broker, peer_ca: &str) -> Result<(), LoadError> {
        unload(client).await?;
        // QEMU checks its own certificate by this list too.
        self.give(client, broker, &format!("{}\n{peer_ca}", self.ca))
            .await?;
        fs::remove_file(self.key()).map_err(LoadError::Files)
    }

    async fn give(&self, client: &Client, broker: &dyn Broker, trusted: &str) -> Result<(), LoadError> {
        let directory = broker.memory().await.map_err(LoadError::Files)?;
        self.copy(&directory, trusted).map_err(LoadError::Files)?;
        let passed = client.add_fd(directory.as_fd()).await?;
        let added = client.object_add_tls_creds(ID, endpoint(self.end), passed).await;
        let removed = client.remove_fd(passed).await;
        Ok(added.and(removed)?)
    }

    /// QEMU may run as any user. Only a process that has the directory open can read it.
    fn copy(&self, directory: &OwnedFd, trusted: &str) -> io::Result<()> {
        let to = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        let name = endpoint(self.end).as_str();
        for (from, to) in [
            ("cert.pem", to.join(format!("{name}-cert.pem"))),
            ("key.pem", to.join(format!("{name}-key.pem"))),
        ] {
            put(&to, &fs::read_to_string(self.home.join(from))?, 0o444)?;
        }
        put(&to.join("dh-params.pem"), DH_PARAMETERS, 0o444)?;
        put(&to.join("ca-cert.pem"), trusted, 0o444)
    }
}

/// Why QEMU has not got its certificates.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// They cannot be laid out for it.
    #[error("cannot lay out certificates for QEMU")]
    Files(#[source] io::Error),
    /// It did not take them.
    #[error(transparent)]
    Qemu(#[from] QmpError),
}

/// What QEMU's parameters say about a stream: encrypted, to the target of this migration or from a peer that proves to be its source; or plain.
pub fn parameters(migration: Option<(&str, End)>) -> MigrationParameters {
    let hostname = match migration {
        Some((migration, End::Source)) => migration,
        _ => "",
    };
    MigrationParameters {
        tls_creds: Some(if migration.is_some() { ID } else { "" }.to_owned()),
        tls_hostname: Some(hostname.to_owned()),
        ..MigrationParameters::default()
    }
}

/// Takes certificates from QEMU: no stream uses them any more.
pub async fn unload(client: &Client) -> Result<(), QmpError> {
    client.migrate_set_parameters(&parameters(None)).await?;
    remove(client).await
}

async fn remove(client: &Client) -> Result<(), QmpError> {
    match client.object_del(ID).await {
        Err(error) if error.is_object_not_found() => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0b9f3f3c-7a0e-4c89-a3a5-5f1b8d0c2e4f";

    /// As if QEMU had tried them.
    fn made(keys: &Keys, end: End) -> Kept {
        let made = keys.make("pod-1", UID, end).unwrap();
        assert!(
            keys.kept("pod-1", UID, end).is_none(),
            "not before QEMU has tried them"
        );
        put(&made.home.join("migration"), &made.whose(), 0o400).unwrap();
        made
    }

    #[test]
    fn they_outlast_the_agent_and_go_with_the_migration() {
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let keys = Keys::new(memory.path().join("tls"));
        let first = made(&keys, End::Source);
        let again = Keys::new(memory.path().join("tls"));
        let kept = again.kept("pod-1", UID, End::Source).unwrap();
        assert!(kept.ca == first.ca && kept.has_key());
        assert!(again.kept("pod-1", "another", End::Source).is_none());
        assert!(again.kept("pod-1", UID, End::Target).is_none());
        assert_ne!(made(&keys, End::Source).ca, first.ca);
        keys.forget("pod-1");
        assert!(!keys.has("pod-1") && again.kept("pod-1", UID, End::Source).is_none());
    }

    #[test]
    fn nobody_else_reads_them_and_no_name_leads_elsewhere() {
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let keys = Keys::new(memory.path().join("tls"));
        made(&keys, End::Target);
        let mode = |path: &str| {
            fs::metadata(memory.path().join(path))
                .unwrap()
                .permissions()
                .mode()
                & 0o777
        };
        assert_eq!((mode("tls"), mode("tls/pod-1")), (0o700, 0o700));
        assert_eq!(mode("tls/pod-1/key.pem"), 0o400);
        for name in ["", "..", "a/b", "."] {
            assert!(keys.make(name, UID, End::Target).is_err());
            keys.forget(name);
        }
        assert!(keys.has("pod-1"));
    }

    #[test]
    fn nothing_is_put_on_a_disk() {
        let keys = Keys::new("/proc");
        assert!(matches!(
            keys.make("pod-1", UID, End::Target),
            Err(TlsError::OnDisk(_))
        ));
    }
}
