use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering},
};

use http::{Request, Response};
use hybridnic_api::{
    conditions::{self, NewCondition, types},
    names::ATTACHMENT_FINALIZER,
    v1alpha1::{MigrationOrder, MigrationStep, NicAttachment, ObjectRef, Path, TimelineEntry},
};
use kube::{Client, client::Body, runtime::watcher};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;
use crate::{
    host,
    journal::{
        StandbyRecord,
        tests::{held_vf, record},
    },
    node::choice::{Pick, Wish},
    wants::cluster::{Cluster, heard, want},
};

/// The attachments of a node of two VFs, and what they write to the API server, which takes it all.
fn attachments(dir: &std::path::Path) -> (Attachments<Cluster>, mpsc::UnboundedReceiver<Value>) {
    let (sent, written) = mpsc::unbounded_channel();
    let server = tower::service_fn(move |request: Request<Body>| {
        let sent = sent.clone();
        async move {
            let body = request.into_body().collect_bytes().await?;
            let body: Value = serde_json::from_slice(&body)?;
            // Nobody may look any more.
            let _ = sent.send(body.clone());
            let mut object = body;
            object["spec"] = json!(record("a").spec);
            Ok::<_, tower::BoxError>(Response::new(Body::from(object.to_string().into_bytes())))
        }
    });
    let client = Client::new(server, "default");
    let host = host::tests::host(dir, 1, 2);
    let sockets = Sockets::new(dir, Arc::clone(&host.troubles));
    (
        Attachments::new(Cluster::new(client, "n1"), host, sockets, Progress::default()),
        written,
    )
}

/// How often a NIC's status is written within 20 s, while it changes every 10 ms as `change` says.
async fn writes_in_twenty_seconds(change: impl Fn(&mut NicAttachmentStatus, u32)) -> usize {
    let written = Arc::new(AtomicUsize::default());
    let count = Arc::clone(&written);
    let answer = serde_json::to_vec(&object(&record("its-uid"))).unwrap();
    let server = tower::service_fn(move |_: Request<Body>| {
        count.fetch_add(1, Ordering::Relaxed);
        let answer = Response::new(Body::from(answer.clone()));
        std::future::ready(Ok::<_, tower::BoxError>(answer))
    });
    let id = WantId {
        namespace: "ns".into(),
        name: "nic".into(),
        uid: "uid".into(),
    };
    let reporter = Reporter::new(Cluster::new(Client::new(server, "default"), "n1").teller(&id));
    let (status, status_rx) = watch::channel(None);
    let (_deleting, deleting_rx) = watch::channel(false);
    let running = tokio::spawn(reporter.run(status_rx, deleting_rx, watch::Sender::new(true)));
    let mut now = NicAttachmentStatus::default();
    for tick in 0..2000 {
        change(&mut now, tick);
        status.send_replace(Some(now.clone()));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    running.abort();
    written.load(Ordering::Relaxed)
}

/// A QEMU that its guest has taken over changes what it says as often as it likes.
#[tokio::test(start_paused = true)]
async fn whatever_qemu_says_there_is_a_write_a_second() {
    let say = |status: &mut NicAttachmentStatus, tick: u32, message: String| {
        let reason = [reasons::QMP_UNAVAILABLE, reasons::GUEST_KEEPS_VF][tick as usize % 2];
        let condition = NewCondition::no(types::READY, reason, message);
        conditions::set(&mut status.conditions, None, Timestamp::UNIX_EPOCH, condition);
    };
    let words = writes_in_twenty_seconds(|status, tick| say(status, tick, format!("{tick}"))).await;
    assert!((19..=21).contains(&words), "{words}");
    let events = writes_in_twenty_seconds(|status, tick| {
        let event = format!("Migration {tick}");
        let at = k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(Timestamp::UNIX_EPOCH);
        status.timeline = vec![TimelineEntry { event, at }];
    })
    .await;
    assert!((8..=11).contains(&events), "{events}");
    // A change of place is written at once, because it looks like a NIC that really moves: but not for long.
    let moves = writes_in_twenty_seconds(|status, tick| {
        status.path = [Path::FastPath, Path::Standby][tick as usize % 2];
    })
    .await;
    assert!((45..=51).contains(&moves), "{moves}");
}

/// The object of a record, whose NIC is on its VF.
fn object(record: &Record) -> NicAttachment {
    let mut object = NicAttachment::new(&record.name, record.spec.clone());
    object.metadata.namespace = Some(record.namespace.clone());
    object.metadata.uid = Some(record.uid.clone());
    object.metadata.generation = Some(3);
    object.metadata.finalizers = Some(vec![ATTACHMENT_FINALIZER.to_owned()]);
    let mut status = NicAttachmentStatus {
        state: AttachmentState::FastPath,
        observed_generation: Some(2),
        ..NicAttachmentStatus::default()
    };
    let fast = NewCondition::yes(types::FAST_PATH, reasons::VF_ACTIVE, "the VF carries the traffic");
    conditions::set(&mut status.conditions, Some(2), Timestamp::UNIX_EPOCH, fast);
    object.status = Some(status);
    object
}

#[tokio::test]
async fn a_nic_whose_record_cannot_be_read_keeps_what_it_has_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (mut attachments, mut written) = attachments(dir.path());
    let host = Arc::clone(&attachments.host);
    let mut held = record("spoilt");
    held.vf = Some(held_vf(0, 0));
    let text = serde_json::to_string_pretty(&held).unwrap();
    fs::write(dir.path().join("journal/spoilt.json"), &text[..text.len() - 9]).unwrap();
    let contents = host.journal.load().unwrap();
    let [unreadable] = <[_; 1]>::try_from(contents.unreadable).unwrap();
    attachments.hold_back(unreadable);

    let trouble = host.troubles.condition();
    assert_eq!(
        (trouble.status, trouble.reason.as_str()),
        (Some(true), reasons::JOURNAL_FAILED)
    );
    // Of the two VFs another NIC gets the other one.
    let uplink = hybridnic_api::v1alpha1::Uplink::default();
    host.pools.set_pools(&[hybridnic_api::v1alpha1::NodePool {
        network: "net".into(),
        uplinks: vec![uplink],
        tags: hybridnic_api::v1alpha1::PoolTags::None,
        standby_slots: 0,
        l2: None,
    }]);
    let inventory = host.inventory().await.unwrap();
    let take = |uid: &str| {
        let claimant = Claimant {
            created: 1,
            nic: format!("ns/{uid}"),
            uid: uid.to_owned(),
        };
        let wish = Wish {
            network: "net",
            pick: Pick::Any,
            standby_pf: None,
        };
        let taken = host.pools.take(&inventory, &claimant, &wish);
        taken.map(|choice| choice.vf.address)
    };
    assert_eq!(take("b"), Some(held_vf(0, 1).address));
    assert_eq!(take("c"), None);

    let mut object = object(&held);
    attachments.on_want(want(object.clone()));
    let said: NicAttachmentStatus =
        serde_json::from_value(written.recv().await.unwrap()["status"].take()).unwrap();
    let before = object.status.clone().unwrap();
    let ready = conditions::find(&said.conditions, types::READY).unwrap();
    assert_eq!(
        (
            ready.status.as_str(),
            ready.reason.as_str(),
            ready.observed_generation
        ),
        ("False", reasons::JOURNAL_FAILED, Some(3))
    );
    for words in ["spoilt.json", "end the VM first", "restart the agent"] {
        assert!(ready.message.contains(words), "no {words}: {}", ready.message);
    }
    let mut rest = said.clone();
    conditions::remove(&mut rest.conditions, types::READY);
    assert_eq!(rest, before, "the devices are where they were");

    // Its deletion waits: what it holds cannot be given back.
    object.status = Some(said);
    object.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        Timestamp::UNIX_EPOCH,
    ));
    attachments.on_want(want(object.clone()));
    attachments.on_heard(heard(watcher::Event::Delete(object)));
    assert!(attachments.running.is_empty() && attachments.vms.is_empty());
    assert_eq!(take("c"), None);
    tokio::task::yield_now().await;
    assert!(
        written.try_recv().is_err(),
        "nothing new to say, and the finalizer stays"
    );
}

/// After a restart a NIC may have left before its object is seen, and something else may be asked of one that has left.
#[tokio::test]
async fn a_nic_that_has_left_says_so_of_its_object_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (mut attachments, mut written) = attachments(dir.path());
    let mut held = record("a");
    held.spec.goal = Goal::Detached;
    held.spec.migration = Some(MigrationOrder {
        migration: ObjectRef::default(),
        nics: vec!["nic".into()],
        step: MigrationStep::Watch,
        target_uri: None,
        listen_address: None,
        tls: None,
        file: None,
    });
    let wanted = Wanted {
        spec: held.spec.clone(),
        generation: None,
    };
    attachments.start(held.clone(), true, wanted, false, OnceLock::new());
    let mut object = object(&held);
    for generation in [3, 4] {
        let task = &mut attachments.running.get_mut("a").unwrap().task;
        task.await.unwrap();
        object.metadata.generation = Some(generation);
        attachments.on_want(want(object.clone()));
        let mut said = json!(null);
        while said["status"]["state"] != "Detached" {
            said = written.recv().await.unwrap();
        }
        assert_eq!(said["status"]["observedGeneration"], generation);
    }
    let task = &mut attachments.running.get_mut("a").unwrap().task;
    task.await.unwrap();
    attachments.on_want(want(object.clone()));
    assert!(attachments.running["a"].task.is_finished(), "it has said so");
}

/// What such a task has is in the journal: a new one without a record would report that it has nothing.
#[tokio::test]
async fn a_nic_whose_task_has_panicked_is_not_begun_from_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut attachments, _written) = attachments(dir.path());
    let mut held = record("a");
    held.spec.goal = Goal::Detached;
    let wanted = Wanted {
        spec: held.spec.clone(),
        generation: None,
    };
    let object = object(&held);
    // It waits for its finalizer, and ends as a panic does.
    attachments.start(held, false, wanted, false, OnceLock::new());
    let task = &mut attachments.running.get_mut("a").unwrap().task;
    task.abort();
    task.await.unwrap_err();
    attachments.on_want(want(object.clone()));
    assert!(attachments.running["a"].task.is_finished());
}

/// A hand-over may come before the NICs' tasks have looked for the first time.
#[tokio::test]
async fn a_vm_knows_its_macvtaps_from_the_journal_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (mut attachments, _written) = attachments(dir.path());
    let mut held = record("a");
    held.standby = Some(StandbyRecord {
        macvtap: "hna".into(),
        pf: held_vf(0, 0).pf,
        pf_name: "ens0".into(),
        vlan: None,
        seized: None,
        pod: None,
    });
    let wanted = Wanted {
        spec: held.spec.clone(),
        generation: None,
    };
    attachments.start(held, true, wanted, false, OnceLock::new());
    let nics = attachments.vms["pod-uid"].vm.nics();
    assert_eq!(nics["a"].macvtap, Some("hna".into()));
    assert_eq!(nics["a"].standby_device, "sb-nic");
}
