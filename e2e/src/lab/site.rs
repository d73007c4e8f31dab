//! Which of the machine's labs a run has: two run at once, each with addresses and a link of its own.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tokio::time::{sleep, timeout};

/// How many labs run at once: one leaves more than half of two processors.
const SITES: u8 = 2;
/// Shared by all labs; one that must be alone has it for itself.
const MACHINE: &str = "/run/hybridnic-lab.lock";
/// How long other runs may hold what we want before we give up.
const DEADLINE: Duration = Duration::from_mins(15);
const LOOK: Duration = Duration::from_secs(1);

/// No lab could be had.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("open {path}")]
    Lock { path: PathBuf, source: io::Error },
    #[error("other runs hold the labs of this machine")]
    Taken,
}

/// A site that is this run's until it is dropped. It belongs to the machine, for all checkouts.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) site: Site,
    _site: Flock<File>,
    _machine: Flock<File>,
}

impl Held {
    /// Takes a free one, or waits for it. With `alone`, no other lab runs meanwhile.
    pub(super) async fn take(alone: bool) -> Result<Self, Error> {
        if let Some(held) = Self::try_take(alone)? {
            return Ok(held);
        }
        eprintln!("--- other runs hold the machine's labs: waiting for them, {DEADLINE:?} at most");
        let taken = async {
            loop {
                // Of several locks, none reports which is free first.
                sleep(LOOK).await;
                if let Some(held) = Self::try_take(alone)? {
                    return Ok(held);
                }
            }
        };
        timeout(DEADLINE, taken).await.unwrap_or(Err(Error::Taken))
    }

    fn try_take(alone: bool) -> Result<Option<Self>, Error> {
        let how = if alone {
            FlockArg::LockExclusiveNonblock
        } else {
            FlockArg::LockSharedNonblock
        };
        let Ok(machine) = Flock::lock(open(MACHINE)?, how) else {
            return Ok(None);
        };
        for site in (0..SITES).map(Site) {
            if let Ok(lock) = Flock::lock(open(&site.path())?, FlockArg::LockExclusiveNonblock) {
                return Ok(Some(Self {
                    site,
                    _site: lock,
                    _machine: machine,
                }));
            }
        }
        Ok(None)
    }
}

fn open(path: &str) -> Result<File, Error> {
    File::create(path).map_err(|source| Error::Lock {
        path: path.into(),
        source,
    })
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

    fn path(self) -> String {
        format!("/run/hybridnic-lab-{}.lock", self.0)
    }
}
