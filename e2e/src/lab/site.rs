//! Which of the machine's labs a run has: two run at once, each with addresses and a link of its own.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tokio::time::timeout;

/// How many labs run at once: one leaves more than half of two processors.
const SITES: u8 = 2;
/// How long other runs may hold all of them before we give up.
const DEADLINE: Duration = Duration::from_mins(15);

/// No lab could be had.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("lock {path}")]
    Lock { path: PathBuf, source: io::Error },
    #[error("other runs hold all labs of this machine")]
    Taken,
}

/// A site that is this run's until it is dropped. It belongs to the machine, for all checkouts.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) site: Site,
    _lock: Flock<File>,
}

impl Held {
    /// Takes a free one, or waits for the first.
    pub(super) async fn take() -> Result<Self, Error> {
        for site in (0..SITES).map(Site) {
            if let Ok(lock) = Flock::lock(site.lock()?, FlockArg::LockExclusiveNonblock) {
                return Ok(Self { site, _lock: lock });
            }
        }
        eprintln!("--- other runs hold the labs: waiting for the first of them, {DEADLINE:?} at most");
        let site = Site(0);
        let file = site.lock()?;
        // The thread goes on waiting after a deadline missed; it then gets the lock and drops it at once.
        let taken = tokio::task::spawn_blocking(move || Flock::lock(file, FlockArg::LockExclusive));
        match timeout(DEADLINE, taken).await {
            Ok(Ok(Ok(lock))) => Ok(Self { site, _lock: lock }),
            Ok(Ok(Err((_, e)))) => Err(Error::Lock {
                path: site.path(),
                source: e.into(),
            }),
            Ok(Err(_)) | Err(_) => Err(Error::Taken),
        }
    }
}

/// A lab's place on the machine, by its number.
#[derive(Debug, Clone, Copy)]
pub struct Site(u8);

impl Site {
    /// The host's address on the network that the nodes are managed by: where an API server should listen.
    pub fn host(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 78, self.0, 1)
    }

    /// A node's address there.
    pub fn node(self, node: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 78, self.0, 10 + node)
    }

    /// Its IPv6 address there.
    pub fn node6(self, node: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd78, 0, 0, self.0.into(), 0, 0, 0, 0x10 + u16::from(node))
    }

    /// The host's end of that network.
    pub(super) fn link(self) -> String {
        format!("hnlab{}", self.0)
    }

    /// What the names of its network namespaces begin with.
    pub(super) fn prefix(self) -> String {
        format!("hnlab-{}-", self.0)
    }

    /// The addresses of all pods, if its nodes are a cluster.
    pub fn pods(self) -> String {
        format!("10.{}.0.0/16", self.pods_net())
    }

    /// Those of a node's pods.
    pub fn pods_of(self, node: u8) -> String {
        format!("10.{}.{node}.0/24", self.pods_net())
    }

    fn pods_net(self) -> u8 {
        244 + self.0
    }

    fn path(self) -> PathBuf {
        format!("/run/hybridnic-lab-{}.lock", self.0).into()
    }

    fn lock(self) -> Result<File, Error> {
        let path = self.path();
        File::create(&path).map_err(|source| Error::Lock { path, source })
    }
}
