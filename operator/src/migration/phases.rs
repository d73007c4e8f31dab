//! How long migrations have been in their phases, by this process's own clock, which only goes forward. Statuses hold times
//! too, written by whichever operator led then; its clock may be another.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hybridnic_api::v1alpha1::{MigrationPhase, QemuMigration};
use kube::ResourceExt;

/// Since when each migration was seen in its phase, by its uid.
#[derive(Debug, Default)]
pub struct Phases(Mutex<HashMap<String, (MigrationPhase, Instant)>>);

impl Phases {
    /// How long the migration has been seen in its phase: not at all the first time.
    pub fn look(&self, migration: &QemuMigration, now: Instant) -> Duration {
        let phase = migration
            .status
            .as_ref()
            .map(|status| status.phase)
            .unwrap_or_default();
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = seen
            .entry(migration.uid().unwrap_or_default())
            .or_insert((phase, now));
        if entry.0 != phase {
            *entry = (phase, now);
        }
        now.saturating_duration_since(entry.1)
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
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut one = migration("m", 100);
        one.status.get_or_insert_default().phase = MigrationPhase::PreparingTarget;
        assert_eq!(phases.look(&one, at(0)), Duration::ZERO);
        assert_eq!(phases.look(&one, at(7)), Duration::from_secs(7));
        one.status.get_or_insert_default().phase = MigrationPhase::SwitchingToStandby;
        assert_eq!(phases.look(&one, at(9)), Duration::ZERO);
        assert_eq!(phases.look(&one, at(10)), Duration::from_secs(1));
        phases.forget(&one);
        assert_eq!(phases.look(&one, at(20)), Duration::ZERO, "as a new leader does");
    }
}
