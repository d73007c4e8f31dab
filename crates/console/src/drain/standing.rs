//! How far a drain is. Pure.

use hybridnic_api::{
    conditions::{self, reasons, types},
    v1alpha1::{
        DrainState, HybridNode, HybridNodeStatus, NicAttachment, Path, PfStatus, StandbyKind, VfState,
    },
};
use kube::ResourceExt as _;

use super::change::{Target, covers};
use crate::Standing;

/// Where a drain is; `seen` says whether the agent has looked at what the node was told.
pub fn standing(node: &HybridNode, attachments: &[NicAttachment], target: &Target, seen: bool) -> Standing {
    if !covers(&node.spec.drain, target) {
        return Standing::Stuck("somebody has undrained it since".to_owned());
    }
    let status = node.status.clone().unwrap_or_default();
    if !seen {
        return Standing::OnItsWay("the node's agent has not looked at it yet".to_owned());
    }
    let rows: Vec<Option<DrainState>> = match target {
        Target::All => status.pfs.iter().map(|pf| pf.drain).collect(),
        Target::Pf(address) => {
            let pfs = status.pfs.iter().filter(|pf| pf.pci_address == *address);
            pfs.map(|pf| pf.drain).collect()
        }
        Target::Network(name) => {
            let pools = status.pools.iter().filter(|pool| pool.network == *name);
            pools.map(|pool| pool.drain).collect()
        }
    };
    if rows.iter().all(|state| *state == Some(DrainState::Drained)) {
        return Standing::There("no NIC holds a VF of it".to_owned());
    }
    let hold: Vec<Holder> = attachments
        .iter()
        .filter_map(|a| holder(a, node, target))
        .collect();
    if hold.is_empty() {
        return Standing::OnItsWay(match group_of_a_pod(&status, target) {
            Some(vf) => format!(
                "a pod that has the group of {vf} must end first: kubectl hybridnic node {} names it",
                node.name_any()
            ),
            None => "the node's agent has not said yet that it is drained".to_owned(),
        });
    }
    let words: Vec<_> = hold.iter().map(|holder| holder.words.as_str()).collect();
    let words = words.join("; ");
    if hold.iter().all(|holder| holder.stuck) {
        Standing::Stuck(words)
    } else {
        Standing::OnItsWay(words)
    }
}

/// A VF that no NIC holds: if the kernel has groups only, the pod that has its group keeps it.
fn group_of_a_pod<'a>(status: &'a HybridNodeStatus, target: &Target) -> Option<&'a str> {
    let of = |pf: &&PfStatus| match target {
        Target::Pf(address) => pf.pci_address == *address,
        Target::All => true,
        // Of which network the pod's VF is, is not said.
        Target::Network(_) => false,
    };
    let vfs = status.pfs.iter().filter(of).flat_map(|pf| &pf.vfs);
    let mut held = vfs.filter(|vf| vf.state == VfState::Held && vf.held_by.is_none());
    held.next().map(|vf| vf.pci_address.as_str())
}

/// A NIC that still holds a VF.
struct Holder {
    words: String,
    /// It does not let go of it before somebody does something.
    stuck: bool,
}

fn holder(attachment: &NicAttachment, node: &HybridNode, target: &Target) -> Option<Holder> {
    let said = attachment.status.as_ref()?;
    let vf = said.vf.as_ref()?;
    let pfs = node.status.iter().flat_map(|status| &status.pfs);
    let mut of = pfs.filter(|pf| pf.vfs.iter().any(|row| row.pci_address == vf.pci_address));
    let meant = attachment.spec.node_name == node.name_any()
        && match target {
            Target::All => true,
            Target::Pf(address) => of.any(|pf| pf.pci_address == *address),
            Target::Network(name) => attachment.spec.network == *name,
        };
    if !meant {
        return None;
    }
    let name = &attachment.spec.nic.name;
    let nic = match attachment.namespace() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.clone(),
    };
    // One that is as it should be has not begun.
    let ready = conditions::find(&said.conditions, types::READY).filter(|c| c.status != "True");
    let passes = [
        reasons::PROGRESSING,
        reasons::MIGRATING,
        reasons::AGENT_PENDING,
        reasons::WAITING_FOR_RUNTIME,
        reasons::PF_DRAINED,
        reasons::VM_INCOMING,
    ];
    // It stays on a VF that is all that it has.
    let is_sole = attachment.spec.standby == StandbyKind::None && said.path == Path::FastPath;
    Some(match ready {
        Some(c) => Holder {
            words: format!("{nic}: {}: {}", c.reason, c.message),
            stuck: !passes.contains(&c.reason.as_str()) || is_sole && c.reason == reasons::PF_DRAINED,
        },
        None => Holder {
            words: format!("{nic} still holds {}", vf.pci_address),
            stuck: false,
        },
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn node(drain: &Value, observed: i64, state: Option<&str>) -> HybridNode {
        from_value(json!({
            "metadata": {"name": "n1", "generation": 2},
            "spec": {"drain": drain},
            "status": {
                "observedGeneration": observed,
                "pfs": [{
                    "name": "ens1", "pciAddress": "0000:01:00.0", "vendor": "8086", "device": "10c9", "linkUp": true,
                    "totalVfs": 7, "drain": state,
                    "vfs": [{"index": 0, "pciAddress": "0000:01:10.0", "state": "Held"}],
                }],
                "pools": [{"network": "fast", "vfs": {"total": 1, "free": 0, "held": 1, "unhealthy": 0}, "drain": state}],
            },
        }))
        .unwrap()
    }

    fn attachment(vf: &str, status: &str, reason: &str) -> NicAttachment {
        from_value(json!({
            "metadata": {"name": "eth0-x", "namespace": "shop"},
            "spec": {
                "nodeName": "n1", "nic": {"name": "eth0", "uid": "n"}, "vm": {"qemu": {"name": "web"}},
                "pod": {"name": "web-a", "uid": "b"}, "network": "fast", "mac": "02:00:00:00:00:0a", "goal": "FastPath",
                "noFreeVf": "Standby", "l2": {"spoofCheck": true, "trust": false},
            },
            "status": {
                "state": "FastPath", "path": "FastPath", "vf": {"pciAddress": vf, "pf": "ens1", "index": 0},
                "conditions": [{
                    "type": "Ready", "status": status, "reason": reason, "message": "so it is",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }],
            },
        }))
        .unwrap()
    }

    #[test]
    fn it_is_drained_when_the_agent_says_so_of_what_it_was_told() {
        let pf = || json!({"pfs": ["0000:01:00.0"]});
        let target = Target::Pf("0000:01:00.0".into());
        let is = |node: &HybridNode, attachments: &[NicAttachment]| {
            standing(
                node,
                attachments,
                &target,
                node.status.as_ref().unwrap().observed_generation >= Some(2),
            )
        };
        assert!(matches!(
            is(&node(&pf(), 2, Some("Drained")), &[]),
            Standing::There(_)
        ));
        assert!(matches!(
            is(&node(&pf(), 1, Some("Drained")), &[]),
            Standing::OnItsWay(_)
        ));
        assert!(matches!(is(&node(&json!({}), 3, None), &[]), Standing::Stuck(_)));
        let draining = node(&pf(), 2, Some("Draining"));
        assert!(matches!(is(&draining, &[]), Standing::OnItsWay(_)));
        let begins = attachment("0000:01:10.0", "True", "Attached");
        let goes = attachment("0000:01:10.0", "False", "Progressing");
        let keeps = attachment("0000:01:10.0", "False", "GuestKeepsVf");
        assert!(matches!(is(&draining, &[begins]), Standing::OnItsWay(_)));
        assert!(
            matches!(is(&draining, std::slice::from_ref(&keeps)), Standing::Stuck(why) if why.contains("shop/eth0: GuestKeepsVf"))
        );
        assert!(matches!(is(&draining, &[keeps, goes]), Standing::OnItsWay(_)));
        let waits = attachment("0000:01:10.0", "False", "PfDrained");
        assert!(matches!(
            is(&draining, std::slice::from_ref(&waits)),
            Standing::OnItsWay(_)
        ));
        let mut sole = waits;
        sole.spec.standby = StandbyKind::None;
        assert!(matches!(is(&draining, &[sole]), Standing::Stuck(_)));
        let other = attachment("0000:02:10.0", "False", "GuestKeepsVf");
        assert!(
            matches!(is(&draining, &[other]), Standing::OnItsWay(_)),
            "not of this PF"
        );
    }

    #[test]
    fn a_network_and_a_node_are_drained_by_their_own_rows() {
        let network = Target::Network("fast".into());
        let told = json!({"networks": ["fast"]});
        assert!(matches!(
            standing(&node(&told, 2, Some("Drained")), &[], &network, true),
            Standing::There(_)
        ));
        let keeps = [attachment("0000:01:10.0", "False", "GuestKeepsVf")];
        let draining = node(&told, 2, Some("Draining"));
        assert!(matches!(
            standing(&draining, &keeps, &network, true),
            Standing::Stuck(_)
        ));
        let all = node(&json!({"all": true}), 2, Some("Drained"));
        assert!(matches!(
            standing(&all, &[], &Target::All, true),
            Standing::There(_)
        ));
        let draining = node(&json!({"all": true}), 2, Some("Draining"));
        assert!(matches!(
            standing(&draining, &keeps, &Target::All, true),
            Standing::Stuck(_)
        ));
    }
}
