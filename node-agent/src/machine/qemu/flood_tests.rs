//! A QEMU that its guest has taken over.

use hybridnic_api::{
    limits,
    v1alpha1::{AttachmentState, MigrationOrder, ObjectRef},
};
use serde_json::json;

use super::*;
use crate::{
    host,
    machine::qemu::peer::{Peer, SOON},
};

fn order() -> MigrationOrder {
    MigrationOrder {
        migration: ObjectRef {
            name: "m".into(),
            uid: "m".into(),
        },
        nics: vec!["a".into()],
        step: MigrationStep::Transfer,
        target_uri: None,
        listen_address: None,
        tls: None,
        file: None,
    }
}

fn vm() -> Vm {
    let vm = Vm::new(Runtime::Qemu, "ns", "pod", "pod-uid");
    vm.update_nic("a", |nic| {
        nic.nic = "a".into();
        nic.state = AttachmentState::Standby;
    });
    vm
}

/// Anything unknown that it sends becomes one word, no matter how long.
#[tokio::test]
async fn only_known_words_are_noted() {
    let dir = tempfile::tempdir().unwrap();
    let host = host::tests::host(dir.path(), 1, 1);
    let vm = vm();
    let (client, mut peer) = Peer::connect().await;
    let qemu = async {
        let long = "A".repeat(7900);
        for status in ["completed", "\u{1b}[2Jcompleted", &long, "none", "teleporting"] {
            peer.event("MIGRATION", json!({"status": status})).await;
        }
        peer.event(&long, json!({})).await;
        peer.event("RESUME", json!({})).await;
        let mut changes = vm.pulse();
        // RESUME is the last of them, and asks for a fresh look.
        tokio::time::timeout(SOON, changes.wait_for(|pulse| pulse.fresh >= 2))
            .await
            .unwrap()
            .unwrap();
        let timeline = vm.nics()["a"].timeline.clone();
        let events: Vec<_> = timeline.iter().map(|entry| entry.event.as_str()).collect();
        assert_eq!(
            events,
            [
                "Migration completed",
                "Migration other",
                "Migration other",
                "Migration none",
                "Migration other",
                "RESUME"
            ]
        );
        for n in 0..100 {
            peer.event("MIGRATION", json!({"status": format!("{n:06}{long}")}))
                .await;
        }
        peer.event("RESUME", json!({})).await;
        tokio::time::timeout(SOON, changes.wait_for(|pulse| pulse.fresh >= 3))
            .await
            .unwrap()
            .unwrap();
        let timeline = vm.nics()["a"].timeline.clone();
        assert_eq!(timeline.len(), limits::TIMELINE);
        let size: usize = timeline.iter().map(|entry| entry.event.len()).sum();
        assert!(size < limits::TIMELINE * limits::WORD, "{size}");
    };
    tokio::select! {
        reason = serve(&vm, &host, &client, None) => panic!("the session has ended: {reason}"),
        () = qemu => {}
    }
}

#[tokio::test]
async fn a_flood_ends_the_session_and_the_nics_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let host = host::tests::host(dir.path(), 1, 1);
    let vm = vm();
    let few = Options {
        max_events: 50,
        ..Options::default()
    };
    let (client, mut peer) = Peer::connect_with(few).await;
    let flood = async { while peer.try_event("RESUME", json!({})).await.is_ok() {} };
    let (reason, ()) = tokio::join!(serve(&vm, &host, &client, None), flood);
    assert!(is_flood(&reason), "{reason}");
    let left = tokio::spawn(async move {
        let vm = vm;
        tokio::select! {
            // It says so before it waits.
            biased;
            () = leave_alone(&vm, &host, Duration::from_mins(1)) => panic!("it was not left alone"),
            () = vm.tried() => {}
            () = tokio::time::sleep(SOON) => panic!("nobody says so"),
        }
        vm.session()
    });
    assert!(matches!(left.await.unwrap(), Session::Flooding));
    assert!(!is_flood(&CloseReason::Eof));
}

/// Its VM may be in the pause of its migration, for as long as nobody tells QEMU to go on.
#[tokio::test(start_paused = true)]
async fn in_a_migration_a_qemu_that_floods_is_listened_to_again_soon() {
    let dir = tempfile::tempdir().unwrap();
    let host = host::tests::host(dir.path(), 1, 1);
    let vm = vm();
    let began = tokio::time::Instant::now();
    let migration = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        vm.update_nic("a", |nic| nic.order = Some(order()));
    };
    tokio::join!(leave_alone(&vm, &host, FLOODED_CAP), migration);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let began = tokio::time::Instant::now();
    leave_alone(&vm, &host, FLOODED_CAP).await;
    let waited = began.elapsed();
    assert!(FLOODED <= waited && waited < 2 * FLOODED, "{waited:?}");
    vm.update_nic("a", |nic| nic.order = None);
    let began = tokio::time::Instant::now();
    leave_alone(&vm, &host, FLOODED * 8).await;
    assert!(began.elapsed() >= FLOODED * 8);
}
