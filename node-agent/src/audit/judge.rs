//! Judges from what is seen what is not as it should be. Pure.

use std::collections::{BTreeMap, BTreeSet};

use hybridnic_net::{
    MacAddr,
    netlink::{Link, LinkKind},
};

use super::{finding::Finding, look::Observed};
use crate::{
    journal::Contents,
    node::{concern::ALIAS, parking::parking_mac},
};

/// Judges what is seen of the node of this name. Pure.
pub fn judge(node: &str, observed: &Observed) -> BTreeSet<Finding> {
    let mut findings = BTreeSet::new();
    let recorded = |macvtap: &Link| {
        let name = Some(&macvtap.name);
        let Contents {
            records, unreadable, ..
        } = &observed.journal;
        records
            .iter()
            .any(|r| r.standby.as_ref().map(|s| &s.macvtap) == name)
            || unreadable.iter().any(|u| u.macvtap.as_ref() == name)
    };
    let is_ours = |link: &&Link| {
        let alias = link.alias.as_deref().is_some_and(|a| a.starts_with(ALIAS));
        matches!(link.kind, LinkKind::Macvtap { .. }) && (alias || recorded(link))
    };
    let macvtaps: Vec<&Link> = observed.links.iter().filter(is_ours).collect();
    for link in macvtaps.iter().filter(|link| !recorded(link)) {
        findings.insert(Finding::LeakedMacvtap {
            macvtap: link.name.clone(),
            alias: link.alias.clone().unwrap_or_default(),
        });
    }
    for vf in &observed.vfs {
        let Contents {
            records, unreadable, ..
        } = &observed.journal;
        let held = records
            .iter()
            .any(|r| r.vf.as_ref().is_some_and(|held| held.address == vf.address))
            || unreadable.iter().any(|u| u.vf == Some(vf.address));
        let parks = vf.mac == Some(parking_mac(node, vf.address));
        if parks && !held && !observed.parked.contains(&vf.address) {
            findings.insert(Finding::LeakedVf {
                vf: vf.address.to_string(),
                pf: vf.pf.clone(),
            });
        }
    }
    findings.extend(two_owners(observed, &macvtaps));
    findings
}

/// MACs of NICs that are live on more than one PF.
fn two_owners<'a>(observed: &'a Observed, macvtaps: &'a [&Link]) -> impl Iterator<Item = Finding> + 'a {
    let mut macs: BTreeSet<MacAddr> = observed
        .journal
        .records
        .iter()
        .filter_map(|r| r.spec.mac.parse().ok())
        .collect();
    macs.extend(macvtaps.iter().filter_map(|link| link.mac));
    macs.into_iter().filter_map(move |mac| {
        let mut places: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for link in macvtaps.iter().filter(|link| link.up && link.mac == Some(mac)) {
            if let Some(pf) = pf_of(&observed.links, link) {
                let place = format!("{pf}, by the macvtap {}", link.name);
                places.entry(pf).or_default().push(place);
            }
        }
        for vf in observed.vfs.iter().filter(|vf| vf.mac == Some(mac)) {
            let place = format!("{}, in the filter of the VF {}", vf.pf, vf.address);
            places.entry(&vf.pf).or_default().push(place);
        }
        (places.len() > 1).then(|| Finding::MacTwoOwners {
            mac: mac.to_string(),
            places: places.into_values().flatten().collect(),
        })
    })
}

/// The PF that a macvtap is on, by way of a VLAN device where there is one.
fn pf_of<'a>(links: &'a [Link], macvtap: &Link) -> Option<&'a str> {
    let below = |link: &Link| links.iter().find(|l| Some(l.index) == link.lower);
    let lower = below(macvtap)?;
    match lower.kind {
        LinkKind::Vlan { .. } => below(lower).map(|pf| pf.name.as_str()),
        _ => Some(&lower.name),
    }
}

#[cfg(test)]
mod tests {
    use hybridnic_api::v1alpha1::StandbyKind;
    use hybridnic_net::{PciAddress, netlink::Counters};

    use super::{super::look::VfSeen, *};
    use crate::journal::{
        Record, StandbyRecord,
        tests::{record, vf_record},
    };

    const MAC: &str = "02:00:00:00:00:01";

    fn link(index: u32, name: &str, kind: LinkKind, lower: Option<u32>) -> Link {
        Link {
            index,
            name: name.into(),
            mac: None,
            up: true,
            carrier: Some(true),
            mtu: 1500,
            kind,
            master: None,
            lower,
            alias: None,
            parent: None,
            counters: Counters::default(),
        }
    }

    fn macvtap(name: &str, lower: u32) -> Link {
        Link {
            mac: Some(MAC.parse().unwrap()),
            alias: Some("hybridnic ns/nic uid".into()),
            ..link(9, name, LinkKind::Macvtap { bridge: true }, Some(lower))
        }
    }

    fn vf(address: &str, pf: &str, mac: MacAddr) -> VfSeen {
        VfSeen {
            address: address.parse().unwrap(),
            pf: pf.into(),
            mac: Some(mac),
        }
    }

    fn pfs() -> Vec<Link> {
        vec![
            link(1, "ens1", LinkKind::Device, None),
            link(2, "ens2", LinkKind::Device, None),
        ]
    }

    fn with_standby(macvtap: &str) -> Record {
        Record {
            standby: Some(StandbyRecord {
                macvtap: macvtap.into(),
                pf: "0000:01:00.0".parse().unwrap(),
                pf_name: "ens1".into(),
                vlan: None,
                seized: None,
                pod: None,
            }),
            ..record("a")
        }
    }

    fn journal(record: Record) -> Contents {
        Contents {
            records: vec![record],
            ..Contents::default()
        }
    }

    fn kinds(observed: &Observed) -> Vec<&'static str> {
        judge("n1", observed).iter().map(Finding::kind).collect()
    }

    #[test]
    fn what_the_journal_has_is_no_finding() {
        let mut observed = Observed {
            links: pfs(),
            journal: journal(with_standby("hn1")),
            ..Observed::default()
        };
        observed.links.push(macvtap("hn1", 1));
        assert_eq!(kinds(&observed), [] as [&str; 0]);
        observed.journal.records.clear();
        assert_eq!(kinds(&observed), ["leaked_macvtap"]);
        let text = judge("n1", &observed).first().unwrap().to_string();
        assert!(text.contains("hn1") && text.contains("ns/nic"), "{text}");
        // Somebody else's macvtap is somebody else's.
        observed.links.last_mut().unwrap().alias = None;
        assert_eq!(kinds(&observed), [] as [&str; 0]);
    }

    #[test]
    fn a_parked_vf_that_nobody_holds_is_leaked() {
        let address: PciAddress = "0000:01:10.0".parse().unwrap();
        let mut observed = Observed {
            vfs: vec![
                vf("0000:01:10.0", "ens1", parking_mac("n1", address)),
                vf("0000:01:10.2", "ens1", MacAddr::ZERO),
            ],
            ..Observed::default()
        };
        assert_eq!(kinds(&observed), ["leaked_vf"]);
        observed.parked.insert(address);
        assert_eq!(kinds(&observed), [] as [&str; 0], "its driver takes no other MAC");
    }

    #[test]
    fn a_mac_may_be_live_twice_on_one_pf_and_never_on_two() {
        let mac = MAC.parse().unwrap();
        let mut observed = Observed {
            links: pfs(),
            vfs: vec![vf("0000:01:10.0", "ens1", mac)],
            journal: journal(with_standby("hn1")),
            ..Observed::default()
        };
        observed.links.push(macvtap("hn1", 1));
        assert_eq!(kinds(&observed), [] as [&str; 0], "the moment of a switch");
        observed.vfs[0].pf = "ens2".into();
        assert_eq!(kinds(&observed), ["mac_two_owners"]);
        // Down, it is in no filter.
        observed.links[2].up = false;
        assert_eq!(kinds(&observed), [] as [&str; 0]);
        // Two VFs, of a NIC that the journal has.
        observed.vfs.push(vf("0000:01:10.1", "ens1", mac));
        assert_eq!(kinds(&observed), ["mac_two_owners"]);
    }

    /// Nothing but its VF has its MAC, and while that is out, the VF is parked and held.
    #[test]
    fn a_nic_without_a_standby_is_live_by_its_vf() {
        let (mac, held) = (MAC.parse().unwrap(), vf_record("0000:01:10.0"));
        let mut alone = record("a");
        (alone.spec.standby, alone.vf) = (StandbyKind::None, Some(held.clone()));
        let mut observed = Observed {
            links: pfs(),
            vfs: vec![vf("0000:01:10.0", "ens1", mac)],
            journal: journal(alone),
            ..Observed::default()
        };
        assert_eq!(kinds(&observed), [] as [&str; 0]);
        observed.vfs[0].mac = Some(parking_mac("n1", held.address));
        assert_eq!(kinds(&observed), [] as [&str; 0], "it has stepped aside");
        observed.vfs[0].mac = Some(mac);
        observed.vfs.push(vf("0000:02:10.0", "ens2", mac));
        assert_eq!(kinds(&observed), ["mac_two_owners"], "another VF has its MAC");
        observed.vfs.pop();
        // A macvtap of ours that an earlier NIC of this MAC has left.
        observed.links.push(macvtap("hn1", 2));
        assert_eq!(kinds(&observed), ["leaked_macvtap", "mac_two_owners"]);
        observed.links.pop();
        observed.vfs[0].mac = Some(parking_mac("n1", held.address));
        observed.journal.records.clear();
        assert_eq!(kinds(&observed), ["leaked_vf"], "its record is gone");
    }

    #[test]
    fn a_macvtap_on_a_vlan_device_is_on_that_devices_pf() {
        let vlan = LinkKind::Vlan {
            id: 7,
            protocol: hybridnic_net::VlanProtocol::Dot1q,
        };
        let mut observed = Observed {
            links: pfs(),
            vfs: vec![vf("0000:01:10.0", "ens1", MAC.parse().unwrap())],
            journal: journal(with_standby("hn1")),
            ..Observed::default()
        };
        observed.links.push(link(3, "hnv1.7", vlan, Some(1)));
        observed.links.push(macvtap("hn1", 3));
        assert_eq!(kinds(&observed), [] as [&str; 0]);
        observed.links[2].lower = Some(2);
        assert_eq!(kinds(&observed), ["mac_two_owners"]);
    }
}
