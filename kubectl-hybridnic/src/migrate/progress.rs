//! How a migration goes, in a line or a few. Pure; writing to a string cannot fail.

use std::fmt::Write as _;

use hybridnic_api::{
    conditions::{self, types},
    v1alpha1::{MigrationPhase, QemuMigration, QemuMigrationStatus},
};
use jiff::Timestamp;
use kube::ResourceExt as _;

use crate::{style::Tone, time, timeline};

/// Columns beside the phases' bars.
const BESIDE_BARS: usize = 36;
/// What a migration that goes well passes through.
const STEPS: [MigrationPhase; 4] = [
    MigrationPhase::PreparingTarget,
    MigrationPhase::SwitchingToStandby,
    MigrationPhase::Transferring,
    MigrationPhase::Completing,
];

/// A migration, and its phase in the words of what runs it.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The migration, as one of ours.
    pub migration: QemuMigration,
    /// Its phase. KubeVirt's are not ours.
    pub phase: String,
}

impl From<QemuMigration> for Shown {
    fn from(migration: QemuMigration) -> Self {
        let phase = migration.status.as_ref().map(|status| status.phase);
        Self {
            phase: phase.unwrap_or_default().to_string(),
            migration,
        }
    }
}

/// One line: where it is, and why.
pub fn line(shown: &Shown) -> String {
    let status = shown.migration.status.clone().unwrap_or_default();
    let mut line = tone(status.phase).paint(&shown.phase);
    if let Some(condition) = conditions::find(&status.conditions, types::SUCCEEDED) {
        let _ = write!(line, "  {}: {}", condition.reason, condition.message);
    }
    line
}

/// The progress bar, the phases so far with their lengths, and in the end the result.
pub fn picture(shown: &Shown, now: Timestamp, width: usize) -> String {
    let migration = &shown.migration;
    let status = migration.status.clone().unwrap_or_default();
    let mut text = format!("{}  {}\n", bar(&status), line(shown));
    let ends = status.source.as_ref().zip(status.target.as_ref());
    let way = ends.map(|(source, target)| format!("  {} → {}", source.node_name, target.node_name));
    let way = way.unwrap_or_default();
    let sent = match status.encrypted {
        Some(true) => ", encrypted",
        Some(false) => ", not encrypted",
        None => "",
    };
    let _ = writeln!(
        text,
        "{}{way}, VM {}{sent}",
        migration.name_any(),
        migration.spec.vm
    );
    let columns = width.saturating_sub(BESIDE_BARS).clamp(10, 80);
    for bar in timeline::draw(&status.phases, now, columns) {
        let _ = writeln!(text, "  {bar}");
    }
    if status.phase.is_final() {
        text.push_str(&figures(&status));
    }
    text
}

/// Done steps are full. A migration that goes back, or has, is not on its way to the end.
fn bar(status: &QemuMigrationStatus) -> String {
    let done = match status.phase {
        MigrationPhase::Succeeded => STEPS.len(),
        phase => STEPS.iter().position(|step| *step == phase).unwrap_or(0),
    };
    let now = STEPS.contains(&status.phase);
    let full = "━━━━".repeat(done);
    let half = if now { "╸╸╸╸" } else { "" };
    let rest = "    ".repeat(STEPS.len() - done - usize::from(now));
    let tone = tone(status.phase);
    format!("[{}{}{rest}]", tone.paint(full), tone.paint(half))
}

fn tone(phase: MigrationPhase) -> Tone {
    match phase {
        MigrationPhase::Succeeded => Tone::Good,
        MigrationPhase::Failed | MigrationPhase::RollingBack => Tone::Bad,
        MigrationPhase::Cancelled | MigrationPhase::Pending => Tone::Warn,
        _ => Tone::Plain,
    }
}

fn figures(status: &QemuMigrationStatus) -> String {
    let total = status.total_ms.map(|ms| format!("{} in all", time::length(ms)));
    let pause = status
        .downtime_ms
        .map(|ms| format!("VM paused {}", time::length(ms)));
    let nics = format!(
        "NICs: {}",
        if status.nics.is_empty() {
            "none".to_owned()
        } else {
            status.nics.join(", ")
        }
    );
    let parts: Vec<_> = total.into_iter().chain(pause).chain([nics]).collect();
    format!("{}\n", parts.join(", "))
}

/// What is said to one who leaves before the end.
pub fn goodbye(kind: &str, name: &str, namespace: &str) -> String {
    format!(
        "the migration {name} goes on. Cancel it: kubectl delete {kind} {name} -n {namespace}; \
         see it: kubectl get {kind} {name} -n {namespace} -w"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;
    use crate::style::plain;

    fn migration(status: &Value) -> Shown {
        let migration = json!({"metadata": {"name": "web-x"}, "spec": {"vm": "web"}, "status": status});
        from_value::<QemuMigration>(migration).unwrap().into()
    }

    fn at(phase: &str, reason: &str, message: &str) -> Value {
        json!({
            "phase": phase,
            "conditions": [{
                "type": "Succeeded", "status": "Unknown", "reason": reason, "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
            "source": {"nodeName": "n1", "pod": {"name": "web-a", "uid": "a"}},
            "target": {"nodeName": "n2", "pod": {"name": "web-b", "uid": "b"}},
            "nics": ["eth0", "eth1"],
            "phases": [
                {"name": "PreparingTarget", "startedAt": "2026-01-01T00:00:00.000000Z", "ms": 500},
                {"name": "SwitchingToStandby", "startedAt": "2026-01-01T00:00:00.500000Z", "ms": 500},
                {"name": "Transferring", "startedAt": "2026-01-01T00:00:01.000000Z"},
            ],
        })
    }

    #[test]
    fn halfway() {
        let migration = migration(&at("Transferring", "Migrating", "QEMU sends the VM"));
        assert_eq!(
            plain(&line(&migration)),
            "Transferring  Migrating: QEMU sends the VM\n"
        );
        assert_eq!(
            plain(&picture(&migration, "2026-01-01T00:00:02Z".parse().unwrap(), 56)),
            "\
[━━━━━━━━╸╸╸╸    ]  Transferring  Migrating: QEMU sends the VM
web-x  n1 → n2, VM web
  PreparingTarget     █████···············     500 ms
  SwitchingToStandby       █████··········     500 ms
  Transferring                  ░░░░░░░░░░     1.00 s
"
        );
    }

    #[test]
    fn a_phase_of_kubevirts_is_shown_by_its_own_name() {
        let mut theirs = migration(&at(
            "PreparingTarget",
            "Migrating",
            "the pod at the target starts",
        ));
        theirs.phase = "Scheduling".to_owned();
        assert_eq!(
            plain(&line(&theirs)),
            "Scheduling  Migrating: the pod at the target starts\n"
        );
        let picture = plain(&picture(&theirs, "2026-01-01T00:00:02Z".parse().unwrap(), 56));
        assert!(
            picture.starts_with("[╸╸╸╸            ]  Scheduling  Migrating: "),
            "{picture}"
        );
    }

    #[test]
    fn the_end() {
        let mut status = at("Succeeded", "Completed", "the VM runs on n2");
        (status["totalMs"], status["downtimeMs"], status["phases"]) = (json!(4_000), json!(31), json!([]));
        assert_eq!(
            plain(&picture(&migration(&status), Timestamp::UNIX_EPOCH, 80)),
            "\
[━━━━━━━━━━━━━━━━]  Succeeded  Completed: the VM runs on n2
web-x  n1 → n2, VM web
4.00 s in all, VM paused 31 ms, NICs: eth0, eth1
"
        );
    }

    #[test]
    fn the_beginning_and_the_way_back() {
        assert_eq!(
            plain(&picture(&migration(&Value::Null), Timestamp::UNIX_EPOCH, 80)),
            "[                ]  Pending\nweb-x, VM web\n"
        );
        let back = plain(&picture(
            &migration(&at("RollingBack", "TargetLost", "the target's pod has ended")),
            "2026-01-01T00:00:02Z".parse().unwrap(),
            80,
        ));
        assert!(
            back.starts_with("[                ]  RollingBack  TargetLost: the target's pod has ended\n"),
            "{back}"
        );
    }

    #[test]
    fn goodbye_says_how_to_cancel() {
        assert!(goodbye("qmig", "web-x", "shop").contains("kubectl delete qmig web-x -n shop;"));
    }
}
