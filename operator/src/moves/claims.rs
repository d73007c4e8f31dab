//! Which of several that want to move a VM may: the one that has begun, and before that the oldest. Pure. All of them use this, so that two
//! that are decided on at once do not both begin.

use hybridnic_api::v1alpha1::MigrationPhase;
use jiff::Timestamp;
use kube::ResourceExt;

/// One that wants to move a VM, or does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Kind and name, for people.
    pub what: String,
    uid: Option<String>,
    made: Option<Timestamp>,
    phase: MigrationPhase,
}

impl Claim {
    /// The claim of an object: `kind` is its kind in a word, and `phase` how far it is.
    pub fn of(kind: &str, object: &impl ResourceExt, phase: MigrationPhase) -> Self {
        Self {
            what: format!("the {kind} {}", object.name_any()),
            uid: object.uid(),
            made: object.creation_timestamp().map(|time| time.0),
            phase,
        }
    }

    /// Whether it comes before `other`, which has not begun.
    fn precedes(&self, other: &Self) -> bool {
        let begun = self.phase != MigrationPhase::Pending;
        let age = |claim: &Self| (claim.made, claim.uid.clone());
        self.uid != other.uid && !self.phase.is_final() && (begun || age(self) < age(other))
    }
}

/// What keeps `own` from its VM: one of `all` that has it, or has the right to it.
pub fn blocked_by(own: &Claim, all: impl IntoIterator<Item = Claim>) -> Option<String> {
    let mut all = all.into_iter();
    all.find(|claim| claim.precedes(own)).map(|claim| claim.what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{migration, save};
    use hybridnic_api::v1alpha1::AfterSave;

    #[test]
    fn of_two_that_wait_one_begins() {
        use MigrationPhase::{Failed, Pending, Transferring};
        // As old as each other: their uids decide.
        let migration = |phase| Claim::of("migration", &migration("m", 1), phase);
        let save = |phase| Claim::of("save", &save("s", AfterSave::End), phase);
        let both = |m, s| {
            let all = || [migration(m), save(s)];
            (blocked_by(&migration(m), all()), blocked_by(&save(s), all()))
        };
        let (m, s) = (Some("the migration m".to_owned()), Some("the save s".to_owned()));
        assert_eq!(both(Pending, Pending), (None, m.clone()));
        assert_eq!(both(Pending, Transferring).0, s);
        assert_eq!(both(Transferring, Pending).1, m);
        assert_eq!(both(Failed, Pending), (None, None));
    }
}
