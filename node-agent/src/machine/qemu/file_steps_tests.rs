//! The steps against a scripted QEMU, and files of this machine.

use std::{fs, io, os::fd::OwnedFd, path::Path, sync::Arc};

use futures::future::BoxFuture;
use hybridnic_api::v1alpha1::{
    AfterSave, AttachmentState, Goal, GuestPorts, MigrationState, MigrationStep, ObjectRef, Runtime,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::{
    broker::{self, Broker},
    host,
    machine::{
        listener::Listener,
        process::ProcessId,
        qemu::{peer::Peer, session::serve},
    },
};

/// Each process has this machine's root directory.
#[derive(Debug)]
struct Here;

fn none() -> BoxFuture<'static, io::Result<OwnedFd>> {
    Box::pin(std::future::ready(Err(io::ErrorKind::Unsupported.into())))
}

impl Broker for Here {
    fn socket<'a>(&'a self, _: &'a ProcessId, _: bool) -> BoxFuture<'a, io::Result<OwnedFd>> {
        none()
    }

    fn netlink<'a>(&'a self, _: broker::Pod<'a>) -> BoxFuture<'a, io::Result<OwnedFd>> {
        none()
    }

    fn groups<'a>(&'a self, _: broker::Pod<'a>) -> BoxFuture<'a, io::Result<OwnedFd>> {
        none()
    }

    fn memory(&self) -> BoxFuture<'_, io::Result<OwnedFd>> {
        none()
    }

    fn root<'a>(&'a self, _: &'a ProcessId) -> BoxFuture<'a, io::Result<OwnedFd>> {
        Box::pin(std::future::ready(fs::File::open("/").map(OwnedFd::from)))
    }
}

struct World {
    _dir: TempDir,
    /// On a file system of its own, as a volume is.
    volume: TempDir,
    host: Arc<Host>,
    vm: Vm,
}

/// A VM as an agent that has just started has it.
fn vm() -> Vm {
    let vm = Vm::new(Runtime::Qemu, "ns", "pod", "pod-uid");
    vm.update_nic("a", |nic| {
        (nic.nic, nic.vm, nic.mac) = ("a".into(), "vm".into(), "02:00:00:00:00:01".into());
        nic.ports = Some(GuestPorts::default());
        nic.heard = true;
    });
    vm
}

impl World {
    /// A VM of one NIC on its standby.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut host = host::tests::made(dir.path(), 1, 1);
        host.broker = Arc::new(Here);
        Self {
            _dir: dir,
            volume: tempfile::tempdir_in("/dev/shm").unwrap(),
            host: Arc::new(host),
            vm: vm(),
        }
    }

    /// Another agent takes the place of one that has died: it knows what the journal has.
    async fn next_agent(&mut self) {
        self.vm = vm();
        self.vm.recall(&self.host.journal).await.unwrap();
    }

    fn file(&self) -> String {
        format!("{}/vm", self.volume.path().display())
    }

    fn order(&self, step: MigrationStep, then: Option<AfterSave>) {
        let order = MigrationOrder {
            migration: ObjectRef {
                name: "m".into(),
                uid: "m".into(),
            },
            nics: vec!["a".into()],
            step,
            target_uri: None,
            listen_address: None,
            tls: None,
            file: Some(FileOrder {
                path: self.file(),
                then,
                bandwidth: None,
            }),
        };
        self.vm.update_nic("a", |nic| {
            (nic.state, nic.goal) = match then {
                Some(_) => (AttachmentState::Standby, Goal::Standby),
                None => (AttachmentState::Reserved, Goal::FastPath),
            };
            nic.order = Some(order);
        });
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.volume.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    async fn stage(&self) -> Option<SaveStage> {
        let record = self.host.journal.vm("pod-uid").await.unwrap()?;
        Some(record.begun?.saving?.stage)
    }

    /// How far the VM's arrival is.
    async fn arrival(&self) -> Option<crate::journal::Arrival> {
        let record = self.host.journal.vm("pod-uid").await.unwrap()?;
        record.begun?.arrival
    }

    /// Serves a session until QEMU has nothing more to say.
    async fn serve(&self, client: &Client, qemu: impl Future<Output = ()>) {
        let me = ProcessId::of(std::process::id().cast_signed()).unwrap().unwrap();
        let peer = Some(Listener::pretend(me));
        tokio::select! {
            reason = serve(&self.vm, &self.host, client, peer) => panic!("the session has ended: {reason}"),
            () = qemu => {}
        }
    }

    async fn says(&self, state: MigrationState) {
        let mut report = self.vm.migration_report();
        let is = |report: &Option<hybridnic_api::v1alpha1::MigrationReport>| {
            report.as_ref().is_some_and(|report| report.state == state)
        };
        report.wait_for(is).await.unwrap();
    }
}

/// QEMU is asked whether it has what files need: it has.
async fn has_capabilities(peer: &mut Peer) {
    let all =
        json!([{"capability": "mapped-ram", "state": false}, {"capability": "multifd", "state": false}]);
    peer.answer("query-migrate-capabilities", all).await;
}

/// What it is told to do with them.
async fn sets(peer: &mut Peer) -> Value {
    let set = peer.asked("migrate-set-capabilities").await;
    peer.reply(&set, json!({})).await;
    set["arguments"]["capabilities"].clone()
}

/// What only files need is on, or off.
fn are_of_files(set: &Value, on: bool) -> bool {
    let of = |name: &str| {
        let all = set.as_array().unwrap().iter();
        let states: Vec<_> = all.filter(|one| one["capability"] == name).collect();
        states.len() == 1 && states[0]["state"] == on
    };
    of("mapped-ram") && of("multifd")
}

/// QEMU is given a file and told to write or to load it.
async fn is_given(peer: &mut Peer, told: &str) {
    has_capabilities(peer).await;
    assert!(are_of_files(&sets(peer).await, true));
    peer.answer("migrate-set-parameters", json!({})).await;
    let passed = peer.asked("add-fd").await;
    assert_eq!(passed["arguments"]["opaque"], "hybridnic-file");
    peer.reply(&passed, json!({"fdset-id": 7, "fd": 20})).await;
    if told == "migrate-incoming" {
        // It is not to start the VM by itself.
        peer.answer("stop", json!({})).await;
    }
    let begun = peer.asked(told).await;
    assert_eq!(begun["arguments"]["uri"], "file:/dev/fdset/7");
    peer.reply(&begun, json!({})).await;
}

/// QEMU lets go of the file, and of nothing else; and what only files need goes.
async fn forgets(peer: &mut Peer) {
    let passed = json!([
        {"fdset-id": 3, "fds": [{"fd": 9}]},
        {"fdset-id": 7, "fds": [{"fd": 20, "opaque": "hybridnic-file"}]},
    ]);
    peer.answer("query-fdsets", passed).await;
    let removed = peer.asked("remove-fd").await;
    assert_eq!(removed["arguments"], json!({"fdset-id": 7}));
    peer.reply(&removed, json!({})).await;
    has_capabilities(peer).await;
    assert!(are_of_files(&sets(peer).await, false));
}

/// QEMU says what machine it is.
async fn is_a_machine(peer: &mut Peer) {
    peer.answer("qom-get", json!("pc-q35-10.0-machine")).await;
    peer.answer("query-memory-size-summary", json!({"base-memory": 4096}))
        .await;
}

/// QEMU writes a VM: all of it but what follows.
async fn writes(world: &World, peer: &mut Peer) {
    peer.shows("none", "running").await;
    peer.answer("query-migrate", json!({})).await;
    has_capabilities(peer).await;
    is_given(peer, "migrate").await;
    assert_eq!(world.stage().await, Some(SaveStage::Writing));
    assert_eq!(world.names(), [".vm.m.part"]);
    fs::write(world.volume.path().join(".vm.m.part"), b"a whole VM").unwrap();
    peer.shows("active", "running").await;
    peer.event("MIGRATION", json!({"status": "completed"})).await;
    peer.shows("completed", "postmigrate").await;
}

#[tokio::test]
async fn a_snapshot_does_not_pause_the_vm_for_the_disk() {
    let world = World::new();
    world.order(MigrationStep::Save, Some(AfterSave::Continue));
    let (client, mut peer) = Peer::connect().await;
    let qemu = async {
        writes(&world, &mut peer).await;
        is_a_machine(&mut peer).await;
        peer.answer("query-status", json!({"status": "postmigrate", "running": false}))
            .await;
        let cont = peer.asked("cont").await;
        assert_eq!(
            world.stage().await,
            Some(SaveStage::Whole),
            "an agent that comes next must know"
        );
        assert_eq!(world.names(), [".vm.m.part"]);
        peer.reply(&cont, json!({})).await;
        forgets(&mut peer).await;
        peer.shows("completed", "running").await;
        world.says(MigrationState::Completed).await;
    };
    world.serve(&client, qemu).await;
    assert_eq!(world.stage().await, Some(SaveStage::Named(10)));
    assert_eq!(world.names(), ["vm", "vm.hybridnic.json"]);
    let manifest = Manifest::read(&fs::read(format!("{}.hybridnic.json", world.file())).unwrap()).unwrap();
    assert_eq!((manifest.length, manifest.mapped_ram), (10, true));
    assert_eq!(manifest.machine.machine_type, "pc-q35-10.0");
    assert_eq!(
        (&*manifest.machine.vm, &*manifest.machine.nics[0].name),
        ("vm", "a")
    );
}

#[tokio::test]
async fn a_vm_that_is_to_end_stays_paused_until_its_file_has_its_name() {
    let world = World::new();
    world.order(MigrationStep::Save, Some(AfterSave::End));
    let (client, mut peer) = Peer::connect().await;
    let qemu = async {
        writes(&world, &mut peer).await;
        is_a_machine(&mut peer).await;
        peer.answer("query-status", json!({"status": "postmigrate", "running": false}))
            .await;
        forgets(&mut peer).await;
        peer.shows("completed", "postmigrate").await;
        world.says(MigrationState::Completed).await;
    };
    world.serve(&client, qemu).await;
    assert_eq!(world.stage().await, Some(SaveStage::Named(10)));
}

/// The one before it died when QEMU had written all, and the save was called off.
#[tokio::test]
async fn a_vm_whose_save_is_called_off_at_its_end_runs_and_leaves_no_file() {
    let world = World::new();
    world.order(MigrationStep::Save, Some(AfterSave::End));
    let (client, mut peer) = Peer::connect().await;
    world.serve(&client, writes(&world, &mut peer)).await;
    world.order(MigrationStep::Cancel, Some(AfterSave::End));
    let (client, mut peer) = Peer::connect().await;
    let qemu = async {
        peer.shows("completed", "postmigrate").await;
        peer.answer("query-status", json!({"status": "postmigrate", "running": false}))
            .await;
        let cont = peer.asked("cont").await;
        assert_eq!(
            world.stage().await,
            Some(SaveStage::Spoilt),
            "what runs on is ahead of the file"
        );
        peer.reply(&cont, json!({})).await;
        forgets(&mut peer).await;
        peer.shows("completed", "running").await;
        world.says(MigrationState::Cancelled).await;
    };
    world.serve(&client, qemu).await;
    assert!(world.names().is_empty());
}

/// A file of this VM.
fn saved(world: &World, length: u64) {
    let nic = SavedNic {
        name: "a".into(),
        mac: "02:00:00:00:00:01".into(),
        pairing: hybridnic_api::v1alpha1::Pairing::NetFailover,
        standby: hybridnic_api::v1alpha1::StandbyKind::Macvtap,
        ports: Some(GuestPorts::default()),
    };
    let machine = SavedMachine {
        namespace: "ns".into(),
        vm: "vm".into(),
        machine_type: "pc-q35-10.0".into(),
        memory: 4096,
        qemu: "10.0.2".into(),
        nics: vec![nic],
    };
    let manifest = Manifest::new("s", machine, true, length, String::new());
    let beside = format!("{}.hybridnic.json", world.file());
    fs::write(Path::new(&beside), serde_json::to_vec(&manifest).unwrap()).unwrap();
    fs::write(world.file(), b"a whole VM").unwrap();
}

#[tokio::test]
async fn a_file_is_looked_at_once_more_before_it_is_loaded() {
    for length in [10, 11] {
        let world = World::new();
        saved(&world, length);
        world.order(MigrationStep::Load, None);
        let (client, mut peer) = Peer::connect().await;
        let qemu = async {
            peer.answer("query-migrate", json!({})).await;
            peer.answer("query-status", json!({"status": "inmigrate", "running": false}))
                .await;
            is_a_machine(&mut peer).await;
            has_capabilities(&mut peer).await;
            if length == 10 {
                is_given(&mut peer, "migrate-incoming").await;
                peer.shows("active", "inmigrate").await;
                world.says(MigrationState::Active).await;
            } else {
                peer.answer("query-migrate", json!({})).await;
                peer.answer("query-status", json!({"status": "inmigrate", "running": false}))
                    .await;
                world.says(MigrationState::Failed).await;
            }
        };
        world.serve(&client, qemu).await;
        let report = world.vm.migration_report().borrow().clone().unwrap();
        assert_eq!(report.refused, length != 10);
    }
}

/// A NIC without a standby gets its port only when its VF is plugged: after QEMU was told.
#[tokio::test]
async fn where_a_nic_was_is_known_until_the_restore_is_over() {
    let world = World::new();
    saved(&world, 10);
    world.order(MigrationStep::Load, None);
    let (client, mut peer) = Peer::connect().await;
    let qemu = async {
        peer.answer("query-migrate", json!({})).await;
        peer.answer("query-status", json!({"status": "inmigrate", "running": false}))
            .await;
        is_a_machine(&mut peer).await;
        has_capabilities(&mut peer).await;
        is_given(&mut peer, "migrate-incoming").await;
        peer.shows("active", "inmigrate").await;
        world.says(MigrationState::Active).await;
    };
    world.serve(&client, qemu).await;
    let Some(FileSeen::Told(manifest)) = world.vm.file("m") else {
        panic!("QEMU was told");
    };
    assert_eq!(manifest.ports_of("a"), Some(&GuestPorts::default()));
}

/// A QEMU before 9.0 writes one stream, and one before 8.2 takes no file but a descriptor.
#[tokio::test]
async fn an_older_qemu_writes_one_stream() {
    for (version, uri) in [((8, 2), "file:/dev/fdset/7"), ((8, 1), "fd:hybridnic-file")] {
        let world = World::new();
        world.order(MigrationStep::Save, Some(AfterSave::End));
        let (client, mut peer) = Peer::connect_as(version).await;
        let has = async |peer: &mut Peer| {
            let all = json!([{"capability": "multifd", "state": false}]);
            peer.answer("query-migrate-capabilities", all).await;
        };
        let only_multifd = |set: &Value| {
            let of = |name: &str| {
                let all = set.as_array().unwrap().iter();
                all.filter(|one| one["capability"] == name)
                    .map(|one| one["state"].clone())
                    .collect::<Vec<_>>()
            };
            assert_eq!(of("mapped-ram"), [] as [Value; 0], "it does not know it");
            assert_eq!(of("multifd"), [json!(false)]);
        };
        let qemu = async {
            peer.shows("none", "running").await;
            peer.answer("query-migrate", json!({})).await;
            has(&mut peer).await;
            has(&mut peer).await;
            only_multifd(&sets(&mut peer).await);
            peer.answer("migrate-set-parameters", json!({})).await;
            if version == (8, 2) {
                peer.answer("add-fd", json!({"fdset-id": 7, "fd": 20})).await;
            } else {
                let given = peer.asked("getfd").await;
                assert_eq!(given["arguments"]["fdname"], "hybridnic-file");
                peer.reply(&given, json!({})).await;
            }
            let begun = peer.asked("migrate").await;
            assert_eq!(begun["arguments"]["uri"], uri);
            peer.reply(&begun, json!({})).await;
            fs::write(world.volume.path().join(".vm.m.part"), b"a whole VM").unwrap();
            peer.shows("active", "running").await;
            peer.event("MIGRATION", json!({"status": "completed"})).await;
            peer.shows("completed", "postmigrate").await;
            is_a_machine(&mut peer).await;
            peer.answer("query-status", json!({"status": "postmigrate", "running": false}))
                .await;
            peer.answer("query-fdsets", json!([])).await;
            has(&mut peer).await;
            only_multifd(&sets(&mut peer).await);
            peer.shows("completed", "postmigrate").await;
            world.says(MigrationState::Completed).await;
        };
        world.serve(&client, qemu).await;
        let manifest =
            Manifest::read(&fs::read(format!("{}.hybridnic.json", world.file())).unwrap()).unwrap();
        assert!(!manifest.mapped_ram);
        assert_eq!(manifest.machine.qemu, format!("{}.{}.2", version.0, version.1));
    }
}

/// What was written with mapped-ram only a QEMU that has it can load.
#[tokio::test]
async fn an_older_qemu_is_not_told_to_load_what_it_cannot() {
    let world = World::new();
    saved(&world, 10);
    world.order(MigrationStep::Prepare, None);
    let (client, mut peer) = Peer::connect_as((8, 2)).await;
    let qemu = async {
        peer.shows("none", "inmigrate").await;
        is_a_machine(&mut peer).await;
        peer.answer("query-migrate-capabilities", json!([])).await;
        peer.shows("none", "inmigrate").await;
        world.says(MigrationState::Prepared).await;
    };
    world.serve(&client, qemu).await;
    let report = world.vm.migration_report().borrow().clone().unwrap();
    assert!(report.refused);
    assert_eq!(
        report.error.as_deref(),
        Some("the file was written by QEMU 10.0.2 with mapped-ram, which QEMU 8.2.2 does not have")
    );
}

#[path = "file_steps_restart_tests.rs"]
mod restarts;

#[test]
fn threads_write_where_there_is_no_limit_to_keep() {
    for (mapped, bandwidth, threads) in [(true, 0, true), (true, 1 << 20, false), (false, 0, false)] {
        assert_eq!(Way { mapped, bandwidth }.has_threads(), threads);
    }
}
