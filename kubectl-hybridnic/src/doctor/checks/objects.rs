//! What objects say about themselves, in their conditions: nodes, networks, NICs, migrations.

use hybridnic_api::{
    conditions::{self, reasons, types},
    v1alpha1::NicPhase,
};
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;

use super::remedy::remedy;
use crate::{
    doctor::{finding::Finding, observed::Observed},
    time,
};

/// A NIC that is on its way is reported only after this time.
const LONG: SignedDuration = SignedDuration::from_mins(5);
/// NICs that are told one by one.
const MOST: usize = 10;

/// Nothing is wrong with a node, as far as its agent knows. The checks of hardware report nodes without cards,
/// or without IOMMU.
pub fn nodes(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "nodes";
    let told = [reasons::NO_UPLINK, reasons::NO_IOMMU];
    let mut findings = Vec::new();
    for node in observed.hybrid_nodes.iter().flatten() {
        let list = node.status.iter().flat_map(|status| &status.conditions);
        for condition in list.filter(|condition| is_trouble(condition)) {
            let (type_, reason) = (condition.type_.as_str(), condition.reason.as_str());
            if type_ == types::DEGRADED {
                let message = format!("{}: {type_}, {reason}: {}", node.name_any(), condition.message);
                findings.push(Finding::fail(CHECK, message, remedy(reason)));
            } else if type_ == types::DRAINED {
                // An administrator has asked for it, and may wait for it.
                let message = format!("{}: {type_}, {reason}: {}", node.name_any(), condition.message);
                findings.push(Finding::warn(CHECK, message, remedy(reason)));
            } else if !told.contains(&reason) {
                findings.push(fail(CHECK, &node.name_any(), condition));
            }
        }
    }
    cut(
        CHECK,
        &mut findings,
        "more",
        "kubectl get hnode -o yaml shows all",
    );
    findings
}

/// Whether a condition says that something is not as it should be.
fn is_trouble(condition: &Condition) -> bool {
    if condition.type_ == types::DEGRADED {
        condition.status != "False"
    } else {
        condition.status != "True"
    }
}

/// Keeps the worst, and says how many others there are.
fn cut(check: &'static str, findings: &mut Vec<Finding>, more: &str, all: &str) {
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    if findings.len() > MOST {
        let level = findings[MOST].level;
        let rest = findings.split_off(MOST).len();
        findings.push(Finding {
            level,
            ..Finding::warn(check, format!("{rest} {more}"), all)
        });
    }
}

/// Networks are accepted and have VFs.
pub fn networks(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "networks";
    let networks = match &observed.networks {
        Ok(networks) => networks,
        Err(why) => return vec![Finding::unseen(CHECK, why)],
    };
    if networks.is_empty() {
        return vec![Finding::warn(
            CHECK,
            "there is none",
            "create one: deploy/examples/network.yaml",
        )];
    }
    let mut findings = Vec::new();
    for network in networks {
        let list = network
            .status
            .as_ref()
            .map(|status| status.conditions.as_slice())
            .unwrap_or_default();
        let name = network.name_any();
        if list.is_empty() {
            let message = format!("{name}: the operator has not looked at it");
            findings.push(Finding::warn(CHECK, message, "does the operator run and lead?"));
        }
        let troubles = list.iter().filter(|condition| is_trouble(condition));
        findings.extend(troubles.map(|condition| fail(CHECK, &name, condition)));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("{} ready", networks.len())));
    }
    findings
}

fn fail(check: &'static str, name: &str, condition: &Condition) -> Finding {
    Finding::fail(check, sentence(name, condition), remedy(&condition.reason))
}

fn sentence(name: &str, condition: &Condition) -> String {
    format!(
        "{name}: not {}, {}: {}",
        condition.type_, condition.reason, condition.message
    )
}

/// NICs are where they should be, or on their way; their traffic is on its VF, and their standby takes what the VF takes.
pub fn nics(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "nics";
    let nics = match &observed.nics {
        Ok(nics) => nics,
        Err(why) => return vec![Finding::unseen(CHECK, why)],
    };
    let mut findings = Vec::new();
    let (mut on_their_way, mut told) = (0, 0);
    for nic in nics {
        let status = nic.status.clone().unwrap_or_default();
        let name = format!("{}/{}", nic.namespace().unwrap_or_default(), nic.name_any());
        let refused = conditions::find(&status.conditions, types::ACCEPTED).filter(|c| c.status == "False");
        let troubles = |type_| conditions::find(&status.conditions, type_).filter(|c| is_trouble(c));
        let waits = troubles(types::READY);
        // Of a NIC that is attached.
        let is_asked = |c: &&Condition| c.reason == reasons::STANDBY_REQUESTED;
        told += usize::from(troubles(types::FAST_PATH).is_some_and(|c| is_asked(&c)));
        let slow = troubles(types::FAST_PATH)
            .filter(|c| !is_asked(c))
            .or_else(|| troubles(types::STANDBY_FILTER));
        // What does not pass by itself is reported at once.
        let needs_someone = |condition: &&Condition| {
            let stuck = [reasons::NODE_UNREACHABLE, reasons::DETACH_STUCK];
            status.phase == NicPhase::Failed || stuck.contains(&condition.reason.as_str())
        };
        if let Some(condition) = refused.or(waits).filter(needs_someone) {
            findings.push(fail(CHECK, &name, condition));
        } else if let Some(condition) = refused.or(waits).or(slow) {
            let since = condition.last_transition_time.0;
            if observed.now.duration_since(since) < LONG {
                on_their_way += 1;
                continue;
            }
            let message = format!(
                "{} (for {})",
                sentence(&name, condition),
                time::age(since, observed.now)
            );
            findings.push(Finding::warn(CHECK, message, remedy(&condition.reason)));
        } else if status.conditions.is_empty() {
            let young = nic
                .metadata
                .creation_timestamp
                .as_ref()
                .is_some_and(|at| observed.now.duration_since(at.0) < LONG);
            if young {
                on_their_way += 1;
            } else {
                let message = format!("{name}: the operator has not looked at it");
                findings.push(Finding::warn(CHECK, message, "does the operator run and lead?"));
            }
        }
    }
    let well = nics.len() - findings.len() - on_their_way;
    cut(
        CHECK,
        &mut findings,
        "more are not as they should be",
        "kubectl hybridnic top -A shows all",
    );
    if well > 0 || on_their_way > 0 || nics.is_empty() {
        let told = match told {
            0 => String::new(),
            told => format!(", {told} told to stay on their standby"),
        };
        let message = format!("{well} ready, {on_their_way} on their way{told}");
        findings.insert(0, Finding::ok(CHECK, message));
    }
    findings
}

/// No VM is paused because nothing proves where it may run, and no VM that should be encrypted is sent in plain. Its
/// user watches any other migration.
pub fn migrations(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "migrations";
    let migrations = match &observed.migrations {
        Ok(migrations) => migrations,
        Err(why) => return vec![Finding::unseen(CHECK, why)],
    };
    let found = migrations.iter().filter_map(|migration| {
        let status = migration
            .status
            .as_ref()
            .filter(|status| !status.phase.is_final())?;
        let name = format!(
            "{}/{}",
            migration.namespace().unwrap_or_default(),
            migration.name_any()
        );
        let condition = |type_| conditions::find(&status.conditions, type_);
        let undecided = |condition: &&Condition| conditions::is_undecided(&condition.reason);
        condition(types::SUCCEEDED)
            .filter(undecided)
            .or_else(|| condition(types::ENCRYPTED).filter(|condition| is_trouble(condition)))
            .map(|condition| fail(CHECK, &name, condition))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use hybridnic_api::v1alpha1::VmHybridNic;
    use serde_json::{from_value, json};

    use super::*;
    use crate::doctor::{
        finding::Level,
        testing::{healthy, levels},
    };

    fn nic(phase: &str, type_: &str, reason: &str, at: &str) -> VmHybridNic {
        from_value(json!({
            "metadata": {"name": "eth1", "namespace": "shop"},
            "spec": {"network": "fast", "vm": {"qemu": {"name": "web"}}},
            "status": {
                "phase": phase,
                "conditions": [{
                    "type": type_, "status": "False", "reason": reason, "message": "so it is", "lastTransitionTime": at,
                }],
            },
        }))
        .unwrap()
    }

    #[test]
    fn networks_that_are_not_ready_say_why() {
        let mut observed = healthy();
        assert_eq!(networks(&observed), [Finding::ok("networks", "1 ready")]);
        let status = observed.networks.as_mut().unwrap()[0].status.as_mut().unwrap();
        (status.conditions[0].status, status.conditions[0].reason) =
            ("False".to_owned(), "PoolEmpty".to_owned());
        let findings = networks(&observed);
        assert_eq!(levels(&findings), [Level::Fail]);
        assert!(
            findings[0].message.starts_with("fast: not Ready, PoolEmpty: "),
            "{findings:?}"
        );
        assert_eq!(findings[0].fix.as_deref(), Some(remedy("PoolEmpty").as_str()));
        observed.networks.as_mut().unwrap()[0].status = None;
        assert_eq!(levels(&networks(&observed)), [Level::Warn]);
        observed.networks = Ok(Vec::new());
        assert_eq!(levels(&networks(&observed)), [Level::Warn]);
    }

    #[test]
    fn nics_may_be_on_their_way_for_a_while() {
        let mut observed = healthy();
        assert_eq!(nics(&observed), [Finding::ok("nics", "1 ready, 0 on their way")]);
        let list = observed.nics.as_mut().unwrap();
        list.push(nic("Attaching", "Ready", "Progressing", "2026-01-01T11:59:00Z"));
        assert_eq!(nics(&observed), [Finding::ok("nics", "1 ready, 1 on their way")]);
        let list = observed.nics.as_mut().unwrap();
        list.push(nic("Pending", "Ready", "PodNotFound", "2026-01-01T11:00:00Z"));
        list.push(nic("Failed", "Accepted", "MacConflict", "2026-01-01T11:59:59Z"));
        let findings = nics(&observed);
        assert_eq!(levels(&findings), [Level::Ok, Level::Fail, Level::Warn]);
        assert_eq!(
            findings[2].message,
            "shop/eth1: not Ready, PodNotFound: so it is (for 60m)"
        );
    }

    #[test]
    fn a_nic_that_waits_for_a_lost_node_is_told_at_once() {
        let mut observed = healthy();
        let list = observed.nics.as_mut().unwrap();
        list.push(nic("Pending", "Ready", "NodeUnreachable", "2026-01-01T11:59:59Z"));
        let findings = nics(&observed);
        assert_eq!(levels(&findings), [Level::Ok, Level::Fail]);
        assert_eq!(
            findings[1].message,
            "shop/eth1: not Ready, NodeUnreachable: so it is"
        );
        let fix = findings[1].fix.as_deref().unwrap();
        assert!(fix.contains("node.kubernetes.io/out-of-service"), "{fix}");
    }

    #[test]
    fn a_nic_that_is_not_on_its_vf_is_told_after_a_while() {
        let mut observed = healthy();
        for (type_, reason) in [("FastPath", "NoFreeVf"), ("StandbyFilter", "GuestVlansFiltered")] {
            observed.nics = Ok(vec![nic("Standby", type_, reason, "2026-01-01T11:59:00Z")]);
            assert_eq!(nics(&observed), [Finding::ok("nics", "0 ready, 1 on their way")]);
            observed.nics = Ok(vec![nic("Standby", type_, reason, "2026-01-01T11:00:00Z")]);
            let findings = nics(&observed);
            assert_eq!(levels(&findings), [Level::Warn]);
            let words = format!("shop/eth1: not {type_}, {reason}: so it is");
            assert!(findings[0].message.starts_with(&words), "{findings:?}");
        }
    }

    #[test]
    fn a_nic_that_is_told_to_stay_on_its_standby_is_as_it_should_be() {
        let mut observed = healthy();
        observed.nics = Ok(vec![nic(
            "Standby",
            "FastPath",
            "StandbyRequested",
            "2026-01-01T11:00:00Z",
        )]);
        let message = "1 ready, 0 on their way, 1 told to stay on their standby";
        assert_eq!(nics(&observed), [Finding::ok("nics", message)]);
    }

    #[test]
    fn what_is_amiss_on_a_node_is_told() {
        let mut observed = healthy();
        assert_eq!(nodes(&observed), []);
        let condition = |type_: &str, status: &str, reason: &str| {
            from_value(json!({
                "type": type_, "status": status, "reason": reason, "message": "so it is",
                "lastTransitionTime": "2026-01-01T11:59:59Z",
            }))
            .unwrap()
        };
        let status = observed.hybrid_nodes.as_mut().unwrap()[1]
            .status
            .as_mut()
            .unwrap();
        status.conditions = vec![
            condition("Ready", "False", "Failed"),
            condition("Degraded", "True", "JournalFailed"),
        ];
        let findings = nodes(&observed);
        assert_eq!(levels(&findings), [Level::Fail, Level::Fail]);
        assert_eq!(findings[0].message, "n2: not Ready, Failed: so it is");
        assert_eq!(findings[1].message, "n2: Degraded, JournalFailed: so it is");
        assert_eq!(findings[1].fix.as_deref(), Some(remedy("JournalFailed").as_str()));
        let status = observed.hybrid_nodes.as_mut().unwrap()[1]
            .status
            .as_mut()
            .unwrap();
        status.conditions = vec![
            condition("Ready", "False", "NoUplink"),
            condition("Degraded", "False", "AllWell"),
        ];
        assert_eq!(nodes(&observed), [], "the check of PFs says it");
    }

    #[test]
    fn many_nics_are_not_all_told() {
        let mut observed = healthy();
        observed.nics = Ok(vec![
            nic("Pending", "Ready", "PodNotFound", "2026-01-01T11:00:00Z");
            30
        ]);
        let findings = nics(&observed);
        assert_eq!(findings.len(), MOST + 1);
        assert_eq!(findings[MOST].message, "20 more are not as they should be");
    }

    #[test]
    fn a_vm_that_waits_for_a_decision_is_told_and_no_other() {
        let migration = |name: &str, phase: &str, reason: &str| {
            from_value(json!({
                "metadata": {"name": name, "namespace": "shop"},
                "spec": {"vm": "web"},
                "status": {
                    "phase": phase,
                    "conditions": [{
                        "type": "Succeeded", "status": "Unknown", "reason": reason, "message": "nobody knows",
                        "lastTransitionTime": "2026-01-01T11:00:00Z",
                    }],
                },
            }))
            .unwrap()
        };
        let mut observed = healthy();
        assert_eq!(migrations(&observed), []);
        observed.migrations = Ok(vec![
            migration("a", "Transferring", "Migrating"),
            migration("b", "Transferring", "NeedsDecision"),
            migration("c", "RollingBack", "TargetSilent"),
            migration("d", "Failed", "NeedsDecision"),
        ]);
        let findings = migrations(&observed);
        assert_eq!(levels(&findings), [Level::Fail, Level::Fail]);
        assert_eq!(
            findings[0].message,
            "shop/b: not Succeeded, NeedsDecision: nobody knows"
        );
    }
}
