//! Guests with Debian's own systemd, whose network is in the hands of a manager as users have it: systemd-networkd, or
//! NetworkManager. Nothing of the harness touches their NICs.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;

use super::guest;
use super::inside::Inside;
use super::{Lab, exec, image, node};

/// Name of their initramfs in a node.
pub const INITRD: &str = "managed";
/// What such a guest needs, in MiB. Its initramfs has 55, and is in memory twice while the guest boots.
pub const MEMORY: u32 = 256;

const LOOK_DEADLINE: Duration = Duration::from_secs(30);

/// The guests' image could not be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("build the image")]
    Image(#[from] image::Error),
    #[error("write {path}")]
    File { path: PathBuf, source: io::Error },
    #[error("pack files by cpio: {0}")]
    Pack(ExitStatus),
    #[error("give it to a node")]
    Node(#[from] node::Error),
}

/// What configures the network in a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// systemd-networkd.
    Networkd,
    /// NetworkManager, which by default sets each Ethernet device up with DHCP.
    NetworkManager,
}

impl Manager {
    /// What the guest is told by its kernel's command line.
    pub fn kernel_args(self) -> &'static str {
        match self {
            Self::Networkd => "lab.manager=networkd",
            Self::NetworkManager => "lab.manager=nm",
        }
    }

    /// Its word for a device that it has set up.
    pub fn configured(self) -> &'static str {
        match self {
            Self::Networkd => "configured",
            Self::NetworkManager => "connected",
        }
    }

    /// What it says about each device of a guest, in its own words: `configured`, `connected`, `unmanaged` ...
    pub async fn states(self, guest: &Inside) -> Result<BTreeMap<String, String>, guest::Error> {
        let script = match self {
            Self::Networkd => "networkctl list --no-pager --no-legend",
            Self::NetworkManager => "nmcli -c no -t -f DEVICE,STATE device",
        };
        Ok(self.read(&guest.run(script, LOOK_DEADLINE).await?))
    }

    fn read(self, text: &str) -> BTreeMap<String, String> {
        let of = |line: &str| -> Option<(String, String)> {
            let (device, state) = match self {
                // Number, name, type, what it carries, and what the manager does with it.
                Self::Networkd => {
                    let mut words = line.split_whitespace();
                    (words.nth(1)?, words.next_back()?)
                }
                Self::NetworkManager => line.split_once(':')?,
            };
            Some((device.into(), state.into()))
        };
        text.lines().filter_map(of).collect()
    }
}

impl Lab {
    /// Gives the nodes the initramfs of such guests, built if it is missing, with these files, by their paths in the guest: there
    /// before it boots.
    pub async fn add_managed(&self, files: &[(String, String)]) -> Result<(), Error> {
        let image = image::managed(self.kernel).await?;
        let rules = self.dir.join("managed.d");
        let failed = |path: &PathBuf, source| Error::File {
            path: path.clone(),
            source,
        };
        let _ = fs::remove_dir_all(&rules);
        for (path, text) in files {
            let to = rules.join("rules").join(path.trim_start_matches('/'));
            let written = to.parent().map_or(Ok(()), fs::create_dir_all);
            written
                .and_then(|()| fs::write(&to, text))
                .map_err(|e| failed(&to, e))?;
        }
        // A kernel unpacks one archive behind the other.
        let to = self.dir.join(INITRD);
        let append = fs::copy(&image, &to).and_then(|_| OpenOptions::new().append(true).open(&to));
        pack(&rules, append.map_err(|e| failed(&to, e))?)
            .await
            .map_err(|e| failed(&to, e))?
            .map_or(Ok(()), |status| Err(Error::Pack(status)))?;
        for node in &self.nodes {
            node.add_initrd(&to, INITRD)?;
        }
        Ok(())
    }
}

/// Appends a directory to an archive; gives the status of a failure.
async fn pack(dir: &PathBuf, to: File) -> io::Result<Option<ExitStatus>> {
    let status = Command::new("sh")
        .args(["-c", "find . | cpio --quiet -o -H newc"])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(to)
        .kill_on_drop(true)
        .status()
        .await?;
    Ok((!status.success()).then_some(status))
}

/// An interface and its IPv4 addresses, from `ip -j -4 address show`.
#[derive(Debug, Deserialize)]
struct Addresses {
    #[serde(default)]
    ifname: String,
    #[serde(default)]
    addr_info: Vec<Address>,
}

#[derive(Debug, Deserialize)]
struct Address {
    #[serde(default)]
    local: String,
}

impl Inside {
    /// The IPv4 addresses of each interface that has one, without the loopback's.
    pub async fn addresses(&self) -> Result<BTreeMap<String, Vec<String>>, guest::Error> {
        let text = self.run("ip -j -4 address show", LOOK_DEADLINE).await?;
        let interfaces: Vec<Addresses> =
            serde_json::from_str(&text).map_err(|source| exec::Error::Parse {
                what: "ip -j -4 address show".into(),
                text,
                source,
            })?;
        Ok(interfaces
            .into_iter()
            .filter(|i| i.ifname != "lo" && !i.addr_info.is_empty())
            .map(|i| (i.ifname, i.addr_info.into_iter().map(|a| a.local).collect()))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn managers_say_what_they_do_with_a_device() {
        let networkd = Manager::Networkd.read(
            "  1 lo         loopback carrier  unmanaged\n  3 enp1s0     ether    routable configured\n\
             \x20 4 enp1s0nsby ether    enslaved unmanaged\n",
        );
        let nm = Manager::NetworkManager
            .read("enp1s0:connected\nlo:connected (externally)\nenp1s0nsby:unmanaged\n");
        for (states, master) in [(networkd, "configured"), (nm, "connected")] {
            assert_eq!(states["enp1s0"], master);
            assert_eq!(states["enp1s0nsby"], "unmanaged");
        }
    }
}
