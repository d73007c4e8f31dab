//! Which NICs a VM of KubeVirt should have. Pure.
//!
//! A NIC is made for each interface with our binding as soon as the VM exists, running or not. The VM owns it: it is deleted with the
//! VM. A NIC that a user has written for the interface is as good, and is left alone.

use std::collections::BTreeSet;
use std::sync::Arc;

use hybridnic_api::conditions::reasons;
use hybridnic_api::foreign::kubevirt::{VirtualMachine, VirtualMachineInstance};
use hybridnic_api::names::{MADE_LABEL, NIC_NAME_MAX, OPERATOR_MANAGER};
use hybridnic_api::v1alpha1::{KubevirtVm, Vm, VmHybridNic, VmHybridNicSpec};
use hybridnic_decisions::mac;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};

use super::interfaces::{self, Wanted};
use crate::events::Note;

/// A VM, as it should be and as it runs.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// As it should be; none if a user made its instance directly.
    pub vm: Option<Arc<VirtualMachine>>,
    /// As it runs; none where it does not.
    pub vmi: Option<Arc<VirtualMachineInstance>>,
}

/// What is to be done about a VM's NICs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// NICs to make.
    pub make: Vec<VmHybridNic>,
    /// NICs to delete: their interfaces are gone.
    pub delete: Vec<Arc<VmHybridNic>>,
    /// What to report about the VM.
    pub notes: Vec<Note>,
}

impl Machine {
    /// Namespace and name.
    fn name(&self) -> Option<(String, String)> {
        let vm = self.vm.as_deref().map(|vm| (vm.namespace(), vm.name_any()));
        let (namespace, name) = vm.or_else(|| {
            let vmi = self.vmi.as_deref()?;
            Some((vmi.namespace(), vmi.name_any()))
        })?;
        Some((namespace.unwrap_or_default(), name))
    }

    /// The owner of its NICs.
    fn owner(&self) -> Option<OwnerReference> {
        let owner = match (&self.vm, &self.vmi) {
            (Some(vm), _) => vm.owner_ref(&()),
            (None, Some(vmi)) => vmi.owner_ref(&()),
            (None, None) => None,
        };
        owner.map(|owner| OwnerReference {
            block_owner_deletion: None,
            controller: Some(true),
            ..owner
        })
    }

    /// Its interfaces with our binding: those that it has, and those that it will have when it is started again.
    pub fn interfaces(&self) -> Vec<Wanted> {
        let running = self.vmi.iter().flat_map(|vmi| interfaces::of(&vmi.spec));
        let mut all: Vec<_> = running.collect();
        let next = self
            .vm
            .iter()
            .flat_map(|vm| interfaces::of(&vm.spec.template.spec));
        for wanted in next {
            if !all.iter().any(|have| have.name == wanted.name) {
                all.push(wanted);
            }
        }
        all
    }
}

/// What is to be done, where `nics` are those that are of this VM, and `named` gives a NIC of the namespace by its name.
pub fn plan(
    machine: &Machine,
    nics: &[Arc<VmHybridNic>],
    named: impl Fn(&str) -> Option<Arc<VmHybridNic>>,
) -> Plan {
    let mut plan = Plan::default();
    let (Some((namespace, vm)), Some(owner)) = (machine.name(), machine.owner()) else {
        return plan;
    };
    let wanted = machine.interfaces();
    if !fits(&vm) {
        if !wanted.is_empty() {
            let message = format!(
                "no NIC is made for the VM {vm}: its name must have at most 63 characters, lower-case letters, digits, dots and dashes"
            );
            plan.notes.push(Note::warning(reasons::INTERFACE_UNFIT, message));
        }
        return plan;
    }
    let mut used = BTreeSet::new();
    for interface in &wanted {
        if let Some(nic) = nics.iter().find(|nic| is_for(nic, interface)) {
            used.insert(nic.name_any());
            continue;
        }
        let name = nic_name(&vm, &interface.name);
        if let Some(taken) = named(&name) {
            if taken.metadata.deletion_timestamp.is_some() {
                // Once it is gone, this is asked again.
                continue;
            }
            let message = format!(
                "no NIC is made for the interface {}: there is a VmHybridNic {name} already, of another VM or network",
                interface.name
            );
            plan.notes.push(Note::warning(reasons::INTERFACE_UNFIT, message));
            continue;
        }
        plan.make
            .push(made(&namespace, &name, &vm, interface, owner.clone()));
    }
    let gone = nics.iter().filter(|nic| {
        is_made(nic) && !used.contains(&nic.name_any()) && nic.metadata.deletion_timestamp.is_none()
    });
    plan.delete.extend(gone.cloned());
    plan
}

/// What to report about interfaces that are on a network of ours and do not have our binding. `is_ours` says whether
/// the `NetworkAttachmentDefinition` with a namespace and name is the operator's.
pub fn misfits(machine: &Machine, is_ours: impl Fn(&str, &str) -> bool) -> Vec<Note> {
    let Some((own, _)) = machine.name() else {
        return Vec::new();
    };
    let running = machine.vmi.iter().map(|vmi| &vmi.spec);
    let specs = running.chain(machine.vm.iter().map(|vm| &vm.spec.template.spec));
    let others = specs
        .flat_map(interfaces::others)
        .filter(|other| is_ours(other.namespace.as_deref().unwrap_or(&own), &other.network));
    let messages: BTreeSet<_> = others.map(|other| other.misfit()).collect();
    messages
        .into_iter()
        .map(|message| Note::warning(reasons::INTERFACE_UNFIT, message))
        .collect()
}

/// Whether a NIC is that of an interface.
fn is_for(nic: &VmHybridNic, interface: &Wanted) -> bool {
    let named = nic.spec.vm.kubevirt.as_ref().and_then(|vm| vm.interface.as_ref());
    nic.spec.network == interface.network && named.is_none_or(|name| *name == interface.name)
}

/// Whether the operator made it.
fn is_made(nic: &VmHybridNic) -> bool {
    let owners = nic.owner_references().iter();
    let mut by_vm = owners.filter(|owner| owner.controller == Some(true));
    by_vm.any(|owner| owner.kind.starts_with("VirtualMachine"))
}

fn fits(vm: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    vm.len() <= 63 && vm.chars().all(fits)
}

fn made(namespace: &str, name: &str, vm: &str, interface: &Wanted, owner: OwnerReference) -> VmHybridNic {
    let spec = VmHybridNicSpec {
        network: interface.network.clone(),
        vm: Vm {
            qemu: None,
            kubevirt: Some(KubevirtVm {
                name: vm.to_owned(),
                interface: Some(interface.name.clone()),
            }),
        },
        mac: interface
            .mac
            .as_deref()
            .map(|mac| mac.to_ascii_lowercase().replace('-', ":")),
        standby: hybridnic_api::v1alpha1::StandbyKind::Macvtap,
        no_free_vf: hybridnic_api::v1alpha1::NoFreeVf::Standby,
        path: hybridnic_api::v1alpha1::WantedPath::Auto,
        keep_vf: false,
        pairing: hybridnic_api::v1alpha1::Pairing::NetFailover,
        port_instance_id: None,
    };
    let mut nic = VmHybridNic::new(name, spec);
    nic.metadata.namespace = Some(namespace.to_owned());
    nic.metadata.labels = Some([(MADE_LABEL.to_owned(), OPERATOR_MANAGER.to_owned())].into());
    nic.metadata.owner_references = Some(vec![owner]);
    nic
}

/// The name of an interface's NIC: `VM-INTERFACE` where that is one, else as much of it as fits and a hash.
pub fn nic_name(vm: &str, interface: &str) -> String {
    let whole = format!("{vm}-{interface}");
    let fit = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if whole.len() <= NIC_NAME_MAX && whole.chars().all(fit) && !whole.ends_with('-') {
        return whole;
    }
    let hash = format!("{:08x}", mac::hash(&[vm, interface]) & 0xffff_ffff);
    let plain: String = whole
        .to_ascii_lowercase()
        .chars()
        .map(|c| if fit(c) { c } else { '-' })
        .take(NIC_NAME_MAX - hash.len() - 1)
        .collect();
    format!("{}-{hash}", plain.trim_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(interfaces: &[(&str, &str)]) -> Value {
        let all = interfaces.iter();
        let devices: Vec<_> = all
            .clone()
            .map(|(name, _)| json!({"name": name, "binding": {"name": "hybridnic"}}))
            .collect();
        let networks: Vec<_> = all
            .map(|(name, network)| json!({"name": name, "multus": {"networkName": network}}))
            .collect();
        json!({"domain": {"devices": {"interfaces": devices}}, "networks": networks})
    }

    fn machine(vm: Option<&[(&str, &str)]>, vmi: Option<&[(&str, &str)]>) -> Machine {
        let meta = |kind: &str| json!({"name": "web", "namespace": "ns", "uid": format!("{kind}-uid")});
        let vm = vm.map(|interfaces| {
            let vm = json!({"metadata": meta("vm"), "spec": {"template": {"spec": spec(interfaces)}}});
            Arc::new(serde_json::from_value(vm).unwrap())
        });
        let vmi = vmi.map(|interfaces| {
            let vmi = json!({"metadata": meta("vmi"), "spec": spec(interfaces)});
            Arc::new(serde_json::from_value(vmi).unwrap())
        });
        Machine { vm, vmi }
    }

    fn nobody(_: &str) -> Option<Arc<VmHybridNic>> {
        None
    }

    const FAST: &[(&str, &str)] = &[("fast", "net")];
    const BOTH: &[(&str, &str)] = &[("fast", "net"), ("other", "sys/slow")];

    fn nics(of: &Plan) -> Vec<Arc<VmHybridNic>> {
        of.make.iter().cloned().map(Arc::new).collect()
    }

    #[test]
    fn each_interface_has_a_nic_that_is_the_vms() {
        let made = plan(&machine(Some(BOTH), None), &[], nobody);
        let names: Vec<_> = made.make.iter().map(ResourceExt::name_any).collect();
        assert_eq!(names, ["web-fast", "web-other"]);
        assert_eq!(made.make[1].spec.network, "slow");
        let owner = &made.make[0].owner_references()[0];
        assert_eq!(
            (owner.kind.as_str(), owner.uid.as_str()),
            ("VirtualMachine", "vm-uid")
        );
        // Once they are there, nothing is to be done, also when it runs.
        let there = nics(&made);
        assert_eq!(
            plan(&machine(Some(BOTH), Some(BOTH)), &there, nobody),
            Plan::default()
        );
        // One that was made directly has them itself.
        let alone = plan(&machine(None, Some(FAST)), &[], nobody);
        assert_eq!(alone.make[0].owner_references()[0].kind, "VirtualMachineInstance");
    }

    #[test]
    fn a_nic_goes_with_its_interface_and_not_before_the_vm_runs_without_it() {
        let there = nics(&plan(&machine(Some(BOTH), None), &[], nobody));
        let running = plan(&machine(Some(FAST), Some(BOTH)), &there, nobody);
        assert_eq!(running, Plan::default());
        let stopped = plan(&machine(Some(FAST), None), &there, nobody);
        assert_eq!(stopped.delete.len(), 1);
        assert_eq!(stopped.delete[0].name_any(), "web-other");
        assert_eq!(stopped.make, []);
        assert_eq!(
            plan(&machine(None, None), &there, nobody),
            Plan::default(),
            "not known"
        );
    }

    #[test]
    fn a_nic_that_a_user_wrote_is_as_good_and_is_left_alone() {
        let mut own = plan(&machine(Some(FAST), None), &[], nobody).make.remove(0);
        own.metadata.owner_references = None;
        own.metadata.name = Some("mine".to_owned());
        own.spec.vm.kubevirt.as_mut().unwrap().interface = None;
        let own = [Arc::new(own)];
        assert_eq!(plan(&machine(Some(FAST), None), &own, nobody), Plan::default());
        let other = plan(&machine(Some(&[("fast", "slow")]), None), &own, nobody);
        assert_eq!((other.make.len(), other.delete.len()), (1, 0));
    }

    #[test]
    fn an_interface_of_sriov_on_a_network_of_ours_is_told() {
        let with = |interface: Value| {
            let spec = json!({
                "domain": {"devices": {"interfaces": [interface]}},
                "networks": [{"name": "fast", "multus": {"networkName": "sys/net"}}],
            });
            let meta = json!({"name": "web", "namespace": "ns"});
            let vm = json!({"metadata": meta, "spec": {"template": {"spec": spec}}});
            let vmi = json!({"metadata": meta, "spec": spec});
            Machine {
                vm: serde_json::from_value(vm).ok().map(Arc::new),
                vmi: serde_json::from_value(vmi).ok().map(Arc::new),
            }
        };
        let ours = |namespace: &str, name: &str| (namespace, name) == ("sys", "net");
        let sriov = with(json!({"name": "fast", "sriov": {}}));
        let notes = misfits(&sriov, ours);
        assert_eq!(
            notes.len(),
            1,
            "as it runs and as it should be are one: {notes:?}"
        );
        assert_eq!(notes[0].reason, reasons::INTERFACE_UNFIT);
        assert!(
            notes[0].message.contains("binding: {name: hybridnic}"),
            "{notes:?}"
        );
        assert_eq!(misfits(&sriov, |_, _| false), [], "a network of another's");
        let bound = with(json!({"name": "fast", "binding": {"name": "hybridnic"}}));
        assert_eq!(misfits(&bound, ours), []);
    }

    #[test]
    fn a_name_that_is_taken_is_told() {
        let taken = plan(&machine(Some(FAST), None), &[], |_| {
            Some(Arc::new(crate::testing::nic("web-fast", "vm", "net", 1)))
        });
        assert_eq!(taken.make, []);
        assert!(taken.notes[0].message.contains("web-fast"), "{:?}", taken.notes);
    }

    #[test]
    fn a_vm_whose_name_no_pods_label_can_have_is_told() {
        let name = "v".repeat(64);
        let vm = json!({"metadata": {"name": name, "namespace": "ns", "uid": "u"}, "spec": {"template": {"spec": spec(FAST)}}});
        let long = Machine {
            vm: serde_json::from_value(vm).ok().map(Arc::new),
            vmi: None,
        };
        let told = plan(&long, &[], nobody);
        assert_eq!(told.make, []);
        assert!(
            told.notes[0].message.contains("at most 63 characters"),
            "{:?}",
            told.notes
        );
    }

    #[test]
    fn names_of_nics_are_short_and_tell_interfaces_apart() {
        assert_eq!(nic_name("web", "fast"), "web-fast");
        let odd = nic_name("web.a", "Fast_0");
        assert!(odd.starts_with("web-a-fast-0-"), "{odd}");
        assert_ne!(odd, nic_name("web.a", "fast_0"));
        let long = nic_name(&"v".repeat(63), &"i".repeat(63));
        assert!(long.len() <= NIC_NAME_MAX, "{long}");
        assert!(!long.contains('.') && long == long.to_ascii_lowercase());
    }
}
