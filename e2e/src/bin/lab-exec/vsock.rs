//! Stream sockets to and from virtual machines, which std has none of.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::VMADDR_CID_ANY;
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, VsockAddr};

fn new() -> io::Result<OwnedFd> {
    Ok(socket::socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}

/// How long a guest may take to answer. The kernel gives up after 2 s (`VSOCK_DEFAULT_CONNECT_TIMEOUT`), which is too soon
/// for a guest whose QEMU pins memory while another guest of the emulated node boots, and for one that has just migrated.
const PATIENCE: Duration = Duration::from_secs(20);

/// Connects to a port of the machine with this context id.
///
/// The result is dressed as a [`UnixStream`]: reading, writing and shutting down are the same calls.
pub(crate) fn connect(cid: u32, port: u32) -> io::Result<UnixStream> {
    let end = Instant::now() + PATIENCE;
    loop {
        let fd = new()?;
        match socket::connect(fd.as_raw_fd(), &VsockAddr::new(cid, port)) {
            Ok(()) => return Ok(fd.into()),
            Err(Errno::ETIMEDOUT) if Instant::now() < end => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Listens on a port of this machine.
pub(crate) struct Listener(OwnedFd);

impl Listener {
    /// Binds and listens.
    pub(crate) fn bind(port: u32) -> io::Result<Self> {
        let fd = new()?;
        socket::bind(fd.as_raw_fd(), &VsockAddr::new(VMADDR_CID_ANY, port))?;
        socket::listen(&fd, Backlog::new(64)?)?;
        Ok(Self(fd))
    }

    /// Waits for the next connection.
    pub(crate) fn accept(&self) -> io::Result<UnixStream> {
        let fd = socket::accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: accept4 has just made this descriptor and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
    }
}
