//! The multicast addresses that a link receives besides those that its own host has joined.
//!
//! A macvtap passes to its guest what is in its list, and puts the list into the filter of the link below it while it is
//! up. The list stays while it is down. Each address has a mark in it that says whether it was added here
//! (`SIOCADDMULTI`), so what is ours is known after a restart too.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::sync::{mpsc, oneshot};

use crate::types::MacAddr;

/// How long the kernel may take: some requests wait for a lock that drivers can hold for seconds.
const DEADLINE: Duration = Duration::from_secs(10);
/// Requests that may wait. More callers wait for a place, each within its deadline.
const QUEUE: usize = 16;
/// A namespace's links with their multicast addresses: those of the namespace of the thread that opens it.
pub const LISTING: &str = "/proc/thread-self/net/dev_mcast";

/// A link's multicast list cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum MulticastError {
    /// No socket, or no thread for it.
    #[error("cannot open a socket for multicast lists")]
    Open(#[source] io::Error),
    /// The kernel did not answer in time; it may still do what was asked.
    #[error("no answer from the kernel within {DEADLINE:?}: {0}")]
    Timeout(String),
    /// The thread that asks the kernel is gone.
    #[error("the thread that asks the kernel has ended: {0}")]
    Closed(String),
    /// The kernel said no.
    #[error("the kernel refused to {operation}")]
    Refused {
        /// What was asked.
        operation: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

impl MulticastError {
    /// Whether the link does not exist.
    pub fn is_no_device(&self) -> bool {
        let Self::Refused { source, .. } = self else {
            return false;
        };
        source.raw_os_error() == Some(Errno::ENODEV as i32)
    }
}

/// What a link receives by our doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Received {
    /// Addresses that were added to its list. Those that the host has joined are not among them.
    pub added: BTreeSet<MacAddr>,
    /// Whether it takes every multicast (`IFF_ALLMULTI`).
    pub all: bool,
}

/// What a thread has of a namespace.
struct Lists {
    socket: OwnedFd,
    listing: File,
}

impl Lists {
    fn read(&self) -> io::Result<String> {
        let mut listing = &self.listing;
        listing.rewind()?;
        io::read_to_string(listing)
    }
}

type Job = Box<dyn FnOnce(&Lists) + Send>;

/// Multicast lists of a network namespace. Clones share a thread, on which the kernel may keep a request waiting.
#[derive(Debug, Clone)]
pub struct Multicast {
    jobs: Arc<mpsc::Sender<Job>>,
}

impl Multicast {
    /// Opens the lists of the calling thread's network namespace.
    pub fn open() -> Result<Self, MulticastError> {
        let flags = SockFlag::SOCK_CLOEXEC;
        // Of any family: it only says in which namespace.
        let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)
            .map_err(|e| MulticastError::Open(e.into()))?;
        let listing = File::open(LISTING).map_err(MulticastError::Open)?;
        Self::of(socket, listing)
    }

    /// The lists of another network namespace: by a socket that was opened there, of any kind, and by [`LISTING`], opened there as well.
    /// Either keeps that namespace, see [`crate::netns`].
    pub fn of(socket: OwnedFd, listing: File) -> Result<Self, MulticastError> {
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        let lists = Lists { socket, listing };
        std::thread::Builder::new()
            .name("multicast".into())
            .spawn(move || {
                while let Some(job) = queue.blocking_recv() {
                    job(&lists);
                }
            })
            .map_err(MulticastError::Open)?;
        Ok(Self { jobs: Arc::new(jobs) })
    }

    /// What a link receives by our doing.
    pub async fn received(&self, index: u32) -> Result<Received, MulticastError> {
        self.ask(format!("read the multicast list of link {index}"), move |lists| {
            let socket = &lists.socket;
            let mut request = named(socket, index)?;
            // SAFETY: the descriptor is a socket, and the kernel fills the ifreq it is given and nothing else.
            unsafe { ioctl::get_flags(socket.as_raw_fd(), &raw mut request) }?;
            // SAFETY: all bytes of the union are initialised, and any are a valid c_short.
            let flags = unsafe { request.ifr_ifru.ifru_flags };
            Ok(Received {
                added: added(&lists.read()?, index),
                all: libc::c_int::from(flags) & libc::IFF_ALLMULTI != 0,
            })
        })
        .await
    }

    /// Takes addresses off a link's list and adds others. It is no error if an address is there, or not there, already.
    ///
    /// An address that is taken off a macvtap's list may still pass until the list's next change: macvlan makes its filter before
    /// the list is clean. So additions come last.
    pub async fn change(
        &self,
        index: u32,
        add: BTreeSet<MacAddr>,
        remove: BTreeSet<MacAddr>,
    ) -> Result<(), MulticastError> {
        self.ask(
            format!("change the multicast list of link {index}"),
            move |Lists { socket, .. }| {
                let named = named(socket, index)?;
                for mac in remove {
                    let request = with_address(named, mac);
                    // SAFETY: the descriptor is a socket, and the kernel reads the ifreq it is given and nothing else.
                    match unsafe { ioctl::remove(socket.as_raw_fd(), &raw const request) } {
                        Ok(_) | Err(Errno::ENOENT) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                }
                for mac in add {
                    let request = with_address(named, mac);
                    // SAFETY: as above.
                    unsafe { ioctl::add(socket.as_raw_fd(), &raw const request) }?;
                }
                Ok(())
            },
        )
        .await
    }

    async fn ask<T: Send + 'static>(
        &self,
        operation: String,
        work: impl FnOnce(&Lists) -> io::Result<T> + Send + 'static,
    ) -> Result<T, MulticastError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |lists| {
            // The caller's deadline may have passed while others were served.
            if !answer.is_closed() {
                let _ = answer.send(work(lists));
            }
        });
        let asked = async {
            self.jobs.send(job).await.ok()?;
            answered.await.ok()
        };
        match tokio::time::timeout(DEADLINE, asked).await {
            Ok(Some(Ok(value))) => Ok(value),
            Ok(Some(Err(source))) => Err(MulticastError::Refused { operation, source }),
            Ok(None) => Err(MulticastError::Closed(operation)),
            Err(_) => Err(MulticastError::Timeout(operation)),
        }
    }
}

/// The addresses that were added to a link, of lines such as `4    hn0             2     1     333300000001`: index,
/// name, users, whether it was added, address.
pub(crate) fn added(listing: &str, index: u32) -> BTreeSet<MacAddr> {
    let address = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let of_link = words.next()?.parse() == Ok(index);
        let added = words.nth(2)? == "1";
        let text = words.next().filter(|_| of_link && added)?;
        let number = u64::from_str_radix(text, 16).ok().filter(|_| text.len() == 12)?;
        let [_, _, octets @ ..] = number.to_be_bytes();
        Some(MacAddr::new(octets))
    };
    listing.lines().filter_map(address).collect()
}

/// A request with a link's name, by which these go.
fn named(socket: &OwnedFd, index: u32) -> io::Result<libc::ifreq> {
    // SAFETY: an ifreq is integers, arrays of them and pointers, for all of which zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    // SAFETY: the descriptor is a socket, and the kernel fills the ifreq it is given and nothing else.
    unsafe { ioctl::get_name(socket.as_raw_fd(), &raw mut request) }?;
    Ok(request)
}

fn with_address(mut request: libc::ifreq, mac: MacAddr) -> libc::ifreq {
    // SAFETY: a sockaddr is integers, for which zero is a valid value.
    let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
    for (to, from) in address.sa_data.iter_mut().zip(mac.octets()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_hwaddr = address;
    request
}

#[allow(missing_docs, reason = "the macros make public functions")]
mod ioctl {
    nix::ioctl_read_bad!(get_name, libc::SIOCGIFNAME, libc::ifreq);
    nix::ioctl_read_bad!(get_flags, libc::SIOCGIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(add, libc::SIOCADDMULTI, libc::ifreq);
    nix::ioctl_write_ptr_bad!(remove, libc::SIOCDELMULTI, libc::ifreq);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_has_joined_is_not_ours() {
        let listing = "\
2    eth0            1     1     01005e0000fb
4    hn0             2     1     333300000001
4    hn0             1     0     01005e000001
4    hn0             1     1     3333ff123456
14   hn1             1     1     333300000002
4    hn0             1     1     80e00001000001
garbage
";
        let ours: BTreeSet<MacAddr> = ["33:33:00:00:00:01", "33:33:ff:12:34:56"]
            .iter()
            .map(|mac| mac.parse().unwrap())
            .collect();
        assert_eq!(added(listing, 4), ours);
        assert_eq!(added(listing, 1), BTreeSet::new());
    }

    #[tokio::test]
    async fn a_link_that_is_not_there_is_told_from_other_refusals() {
        let lists = Multicast::open().unwrap();
        assert!(lists.received(u32::MAX >> 1).await.unwrap_err().is_no_device());
        let error = lists
            .change(u32::MAX >> 1, BTreeSet::new(), BTreeSet::new())
            .await;
        assert!(error.unwrap_err().is_no_device());
    }
}
