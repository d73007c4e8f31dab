//! Tells from a process's control groups whether it belongs to a pod. Pure.
//!
//! A kubelet makes a group for each pod and its runtime puts the pod's containers below it, unless it was told not to
//! (`cgroupsPerQOS: false`). The group's name has the pod's uid:
//!
//! | kubelet's cgroup driver | group |
//! |---|---|
//! | cgroupfs | `/kubepods/burstable/podUID/…` |
//! | systemd | `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice/…`, the UID's hyphens as `_` |
//!
//! There may be more before it, where a kubelet runs in a group of its own (`/kubelet.slice/kubelet-kubepods.slice/…`). A process in
//! a cgroup namespace sees others' groups relative to its own: `/../../podUID/…`.

/// Whether `text`, a `/proc/PID/cgroup` (`cgroups(7)`), belongs to a process of this pod. With v1 there is a line for each hierarchy;
/// those that the kubelet does not use say nothing.
pub fn is_of_pod(text: &str, pod_uid: &str) -> bool {
    let groups = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let mut pods = groups.filter_map(pod_of).peekable();
    pods.peek().is_some() && pods.all(|pod| pod == pod_uid)
}

/// The uid of the pod that a group belongs to. The outermost counts: the pod itself may have made what is below.
fn pod_of(group: &str) -> Option<String> {
    let parts = group.split('/');
    let below = parts.clone().skip(1);
    parts
        .zip(below)
        .find_map(|(parent, part)| uid_in(part).filter(|_| has_pods(parent)))
}

/// Whether a kubelet makes pods' groups in a group of this name, as far as the name can tell.
fn has_pods(parent: &str) -> bool {
    const SLICES: [&str; 3] = [
        "kubepods.slice",
        "kubepods-burstable.slice",
        "kubepods-besteffort.slice",
    ];
    matches!(parent, ".." | "kubepods" | "burstable" | "besteffort")
        || SLICES.iter().any(|slice| parent.ends_with(slice))
}

fn uid_in(part: &str) -> Option<String> {
    match part.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod").map(|(_, uid)| uid.replace('_', "-")),
        None => part.strip_prefix("pod").map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "0b2e7c1d-90aa-4f6e-8d2f-000000000001";
    const OTHER: &str = "0b2e7c1d-90aa-4f6e-8d2f-000000000002";

    fn is(text: &str) -> bool {
        let uid = |text: &str, name: &str, uid: &str| {
            text.replace(&format!("{name}_"), &uid.replace('-', "_"))
                .replace(name, uid)
        };
        is_of_pod(&uid(&uid(text, "OTHER", OTHER), "UID", POD), POD)
    }

    #[test]
    fn both_drivers_and_all_classes_name_their_pods() {
        for group in [
            "0::/kubepods/podUID/c1",
            "0::/kubepods/burstable/podUID/c1",
            "0::/kubepods/besteffort/podUID/c1/nested/podOTHER",
            "0::/kubepods.slice/kubepods-podUID_.slice/cri-containerd-c1.scope",
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID_.slice/crio-c1.scope",
            "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podUID_.slice/cri-containerd-c1.scope (deleted)",
            // A kubelet in a group of its own, as kind has it.
            "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-podUID_.slice/c1",
            "0::/docker/c0/kubelet/kubepods/besteffort/podUID/c1",
            // Seen from an agent in a cgroup namespace of its own.
            "0::/../../podUID/c1",
            "0::/../../../kubepods-podUID_.slice/cri-containerd-c1.scope",
            "0::/../../../burstable/podUID/c1",
        ] {
            assert!(is(&format!("{group}\n")), "{group}");
        }
    }

    #[test]
    fn with_v1_no_hierarchy_may_name_another_pod() {
        let of = |freezer: &str| {
            is(&format!(
                "12:pids:/kubepods/burstable/podUID/c1\n11:cpu,cpuacct:/kubepods/burstable/podUID/c1\n9:freezer:{freezer}\n\
                 1:name=systemd:/kubepods/burstable/podUID/c1\n0::/\n"
            ))
        };
        assert!(of("/kubepods/burstable/podUID/c1"));
        assert!(of("/"));
        assert!(!of("/kubepods/burstable/podOTHER/c1"));
    }

    #[test]
    fn nothing_else_is_of_the_pod() {
        for group in [
            "0::/",
            "",
            "nonsense",
            "0::/system.slice/sshd.service",
            "0::/kubepods/burstable/podOTHER/c1",
            "0::/kubepods.slice/kubepods-podOTHER_.slice/c1",
            // Made below by another pod.
            "0::/kubepods/burstable/podOTHER/c1/kubepods/podUID",
            "0::/kubepods/burstable/podOTHER/podUID",
            // Not where a kubelet makes them.
            "0::/user.slice/user-1000.slice/podUID",
            "0::/user.slice/user-1000.slice/x-podUID_.slice",
            "0::/kubepods/burstable/podUIDx/c1",
            "0::/kubepods/burstable/UID/c1",
        ] {
            assert!(!is(&format!("{group}\n")), "{group}");
        }
    }
}
