//! How long migrations have been in their phases, by this process's own clock, which only goes forward. Statuses hold times
//! too, but the operator that led then has written them, and its clock may differ.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hybridnic_api::v1alpha1::{MigrationPhase, QemuMigration};
use kube::ResourceExt;

use crate::moves::qemu::phase;

/// Since when each migration was seen as it is, by its uid.
#[derive(Debug, Default)]
pub struct Phases(Mutex<HashMap<String, Since>>);

#[derive(Debug)]
struct Since {
    phase: MigrationPhase,
    entered: Instant,
    silent: Option<Instant>,
}

/// How long a migration has been seen as it is: zero at the first look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// In its phase.
    pub in_phase_for: Duration,
    /// With ends of which neither says where the VM is.
    pub silent_for: Duration,
}

impl Phases {
    /// How long the migration has been seen in its phase and, if its ends are `silent`, with silent ends.
    pub fn waits(&self, migration: &QemuMigration, silent: bool, now: Instant) -> Waits {
        let phase = phase(migration);
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = seen.entry(migration.uid().unwrap_or_default()).or_insert(Since {
            phase,
            entered: now,
            silent: None,
        });
        if since.phase != phase {
            (since.phase, since.entered) = (phase, now);
        }
        since.silent = silent.then(|| since.silent.unwrap_or(now));
        let age = |then: Instant| now.saturating_duration_since(then);
        Waits {
            in_phase_for: age(since.entered),
            silent_for: since.silent.map(age).unwrap_or_default(),
        }
    }

    /// Forgets a migration that is over: its finalizer brings each of them here.
    pub fn forget(&self, migration: &QemuMigration) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.remove(&migration.uid().unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::migration;

    #[test]
    fn each_phase_is_counted_from_when_it_was_first_seen() {
        let (phases, start) = (Phases::default(), Instant::now());
        let mut one = migration("m", 100);
        let look = |one: &QemuMigration, silent, second| {
            let waits = phases.waits(one, silent, start + Duration::from_secs(second));
            (waits.in_phase_for.as_secs(), waits.silent_for.as_secs())
        };
        one.status.get_or_insert_default().phase = MigrationPhase::PreparingTarget;
        assert_eq!(look(&one, false, 0), (0, 0));
        assert_eq!(look(&one, false, 7), (7, 0));
        one.status.get_or_insert_default().phase = MigrationPhase::Transferring;
        assert_eq!(look(&one, false, 9), (0, 0));
        assert_eq!(
            look(&one, true, 600),
            (591, 0),
            "the ends have just fallen silent"
        );
        assert_eq!(look(&one, true, 604), (595, 4));
        one.status.get_or_insert_default().phase = MigrationPhase::RollingBack;
        assert_eq!(look(&one, true, 605), (0, 5), "and are so in the next phase too");
        assert_eq!(look(&one, false, 606), (1, 0));
        assert_eq!(look(&one, true, 607), (2, 0), "a word begins the silence again");
        phases.forget(&one);
        assert_eq!(look(&one, true, 620), (0, 0), "as a new leader does");
    }
}
