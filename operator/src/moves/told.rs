//! What a change of a migration's, a save's or a restore's status is worth telling by an event. Pure.

use hybridnic_api::conditions::{self, types};
use hybridnic_api::v1alpha1::MigrationPhase;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::events::Note;

/// The phase and the conditions of a status.
pub type Said<'a> = (MigrationPhase, &'a [Condition]);

/// What it waits for before it begins, that it begins, that a person has to act, and how it ends.
pub fn progress(old: Said<'_>, new: Said<'_>) -> Vec<Note> {
    let condition = |(_, conditions): Said<'_>| conditions::find(conditions, types::SUCCEEDED).cloned();
    let Some(now) = condition(new) else {
        return Vec::new();
    };
    let same_reason = condition(old).is_some_and(|before| before.reason == now.reason);
    if old.0 == new.0 && same_reason {
        return Vec::new();
    }
    match new.0 {
        MigrationPhase::Failed | MigrationPhase::RollingBack | MigrationPhase::Pending => {
            vec![Note::warning(now.reason, now.message)]
        }
        MigrationPhase::Succeeded | MigrationPhase::Cancelled => vec![Note::normal(now.reason, now.message)],
        MigrationPhase::PreparingTarget => vec![Note::normal(new.0.to_string(), now.message)],
        _ if conditions::is_undecided(&now.reason) || conditions::awaits_user(&now.reason) => {
            vec![Note::warning(now.reason, now.message)]
        }
        MigrationPhase::SwitchingToStandby | MigrationPhase::Transferring | MigrationPhase::Completing => {
            Vec::new()
        }
    }
}
