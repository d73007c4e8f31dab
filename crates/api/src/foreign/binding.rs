//! Our network binding in KubeVirt's configuration. Pure.

use serde_json::{Value, json};

use super::kubevirt::{BINDING, KubeVirt};

/// The oldest KubeVirt that this was tried with.
const OLDEST: (u64, u64) = (1, 8);

/// What KubeVirt must have in its configuration under `network.binding.hybridnic`.
pub fn binding(sidecar: &str) -> Value {
    json!({
        "domainAttachmentType": "tap",
        "sidecarImage": sidecar,
        "migration": {},
        "computeResourceOverhead": {"requests": {"memory": "32Mi"}},
    })
}

/// The merge patch that registers it.
pub fn patch(sidecar: &str) -> Value {
    json!({"spec": {"configuration": {"network": {"binding": {BINDING: binding(sidecar)}}}}})
}

/// What a person can do about it.
pub fn command(kubevirt: &KubeVirt, sidecar: &str) -> String {
    let meta = &kubevirt.metadata;
    let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
    format!(
        "kubectl patch kubevirt {} -n {} --type merge -p '{}'",
        name.unwrap_or("kubevirt"),
        namespace.unwrap_or("kubevirt"),
        patch(sidecar)
    )
}

/// Whether the binding is there with the fields that matter; the sidecar's image may be another.
pub fn is_registered(kubevirt: &KubeVirt) -> bool {
    let found = kubevirt.spec.configuration.network.binding.get(BINDING);
    found.is_some_and(|found| {
        found.get("domainAttachmentType") == Some(&json!("tap")) && found.get("sidecarImage").is_some()
    })
}

/// The sidecar's image that is registered.
pub fn sidecar(kubevirt: &KubeVirt) -> Option<&str> {
    let found = kubevirt.spec.configuration.network.binding.get(BINDING)?;
    found.get("sidecarImage")?.as_str()
}

/// Whether it is exactly as it should be.
pub fn is_current(kubevirt: &KubeVirt, sidecar: &str) -> bool {
    let found = kubevirt.spec.configuration.network.binding.get(BINDING);
    let wanted = binding(sidecar);
    let same = |key: &str| found.and_then(|found| found.get(key)) == wanted.get(key);
    same("domainAttachmentType")
        && same("sidecarImage")
        && found.is_some_and(|found| found.get("migration").is_some())
}

/// The version that runs, as it says itself; empty where it says nothing.
pub fn version(kubevirt: &KubeVirt) -> &str {
    let status = kubevirt.status.as_ref();
    status.map_or("", |status| &status.observed_kube_virt_version)
}

fn minor(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.trim_start_matches('v').split('.').map(str::parse::<u64>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
        _ => None,
    }
}

/// Whether this version is the one that the project tests with.
pub fn is_tested(kubevirt: &KubeVirt) -> bool {
    minor(version(kubevirt)) == Some(OLDEST)
}

/// Why this KubeVirt is not served; none if it may be. A version that it does not state is no reason.
pub fn too_old(kubevirt: &KubeVirt) -> Option<String> {
    let said = version(kubevirt);
    (minor(said)? < OLDEST).then(|| {
        format!(
            "KubeVirt is of version {said}, and hybridnic was tried with v{}.{} and newer: upgrade KubeVirt",
            OLDEST.0, OLDEST.1
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubevirt(binding: Option<Value>, version: &str) -> KubeVirt {
        let bindings = binding.map_or_else(|| json!({}), |binding| json!({"hybridnic": binding}));
        serde_json::from_value(json!({
            "metadata": {"name": "kv", "namespace": "sys"},
            "spec": {"configuration": {"network": {"binding": bindings}}},
            "status": {"observedKubeVirtVersion": version},
        }))
        .unwrap()
    }

    #[test]
    fn a_binding_is_registered_current_or_missing() {
        let none = kubevirt(None, "");
        assert!(!is_registered(&none) && !is_current(&none, "i:1"));
        let ours = kubevirt(Some(binding("i:1")), "");
        assert!(is_registered(&ours) && is_current(&ours, "i:1"));
        assert!(is_registered(&ours) && !is_current(&ours, "i:2"));
        let other = kubevirt(Some(json!({"domainAttachmentType": "managedTap"})), "");
        assert!(!is_registered(&other));
        assert!(
            command(&none, "i:1").starts_with("kubectl patch kubevirt kv -n sys --type merge -p '{\"spec\":")
        );
    }

    #[test]
    fn an_old_kubevirt_is_said_to_be() {
        for (version, old) in [
            ("v1.7.2", true),
            ("v0.59.0", true),
            ("v1.8.0", false),
            ("v1.8.0-rc.0", false),
            ("v1.10.1", false),
            ("v2.0.0", false),
            ("devel", false),
            ("", false),
        ] {
            assert_eq!(too_old(&kubevirt(None, version)).is_some(), old, "{version}");
        }
    }
}
