//! Network namespaces of pods.
//!
//! A descriptor of a namespace keeps it, and every link in it, as long as it is open; so does any socket that was opened in it, also a
//! netlink socket. A process that holds one after the pod has gone holds the pod's macvtap as well, with its index and its node in `/dev`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

/// A network namespace, which lives at least as long as this. Clones share the descriptor.
#[derive(Debug, Clone)]
pub struct NetNs {
    file: Arc<File>,
    inode: u64,
}

impl PartialEq for NetNs {
    /// Both are held, so that one inode is one namespace.
    fn eq(&self, other: &Self) -> bool {
        self.inode == other.inode
    }
}

impl Eq for NetNs {}

impl NetNs {
    /// Takes a descriptor of a network namespace; any other is refused.
    pub fn of(namespace: OwnedFd) -> io::Result<Self> {
        // SAFETY: the descriptor is open, and NS_GET_NSTYPE takes no argument; anything else than a namespace refuses it.
        let kind = unsafe { ioctl::kind(namespace.as_raw_fd()) };
        match kind {
            Ok(libc::CLONE_NEWNET) => {
                let file = File::from(namespace);
                let inode = file.metadata()?.ino();
                Ok(Self {
                    file: Arc::new(file),
                    inode,
                })
            }
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the descriptor is not a network namespace's",
            )),
        }
    }

    /// Opens one by its path, such as `/proc/PID/ns/net` or what a container runtime has mounted.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::of(File::open(path)?.into())
    }

    /// The calling thread's.
    pub fn own() -> io::Result<Self> {
        Self::open("/proc/thread-self/ns/net".as_ref())
    }

    /// The one that a socket was opened in. Needs `CAP_NET_ADMIN` there.
    pub fn of_socket(socket: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: the descriptor is open, and SIOCGSKNS takes no argument; anything else than a socket refuses it.
        let namespace = unsafe { ioctl::of_socket(socket.as_raw_fd()) }?;
        // SAFETY: the kernel has just made it for us, and nobody else has it.
        Self::of(unsafe { OwnedFd::from_raw_fd(namespace) })
    }

    /// Its number, by which the kernel and `lsns` know it. Once nothing holds it any more another one may get the number.
    pub fn inode(&self) -> u64 {
        self.inode
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[allow(missing_docs, reason = "the macros make public functions")]
mod ioctl {
    /// Of include/uapi/linux/nsfs.h.
    const NSIO: u8 = 0xb7;
    const NS_GET_NSTYPE: u8 = 3;
    /// Of include/uapi/linux/sockios.h.
    const SIOCGSKNS: libc::c_ulong = 0x894c;

    nix::ioctl_none!(kind, NSIO, NS_GET_NSTYPE);
    nix::ioctl_none_bad!(of_socket, SIOCGSKNS);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_network_namespace_is_refused() {
        for path in ["/dev/null", "/proc/self/ns/mnt", "/proc/self/ns"] {
            let error = NetNs::open(path.as_ref()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path}");
        }
        let own = NetNs::own().unwrap();
        assert_eq!(own, NetNs::open("/proc/self/ns/net".as_ref()).unwrap());
        assert_ne!(own.inode(), 0);
    }
}
