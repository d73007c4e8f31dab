//! Telling switches where a MAC is now.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::types::{MacAddr, VlanProtocol};

/// Shortest Ethernet frame, without the check sequence.
const FRAME: usize = 60;
/// What a frame of that length has behind its request.
const PADDING: usize = FRAME - 42;
/// EtherType of RARP (RFC 903).
const ETH_P_RARP: u16 = 0x8035;
/// EtherTypes of the tags.
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;

/// The tag of a VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// VLAN id, 1 to 4094.
    pub id: u16,
    /// Priority (PCP), 0 to 7.
    pub qos: u8,
    /// Its protocol.
    pub protocol: VlanProtocol,
}

impl Tag {
    fn ether_type(self) -> u16 {
        match self.protocol {
            VlanProtocol::Dot1q => ETH_P_8021Q,
            VlanProtocol::Dot1ad => ETH_P_8021AD,
        }
    }

    /// EtherType, and priority and id.
    fn octets(self) -> [u8; 4] {
        let [kind, control] = [self.ether_type(), u16::from(self.qos & 7) << 13 | self.id & 0xfff];
        let ([a, b], [c, d]) = (kind.to_be_bytes(), control.to_be_bytes());
        [a, b, c, d]
    }
}

/// Sends a broadcast RARP request with that source address from a link, the frame that QEMU also announces a guest
/// with: switches learn the address, and no host takes it for anything else. The link must be up. With a tag the switches learn it in that
/// VLAN.
///
/// Needs `CAP_NET_RAW` in the calling thread's network namespace. Does not block: `EAGAIN` or `ENOBUFS` mean that the
/// link's queue is full, `ENETDOWN` that the link is down.
pub fn send_rarp(ifindex: u32, mac: MacAddr, tag: Option<Tag>) -> io::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    // Protocol 0: it receives nothing.
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
    let address = link_address(ifindex, tag.map_or(ETH_P_RARP, Tag::ether_type))?;
    let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    let frame = rarp(mac, tag);
    // SAFETY: both buffers live through the call and have the lengths that are passed.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            length,
        )
    };
    match usize::try_from(sent) {
        Ok(sent) if sent == frame.len() => Ok(()),
        Ok(_) => Err(io::Error::new(io::ErrorKind::WriteZero, "the frame was cut")),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

fn link_address(ifindex: u32, protocol: u16) -> io::Result<libc::sockaddr_ll> {
    // SAFETY: a sockaddr_ll is integers and an array of them, for all of which zero is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::sa_family_t::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
    Ok(address)
}

/// A reverse request by `mac` for itself, padded to a whole frame, which a tag makes longer.
fn rarp(mac: MacAddr, tag: Option<Tag>) -> Vec<u8> {
    let mac = mac.octets();
    let tag = tag.map(Tag::octets);
    let parts: [&[u8]; 10] = [
        &MacAddr::BROADCAST.octets(),
        &mac,
        tag.as_ref().map_or(&[], |tag| tag),
        &ETH_P_RARP.to_be_bytes(),
        // Ethernet, IPv4, their address lengths, operation 3: reverse request.
        &[0, 1, 8, 0, 6, 4, 0, 3],
        &mac,
        &[0; 4],
        &mac,
        &[0; 4],
        &[0; PADDING],
    ];
    parts.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_is_a_reverse_request() {
        let frame = rarp(MacAddr::new([0x52, 0x54, 0, 1, 2, 3]), None);
        assert_eq!(frame.len(), FRAME);
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[6..12], [0x52, 0x54, 0, 1, 2, 3]);
        assert_eq!(frame[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!(frame[22..28], [0x52, 0x54, 0, 1, 2, 3]);
        assert_eq!(frame[28..32], [0; 4]);
        assert_eq!(frame[32..38], [0x52, 0x54, 0, 1, 2, 3]);
        assert_eq!(frame[38..], [0; 22]);
    }

    #[test]
    fn in_a_vlan_it_has_the_tag_of_that_behind_the_addresses() {
        let mac = MacAddr::new([0x52, 0x54, 0, 1, 2, 3]);
        let plain = rarp(mac, None);
        for (id, qos, protocol, octets) in [
            (100, 0, VlanProtocol::Dot1q, [0x81, 0, 0, 100]),
            (0xabc, 5, VlanProtocol::Dot1q, [0x81, 0, 0xaa, 0xbc]),
            (4094, 7, VlanProtocol::Dot1ad, [0x88, 0xa8, 0xef, 0xfe]),
        ] {
            let tagged = rarp(mac, Some(Tag { id, qos, protocol }));
            assert_eq!(tagged[..12], plain[..12]);
            assert_eq!(tagged[12..16], octets);
            assert_eq!(tagged[16..], plain[12..]);
        }
    }
}
