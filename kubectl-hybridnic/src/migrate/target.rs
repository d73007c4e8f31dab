//! Which pod a VM can move to. Pure.

use hybridnic_api::v1alpha1::VmHybridNic;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

/// The longest prefix for which the API server still makes a name that a QemuMigration may have.
const PREFIX_MAX: usize = 50;

/// A pod that waits for the VM.
#[derive(Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub pod: String,
    /// Its node.
    pub node: String,
}

/// Whether a label can have this value.
pub fn is_label_value(text: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && ends(text.chars().next())
        && ends(text.chars().last())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// What the names of a VM's migrations begin with: labels may hold what names of objects may not.
pub fn name_prefix(vm: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    let prefix: String = vm.chars().map(plain).take(PREFIX_MAX).collect();
    format!("{}-", prefix.trim_matches('-'))
}

/// The pod to move to: the one that runs, has an address and is not where the VM runs. With `to`, on that node. If there are
/// several, a person says which: the youngest is just the one that came last. A static pod is never a VM's, here as in the operator. The
/// NICs' reports decide where the VM runs; before there are any, it is the oldest pod that runs.
pub fn choose(vm: &str, to: Option<&str>, pods: &[Pod], nics: &[VmHybridNic]) -> Result<Target, String> {
    let alive: Vec<&Pod> = pods
        .iter()
        .filter(|pod| !matches!(phase(pod), "Succeeded" | "Failed") && !is_of_node(pod))
        .collect();
    let Some(source) = source(vm, &alive, nics) else {
        return Err(format!(
            "no pod runs VM {vm}: none that lives has the label hybridnic.io/vm={vm}"
        ));
    };
    let others = || alive.iter().filter(|pod| pod.metadata.uid != source.metadata.uid);
    let fit = |pod: &&&Pod| {
        phase(pod) == "Running"
            && has_address(pod)
            && pod.metadata.deletion_timestamp.is_none()
            && to.is_none_or(|to| node(pod) == Some(to))
    };
    let waiting: Vec<_> = others().filter(fit).collect();
    if let [pod] = waiting[..] {
        let node = node(pod).unwrap_or_default().to_owned();
        return Ok(Target {
            pod: pod.name_any(),
            node,
        });
    }
    if !waiting.is_empty() {
        let listed: Vec<_> = waiting.iter().map(|pod| describe(pod)).collect();
        let how = match to {
            None => "say which with --to NODE",
            Some(_) => "create a QemuMigration that names one in spec.targetPod",
        };
        let listed = listed.join(", ");
        return Err(format!("several pods of VM {vm} could take it: {listed}; {how}"));
    }
    if to.is_some() && to == node(source) {
        return Err(format!(
            "VM {vm} already runs on {}, in pod {}",
            to.unwrap_or_default(),
            source.name_any()
        ));
    }
    let listed: Vec<_> = others().map(|pod| describe(pod)).collect();
    let listed = if listed.is_empty() {
        "none".to_owned()
    } else {
        listed.join(", ")
    };
    let on = to.map(|to| format!(" on {to}")).unwrap_or_default();
    Err(format!(
        "no pod of VM {vm} waits{on}: it runs in {}, its other pods: {listed}. \
         Start one with the label and -incoming defer; it must run and have an address",
        describe(source)
    ))
}

fn source<'a>(vm: &str, alive: &[&'a Pod], nics: &[VmHybridNic]) -> Option<&'a Pod> {
    let known = nics
        .iter()
        .filter(|nic| nic.spec.vm.qemu.as_ref().is_some_and(|qemu| qemu.name == vm))
        .filter_map(|nic| nic.status.as_ref()?.pod.as_ref())
        .find_map(|known| {
            alive
                .iter()
                .find(|pod| pod.metadata.uid.as_deref() == Some(known.uid.as_str()))
        });
    let first = || alive.iter().min_by_key(|pod| (phase(pod) != "Running", age(pod)));
    known.or_else(first).copied()
}

fn age(pod: &Pod) -> (Option<jiff::Timestamp>, String) {
    (
        pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
        pod.name_any(),
    )
}

fn describe(pod: &Pod) -> String {
    let phase = if pod.metadata.deletion_timestamp.is_some() {
        "Terminating"
    } else {
        phase(pod)
    };
    let address = if has_address(pod) { "" } else { ", no address" };
    format!(
        "{} on {} ({phase}{address})",
        pod.name_any(),
        node(pod).unwrap_or("no node")
    )
}

fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

fn node(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()?
        .node_name
        .as_deref()
        .filter(|name| !name.is_empty())
}

fn is_of_node(pod: &Pod) -> bool {
    pod.owner_references().iter().any(|owner| owner.kind == "Node")
}

fn has_address(pod: &Pod) -> bool {
    let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref());
    ip.is_some_and(|ip| !ip.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn pod(name: &str, second: u8, phase: &str, node: &str) -> Pod {
        from_value(json!({
            "metadata": {
                "name": name, "uid": format!("{name}-uid"), "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
            },
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": phase, "podIP": "10.0.0.1"},
        }))
        .unwrap()
    }

    fn nic(vm: &str, pod: &str) -> VmHybridNic {
        from_value(json!({
            "metadata": {"name": "eth0"}, "spec": {"network": "fast", "vm": {"qemu": {"name": vm}}},
            "status": {"pod": {"name": pod, "uid": format!("{pod}-uid")}},
        }))
        .unwrap()
    }

    fn name(target: Result<Target, String>) -> String {
        target.map_or_else(|refusal| refusal, |target| target.pod)
    }

    #[test]
    fn the_other_pod_that_runs() {
        let pods = [
            pod("a", 1, "Running", "n1"),
            pod("b", 2, "Running", "n2"),
            pod("c", 3, "Running", "n3"),
        ];
        assert_eq!(name(choose("web", None, &pods[..2], &[])), "b");
        assert_eq!(name(choose("web", Some("n2"), &pods, &[])), "b");
        assert_eq!(
            name(choose("web", None, &pods, &[])),
            "several pods of VM web could take it: b on n2 (Running), c on n3 (Running); say which with --to NODE"
        );
        let beside = [pods[0].clone(), pods[1].clone(), pod("d", 4, "Running", "n2")];
        let both = name(choose("web", Some("n2"), &beside, &[]));
        assert!(
            both.ends_with("d on n2 (Running); create a QemuMigration that names one in spec.targetPod"),
            "{both}"
        );
        // One of a node's own is none.
        let mut mirror = pod("m", 4, "Running", "n2");
        let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": "n2", "uid": "u"}]);
        mirror.metadata.owner_references = from_value(owner).unwrap();
        assert_eq!(
            name(choose(
                "web",
                None,
                &[pods[0].clone(), pods[1].clone(), mirror],
                &[]
            )),
            "b"
        );
        // The VM has moved before: the NICs know, and another VM's do not count.
        let nics = [nic("db", "b"), nic("web", "c")];
        assert_eq!(name(choose("web", None, &pods[1..], &nics)), "b");
        let target = choose("web", Some("n1"), &pods, &nics).unwrap();
        assert_eq!((target.pod.as_str(), target.node.as_str()), ("a", "n1"));
    }

    #[test]
    fn refusals_name_what_is_there() {
        let pods = [
            pod("a", 1, "Running", "n1"),
            pod("b", 2, "Pending", "n2"),
            pod("old", 0, "Failed", "n3"),
        ];
        let refusal = name(choose("web", Some("n2"), &pods, &[]));
        assert!(
            refusal.starts_with("no pod of VM web waits on n2: it runs in a on n1 (Running)"),
            "{refusal}"
        );
        assert!(
            refusal.contains("its other pods: b on n2 (Pending). Start one"),
            "{refusal}"
        );
        assert_eq!(
            name(choose("web", Some("n1"), &pods, &[])),
            "VM web already runs on n1, in pod a"
        );
        assert!(name(choose("web", None, &pods[..1], &[])).contains("its other pods: none."));
        assert!(name(choose("web", None, &[], &[])).starts_with("no pod runs VM web"));
        let mut dumb = pod("b", 2, "Running", "n2");
        dumb.status.as_mut().unwrap().pod_ip = None;
        assert!(name(choose("web", None, &[pods[0].clone(), dumb], &[])).contains("Running, no address"));
    }

    #[test]
    fn names() {
        assert!(is_label_value("web.1_a") && is_label_value("a"));
        for bad in ["", "-a", "a-", "a b", "a,b!=c", &"a".repeat(64)] {
            assert!(!is_label_value(bad), "{bad}");
        }
        assert_eq!(name_prefix("Web_1.a"), "web-1-a-");
        assert!(name_prefix(&"a".repeat(63)).len() + 5 <= 63);
    }
}
