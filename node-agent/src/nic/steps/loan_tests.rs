//! The same on a VF whose vfio group the NIC's pod was given.

use hybridnic_api::v1alpha1::L2Settings;
use hybridnic_net::DeviceId;

use super::*;
use crate::{
    journal::{Lent, Loan},
    node::{choice::Pick, ledger::Nic},
};

/// A VF whose group a pod was given.
fn lend(host: &Host, vf: u8) -> DeviceId {
    let device = DeviceId::new(pf_address(0), vf.into()).unwrap();
    let loan = Loan::new(device, "net", L2Settings::default(), held_vf(0, vf));
    host.pools.lend(vf_address(0, vf), Lent::Known(Box::new(loan)));
    device
}

/// Another number of the group's node would be another VF's in the pod.
#[tokio::test]
async fn a_vf_whose_group_a_pod_has_stays_with_vfio() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), 2, 2);
    let mut cx = context_of(&host, 0);
    lend(&host, 0);
    // This machine has no such PF: the VF is not parked, and nothing else was done.
    let error = vf::restore(&mut cx).await.unwrap_err();
    assert_eq!(error.reason(), reasons::VF_UNKNOWN, "{error}");
    let unbind = dir.path().join("sys/bus/pci/drivers/vfio-pci/unbind");
    assert_eq!(fs::read_to_string(&unbind).unwrap(), "");
    // A pod whose loan cannot be read may have it as well.
    let unreadable = Lent::Unreadable("it is empty".into());
    host.pools.lend(vf_address(0, 0), unreadable);
    vf::restore(&mut cx).await.unwrap_err();
    assert_eq!(fs::read_to_string(&unbind).unwrap(), "");
}

#[tokio::test]
async fn a_nic_takes_the_vf_whose_group_its_pod_has_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), 2, 2);
    fs::create_dir_all(dir.path().join("proc")).unwrap();
    fs::write(dir.path().join("proc/devices"), "Character devices:\n243 vfio\n").unwrap();
    let mut cx = context(&host);
    let nic = Nic {
        namespace: "ns".into(),
        pod: "pod".into(),
        pod_uid: "pod-uid".into(),
        network: "net".into(),
    };
    host.pools.enter(&cx.record.uid, nic);
    let device = DeviceId::new(pf_address(0), 0).unwrap();
    host.pools.tie(&cx.record.uid, device).unwrap();
    cx.vm = Arc::new(Vm::new(Runtime::Kubevirt, "ns", "pod", "pod-uid"));
    assert_eq!(cx.lacks_group(), None, "this kernel is not known yet");
    host.offers.learn_nodes(&host.proc);
    let why = cx.lacks_group().unwrap();
    assert!(why.contains("restarted or migrated"), "{why}");
    let inventory = host.inventory().await.unwrap();
    assert_eq!(cx.pick(&inventory), Pick::OnPf(pf_address(0)));

    assert_eq!(lend(&host, 0), device);
    assert_eq!(cx.lacks_group(), None);
    let exactly = Pick::Exactly(vf_address(0, 0));
    assert_eq!((cx.pick(&inventory), cx.pick_elsewhere()), (exactly, exactly));
    assert_eq!(cx.pick_standby(&inventory), Pick::OnPf(pf_address(0)));
}
