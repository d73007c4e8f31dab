//! VMs with interfaces of ours: each has its NIC, and KubeVirt can start it. The check of NICs says how a NIC is.

use hybridnic_api::foreign::{interfaces, kubevirt::VirtualMachineInstance};
use jiff::SignedDuration;
use kube::ResourceExt as _;

use super::{name, nics, served, vmis};
use crate::doctor::{finding::Finding, observed::Observed};

/// A VM that has just been made has no NIC yet.
const YOUNG: SignedDuration = SignedDuration::from_mins(1);

/// Each VM with an interface on a network of ours has what the interface needs.
pub fn vms(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "kubevirt-vms";
    if let Err(why) = &observed.kubevirt.vmis {
        return vec![Finding::unseen(CHECK, why)];
    }
    // Without the NICs nothing is known to be missing; their own check says that.
    if served(observed).is_none() || observed.nics.is_err() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let mut well = 0;
    for vmi in vmis(observed) {
        let ours = interfaces::of(&vmi.spec);
        let before = findings.len();
        findings.extend(misfits(observed, vmi).map(|why| {
            let fix = "change spec.template.spec of the VirtualMachine, and restart the VM";
            Finding::fail(CHECK, format!("{}: {why}", name(vmi)), fix)
        }));
        if let Some(said) = interfaces::trouble(vmi).filter(|_| !ours.is_empty()) {
            let message = format!("{}: KubeVirt cannot start it: {said}", name(vmi));
            findings.push(Finding::warn(
                CHECK,
                message,
                "do what KubeVirt's message asks for",
            ));
        }
        let missing: Vec<_> = without_nic(observed, vmi).collect();
        if !is_young(observed, vmi) {
            findings.extend(missing.iter().map(|interface| {
                let message = format!(
                    "{}: the operator has made no NIC for its interface {interface}",
                    name(vmi)
                );
                let fix = format!(
                    "does the operator run and lead? kubectl -n {} describe vm {} has its events",
                    vmi.namespace().unwrap_or_default(),
                    vmi.name_any()
                );
                Finding::warn(CHECK, message, fix)
            }));
        }
        well += usize::from(!ours.is_empty() && missing.is_empty() && findings.len() == before);
    }
    if well > 0 {
        findings.insert(0, Finding::ok(CHECK, format!("{well} have their NICs")));
    }
    findings
}

fn is_young(observed: &Observed, vmi: &VirtualMachineInstance) -> bool {
    let made = vmi.creation_timestamp();
    made.is_some_and(|made| observed.now.duration_since(made.0) < YOUNG)
}

/// What is wrong with interfaces that are on a network of ours, and have another binding.
fn misfits<'a>(observed: &'a Observed, vmi: &'a VirtualMachineInstance) -> impl Iterator<Item = String> + 'a {
    let own = vmi.namespace().unwrap_or_default();
    let definitions = observed.kubevirt.definitions.iter().flatten().flatten();
    let others = interfaces::others(&vmi.spec).into_iter().filter(move |other| {
        let namespace = other.namespace.as_ref().unwrap_or(&own);
        definitions.clone().any(|nad| {
            nad.name_any() == other.network
                && nad.namespace().as_ref() == Some(namespace)
                && nad.is_ours(&other.network)
        })
    });
    others.map(|other| other.misfit())
}

/// The interfaces of ours without a NIC.
fn without_nic<'a>(
    observed: &'a Observed,
    vmi: &'a VirtualMachineInstance,
) -> impl Iterator<Item = String> + 'a {
    let wanted = interfaces::of(&vmi.spec).into_iter().filter(|wanted| {
        !nics(observed).any(|nic| {
            let vm = nic.spec.vm.kubevirt.as_ref();
            let is_its = vm.is_some_and(|vm| {
                vm.name == vmi.name_any() && vm.interface.as_ref().is_none_or(|name| *name == wanted.name)
            });
            is_its && nic.namespace() == vmi.namespace() && nic.spec.network == wanted.network
        })
    });
    wanted.map(|wanted| wanted.name)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;
    use crate::doctor::{
        finding::Level,
        testing::{levels, unanswered, with_kubevirt},
    };

    fn change(observed: &mut Observed, path: &str, to: Value) {
        let vmis = observed.kubevirt.vmis.as_mut().unwrap().as_mut().unwrap();
        let mut vmi = serde_json::to_value(&vmis[0]).unwrap();
        let (parent, key) = path.rsplit_once('/').unwrap();
        vmi.pointer_mut(parent).unwrap()[key] = to;
        vmis[0] = from_value(vmi).unwrap();
    }

    #[test]
    fn a_vm_has_its_nics_or_it_is_told() {
        let mut observed = with_kubevirt();
        assert_eq!(vms(&observed), [Finding::ok("kubevirt-vms", "1 have their NICs")]);
        // The NIC is of another interface.
        observed.nics.as_mut().unwrap()[1]
            .spec
            .vm
            .kubevirt
            .as_mut()
            .unwrap()
            .interface = Some("slow".into());
        let findings = vms(&observed);
        assert_eq!(levels(&findings), [Level::Warn]);
        assert_eq!(
            findings[0].message,
            "shop/db: the operator has made no NIC for its interface fast"
        );
        assert!(
            findings[0]
                .fix
                .as_ref()
                .unwrap()
                .contains("-n shop describe vm db")
        );
        // One that names no interface is of any.
        observed.nics.as_mut().unwrap()[1]
            .spec
            .vm
            .kubevirt
            .as_mut()
            .unwrap()
            .interface = None;
        assert_eq!(levels(&vms(&observed)), [Level::Ok]);
        observed.nics.as_mut().unwrap().clear();
        assert_eq!(levels(&vms(&observed)), [Level::Warn]);
        change(
            &mut observed,
            "/metadata/creationTimestamp",
            json!("2026-01-01T11:59:30Z"),
        );
        assert_eq!(vms(&observed), [], "it is young");
        change(&mut observed, "/metadata/creationTimestamp", Value::Null);
        change(&mut observed, "/status/phase", json!("Succeeded"));
        assert_eq!(vms(&observed), [], "it is over");
        observed.kubevirt.vmis = Err(unanswered());
        assert_eq!(levels(&vms(&observed)), [Level::Warn]);
    }

    #[test]
    fn what_kubevirt_says_is_passed_on() {
        let mut observed = with_kubevirt();
        let failed =
            json!([{"type": "Synchronized", "status": "False", "reason": "x", "message": "no binding"}]);
        change(&mut observed, "/status/conditions", failed);
        let findings = vms(&observed);
        assert_eq!(levels(&findings), [Level::Warn]);
        assert_eq!(
            findings[0].message,
            "shop/db: KubeVirt cannot start it: no binding"
        );
    }

    #[test]
    fn an_interface_of_sriov_on_a_network_of_ours_is_wrong_and_one_on_anothers_is_not() {
        let mut observed = with_kubevirt();
        change(
            &mut observed,
            "/spec/domain/devices/interfaces",
            json!([{"name": "fast", "sriov": {}}]),
        );
        let findings = vms(&observed);
        assert_eq!(levels(&findings), [Level::Fail]);
        assert!(
            findings[0]
                .message
                .starts_with("shop/db: the interface fast has `sriov: {}`"),
            "{findings:?}"
        );
        let definitions = observed.kubevirt.definitions.as_mut().unwrap().as_mut().unwrap();
        definitions[0].metadata.labels = None;
        assert_eq!(vms(&observed), []);
    }
}
