//! What must hold no matter which of them asks first.

use std::{os::unix::net::UnixListener, sync::Barrier, thread};

use super::*;
use crate::{
    host,
    node::{
        choice::{Pick, Wish},
        ledger::{Claimant, Nic},
    },
    offer::tests::pool,
};

/// A NIC whose pod has no device and the kubelet want the only VF at one moment.
#[tokio::test]
async fn a_vf_goes_to_a_nic_or_to_the_kubelets_pod_and_never_to_both() {
    for nodes in [VfioNodes::Functions, VfioNodes::Groups] {
        nic_or_pod(nodes).await;
    }
}

async fn nic_or_pod(nodes: VfioNodes) {
    let dir = tempfile::tempdir().unwrap();
    let host = host::tests::host(dir.path(), 1, 1);
    let inventory = host.inventory().await.unwrap();
    let id = DeviceId::new(inventory.pfs[0].address, 0).unwrap();
    let (offers, ledger) = (Offers::default(), &host.pools);
    ledger.set_pools(&[pool("fast", "*", 0)]);
    offers.see(inventory.clone());
    offers.state().given = Some(BTreeSet::new());
    offers.state().nodes = Some(nodes);
    let nic = Nic {
        namespace: "ns".into(),
        pod: "plain".into(),
        pod_uid: "uid".into(),
        network: "fast".into(),
    };
    ledger.enter("plain", nic);
    ledger.set_ticket("plain", Ticket::None);
    let claimant = Claimant {
        created: 1,
        nic: "ns/nic".into(),
        uid: "plain".into(),
    };
    let wish = Wish {
        network: "fast",
        pick: Pick::Any,
        standby_pf: None,
    };
    for _ in 0..1000 {
        offers.state().fresh.clear();
        offers.update(ledger);
        let barrier = Barrier::new(2);
        let (promised, taken) = thread::scope(|scope| {
            let kubelet = scope.spawn(|| {
                barrier.wait();
                offers.promise(ledger, "fast", &[id])
            });
            barrier.wait();
            let taken = ledger.take(&inventory, &claimant, &wish);
            (kubelet.join().unwrap(), taken)
        });
        assert!(promised.is_err() || taken.is_none(), "one VF for two");
        assert!(
            promised.is_ok() || taken.is_some(),
            "{promised:?}, and nobody has it"
        );
        if let Some(taken) = taken {
            ledger.release(taken.vf.address);
        }
    }
}

/// Those that wait for a kubelet that does not answer wait beside each other.
#[tokio::test(start_paused = true)]
async fn a_kubelet_that_is_silent_costs_all_who_ask_one_wait() {
    let dir = tempfile::tempdir().unwrap();
    let _silent = UnixListener::bind(dir.path().join("kubelet.sock")).unwrap();
    let offers = Offers::new(dir.path(), None);
    let began = Instant::now();
    for answer in futures::future::join_all((0..5).map(|_| offers.ask())).await {
        assert!(answer.is_err());
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
}
