//! Which pod runs a VM. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use hybridnic_api::names::VM_LABEL;
use hybridnic_api::v1alpha1::ObjectRef;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

/// Name and uid of a pod.
pub fn reference(pod: &Pod) -> ObjectRef {
    ObjectRef {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
    }
}

/// Whether its processes have ended for good.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether it runs. One that is being deleted runs until it has ended.
pub fn is_running(pod: &Pod) -> bool {
    phase(pod) == "Running" && node(pod).is_some()
}

/// Its node, once it has one.
pub fn node(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()?
        .node_name
        .as_deref()
        .filter(|name| !name.is_empty())
}

/// Its address, once it has one.
pub fn address(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref().filter(|ip| !ip.is_empty())
}

/// The address by which one pod reaches another: the first that is of a family of its own. Pods of a dual-stack cluster have one
/// of each, and need not have them in one order.
pub fn address_from<'a>(source: &Pod, target: &'a Pod) -> Option<&'a str> {
    let is_v4 = |ip: &str| ip.parse::<IpAddr>().ok().map(|ip| ip.is_ipv4());
    let own: Vec<_> = addresses(source).map(is_v4).collect();
    addresses(target)
        .find(|ip| own.contains(&is_v4(ip)))
        .or_else(|| address(target))
}

fn addresses(pod: &Pod) -> impl Iterator<Item = &str> {
    let more = pod
        .status
        .iter()
        .flat_map(|status| status.pod_ips.iter().flatten());
    let more = more.map(|ip| ip.ip.as_str()).filter(|ip| !ip.is_empty());
    address(pod).into_iter().chain(more)
}

fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

/// The pod of this uid, unless it has ended.
pub fn alive<'a>(pods: &'a [Arc<Pod>], uid: &str) -> Option<&'a Arc<Pod>> {
    pods.iter()
        .find(|pod| pod.metadata.uid.as_deref() == Some(uid) && !is_finished(pod))
}

/// The pod in which the VM runs: the one it is known to run in as long as that lives, else the oldest that runs, else the
/// oldest that may yet. The oldest, because a pod that waits for the VM to migrate comes after the one it comes from.
pub fn active<'a>(known: Option<&ObjectRef>, pods: &'a [Arc<Pod>]) -> Option<&'a Arc<Pod>> {
    if let Some(pod) = known.and_then(|known| alive(pods, &known.uid)) {
        return Some(pod);
    }
    let age = |pod: &&Arc<Pod>| {
        (
            !is_running(pod),
            pod.creation_timestamp().map(|time| time.0),
            pod.name_any(),
        )
    };
    pods.iter().filter(|pod| !is_finished(pod)).min_by_key(age)
}

/// Why a VM runs in none of its pods: there is none, or all have ended.
pub fn missing(vm: &str, pods: &[Arc<Pod>]) -> String {
    let label = format!("{VM_LABEL}={vm}");
    match pods
        .iter()
        .max_by_key(|pod| (pod.creation_timestamp().map(|time| time.0), pod.name_any()))
    {
        None => format!("no pod of this namespace has the label {label}"),
        Some(last) => format!(
            "the pod {} has ended ({}), and no other of this namespace with the label {label} runs",
            last.name_any(),
            phase(last)
        ),
    }
}

/// The pod to which the VM can migrate: the one that is asked for, else the youngest that runs, never the source. One on a node
/// that is away is taken only where there is no other: it may be back in time.
pub fn target<'a>(
    asked: Option<&str>,
    source: &str,
    pods: &'a [Arc<Pod>],
    away: &BTreeSet<String>,
) -> Option<&'a Arc<Pod>> {
    let fit = |pod: &&Arc<Pod>| {
        is_running(pod)
            && address(pod).is_some()
            && pod.metadata.deletion_timestamp.is_none()
            && pod.metadata.uid.as_deref() != Some(source)
            && asked.is_none_or(|name| pod.name_any() == name)
    };
    let is_there = |pod: &Pod| node(pod).is_none_or(|node| !away.contains(node));
    pods.iter().filter(fit).max_by_key(|pod| {
        let age = pod.creation_timestamp().map(|time| time.0);
        (is_there(pod), age, pod.name_any())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod;

    fn names(active: Option<&Arc<Pod>>) -> Option<String> {
        active.map(|pod| pod.name_any())
    }

    #[test]
    fn the_pod_that_is_known_stays_while_it_lives() {
        let pods = [
            pod("a", "vm", 1, "Running", "n1"),
            pod("b", "vm", 2, "Running", "n2"),
        ]
        .map(Arc::new);
        assert_eq!(
            names(active(Some(&reference(&pods[1])), &pods)).as_deref(),
            Some("b")
        );
        assert_eq!(names(active(None, &pods)).as_deref(), Some("a"));
        let mut ended = pods.clone();
        ended[1] = Arc::new(pod("b", "vm", 2, "Succeeded", "n2"));
        assert_eq!(
            names(active(Some(&reference(&pods[1])), &ended)).as_deref(),
            Some("a")
        );
        let mut deleted = pod("b", "vm", 2, "Running", "n2");
        deleted.metadata.deletion_timestamp = deleted.metadata.creation_timestamp.clone();
        let deleted = [pods[0].clone(), Arc::new(deleted)];
        assert_eq!(
            names(active(Some(&reference(&pods[1])), &deleted)).as_deref(),
            Some("b"),
            "until it is gone"
        );
        // A namesake with another uid is another pod.
        let known = ObjectRef {
            name: "b".to_owned(),
            uid: "before".to_owned(),
        };
        assert_eq!(names(active(Some(&known), &pods)).as_deref(), Some("a"));
    }

    #[test]
    fn a_pod_that_runs_comes_before_one_that_may() {
        let pods = [
            pod("a", "vm", 1, "Pending", "n1"),
            pod("b", "vm", 2, "Running", "n2"),
        ]
        .map(Arc::new);
        assert_eq!(names(active(None, &pods)).as_deref(), Some("b"));
        assert_eq!(names(active(None, &pods[..1])).as_deref(), Some("a"));
        assert_eq!(
            names(active(None, &[Arc::new(pod("a", "vm", 1, "Failed", "n1"))])),
            None
        );
    }

    #[test]
    fn a_vm_without_a_pod_and_one_whose_pods_have_ended_are_told_apart() {
        assert_eq!(
            missing("vm", &[]),
            "no pod of this namespace has the label hybridnic.io/vm=vm"
        );
        let ended = [
            pod("a", "vm", 1, "Failed", "n1"),
            pod("b", "vm", 2, "Succeeded", "n2"),
        ]
        .map(Arc::new);
        assert_eq!(
            missing("vm", &ended),
            "the pod b has ended (Succeeded), and no other of this namespace with the label hybridnic.io/vm=vm runs"
        );
    }

    #[test]
    fn targets() {
        let pods = ["a", "b", "c", "d"].map(|name| Arc::new(pod(name, "vm", 1, "Running", "n")));
        let uid = |n: usize| pods[n].uid().unwrap();
        let target = |asked, source: &String, pods| super::target(asked, source, pods, &BTreeSet::new());
        assert_eq!(names(target(None, &uid(0), &pods)).as_deref(), Some("d"));
        assert_eq!(names(target(None, &uid(3), &pods)).as_deref(), Some("c"));
        assert_eq!(names(target(Some("b"), &uid(0), &pods)).as_deref(), Some("b"));
        assert_eq!(
            names(target(Some("a"), &uid(0), &pods)),
            None,
            "the source itself"
        );
        assert_eq!(names(target(Some("x"), &uid(0), &pods)), None);
        let mut dumb = pod("b", "vm", 1, "Running", "n");
        dumb.status.get_or_insert_default().pod_ip = None;
        assert_eq!(
            names(target(None, &uid(0), &[pods[0].clone(), Arc::new(dumb)])),
            None,
            "no address yet"
        );
    }

    #[test]
    fn a_vm_is_sent_by_a_family_that_both_pods_have() {
        let with = |ips: &[&str]| {
            let mut pod = pod("a", "vm", 1, "Running", "n");
            let status = pod.status.get_or_insert_default();
            status.pod_ip = Some(ips[0].to_owned());
            status.pod_ips = serde_json::from_value(serde_json::json!(
                ips.iter()
                    .map(|ip| serde_json::json!({"ip": ip}))
                    .collect::<Vec<_>>()
            ))
            .unwrap();
            pod
        };
        let (v4, v6) = ("10.0.0.2", "fd00::2");
        for (source, target, sent_to) in [
            (vec!["10.0.0.1"], vec![v4], v4),
            (vec!["fd00::1"], vec![v6], v6),
            (vec!["10.0.0.1", "fd00::1"], vec![v4, v6], v4),
            (vec!["fd00::1", "10.0.0.1"], vec![v6, v4], v6),
            (vec!["10.0.0.1"], vec![v6, v4], v4),
            (vec!["fd00::1"], vec![v4, v6], v6),
            // Nothing better is known: QEMU says what is wrong.
            (vec!["10.0.0.1"], vec![v6], v6),
        ] {
            assert_eq!(
                address_from(&with(&source), &with(&target)),
                Some(sent_to),
                "{source:?}, {target:?}"
            );
        }
        // Of a pod that names no others the one must do.
        let mut plain = with(&[v6]);
        plain.status.get_or_insert_default().pod_ips = None;
        assert_eq!(address_from(&plain, &plain), Some(v6));
    }

    #[test]
    fn a_target_on_a_node_that_is_away_comes_last() {
        let pods = ["a", "b", "c"].map(|name| Arc::new(pod(name, "vm", 1, "Running", &format!("n-{name}"))));
        let source = pods[0].uid().unwrap();
        let target = |asked, away: &[&str]| {
            let away = away.iter().map(ToString::to_string).collect();
            names(super::target(asked, &source, &pods, &away))
        };
        assert_eq!(target(None, &[]).as_deref(), Some("c"));
        assert_eq!(target(None, &["n-c"]).as_deref(), Some("b"));
        assert_eq!(
            target(None, &["n-b", "n-c"]).as_deref(),
            Some("c"),
            "it may come back"
        );
        assert_eq!(
            target(Some("c"), &["n-c"]).as_deref(),
            Some("c"),
            "it was asked for"
        );
    }
}
