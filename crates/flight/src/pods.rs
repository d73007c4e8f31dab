//! Which pod runs a VM. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use hybridnic_api::foreign::multus::resource;
use hybridnic_api::names::{GROUP, VM_LABEL};
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

/// Whether a node owns it, as it does the image of a static pod: a kubelet makes these in any namespace and with any label. The
/// API server takes no pod from a kubelet without that owner.
pub fn is_of_node(pod: &Pod) -> bool {
    pod.owner_references().iter().any(|owner| owner.kind == "Node")
}

/// Its node, once it has one.
pub fn node(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()?
        .node_name
        .as_deref()
        .filter(|name| !name.is_empty())
}

/// Whether a resource is one of our devices.
pub fn is_ours(resource: &str) -> bool {
    resource
        .strip_prefix(GROUP)
        .is_some_and(|rest| rest.starts_with('/'))
}

/// How many devices of a network its containers request; `None` where that is not known.
pub fn requested(pod: &Pod, network: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let resource = resource(network);
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    // Of these, requests are what the limits are.
    let limits = containers.filter_map(|container| container.resources.as_ref()?.limits.as_ref());
    let counts = limits.filter_map(|limits| limits.get(&resource));
    counts.map(|count| count.0.parse::<i32>().ok()).sum()
}

/// Its address, once it has one.
pub fn address(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref().filter(|ip| !ip.is_empty())
}

/// The address to which `source` may send a VM's memory: the first that is of a family of its own. Pods of a dual-stack cluster have
/// one of each, and need not have them in one order. Otherwise why there is none: a kubelet may report any address for its pods.
pub fn address_from<'a>(
    source: &Pod,
    target: &'a Pod,
    of_nodes: &BTreeSet<IpAddr>,
) -> Result<&'a str, String> {
    let is_v4 = |ip: &str| ip.parse::<IpAddr>().ok().map(|ip| ip.is_ipv4());
    let own: Vec<_> = addresses(source).map(is_v4).collect();
    let fit = || addresses(target).filter(|ip| unfit(ip, of_nodes).is_none());
    let found = fit().find(|ip| own.contains(&is_v4(ip))).or_else(|| fit().next());
    found.ok_or_else(|| {
        let why = addresses(target).find_map(|ip| Some(format!("{ip} is {}", unfit(ip, of_nodes)?)));
        let why = why.unwrap_or_else(|| "it has none".to_owned());
        format!(
            "the pod {} has no address that a VM's memory may be sent to: {why}",
            target.name_any()
        )
    })
}

/// The addresses of these pods, as they are on the wire.
pub fn all_addresses(pods: &[Arc<Pod>]) -> BTreeSet<IpAddr> {
    let all = pods.iter().flat_map(|pod| addresses(pod));
    all.filter_map(|ip| Some(ip.parse::<IpAddr>().ok()?.to_canonical()))
        .collect()
}

/// Why an address is not one of a pod: a source that sent there would reach itself, its node, or everybody.
fn unfit(ip: &str, of_nodes: &BTreeSet<IpAddr>) -> Option<&'static str> {
    let Ok(ip) = ip.parse::<IpAddr>() else {
        return Some("no IP address");
    };
    // `::ffff:127.0.0.1` is 127.0.0.1.
    let ip = ip.to_canonical();
    let (local, broadcast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.is_broadcast()),
        IpAddr::V6(ip) => (ip.is_unicast_link_local(), false),
    };
    if ip.is_loopback() {
        Some("a loopback address")
    } else if ip.is_unspecified() || matches!(ip, IpAddr::V4(ip) if ip.octets()[0] == 0) {
        Some("an unspecified address")
    } else if local {
        Some("a link-local address")
    } else if ip.is_multicast() || broadcast {
        Some("a multicast or broadcast address")
    } else if of_nodes.contains(&ip) {
        Some("an address of a node: a pod in the host's network cannot be a migration's target")
    } else {
        None
    }
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
/// oldest that still may. The oldest, because a pod that waits for the VM to migrate is younger than the one that it comes from.
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

/// Where a VM can migrate to.
#[derive(Clone, Debug, PartialEq)]
pub enum Target<'a> {
    /// Nowhere yet.
    None,
    /// To this pod. Before anything is sent, its node's agent reports whether QEMU waits for the VM in it.
    Pod(&'a Arc<Pod>),
    /// To any of these, as far as is known: a person has to say which.
    Several(Vec<&'a Arc<Pod>>),
}

/// The pod to which the VM can migrate: the one that is asked for; else, of those that run and are not the source, the only one,
/// or the only one whose QEMU waits for a VM, as an agent reports (`waits`). Pods on nodes that are away count only if there are no others:
/// they may be back in time. It is never the youngest, or the like, because then the user who made the last pod would get the VM.
pub fn target<'a>(
    asked: Option<&str>,
    source: &str,
    pods: &'a [Arc<Pod>],
    away: &BTreeSet<String>,
    waits: impl Fn(&Pod) -> bool,
) -> Target<'a> {
    let fit = |pod: &&Arc<Pod>| {
        is_running(pod)
            && address(pod).is_some()
            && pod.metadata.deletion_timestamp.is_none()
            && pod.metadata.uid.as_deref() != Some(source)
            && asked.is_none_or(|name| pod.name_any() == name)
    };
    let is_there = |pod: &&Arc<Pod>| node(pod).is_none_or(|node| !away.contains(node));
    let all: Vec<_> = pods.iter().filter(fit).collect();
    let there: Vec<_> = all.iter().copied().filter(|pod| is_there(pod)).collect();
    let waiting: Vec<_> = there.iter().copied().filter(|pod| waits(pod)).collect();
    let fewest = [waiting, there, all].into_iter().find(|pods| !pods.is_empty());
    match fewest.unwrap_or_default()[..] {
        [] => Target::None,
        [pod] => Target::Pod(pod),
        ref several => Target::Several(several.to_vec()),
    }
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

    fn target_of(target: Target<'_>) -> Result<String, Vec<String>> {
        match target {
            Target::None => Err(Vec::new()),
            Target::Pod(pod) => Ok(pod.name_any()),
            Target::Several(pods) => Err(pods.iter().map(|pod| pod.name_any()).collect()),
        }
    }

    #[test]
    fn targets() {
        let pods = ["a", "b", "c"].map(|name| Arc::new(pod(name, "vm", 1, "Running", "n")));
        let uid = |n: usize| pods[n].uid().unwrap();
        let waiting = |waits: &'static [&str]| move |pod: &Pod| waits.contains(&pod.name_any().as_str());
        let choose = |asked, source: &String, pods, waits| {
            target_of(super::target(
                asked,
                source,
                pods,
                &BTreeSet::new(),
                waiting(waits),
            ))
        };
        let several = |names: &[&str]| Err(names.iter().map(ToString::to_string).collect());
        // As an agent reports, or if there is no choice; never by age.
        assert_eq!(choose(None, &uid(0), &pods[..2], &[]), Ok("b".to_owned()));
        assert_eq!(choose(None, &uid(0), &pods, &[]), several(&["b", "c"]));
        assert_eq!(choose(None, &uid(0), &pods, &["b"]), Ok("b".to_owned()));
        assert_eq!(
            choose(None, &uid(0), &pods, &["a"]),
            several(&["b", "c"]),
            "the source itself"
        );
        assert_eq!(choose(None, &uid(0), &pods, &["b", "c"]), several(&["b", "c"]));
        assert_eq!(choose(Some("b"), &uid(0), &pods, &["c"]), Ok("b".to_owned()));
        assert_eq!(
            choose(Some("a"), &uid(0), &pods, &[]),
            several(&[]),
            "the source itself"
        );
        assert_eq!(choose(Some("x"), &uid(0), &pods, &[]), several(&[]));
        let mut dumb = pod("b", "vm", 1, "Running", "n");
        dumb.status.get_or_insert_default().pod_ip = None;
        let dumb = [pods[0].clone(), Arc::new(dumb)];
        assert_eq!(choose(None, &uid(0), &dumb, &[]), several(&[]), "no address yet");
    }

    #[test]
    fn memory_is_sent_to_no_address_that_is_not_a_pods() {
        let source = pod("a", "vm", 1, "Running", "n");
        let of_nodes = ["192.168.1.2", "fd00::1:2"].map(|ip| ip.parse().unwrap()).into();
        let to = |ip: &str| {
            let mut target = pod("b", "vm", 1, "Running", "n");
            target.status.get_or_insert_default().pod_ip = Some(ip.to_owned());
            address_from(&source, &target, &of_nodes).map(ToOwned::to_owned)
        };
        for (ip, why) in [
            ("127.0.0.1", "loopback"),
            ("127.8.8.8", "loopback"),
            ("::1", "loopback"),
            ("::ffff:127.0.0.1", "loopback"),
            ("0.0.0.0", "unspecified"),
            ("0.1.2.3", "unspecified"),
            ("::", "unspecified"),
            ("::ffff:0.0.0.0", "unspecified"),
            ("169.254.169.254", "link-local"),
            ("fe80::1", "link-local"),
            ("::ffff:169.254.0.1", "link-local"),
            ("224.0.0.1", "multicast"),
            ("ff02::1", "multicast"),
            ("255.255.255.255", "broadcast"),
            ("::ffff:239.1.1.1", "multicast"),
            ("192.168.1.2", "address of a node"),
            ("::ffff:192.168.1.2", "address of a node"),
            ("fd00::1:2", "address of a node"),
            ("fe80::1%eth0", "no IP address"),
            ("example.org", "no IP address"),
        ] {
            let refused = to(ip);
            let said = refused
                .as_ref()
                .err()
                .is_some_and(|said| said.contains(why) && said.contains(ip));
            assert!(said, "{ip}: {refused:?}");
        }
        for ip in ["10.0.0.2", "192.168.1.3", "fd00::2", "2001:db8::2", "100.64.0.1"] {
            assert_eq!(to(ip), Ok(ip.to_owned()));
        }
        // The other address of a pod is one as well.
        let mut both = pod("b", "vm", 1, "Running", "n");
        let ips = serde_json::json!([{"ip": "127.0.0.1"}, {"ip": "fd00::2"}]);
        let status = both.status.get_or_insert_default();
        status.pod_ip = Some("127.0.0.1".to_owned());
        status.pod_ips = serde_json::from_value(ips).unwrap();
        assert_eq!(address_from(&source, &both, &of_nodes), Ok("fd00::2"));
    }

    #[test]
    fn a_nodes_own_pod_is_told_by_its_owner() {
        let mut mirror = pod("a", "vm", 1, "Running", "n");
        assert!(!is_of_node(&mirror));
        for (kind, of_node) in [("StatefulSet", false), ("Node", true)] {
            let owner = serde_json::json!([{"apiVersion": "v1", "kind": kind, "name": "n", "uid": "u"}]);
            mirror.metadata.owner_references = serde_json::from_value(owner).unwrap();
            assert_eq!(is_of_node(&mirror), of_node, "{kind}");
        }
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
                address_from(&with(&source), &with(&target), &BTreeSet::new()),
                Ok(sent_to),
                "{source:?}, {target:?}"
            );
        }
        // Of a pod that names no others the one must do.
        let mut plain = with(&[v6]);
        plain.status.get_or_insert_default().pod_ips = None;
        assert_eq!(address_from(&plain, &plain, &BTreeSet::new()), Ok(v6));
    }

    #[test]
    fn a_target_on_a_node_that_is_away_comes_last() {
        let pods = ["a", "b", "c"].map(|name| Arc::new(pod(name, "vm", 1, "Running", &format!("n-{name}"))));
        let source = pods[0].uid().unwrap();
        let target = |asked, away: &[&str], pods| {
            let away = away.iter().map(ToString::to_string).collect();
            target_of(super::target(asked, &source, pods, &away, |pod: &Pod| {
                pod.name_any() == "c"
            }))
        };
        assert_eq!(
            target(None, &["n-c"], &pods),
            Ok("b".to_owned()),
            "whatever was said of the other once"
        );
        assert_eq!(
            target(None, &["n-b"], &pods[..2]),
            Ok("b".to_owned()),
            "it may come back"
        );
        let both = Err(vec!["b".to_owned(), "c".to_owned()]);
        assert_eq!(target(None, &["n-b", "n-c"], &pods), both);
        assert_eq!(
            target(Some("c"), &["n-c"], &pods),
            Ok("c".to_owned()),
            "it was asked for"
        );
    }
}
