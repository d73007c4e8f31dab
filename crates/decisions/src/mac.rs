//! MAC addresses: parsing, ranges, and who owns which. Pure.
//!
//! An address belongs to one NIC in the whole cluster, because no object says which networks share an L2 segment. It belongs to the
//! NIC that has it in its status; before any has, to the oldest NIC of its network that asks for it and was not refused. A NIC on
//! another network keeps an address from others only if it has it; otherwise asking alone would. Generated addresses start at a hash
//! of the NIC's name, so that a NIC whose status was lost gets the same one again.
//!
//! [`Rules`] say which addresses a NIC may ask for: those that the network allows, and never one that stations of the network
//! itself have (`reserved`).

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use hybridnic_api::conditions::{self, reasons, types};
use hybridnic_api::v1alpha1::{MacPolicy, MacRange, VmHybridNic};
use jiff::Timestamp;
use kube::ResourceExt;

/// Bit of a group address in the first byte.
const GROUP: u64 = 1 << 40;
/// Addresses that share their first three bytes.
const BLOCK: u64 = 1 << 24;

/// A MAC address. It prints in lower case with colons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(u64);

/// The text is not a MAC address: six hexadecimal pairs with colons.
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

/// Addresses that no NIC gets, no matter what its network allows: the prefix, its length in bits, and what it is.
const RESERVED: [(u64, u32, &str); 7] = [
    (
        0x0600_0000_0000,
        8,
        "in 06:…, the range in which free VFs are parked",
    ),
    (0x0000_5e00_0100, 40, "a virtual router's (VRRP, CARP)"),
    (0x0000_5e00_0200, 40, "a virtual router's (VRRP for IPv6)"),
    (0x0000_0c07_ac00, 40, "a virtual router's (HSRP)"),
    (0x0000_0c9f_f000, 36, "a virtual router's (HSRP version 2)"),
    (0x0005_73a0_0000, 36, "a virtual router's (HSRP for IPv6)"),
    (0x0007_b400_0000, 32, "a virtual router's (GLBP)"),
];

/// Why no NIC gets an address, and the last address to which the same applies.
fn reserved(mac: Mac) -> Option<(&'static str, u64)> {
    if mac.0 & GROUP != 0 {
        return Some(("a group's", mac.0 | (GROUP - 1)));
    }
    if mac.0 == 0 {
        return Some(("nobody's", 0));
    }
    let is_in = |(first, bits, _): &&(u64, u32, &str)| (mac.0 ^ first) >> (48 - bits) == 0;
    let (first, bits, what) = RESERVED.iter().find(is_in)?;
    Some((what, first | ((1 << (48 - bits)) - 1)))
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

    /// Whether an address is one of them.
    pub fn has(&self, mac: Mac) -> bool {
        (self.first..=self.last).contains(&mac.0)
    }

    /// The first address at or after one that `seed` chooses, round the range's end, that is not `taken`.
    pub fn pick(&self, seed: &str, taken: impl Fn(Mac) -> bool) -> Option<Mac> {
        let length = self.last - self.first + 1;
        let start = hash(&[seed]) % length;
        let mut step = 0;
        while step < length {
            let mac = self.first + (start + step) % length;
            if let Some((_, end)) = reserved(Mac(mac)) {
                step += end.min(self.last) + 1 - mac;
            } else if taken(Mac(mac)) {
                step += 1;
            } else {
                return Some(Mac(mac));
            }
        }
        None
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", Mac(self.first), Mac(self.last))
    }
}

/// FNV-1a, 64 bits, folded: it must give the same on every version and machine, which std's hashers do not promise.
pub fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash ^ hash >> 32
}

/// Why a NIC gets no address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Another NIC has it.
    #[error(
        "{mac} belongs to {owner}, and a MAC belongs to one NIC in the whole cluster; delete one of the two, or choose another address"
    )]
    Conflict {
        /// The address.
        mac: Mac,
        /// The other NIC, as far as it is anybody's business.
        owner: String,
    },
    /// A NIC has it of which nothing else is known.
    #[error("{0} belongs to a NIC that cannot be read; look into the log, or choose another address")]
    Unread(Mac),
    /// A PF has it.
    #[error("{0} is the address of a card of a node; choose another address")]
    Card(Mac),
    /// No NIC gets it.
    #[error("{0} is {1}; no NIC gets such an address")]
    Reserved(Mac, &'static str),
    /// The network's NICs get generated ones.
    #[error("the HybridNetwork says macs: Generated, so no NIC may ask for an address; leave spec.mac out")]
    NotGenerated,
    /// It is not in the network's range.
    #[error("{0} is not in the network's MAC range, {1}; leave spec.mac out, or choose an address of it")]
    OutOfRange(Mac, String),
    /// The range is used up.
    #[error("every address of the network's MAC range is taken; widen spec.macRange of the HybridNetwork")]
    Exhausted,
    /// It is none.
    #[error(transparent)]
    Bad(#[from] BadMac),
}

impl Error {
    /// One of [`reasons`].
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Conflict { .. } | Self::Unread(_) => reasons::MAC_CONFLICT,
            Self::Exhausted => reasons::MAC_RANGE_EXHAUSTED,
            Self::Bad(_) => reasons::FAILED,
            Self::Card(_) | Self::Reserved(..) | Self::NotGenerated | Self::OutOfRange(..) => {
                reasons::MAC_NOT_ALLOWED
            }
        }
    }
}

/// Addresses that this process has handed out, by the NIC's uid, until the cache shows them.
#[derive(Debug, Default)]
pub struct HandedOut(HashMap<Mac, String>);

impl HandedOut {
    /// Forgets what `nic` was given: its status shows it, or the NIC is gone.
    pub fn settle(&mut self, nic: &VmHybridNic) {
        let uid = nic.uid().unwrap_or_default();
        self.0.retain(|_, owner| *owner != uid);
    }
}

/// What a network says of its NICs' addresses.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Where generated ones come from.
    pub range: Range,
    /// Which ones may be asked for.
    pub macs: MacPolicy,
    /// A hash of the cluster or the host: two of them with the same range seldom choose the same address for NICs with the same name.
    pub whose: u64,
}

impl Rules {
    /// Whether a NIC may ask for an address. `is_card` knows the addresses of all PFs.
    fn allow(self, mac: Mac, is_card: impl Fn(Mac) -> bool) -> Result<(), Error> {
        if let Some((what, _)) = reserved(mac) {
            return Err(Error::Reserved(mac, what));
        }
        if is_card(mac) {
            return Err(Error::Card(mac));
        }
        match self.macs {
            MacPolicy::Generated => Err(Error::NotGenerated),
            MacPolicy::InRange if !self.range.has(mac) => Err(Error::OutOfRange(mac, self.range.to_string())),
            MacPolicy::InRange | MacPolicy::Any => Ok(()),
        }
    }
}

/// A NIC's address.
#[derive(Debug, PartialEq, Eq)]
pub struct Given {
    /// The address.
    pub mac: Mac,
    /// Why it would not get it now: it keeps the address because it is live.
    pub kept: Option<Error>,
}

/// What is asked of the caches.
pub struct Lookup<'a> {
    /// The NICs, of all networks, in whose spec or status an address is.
    pub holders: &'a dyn Fn(Mac) -> Vec<Arc<VmHybridNic>>,
    /// Whether a PF has an address.
    pub is_card: &'a dyn Fn(Mac) -> bool,
    /// Whether another NIC, which cannot be read, has an address.
    pub is_unread: &'a dyn Fn(Mac) -> bool,
}

/// The address of `nic`; a generated one when it asks for none. The answer is noted in `handed_out`. A NIC that is `live` with its address
/// keeps it, no matter what the rules are now.
pub fn assign(
    nic: &VmHybridNic,
    rules: Rules,
    live: bool,
    lookup: &Lookup<'_>,
    handed_out: &mut HandedOut,
) -> Result<Given, Error> {
    let uid = nic.uid().unwrap_or_default();
    let had = in_status(nic).or_else(|| {
        handed_out
            .0
            .iter()
            .find(|(_, owner)| **owner == uid)
            .map(|(mac, _)| *mac)
    });
    let requested = nic.spec.mac.as_deref().map(str::parse::<Mac>).transpose()?;
    let mut kept = None;
    let claims = |mac| {
        let others = (lookup.holders)(mac).into_iter();
        let others = others.filter(|other| other.uid() != nic.uid() && claims(other, mac, nic, handed_out));
        others.collect::<Vec<_>>()
    };
    let mac = if let Some(mac) = requested.or(had) {
        if requested.is_some()
            && let Err(error) = rules.allow(mac, lookup.is_card)
        {
            if !live || in_status(nic) != Some(mac) {
                return Err(error);
            }
            kept = Some(error);
        }
        // It may have had it first, because its age says only when it was made. A NIC that has it as well keeps it: nothing proves
        // which is right.
        if in_status(nic) != Some(mac) && (lookup.is_unread)(mac) {
            return Err(Error::Unread(mac));
        }
        let rank = |nic: &VmHybridNic| rank(nic, mac, handed_out);
        let others = claims(mac);
        let earlier = others.iter().filter(|other| rank(other) < rank(nic));
        if let Some(other) = earlier.min_by_key(|other| rank(other)) {
            let owner = owner(other, nic);
            let error = Error::Conflict { mac, owner };
            // Once, networks that share nothing could have one address each.
            let apart = other.spec.network != nic.spec.network;
            if !(apart && live && in_status(nic) == Some(mac)) {
                return Err(error);
            }
            kept = Some(error);
        }
        mac
    } else {
        let namespace = nic.namespace().unwrap_or_default();
        let seed = format!("{:x}/{namespace}/{}", rules.whose, nic.name_any());
        let taken = |mac| {
            handed_out.0.contains_key(&mac)
                || (lookup.is_card)(mac)
                || (lookup.is_unread)(mac)
                || !claims(mac).is_empty()
        };
        rules.range.pick(&seed, taken).ok_or(Error::Exhausted)?
    };
    if in_status(nic) == Some(mac) {
        handed_out.settle(nic);
    } else {
        handed_out.0.insert(mac, uid);
    }
    Ok(Given { mac, kept })
}

/// Whether `other` keeps `nic` from an address that it has or asks for.
fn claims(other: &VmHybridNic, mac: Mac, nic: &VmHybridNic, handed_out: &HandedOut) -> bool {
    has(other, mac, handed_out) || other.spec.network == nic.spec.network && !is_refused(other)
}

/// Whether a NIC's address, or itself, was refused.
pub fn is_refused(nic: &VmHybridNic) -> bool {
    let status = nic.status.as_ref();
    let accepted = status.and_then(|status| conditions::find(&status.conditions, types::ACCEPTED));
    accepted.is_some_and(|accepted| accepted.status == "False")
}

/// A user does not learn what is in another namespace.
fn owner(other: &VmHybridNic, nic: &VmHybridNic) -> String {
    if other.namespace() == nic.namespace() {
        format!("the NIC {} of this namespace", other.name_any())
    } else {
        "a NIC of another namespace".to_owned()
    }
}

fn has(nic: &VmHybridNic, mac: Mac, handed_out: &HandedOut) -> bool {
    in_status(nic) == Some(mac) || handed_out.0.get(&mac) == Some(&nic.uid().unwrap_or_default())
}

/// The first NIC owns the address: the one that has it already, then the older one, then any order that lasts.
fn rank(nic: &VmHybridNic, mac: Mac, handed_out: &HandedOut) -> (bool, Option<Timestamp>, String) {
    let age = nic.creation_timestamp().map(|time| time.0);
    (!has(nic, mac, handed_out), age, nic.uid().unwrap_or_default())
}

fn in_status(nic: &VmHybridNic) -> Option<Mac> {
    nic.status.as_ref()?.mac.as_deref()?.parse().ok()
}

#[cfg(test)]
#[path = "mac_tests.rs"]
mod tests;
