mod vfs;

use std::time::Duration;

use hybridnic_api::v1alpha1::{Aside, NoFreeVf, NodePool, Runtime, Uplink};
use hybridnic_net::sysfs::Inventory;

use super::{offers::could_take_vf, *};
use crate::{
    host,
    journal::tests::record,
    machine::Session,
    nic::{
        plan::{
            Ask,
            tests::{FRESH, ask},
        },
        seen::{Guest, QemuSeen, Run, Seen, VfSeen},
    },
    node::choice::{Pick, Wish},
    sockets::Sockets,
};

/// A VM that runs, and has nothing of the NIC.
fn bare_guest() -> Guest {
    Guest {
        run: Run::Here,
        standby: false,
        vf: false,
        uses_vf: false,
        failover: None,
        migrating: false,
        acpi: true,
    }
}

#[test]
fn only_a_nic_whose_qemu_can_take_a_vf_waits_for_one() {
    let guest = bare_guest();
    let seen = |qemu| Seen {
        vf_offered: false,
        uplink: false,
        standby_link: None,
        qemu,
        ..FRESH
    };
    let could = |goal, no_free_vf, seen: Seen| {
        let ask = Ask {
            no_free_vf,
            ..ask(goal)
        };
        could_take_vf(&ask, &seen, &Learnt::default())
    };
    for no_free_vf in [NoFreeVf::Wait, NoFreeVf::Standby] {
        let could = |goal, qemu| could(goal, no_free_vf, seen(qemu));
        assert!(could(Goal::FastPath, QemuSeen::Up(guest)));
        let incoming = Guest {
            run: Run::Incoming,
            ..guest
        };
        assert!(could(Goal::FastPath, QemuSeen::Up(incoming)));
        assert!(!could(Goal::FastPath, QemuSeen::Gone));
        assert!(!could(Goal::FastPath, QemuSeen::Unreachable));
        assert!(!could(Goal::Detached, QemuSeen::Up(guest)));
        // A VF that was lost is still in the guest.
        let left = Guest { vf: true, ..guest };
        assert!(!could(Goal::FastPath, QemuSeen::Up(left)));
    }
    // Nor one that is told to do without, although it takes a PF for its standby.
    let told = |aside| Ask {
        aside: Some(aside),
        ..ask(Goal::Standby)
    };
    let fresh = seen(QemuSeen::Up(guest));
    assert!(!could_take_vf(
        &told(Aside::GiveVfBack),
        &fresh,
        &Learnt::default()
    ));
    assert!(could_take_vf(&told(Aside::KeepVf), &fresh, &Learnt::default()));
    let mut on_standby = seen(QemuSeen::Up(guest));
    on_standby.standby_recorded = true;
    assert!(could(Goal::FastPath, NoFreeVf::Standby, on_standby));
    on_standby.vf = Some(VfSeen::Gone);
    assert!(
        !could(Goal::FastPath, NoFreeVf::Standby, on_standby),
        "it has one"
    );
}

/// A node with one VF, which is of the network `net`.
async fn one_vf(dir: &std::path::Path) -> (Arc<Host>, Inventory) {
    with_vfs(dir, 1).await
}

/// A node with PFs of one VF each, all of the network `net`.
async fn with_vfs(dir: &std::path::Path, pfs: u8) -> (Arc<Host>, Inventory) {
    let host = host::tests::host(dir, pfs, 1);
    let uplink = Uplink {
        pf_names: vec!["*".into()],
        ..Uplink::default()
    };
    host.pools.set_pools(&[NodePool {
        network: "net".into(),
        uplinks: vec![uplink],
        tags: hybridnic_api::v1alpha1::PoolTags::None,
        standby_slots: 0,
        l2: None,
    }]);
    let inventory = host.inventory().await.unwrap();
    (host, inventory)
}

/// The task of a NIC that is older than [`younger`], with a VM whose QEMU is not there; and what the operator wants of it.
fn old_nic(
    host: &Arc<Host>,
) -> (
    NicTask,
    watch::Sender<Wanted>,
    watch::Receiver<Option<NicAttachmentStatus>>,
) {
    let record = record("old");
    let (wanted, wanted_rx) = watch::channel(Wanted {
        spec: record.spec.clone(),
        generation: Some(1),
    });
    let (status, status_rx) = watch::channel(None);
    let vm = Arc::new(Vm::new(Runtime::Qemu, "ns", "pod", "pod-uid").with_session(Session::Gone));
    let task = NicTask::new(
        Arc::clone(host),
        vm,
        record,
        false,
        wanted_rx,
        status,
        Arc::default(),
    )
    .unwrap();
    (task, wanted, status_rx)
}

fn younger() -> Claimant {
    Claimant {
        created: 2,
        nic: "ns/young".into(),
        uid: "young".into(),
    }
}

const WISH: Wish<'_> = Wish {
    network: "net",
    pick: Pick::Any,
    standby_pf: None,
};

#[tokio::test]
async fn a_nic_without_qemu_keeps_no_vf_from_a_younger_one() {
    let dir = tempfile::tempdir().unwrap();
    let (host, inventory) = one_vf(dir.path()).await;
    let (task, wanted, mut status) = old_nic(&host);
    let running = tokio::spawn(task.run());
    let waits = |status: &Option<NicAttachmentStatus>| {
        let conditions = status.iter().flat_map(|status| &status.conditions);
        conditions
            .into_iter()
            .any(|c| c.reason == reasons::QMP_UNAVAILABLE)
    };
    status.wait_for(waits).await.unwrap();
    let young_has_a_vf = || host.pools.offers(&inventory, &younger(), &WISH);
    assert!(young_has_a_vf(), "the old one cannot take it");
    // It leaves, having held nothing.
    wanted.send_modify(|wanted| wanted.spec.goal = Goal::Detached);
    running.await.unwrap();
    assert!(young_has_a_vf());
    assert!(host.pools.take(&inventory, &younger(), &WISH).is_some());
}

#[tokio::test]
async fn a_task_that_ends_leaves_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    let (host, inventory) = one_vf(dir.path()).await;
    let (task, _wanted, _status) = old_nic(&host);
    assert!(host.pools.offers(&inventory, &task.cx.claimant, &WISH));
    assert!(!host.pools.offers(&inventory, &younger(), &WISH));
    let mut changes = host.pools.subscribe();
    changes.mark_unchanged();
    // Whatever its end is: this one was never polled.
    drop(task);
    assert!(changes.has_changed().unwrap(), "those that wait look again");
    assert!(host.pools.offers(&inventory, &younger(), &WISH));
}

/// Spoilt, newer, and put right: until the VM's record is read nothing is done, and both the node and its NICs say so.
#[tokio::test]
async fn a_nic_of_a_vm_whose_record_cannot_be_read_waits_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (host, _) = one_vf(dir.path()).await;
    let file = dir.path().join("journal/pod-uid.vm");
    std::fs::write(&file, "{").unwrap();
    let vm = Arc::new(Vm::new(Runtime::Qemu, "ns", "pod", "pod-uid"));
    let sockets = Sockets::new(dir.path(), Arc::clone(&host.troubles));
    let followed = sockets.follow(vm.home.clone(), "ns", "pod", "pod-uid");
    let vm_task = tokio::spawn(crate::machine::qemu::session::run(
        Arc::clone(&vm),
        Arc::clone(&host),
        followed,
    ));
    let record = record("a");
    let (wanted, wanted_rx) = watch::channel(Wanted {
        spec: record.spec.clone(),
        generation: None,
    });
    let (status, mut told) = watch::channel(None::<NicAttachmentStatus>);
    let known = Arc::<OnceLock<NicAttachmentStatus>>::default();
    let task = NicTask::new(
        Arc::clone(&host),
        vm,
        record,
        true,
        wanted_rx,
        status,
        Arc::clone(&known),
    );
    let nic_task = tokio::spawn(task.unwrap().run());
    let mut troubles = host.troubles.subscribe();
    troubles.wait_for(|found| !found.is_empty()).await.unwrap();
    let trouble = host.troubles.condition();
    assert_eq!(
        (trouble.status, trouble.reason.as_str()),
        (Some(true), reasons::JOURNAL_FAILED)
    );
    assert!(trouble.message.contains("pod-uid.vm"), "{}", trouble.message);
    tokio::task::yield_now().await;
    assert!(told.borrow().is_none(), "what its status was is not known yet");

    // The object is seen.
    let before = NicAttachmentStatus {
        state: AttachmentState::FastPath,
        path: hybridnic_api::v1alpha1::Path::FastPath,
        ..NicAttachmentStatus::default()
    };
    known.set(before.clone()).unwrap();
    wanted.send_modify(|wanted| wanted.generation = Some(4));
    let says = |words: &'static str| {
        move |status: &Option<NicAttachmentStatus>| {
            let mut conditions = status.iter().flat_map(|status| &status.conditions);
            conditions.any(|c| c.reason == reasons::JOURNAL_FAILED && c.message.contains(words))
        }
    };
    let mut said = told.wait_for(says("pod-uid.vm")).await.unwrap().clone().unwrap();
    said.conditions.clear();
    assert_eq!(said, before, "its devices are where they were");

    std::fs::write(&file, r#"{"version":2,"process":null,"begun":null}"#).unwrap();
    told.wait_for(says("a newer agent wrote it")).await.unwrap();
    assert_eq!(host.troubles.condition().status, Some(true));

    std::fs::write(&file, r#"{"version":1,"process":null,"begun":null}"#).unwrap();
    let goes_on = |status: &Option<NicAttachmentStatus>| {
        let mut conditions = status.iter().flat_map(|status| &status.conditions);
        conditions.any(|c| c.reason == reasons::QMP_UNAVAILABLE)
    };
    told.wait_for(goes_on).await.unwrap();
    assert_eq!(host.troubles.condition().status, Some(false));
    nic_task.abort();
    vm_task.abort();
}

/// If PFs and VFs cannot be looked at, that says nothing about any VF.
#[tokio::test]
async fn a_discovery_that_fails_leaves_vfs_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let (host, _) = one_vf(dir.path()).await;
    let devices = dir.path().join("sys/bus/pci/devices");
    std::fs::remove_dir_all(&devices).unwrap();
    std::fs::write(&devices, "no directory").unwrap();
    let (task, _wanted, mut status) = old_nic(&host);
    let running = tokio::spawn(task.run());
    let told = status.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_eq!(told.conditions[0].reason, reasons::VF_UNKNOWN, "{told:?}");
    running.abort();
}

/// The task waits for the kubelet's answer where it matters, and only until something else is wanted.
#[tokio::test]
async fn a_kubelet_that_is_silent_holds_up_nobody_who_has_no_need_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = host::tests::made(dir.path(), 1, 1);
    let _silent = std::os::unix::net::UnixListener::bind(dir.path().join("kubelet.sock")).unwrap();
    host.offers = Arc::new(crate::offer::Offers::new(dir.path(), None));
    let (mut task, wanted, _status) = old_nic(&Arc::new(host));
    let look = task.observe().await.unwrap();
    let seen = Seen {
        qemu: QemuSeen::Up(bare_guest()),
        ..look.seen(Offer::default())
    };
    let began = Instant::now();
    let goes_away = async {
        tokio::task::yield_now().await;
        wanted.send_modify(|wanted| wanted.spec.goal = Goal::Standby);
    };
    let (offer, ()) = tokio::join!(task.offer(&seen), goes_away);
    offer.unwrap();
    let (reason, why) = task.no_ticket.take().unwrap();
    assert_eq!(reason, reasons::KUBELET_UNREACHABLE, "{why}");
    task.take_wanted().await;
    // Its pod requests no device.
    task.cx.record.spec.pod_devices = Some(0);
    task.offer(&seen).await.unwrap();
    assert_eq!(task.no_ticket, None);
    // It would be waited for for ten seconds.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

/// Also one that its guest keeps, and may set down: then only what its standby drops shows that it is without network.
#[test]
fn a_nic_on_its_vf_is_watched_for_disuse() {
    let waits = |state, reason| {
        Decision::Wait(plan::Wait {
            state,
            reason,
            message: String::new(),
        })
    };
    assert!(rests_on_vf(&Decision::Done(AttachmentState::FastPath)));
    assert!(rests_on_vf(&waits(
        AttachmentState::FastPath,
        reasons::GUEST_KEEPS_VF
    )));
    assert!(!rests_on_vf(&waits(
        AttachmentState::FastPath,
        reasons::STANDBY_SEIZED
    )));
    assert!(!rests_on_vf(&Decision::Done(AttachmentState::Standby)));
    assert!(!rests_on_vf(&Decision::Do(Step::UnplugVf)));
}
