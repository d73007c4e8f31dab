//! MAC addresses: parsing, ranges, and who owns which. Pure.
//!
//! An address belongs to the NIC in whose status it is; before it is in any, to the oldest that asks for it. Generated
//! addresses start at a hash of the NIC's name, so that a NIC whose status was lost gets the same one again, and are
//! unique over the cluster; requested ones only over their network, as two networks may well use the same.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use hybridnic_api::v1alpha1::{MacRange, VmHybridNic};
use jiff::Timestamp;
use kube::ResourceExt;

/// Bit of a group address in the first byte.
const GROUP: u64 = 1 << 40;
/// Addresses that share their first three bytes.
const BLOCK: u64 = 1 << 24;

/// A MAC address. It prints in lower case with colons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(u64);

/// The text is no MAC address: six hexadecimal pairs with colons.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a MAC address; write six hexadecimal pairs with colons, as in \"02:00:00:00:00:01\"")]
pub struct BadMac(pub String);

impl FromStr for Mac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(text.to_owned());
        let mut value = 0;
        let mut pairs = 0;
        for pair in text.split(':') {
            let digits = pair.len() == 2 && pair.bytes().all(|byte| byte.is_ascii_hexdigit());
            let byte = u8::from_str_radix(pair, 16)
                .ok()
                .filter(|_| digits)
                .ok_or_else(bad)?;
            value = value << 8 | u64::from(byte);
            pairs += 1;
            if pairs > 6 {
                return Err(bad());
            }
        }
        if pairs == 6 { Ok(Self(value)) } else { Err(bad()) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [_, _, bytes @ ..] = self.0.to_be_bytes();
        write!(f, "{}", bytes.map(|byte| format!("{byte:02x}")).join(":"))
    }
}

/// The addresses from the first to the last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    first: u64,
    last: u64,
}

impl Range {
    /// A network's own range: `02:hh:hh:00:00:00` to `02:hh:hh:ff:ff:ff`, of a hash of cluster and network, so that two
    /// clusters on one L2 network seldom share it.
    pub fn of_network(cluster: &str, network: &str) -> Self {
        let first = 0x02_0000_u64 << 24 | (hash(&[cluster, network]) & 0xffff) << 24;
        Self {
            first,
            last: first + BLOCK - 1,
        }
    }

    /// A range that a user wrote.
    pub fn parse(range: &MacRange) -> Result<Self, BadMac> {
        let (first, last) = (range.from.parse::<Mac>()?.0, range.to.parse::<Mac>()?.0);
        if first <= last {
            Ok(Self { first, last })
        } else {
            Err(BadMac(format!("{}-{}", range.from, range.to)))
        }
    }

    /// The first address at or after one that `seed` chooses, round the range's end, that is not `taken`.
    pub fn pick(&self, seed: &str, taken: impl Fn(Mac) -> bool) -> Option<Mac> {
        let length = self.last - self.first + 1;
        let start = hash(&[seed]) % length;
        let mut step = 0;
        while step < length {
            let mac = self.first + (start + step) % length;
            if mac & GROUP != 0 {
                // No unicast address before the next first byte.
                step += (((mac >> 40) + 1) << 40).min(self.last + 1) - mac;
            } else if mac == 0 || taken(Mac(mac)) {
                step += 1;
            } else {
                return Some(Mac(mac));
            }
        }
        None
    }
}

/// FNV-1a, 64 bits, folded: it must give the same on every version and machine, which std's hashers do not promise.
fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash ^ hash >> 32
}

/// Why a NIC gets no address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Another NIC of the network has it.
    #[error("{mac} belongs to {owner} on this network; delete one of the two, or choose another address")]
    Conflict {
        /// The address.
        mac: Mac,
        /// Namespace and name of the other NIC.
        owner: String,
    },
    /// The range is used up.
    #[error("every address of the network's MAC range is taken; widen spec.macRange of the HybridNetwork")]
    Exhausted,
    /// It is none.
    #[error(transparent)]
    Bad(#[from] BadMac),
}

/// Addresses that this process has handed out, by the NIC's uid, until the cache shows them.
#[derive(Debug, Default)]
pub struct HandedOut(HashMap<Mac, String>);

impl HandedOut {
    /// Forgets what `nic` was handed out: its status shows it, or it is no more.
    pub fn settle(&mut self, nic: &VmHybridNic) {
        let uid = nic.uid().unwrap_or_default();
        self.0.retain(|_, owner| *owner != uid);
    }
}

/// The address of `nic`, out of `range` when it asks for none. `holders` gives the NICs, of all networks, in whose spec or
/// status an address is; the answer is noted in `handed_out`.
pub fn assign(
    nic: &VmHybridNic,
    range: Range,
    holders: impl Fn(Mac) -> Vec<std::sync::Arc<VmHybridNic>>,
    handed_out: &mut HandedOut,
) -> Result<Mac, Error> {
    let uid = nic.uid().unwrap_or_default();
    let had = in_status(nic).or_else(|| {
        handed_out
            .0
            .iter()
            .find(|(_, owner)| **owner == uid)
            .map(|(mac, _)| *mac)
    });
    let requested = nic.spec.mac.as_deref().map(str::parse::<Mac>).transpose()?;
    let mac = if let Some(mac) = requested.or(had) {
        let rank = |nic: &VmHybridNic| rank(nic, mac, handed_out);
        let others = holders(mac).into_iter().filter(|other| {
            other.spec.network == nic.spec.network && other.uid() != nic.uid() && rank(other) < rank(nic)
        });
        if let Some(other) = others.min_by_key(|other| rank(other)) {
            let owner = format!("{}/{}", other.namespace().unwrap_or_default(), other.name_any());
            return Err(Error::Conflict { mac, owner });
        }
        mac
    } else {
        let seed = format!("{}/{}", nic.namespace().unwrap_or_default(), nic.name_any());
        let taken = |mac| handed_out.0.contains_key(&mac) || !holders(mac).is_empty();
        range.pick(&seed, taken).ok_or(Error::Exhausted)?
    };
    if in_status(nic) == Some(mac) {
        handed_out.settle(nic);
    } else {
        handed_out.0.insert(mac, uid);
    }
    Ok(mac)
}

/// Who comes first owns the address: who has it already, then the older, then any order that lasts.
fn rank(nic: &VmHybridNic, mac: Mac, handed_out: &HandedOut) -> (bool, Option<Timestamp>, String) {
    let uid = nic.uid().unwrap_or_default();
    let has = in_status(nic) == Some(mac) || handed_out.0.get(&mac) == Some(&uid);
    (!has, nic.creation_timestamp().map(|time| time.0), uid)
}

fn in_status(nic: &VmHybridNic) -> Option<Mac> {
    nic.status.as_ref()?.mac.as_deref()?.parse().ok()
}

#[cfg(test)]
#[path = "mac_tests.rs"]
mod tests;
