//! Which VFs a network's uplinks select, and which of them can be used. Pure: reads an inventory, touches nothing.

use hybridnic_api::v1alpha1::Uplink;
use hybridnic_net::sysfs::{MasterKind, Pf, Vf};
use wildmatch::WildMatch;

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

/// Why a VF that nobody holds cannot be used; `None` when it can.
pub fn vf_problem(pf: &Pf, vf: &Vf) -> Option<String> {
    if let Some(problem) = pf_problem(pf) {
        return Some(format!("its PF cannot be used: {problem}"));
    }
    if pf.carrier == Some(false) {
        return Some("its PF has no link".into());
    }
    if vf.iommu_group.is_none() {
        return Some(
            "it has no IOMMU group: switch the IOMMU on in firmware and kernel (intel_iommu=on)".into(),
        );
    }
    let network_driver = vf.driver.as_deref().is_some_and(|d| !d.starts_with("vfio"));
    if network_driver && vf.netdev.is_none() {
        return Some("its network interface is in another namespace: something else uses it".into());
    }
    None
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
}
