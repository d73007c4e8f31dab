//! What a launcher pod must be for us, and what makes KubeVirt render it so.

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt as _;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use crate::VM;

const MAC: &str = "02:00:00:00:aa:01";
const SIDECAR: &str = "localhost/hybridnic-sidecar:none";
const RESOURCE: &str = "hybridnic.io/fast";
const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
/// Who QEMU runs as.
const QEMU: i64 = 107;
/// "pod", and how the SHA-256 of "fast", the network's name in the VM, begins: 14 characters of the 15 that a link may have.
const LINK: &str = "pod115dc3606fb";

/// The three lines that a user writes, two interfaces of one network each with and without a MAC, in the smallest VM.
pub fn spec() -> Value {
    json!({
        "domain": {
            // The default asks for what KubeVirt says of the nodes' processors.
            "cpu": { "model": "qemu64" },
            "memory": { "guest": "128Mi" },
            "devices": { "interfaces": [
                { "name": "fast", "binding": { "name": "hybridnic" }, "macAddress": MAC },
                { "name": "other", "binding": { "name": "hybridnic" } },
            ]},
        },
        "networks": [
            { "name": "fast", "multus": { "networkName": "fast" } },
            { "name": "other", "multus": { "networkName": "default/fast" } },
        ],
    })
}

/// The binding, registered.
pub fn configuration() -> Value {
    json!({ "network": { "binding": { "hybridnic": {
        "domainAttachmentType": "tap", "sidecarImage": SIDECAR, "migration": {},
        "computeResourceOverhead": { "requests": { "memory": "64Mi" } },
    }}}})
}

/// What the agent, the device plugin and the CNI plugin find of a VM's first pod.
pub fn check(pod: &Pod, vmi: &DynamicObject) {
    assert_eq!(pod.labels()["kubevirt.io/created-by"], vmi.uid().unwrap());
    assert_eq!(pod.labels()["vm.kubevirt.io/name"], VM);
    assert_eq!(pod.annotations()["kubevirt.io/domain"], VM);
    let owner = &pod.owner_references()[0];
    assert_eq!(
        (owner.kind.as_str(), owner.controller),
        ("VirtualMachineInstance", Some(true))
    );
    assert_eq!(vmi.owner_references()[0].kind, "VirtualMachine");

    let networks: Value = serde_json::from_str(&pod.annotations()[NETWORKS]).unwrap();
    assert_eq!(
        networks[0],
        json!({ "name": "fast", "namespace": "default", "mac": MAC, "interface": LINK })
    );
    // Nobody gives a MAC to the one without.
    assert_eq!(networks[1].get("mac"), None);
    assert_eq!(networks[1]["name"], "fast");
    assert_eq!(networks.as_array().unwrap().len(), 2);

    let compute = container(pod, "compute");
    for resources in [
        resources(compute).limits.as_ref(),
        resources(compute).requests.as_ref(),
    ] {
        assert_eq!(resources.unwrap()[RESOURCE].0, "2", "a device for each interface");
    }
    let security = compute.security_context.as_ref().unwrap();
    assert_eq!(
        (security.run_as_user, security.run_as_non_root),
        (Some(QEMU), Some(true))
    );
    let capabilities = security.capabilities.as_ref().unwrap();
    assert_eq!(capabilities.drop, Some(vec!["ALL".into()]));
    assert_eq!(capabilities.add, Some(vec!["NET_BIND_SERVICE".into()]));
    mounted(compute, "private", "/var/run/kubevirt-private");
    let private = pod
        .spec
        .as_ref()
        .unwrap()
        .volumes
        .iter()
        .flatten()
        .find(|v| v.name == "private");
    assert!(
        private.unwrap().empty_dir.is_some(),
        "the agent finds QEMU's socket by the volume on the host"
    );

    let sidecar = container(pod, "hook-sidecar-0");
    assert_eq!(sidecar.image.as_deref(), Some(SIDECAR));
    assert_eq!(sidecar.security_context.as_ref().unwrap().run_as_user, Some(QEMU));
    assert_eq!(sidecar.args, None);
    assert!(sidecar.readiness_probe.is_none() && resources(sidecar).limits.is_none());
    // Its own socket's directory is all that it sees of the VM.
    mounted(sidecar, "hook-sidecar-sockets", "/var/run/kubevirt-hooks");
    assert_eq!(sidecar.volume_mounts.as_ref().unwrap().len(), 1);
    assert_eq!(
        pod.spec.as_ref().unwrap().automount_service_account_token,
        Some(false)
    );
    let containers = pod.spec.as_ref().unwrap().containers.iter();
    assert_eq!(
        containers.filter(|c| c.name.starts_with("hook-sidecar")).count(),
        1,
        "one for all interfaces"
    );
}

/// What tells a migration's target from its source, and what both have in common.
pub fn check_target(target: &Pod, source: &Pod, migration: &DynamicObject, source_node: &str) {
    assert_eq!(
        target.labels()["kubevirt.io/migrationJobUID"],
        migration.uid().unwrap()
    );
    assert_eq!(
        target.annotations()["kubevirt.io/migrationJobName"],
        migration.name_any()
    );
    assert!(!source.labels().contains_key("kubevirt.io/migrationJobUID"));
    for label in ["kubevirt.io/created-by", "vm.kubevirt.io/name"] {
        assert_eq!(target.labels()[label], source.labels()[label]);
    }
    // Not where it is to run.
    assert_eq!(target.labels()["kubevirt.io/nodeName"], source_node);
    assert_eq!(target.annotations()[NETWORKS], source.annotations()[NETWORKS]);
    assert_eq!(
        resources(container(target, "compute")).limits,
        resources(container(source, "compute")).limits
    );
    let affinity = target.spec.as_ref().unwrap().affinity.as_ref().unwrap();
    let apart = affinity.pod_anti_affinity.as_ref().unwrap();
    let apart = &apart
        .required_during_scheduling_ignored_during_execution
        .as_ref()
        .unwrap()[0];
    assert_eq!(apart.topology_key, "kubernetes.io/hostname");
    let labels = apart
        .label_selector
        .as_ref()
        .unwrap()
        .match_labels
        .as_ref()
        .unwrap();
    assert_eq!(
        labels["kubevirt.io/created-by"],
        source.labels()["kubevirt.io/created-by"]
    );
}

fn container<'a>(pod: &'a Pod, name: &str) -> &'a Container {
    let containers = &pod.spec.as_ref().unwrap().containers;
    containers
        .iter()
        .find(|container| container.name == name)
        .unwrap()
}

fn resources(container: &Container) -> &k8s_openapi::api::core::v1::ResourceRequirements {
    container.resources.as_ref().unwrap()
}

fn mounted(container: &Container, volume: &str, path: &str) {
    let mounts = container.volume_mounts.iter().flatten();
    assert!(
        mounts
            .into_iter()
            .any(|mount| mount.name == volume && mount.mount_path == path)
    );
}
