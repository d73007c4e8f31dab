//! A scripted QEMU of a launcher, with macvtaps that tell when they were set.

use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use hybridnic_api::v1alpha1::{Goal, MigrationOrder, MigrationState, MigrationStep, ObjectRef, Runtime};
use hybridnic_net::netlink::NetlinkError;
use serde_json::json;

use super::*;
use crate::{
    host,
    journal::Role,
    links::LinkAt,
    machine::{
        handover::Macvtaps,
        qemu::{
            peer::{Peer, SOON},
            session::serve,
        },
    },
};

#[derive(Debug, Default)]
struct Taps(Mutex<Vec<String>>);

impl Macvtaps for Taps {
    fn set<'a>(&'a self, macvtap: &'a LinkAt, up: bool) -> BoxFuture<'a, Result<bool, NetlinkError>> {
        let mut set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        set.push(format!("{} {}", macvtap.name, if up { "up" } else { "down" }));
        Box::pin(std::future::ready(Ok(true)))
    }
}

impl Taps {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn order() -> MigrationOrder {
    MigrationOrder {
        migration: ObjectRef {
            name: "m".into(),
            uid: "m".into(),
        },
        nics: vec!["a".into()],
        step: MigrationStep::Watch,
        target_uri: None,
        listen_address: None,
        tls: None,
        file: None,
    }
}

struct World {
    _dir: tempfile::TempDir,
    taps: Arc<Taps>,
    host: Host,
    vm: Vm,
}

impl World {
    /// A VM of one NIC that is on its standby, or awaited; in a migration or not.
    fn new(order: Option<MigrationOrder>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let taps = Arc::<Taps>::default();
        let mut host = host::tests::made(dir.path(), 1, 1);
        host.macvtaps = Arc::<Taps>::clone(&taps);
        let vm = Vm::new(Runtime::Kubevirt, "ns", "pod", "pod-uid");
        vm.update_nic("a", |nic| {
            nic.nic = "a".into();
            nic.macvtap = Some("poda".into());
            nic.standby_device = "ua-a".into();
            nic.goal = Goal::Standby;
            nic.order = order;
            nic.heard = true;
        });
        Self {
            _dir: dir,
            taps,
            host,
            vm,
        }
    }

    async fn session(&self, qemu: impl AsyncFnOnce(&mut Peer)) {
        let (client, mut peer) = Peer::connect().await;
        tokio::select! {
            reason = serve(&self.vm, &self.host, &client, None) => panic!("the session has ended: {reason}"),
            () = qemu(&mut peer) => {}
        }
    }

    async fn says(&self, state: MigrationState, kept: bool) {
        let mut report = self.vm.migration_report();
        let said = report.wait_for(|report| {
            report
                .as_ref()
                .is_some_and(|r| r.state == state && r.kept == kept)
        });
        tokio::time::timeout(SOON, said)
            .await
            .expect("it does not say so")
            .unwrap();
    }
}

async fn begins(peer: &mut Peer) {
    let asked = peer.asked("qom-get").await;
    assert_eq!(
        asked["arguments"],
        json!({"path": "/machine", "property": "acpi"})
    );
    peer.reply(&asked, json!("auto")).await;
}

#[tokio::test]
async fn a_source_goes_silent_at_the_pause_and_comes_back_if_the_vm_stays() {
    let world = World::new(Some(order()));
    world
        .session(async |peer| {
            begins(peer).await;
            peer.shows("none", "running").await;
            world.says(MigrationState::Prepared, true).await;
            assert_eq!(world.vm.record().watched.unwrap().role, Role::Source);
            peer.event("MIGRATION", json!({"status": "active"})).await;
            peer.shows("active", "running").await;
            world.says(MigrationState::Active, false).await;
            assert!(world.taps.take().is_empty());
            // No command is given before it is down.
            peer.event("STOP", json!({})).await;
            let asked = peer.asked("query-migrate").await;
            assert_eq!(world.taps.take(), ["poda down"]);
            peer.reply(&asked, json!({"status": "pre-switchover"})).await;
            peer.answer(
                "query-status",
                json!({"status": "finish-migrate", "running": false}),
            )
            .await;
            // The target did not take it.
            peer.event("RESUME", json!({})).await;
            let asked = peer.asked("announce-self").await;
            assert!(world.taps.take().contains(&"poda up".to_owned()));
            peer.reply(&asked, json!({})).await;
            peer.shows("failed", "running").await;
            world.says(MigrationState::Failed, true).await;
        })
        .await;
}

#[tokio::test]
async fn a_target_listens_and_is_up_as_soon_as_its_vm_runs() {
    let world = World::new(Some(order()));
    // Its QEMU is not there yet.
    world.vm.set_session(super::super::super::Session::Gone);
    drive(&world.vm, &world.host, None).await;
    assert_eq!(world.vm.record().watched.unwrap().role, Role::Target);
    world
        .session(async |peer| {
            begins(peer).await;
            peer.shows("none", "inmigrate").await;
            world.says(MigrationState::Listening, false).await;
            // What its devices say while they are loaded is no reason to ask it anything.
            peer.event("FAILOVER_NEGOTIATED", json!({"device-id": "ua-a"}))
                .await;
            peer.event("RESUME", json!({})).await;
            let asked = peer.asked("announce-self").await;
            assert_eq!(world.taps.take(), ["poda up"]);
            peer.reply(&asked, json!({})).await;
            peer.shows("completed", "running").await;
            world.says(MigrationState::Completed, false).await;
            assert!(world.vm.has_run());
            // A user's pause: no other VM has its MAC, and its NIC is up again with it.
            peer.event("STOP", json!({})).await;
            peer.shows("completed", "paused").await;
            assert_eq!(world.taps.take(), ["poda down"]);
        })
        .await;
}

#[tokio::test]
async fn a_vm_on_its_vf_keeps_its_standby_down_when_it_goes_on() {
    let world = World::new(None);
    world.vm.update_nic("a", |nic| nic.vf = true);
    world
        .session(async |peer| {
            begins(peer).await;
            peer.shows("none", "running").await;
            peer.event("STOP", json!({})).await;
            peer.shows("none", "paused").await;
            peer.event("RESUME", json!({})).await;
            peer.shows("none", "running").await;
            assert_eq!(world.taps.take(), ["poda down"], "and not up");
        })
        .await;
}
