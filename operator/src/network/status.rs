//! What the cluster has for a network, and whether that can be used. Pure.

use std::collections::BTreeMap;

use hybridnic_api::conditions::{self, NewCondition, reasons, types};
use hybridnic_api::v1alpha1::{
    HybridNetwork, HybridNetworkStatus, HybridNode, Path, PoolStatus, VfCounts, WantedPath,
};
use hybridnic_decisions::mac;
use jiff::Timestamp;
use kube::ResourceExt;

use super::nodes::{Nodes, pool};
use crate::events::Note;
use crate::kinds::NicGlance;
use crate::select::selects;

/// How many nodes a message names.
const NAMED: usize = 3;

/// The status that follows from the nodes of the network's pool and its NICs.
pub fn build_status(
    network: &HybridNetwork,
    nodes: &Nodes,
    nics: &[NicGlance],
    attached: &[String],
    now: Timestamp,
) -> HybridNetworkStatus {
    let name = network.name_any();
    let pools: Vec<(&HybridNode, &PoolStatus)> = nodes
        .there
        .iter()
        .filter_map(|node| Some((node, pool(node, &name)?)))
        .collect();
    let mut vfs = VfCounts::default();
    for (_, pool) in &pools {
        vfs.total += pool.vfs.total;
        vfs.free += pool.vfs.free;
        vfs.held += pool.vfs.held;
        vfs.unhealthy += pool.vfs.unhealthy;
        vfs.drained += pool.vfs.drained;
    }
    let on = |path: Path| nics.iter().filter(move |nic| nic.path == path);
    let told = on(Path::Standby).filter(|nic| nic.asked == WantedPath::Standby);
    let mut status = HybridNetworkStatus {
        observed_generation: network.metadata.generation,
        vfs,
        nodes: count(pools.iter().filter(|(_, pool)| pool.vfs.total > 0)),
        nics: count(nics.iter()),
        on_fast_path: count(on(Path::FastPath)),
        on_standby: count(on(Path::Standby)),
        told_standby: count(told),
        conditions: network
            .status
            .as_ref()
            .map(|status| status.conditions.clone())
            .unwrap_or_default(),
    };
    let ready = if network.metadata.deletion_timestamp.is_some() {
        let message = format!(
            "{} NICs are attached to it, and it is deleted when they have left: {}",
            attached.len(),
            listed(attached.iter().cloned())
        );
        NewCondition::no(types::READY, reasons::NETWORK_IN_USE, message)
    } else {
        not_counted(ready(&status, nodes, &name, &pools), &nodes.away(&name))
    };
    for condition in [accepted(network), ready] {
        conditions::set(
            &mut status.conditions,
            network.metadata.generation,
            now,
            condition,
        );
    }
    status
}

fn count<T>(items: impl Iterator<Item = T>) -> i32 {
    i32::try_from(items.count()).unwrap_or(i32::MAX)
}

fn accepted(network: &HybridNetwork) -> NewCondition {
    let none = BTreeMap::new();
    let spec = &network.spec;
    let selectors = [
        ("spec.nodeSelector", &spec.node_selector),
        ("spec.namespaceSelector", &spec.namespace_selector),
    ];
    for (field, selector) in selectors {
        if let Err(error) = selects(selector.as_ref(), &none) {
            return NewCondition::no(
                types::ACCEPTED,
                reasons::FAILED,
                format!("{field} is not valid: {error}"),
            );
        }
    }
    match spec.mac_range.as_ref().map(mac::Range::parse) {
        Some(Err(error)) => NewCondition::no(
            types::ACCEPTED,
            reasons::FAILED,
            format!("spec.macRange is not valid: {error}"),
        ),
        _ => NewCondition::yes(types::ACCEPTED, reasons::ACCEPTED, "the spec is valid"),
    }
}

fn ready(
    status: &HybridNetworkStatus,
    nodes: &Nodes,
    network: &str,
    pools: &[(&HybridNode, &PoolStatus)],
) -> NewCondition {
    let (vfs, with) = (status.vfs.total, status.nodes);
    if vfs > 0 && status.vfs.unhealthy == vfs {
        let whys = pools
            .iter()
            .filter(|(_, pool)| pool.vfs.total > 0)
            .map(|(node, pool)| match pool.message.as_str() {
                // An older agent does not say.
                "" => node.name_any(),
                why => format!("{}: {why}", node.name_any()),
            })
            .collect::<Vec<_>>();
        let message = format!("none of {vfs} VFs can be used; {}", listed(whys.into_iter()));
        return NewCondition::no(types::READY, reasons::POOL_UNHEALTHY, message);
    }
    if vfs > 0 {
        let mut message = format!("{vfs} VFs on {with} {}", if with == 1 { "node" } else { "nodes" });
        // Some of them may be unusable, or usable only as long as they are held.
        let whys = pools
            .iter()
            .filter(|(_, pool)| pool.vfs.total > 0 && !pool.message.is_empty());
        let whys: Vec<_> = whys
            .map(|(node, pool)| format!("{}: {}", node.name_any(), pool.message))
            .collect();
        if !whys.is_empty() {
            message = format!("{message}; {}", listed(whys.into_iter()));
        }
        return NewCondition::yes(types::READY, reasons::POOL_READY, message);
    }
    if nodes.there.is_empty() && nodes.away(network).iter().any(|(_, _, names)| !names.is_empty()) {
        let message = "none of its nodes can take a NIC now";
        return NewCondition::no(types::READY, reasons::NODES_AWAY, message);
    }
    let message = if nodes.there.is_empty() {
        "no node that an agent runs on matches spec.nodeSelector; label the nodes, or install the node agent"
            .to_owned()
    } else if pools.is_empty() {
        format!(
            "waits for the agents of {} to report",
            listed(nodes.there.iter().map(ResourceExt::name_any))
        )
    } else {
        let whys = pools.iter().map(|(node, pool)| match pool.message.as_str() {
            "" => node.name_any(),
            why => format!("{} ({why})", node.name_any()),
        });
        format!(
            "spec.uplinks select no VF on {}; compare with kubectl get hnode -o yaml",
            listed(whys)
        )
    };
    NewCondition::no(types::READY, reasons::POOL_EMPTY, message)
}

/// Says which nodes are not counted.
fn not_counted(mut ready: NewCondition, away: &[(&str, &str, Vec<String>)]) -> NewCondition {
    for (one, many, names) in away.iter().filter(|(_, _, names)| !names.is_empty()) {
        let they = listed(names.iter().cloned());
        let count = match names.len() {
            1 => format!("1 {one} is"),
            n => format!("{n} {many} are"),
        };
        ready.message = format!("{}; {count} not counted: {they}", ready.message);
    }
    ready
}

fn listed(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let text = names.take(NAMED).collect::<Vec<_>>().join(", ");
    if more > 0 {
        format!("{text} and {more} more")
    } else {
        text
    }
}

/// What a change of the status is worth telling.
pub fn notes(old: &HybridNetworkStatus, new: &HybridNetworkStatus) -> Vec<Note> {
    let changed = |type_: &str| {
        let now = conditions::find(&new.conditions, type_)?;
        let same = conditions::find(&old.conditions, type_).is_some_and(|before| before.reason == now.reason);
        let note = if now.status == "True" {
            Note::normal
        } else {
            Note::warning
        };
        (!same).then(|| note(now.reason.clone(), now.message.clone()))
    };
    [types::ACCEPTED, types::READY]
        .into_iter()
        .filter_map(changed)
        .collect()
}

#[cfg(test)]
mod tests {
    use hybridnic_api::v1alpha1::HybridNodeStatus;

    use super::*;
    use crate::network::nodes::of_network;
    use crate::testing::{network, node};

    fn with_vfs(name: &str, total: i32, held: i32, message: &str) -> HybridNode {
        let mut node = node(name, &["net"]);
        let vfs = VfCounts {
            total,
            free: total - held,
            held,
            unhealthy: 0,
            drained: 0,
        };
        let pool = PoolStatus {
            network: "net".to_owned(),
            vfs,
            drain: None,
            message: message.to_owned(),
        };
        node.status = Some(HybridNodeStatus {
            pools: vec![pool],
            ..HybridNodeStatus::default()
        });
        node
    }

    fn on(path: Path) -> NicGlance {
        NicGlance {
            path,
            ..NicGlance::default()
        }
    }

    fn there(there: &[HybridNode]) -> Nodes {
        Nodes {
            there: there.to_vec(),
            ..Nodes::default()
        }
    }

    fn of(nodes: &[HybridNode], nics: &[NicGlance]) -> HybridNetworkStatus {
        build_status(&network("net"), &there(nodes), nics, &[], Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn counts_are_summed() {
        let mut left = with_vfs("n4", 9, 0, "");
        // A node that is no longer selected may report what it had for a while.
        left.spec.pools.clear();
        let nodes = [
            with_vfs("n1", 7, 2, ""),
            with_vfs("n2", 7, 0, ""),
            with_vfs("n3", 0, 0, "no PF"),
            left,
        ];
        let status = of(
            &nodes,
            &[
                on(Path::FastPath),
                on(Path::Standby),
                on(Path::FastPath),
                NicGlance {
                    asked: WantedPath::Standby,
                    ..on(Path::Standby)
                },
                // Its guest keeps the VF.
                NicGlance {
                    asked: WantedPath::Standby,
                    ..on(Path::FastPath)
                },
            ],
        );
        assert_eq!(
            status.vfs,
            VfCounts {
                total: 14,
                free: 12,
                held: 2,
                unhealthy: 0,
                drained: 0,
            }
        );
        assert_eq!(
            (status.nodes, status.nics, status.on_fast_path, status.on_standby),
            (2, 5, 3, 2)
        );
        assert_eq!(status.told_standby, 1);
        let ready = conditions::find(&status.conditions, types::READY).unwrap();
        assert_eq!(
            (ready.reason.as_str(), ready.message.as_str()),
            (reasons::POOL_READY, "14 VFs on 2 nodes")
        );
    }

    #[test]
    fn what_is_kept_of_a_node_for_a_network_says_the_same_of_it() {
        let mut whole = with_vfs("n1", 7, 2, "why");
        whole.spec.pools.extend(node("n1", &["other"]).spec.pools);
        let pools = &mut whole.status.as_mut().unwrap().pools;
        pools.extend(with_vfs("n1", 9, 9, "").status.unwrap().pools);
        pools[1].network = "other".to_owned();
        let slim = of_network(&whole, "net");
        assert_eq!(of(std::slice::from_ref(&slim), &[]), of(&[whole], &[]));
        assert_eq!((slim.spec.pools.len(), slim.status.unwrap().pools.len()), (1, 1));
    }

    #[test]
    fn a_pool_of_which_nothing_can_be_used_is_not_ready() {
        let ready = |nodes: &[HybridNode]| {
            let status = of(nodes, &[]);
            let ready = conditions::find(&status.conditions, types::READY).unwrap();
            (ready.reason.clone(), ready.message.clone())
        };
        let why = "7 of its 7 VFs cannot be used: it has no IOMMU group";
        let mut sick = with_vfs("n1", 7, 0, why);
        let pools = &mut sick.status.as_mut().unwrap().pools;
        (pools[0].vfs.free, pools[0].vfs.unhealthy) = (0, 7);
        let (reason, message) = ready(&[sick.clone(), with_vfs("n2", 0, 0, "no PF")]);
        assert_eq!(
            (reason.as_str(), message),
            (
                reasons::POOL_UNHEALTHY,
                format!("none of 7 VFs can be used; n1: {why}")
            )
        );
        // Where others can, it is said of those that cannot.
        let (reason, message) = ready(&[sick, with_vfs("n2", 7, 7, ""), with_vfs("n3", 0, 0, "no PF")]);
        assert_eq!(
            (reason.as_str(), message),
            (reasons::POOL_READY, format!("14 VFs on 2 nodes; n1: {why}"))
        );
    }

    #[test]
    fn an_empty_pool_says_what_to_do() {
        let message = |nodes: &[HybridNode]| {
            let status = of(nodes, &[]);
            let ready = conditions::find(&status.conditions, types::READY).unwrap();
            assert_eq!(
                (ready.status.as_str(), ready.reason.as_str()),
                ("False", reasons::POOL_EMPTY)
            );
            ready.message.clone()
        };
        assert!(message(&[]).contains("spec.nodeSelector"));
        assert!(message(&[node("n1", &["net"])]).contains("n1"));
        let many: Vec<_> = (0..5)
            .map(|n| with_vfs(&format!("n{n}"), 0, 0, "no PF is named ens9"))
            .collect();
        let text = message(&many);
        assert!(
            text.contains("n0 (no PF is named ens9)") && text.contains("and 2 more"),
            "{text}"
        );
    }

    #[test]
    fn a_spec_that_is_not_valid_is_not_accepted() {
        let mut network = network("net");
        let odd = serde_json::json!({"matchExpressions": [{"key": "zone", "operator": "Near"}]});
        network.spec.node_selector = serde_json::from_value(odd).ok();
        let status = build_status(&network, &there(&[]), &[], &[], Timestamp::UNIX_EPOCH);
        let accepted = conditions::find(&status.conditions, types::ACCEPTED).unwrap();
        assert_eq!(accepted.status, "False");
        assert!(
            accepted.message.contains("spec.nodeSelector"),
            "{}",
            accepted.message
        );
        assert_eq!(notes(&HybridNetworkStatus::default(), &status).len(), 2);
        assert_eq!(notes(&status, &status), []);
    }

    #[test]
    fn a_network_stays_while_nics_are_attached_to_it() {
        let mut network = network("net");
        network.metadata.deletion_timestamp = network.metadata.creation_timestamp.clone();
        let names: Vec<_> = (0..5).map(|n| format!("ns/eth{n}")).collect();
        let status = build_status(
            &network,
            &there(&[with_vfs("n1", 7, 5, "")]),
            &[],
            &names,
            Timestamp::UNIX_EPOCH,
        );
        let ready = conditions::find(&status.conditions, types::READY).unwrap();
        assert_eq!(
            (ready.reason.as_str(), ready.message.as_str()),
            (
                reasons::NETWORK_IN_USE,
                "5 NICs are attached to it, and it is deleted when they have left: ns/eth0, ns/eth1, ns/eth2 and 2 more"
            )
        );
        assert!(notes(&HybridNetworkStatus::default(), &status)[1].warning);
    }

    #[test]
    fn nodes_that_are_away_are_not_counted() {
        let of = |nodes: Nodes| {
            let status = build_status(&network("net"), &nodes, &[], &[], Timestamp::UNIX_EPOCH);
            let ready = conditions::find(&status.conditions, types::READY).unwrap();
            (
                status.vfs.total,
                status.nodes,
                ready.reason.clone(),
                ready.message.clone(),
            )
        };
        let not_ready = vec![with_vfs("n8", 7, 0, ""), with_vfs("n9", 7, 7, "")];
        let without_agent = vec![with_vfs("n6", 7, 0, "")];
        let nodes = Nodes {
            there: vec![with_vfs("n1", 7, 0, "")],
            not_ready: not_ready.clone(),
            without_agent: without_agent.clone(),
        };
        let (total, nodes, reason, message) = of(nodes);
        assert_eq!((total, nodes, reason.as_str()), (7, 1, reasons::POOL_READY));
        assert_eq!(
            message,
            "7 VFs on 1 node; 2 nodes that are not ready are not counted: n8, n9; \
             1 node whose agent is away is not counted: n6"
        );
        let (total, _, reason, message) = of(Nodes {
            without_agent,
            ..Nodes::default()
        });
        assert_eq!((total, reason.as_str()), (0, reasons::NODES_AWAY));
        assert_eq!(
            message,
            "none of its nodes can take a NIC now; 1 node whose agent is away is not counted: n6"
        );
        // A node that the network does not select is not part of it, no matter in which list.
        let mut left = not_ready;
        for node in &mut left {
            node.spec.pools.clear();
        }
        let (_, _, reason, _) = of(Nodes {
            not_ready: left,
            ..Nodes::default()
        });
        assert_eq!(reason, reasons::POOL_EMPTY);
    }
}
