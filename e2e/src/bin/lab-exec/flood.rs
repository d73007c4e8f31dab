//! Frames into a macvtap by its descriptor, as a guest's device sends them, and what each costs.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    time::Instant,
};

/// `struct virtio_net_hdr`, in front of each frame of a macvtap as it is made.
const VIRTIO_HEADER: usize = 10;
/// A full frame, in octets.
const FRAME: usize = 1514;
/// Where the kind is in the Ethernet header, and one that nobody uses (IEEE 802, Local Experimental).
const KIND: usize = 12;
const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];

/// Sends `count` frames; says how many nanoseconds one has taken. They should be few: of some ninety that have not left the card the
/// kernel lets the next one wait.
pub(crate) fn main(device: &str, from: &str, to: &str, count: &str) -> io::Result<()> {
    let count: u32 = count.parse().map_err(io::Error::other)?;
    let mut frame = vec![0; VIRTIO_HEADER + FRAME];
    let ethernet = &mut frame[VIRTIO_HEADER..];
    ethernet[..6].copy_from_slice(&mac(to)?);
    ethernet[6..12].copy_from_slice(&mac(from)?);
    ethernet[KIND..KIND + 2].copy_from_slice(&EXPERIMENTAL);
    let mut tap = OpenOptions::new().write(true).open(device)?;
    let began = Instant::now();
    for _ in 0..count {
        // A frame that does not pass is dropped, and nobody is told.
        tap.write_all(&frame)?;
    }
    println!("{}", began.elapsed().as_nanos() / u128::from(count.max(1)));
    Ok(())
}

fn mac(text: &str) -> io::Result<[u8; 6]> {
    let octets: Result<Vec<u8>, _> = text
        .split(':')
        .map(|octet| u8::from_str_radix(octet, 16))
        .collect();
    let octets = octets.map_err(io::Error::other)?;
    octets
        .try_into()
        .map_err(|_| io::Error::other(format!("{text} is no MAC")))
}
