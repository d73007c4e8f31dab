//! This end's part in the encryption of a migration's stream. The certificates are in [`tls`], the source's connection in
//! [`dial`].

use std::time::Duration;

use hybridnic_api::v1alpha1::{MigrationOrder, MigrationReport, MigrationState, MigrationStep};
use hybridnic_qmp::{Client, QmpError, commands::MigrationStatus};
use tracing::warn;

use super::{
    super::{Vm, locked},
    certificates::End,
    dial::{self, DialError},
    migration::Certified,
    steps::Failure,
    tls::{self, LoadError, TlsError},
};
use crate::{error::chain, host::Host};

impl Vm {
    /// Why QEMU cannot encrypt the stream of this migration, if it was found that it cannot.
    pub(super) fn no_tls(&self, migration: &str) -> Option<String> {
        let (_, why) = locked(&self.no_tls).clone().filter(|(of, _)| of == migration)?;
        Some(why)
    }

    pub(super) fn set_no_tls(&self, migration: &str, why: String) {
        *locked(&self.no_tls) = Some((migration.to_owned(), why));
    }

    pub(super) fn set_handshake(&self, handshake: Option<dial::Handshake>) {
        *locked(&self.handshake) = handshake;
    }

    /// Looks at the handshake of the VM's stream, by what QEMU says of the migration; gives how long it may still take.
    pub(super) fn judge_handshake(&self, status: &MigrationStatus) -> Option<Duration> {
        let mut handshake = locked(&self.handshake);
        *handshake = handshake.take().and_then(|handshake| handshake.judge(status));
        handshake.as_ref().map(dial::Handshake::left)
    }
}

/// Which end of a migration has this order.
fn end(step: MigrationStep) -> End {
    match step {
        MigrationStep::Listen | MigrationStep::GiveUp | MigrationStep::Load => End::Target,
        // A stream that is only watched has no certificate of ours, at neither end.
        MigrationStep::Prepare
        | MigrationStep::Transfer
        | MigrationStep::Cancel
        | MigrationStep::Resume
        | MigrationStep::Watch
        | MigrationStep::Save => End::Source,
    }
}

/// What this end can report for an encrypted stream.
pub(super) fn certified(vm: &Vm, host: &Host, order: &MigrationOrder) -> Option<Certified> {
    order.tls.as_ref()?;
    let uid = &order.migration.uid;
    if let Some(why) = vm.no_tls(uid) {
        return Some(Certified::Not(why));
    }
    let kept = host.keys.kept(&vm.pod_uid, uid, end(order.step))?;
    Some(Certified::By(kept.ca))
}

/// Whether no stream of the migration is left in a QEMU that goes on. A source that has let its VM go is ended soon; until then it is
/// left alone.
pub(super) fn ends_stream(report: Option<&MigrationReport>, step: MigrationStep) -> bool {
    report.is_some_and(|report| {
        report.state.is_final() && (end(step) == End::Target || report.state != MigrationState::Completed)
    })
}

/// Takes the certificates of a migration that is over, or was called off, from QEMU and from memory.
pub(super) async fn forget_certificates(vm: &Vm, host: &Host, client: Option<&Client>) {
    if !host.keys.has(&vm.pod_uid) {
        return;
    }
    if let Some(client) = client
        && let Err(error) = tls::unload(client).await
    {
        // They are good for this migration alone, and the next one replaces them.
        warn!(
            error = chain(&error),
            "QEMU keeps the certificates of a migration that is over"
        );
    }
    host.keys.forget(&vm.pod_uid);
}

/// Makes the certificates of this end, and sees whether QEMU can use them; whether it can.
pub(super) async fn certify(
    vm: &Vm,
    host: &Host,
    client: &Client,
    uid: &str,
    end: End,
) -> Result<bool, Failure> {
    let why = match host.keys.make(&vm.pod_uid, uid, end) {
        Ok(made) => match made.try_out(client, &*host.broker).await {
            Ok(()) => return Ok(true),
            Err(LoadError::Qemu(error @ QmpError::Command { .. })) => chain(&error),
            Err(error) => return Err(error.into()),
        },
        Err(error @ TlsError::OnDisk(_)) => chain(&error),
        Err(error) => return Err(error.into()),
    };
    host.keys.forget(&vm.pod_uid);
    vm.set_no_tls(uid, why);
    Ok(false)
}

/// Target: QEMU is to let in only the source of this migration; returns whether it can. Nothing has been reported about a QEMU that does
/// not listen yet, so the certificates are new each time.
pub(super) async fn admit_source(
    vm: &Vm,
    host: &Host,
    client: &Client,
    uid: &str,
    peer_ca: Option<&str>,
) -> Result<bool, Failure> {
    let peer_ca = peer_ca.ok_or_else(unknown_peer)?;
    if !certify(vm, host, client, uid, End::Target).await? {
        return Ok(false);
    }
    let Some(made) = host.keys.kept(&vm.pod_uid, uid, End::Target) else {
        return Err(lost());
    };
    made.load(client, &*host.broker, peer_ca).await?;
    Ok(true)
}

/// Source: QEMU is to send the VM only to the target of this migration.
pub(super) async fn trust_target(
    vm: &Vm,
    host: &Host,
    client: &Client,
    uid: &str,
    peer_ca: Option<&str>,
) -> Result<(), Failure> {
    let peer_ca = peer_ca.ok_or_else(unknown_peer)?;
    match host.keys.kept(&vm.pod_uid, uid, End::Source) {
        Some(made) if made.has_key() => Ok(made.load(client, &*host.broker, peer_ca).await?),
        // An agent has died since: what QEMU has, it has got for this migration.
        Some(_) if client.has_tls_creds(tls::ID).await? => Ok(()),
        _ => Err(lost()),
    }
}

fn unknown_peer() -> Failure {
    Failure {
        error: "it is not known which certificate the other end has".to_owned(),
        refused: true,
    }
}

fn lost() -> Failure {
    Failure {
        error: "the certificate that was made for this migration is gone: make another migration".to_owned(),
        refused: true,
    }
}

/// Source: sends the VM, encrypted.
pub(super) async fn send(vm: &Vm, host: &Host, client: &Client, uri: &str) -> Result<(), Failure> {
    let process = vm.peer().ok_or_else(|| Failure {
        error: "the kernel does not say which process QEMU is, so its network is not known".to_owned(),
        refused: true,
    })?;
    let stream = dial::connect(&*host.broker, &process, uri).await?;
    // Before the command: if its answer does not come, that may be a handshake that does not end.
    vm.set_handshake(Some(dial::give(client, stream).await?));
    let sent = dial::send(client).await;
    if let Err(QmpError::Command { .. }) = &sent {
        vm.set_handshake(None);
    }
    Ok(sent?)
}

impl From<TlsError> for Failure {
    fn from(error: TlsError) -> Self {
        Self {
            error: chain(&error),
            refused: false,
        }
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        let refused = matches!(error, LoadError::Qemu(QmpError::Command { .. }));
        Self {
            error: chain(&error),
            refused,
        }
    }
}

impl From<DialError> for Failure {
    fn from(error: DialError) -> Self {
        // Nothing has begun; a connection that cannot be made counts as one that has failed.
        let refused = !matches!(&error, DialError::Qemu(error) if !matches!(error, QmpError::Command { .. }));
        Self {
            error: chain(&error),
            refused,
        }
    }
}
