//! The steps against a scripted QEMU, with macvtaps that tell what the journal had when they were set.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use futures::future::BoxFuture;
use hybridnic_api::v1alpha1::{AttachmentState, Goal, MigrationState, ObjectRef, Runtime};
use hybridnic_net::netlink::NetlinkError;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::{
    host,
    links::LinkAt,
    machine::{
        handover::Macvtaps,
        qemu::{peer::Peer, session::serve},
    },
};

const ALONE: Duration = Duration::from_millis(100);

/// Macvtaps that are set, each with how far the VM's arrival was by the journal; or that cannot be.
#[derive(Debug)]
struct Taps {
    record: PathBuf,
    refuse: bool,
    set: Mutex<Vec<String>>,
}

impl Macvtaps for Taps {
    fn set<'a>(&'a self, macvtap: &'a LinkAt, up: bool) -> BoxFuture<'a, Result<bool, NetlinkError>> {
        let word = if up { "up" } else { "down" };
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        set.push(format!("{} {word}: {}", macvtap.name, arrival(&self.record)));
        let operation = "set it".to_owned();
        let result = if self.refuse {
            Err(NetlinkError::Closed { operation })
        } else {
            Ok(true)
        };
        Box::pin(std::future::ready(result))
    }
}

/// How far the VM's arrival is, as the file says.
fn arrival(record: &Path) -> Value {
    let text = std::fs::read(record).unwrap_or_default();
    let record: Value = serde_json::from_slice(&text).unwrap_or_default();
    record["begun"]["arrival"].clone()
}

struct World {
    dir: TempDir,
    taps: Arc<Taps>,
    host: Arc<Host>,
    vm: Vm,
}

impl World {
    /// A VM of one NIC, with this order.
    fn new(step: MigrationStep, refuse: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let taps = Arc::new(Taps {
            record: dir.path().join("journal/pod-uid.vm"),
            refuse,
            set: Mutex::default(),
        });
        let mut host = host::tests::made(dir.path(), 1, 1);
        host.macvtaps = Arc::<Taps>::clone(&taps);
        let vm = Vm::new(Runtime::Qemu, "ns", "pod", "pod-uid");
        vm.update_nic("a", |nic| {
            nic.nic = "a".into();
            nic.macvtap = Some("hna".into());
            nic.standby_device = "sb-a".into();
            (nic.state, nic.goal) = match step {
                MigrationStep::Listen => (AttachmentState::Reserved, Goal::FastPath),
                _ => (AttachmentState::Standby, Goal::Standby),
            };
            nic.order = Some(order(step, Some("10.0.0.2")));
            nic.heard = true;
        });
        Self {
            dir,
            taps,
            host: Arc::new(host),
            vm,
        }
    }

    /// The same, whose migration was begun.
    async fn begun(step: MigrationStep, refuse: bool) -> Self {
        let world = Self::new(step, refuse);
        let custody = match step {
            MigrationStep::Listen => Custody::Unknown,
            _ => Custody::Here,
        };
        begin(&world.vm, &world.host, "m", custody).await.unwrap();
        world
    }

    fn arrival(&self) -> Value {
        arrival(&self.taps.record)
    }

    /// What was done to macvtaps.
    fn set(&self) -> Vec<String> {
        self.taps
            .set
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Serves a session for as long as QEMU has something to say.
    async fn serve(&self, client: &Client, qemu: impl Future<Output = ()>) {
        tokio::select! {
            reason = serve(&self.vm, &self.host, client, None) => panic!("the session has ended: {reason}"),
            () = qemu => {}
        }
    }
}

fn order(step: MigrationStep, listen_address: Option<&str>) -> MigrationOrder {
    MigrationOrder {
        migration: ObjectRef {
            name: "m".into(),
            uid: "m".into(),
        },
        nics: vec!["a".into()],
        step,
        target_uri: Some("tcp:10.0.0.2:4001".into()),
        listen_address: listen_address.map(Into::into),
        tls: None,
        file: None,
    }
}

fn pre_switchover() -> Value {
    json!({"status": "pre-switchover"})
}

#[tokio::test]
async fn a_vm_that_has_come_starts_once_the_journal_says_so_and_its_standbys_are_up() {
    let world = World::begun(MigrationStep::Listen, false).await;
    let (client, mut peer) = Peer::connect().await;
    let qemu = async {
        peer.shows("completed", "paused").await;
        peer.answer("query-rx-filter", json!([])).await;
        let cont = peer.asked("cont").await;
        assert_eq!(world.arrival(), "Starting");
        assert_eq!(world.set(), [r#"hna up: "Starting""#]);
        peer.reply(&cont, json!({})).await;
        let announce = peer.asked("announce-self").await;
        assert_eq!(world.arrival(), "Starting", "not before it is known to run");
        peer.reply(&announce, json!({})).await;
    };
    let (started, ()) = tokio::join!(start(&world.vm, &world.host, &client), qemu);
    started.unwrap();
    assert_eq!(world.arrival(), "Started");
}

#[tokio::test]
async fn a_vm_is_not_started_where_the_journal_cannot_be_written() {
    let world = World::begun(MigrationStep::Listen, false).await;
    let dir = world.dir.path();
    std::fs::rename(dir.join("journal"), dir.join("full")).unwrap();
    let (client, mut peer) = Peer::connect().await;
    let (started, ()) = tokio::join!(
        start(&world.vm, &world.host, &client),
        peer.shows("completed", "paused")
    );
    assert!(started.unwrap_err().contains("journal"));
    peer.is_left_alone(ALONE).await;
    assert_eq!(world.set(), [""; 0], "its standby stays silent");
}

/// Ending its QEMU has the same lock.
#[tokio::test]
async fn a_vm_is_not_started_while_its_fate_is_decided_nor_after_it_was_called_off() {
    let world = World::begun(MigrationStep::Listen, false).await;
    let (client, mut peer) = Peer::connect().await;
    let fate = world.vm.fate.lock().await;
    let started = start(&world.vm, &world.host, &client);
    tokio::pin!(started);
    tokio::select! {
        _ = &mut started => panic!("somebody else has its fate in hand"),
        () = peer.is_left_alone(ALONE) => {}
    }
    let given_up = order(MigrationStep::GiveUp, None);
    world.vm.update_nic("a", |nic| nic.order = Some(given_up));
    drop(fate);
    assert_eq!(started.await, Ok(()));
    peer.is_left_alone(ALONE).await;
    assert_eq!((world.arrival(), world.set().len()), (Value::Null, 0));
}

#[tokio::test]
async fn a_vm_leaves_once_its_standbys_are_silent() {
    let world = World::begun(MigrationStep::Transfer, false).await;
    let (client, mut peer) = Peer::connect().await;
    let qemu = async {
        peer.shows("active", "running").await;
        peer.event("STOP", json!({})).await;
        peer.event("MIGRATION", pre_switchover()).await;
        let goes_on = peer.asked("migrate-continue").await;
        assert_eq!(world.set(), ["hna down: null"]);
        let written = world.host.journal.vm("pod-uid").await.unwrap().unwrap();
        assert_eq!(
            written.begun.unwrap().custody,
            Custody::Left,
            "whatever becomes of the command, and of the agent"
        );
        peer.reply(&goes_on, json!({})).await;
        // Nobody asks QEMU anything before it reports how it went on.
        peer.is_left_alone(ALONE).await;
        peer.event("MIGRATION", json!({"status": "completed"})).await;
        peer.shows("completed", "postmigrate").await;
    };
    world.serve(&client, qemu).await;
}

#[tokio::test]
async fn a_migration_is_called_off_where_a_standby_cannot_be_silenced() {
    let world = World::begun(MigrationStep::Transfer, true).await;
    let (client, mut peer) = Peer::connect().await;
    let mut report = world.vm.migration_report();
    let qemu = async {
        peer.shows("active", "running").await;
        peer.event("MIGRATION", pre_switchover()).await;
        peer.answer("migrate_cancel", json!({})).await;
        assert_eq!(world.vm.custody("m"), Custody::Here, "it was never let go");
        peer.shows("cancelled", "running").await;
        let cancelled = |r: &Option<_>| r.as_ref().is_some_and(|r: &_| is_cancelled(r));
        report.wait_for(cancelled).await.unwrap();
    };
    world.serve(&client, qemu).await;
}

/// An agent that comes after this one would not know that the VM may have left.
#[tokio::test]
async fn a_migration_is_called_off_where_the_journal_cannot_say_that_the_vm_may_leave() {
    let world = World::begun(MigrationStep::Transfer, false).await;
    let dir = world.dir.path();
    std::fs::rename(dir.join("journal"), dir.join("full")).unwrap();
    let (client, mut peer) = Peer::connect().await;
    let qemu = async {
        peer.shows("active", "running").await;
        peer.event("MIGRATION", pre_switchover()).await;
        peer.answer("migrate_cancel", json!({})).await;
        assert_eq!(world.vm.custody("m"), Custody::Here);
    };
    world.serve(&client, qemu).await;
}

/// The order may have been taken back while the agent was away.
#[tokio::test]
async fn a_vm_is_not_started_by_an_order_that_only_the_journal_has() {
    let world = World::begun(MigrationStep::Listen, false).await;
    world.vm.update_nic("a", |nic| nic.heard = false);
    let (client, mut peer) = Peer::connect().await;
    let qemu = async {
        peer.shows("completed", "paused").await;
        peer.is_left_alone(ALONE).await;
        assert_eq!(world.arrival(), Value::Null);
        world.vm.update_nic("a", |nic| nic.heard = true);
        peer.shows("completed", "paused").await;
        peer.shows("completed", "paused").await;
        peer.answer("query-rx-filter", json!([])).await;
        peer.answer("cont", json!({})).await;
    };
    world.serve(&client, qemu).await;
}

fn is_cancelled(report: &hybridnic_api::v1alpha1::MigrationReport) -> bool {
    report.state == MigrationState::Cancelled
}

/// In the VM's pause no event may come.
#[tokio::test]
async fn a_hand_over_that_failed_is_tried_again_though_nothing_tells_to() {
    let world = World::begun(MigrationStep::Transfer, false).await;
    let (client, mut peer) = Peer::connect().await;
    let qemu = async {
        peer.shows("active", "running").await;
        peer.event("MIGRATION", pre_switchover()).await;
        // At once, by the event; at once again, by what is seen; and then by time.
        for _ in 0..3 {
            peer.refuse("migrate-continue").await;
            peer.answer("query-migrate", pre_switchover()).await;
            peer.shows("pre-switchover", "finish-migrate").await;
            assert_eq!(
                world.vm.custody("m"),
                Custody::Here,
                "QEMU has it, and has said no"
            );
        }
        peer.answer("migrate-continue", json!({})).await;
        assert_eq!(world.vm.custody("m"), Custody::Left);
    };
    world.serve(&client, qemu).await;
}

#[tokio::test]
async fn a_migration_that_cannot_be_seen_is_looked_at_again_soon() {
    let world = World::begun(MigrationStep::Transfer, false).await;
    let (client, mut peer) = Peer::connect().await;
    let qemu = async {
        peer.refuse("query-migrate").await;
        peer.shows("pre-switchover", "finish-migrate").await;
        peer.answer("migrate-continue", json!({})).await;
    };
    world.serve(&client, qemu).await;
}

#[tokio::test]
async fn a_vm_that_runs_again_by_itself_is_held_if_it_may_have_left() {
    for (custody, held) in [(Custody::Left, true), (Custody::Here, false)] {
        let world = World::begun(MigrationStep::Transfer, false).await;
        let noted = world.vm.set_custody(&world.host.journal, custody).await;
        noted.unwrap();
        let (client, mut peer) = Peer::connect().await;
        let qemu = async {
            peer.shows("device", "finish-migrate").await;
            peer.event("RESUME", json!({})).await;
            // Before anything else is asked: each moment is one in which it may run twice.
            if held {
                peer.answer("stop", json!({})).await;
            }
            peer.answer("query-migrate", json!({"status": "failed"})).await;
        };
        world.serve(&client, qemu).await;
    }
}

#[tokio::test]
async fn the_journal_has_a_migration_before_qemu_has() {
    for (step, last, uri) in [
        (MigrationStep::Listen, "migrate-incoming", "tcp:10.0.0.2:0"),
        (MigrationStep::Transfer, "migrate", "tcp:10.0.0.2:4001"),
    ] {
        let world = World::new(step, false);
        let (client, mut peer) = Peer::connect().await;
        let action = match step {
            MigrationStep::Listen => Action::Listen,
            _ => Action::Start(uri.to_owned()),
        };
        let order = order(step, Some("10.0.0.2"));
        let qemu = async {
            if step == MigrationStep::Transfer {
                peer.answer("query-migrate", json!({})).await;
            }
            peer.answer("migrate-set-capabilities", json!({})).await;
            peer.answer("migrate-set-parameters", json!({})).await;
            if step == MigrationStep::Listen {
                // So that QEMU leaves the VM paused when it has loaded it.
                peer.answer("stop", json!({})).await;
            }
            let asked = peer.asked(last).await;
            assert_eq!(asked["arguments"]["uri"], uri);
            let written = world.host.journal.vm("pod-uid").await.unwrap().unwrap();
            assert_eq!(written.begun.unwrap().migration, "m");
            peer.reply(&asked, json!({})).await;
        };
        let (done, ()) = tokio::join!(act(&world.vm, &world.host, &client, &order, &action), qemu);
        assert!(done.is_ok());
    }
}

#[test]
fn a_target_listens_on_its_pods_address_and_nowhere_else() {
    let uri = |address| listen_uri(&order(MigrationStep::Listen, address));
    assert_eq!(uri(Some("10.0.0.2")).as_deref(), Some("tcp:10.0.0.2:0"));
    assert_eq!(uri(Some("fd00::2")).as_deref(), Some("tcp:[fd00::2]:0"));
    for address in [
        None,
        Some("10.0.0.2:0,x"),
        Some("0.0.0.0"),
        Some("::"),
        Some("host"),
    ] {
        assert_eq!(uri(address), None);
    }
}

#[tokio::test]
async fn a_macvtap_that_has_gone_is_silent() {
    let dir = tempfile::tempdir().unwrap();
    let links = crate::links::Links {
        host: hybridnic_net::netlink::Netlink::open().unwrap(),
        sandboxes: crate::cni::Sandboxes::default(),
        sysfs: hybridnic_net::sysfs::Sysfs::new(dir.path()),
    };
    let set = links.set(&"hn-none".into(), false).await;
    assert!(!set.unwrap());
    // A pod's, which nobody holds: it has gone only where there is none of its index in any namespace.
    let device: hybridnic_net::DeviceId = "0000:01:00.0-3".parse().unwrap();
    let at = crate::links::LinkAt {
        name: "pod0".into(),
        pod: Some(crate::links::PodLink {
            pod_uid: "uid".into(),
            container: "c".into(),
            device,
        }),
    };
    links.set(&at, false).await.unwrap_err();
    let devices = dir.path().join("dev/char");
    std::fs::create_dir_all(&devices).unwrap();
    assert!(!links.set(&at, false).await.unwrap());
    let to = format!("../../devices/virtual/net/pod0/macvtap/tap{}", device.ifindex());
    std::os::unix::fs::symlink(to, devices.join("240:1")).unwrap();
    links.set(&at, false).await.unwrap_err();
}
