//! Whether a migration's stream is encrypted. This is settled while the target gets ready, before anything about the VM has changed,
//! from each end's own report; then it stands. A handshake that fails does not lead to a plain stream.

use clap::ValueEnum;
use hybridnic_api::conditions::{self, NewCondition, reasons, types};
use hybridnic_api::v1alpha1::{MigrationState, QemuMigrationStatus};

use super::inputs::{Inputs, after, target_of};
use super::record::{Next, roll_back};
use crate::moves::ends::Ends;

/// Whether migrations are encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum Encryption {
    /// Each is, or there is none.
    #[default]
    Required,
    /// Each migration is encrypted if its ends can; if they cannot, its status says so.
    Preferred,
    /// None is.
    Off,
}

/// What follows if an end reports that it cannot encrypt: the migration goes back, or goes on in plain.
pub fn settle(inputs: &Inputs<'_>, status: &mut QemuMigrationStatus, ends: &Ends) -> Option<Next> {
    if status.encrypted != Some(true) {
        return None;
    }
    let said = [(&status.source, &ends.source), (&status.target, &ends.target)];
    let (node, report) = said.into_iter().find_map(|(end, report)| {
        let report = report.as_ref().filter(|report| report.no_tls)?;
        Some((end.as_ref()?.node_name.clone(), report))
    })?;
    let why = after(report.error.as_deref().unwrap_or_default());
    let message = format!("QEMU on {node} cannot encrypt the migration's stream{why}");
    // A target that listens for an encrypted stream accepts no other.
    let listens = ends.target_state() == Some(MigrationState::Listening);
    if inputs.encryption == Encryption::Required || listens {
        return Some(roll_back(reasons::TLS_UNAVAILABLE, message));
    }
    status.encrypted = Some(false);
    let condition = NewCondition::no(
        types::ENCRYPTED,
        reasons::TLS_UNAVAILABLE,
        format!("{message}: the VM is sent in plain"),
    );
    let generation = inputs.migration.metadata.generation;
    conditions::set(&mut status.conditions, generation, inputs.now, condition);
    None
}

/// What the migration waits for before the target is told anything: it has to know which peer may send the VM.
pub fn source_is_unknown(inputs: &Inputs<'_>, status: &QemuMigrationStatus, ends: &Ends) -> Option<String> {
    let source = ends.source.as_ref();
    let told = inputs.nics.iter().any(|nic| target_of(nic, status).is_some());
    let known = told || source.is_some_and(|report| report.ca.is_some());
    if status.encrypted != Some(true) || known {
        return None;
    }
    let node = status.source.as_ref().map(|end| end.node_name.as_str());
    let why = source.and_then(|report| report.error.clone()).unwrap_or_default();
    Some(format!(
        "{} has not made its certificate for the stream yet{}",
        node.unwrap_or_default(),
        after(&why)
    ))
}
