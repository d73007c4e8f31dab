//! Events and metrics of KubeVirt's migrations, from the changes of a NIC's status. Pure. KubeVirt reports its migrations on its own objects,
//! and knows nothing about NICs.

use hybridnic_api::conditions::reasons;
use hybridnic_api::foreign::kubevirt::VirtualMachineInstanceMigration;
use hybridnic_api::v1alpha1::{NicMigration, Runtime, VmHybridNicStatus};

use super::admit::Refusal;
use crate::events::{About, Note};
use crate::metrics::End;
use crate::moves::{self, Driver, Move, Outcome, Stage};

/// The last migration, and how it was before; none for a VM that is not KubeVirt's.
fn last<'a>(
    old: &'a VmHybridNicStatus,
    new: &'a VmHybridNicStatus,
) -> Option<(Option<&'a NicMigration>, &'a NicMigration)> {
    let last = new
        .last_migration
        .as_ref()
        .filter(|_| new.runtime == Some(Runtime::Kubevirt))?;
    let before = old.last_migration.as_ref();
    Some((before.filter(|before| before.name == last.name), last))
}

/// Whose report is waited for, if KubeVirt is done with a migration and it is not proven where the VM is.
pub fn awaited(of: &Move) -> Option<Refusal> {
    let Driver::Theirs {
        awaited: Some(end), ..
    } = &of.driver
    else {
        return None;
    };
    let (from, to) = (&of.source.node_name, &of.target.node_name);
    if of.stage == Stage::Returning && *end == moves::End::Source {
        let message = format!(
            "the migration {} is off: the NIC stays on its standbys until the agent of node {from} says that the VM runs there and is \
             sent nowhere",
            of.id.name
        );
        return Some(Refusal::new(reasons::MIGRATING, message));
    }
    let waits = match end {
        moves::End::Source => format!("the agent of node {from}: whether QEMU there has let the VM go"),
        moves::End::Target => format!("the agent of node {to}: whether the VM has run there"),
    };
    let message = format!(
        "KubeVirt is done with the migration {}, and it is not proven where the VM is: the NIC stays on its standbys. It waits for \
         {waits}. Bring that agent back",
        of.id.name
    );
    Some(Refusal::new(reasons::ARRIVAL_UNPROVEN, message))
}

/// How a migration has ended since `old`. A migration whose beginning was not seen is not counted: it may be an old one.
pub fn ended(old: &VmHybridNicStatus, new: &VmHybridNicStatus) -> Option<End> {
    let (before, last) = last(old, new)?;
    if before.is_none_or(|before| before.result.is_some()) {
        return None;
    }
    let (outcome, reason) = match last.result.as_deref()? {
        "Succeeded" => (Outcome::Succeeded, reasons::COMPLETED),
        "Cancelled" => (Outcome::Cancelled, reasons::CANCELLED),
        _ => (Outcome::Failed, reasons::TRANSFER_FAILED),
    };
    let (from, to) = (
        last.started_at.as_ref()?.0,
        last.finished_at.as_ref().map(|at| at.0),
    );
    Some(End {
        outcome,
        reason: reason.to_owned(),
        total_ms: to.and_then(|to| i64::try_from(to.duration_since(from).as_millis()).ok()),
        downtime_ms: last.downtime_ms,
    })
}

/// The event for a migration that has begun or ended since `old`.
pub fn note(old: &VmHybridNicStatus, new: &VmHybridNicStatus) -> Option<Note> {
    let (before, last) = last(old, new)?;
    let (name, from, to) = (&last.name, &last.from, &last.to);
    let note = match (before, last.result.as_deref()) {
        (None, None) => {
            let message = format!("KubeVirt's migration {name} moves the VM from {from} to {to}");
            Some(Note::normal(reasons::MIGRATING, message))
        }
        (before, Some(result)) if before.is_none_or(|before| before.result.is_none()) => Some(match result {
            "Succeeded" => {
                let message = format!("the migration {name} has moved the VM from {from} to {to}");
                Note::normal(reasons::COMPLETED, message)
            }
            "Cancelled" => {
                let message = format!("the migration {name} was deleted; the VM has stayed on {from}");
                Note::normal(reasons::CANCELLED, message)
            }
            _ => {
                let message = format!("the migration {name} has failed; the VM has stayed on {from}");
                Note::warning(reasons::TRANSFER_FAILED, message)
            }
        }),
        _ => None,
    };
    note.map(|note| note.about(About::new::<VirtualMachineInstanceMigration>(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    use serde_json::{Value, json};

    fn status(runtime: &str, last: &Value) -> VmHybridNicStatus {
        serde_json::from_value(json!({"runtime": runtime, "lastMigration": last})).unwrap()
    }

    fn last(name: &str, result: Option<&str>) -> Value {
        json!({
            "name": name, "from": "n1", "to": "n2", "result": result, "downtimeMs": 31,
            "startedAt": "2026-01-01T00:00:00.000000Z",
            "finishedAt": result.map(|_| "2026-01-01T00:00:04.500000Z"),
        })
    }

    fn theirs(name: &str, result: Option<&str>) -> VmHybridNicStatus {
        status("kubevirt", &last(name, result))
    }

    #[test]
    fn an_end_is_counted_by_what_kubevirt_says_of_it() {
        let began = theirs("m", None);
        for (result, outcome, reason) in [
            ("Succeeded", Outcome::Succeeded, reasons::COMPLETED),
            ("Cancelled", Outcome::Cancelled, reasons::CANCELLED),
            ("Failed", Outcome::Failed, reasons::TRANSFER_FAILED),
        ] {
            let end = End {
                outcome,
                reason: reason.to_owned(),
                total_ms: Some(4_500),
                downtime_ms: Some(31),
            };
            assert_eq!(ended(&began, &theirs("m", Some(result))), Some(end));
        }
    }

    #[test]
    fn an_end_is_counted_once_and_only_where_the_beginning_was_seen() {
        let over = theirs("m", Some("Succeeded"));
        assert_eq!(ended(&over, &over), None, "it was counted");
        assert_eq!(ended(&theirs("m", None), &theirs("m", None)), None, "it goes on");
        let nothing = VmHybridNicStatus::default();
        assert_eq!(ended(&nothing, &over), None, "it may have been counted before");
        assert_eq!(ended(&theirs("other", None), &over), None, "another one began");
        assert_eq!(ended(&over, &nothing), None);
        let ours = |result| status("qemu", &last("m", result));
        assert_eq!(
            ended(&ours(None), &ours(Some("Succeeded"))),
            None,
            "ours are counted elsewhere"
        );
    }

    #[test]
    fn a_beginning_and_an_end_are_told_once_each() {
        let told = |old: &VmHybridNicStatus, new: &VmHybridNicStatus| note(old, new).map(|note| note.reason);
        let (nothing, began) = (VmHybridNicStatus::default(), theirs("m", None));
        assert_eq!(told(&nothing, &began).as_deref(), Some(reasons::MIGRATING));
        assert_eq!(told(&began, &began), None);
        for (result, reason) in [
            ("Succeeded", reasons::COMPLETED),
            ("Cancelled", reasons::CANCELLED),
            ("Failed", reasons::TRANSFER_FAILED),
        ] {
            let over = theirs("m", Some(result));
            assert_eq!(told(&began, &over).as_deref(), Some(reason));
            assert_eq!(
                told(&nothing, &over).as_deref(),
                Some(reason),
                "nobody looked meanwhile"
            );
            assert_eq!(told(&over, &over), None);
        }
    }

    #[test]
    fn two_migrations_are_told_in_words_of_their_own() {
        let about = |name: &str| note(&VmHybridNicStatus::default(), &theirs(name, None))?.about;
        assert_eq!(about("first"), about("first"));
        assert_ne!(about("first"), about("second"));
    }
}
