//! A migration of KubeVirt's, in the words of ours. Pure.

use hybridnic_api::conditions::{self, NewCondition, reasons, types};
use hybridnic_api::foreign::kubevirt::{
    VirtualMachineInstanceMigration as Migration, VirtualMachineInstanceMigrationSpec,
};
use hybridnic_api::v1alpha1::{
    MigrationEnd, MigrationPhase, MigrationPhaseTime, NicMigration, ObjectRef, QemuMigration,
    QemuMigrationSpec, QemuMigrationStatus, VmHybridNic,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::{ResourceExt as _, api::ObjectMeta};

use super::{progress::Shown, target::name_prefix};

/// Label of a node by which it is chosen.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// Whether a VM is KubeVirt's: a NIC says so, and no NIC contradicts that.
pub fn is_kubevirts(vm: &str, nics: &[VmHybridNic]) -> bool {
    let is = |nic: &VmHybridNic| {
        nic.spec
            .vm
            .kubevirt
            .as_ref()
            .is_some_and(|other| other.name == vm)
    };
    let is_other = |nic: &VmHybridNic| nic.spec.vm.qemu.as_ref().is_some_and(|other| other.name == vm);
    nics.iter().any(is) && !nics.iter().any(is_other)
}

/// The object that asks KubeVirt to move a VM, to the node `to` if one is named.
pub fn wanted(vm: &str, to: Option<&str>) -> Migration {
    let spec = VirtualMachineInstanceMigrationSpec {
        vmi_name: vm.to_owned(),
        added_node_selector: to
            .map(|node| (HOSTNAME.to_owned(), node.to_owned()))
            .into_iter()
            .collect(),
        ..VirtualMachineInstanceMigrationSpec::default()
    };
    Migration {
        metadata: ObjectMeta {
            generate_name: Some(name_prefix(vm)),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    }
}

/// The NICs of a VM of KubeVirt, by name.
pub fn names(vm: &str, nics: &[VmHybridNic]) -> Vec<String> {
    let of_vm = nics
        .iter()
        .filter(|nic| is_kubevirts(vm, std::slice::from_ref(nic)));
    of_vm.map(kube::ResourceExt::name_any).collect()
}

/// What is shown of it: the same as of one of ours, with the VM's NICs, and KubeVirt's own name of the phase. KubeVirt names the nodes late, and
/// one of the NICs, `nic`, from the start.
pub fn shown(migration: &Migration, nics: &[String], nic: Option<&VmHybridNic>) -> Shown {
    let phase = migration.status.as_ref().map_or("", |status| &status.phase);
    let last = nic.and_then(|nic| nic.status.as_ref()?.last_migration.as_ref());
    let way = last.filter(|last| last.name == migration.name_any());
    Shown {
        migration: as_ours(migration, nics, way),
        phase: if phase.is_empty() { "Pending" } else { phase }.to_owned(),
    }
}

/// Whether KubeVirt has named the nodes that the VM goes from and to.
pub fn names_nodes(migration: &Migration) -> bool {
    let state = migration
        .status
        .as_ref()
        .and_then(|status| status.migration_state.as_ref());
    state.is_some_and(|state| !state.source_node.is_empty() && !state.target_node.is_empty())
}

fn as_ours(migration: &Migration, nics: &[String], way: Option<&NicMigration>) -> QemuMigration {
    let status = migration.status.clone().unwrap_or_default();
    let state = status.migration_state.clone().unwrap_or_default();
    let end = |node: &str, pod: &str, ours: Option<&String>| {
        let node = Some(node).filter(|node| !node.is_empty());
        node.or_else(|| ours.map(String::as_str))
            .map(|node| MigrationEnd {
                node_name: node.to_owned(),
                pod: ObjectRef {
                    name: pod.to_owned(),
                    uid: String::new(),
                },
                pod_ip: None,
            })
    };
    let steps = &status.phase_transition_timestamps;
    let at = |n: usize| steps.get(n).map(|step| step.phase_transition_timestamp.0);
    let ms = |from: Timestamp, to: Timestamp| i64::try_from(to.duration_since(from).as_millis()).ok();
    // Its last phases are no parts of it.
    let parts = steps
        .iter()
        .enumerate()
        .filter(|(_, step)| !is_final(&step.phase));
    let phases = parts.map(|(n, step)| {
        let started = step.phase_transition_timestamp.0;
        MigrationPhaseTime {
            name: step.phase.clone(),
            started_at: MicroTime(started),
            ms: at(n + 1).and_then(|next| ms(started, next)),
        }
    });
    let phases = phases.collect();
    let over = is_final(&status.phase);
    let started = migration.creation_timestamp().map(|time| time.0);
    let total_ms = started
        .zip(at(steps.len().wrapping_sub(1)).filter(|_| over))
        .and_then(|(from, to)| ms(from, to));
    let mut conditions = Vec::new();
    let condition = condition(&status.phase, &state.failure_reason);
    conditions::set(&mut conditions, None, Timestamp::UNIX_EPOCH, condition);
    QemuMigration {
        metadata: migration.metadata.clone(),
        spec: QemuMigrationSpec {
            vm: migration.spec.vmi_name.clone(),
            target_pod: None,
            decision: None,
        },
        status: Some(QemuMigrationStatus {
            phase: phase(&status.phase),
            source: end(&state.source_node, &state.source_pod, way.map(|way| &way.from)),
            target: end(&state.target_node, &state.target_pod, way.map(|way| &way.to)),
            phases,
            total_ms,
            conditions,
            nics: nics.to_vec(),
            ..QemuMigrationStatus::default()
        }),
    }
}

fn is_final(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

fn phase(theirs: &str) -> MigrationPhase {
    match theirs {
        "Scheduling" => MigrationPhase::PreparingTarget,
        "Scheduled" | "PreparingTarget" | "TargetReady" => MigrationPhase::SwitchingToStandby,
        "Running" => MigrationPhase::Transferring,
        "Succeeded" => MigrationPhase::Succeeded,
        "Failed" => MigrationPhase::Failed,
        _ => MigrationPhase::Pending,
    }
}

fn condition(phase: &str, why: &str) -> NewCondition {
    let message = match phase {
        "" | "Pending" => "KubeVirt makes the pod that the VM goes to",
        "Scheduling" => "the pod at the target starts, once the VM is on its standbys",
        "Scheduled" | "PreparingTarget" | "TargetReady" => {
            "the VM is on its standbys, and the target gets ready"
        }
        "Running" => "QEMU sends the VM",
        "Succeeded" => "the VM runs at its target",
        "Failed" if !why.is_empty() => why,
        "Failed" => "KubeVirt does not say why: kubectl describe vmim",
        other => other,
    };
    match phase {
        "Succeeded" => NewCondition::yes(types::SUCCEEDED, reasons::COMPLETED, message),
        "Failed" => NewCondition::no(types::SUCCEEDED, reasons::TRANSFER_FAILED, message),
        _ => NewCondition::unknown(types::SUCCEEDED, reasons::MIGRATING, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn migration(phase: &str, more: Value) -> Migration {
        let mut migration = json!({
            "metadata": {"name": "web-x", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"vmiName": "web"},
            "status": {"phase": phase},
        });
        if let (Some(status), Value::Object(more)) = (migration["status"].as_object_mut(), more) {
            status.extend(more);
        }
        from_value(migration).unwrap()
    }

    #[test]
    fn a_vm_is_kubevirts_by_the_word_of_its_nics() {
        let nic = |vm: Value| -> VmHybridNic {
            from_value(json!({"metadata": {"name": "a"}, "spec": {"network": "fast", "vm": vm}})).unwrap()
        };
        let (theirs, ours) = (
            nic(json!({"kubevirt": {"name": "web"}})),
            nic(json!({"qemu": {"name": "web"}})),
        );
        assert!(is_kubevirts("web", std::slice::from_ref(&theirs)));
        assert!(!is_kubevirts("db", std::slice::from_ref(&theirs)));
        assert_eq!(names("web", &[theirs.clone(), ours.clone()]), ["a"]);
        assert!(!is_kubevirts("web", &[theirs, ours]));
        assert!(!is_kubevirts("web", &[]));
    }

    #[test]
    fn it_is_asked_for_by_the_vm_and_the_node() {
        let made = serde_json::to_value(wanted("web", Some("n2"))).unwrap();
        assert_eq!(
            made["spec"],
            json!({"vmiName": "web", "addedNodeSelector": {"kubernetes.io/hostname": "n2"}})
        );
        assert_eq!(made["metadata"]["generateName"], "web-");
        assert_eq!(
            serde_json::to_value(wanted("web", None)).unwrap()["spec"],
            json!({"vmiName": "web"})
        );
    }

    #[test]
    fn one_that_goes_on_and_one_that_has_ended_are_shown_as_ours() {
        let steps = json!([
            {"phase": "Pending", "phaseTransitionTimestamp": "2026-01-01T00:00:00Z"},
            {"phase": "Running", "phaseTransitionTimestamp": "2026-01-01T00:00:02Z"},
        ]);
        let ends = json!({"sourceNode": "n1", "sourcePod": "a", "targetNode": "n2", "targetPod": "b"});
        let goes = migration(
            "Running",
            json!({"phaseTransitionTimestamps": steps, "migrationState": ends}),
        );
        let status = as_ours(&goes, &["web-fast".to_owned()], None).status.unwrap();
        assert_eq!(status.phase, MigrationPhase::Transferring);
        assert_eq!(status.nics, ["web-fast"]);
        assert_eq!(status.target.unwrap().node_name, "n2");
        assert_eq!(status.phases[0].ms, Some(2000));
        assert_eq!(status.phases[1].ms, None);
        assert_eq!(status.total_ms, None);
        let steps = json!([
            {"phase": "Running", "phaseTransitionTimestamp": "2026-01-01T00:00:02Z"},
            {"phase": "Failed", "phaseTransitionTimestamp": "2026-01-01T00:00:03Z"},
        ]);
        let failed = migration(
            "Failed",
            json!({"phaseTransitionTimestamps": steps, "migrationState": {"failureReason": "no way"}}),
        );
        let status = as_ours(&failed, &[], None).status.unwrap();
        assert_eq!(
            (status.phase, status.total_ms),
            (MigrationPhase::Failed, Some(3000))
        );
        assert_eq!(status.phases.len(), 1);
        assert_eq!(status.conditions[0].message, "no way");
    }

    #[test]
    fn its_nodes_are_known_from_the_nic_before_kubevirt_names_them() {
        let nic = |name: &str| -> VmHybridNic {
            let last = json!({"name": name, "from": "n1", "to": "n2"});
            from_value(json!({
                "metadata": {"name": "web-fast"}, "spec": {"network": "fast", "vm": {"kubevirt": {"name": "web"}}},
                "status": {"lastMigration": last},
            }))
            .unwrap()
        };
        let way = |more: Value, nic: Option<&VmHybridNic>| {
            let shown = shown(&migration("Running", more), &[], nic)
                .migration
                .status
                .unwrap();
            shown
                .source
                .zip(shown.target)
                .map(|(source, target)| (source.node_name, target.node_name))
        };
        let is = |from: &str, to: &str| Some((from.to_owned(), to.to_owned()));
        assert_eq!(way(json!({}), None), None);
        assert_eq!(way(json!({}), Some(&nic("web-x"))), is("n1", "n2"));
        assert_eq!(way(json!({}), Some(&nic("another"))), None, "an earlier one's");
        let theirs = json!({"migrationState": {"sourceNode": "n3", "targetNode": "n4"}});
        assert!(names_nodes(&migration("Running", theirs.clone())));
        assert!(!names_nodes(&migration(
            "Running",
            json!({"migrationState": {"sourceNode": "n3"}})
        )));
        assert_eq!(way(theirs, Some(&nic("web-x"))), is("n3", "n4"));
    }

    #[test]
    fn its_phase_has_kubevirts_own_name() {
        for (phase, ours) in [
            ("Scheduling", MigrationPhase::PreparingTarget),
            ("Scheduled", MigrationPhase::SwitchingToStandby),
            ("PreparingTarget", MigrationPhase::SwitchingToStandby),
            ("TargetReady", MigrationPhase::SwitchingToStandby),
            ("Running", MigrationPhase::Transferring),
            ("Succeeded", MigrationPhase::Succeeded),
        ] {
            let shown = shown(&migration(phase, json!({})), &[], None);
            assert_eq!(shown.phase, phase);
            assert_eq!(shown.migration.status.unwrap().phase, ours);
        }
        let new = from_value(json!({"metadata": {"name": "m"}, "spec": {"vmiName": "web"}})).unwrap();
        let new = shown(&new, &[], None);
        assert_eq!(new.phase, "Pending");
        assert_eq!(new.migration.status.unwrap().phase, MigrationPhase::Pending);
    }
}
