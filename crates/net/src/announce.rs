//! Telling switches where a MAC is now.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::types::MacAddr;

/// Shortest Ethernet frame, without the check sequence.
const FRAME: usize = 60;
/// EtherType of RARP (RFC 903).
const ETH_P_RARP: u16 = 0x8035;

/// Sends a broadcast RARP request with that source address from a link, the frame that QEMU also announces a guest
/// with: switches learn the address, and no host takes it for more. The link must be up.
///
/// Needs `CAP_NET_RAW` in the calling thread's network namespace. Does not block: `EAGAIN` or `ENOBUFS` mean that the
/// link's queue is full, `ENETDOWN` that the link is down.
pub fn send_rarp(ifindex: u32, mac: MacAddr) -> io::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    // Protocol 0: it receives nothing.
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
    let address = link_address(ifindex)?;
    let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    let frame = rarp(mac);
    // SAFETY: both buffers live through the call and are as long as is said.
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
        Ok(FRAME) => Ok(()),
        Ok(_) => Err(io::Error::new(io::ErrorKind::WriteZero, "the frame was cut")),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

fn link_address(ifindex: u32) -> io::Result<libc::sockaddr_ll> {
    // SAFETY: a sockaddr_ll is integers and an array of them, for all of which zero is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::sa_family_t::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    address.sll_protocol = ETH_P_RARP.to_be();
    address.sll_ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
    Ok(address)
}

/// A reverse request by `mac` for itself, padded to a whole frame.
fn rarp(mac: MacAddr) -> [u8; FRAME] {
    let mac = mac.octets();
    let parts: [&[u8]; 9] = [
        &MacAddr::BROADCAST.octets(),
        &mac,
        &ETH_P_RARP.to_be_bytes(),
        // Ethernet, IPv4, their address lengths, operation 3: reverse request.
        &[0, 1, 8, 0, 6, 4, 0, 3],
        &mac,
        &[0; 4],
        &mac,
        &[0; 4],
        &[0; 18],
    ];
    let mut frame = [0; FRAME];
    for (to, from) in frame.iter_mut().zip(parts.concat()) {
        *to = from;
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_is_a_reverse_request() {
        let frame = rarp(MacAddr::new([0x52, 0x54, 0, 1, 2, 3]));
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[6..12], [0x52, 0x54, 0, 1, 2, 3]);
        assert_eq!(frame[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!(frame[22..28], [0x52, 0x54, 0, 1, 2, 3]);
        assert_eq!(frame[28..32], [0; 4]);
        assert_eq!(frame[32..38], [0x52, 0x54, 0, 1, 2, 3]);
        assert_eq!(frame[38..], [0; 22]);
    }
}
