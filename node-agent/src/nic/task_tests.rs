use hybridnic_api::v1alpha1::{NoFreeVf, NodePool, SwitchOrder, Uplink};
use hybridnic_net::sysfs::Inventory;

use super::*;
use crate::{
    host,
    journal::tests::record,
    nic::seen::{Guest, Run},
    vm::Session,
};

#[test]
fn only_a_nic_whose_qemu_can_take_a_vf_waits_for_one() {
    let guest = Guest {
        run: Run::Here,
        standby: false,
        vf: false,
        uses_vf: false,
        failover: None,
    };
    let seen = |qemu| Seen {
        recorded: false,
        vf: None,
        vf_offered: false,
        other_vf: false,
        uplink: false,
        standby_recorded: false,
        macvtap: None,
        mtu_ok: true,
        standby_link: None,
        qemu,
    };
    let could = |goal, no_free_vf, seen: Seen| {
        let ask = Ask {
            goal,
            no_free_vf,
            order: SwitchOrder::MakeBeforeBreak,
            expected: false,
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
        // A VF that was lost is in the guest yet.
        let left = Guest { vf: true, ..guest };
        assert!(!could(Goal::FastPath, QemuSeen::Up(left)));
    }
    let mut on_standby = seen(QemuSeen::Up(guest));
    on_standby.standby_recorded = true;
    assert!(could(Goal::FastPath, NoFreeVf::Standby, on_standby));
    on_standby.vf = Some(VfSight::Gone);
    assert!(
        !could(Goal::FastPath, NoFreeVf::Standby, on_standby),
        "it has one"
    );
}

/// A node with one VF, which is of the network `net`.
async fn one_vf(dir: &std::path::Path) -> (Arc<Host>, Inventory) {
    let host = host::tests::host(dir, 1, 1);
    let uplink = Uplink {
        pf_names: vec!["*".into()],
        ..Uplink::default()
    };
    host.pools.set_pools(&[NodePool {
        network: "net".into(),
        uplinks: vec![uplink],
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
    let vm = Arc::new(Vm::new("ns", "pod", "pod-uid").with_session(Session::Gone));
    let task = NicTask::new(Arc::clone(host), vm, record, false, wanted_rx, status).unwrap();
    (task, wanted, status_rx)
}

fn younger() -> Claimant {
    Claimant {
        created: 2,
        nic: "ns/young".into(),
        uid: "young".into(),
    }
}

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
    let young_has_a_vf = || host.pools.offers(&inventory, "net", &younger(), None);
    assert!(young_has_a_vf(), "the old one cannot take it");
    // It leaves, having held nothing.
    wanted.send_modify(|wanted| wanted.spec.goal = Goal::Detached);
    running.await.unwrap();
    assert!(young_has_a_vf());
    assert!(host.pools.take(&inventory, "net", &younger(), None).is_some());
}

#[tokio::test]
async fn a_task_that_ends_leaves_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    let (host, inventory) = one_vf(dir.path()).await;
    let (task, _wanted, _status) = old_nic(&host);
    assert!(host.pools.offers(&inventory, "net", &task.cx.claimant, None));
    assert!(!host.pools.offers(&inventory, "net", &younger(), None));
    let mut changes = host.pools.subscribe();
    changes.mark_unchanged();
    // Whatever its end is: this one was never polled.
    drop(task);
    assert!(changes.has_changed().unwrap(), "those that wait look again");
    assert!(host.pools.offers(&inventory, "net", &younger(), None));
}
