//! Which NICs a name means. Pure.

use hybridnic_api::v1alpha1::{StandbyKind, VmHybridNic};
use kube::ResourceExt as _;

/// The NICs of the name: `nic/NAME` is a NIC, `vm/NAME` all NICs of a VM, and a name alone is either, where it is not both.
pub fn choose(name: &str, nics: &[VmHybridNic]) -> Result<Vec<VmHybridNic>, String> {
    let nic = |name: &str| {
        let found = nics.iter().filter(|nic| nic.name_any() == name);
        found.cloned().collect::<Vec<_>>()
    };
    let of_vm = |name: &str| {
        let found = nics.iter().filter(|nic| nic.spec.vm.name() == Some(name));
        let mut found: Vec<_> = found.cloned().collect();
        found.sort_by_key(kube::ResourceExt::name_any);
        found
    };
    let found = match name.split_once('/') {
        Some(("nic" | "vhn", nic_name)) => nic(nic_name),
        Some(("vm", vm)) => of_vm(vm),
        Some((kind, _)) => {
            return Err(format!(
                "{kind:?} is neither nic nor vm, as in nic/eth0 or vm/web"
            ));
        }
        None => match (nic(name), of_vm(name)) {
            (nic, vm) if vm.is_empty() || nic == vm => nic,
            (nic, vm) if nic.is_empty() => vm,
            _ => {
                return Err(format!(
                    "{name} is the name of a NIC and of another NIC's VM: say nic/{name} or vm/{name}"
                ));
            }
        },
    };
    // A NIC that is being deleted no longer follows orders.
    let stays = |nic: &VmHybridNic| nic.metadata.deletion_timestamp.is_none();
    let stay: Vec<_> = found.iter().filter(|nic| stays(nic)).cloned().collect();
    match (found.is_empty(), stay.is_empty()) {
        (true, _) => Err(format!(
            "no VmHybridNic is named {name}, and none is of a VM of that name"
        )),
        (false, true) => Err(format!("what {name} names is being deleted")),
        (false, false) => Ok(stay),
    }
}

/// Why NICs are not told to leave their VFs: some have nothing else.
pub fn would_cut(nics: &[VmHybridNic]) -> Option<String> {
    let alone = nics
        .iter()
        .filter(|nic| nic.spec.standby == StandbyKind::None)
        .map(kube::ResourceExt::name_any);
    let alone: Vec<_> = alone.collect();
    (!alone.is_empty()).then(|| {
        format!(
            "no standby (standby: None): {}; without its VF the VM has no network through such a NIC. If you want that, say --cut",
            alone.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn nic(name: &str, runtime: &str, vm: &str) -> VmHybridNic {
        from_value(json!({
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"network": "fast", "vm": {runtime: {"name": vm}}},
        }))
        .unwrap()
    }

    fn names(name: &str, nics: &[VmHybridNic]) -> Result<Vec<String>, String> {
        choose(name, nics).map(|found| found.iter().map(kube::ResourceExt::name_any).collect())
    }

    #[test]
    fn a_name_is_a_nics_or_a_vms() {
        let nics = [
            nic("eth1", "qemu", "web"),
            nic("eth0", "qemu", "web"),
            nic("db", "kubevirt", "db"),
            nic("web", "kubevirt", "shop"),
        ];
        let of = |name| names(name, &nics).unwrap();
        assert_eq!(of("eth0"), ["eth0"]);
        assert_eq!(of("vm/web"), ["eth0", "eth1"]);
        assert_eq!(of("nic/web"), ["web"]);
        assert_eq!(of("shop"), ["web"]);
        assert_eq!(of("db"), ["db"], "both names mean the same NIC");
        let refusal = |name| names(name, &nics).unwrap_err();
        assert!(
            refusal("web").contains("say nic/web or vm/web"),
            "{}",
            refusal("web")
        );
        assert!(refusal("eth9").contains("no VmHybridNic is named eth9"));
        assert!(refusal("nic/eth9").contains("no VmHybridNic"));
        assert!(refusal("pod/eth0").contains("neither nic nor vm"));
    }

    #[test]
    fn what_is_being_deleted_is_told_nothing() {
        let mut gone = nic("eth0", "qemu", "web");
        gone.metadata.deletion_timestamp = from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert!(
            choose("eth0", &[gone.clone()])
                .unwrap_err()
                .contains("is being deleted")
        );
        assert_eq!(
            names("web", &[gone, nic("eth1", "qemu", "web")]).unwrap(),
            ["eth1"]
        );
    }

    #[test]
    fn a_nic_that_has_nothing_but_its_vf_is_named() {
        let mut alone = nic("eth1", "qemu", "web");
        alone.spec.standby = StandbyKind::None;
        let nics = [nic("eth0", "qemu", "web"), alone];
        assert_eq!(would_cut(&nics[..1]), None);
        let refusal = would_cut(&nics).unwrap();
        assert!(
            refusal.contains(": eth1;") && refusal.contains("--cut"),
            "{refusal}"
        );
    }
}
