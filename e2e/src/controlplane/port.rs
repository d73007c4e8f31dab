//! A TCP port that is ours for as long as we say.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, setsockopt, socket, sockopt,
};

/// A free port on all IPv4 addresses, held by a socket that is bound but never listens.
///
/// A daemon that sets `SO_REUSEPORT` too (kube-apiserver's `--permit-port-sharing`) may listen on it, also after a
/// restart; nobody else gets it in between, as they could if the port were probed and let go.
#[derive(Debug)]
pub struct ReservedPort {
    number: u16,
    _socket: OwnedFd,
}

impl ReservedPort {
    /// Takes any free port.
    pub fn any() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        setsockopt(&socket, sockopt::ReusePort, &true)?;
        bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, 0))?;
        let number = getsockname::<SockaddrIn>(socket.as_raw_fd())?.port();
        Ok(Self {
            number,
            _socket: socket,
        })
    }

    /// The port's number.
    pub fn number(&self) -> u16 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_reserved_port_is_refused_to_others_and_does_not_answer() {
        let port = ReservedPort::any().unwrap();
        let taken = TcpListener::bind(("0.0.0.0", port.number())).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        let refused = TcpStream::connect(("127.0.0.1", port.number())).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
