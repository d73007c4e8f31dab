//! Takes the steps of a VM that goes to a file, or comes from one. [`super::migration`] decides on the next one.

use std::{os::fd::AsFd as _, time::Duration};

use hybridnic_api::v1alpha1::{FileOrder, MigrationOrder};
use hybridnic_qmp::{
    Client, QmpError,
    commands::{MigrationCapability, MigrationParameters},
};
use jiff::Timestamp;
use tracing::{info, warn};

use super::{
    super::Vm,
    migration::{FileAction, FileSeen},
    state_file::{FileError, Manifest, Place, SavedMachine, SavedNic, Who},
    steps::Failure,
    tls,
};
use crate::{
    error::chain,
    host::Host,
    journal::{Begun, Custody, SaveStage, Saving, VmRecord},
};

/// The name by which QEMU is given a file.
const DESCRIPTOR: &str = "hybridnic-file";

/// How long a cancel waits for what was written to be removed: a file server that is away answers nothing.
const REMOVE: Duration = Duration::from_secs(10);

/// What a migration needs only for a file: it is set while a VM goes to a file or comes from one.
const OF_FILES: [MigrationCapability; 2] = [MigrationCapability::MappedRam, MigrationCapability::Multifd];

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self {
            error: chain(&error),
            refused: true,
        }
    }
}

/// What cannot be done, and will not be tried again.
fn impossible(what: &str) -> Failure {
    Failure {
        error: what.to_owned(),
        refused: true,
    }
}

/// Takes a step.
pub(super) async fn act(
    vm: &Vm,
    host: &Host,
    client: &Client,
    order: &MigrationOrder,
    action: FileAction,
) -> Result<(), Failure> {
    let file = order
        .file
        .as_ref()
        .ok_or_else(|| impossible("the order names no file"))?;
    let uid = &order.migration.uid;
    match action {
        FileAction::Look => {
            let seen = match try_file(vm, host, client, order, file).await {
                Ok(seen) => seen,
                Err(failure) if failure.refused => FileSeen::Refused(failure.error),
                Err(failure) => return Err(failure),
            };
            vm.set_file(uid, seen);
        }
        FileAction::Write => write(vm, host, client, order, file).await?,
        FileAction::Seal { resume } => seal(vm, host, client, order, file, resume).await?,
        FileAction::Discard { resume } => {
            stage(vm, host, uid, SaveStage::Spoilt).await?;
            // Before the VM runs on: a file that has its name must not stand beside it.
            discard(vm, host, file, uid).await;
            if resume {
                client.until_migration_settled().await?;
                client.cont().await?;
            }
            forget(client).await?;
            vm.set_file(uid, FileSeen::Gone);
        }
        FileAction::Load => match load(vm, host, client, order, file).await {
            Ok(manifest) => vm.set_file(uid, FileSeen::Told(manifest)),
            Err(Loading::Refused(why)) => vm.set_file(uid, FileSeen::Refused(why)),
            Err(Loading::Failed(failure)) => return Err(failure),
        },
    }
    // What to report or do next follows from what is known now.
    vm.nics_changed.send_modify(|n| *n += 1);
    Ok(())
}

/// Removes what a save has left. If it cannot be removed, that must not keep the VM from its VFs, nor a rollback from its end.
async fn discard(vm: &Vm, host: &Host, file: &FileOrder, save: &str) {
    let inode = vm
        .begun(save)
        .0
        .and_then(|begun| begun.saving)
        .map(|saving| saving.inode);
    let removed = async {
        let place = place(vm, host, file).await?;
        let save = save.to_owned();
        blocking(move || place.discard(&save, inode)).await
    };
    let error = match tokio::time::timeout(REMOVE, removed).await {
        Ok(Ok(())) => return,
        Ok(Err(failure)) => failure.error,
        Err(_) => format!("the file system has not answered within {} s", REMOVE.as_secs()),
    };
    warn!(file = file.path, error, "what QEMU has written is not removed");
}

/// Access to a disk, or to a file system of another host, may take any time.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(error) => Err(Failure {
            error: chain(&error),
            refused: false,
        }),
    }
}

/// The file's place in the pod of the QEMU that is talked to.
async fn place(vm: &Vm, host: &Host, file: &FileOrder) -> Result<Place, Failure> {
    let process = vm
        .peer()
        .ok_or_else(|| impossible("the kernel does not say which process QEMU is"))?;
    let failed = |what: &str, error: &std::io::Error| Failure {
        error: format!("{what}: {}", chain(error)),
        refused: false,
    };
    // Read first: the root can be opened only if it was this process's.
    let who = Who::of(process.pid).map_err(|error| failed("QEMU's user is not known", &error))?;
    let root = host
        .broker
        .root(&process)
        .await
        .map_err(|error| failed("the root directory of QEMU's process cannot be opened", &error))?;
    let path = file.path.clone();
    blocking(move || Place::open(root.as_fd(), &path, who)).await
}

/// The VM, and its machine, as they are here.
async fn machine(vm: &Vm, client: &Client, order: &MigrationOrder) -> Result<SavedMachine, Failure> {
    let shown = vm.nics();
    let mut nics: Vec<_> = shown
        .values()
        .filter(|nic| order.nics.contains(&nic.nic))
        .map(|nic| SavedNic {
            name: nic.nic.clone(),
            mac: nic.mac.clone(),
            pairing: nic.pairing,
            standby: nic.standby,
            ports: nic.ports.clone(),
        })
        .collect();
    nics.sort_by(|a, b| a.name.cmp(&b.name));
    let name = shown.values().map(|nic| nic.vm.clone()).next();
    Ok(SavedMachine {
        namespace: vm.namespace.clone(),
        vm: name.unwrap_or_default(),
        machine_type: client.machine_type().await?,
        memory: client.memory_size().await?,
        qemu: client.version().to_string(),
        nics,
    })
}

/// Whether the file can be written, or loaded.
async fn try_file(
    vm: &Vm,
    host: &Host,
    client: &Client,
    order: &MigrationOrder,
    file: &FileOrder,
) -> Result<FileSeen, Failure> {
    let place = place(vm, host, file).await?;
    if file.saves() {
        let save = order.migration.uid.clone();
        blocking(move || place.lasts().and_then(|()| place.try_out(&save))).await?;
        return Ok(FileSeen::Writable);
    }
    let here = machine(vm, client, order).await?;
    let (manifest, length) = blocking(move || Ok((place.manifest()?, place.load()?.1))).await?;
    let can_map = !client
        .has_migration_capabilities(&[MigrationCapability::MappedRam])
        .await?
        .is_empty();
    Ok(match manifest.refusal(&here, length) {
        Some(why) => FileSeen::Refused(why),
        None if manifest.mapped_ram && !can_map => FileSeen::Refused(format!(
            "the file was written by QEMU {} with mapped-ram, which QEMU {} does not have",
            manifest.machine.qemu, here.qemu
        )),
        None => FileSeen::Loadable(manifest),
    })
}

/// Notes how far the file is; true on disk before it is true here.
async fn stage(vm: &Vm, host: &Host, save: &str, stage: SaveStage) -> Result<(), Failure> {
    let note = |record: &mut VmRecord| {
        let begun = record.begun.as_mut().filter(|begun| begun.migration == save);
        if let Some(saving) = begun.and_then(|begun| begun.saving.as_mut()) {
            saving.stage = stage;
        }
    };
    Ok(vm.remember(&host.journal, note).await?)
}

/// How QEMU writes a file, or reads it.
#[derive(Clone, Copy)]
struct Way {
    /// Each page has its place in the file.
    mapped: bool,
    /// Octets a second; 0 is no limit.
    bandwidth: u64,
}

impl Way {
    /// Threads write at places of their own: without mapped-ram there are none. And they keep to no limit: QEMU 10.0 that was told to
    /// write 1 MiB a second wrote 14.
    fn has_threads(self) -> bool {
        self.mapped && self.bandwidth == 0
    }
}

/// Capabilities and parameters for a file.
async fn prepare(host: &Host, client: &Client, way: Way) -> Result<(), QmpError> {
    let has = client.has_migration_capabilities(&OF_FILES).await?;
    let of_files = has.into_iter().map(|capability| match capability {
        MigrationCapability::Multifd => (capability, way.has_threads()),
        _ => (capability, way.mapped),
    });
    // Nothing answers from a file. And nothing else has the VM: it need not wait before it is handed over.
    let mut capabilities = vec![
        (MigrationCapability::Events, true),
        (MigrationCapability::ReturnPath, false),
        (MigrationCapability::PauseBeforeSwitchover, false),
    ];
    capabilities.extend(of_files);
    client.migrate_set_capabilities(&capabilities).await?;
    client
        .migrate_set_parameters(&MigrationParameters {
            max_bandwidth: Some(way.bandwidth),
            downtime_limit: Some(host.options.migration_downtime_ms),
            ..tls::parameters(None)
        })
        .await
}

/// QEMU lets go of the file. What only files need goes, or QEMU would send no VM to another node.
pub(super) async fn forget(client: &Client) -> Result<(), QmpError> {
    // Not before: its threads open the file late.
    client.remove_named_fds(DESCRIPTOR).await?;
    let has = client.has_migration_capabilities(&OF_FILES).await?;
    let off: Vec<_> = has.into_iter().map(|capability| (capability, false)).collect();
    if off.is_empty() {
        return Ok(());
    }
    client.migrate_set_capabilities(&off).await
}

/// Gives QEMU the file; gives the URI by which it takes it.
async fn hand(client: &Client, fd: std::os::fd::BorrowedFd<'_>) -> Result<String, QmpError> {
    if client.version().at_least(8, 2) {
        let passed = client.add_named_fd(fd, DESCRIPTOR).await?;
        return Ok(format!("file:/dev/fdset/{}", passed.fdset_id));
    }
    // One before opens no file itself.
    client.getfd(DESCRIPTOR, fd).await?;
    Ok(format!("fd:{DESCRIPTOR}"))
}

async fn write(
    vm: &Vm,
    host: &Host,
    client: &Client,
    order: &MigrationOrder,
    file: &FileOrder,
) -> Result<(), Failure> {
    let blocked = client.query_migrate().await?.blocked_reasons;
    if !blocked.is_empty() {
        return Err(impossible(&format!(
            "QEMU cannot save the VM: {}",
            blocked.join("; ")
        )));
    }
    let place = place(vm, host, file).await?;
    let save = order.migration.uid.clone();
    let made = blocking(move || place.make(&save)).await?;
    let mapped = !client
        .has_migration_capabilities(&[MigrationCapability::MappedRam])
        .await?
        .is_empty();
    let asked = file.bandwidth.and_then(|octets| u64::try_from(octets).ok());
    let bandwidth = asked.unwrap_or(host.options.migration_bandwidth);
    prepare(host, client, Way { mapped, bandwidth }).await?;
    let uri = hand(client, made.file.as_fd()).await?;
    begin(
        vm,
        host,
        order,
        Some(Saving {
            inode: made.inode,
            mapped,
            stage: SaveStage::Writing,
        }),
    )
    .await?;
    Ok(client.migrate(&uri).await?)
}

/// Notes that QEMU is about to be told, so that it is not told again after a restart.
async fn begin(vm: &Vm, host: &Host, order: &MigrationOrder, saving: Option<Saving>) -> Result<(), Failure> {
    let begun = Begun {
        migration: order.migration.uid.clone(),
        process: vm.peer(),
        arrival: None,
        custody: Custody::Here,
        saving,
    };
    let note = |record: &mut VmRecord| record.begun = Some(begun);
    Ok(vm.remember(&host.journal, note).await?)
}

async fn seal(
    vm: &Vm,
    host: &Host,
    client: &Client,
    order: &MigrationOrder,
    file: &FileOrder,
    resume: bool,
) -> Result<(), Failure> {
    let uid = &order.migration.uid;
    let (begun, _) = vm.begun(uid);
    let saving = begun
        .and_then(|begun| begun.saving)
        .ok_or_else(|| impossible("the journal has no such file"))?;
    let here = machine(vm, client, order).await?;
    stage(vm, host, uid, SaveStage::Whole).await?;
    client.until_migration_settled().await?;
    if resume {
        // What QEMU has written no longer changes. The guest need not wait for the disk.
        client.cont().await?;
    }
    forget(client).await?;
    let put = async {
        let place = place(vm, host, file).await?;
        let (save, mapped, at) = (uid.clone(), saving.mapped, Timestamp::now().to_string());
        let manifest = move |length| Manifest::new(&save, here, mapped, length, at);
        let save = uid.clone();
        blocking(move || place.seal(&save, saving.inode, manifest)).await
    };
    match put.await {
        Ok(length) => {
            info!(file = file.path, length, "the VM is in the file");
            stage(vm, host, uid, SaveStage::Named(length)).await
        }
        // The kernel reports only once that something is not on disk: its answer when asked again is no proof.
        Err(failure) => {
            warn!(file = file.path, error = failure.error, "the file gets no name");
            stage(vm, host, uid, SaveStage::Spoilt).await?;
            Err(failure)
        }
    }
}

/// Why a file is not loaded.
enum Loading {
    /// It may not be. QEMU was told nothing.
    Refused(String),
    /// A step was not taken.
    Failed(Failure),
}

impl Loading {
    /// The file could not be looked at. QEMU was told nothing; but only a refusal is the last word.
    fn unseen(failure: Failure) -> Self {
        if failure.refused {
            Self::Refused(failure.error)
        } else {
            Self::Failed(failure)
        }
    }
}

impl<E: Into<Failure>> From<E> for Loading {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Lets QEMU load the VM; gives what stands beside the file.
async fn load(
    vm: &Vm,
    host: &Host,
    client: &Client,
    order: &MigrationOrder,
    file: &FileOrder,
) -> Result<Manifest, Loading> {
    // Once more: it may be another by now.
    let manifest = match try_file(vm, host, client, order, file).await {
        Ok(FileSeen::Loadable(manifest)) => manifest,
        Ok(FileSeen::Refused(why)) => return Err(Loading::Refused(why)),
        Ok(FileSeen::Writable | FileSeen::Told(_) | FileSeen::Gone) => {
            return Err(Loading::Refused("it is to be written".to_owned()));
        }
        Err(failure) => return Err(Loading::unseen(failure)),
    };
    let opened = async {
        let place = place(vm, host, file).await?;
        blocking(move || place.load()).await
    };
    let (opened, length) = opened.await.map_err(Loading::unseen)?;
    if length != manifest.length {
        return Err(Loading::Refused("the file is not whole any more".to_owned()));
    }
    // What reads is as fast as it can be.
    let way = Way {
        mapped: manifest.mapped_ram,
        bandwidth: 0,
    };
    prepare(host, client, way).await?;
    let uri = hand(client, opened.as_fd()).await?;
    // QEMU then leaves the VM paused when it has loaded it: the agent starts it, and the journal knows.
    client.stop().await?;
    begin(vm, host, order, None).await?;
    client.migrate_incoming(&uri).await?;
    Ok(manifest)
}

#[cfg(test)]
#[path = "file_steps_tests.rs"]
mod tests;
