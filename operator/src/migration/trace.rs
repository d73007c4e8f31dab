//! A migration as a trace: all of it and its phases, from what its status says at the end. Pure.
//!
//! The agents add the steps that they have taken. A migration's trace is sent by the leader at its end, no matter how many
//! operators have driven it.

use std::time::{Duration, SystemTime};

use hybridnic_api::v1alpha1::{MigrationEnd, QemuMigration, QemuMigrationStatus};
use hybridnic_process::traces::{Span, Traces};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::ResourceExt;

/// Tells the collector of a migration that has ended between two statuses.
pub fn tell(
    traces: &Traces,
    migration: &QemuMigration,
    old: &QemuMigrationStatus,
    new: &QemuMigrationStatus,
) {
    if !traces.are_on() || old.phase.is_final() || !new.phase.is_final() {
        return;
    }
    let Some(uid) = migration.uid() else { return };
    if let Some(whole) = whole(migration, new) {
        traces.whole(&uid, whole);
    }
    for phase in phases(new) {
        traces.part(&uid, phase);
    }
}

/// The whole migration; none that ended before it began.
fn whole(migration: &QemuMigration, status: &QemuMigrationStatus) -> Option<Span> {
    let node = |end: &Option<MigrationEnd>| end.as_ref().map(|end| end.node_name.clone());
    let number = |n: Option<i64>| n.map(|n| n.to_string());
    let attributes = [
        ("k8s.namespace.name", migration.namespace()),
        ("hybridnic.migration", Some(migration.name_any())),
        ("hybridnic.vm", Some(migration.spec.vm.clone())),
        ("hybridnic.nics", Some(status.nics.join(","))),
        ("hybridnic.source", node(&status.source)),
        ("hybridnic.target", node(&status.target)),
        ("hybridnic.result", Some(status.phase.to_string())),
        ("hybridnic.downtime_ms", number(status.downtime_ms)),
    ];
    let failure = status.failure.as_ref();
    Some(Span {
        name: "migration".into(),
        from: time(status.started_at.as_ref()?),
        to: time(status.finished_at.as_ref()?),
        attributes: attributes
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)))
            .collect(),
        error: failure.map(|failure| format!("{}: {}", failure.reason, failure.message)),
    })
}

fn phases(status: &QemuMigrationStatus) -> impl Iterator<Item = Span> {
    status.phases.iter().filter_map(|phase| {
        let from = time(&phase.started_at);
        Some(Span {
            name: phase.name.clone().into(),
            from,
            to: from + Duration::from_millis(phase.ms?.try_into().ok()?),
            attributes: Vec::new(),
            error: None,
        })
    })
}

fn time(at: &MicroTime) -> SystemTime {
    at.0.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hybridnic_api::v1alpha1::QemuMigrationSpec;

    #[test]
    fn a_trace_is_as_long_as_the_migration_and_has_its_phases() {
        let mut migration = QemuMigration::new(
            "m",
            QemuMigrationSpec {
                vm: "web".into(),
                target_pod: None,
                decision: None,
            },
        );
        migration.metadata.namespace = Some("shop".into());
        let status: QemuMigrationStatus = serde_json::from_value(serde_json::json!({
            "phase": "Failed",
            "startedAt": "2026-01-01T10:00:00.000000Z",
            "finishedAt": "2026-01-01T10:00:03.250000Z",
            "nics": ["eth0", "eth1"],
            "failure": {"reason": "TargetLost", "message": "the target has gone"},
            "phases": [
                {"name": "PreparingTarget", "startedAt": "2026-01-01T10:00:00.000000Z", "ms": 2250},
                {"name": "SwitchingToStandby", "startedAt": "2026-01-01T10:00:02.250000Z", "ms": 1000},
                {"name": "RollingBack", "startedAt": "2026-01-01T10:00:03.250000Z"},
            ],
        }))
        .unwrap();
        let whole = whole(&migration, &status).unwrap();
        assert_eq!(whole.to.duration_since(whole.from).unwrap().as_millis(), 3250);
        assert_eq!(whole.error.as_deref(), Some("TargetLost: the target has gone"));
        assert!(
            whole
                .attributes
                .contains(&("hybridnic.nics", "eth0,eth1".to_owned()))
        );
        let phases: Vec<_> = phases(&status)
            .map(|span| {
                (
                    span.name.to_string(),
                    span.to.duration_since(span.from).unwrap().as_millis(),
                )
            })
            .collect();
        assert_eq!(
            phases,
            [
                ("PreparingTarget".to_owned(), 2250),
                ("SwitchingToStandby".to_owned(), 1000)
            ],
            "one that has no end is no span"
        );
    }
}
