//! Which VFs a network's uplinks select, and which of them can be used. Pure: reads an inventory, touches nothing.

use hybridnic_api::v1alpha1::Uplink;
use hybridnic_net::{
    PciAddress,
    sysfs::{Inventory, LinkLayer, MasterKind, Pf, Vf, VfNetdev},
};
use wildmatch::WildMatch;

/// How many names a message has.
const NAMED: usize = 3;

/// Whether an uplink means this PF: all of its fields that are set fit.
pub fn selects_pf(uplink: &Uplink, pf: &Pf) -> bool {
    let by_name = |pattern: &String| {
        pf.name
            .as_deref()
            .is_some_and(|n| WildMatch::new(pattern).matches(n))
    };
    let address = pf.address.to_string();
    let id = pf
        .id
        .map(|id| (format!("{:04x}", id.vendor), format!("{:04x}", id.device)));
    (uplink.pf_names.is_empty() || uplink.pf_names.iter().any(by_name))
        && (uplink.pci_addresses.is_empty() || uplink.pci_addresses.contains(&address))
        && uplink
            .vendor
            .as_ref()
            .is_none_or(|v| id.as_ref().is_some_and(|id| id.0 == *v))
        && uplink
            .device
            .as_ref()
            .is_none_or(|d| id.as_ref().is_some_and(|id| id.1 == *d))
        && (uplink.drivers.is_empty() || pf.driver.as_ref().is_some_and(|d| uplink.drivers.contains(d)))
}

/// Whether an uplink's `vfs` mean the VF of this index.
pub fn selects_index(uplink: &Uplink, index: u16) -> bool {
    let within = |range: &String| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&index),
            _ => false,
        }
    };
    uplink.vfs.is_empty() || uplink.vfs.iter().any(within)
}

/// Whether any of a pool's uplinks selects this VF.
pub fn selects_vf(uplinks: &[Uplink], pf: &Pf, vf: &Vf) -> bool {
    uplinks
        .iter()
        .any(|u| selects_pf(u, pf) && selects_index(u, vf.index))
}

/// How many VFs to create on a PF that has none.
pub fn wanted_vfs(uplinks: &[Uplink], pf: &Pf) -> Option<u16> {
    let wanted = uplinks
        .iter()
        .filter(|u| selects_pf(u, pf))
        .filter_map(|u| u.num_vfs)
        .max()?;
    u16::try_from(wanted).ok()
}

/// Why a PF can carry no hybrid NIC at the moment; `None` when it can.
pub fn pf_problem(pf: &Pf) -> Option<String> {
    if let Some(hung) = &pf.hung {
        return Some(hung.clone());
    }
    match pf.link_layer {
        LinkLayer::Ethernet => {}
        LinkLayer::InfiniBand => return Some("it is an InfiniBand port, not Ethernet".into()),
        LinkLayer::Other(number) => {
            return Some(format!(
                "it is no Ethernet port: its interface is of type {number}"
            ));
        }
    }
    if !pf.representors.is_empty() {
        return Some(format!(
            "its eswitch is in switchdev mode, where what a VF sends comes out of a representor ({}) and not on the wire; \
             legacy mode is needed (devlink dev eswitch set pci/{} mode legacy)",
            listed(&pf.representors),
            pf.address
        ));
    }
    if pf.name.is_none() {
        return Some(
            "it has no network interface here: no driver is bound, or it is in another namespace".into(),
        );
    }
    if let Some(master) = &pf.master {
        return Some(match &master.kind {
            MasterKind::Bond(mode) => {
                format!(
                    "it is in the bond {} ({mode}): a VF is tied to its own PF, a bond's macvtap is not",
                    master.name
                )
            }
            MasterKind::Bridge => format!(
                "it is a port of the bridge {}: no macvtap can be on it",
                master.name
            ),
            MasterKind::Other => format!("it belongs to {}: no macvtap can be on it", master.name),
        });
    }
    None
}

/// Whether a PF has a link. An interface that is down has none; reserving a VF brings it up.
pub fn has_link(pf: &Pf) -> bool {
    pf.carrier == Some(true)
}

/// Whether a PF is there and up, and has no link.
pub fn is_dark(inventory: &Inventory, pf: PciAddress) -> bool {
    inventory
        .pfs
        .iter()
        .any(|other| other.address == pf && other.carrier == Some(false))
}

/// Why a VF that no NIC holds cannot be used; `None` if it can.
pub fn vf_problem(pf: &Pf, vf: &Vf) -> Option<String> {
    if let Some(hung) = &vf.hung {
        return Some(hung.clone());
    }
    if let Some(problem) = pf_problem(pf) {
        return Some(format!("its PF cannot be used: {problem}"));
    }
    if pf.carrier == Some(false) {
        return Some("its PF has no link: look at cable and switch".into());
    }
    if vf.iommu_group.is_none() {
        return Some(
            "it has no IOMMU group: switch the IOMMU on in firmware and kernel (intel_iommu=on)".into(),
        );
    }
    if !vf.group_peers.is_empty() {
        return Some(format!(
            "it shares its IOMMU group with {}, and a group goes to one VM as a whole: the slot or the card has no PCIe ACS; \
             another slot may",
            listed(&vf.group_peers)
        ));
    }
    if let Some(use_) = vf.netdev.as_ref().and_then(node_use) {
        return Some(format!("the node uses it: {use_}"));
    }
    let network_driver = vf.driver.as_deref().is_some_and(|d| !d.starts_with("vfio"));
    if network_driver && vf.netdev.is_none() {
        return Some(
            "its network interface is in another namespace: something else uses it; if it is meant to, leave the VF out of the \
             uplinks' vfs"
                .into(),
        );
    }
    None
}

/// What the node does with a VF's interface.
fn node_use(netdev: &VfNetdev) -> Option<String> {
    let name = &netdev.name;
    if !netdev.uppers.is_empty() {
        return Some(format!(
            "its interface {name} is below {}",
            listed(&netdev.uppers)
        ));
    }
    if !netdev.addresses.is_empty() {
        return Some(format!("its interface {name} has {}", listed(&netdev.addresses)));
    }
    netdev
        .routed
        .then(|| format!("a route leads out of its interface {name}"))
}

fn listed<T: ToString>(items: &[T]) -> String {
    let names: Vec<_> = items.iter().take(NAMED).map(ToString::to_string).collect();
    let more = items.len().saturating_sub(NAMED);
    if more == 0 {
        names.join(", ")
    } else {
        format!("{} and {more} more", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use hybridnic_net::{sysfs::Sysfs, testing};

    use super::*;

    fn inventory() -> Vec<Pf> {
        let dir = tempfile::tempdir().unwrap();
        let sysfs: Sysfs = testing::make_sysfs(dir.path(), 2, 4).unwrap();
        sysfs.discover().unwrap().pfs
    }

    #[test]
    fn every_field_that_is_set_must_fit() {
        let pfs = inventory();
        let name = pfs[0].name.clone().unwrap();
        let mut uplink = Uplink {
            pf_names: vec![name.clone()],
            ..Uplink::default()
        };
        assert!(selects_pf(&uplink, &pfs[0]) && !selects_pf(&uplink, &pfs[1]));
        uplink.pf_names = vec!["*".into()];
        assert!(selects_pf(&uplink, &pfs[0]) && selects_pf(&uplink, &pfs[1]));
        uplink.pci_addresses = vec![pfs[1].address.to_string()];
        assert!(!selects_pf(&uplink, &pfs[0]) && selects_pf(&uplink, &pfs[1]));
        uplink.drivers = vec!["nosuch".into()];
        assert!(!selects_pf(&uplink, &pfs[1]));
    }

    #[test]
    fn vf_ranges() {
        let uplink = Uplink {
            vfs: vec!["0-1".into(), "3".into()],
            ..Uplink::default()
        };
        let chosen: Vec<u16> = (0..6).filter(|i| selects_index(&uplink, *i)).collect();
        assert_eq!(chosen, [0, 1, 3]);
        assert!(selects_index(&Uplink::default(), 200));
    }

    #[test]
    fn a_vf_without_iommu_says_what_to_do() {
        let pfs = inventory();
        let mut vf = pfs[0].vfs[0].clone();
        vf.iommu_group = None;
        assert!(vf_problem(&pfs[0], &vf).unwrap().contains("intel_iommu=on"));
    }

    #[test]
    fn what_is_not_ethernet_or_not_legacy_cannot_serve() {
        let mut pf = inventory().remove(0);
        assert_eq!(pf_problem(&pf), None);
        pf.representors = ["eth0", "eth1", "eth2", "eth3"].map(str::to_owned).into();
        let problem = pf_problem(&pf).unwrap();
        for word in ["switchdev", "eth2 and 1 more", "pci/0000:01:00.0 mode legacy"] {
            assert!(problem.contains(word), "{problem}");
        }
        assert!(vf_problem(&pf, &pf.vfs[0]).unwrap().contains("switchdev"));
        pf.link_layer = LinkLayer::InfiniBand;
        assert!(pf_problem(&pf).unwrap().contains("InfiniBand"));
        pf.link_layer = LinkLayer::Other(24);
        assert!(pf_problem(&pf).unwrap().contains("24"));
    }

    #[test]
    fn a_vf_that_the_node_uses_is_the_nodes() {
        let pf = inventory().remove(0);
        let problem = |change: &dyn Fn(&mut VfNetdev)| {
            let mut vf = pf.vfs[1].clone();
            change(vf.netdev.as_mut().unwrap());
            vf_problem(&pf, &vf).unwrap_or_default()
        };
        assert_eq!(problem(&|_| {}), "");
        let node = "the node uses it: ";
        assert_eq!(
            problem(&|n| n.uppers.push("br0".into())),
            format!("{node}its interface ens0v1 is below br0")
        );
        assert_eq!(
            problem(&|n| n.addresses.push("10.0.0.7".parse().unwrap())),
            format!("{node}its interface ens0v1 has 10.0.0.7")
        );
        assert_eq!(
            problem(&|n| n.routed = true),
            format!("{node}a route leads out of its interface ens0v1")
        );
    }

    #[test]
    fn a_vf_that_shares_its_group_cannot_be_used() {
        let pf = inventory().remove(0);
        let mut vf = pf.vfs[0].clone();
        vf.group_peers = vec![pf.vfs[1].address, pf.vfs[2].address];
        let problem = vf_problem(&pf, &vf).unwrap();
        assert!(
            problem.contains("0000:01:10.1, 0000:01:10.2") && problem.contains("ACS"),
            "{problem}"
        );
    }
}
