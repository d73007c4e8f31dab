//! The QEMU of these tests, and a tap for it.

use std::ffi::c_short;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;

use nix::libc;

use crate::common::Qemu;

/// A q35 without devices but three root ports, the last of them not hot-pluggable.
const MACHINE: &str = "qemu-system-x86_64 -machine q35 -accel tcg -m 64 \
    -device pcie-root-port,id=rpa,chassis=1,slot=1 -device pcie-root-port,id=rpb,chassis=2,slot=2 \
    -device pcie-root-port,id=rpc,chassis=3,slot=3,hotplug=off";

impl Qemu {
    /// A machine with ports, and whatever else.
    pub fn start(arguments: &[&str]) -> Self {
        Self::run(MACHINE.split_whitespace().chain(arguments.iter().copied()))
    }
}

/// A new tap interface. It lives as long as its descriptor.
pub fn tap() -> File {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    // SAFETY: all-zero is a valid ifreq: a C structure of plain integers and arrays.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"qmptest%d") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags =
        c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).unwrap();
    // SAFETY: the descriptor is open and the request is a valid ifreq that outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
    assert_eq!(result, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
    file
}
