//! Opens private parts to fuzzing (`make fuzz`); in no other build.

use std::collections::BTreeSet;

use crate::types::MacAddr;
use crate::{interrupts, multicast, uevent};

pub use crate::netlink::fuzzing::{Read, read as netlink};

/// Reads a uevent.
pub fn uevent(message: &[u8]) -> Option<uevent::Uevent> {
    uevent::parse(message)
}

/// Reads `/proc/net/dev_mcast`.
pub fn multicast(listing: &str, index: u32) -> BTreeSet<MacAddr> {
    multicast::added(listing, index)
}

/// Reads an interrupt's `per_cpu_count`.
pub fn interrupts(text: &str) -> u64 {
    interrupts::count(text)
}
