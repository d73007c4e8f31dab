//! The interfaces of KubeVirt's VMs that are ours. Pure.

use super::kubevirt::{BINDING, Interface, VirtualMachineInstance, VirtualMachineInstanceSpec};

/// An interface with our binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name in the VM.
    pub name: String,
    /// The namespace of its `NetworkAttachmentDefinition`, where that is not the VM's own.
    pub namespace: Option<String>,
    /// The network, which has the name of its `NetworkAttachmentDefinition`.
    pub network: String,
    /// The MAC address that it asks for.
    pub mac: Option<String>,
    /// What the guest is to see.
    pub model: Option<String>,
}

/// An interface on a network of Multus, with another binding than ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// Its name in the VM.
    pub name: String,
    /// The namespace of its `NetworkAttachmentDefinition`, where that is not the VM's own.
    pub namespace: Option<String>,
    /// The name of its `NetworkAttachmentDefinition`.
    pub network: String,
    /// Whether it is to be a VF, by `sriov: {}`.
    pub is_sriov: bool,
}

impl Other {
    /// Why it gets nothing, where its `NetworkAttachmentDefinition` is ours.
    pub fn misfit(&self) -> String {
        let (name, network) = (&self.name, &self.network);
        let has = if self.is_sriov {
            "`sriov: {}`"
        } else {
            "another binding"
        };
        format!(
            "the interface {name} has {has}, and its network {network} is hybridnic's, so its pod does not start: give it \
             `binding: {{name: {BINDING}}}` instead"
        )
    }
}

/// The interfaces of a VM with our binding. An interface without a network of Multus does not count: KubeVirt does not start its VM.
pub fn of(spec: &VirtualMachineInstanceSpec) -> Vec<Wanted> {
    let ours = spec.domain.devices.interfaces.iter().filter(|interface| {
        let is_ours = interface
            .binding
            .as_ref()
            .is_some_and(|binding| binding.name == BINDING);
        is_ours && interface.state.as_deref() != Some("absent")
    });
    let wanted = ours.filter_map(|interface| {
        let (namespace, network) = definition(spec, interface)?;
        Some(Wanted {
            name: interface.name.clone(),
            namespace,
            network,
            mac: interface.mac_address.clone(),
            model: interface.model.clone(),
        })
    });
    wanted.collect()
}

/// The interfaces of a VM on networks of Multus that have another binding than ours.
pub fn others(spec: &VirtualMachineInstanceSpec) -> Vec<Other> {
    let others = spec.domain.devices.interfaces.iter().filter(|interface| {
        let is_ours = interface
            .binding
            .as_ref()
            .is_some_and(|binding| binding.name == BINDING);
        !is_ours && interface.state.as_deref() != Some("absent")
    });
    let others = others.filter_map(|interface| {
        let (namespace, network) = definition(spec, interface)?;
        Some(Other {
            name: interface.name.clone(),
            namespace,
            network,
            is_sriov: interface.sriov.is_some(),
        })
    });
    others.collect()
}

/// Namespace, where it is said, and name of the `NetworkAttachmentDefinition` of an interface; none where it is on no network of Multus.
fn definition(spec: &VirtualMachineInstanceSpec, interface: &Interface) -> Option<(Option<String>, String)> {
    let network = spec
        .networks
        .iter()
        .find(|network| network.name == interface.name)?;
    let name = network.multus.as_ref()?.network_name.as_str();
    Some(match name.split_once('/') {
        Some((namespace, name)) => (Some(namespace.to_owned()), name.to_owned()),
        None => (None, name.to_owned()),
    })
}

/// Whether the machine has ACPI. It has unless that was switched off.
pub fn has_acpi(spec: &VirtualMachineInstanceSpec) -> bool {
    let features = spec.domain.features.as_ref();
    features.and_then(|features| features.acpi.enabled) != Some(false)
}

/// What KubeVirt says where it cannot start a VM.
pub fn trouble(vmi: &VirtualMachineInstance) -> Option<&str> {
    let conditions = &vmi.status.as_ref()?.conditions;
    let failed = conditions
        .iter()
        .find(|condition| condition.type_ == "Synchronized" && condition.status == "False")?;
    Some(failed.message.as_str()).filter(|said| !said.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(interface: &Value) -> VirtualMachineInstanceSpec {
        let spec = json!({
            "domain": {"devices": {"interfaces": [{"name": "default", "masquerade": {}}, interface]}},
            "networks": [
                {"name": "default", "pod": {}},
                {"name": "fast", "multus": {"networkName": "hybridnic-system/net"}},
                {"name": "plain", "multus": {"networkName": "net"}},
            ],
        });
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn the_interfaces_with_our_binding_are_ours() {
        let ours =
            json!({"name": "fast", "binding": {"name": "hybridnic"}, "macAddress": "02:00:00:00:00:01"});
        let wanted = of(&spec(&ours));
        assert_eq!(wanted.len(), 1);
        assert_eq!(wanted[0].name, "fast");
        assert_eq!(wanted[0].network, "net");
        assert_eq!(wanted[0].namespace.as_deref(), Some("hybridnic-system"));
        assert_eq!(wanted[0].mac.as_deref(), Some("02:00:00:00:00:01"));
        let plain = of(&spec(&json!({"name": "plain", "binding": {"name": "hybridnic"}})));
        assert_eq!(
            (plain[0].namespace.as_deref(), plain[0].network.as_str()),
            (None, "net")
        );
        for other in [
            json!({"name": "fast", "binding": {"name": "passt"}}),
            json!({"name": "fast", "sriov": {}}),
            json!({"name": "fast", "binding": {"name": "hybridnic"}, "state": "absent"}),
            json!({"name": "none", "binding": {"name": "hybridnic"}}),
        ] {
            assert_eq!(of(&spec(&other)), []);
        }
    }

    #[test]
    fn an_interface_with_another_binding_on_a_network_of_multus_is_known() {
        let found = others(&spec(&json!({"name": "fast", "sriov": {}})));
        let [other] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert!(
            other.is_sriov && other.misfit().contains("has `sriov: {}`"),
            "{other:?}"
        );
        assert_eq!(
            (other.namespace.as_deref(), other.network.as_str()),
            (Some("hybridnic-system"), "net")
        );
        let bridge = others(&spec(&json!({"name": "plain", "bridge": {}})));
        assert!(
            !bridge[0].is_sriov && bridge[0].misfit().contains("another binding"),
            "{bridge:?}"
        );
        for none in [
            json!({"name": "fast", "binding": {"name": "hybridnic"}}),
            json!({"name": "fast", "sriov": {}, "state": "absent"}),
            json!({"name": "nowhere", "sriov": {}}),
        ] {
            assert_eq!(others(&spec(&none)), [], "{none}");
        }
    }

    #[test]
    fn a_machine_has_acpi_unless_it_was_switched_off() {
        let mut spec = spec(&json!({"name": "fast", "sriov": {}}));
        assert!(has_acpi(&spec));
        for (features, has) in [
            (json!({}), true),
            (json!({"acpi": {}}), true),
            (json!({"acpi": {"enabled": true}}), true),
            (json!({"acpi": {"enabled": false}}), false),
        ] {
            spec.domain.features = serde_json::from_value(features).ok();
            assert_eq!(has_acpi(&spec), has);
        }
    }
}
