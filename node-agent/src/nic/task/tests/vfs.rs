//! Which VF a NIC may have, and when it may leave the one that it has.

use hybridnic_api::v1alpha1::{Drain, L2Settings, OnLinkLoss, StandbyKind};
use hybridnic_net::{DeviceId, PciAddress};

use super::*;
use crate::{
    journal::{Lent, Loan, SandboxRecord, StandbyRecord, tests::held_vf},
    nic::{
        plan::TRIES,
        seen::{Port, VfMac, VfThere},
    },
};

/// A NIC on its VF, whose PF has a link or not, as has its standby's.
fn on_vf(link: bool, standby_link: bool) -> Seen {
    let vf = VfThere {
        on_vfio: true,
        mac: VfMac::Nic,
        settings_ok: true,
        link,
        dark: false,
        other_pf: false,
        held: false,
        port: Port::NoProfile,
    };
    Seen {
        recorded: true,
        vf: Some(VfSeen::There(vf)),
        vf_offered: false,
        standby_recorded: true,
        macvtap: Some(false),
        standby_link: Some(standby_link),
        qemu: QemuSeen::Gone,
        ..FRESH
    }
}

fn standby_on(pf: PciAddress) -> StandbyRecord {
    StandbyRecord {
        pod: None,
        macvtap: "hn0".into(),
        pf,
        pf_name: "ens0".into(),
        vlan: None,
        seized: None,
    }
}

/// A drained PF is left at once, and what is asked of the plan says so.
#[tokio::test]
async fn a_nic_is_to_leave_a_vf_that_is_drained_and_is_shown_another() {
    let dir = tempfile::tempdir().unwrap();
    let (host, inventory) = with_vfs(dir.path(), 2).await;
    let (mut task, _wanted, _status) = old_nic(&host);
    host.pools.take(&inventory, &task.cx.claimant, &WISH).unwrap();
    task.cx.record.vf = Some(held_vf(0, 0));
    let network = task.cx.record.spec.network.clone();
    assert!(!task.ask().leaves_vf());
    let drain = |pfs: &[PciAddress], networks: &[&str]| Drain {
        all: false,
        pfs: pfs.iter().map(ToString::to_string).collect(),
        networks: networks.iter().map(|name| (*name).to_owned()).collect(),
    };
    let [first, second] = [inventory.pfs[0].address, inventory.pfs[1].address];
    for (told, leaves, other) in [
        (drain(&[first], &[]), true, true),
        (drain(&[second], &[]), false, false),
        (drain(&[first, second], &[]), true, false),
        (drain(&[], &[&network]), true, false),
        (drain(&[], &["another"]), false, false),
    ] {
        host.note_drain(&told).await;
        let offer = task.look_elsewhere(&on_vf(true, true), Instant::now()).await;
        assert_eq!(
            (task.ask().leaves_vf(), offer.other_vf),
            (leaves, other),
            "{told:?}"
        );
    }
    // The next agent knows it before the API server has said it.
    host.note_drain(&drain(&[first], &[])).await;
    host.pools.set_drain(&Drain::default());
    host.load_drain();
    assert!(host.pools.is_drained(&network, first));
}

#[tokio::test]
async fn a_nic_without_a_standby_is_queued_for_what_it_would_take_and_for_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (host, inventory) = with_vfs(dir.path(), 2).await;
    let (mut task, _wanted, _status) = old_nic(&host);
    host.pools.take(&inventory, &task.cx.claimant, &WISH).unwrap();
    task.cx.record.vf = Some(held_vf(0, 0));
    task.cx.record.spec.standby = StandbyKind::None;
    task.cx.record.spec.goal = Goal::FastPath;
    let [first, second] = [0, 1].map(|pf| inventory.pfs[pf].address);
    let drain = |pfs: &[PciAddress]| {
        host.pools.set_drain(&Drain {
            pfs: pfs.iter().map(ToString::to_string).collect(),
            ..Drain::default()
        });
    };
    let look = async |task: &mut NicTask, held| {
        let mut seen = on_vf(true, false);
        if let Some(VfSeen::There(vf)) = &mut seen.vf {
            vf.held = held;
        }
        task.offer(&seen).await.unwrap().other_vf
    };
    let waits = || {
        let other = younger();
        let offered = host.pools.offers(&inventory, &other, &WISH);
        host.pools.stop_waiting(&other);
        !offered
    };
    drain(&[first]);
    assert!(look(&mut task, false).await && waits(), "it is queued");
    assert!(look(&mut task, true).await, "a drained one is left all the same");
    task.cx.learnt.keeps_vf = true;
    assert!(!look(&mut task, false).await && !waits(), "the guest keeps it");
    task.cx.learnt.keeps_vf = false;
    task.cx.record.spec.goal = Goal::Standby;
    assert!(!look(&mut task, false).await && !waits(), "it is to be out");
    task.cx.record.spec.goal = Goal::FastPath;
    drain(&[]);
    task.cx.learnt.vf_failures = TRIES;
    assert!(look(&mut task, false).await && waits(), "its VF has failed");
    assert!(!look(&mut task, true).await && !waits(), "somebody keeps it");
    // Its pod has a device of its own PF, and it would take no other.
    let id = DeviceId::new(first, 0).unwrap();
    let ticket = crate::node::ledger::Ticket::Device { id, tied: false };
    host.pools.set_ticket(&task.cx.record.uid, ticket);
    assert!(!look(&mut task, false).await && !waits());
    drain(&[first]);
    assert!(
        look(&mut task, false).await,
        "from a drained one it goes anywhere"
    );
    drain(&[first, second]);
    assert!(!look(&mut task, false).await);
}

#[tokio::test]
async fn a_nic_that_is_split_goes_back_when_its_standbys_pf_has_been_fit_for_a_minute() {
    let dir = tempfile::tempdir().unwrap();
    let (host, inventory) = with_vfs(dir.path(), 2).await;
    let (mut task, _wanted, _status) = old_nic(&host);
    host.pools.take(&inventory, &task.cx.claimant, &WISH).unwrap();
    task.cx.record.vf = Some(held_vf(0, 0));
    let home = inventory.pfs[1].address;
    task.cx.record.standby = Some(standby_on(home));
    task.cx.record.spec.goal = Goal::FastPath;
    let start = Instant::now();
    let look = async |task: &mut NicTask, standby_link, second| {
        let time = start + Duration::from_secs(second);
        let offer = task.look_elsewhere(&on_vf(true, standby_link), time).await;
        offer.home_vf
    };
    assert!(!look(&mut task, true, 0).await);
    assert!(!look(&mut task, false, 30).await, "no link");
    assert!(!look(&mut task, true, 60).await && !look(&mut task, true, 119).await);
    assert!(look(&mut task, true, 120).await);
    let away = Drain {
        pfs: vec![home.to_string()],
        ..Drain::default()
    };
    host.pools.set_drain(&away);
    assert!(!look(&mut task, true, 121).await, "drained");
    host.pools.set_drain(&Drain::default());
    assert!(!look(&mut task, true, 122).await && look(&mut task, true, 182).await);
    task.cx.record.spec.aside = Some(Aside::KeepVf);
    assert!(!look(&mut task, true, 183).await, "it is to stay on its standby");
    task.cx.record.spec.aside = None;
    task.cx.record.standby = Some(standby_on(inventory.pfs[0].address));
    assert!(!look(&mut task, true, 400).await, "it is not split");
}

/// A NIC whose pod has a device of a PF that is drained takes a VF of another one, if its standby does not tie it there.
#[tokio::test]
async fn a_device_of_a_pf_that_is_of_no_use_ties_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (host, mut inventory) = with_vfs(dir.path(), 2).await;
    let (task, _wanted, _status) = old_nic(&host);
    let pf = inventory.pfs[0].address;
    let id = DeviceId::new(pf, 0).unwrap();
    let ticket = |tied| crate::node::ledger::Ticket::Device { id, tied };
    host.pools.set_ticket(&task.cx.record.uid, ticket(false));
    assert_eq!(task.cx.pick(&inventory), Pick::OnPf(pf));
    let drain = Drain {
        pfs: vec![pf.to_string()],
        ..Drain::default()
    };
    host.pools.set_drain(&drain);
    assert_eq!(task.cx.pick(&inventory), Pick::Any);
    host.pools.set_drain(&Drain::default());
    inventory.pfs[0].carrier = Some(false);
    assert_eq!(task.cx.pick(&inventory), Pick::Any);
    host.pools.set_ticket(&task.cx.record.uid, ticket(true));
    assert_eq!(task.cx.pick(&inventory), Pick::OnPf(pf));
}

/// The VF's PF has lost its link; another PF has one, and a free VF.
#[tokio::test]
async fn a_nic_may_leave_a_dark_pf_after_a_while_unless_its_network_says_to_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (host, inventory) = with_vfs(dir.path(), 2).await;
    let (mut task, _wanted, _status) = old_nic(&host);
    let mine = host.pools.take(&inventory, &task.cx.claimant, &WISH).unwrap();
    task.cx.record.vf = Some(held_vf(0, 0));
    assert_eq!(mine.vf.address, held_vf(0, 0).address);
    let start = Instant::now();
    let look = async |task: &mut NicTask, link, second| {
        let time = start + Duration::from_secs(second);
        let offer = task.look_elsewhere(&on_vf(link, false), time).await;
        (offer.dark, offer.other_vf)
    };
    let here = (false, false);
    assert_eq!(look(&mut task, true, 0).await, here);
    assert_eq!(look(&mut task, false, 1).await, here);
    assert_eq!(look(&mut task, false, 3).await, here);
    assert_eq!(look(&mut task, false, 4).await, (true, true));
    // Somebody else takes the last one.
    let other = host.pools.take(&inventory, &younger(), &WISH).unwrap();
    assert_eq!(look(&mut task, false, 5).await, (true, false));
    host.pools.release(other.vf.address);
    task.cx.record.spec.l2.on_link_loss = OnLinkLoss::Stay;
    assert_eq!(look(&mut task, false, 6).await, here);
    // A VF that fails again and again is left, no matter what its link is.
    task.cx.learnt.vf_failures = TRIES;
    assert_eq!(look(&mut task, true, 7).await, (false, true));
}

/// A launcher that has the device of one that is over, before its NIC has left.
#[tokio::test]
async fn a_nic_takes_nothing_while_another_has_the_index_of_its_device() {
    let dir = tempfile::tempdir().unwrap();
    let (host, inventory) = one_vf(dir.path()).await;
    let id = DeviceId::new(inventory.pfs[0].address, 0).unwrap();
    let (mut task, _wanted, _status) = old_nic(&host);
    task.cx.record.standby = Some(StandbyRecord {
        pod: Some(SandboxRecord {
            container: "c".into(),
            device: id,
        }),
        macvtap: "hn0".into(),
        pf: id.pf(),
        pf_name: "ens0".into(),
        vlan: None,
        seized: None,
    });
    let nic = Nic {
        namespace: "ns".into(),
        pod: "before".into(),
        pod_uid: "uid".into(),
        network: "net".into(),
    };
    host.pools.enter("before", nic);
    host.pools.tie("before", id).unwrap();
    let mut look = async || {
        let observed = task.observe().await.unwrap();
        task.offer(&observed.seen(Offer::default())).await.unwrap();
        task.no_ticket.take()
    };
    let (reason, why) = look().await.unwrap();
    assert_eq!(reason, reasons::NO_FREE_VF);
    assert!(why.contains("ns/before"), "{why}");
    host.pools.leave("before");
    assert_eq!(look().await, None);
    assert_eq!(task.cx.pick(&inventory), Pick::OnPf(id.pf()));
    assert_eq!(task.cx.pick_elsewhere(), Pick::OnPf(id.pf()));
}

/// A launcher on a node whose kernel has vfio groups only.
#[tokio::test]
async fn a_nic_whose_pod_has_no_group_takes_no_vf_and_one_whose_pod_has_one_takes_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (host, inventory) = with_vfs(dir.path(), 2).await;
    std::fs::create_dir_all(dir.path().join("proc")).unwrap();
    std::fs::write(dir.path().join("proc/devices"), "243 vfio\n").unwrap();
    host.offers.learn_nodes(&host.proc);
    let id = DeviceId::new(inventory.pfs[0].address, 0).unwrap();
    let (mut task, _wanted, _status) = old_nic(&host);
    task.cx.vm = Arc::new(Vm::new(Runtime::Kubevirt, "ns", "pod", "pod-uid").with_session(Session::Gone));
    let nic = Nic {
        namespace: "ns".into(),
        pod: "pod".into(),
        pod_uid: "pod-uid".into(),
        network: "net".into(),
    };
    host.pools.enter("old", nic);
    host.pools.tie("old", id).unwrap();
    let look = async |task: &mut NicTask| {
        let guest = Guest {
            standby: true,
            failover: Some(true),
            ..bare_guest()
        };
        let seen = Seen {
            qemu: QemuSeen::Up(guest),
            standby_recorded: true,
            macvtap: Some(true),
            guarded: true,
            mtu_ok: true,
            ..task.observe().await.unwrap().seen(Offer::default())
        };
        let vf = task.offer(&seen).await.unwrap().vf;
        (vf, task.no_ticket.take())
    };
    let (vf, told) = look(&mut task).await;
    let (reason, why) = told.unwrap();
    assert_eq!((vf, reason), (false, reasons::NO_VFIO_GROUP), "{why}");

    let loan = Loan::new(id, "net", L2Settings::default(), held_vf(0, 0));
    host.pools
        .lend(loan.vf.address, Lent::Known(Box::new(loan.clone())));
    assert_eq!(look(&mut task).await, (true, None));
    // Its PF has no link. The other PF's VF is as good as any, and is not its.
    std::fs::write(dir.path().join("sys/class/net/ens0/carrier"), "0\n").unwrap();
    let (vf, told) = look(&mut task).await;
    let (reason, why) = told.unwrap();
    assert_eq!((vf, reason), (false, reasons::NO_FREE_VF), "{why}");
    assert!(why.contains("of no other") && why.contains("no link"), "{why}");
}
