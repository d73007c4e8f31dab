//! Which interfaces of a VM are ours, from its VirtualMachineInstance.

use serde::Deserialize;

/// The name that our binding is registered by.
const BINDING: &str = "hybridnic";

/// An interface of our binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Its name in the VM's spec.
    pub name: String,
    /// The model that the user asks for; KubeVirt's own, virtio, without one.
    pub model: Option<String>,
}

/// The interfaces of our binding, in the order of the VM's spec.
pub fn nics(json: &[u8]) -> Result<Vec<Nic>, serde_json::Error> {
    let vmi: Vmi = serde_json::from_slice(json)?;
    let interfaces = vmi.spec.domain.devices.interfaces.into_iter().flatten();
    Ok(interfaces
        .filter(|interface| interface.binding.as_ref().is_some_and(|b| b.name == BINDING))
        .map(|Interface { name, model, .. }| Nic {
            name,
            model: model.filter(|model| !model.is_empty()),
        })
        .collect())
}

#[derive(Deserialize)]
struct Vmi {
    spec: Spec,
}

#[derive(Deserialize)]
struct Spec {
    domain: Domain,
}

#[derive(Deserialize)]
struct Domain {
    #[serde(default)]
    devices: Devices,
}

#[derive(Default, Deserialize)]
struct Devices {
    interfaces: Option<Vec<Interface>>,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
    binding: Option<Binding>,
    model: Option<String>,
}

#[derive(Deserialize)]
struct Binding {
    name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_are_those_of_our_binding_in_the_order_of_the_spec() {
        let json = br#"{"kind": "VirtualMachineInstance", "spec": {"domain": {"devices": {"interfaces": [
            {"name": "z", "binding": {"name": "hybridnic"}, "model": ""},
            {"name": "default", "masquerade": {}},
            {"name": "passt", "binding": {"name": "passt"}},
            {"name": "a", "binding": {"name": "hybridnic"}, "model": "e1000e", "macAddress": "02:00:00:00:00:01"}
        ]}}}}"#;
        let nic = |name: &str, model: Option<&str>| Nic {
            name: name.into(),
            model: model.map(Into::into),
        };
        assert_eq!(nics(json).unwrap(), [nic("z", None), nic("a", Some("e1000e"))]);
    }

    #[test]
    fn a_vm_without_interfaces_has_none_and_what_is_no_vm_is_said() {
        for none in [
            r#"{"spec": {"domain": {}}}"#,
            r#"{"spec": {"domain": {"devices": {}}}}"#,
            r#"{"spec": {"domain": {"devices": {"interfaces": null}}}}"#,
        ] {
            assert_eq!(nics(none.as_bytes()).unwrap(), [], "{none}");
        }
        for wrong in [
            "",
            "null",
            "{}",
            r#"{"spec": {"domain": {"devices": {"interfaces": [{}]}}}}"#,
        ] {
            nics(wrong.as_bytes()).unwrap_err();
        }
    }
}
