//! A socket of rtnetlink whose messages the decoder can read.
//!
//! A driver with port profiles has an `IFLA_VF_PORTS` in what the kernel reports about its PF's VFs. It is empty as long as no VF has asked
//! for one, and netlink-packet-route cannot decode an empty one: the message would be dropped, and the request would run into its deadline.

use std::io;
use std::os::fd::{FromRawFd, RawFd};
use std::task::{Context, Poll, ready};

use rtnetlink::packet_core::{NLA_HEADER_SIZE, NlaBuffer};
use rtnetlink::sys::{AsyncSocket, Socket, SocketAddr, TokioSocket};

/// `struct nlmsghdr`.
const MESSAGE_HEADER: usize = 16;
/// `struct nlmsghdr` and `struct ifinfomsg`.
const LINK_HEADER: usize = MESSAGE_HEADER + 16;
const RTM_NEWLINK: u16 = 16;
const IFLA_VF_PORTS: u16 = 24;
/// The kernel's own filler.
const IFLA_PAD: u16 = 42;

/// tokio's socket, with messages that can be decoded.
pub(super) struct ReadableSocket(TokioSocket);

impl FromRawFd for ReadableSocket {
    unsafe fn from_raw_fd(fd: RawFd) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { TokioSocket::from_raw_fd(fd) })
    }
}

impl AsyncSocket for ReadableSocket {
    fn socket_ref(&self) -> &Socket {
        self.0.socket_ref()
    }

    fn socket_mut(&mut self) -> &mut Socket {
        self.0.socket_mut()
    }

    fn new(protocol: isize) -> io::Result<Self> {
        TokioSocket::new(protocol).map(Self)
    }

    fn poll_send(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_send(cx, buf)
    }

    fn poll_send_to(&self, cx: &mut Context<'_>, buf: &[u8], addr: &SocketAddr) -> Poll<io::Result<usize>> {
        self.0.poll_send_to(cx, buf, addr)
    }

    fn poll_recv<B: bytes::BufMut>(&self, cx: &mut Context<'_>, buf: &mut B) -> Poll<io::Result<()>> {
        let (datagram, _) = ready!(self.poll_recv_from_full(cx))?;
        buf.put_slice(&datagram);
        Poll::Ready(Ok(()))
    }

    fn poll_recv_from<B: bytes::BufMut>(
        &self,
        cx: &mut Context<'_>,
        buf: &mut B,
    ) -> Poll<io::Result<SocketAddr>> {
        let (datagram, from) = ready!(self.poll_recv_from_full(cx))?;
        buf.put_slice(&datagram);
        Poll::Ready(Ok(from))
    }

    fn poll_recv_from_full(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Vec<u8>, SocketAddr)>> {
        let (mut datagram, from) = ready!(self.0.poll_recv_from_full(cx))?;
        fill_empty_ports(&mut datagram);
        Poll::Ready(Ok((datagram, from)))
    }
}

/// Turns each empty `IFLA_VF_PORTS` in the messages of a datagram about links into a filler.
pub(super) fn fill_empty_ports(datagram: &mut [u8]) {
    let mut at = 0;
    while let Some((length, kind)) = message(datagram, at) {
        let end = datagram.len().min(at.saturating_add(length));
        if kind == RTM_NEWLINK {
            fill_in_link(datagram.get_mut(at..end).unwrap_or_default());
        }
        at = at.saturating_add(length.next_multiple_of(4));
    }
}

/// Length and type of the message that begins here.
fn message(datagram: &[u8], at: usize) -> Option<(usize, u16)> {
    let header = datagram.get(at..)?.first_chunk::<MESSAGE_HEADER>()?;
    let length = u32::from_ne_bytes(*header.first_chunk()?);
    let length = usize::try_from(length).ok()?;
    let kind = u16::from_ne_bytes(*header.get(4..)?.first_chunk()?);
    (length >= MESSAGE_HEADER && length <= datagram.len()).then_some((length, kind))
}

fn fill_in_link(message: &mut [u8]) {
    let mut attributes = message.get_mut(LINK_HEADER..).unwrap_or_default();
    while let Ok(attribute) = NlaBuffer::new_checked(&*attributes) {
        let (length, kind) = (usize::from(attribute.length()), attribute.kind());
        if kind == IFLA_VF_PORTS && length == NLA_HEADER_SIZE {
            attributes[2..NLA_HEADER_SIZE].copy_from_slice(&IFLA_PAD.to_ne_bytes());
        }
        attributes = attributes
            .get_mut(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
    use rtnetlink::packet_route::RouteNetlinkMessage;
    use rtnetlink::packet_route::link::LinkAttribute;

    use super::*;

    /// A message about a link, with these attributes.
    fn about_link(attributes: &[u8]) -> Vec<u8> {
        let length = u32::try_from(LINK_HEADER + attributes.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(RTM_NEWLINK.to_ne_bytes());
        bytes.resize(LINK_HEADER, 0);
        bytes.extend(attributes);
        bytes
    }

    const NAME: [u8; 8] = [8, 0, 3, 0, b'p', b'f', b'0', 0];
    const NO_PORTS: [u8; 4] = [4, 0, 24, 0];

    fn decoded(message: &[u8]) -> Option<Vec<LinkAttribute>> {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).ok()?;
        match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Some(link.attributes),
            _ => None,
        }
    }

    #[test]
    fn a_link_without_ports_can_be_decoded() {
        let mut message = about_link(&[NO_PORTS.as_slice(), &NAME].concat());
        assert_eq!(
            decoded(&message),
            None,
            "if the decoder takes it, this module can go"
        );
        fill_empty_ports(&mut message);
        let name = LinkAttribute::IfName("pf0".to_owned());
        assert!(decoded(&message).unwrap().contains(&name));
    }

    #[test]
    fn each_message_of_a_datagram_is_looked_at() {
        let first = about_link(&NAME);
        let mut datagram = [first.clone(), about_link(&NO_PORTS)].concat();
        fill_empty_ports(&mut datagram);
        assert_eq!(datagram[..first.len()], first);
        assert!(decoded(&datagram[first.len()..]).is_some());
    }

    #[test]
    fn ports_that_are_there_stay() {
        // One port, of the VF 0.
        let ports = [16, 0, 24, 0, 12, 0, 1, 0, 8, 0, 1, 0, 0, 0, 0, 0];
        let message = about_link(&ports);
        let mut same = message.clone();
        fill_empty_ports(&mut same);
        assert_eq!(same, message);
    }

    proptest! {
        #[test]
        fn no_datagram_makes_it_panic(mut datagram: Vec<u8>, attributes: Vec<u8>) {
            fill_empty_ports(&mut datagram);
            fill_empty_ports(&mut about_link(&attributes));
        }
    }
}
