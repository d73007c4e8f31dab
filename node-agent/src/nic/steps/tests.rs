//! Steps on a node of files, where the journal can be written and where not.

use std::{fs, io, sync::Arc, time::Duration};

use hybridnic_api::{conditions::reasons, v1alpha1::Runtime};
use hybridnic_net::{
    MacAddr,
    netlink::{NetlinkError, VfSetting},
    testing::{pf_address, vf_address},
};
use nix::{sys::stat::Mode, unistd::mkfifo};
use serde_json::json;
use tokio::sync::watch;

use super::{guest::GuestError, reserve::ReserveError, standby::StandbyError, *};
use crate::{
    calls::CallError,
    devices::DeviceError,
    error::HasReason as _,
    host::{
        Host,
        tests::{host, made},
    },
    journal::{
        Record, StandbyRecord,
        tests::{held_vf, record},
    },
    machine::{
        Machine, Vm,
        qemu::{Qemu, peer::Peer},
        residents,
    },
    nic::{
        plan::{Learnt, TRIES},
        vf::{VfError, foreign},
    },
    node::{choice::Choice, ledger::Claimant},
};

const ALONE: Duration = Duration::from_millis(100);

fn context(host: &Arc<Host>) -> Context {
    context_of(host, 1)
}

fn context_of(host: &Arc<Host>, vf: u8) -> Context {
    let record = Record {
        vf: Some(held_vf(0, vf)),
        ..record("a")
    };
    let claimant = Claimant {
        created: 1,
        nic: record.nic(),
        uid: record.uid.clone(),
    };
    host.pools.restore(claimant.clone(), vf_address(0, vf));
    Context {
        host: Arc::clone(host),
        vm: Arc::new(Vm::new(Runtime::Qemu, "ns", "pod", "pod-uid")),
        claimant,
        record,
        recorded: true,
        mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
        learnt: Learnt::default(),
        sent_at_plug: None,
        disused: false,
        unplug_order: None,
        interrupt: watch::channel(0).1,
    }
}

#[tokio::test]
async fn a_vf_is_let_go_of_only_once_the_journal_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), 2, 2);
    let mut cx = context(&host);
    let before = cx.record.clone();
    cx.commit(|_| ()).await.unwrap();
    // The VF has gone, and the disk is full.
    fs::remove_file(
        dir.path()
            .join(format!("sys/bus/pci/devices/{}", vf_address(0, 1))),
    )
    .unwrap();
    fs::rename(dir.path().join("journal"), dir.path().join("full")).unwrap();
    for _ in 0..2 {
        assert_eq!(
            vf::drop_lost(&mut cx).await.unwrap_err().reason(),
            reasons::JOURNAL_FAILED
        );
        assert_eq!(
            vf::restore(&mut cx).await.unwrap_err().reason(),
            reasons::JOURNAL_FAILED
        );
        assert_eq!(cx.record, before);
        assert!(host.pools.holders().contains_key(&vf_address(0, 1)));
    }
    fs::rename(dir.path().join("full"), dir.path().join("journal")).unwrap();
    vf::restore(&mut cx).await.unwrap();
    assert_eq!(cx.record.vf, None);
    assert!(host.pools.holders().is_empty());
    assert_eq!(host.journal.load().unwrap().records, [cx.record]);
}

#[tokio::test]
async fn what_has_gone_with_its_pf_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), 2, 2);
    let mut cx = context(&host);
    cx.record.standby = Some(StandbyRecord {
        macvtap: "hn-none".into(),
        pf: pf_address(0),
        pf_name: "ens0".into(),
        vlan: Some(crate::journal::VlanRecord {
            id: 7,
            protocol: hybridnic_net::VlanProtocol::Dot1q,
            qos: 0,
        }),
        seized: None,
        pod: None,
    });
    for function in [pf_address(0), vf_address(0, 0), vf_address(0, 1)] {
        fs::remove_file(dir.path().join(format!("sys/bus/pci/devices/{function}"))).unwrap();
    }
    standby::remove(&mut cx).await.unwrap();
    vf::restore(&mut cx).await.unwrap();
    assert_eq!((&cx.record.vf, &cx.record.standby), (&None, &None));
}

#[tokio::test]
async fn a_vf_that_fails_three_times_is_avoided() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), 2, 2);
    let mut cx = context(&host);
    let unknown = VfError::Hidden {
        pf: "ens0".into(),
        vf: "1".into(),
    };
    let failed = || VfError::NotBound(CallError::from(io::Error::other("no")).into());
    cx.vf_failed(unknown);
    assert_eq!(
        (cx.learnt.vf_failed, cx.learnt.vf_failures),
        (Some(reasons::VF_UNKNOWN), 0)
    );
    cx.vf_failed(GuestError::NoFreePorts);
    assert_eq!(
        (cx.learnt.vf_failed, cx.learnt.vf_failures),
        (Some(reasons::NO_GUEST_PORT), 0)
    );
    for n in 1..=TRIES {
        cx.vf_failed(failed());
        assert_eq!(
            (cx.learnt.vf_failed, cx.learnt.vf_failures),
            (Some(reasons::VF_BIND_FAILED), n)
        );
        cx.learnt = cx.learnt.again();
        assert_eq!((cx.learnt.vf_failed, cx.learnt.vf_failures), (None, n));
    }
}

#[test]
fn a_failure_is_reported_with_a_reason_and_with_all_its_causes_once() {
    let (vf, no) = (vf_address(0, 1), || io::Error::other("no"));
    let unread = VfError::Presence { vf, source: no() };
    let refused = VfError::Refused {
        setting: VfSetting::Mac(MacAddr::ZERO),
        error: NetlinkError::Open(no()),
    };
    let unguarded = GuestError::Standby(StandbyError::NotGuarded(NetlinkError::Open(no())));
    let hung = || DeviceError::from(CallError::Earlier(vf));
    for (error, reason, message) in [
        (
            StepError::from(unread),
            reasons::VF_UNKNOWN,
            format!("the VF {vf} cannot be read: no"),
        ),
        (
            refused.into(),
            reasons::VF_SETTING_REFUSED,
            "cannot open a netlink connection: no".to_owned(),
        ),
        (
            unguarded.into(),
            reasons::STANDBY_FAILED,
            "the standby cannot be guarded, and does not go up without: cannot open a netlink connection: no; the kernel needs \
             sch_ingress, cls_flower, act_gact and act_police"
                .to_owned(),
        ),
        (
            ReserveError::from(VfError::NotBound(hung())).into(),
            reasons::DEVICE_HUNG,
            hung().to_string(),
        ),
        (
            GuestError::from(StandbyError::from(hung())).into(),
            reasons::DEVICE_HUNG,
            hung().to_string(),
        ),
    ] {
        assert_eq!((error.reason, error.message), (reason, message));
    }
}

/// Another NIC's VF may be plugged for minutes, and a migration is to begin.
#[tokio::test]
async fn a_plug_that_waits_for_its_turn_ends_when_the_spec_changes() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), 1, 2);
    let mut cx = context(&host);
    let (interrupt, receiver) = watch::channel(0);
    cx.interrupt = receiver;
    cx.record.ports = Some(hybridnic_api::v1alpha1::GuestPorts::default());
    let before = cx.record.clone();
    let (client, mut peer) = Peer::connect().await;
    let machine = Machine::Qemu(Qemu::new(client));
    let vm = Arc::clone(&cx.vm);
    let another = vm.plugging.lock().await;
    {
        let plugged = guest::plug_vf(&mut cx, &machine);
        tokio::pin!(plugged);
        tokio::select! {
            _ = &mut plugged => panic!("it is another's turn"),
            () = peer.is_left_alone(ALONE) => {}
        }
        interrupt.send_replace(1);
        assert!(!plugged.await.unwrap());
    }
    peer.is_left_alone(ALONE).await;
    assert_eq!((&cx.record, cx.learnt.vf_failed), (&before, None));
    drop(another);
}

/// The VM's task starts it under the same lock.
#[tokio::test]
async fn a_qemu_is_not_ended_while_its_vm_is_started() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), 1, 2);
    let cx = context(&host);
    let (client, mut peer) = Peer::connect().await;
    let machine = Machine::Qemu(Qemu::new(client));
    let status = |run: &str| json!({"status": run, "running": run == "running"});
    let starting = cx.vm.fate.lock().await;
    {
        let quit = guest::quit(&cx, &machine);
        tokio::pin!(quit);
        tokio::select! {
            _ = &mut quit => panic!("the VM is being started"),
            () = peer.is_left_alone(ALONE) => {}
        }
        drop(starting);
        let runs = async {
            peer.answer("query-status", status("running")).await;
            peer.answer("query-migrate", json!({"status": "completed"})).await;
        };
        let (refused, ()) = tokio::join!(quit, runs);
        assert_eq!(refused.unwrap_err().reason(), reasons::MIGRATING);
    }
    peer.is_left_alone(ALONE).await;
    // One whose VM has gone elsewhere; and meanwhile nobody starts it.
    let gone = async {
        peer.answer("query-status", status("postmigrate")).await;
        peer.answer("query-migrate", json!({"status": "completed"})).await;
        peer.answer("query-status", status("postmigrate")).await;
        let quit = peer.asked("quit").await;
        assert!(cx.vm.fate.try_lock().is_err());
        peer.reply(&quit, json!({})).await;
        drop(peer);
    };
    let (quit, ()) = tokio::join!(guest::quit(&cx, &machine), gone);
    quit.unwrap();
}

#[tokio::test]
async fn a_vf_on_vfio_is_taken_only_where_the_kernel_says_that_nobody_has_it() {
    let dir = tempfile::tempdir().unwrap();
    // The first is with vfio, the second is not.
    let host = host(dir.path(), 1, 2);
    let pf = host.inventory().await.unwrap().pfs.remove(0);
    let [bound, mut other] = [0, 1].map(|index| Choice {
        vf: pf.vfs[index].clone(),
        pf: pf.clone(),
    });
    assert_eq!(foreign(&host, &other, &Ok(())).await.unwrap(), None);
    // It was, and another NIC has given it back since.
    other.vf.driver = Some("vfio-pci".into());
    assert_eq!(foreign(&host, &other, &Ok(())).await.unwrap(), None);

    let why = foreign(&host, &bound, &Ok(())).await.unwrap().unwrap();
    assert!(why.contains("no vfio groups"), "{why}");

    // The kernel gives an error: the file of the group is no device.
    let group = host.dev.vfio_group(bound.vf.iommu_group.unwrap());
    fs::create_dir_all(&group).unwrap();
    let error = foreign(&host, &bound, &Ok(())).await.unwrap_err();
    assert_eq!(error.reason(), reasons::VF_UNKNOWN);

    fs::remove_dir(&group).unwrap();
    fs::write(&group, "").unwrap();
    assert_eq!(foreign(&host, &bound, &Ok(())).await.unwrap(), None);

    // A pod that has it from another plugin may not have opened it yet.
    let silent = Err("not now".to_owned());
    let error = foreign(&host, &bound, &silent).await.unwrap_err();
    assert_eq!(error.reason(), reasons::KUBELET_UNREACHABLE);

    // The node says why a VF is passed over, and no NIC gets it.
    host.pools.mark_foreign(bound.vf.address, why.clone());
    assert_eq!(host.pools.foreign().get(&bound.vf.address), Some(&why));
}

#[tokio::test]
async fn a_vf_is_not_given_back_while_somebody_has_its_descriptor() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), 2, 2);
    let mut cx = context_of(&host, 0);
    let held = cx.record.clone();
    let make = |node: &std::path::Path| fs::File::create_new(node).map(drop);
    let given = host.handouts.open_made(vf_address(0, 0), make).unwrap();
    let mut hardware = host.hardware.subscribe();
    let error = vf::restore(&mut cx).await.unwrap_err();
    assert_eq!(error.reason(), reasons::VF_IN_USE);
    assert!(
        error
            .to_string()
            .contains("a process keeps the descriptor of the VF"),
        "{error}"
    );
    assert_eq!(cx.record, held);
    assert!(host.pools.holders().contains_key(&vf_address(0, 0)));
    drop(given);
    // As far as this machine, which has no such PF, lets it go: vfio is asked before the PF.
    let error = vf::restore(&mut cx).await.unwrap_err();
    assert_eq!(error.reason(), reasons::VF_UNKNOWN, "{error}");
    let unbind = dir.path().join("sys/bus/pci/drivers/vfio-pci/unbind");
    assert_eq!(fs::read_to_string(&unbind).unwrap(), vf_address(0, 0).to_string());
    assert!(hardware.has_changed().unwrap(), "who waits for it is told");
    hardware.mark_unchanged();

    // It has gone: nobody can have it any more, and nothing is left of it.
    let given = host.handouts.open_made(vf_address(0, 0), make).unwrap();
    fs::remove_file(
        dir.path()
            .join(format!("sys/bus/pci/devices/{}", vf_address(0, 0))),
    )
    .unwrap();
    vf::restore(&mut cx).await.unwrap();
    assert!(!host.handouts.is_out(vf_address(0, 0)));
    assert_eq!(fs::read_dir(dir.path().join("dev/hybridnic")).unwrap().count(), 0);
    drop(given);
}

/// A descriptor whose closing nothing reports may be open or closed: its driver is asked only once no process of the pod could have it.
#[tokio::test]
async fn a_driver_is_not_asked_for_what_the_pods_processes_may_keep() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), 2, 2);
    let mut cx = context_of(&host, 0);
    let vf = vf_address(0, 0);
    let unbind = dir.path().join("sys/bus/pci/drivers/vfio-pci/unbind");
    fs::create_dir_all(dir.path().join("dev/hybridnic")).unwrap();
    fs::write(dir.path().join(format!("dev/hybridnic/{vf}.0")), "").unwrap();
    host.take_over_handouts(vf);
    assert!(host.handouts.is_unsure(vf));

    let error = vf::restore(&mut cx).await.unwrap_err();
    assert_eq!(
        error.reason(),
        reasons::VF_UNKNOWN,
        "processes cannot be read: {error}"
    );
    let process = residents::tests::add(&host.proc, 7, "S", &cx.record.spec.pod.uid);
    let error = vf::restore(&mut cx).await.unwrap_err();
    assert_eq!(error.reason(), reasons::VF_IN_USE, "{error}");
    assert!(error.to_string().contains("may keep"), "{error}");
    assert_eq!(fs::read_to_string(&unbind).unwrap(), "");

    fs::remove_dir_all(process).unwrap();
    // This machine has no such PF: vfio is asked before the PF.
    let error = vf::restore(&mut cx).await.unwrap_err();
    assert_eq!(error.reason(), reasons::VF_UNKNOWN, "{error}");
    assert_eq!(fs::read_to_string(&unbind).unwrap(), vf.to_string());
}

/// A hostile QEMU's report is no proof; nor is a restart, or an error of the kernel's.
#[tokio::test]
async fn a_vf_gets_its_settings_back_only_once_vfio_has_let_go_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = made(dir.path(), 1, 2);
    host.devices.deadlines.bind = ALONE;
    let host = Arc::new(host);
    let mut cx = context_of(&host, 0);
    // It goes back to vfio, and is still taken from it.
    if let Some(vf) = &mut cx.record.vf {
        vf.saved_driver.driver = Some("vfio-pci".into());
    }
    let group = host.dev.vfio_group(1);
    fs::create_dir_all(&group).unwrap();
    let unbind = dir.path().join("sys/bus/pci/drivers/vfio-pci/unbind");
    let error = vf::restore(&mut cx).await.unwrap_err();
    assert_eq!(error.reason(), reasons::VF_UNKNOWN, "{error}");
    assert_eq!(fs::read_to_string(&unbind).unwrap(), "", "nothing is known of it");
    fs::remove_dir(&group).unwrap();

    // vfio waits for somebody. A FIFO that nobody reads does so, too.
    fs::remove_file(&unbind).unwrap();
    mkfifo(&unbind, Mode::S_IRWXU).unwrap();
    for _ in 0..2 {
        // The PF is missing: the first call that needs it says so.
        let error = vf::restore(&mut cx).await.unwrap_err();
        assert_eq!(error.reason(), reasons::DEVICE_HUNG, "{error}");
        // As the kernel does meanwhile.
        let driver = dir
            .path()
            .join(format!("sys/bus/pci/devices/{}/driver", vf_address(0, 0)));
        let _ = fs::remove_file(driver);
    }
    let mut hardware = host.hardware.subscribe();
    let written = tokio::task::spawn_blocking(move || fs::read_to_string(unbind).unwrap());
    assert_eq!(written.await.unwrap(), vf_address(0, 0).to_string());
    while !host.devices.lanes.hung().is_empty() {
        hardware.changed().await.unwrap();
    }
    let error = vf::restore(&mut cx).await.unwrap_err();
    assert_eq!(
        error.reason(),
        reasons::VF_UNKNOWN,
        "now the PF is asked: {error}"
    );
}

/// The journal's record was removed, or the agent has ended between two lines.
#[tokio::test]
async fn a_vf_that_an_earlier_nics_qemu_may_have_goes_to_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), 1, 2);
    let pf = host.inventory().await.unwrap().pfs.remove(0);
    let bound = Choice {
        vf: pf.vfs[0].clone(),
        pf,
    };
    let (vf, group) = (
        bound.vf.address,
        host.dev.vfio_group(bound.vf.iommu_group.unwrap()),
    );
    let make = |node: &std::path::Path| fs::File::create_new(node).map(drop);
    let given = host.handouts.open_made(vf, make).unwrap();
    fs::create_dir_all(group.parent().unwrap()).unwrap();
    fs::write(&group, "").unwrap();
    let why = foreign(&host, &bound, &Ok(())).await.unwrap().unwrap();
    assert!(why.contains("/dev/hybridnic"), "{why}");
    drop(given);
    assert_eq!(foreign(&host, &bound, &Ok(())).await.unwrap(), None);

    // An earlier agent's, which was closed since: nobody is asked.
    let unbind = dir.path().join("sys/bus/pci/drivers/vfio-pci/unbind");
    assert_eq!(fs::read_to_string(&unbind).unwrap(), "");
    let node = dir.path().join(format!("dev/hybridnic/{vf}.1"));
    fs::write(&node, "").unwrap();
    assert_eq!(foreign(&host, &bound, &Ok(())).await.unwrap(), None);
    assert!(!node.exists());
    assert_eq!(fs::read_to_string(&unbind).unwrap(), "");

    // A descriptor that nothing reports about: vfio is asked, and gets the VF back.
    let node = node.with_extension("0");
    fs::write(&node, "").unwrap();
    assert_eq!(foreign(&host, &bound, &Ok(())).await.unwrap(), None);
    assert_eq!(fs::read_to_string(&unbind).unwrap(), vf.to_string());
    assert!(!node.exists() && !host.handouts.is_unsure(vf));
}

#[path = "loan_tests.rs"]
mod loans;
#[path = "ports_tests.rs"]
mod ports;
