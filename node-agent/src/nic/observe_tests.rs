//! What is seen of a VF, on a sysfs of files.

use hybridnic_api::v1alpha1::Runtime;
use std::fs;

use super::*;
use crate::{
    host::tests::host,
    journal::tests::{held_vf, record},
};

const NIC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);

fn held() -> Record {
    Record {
        vf: Some(held_vf(0, 1)),
        ..record("a")
    }
}

#[tokio::test]
async fn a_vf_is_gone_on_proof_only() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), 2, 2);
    let vm = Vm::new(Runtime::Qemu, "ns", "pod", "uid");
    let devices = dir.path().join("sys/bus/pci/devices");
    let look = async |record: &Record| {
        let look = observe(&host, &vm, record, NIC, Own::default()).await;
        let now = look.unwrap().with(Offer::default());
        (now.seen.vf, now.unknown.map(|why| why.message))
    };
    let unknown = Some(VfSeen::Unknown { other_pf: false });
    let held = held();
    let vf = held.vf.as_ref().unwrap();
    let (pf, net) = (
        devices.join(vf.pf.to_string()),
        devices.join(vf.pf.to_string()).join("net"),
    );

    // The PF's interface is one that has no VFs to show.
    fs::write(net.join("ens0/ifindex"), "1\n").unwrap();
    let (seen, why) = look(&held).await;
    assert_eq!(seen, unknown);
    assert!(why.unwrap().contains("does not show its VF 1"));
    // Under another name it is the same.
    fs::rename(net.join("ens0"), net.join("ens0np0")).unwrap();
    assert_eq!(look(&held).await.0, unknown);
    // It is in another namespace, or has no driver.
    fs::remove_dir_all(&net).unwrap();
    let (seen, why) = look(&held).await;
    assert_eq!(seen, unknown);
    assert!(why.unwrap().contains("no network interface here"));
    // Its name cannot be read.
    fs::write(&net, "").unwrap();
    assert_eq!(look(&held).await.0, unknown);
    // Nor can the VF's driver.
    let driver = devices.join(vf.address.to_string()).join("driver");
    fs::remove_file(&driver).unwrap();
    fs::write(&driver, "").unwrap();
    assert_eq!(look(&held).await.0, unknown);
    // Of two PFs a VF may have the MAC on the one that is not the standby's.
    let split = Record {
        standby: Some(StandbyRecord {
            macvtap: "hn-none".into(),
            pf: hybridnic_net::testing::pf_address(1),
            pf_name: "ens1".into(),
            vlan: None,
            seized: None,
            pod: None,
        }),
        ..held.clone()
    };
    assert_eq!(look(&split).await.0, Some(VfSeen::Unknown { other_pf: true }));
    // The kernel lists its functions, and it is none of them.
    fs::remove_file(devices.join(vf.address.to_string())).unwrap();
    assert_eq!(look(&held).await, (Some(VfSeen::Gone), None));
    assert!(pf.exists());
    fs::remove_dir_all(&devices).unwrap();
    assert_eq!(look(&held).await.0, unknown);
}

#[test]
fn interrupts_that_cannot_be_read_are_no_driver_that_has_stopped() {
    let vectors = |vectors| {
        Ok(interrupts::VfioInterrupts {
            vectors,
            ..interrupts::VfioInterrupts::default()
        })
    };
    assert!(may_use(&vectors(3)));
    assert!(!may_use(&vectors(0)));
    assert!(may_use(&Err(io::Error::from(io::ErrorKind::PermissionDenied))));
}
