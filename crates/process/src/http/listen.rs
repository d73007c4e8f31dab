//! Listening on all addresses, no matter which families a node has.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::{TcpListener, TcpSocket};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// Listens on an address. `[::]` is all addresses of both families, no matter what `net.ipv6.bindv6only` says; if the kernel has no
/// IPv6, all of IPv4.
pub(super) fn on(address: SocketAddr) -> io::Result<TcpListener> {
    match bound(address) {
        Err(error) => in_place_of(address, &error).map_or(Err(error), bound),
        listener => listener,
    }
}

fn bound(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        if address.ip().is_unspecified() {
            socket2::SockRef::from(&socket).set_only_v6(false)?;
        }
        socket
    };
    // A program that has ended may have connections that are not quite closed.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// What to listen on instead: a kernel without IPv6 knows no such family, or no such address.
fn in_place_of(address: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    let (all, ipv4) = (address.ip().is_unspecified(), address.is_ipv4());
    let missing = [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL]
        .map(Some)
        .contains(&error.raw_os_error());
    (all && !ipv4 && missing).then(|| (Ipv4Addr::UNSPECIFIED, address.port()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::net::TcpStream;

    #[tokio::test]
    async fn all_addresses_are_those_of_both_families() {
        let listener = on("[::]:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let by = async |host: &str| {
            let (stream, accepted) =
                tokio::join!(TcpStream::connect((host, address.port())), listener.accept());
            assert_eq!(
                stream.unwrap().local_addr().unwrap().ip(),
                accepted.unwrap().1.ip().to_canonical()
            );
        };
        by("127.0.0.1").await;
        // There is no IPv6 where it listens on IPv4.
        if address.is_ipv6() && std::fs::exists("/proc/net/if_inet6").unwrap() {
            by("::1").await;
        }
    }

    #[tokio::test]
    async fn one_address_is_that_one() {
        let listener = on("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(address.ip(), Ipv4Addr::LOCALHOST);
        on(address).unwrap_err();
    }

    #[test]
    fn without_ipv6_it_is_ipv4() {
        let instead = |address: &str, errno: i32| {
            let address = in_place_of(address.parse().unwrap(), &io::Error::from_raw_os_error(errno));
            address.map(|address| address.to_string())
        };
        for none in [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL] {
            assert_eq!(instead("[::]:80", none).as_deref(), Some("0.0.0.0:80"));
            // Somebody meant this one.
            assert_eq!(instead("[::1]:80", none), None);
            assert_eq!(instead("0.0.0.0:80", none), None);
        }
        assert_eq!(instead("[::]:80", libc::EADDRINUSE), None);
    }
}
