//! The MAC that a VF has while no NIC uses it.

use hybridnic_net::{MacAddr, PciAddress};

/// A MAC that no other VF has: locally administered, made from node and PCI address. The agent knows its parked VFs by it
/// after updates too, so it must stay as it is.
pub fn parking_mac(node: &str, vf: PciAddress) -> MacAddr {
    let hash = fnv1a(format!("{node}/{vf}").as_bytes());
    let mut octets = [0x06; 6];
    octets[1..].copy_from_slice(&(hash ^ hash >> 32).to_be_bytes()[3..]);
    MacAddr::new(octets)
}

/// FNV-1a of 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>): std's hashers may change with any release.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use hybridnic_net::testing::vf_address;

    use super::*;

    #[test]
    fn it_is_fnv_1a() {
        // The author's own test vectors.
        for (text, hash) in [
            ("", 0xcbf2_9ce4_8422_2325),
            ("a", 0xaf63_dc4c_8601_ec8c),
            ("foobar", 0x8594_4171_f739_67e8),
        ] {
            assert_eq!(fnv1a(text.as_bytes()), hash);
        }
    }

    #[test]
    fn it_stays_as_it_is() {
        let mac = |node, vf: &str| parking_mac(node, vf.parse().unwrap()).to_string();
        assert_eq!(mac("n1", "0000:01:10.0"), "06:b4:1c:8f:ff:4b");
        assert_eq!(mac("worker-2.example.com", "0000:81:1f.7"), "06:c7:fb:4f:69:7a");
    }

    #[test]
    fn no_two_vfs_of_some_nodes_share_one() {
        let macs: BTreeSet<_> = (0..200)
            .flat_map(|node| (0..4).map(move |pf| (node, pf)))
            .flat_map(|(node, pf)| (0..127).map(move |vf| (node, pf, vf)))
            .map(|(node, pf, vf)| parking_mac(&format!("node-{node}"), vf_address(pf, vf)))
            .collect();
        assert_eq!(macs.len(), 200 * 4 * 127);
    }
}
