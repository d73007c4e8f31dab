//! KubeVirt's migrations that a NIC holds up: which NIC, why, and how to end them.

use hybridnic_api::{
    conditions::{self, reasons, types},
    foreign::kubevirt::{MIGRATION_LABEL, VirtualMachineInstanceMigration as Migration},
    v1alpha1::NicAttachment,
};
use jiff::SignedDuration;
use kube::ResourceExt as _;

use super::{super::remedy::remedy, name, nics};
use crate::doctor::{finding::Finding, observed::Observed};

/// One that has just begun is held by nothing.
const YOUNG: SignedDuration = SignedDuration::from_mins(1);

/// No migration of a VM with hybrid NICs waits for something that does not come by itself.
pub fn migrations(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "kubevirt-migrations";
    let migrations = match &observed.kubevirt.migrations {
        Ok(migrations) => migrations.iter().flatten(),
        Err(why) => return vec![Finding::unseen(CHECK, why)],
    };
    let mut findings = Vec::new();
    for migration in migrations.filter(|migration| !is_over(migration) && is_of_ours(observed, migration)) {
        if migration.spec.send_to.is_some() || migration.spec.receive.is_some() {
            let message = format!(
                "{}: its VM has hybrid NICs, and cannot migrate to or from another cluster",
                name(migration)
            );
            findings.push(Finding::fail(CHECK, message, end(migration)));
            continue;
        }
        let begun = migration.creation_timestamp();
        let age = begun.map(|begun| observed.now.duration_since(begun.0));
        if age.is_some_and(|age| age < YOUNG) {
            continue;
        }
        for attachment in observed.attachments.iter().flatten() {
            let Some(condition) = holds(attachment, migration) else {
                continue;
            };
            let message = format!(
                "{}: it waits in {} for {}/{} on {}, {}: {}",
                name(migration),
                phase(migration),
                attachment.namespace().unwrap_or_default(),
                attachment.spec.nic.name,
                attachment.spec.node_name,
                condition.reason,
                condition.message
            );
            let fix = format!("{}; {}", remedy(&condition.reason), end(migration));
            findings.push(Finding::warn(CHECK, message, fix));
        }
    }
    findings
}

fn phase(migration: &Migration) -> &str {
    let phase = migration.status.as_ref().map_or("", |status| &status.phase);
    if phase.is_empty() { "Pending" } else { phase }
}

fn is_over(migration: &Migration) -> bool {
    matches!(phase(migration), "Succeeded" | "Failed")
}

fn is_of_ours(observed: &Observed, migration: &Migration) -> bool {
    nics(observed).any(|nic| {
        let vm = nic.spec.vm.kubevirt.as_ref();
        vm.is_some_and(|vm| vm.name == migration.spec.vmi_name) && nic.namespace() == migration.namespace()
    })
}

/// What keeps a NIC at one of the ends from being as the migration needs it; without what passes by itself.
fn holds<'a>(
    attachment: &'a NicAttachment,
    migration: &Migration,
) -> Option<&'a k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
    let order = attachment.spec.migration.as_ref()?;
    let passes = [
        reasons::PROGRESSING,
        reasons::AGENT_PENDING,
        reasons::MIGRATING,
        reasons::VM_INCOMING,
        reasons::WAITING_FOR_RUNTIME,
    ];
    let status = attachment.status.as_ref()?;
    conditions::find(&status.conditions, types::READY)
        .filter(|_| Some(&order.migration.uid) == migration.metadata.uid.as_ref())
        .filter(|condition| condition.status != "True" && !passes.contains(&condition.reason.as_str()))
}

/// How to end it: KubeVirt reacts to a deletion only in the first phases.
fn end(migration: &Migration) -> String {
    let namespace = migration.namespace().unwrap_or_default();
    if matches!(phase(migration), "Pending" | "Scheduling") {
        return format!(
            "to end it: kubectl -n {namespace} delete vmim {}",
            migration.name_any()
        );
    }
    let state = migration
        .status
        .as_ref()
        .and_then(|status| status.migration_state.as_ref());
    match state.map(|state| state.target_pod.as_str()) {
        Some(pod) if !pod.is_empty() => {
            format!(
                "KubeVirt does not end it by its object any more: kubectl -n {namespace} delete pod {pod}"
            )
        }
        _ => format!(
            "KubeVirt does not end it by its object any more: kubectl -n {namespace} delete pod -l {MIGRATION_LABEL}={}",
            migration.uid().unwrap_or_default()
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;
    use crate::doctor::{
        finding::Level,
        testing::{levels, unanswered, with_kubevirt},
    };

    fn migration(phase: &str, spec: &Value) -> Migration {
        from_value(json!({
            "metadata": {
                "name": "m", "namespace": "shop", "uid": "m-uid", "creationTimestamp": "2026-01-01T11:00:00Z",
            },
            "spec": spec,
            "status": {"phase": phase},
        }))
        .unwrap()
    }

    fn attachment(reason: &str) -> NicAttachment {
        from_value(json!({
            "metadata": {"name": "a", "namespace": "shop"},
            "spec": {
                "nic": {"name": "db-fast", "uid": "u"}, "vm": {"kubevirt": {"name": "db"}}, "nodeName": "n1",
                "pod": {"name": "p", "uid": "pu"}, "mac": "02:00:00:00:00:01", "network": "fast",
                "placement": {"interface": "fast"}, "goal": "Standby", "noFreeVf": "Standby", "l2": {"spoofCheck": true, "trust": false},
                "migration": {
                    "migration": {"name": "m", "uid": "m-uid"}, "step": "Watch", "nics": ["db-fast"],
                },
            },
            "status": {"conditions": [{
                "type": "Ready", "status": "False", "reason": reason, "message": "so it is",
                "lastTransitionTime": "2026-01-01T11:00:00Z",
            }]},
        }))
        .unwrap()
    }

    #[test]
    fn a_migration_that_a_nic_holds_says_which_and_why_and_how_to_end_it() {
        let mut observed = with_kubevirt();
        let spec = json!({"vmiName": "db"});
        let with = |observed: &mut Observed, phase: &str, reason: &str| {
            observed.kubevirt.migrations = Ok(Some(vec![migration(phase, &spec)]));
            observed.attachments = Ok(vec![attachment(reason)]);
            migrations(observed)
        };
        assert_eq!(migrations(&observed), []);
        let findings = with(&mut observed, "Scheduling", "GuestKeepsVf");
        assert_eq!(levels(&findings), [Level::Warn]);
        assert_eq!(
            findings[0].message,
            "shop/m: it waits in Scheduling for shop/db-fast on n1, GuestKeepsVf: so it is"
        );
        let fix = findings[0].fix.as_deref().unwrap();
        assert!(
            fix.contains("acpiphp") && fix.ends_with("to end it: kubectl -n shop delete vmim m"),
            "{fix}"
        );
        // Later it is no longer ended by its object.
        let findings = with(&mut observed, "TargetReady", "GuestKeepsVf");
        let fix = findings[0].fix.as_deref().unwrap();
        assert!(
            fix.ends_with("delete pod -l kubevirt.io/migrationJobUID=m-uid"),
            "{fix}"
        );
        assert_eq!(with(&mut observed, "Scheduling", "Progressing"), [], "it passes");
        assert_eq!(with(&mut observed, "Failed", "GuestKeepsVf"), [], "it is over");
        let mut other = attachment("GuestKeepsVf");
        other.spec.migration.as_mut().unwrap().migration.uid = "other".to_owned();
        with(&mut observed, "Scheduling", "GuestKeepsVf");
        observed.attachments = Ok(vec![other]);
        assert_eq!(migrations(&observed), [], "it is of another migration");
    }

    #[test]
    fn one_that_has_just_begun_is_held_by_nothing() {
        let mut observed = with_kubevirt();
        let mut young = migration("Scheduling", &json!({"vmiName": "db"}));
        young.metadata.creation_timestamp = from_value(json!("2026-01-01T11:59:30Z")).unwrap();
        observed.kubevirt.migrations = Ok(Some(vec![young]));
        observed.attachments = Ok(vec![attachment("GuestKeepsVf")]);
        assert_eq!(migrations(&observed), []);
    }

    #[test]
    fn one_to_another_cluster_is_wrong_for_our_vms_only() {
        let mut observed = with_kubevirt();
        for (vm, expected) in [("db", vec![Level::Fail]), ("other", vec![])] {
            let spec = json!({"vmiName": vm, "sendTo": {"migrationID": "x"}});
            observed.kubevirt.migrations = Ok(Some(vec![migration("Pending", &spec)]));
            assert_eq!(levels(&migrations(&observed)), expected, "{vm}");
        }
        observed.kubevirt.migrations = Err(unanswered());
        assert_eq!(levels(&migrations(&observed)), [Level::Warn]);
        observed.kubevirt.migrations = Ok(None);
        assert_eq!(migrations(&observed), []);
    }
}
