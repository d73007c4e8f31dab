//! The MACs of the NICs that this agent knows, and a VF's settings without these. Pure except for a lock.

use std::{collections::BTreeMap, sync::Mutex};

use hybridnic_net::{MacAddr, netlink::VfConfig};

/// The MACs of all NICs of the node, by the uids of their attachments.
#[derive(Debug, Default)]
pub struct Macs(Mutex<BTreeMap<String, MacAddr>>);

impl Macs {
    fn with<T>(&self, use_it: impl FnOnce(&mut BTreeMap<String, MacAddr>) -> T) -> T {
        // A panic while holding the lock leaves plain data that is still right.
        use_it(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Notes a NIC's.
    pub fn insert(&self, uid: &str, mac: MacAddr) {
        self.with(|macs| macs.insert(uid.to_owned(), mac));
    }

    /// Forgets a NIC that has left.
    pub fn remove(&self, uid: &str) {
        self.with(|macs| macs.remove(uid));
    }

    /// Whether a NIC of the node has it.
    pub fn has(&self, mac: MacAddr) -> bool {
        self.with(|macs| macs.values().any(|m| *m == mac))
    }
}

/// A VF's state before hybridnic had it, from how it is found, or from what was written down. A NIC's MAC, or the VF's own parking MAC, is
/// ours: something failed to remove it, and the VLAN came with it. Neither is restored; the VF goes back without a MAC.
pub fn original(found: &VfConfig, parking: MacAddr, macs: &Macs) -> VfConfig {
    match found.mac {
        Some(mac) if mac == parking || macs.has(mac) => VfConfig {
            mac: Some(MacAddr::ZERO),
            vlan: found.vlan.map(|_| 0),
            qos: found.qos.map(|_| 0),
            vlan_proto: None,
            ..found.clone()
        },
        _ => found.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nics_mac_is_nobodys_original_one() {
        let macs = Macs::default();
        let mac = |last| MacAddr::new([2, 0, 0, 0, 0, last]);
        macs.insert("a", mac(1));
        macs.insert("b", mac(2));
        let found = |mac| VfConfig {
            index: 3,
            mac: Some(mac),
            vlan: Some(7),
            qos: Some(2),
            trust: Some(true),
            ..VfConfig::default()
        };
        let cleared = VfConfig {
            vlan: Some(0),
            qos: Some(0),
            ..found(MacAddr::ZERO)
        };
        let parking = mac(9);
        for ours in [mac(1), mac(2), parking] {
            assert_eq!(original(&found(ours), parking, &macs), cleared);
        }
        let theirs = found(mac(3));
        assert_eq!(original(&theirs, parking, &macs), theirs);
        macs.remove("b");
        assert_eq!(original(&found(mac(2)), parking, &macs), found(mac(2)));
    }
}
