//! The agent beside a scripted kubelet.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use hybridnic_kubelet::scripted::{self, Kubelet};
use hybridnic_net::DeviceId;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::{super::Offers, run};
use crate::{
    cni,
    host::{self, Host},
    node::{
        choice::{Pick, Wish},
        ledger::{Claimant, Nic, Ticket},
    },
    offer::tests::pool,
};

const RESOURCE: &str = "hybridnic.io/fast";

struct Scene {
    dir: tempfile::TempDir,
    host: Arc<Host>,
    kubelet: Kubelet,
    run: AbortOnDropHandle<std::convert::Infallible>,
}

fn nic(pod: &str) -> Nic {
    Nic {
        namespace: "ns".into(),
        pod: pod.into(),
        pod_uid: format!("uid of {pod}"),
        network: "fast".into(),
    }
}

impl Scene {
    /// Two PFs with two VFs each.
    fn new() -> Self {
        Self::of_pod(None)
    }

    /// With an agent that runs in this pod.
    fn of_pod(own: Option<(String, String)>) -> Self {
        Self::on_kernel(own, "243 vfio\n242 vfio-dev\n")
    }

    /// On a kernel with these device numbers.
    fn on_kernel(own: Option<(String, String)>, devices: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("proc")).unwrap();
        std::fs::write(dir.path().join("proc/devices"), devices).unwrap();
        let kubelet_dir = dir.path().join("kubelet");
        let mut host = host::tests::made(dir.path(), 2, 2);
        host.offers = Arc::new(Offers::new(&scripted::pod_resources(&kubelet_dir), own));
        std::fs::create_dir_all(host.dev.root()).unwrap();
        host.pools.set_pools(&[pool("fast", "*", 0)]);
        let host = Arc::new(host);
        let kubelet = Kubelet::start(&kubelet_dir).unwrap();
        let plugins = scripted::plugins(&kubelet_dir);
        let its = Arc::clone(&host);
        let run = tokio::spawn(async move { run(its, &plugins).await });
        Self {
            dir,
            host,
            kubelet,
            run: AbortOnDropHandle::new(run),
        }
    }

    /// Waits until the kubelet has these devices as healthy.
    async fn healthy(&self, is: impl Fn(&BTreeSet<String>) -> bool) {
        let mut devices = self.kubelet.devices();
        let is = |devices: &scripted::Devices| {
            let all = devices.get(RESOURCE);
            all.is_some_and(|all| {
                let healthy = all.iter().filter(|(_, healthy)| **healthy);
                is(&healthy.map(|(id, _)| id.clone()).collect())
            })
        };
        let heard = timeout(Duration::from_secs(30), devices.wait_for(is)).await;
        drop(heard.expect("not soon").unwrap());
    }

    fn node(&self, id: DeviceId) -> PathBuf {
        self.host.dev.root().join(format!("tap{}", id.ifindex()))
    }

    async fn ticket(&self, pod: &str) -> Result<Ticket, String> {
        self.host.pools.enter(pod, nic(pod));
        self.host.offers.ticket(&self.host.pools, pod, None).await
    }
}

#[tokio::test]
async fn a_vf_that_another_plugin_has_given_to_a_pod_is_taken_by_nobody_here() {
    let scene = Scene::new();
    scene.healthy(|ids| ids.len() == 4).await;
    let inventory = scene.host.inventory().await.unwrap();
    let vf = inventory.pfs[0].vfs[0].address;
    scene.kubelet.give("ns", "gpu", "vendor.example/gpu", "GPU-0");
    scene
        .kubelet
        .give("shop", "virt-launcher-db", "intel.com/sriov", &vf.to_string());
    let pools = &scene.host.pools;
    scene.host.offers.look_elsewhere(pools).await.unwrap();
    let foreign = pools.foreign();
    let why = foreign.get(&vf).expect("it is not known");
    assert!(
        why.contains("the pod shop/virt-launcher-db as intel.com/sriov"),
        "{why}"
    );
    assert_eq!(foreign.len(), 1, "a GPU is no VF");
    let claimant = Claimant {
        created: 1,
        nic: "ns/nic".into(),
        uid: "vm".into(),
    };
    let wish = Wish {
        network: "fast",
        pick: Pick::Exactly(vf),
        standby_pf: None,
    };
    assert!(pools.take(&inventory, &claimant, &wish).is_none(), "it was taken");
    // Nor is it promised to a pod.
    scene.healthy(|ids| ids.len() == 3).await;

    // The hardware's changes do not show it, and a silent kubelet has said nothing new.
    pools.forget_foreign();
    scene.kubelet.set_mute(true);
    scene.kubelet.delete("shop", "virt-launcher-db");
    scene.host.offers.look_elsewhere(pools).await.unwrap_err();
    assert!(pools.take(&inventory, &claimant, &wish).is_none(), "it was taken");
    scene.kubelet.set_mute(false);
    scene.host.offers.look_elsewhere(pools).await.unwrap();
    assert!(pools.take(&inventory, &claimant, &wish).is_some());
}

/// Its sockets are there before it has asked the API server for its pods.
#[tokio::test]
async fn a_kubelet_that_does_not_know_the_agents_own_pod_has_not_answered() {
    let scene = Scene::of_pod(Some(("hybridnic-system".into(), "agent-1".into())));
    let pools = &scene.host.pools;
    let vf = scene.host.inventory().await.unwrap().pfs[0].vfs[0].address;
    let why = scene.host.offers.look_elsewhere(pools).await.unwrap_err();
    assert!(why.contains("this agent's own"), "{why}");
    scene.kubelet.run("hybridnic-system", "agent-1");
    scene
        .kubelet
        .give("shop", "db", "intel.com/sriov", &vf.to_string());
    scene.host.offers.look_elsewhere(pools).await.unwrap();
    assert!(pools.foreign().contains_key(&vf));

    // It starts again: who has what is not forgotten meanwhile.
    scene.kubelet.delete("hybridnic-system", "agent-1");
    scene.kubelet.delete("shop", "db");
    scene.host.offers.look_elsewhere(pools).await.unwrap_err();
    assert!(pools.foreign().contains_key(&vf));
}

#[tokio::test]
async fn what_the_kubelet_gives_and_what_the_ledger_holds_are_one() {
    let mut scene = Scene::new();
    scene.healthy(|ids| ids.len() == 4).await;
    let (ids, nodes) = scene.kubelet.admit("ns", "vm", RESOURCE, 1).await.unwrap();
    let id: DeviceId = ids.first().unwrap().parse().unwrap();
    assert_eq!(nodes, [id.node().display().to_string()]);
    assert!(scene.node(id).exists(), "the container could not be made");

    let has_given = async |name: &str| {
        let pod = hybridnic_cni::wire::Pod {
            namespace: "ns".into(),
            name: name.into(),
            uid: "whatever".into(),
        };
        let (offers, id) = (&scene.host.offers, id.to_string());
        cni::Kubelet::has_given(&**offers, &pod, "fast", &id).await
    };
    assert_eq!(has_given("vm").await, Ok(()));
    let error = has_given("plain").await.unwrap_err();
    assert!(error.contains("has not given"), "{error}");

    let ours = Ticket::Device { id, tied: false };
    assert_eq!(scene.ticket("vm").await, Ok(ours));
    scene.kubelet.run("ns", "plain");
    assert_eq!(scene.ticket("plain").await, Ok(Ticket::None));
    let error = scene.ticket("unheard-of").await.unwrap_err();
    assert!(error.contains("runs no pod ns/unheard-of"), "{error}");
    scene.kubelet.set_mute(true);
    let error = scene.ticket("unheard-of").await.unwrap_err();
    assert!(error.contains("not now"), "{error}");
    assert_eq!(scene.ticket("vm").await, Ok(ours), "that is known");
    scene.kubelet.set_mute(false);

    // The pod is over, and its NIC has a VF.
    let inventory = scene.host.inventory().await.unwrap();
    let claimant = Claimant {
        created: 1,
        nic: "ns/nic".into(),
        uid: "vm".into(),
    };
    let wish = Wish {
        network: "fast",
        pick: Pick::OnPf(id.pf()),
        standby_pf: None,
    };
    let taken = scene.host.pools.take(&inventory, &claimant, &wish).unwrap();
    scene.kubelet.delete("ns", "vm");
    scene.host.pools.look_again();
    scene
        .healthy(|ids| ids.len() == 3 && !ids.contains(&id.to_string()))
        .await;
    assert!(scene.node(id).exists());
    scene.host.pools.release(taken.vf.address);
    scene.host.pools.leave("vm");
    scene.healthy(|ids| ids.len() == 4).await;

    // A kubelet that has lost its checkpoint knows nothing of a pod that runs.
    let (ids, _) = scene.kubelet.admit("ns", "vm", RESOURCE, 1).await.unwrap();
    let id: DeviceId = ids.first().unwrap().parse().unwrap();
    let Ok(Ticket::Device { .. }) = scene.ticket("vm").await else {
        panic!("no device")
    };
    let wish = Wish {
        pick: Pick::OnPf(id.pf()),
        ..wish
    };
    scene.host.pools.take(&inventory, &claimant, &wish).unwrap();
    scene.kubelet.restart(true).unwrap();
    scene
        .healthy(|ids| ids.len() == 3 && !ids.contains(&id.to_string()))
        .await;
    let error = scene.kubelet.admit("ns", "many", RESOURCE, 4).await.unwrap_err();
    assert!(error.contains("Available: 3"), "{error}");
}

/// A pod without a device gets one only by asking for it.
#[tokio::test]
async fn the_kubelet_is_asked_only_while_somebody_may_have_a_device() {
    let scene = Scene::new();
    scene.healthy(|ids| ids.len() == 4).await;
    let asked = || *scene.kubelet.lists().borrow();
    let (offers, ledger) = (&scene.host.offers, &scene.host.pools);
    assert!(!offers.may_be_given(ledger));
    let before = asked();
    // What a NIC of a pod without devices does is no reason to ask.
    ledger.enter("plain", nic("plain"));
    ledger.set_ticket("plain", Ticket::None);
    assert!(!offers.may_be_given(ledger));
    let inventory = scene.host.inventory().await.unwrap();
    let wish = Wish {
        network: "fast",
        pick: Pick::Any,
        standby_pf: None,
    };
    let claimant = Claimant {
        created: 1,
        nic: "ns/nic".into(),
        uid: "plain".into(),
    };
    ledger.take(&inventory, &claimant, &wish).unwrap();
    scene.healthy(|ids| ids.len() == 3).await;
    assert!(asked() <= before + 1, "asked {} times", asked() - before);
    // One whose pod may have a device.
    ledger.enter("vm", nic("vm"));
    assert!(offers.may_be_given(ledger));
    ledger.leave("vm");
    let (ids, _) = scene.kubelet.admit("ns", "vm", RESOURCE, 1).await.unwrap();
    assert!(offers.may_be_given(ledger));
    // From when it is heard whose it is, until it is heard that the pod is over.
    let hears = async |what: &dyn Fn() -> bool| {
        ledger.look_again();
        let heard = async {
            while !what() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), heard).await.expect("not heard");
    };
    let id: DeviceId = ids.first().unwrap().parse().unwrap();
    hears(&|| offers.given() == [id]).await;
    scene.kubelet.delete("ns", "vm");
    hears(&|| !offers.may_be_given(ledger)).await;
}

/// As after a boot, where the kubelet's checkpoint has what it gave, and it asks for nothing again.
#[tokio::test]
async fn the_nodes_that_containers_were_promised_are_made_again_when_the_agent_starts() {
    let scene = Scene::new();
    scene.healthy(|ids| ids.len() == 4).await;
    let (ids, _) = scene.kubelet.admit("ns", "vm", RESOURCE, 2).await.unwrap();
    let nodes: Vec<PathBuf> = ids.iter().map(|id| scene.node(id.parse().unwrap())).collect();
    let Scene {
        dir,
        host,
        kubelet: _kubelet,
        run: before,
    } = scene;
    drop(before);
    for node in &nodes {
        std::fs::remove_file(node).unwrap();
    }
    let plugins = scripted::plugins(&dir.path().join("kubelet"));
    let _run = AbortOnDropHandle::new(tokio::spawn(async move { run(host, &plugins).await }));
    let made = async {
        while !nodes.iter().all(|node| node.exists()) {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(30), made).await.expect("not made");
}

/// This machine has no such PFs, so no VF can be parked.
#[tokio::test]
async fn a_vf_that_cannot_be_made_ready_is_given_to_no_pod_and_nothing_is_left() {
    let scene = Scene::on_kernel(None, "243 vfio\n");
    scene.healthy(|ids| ids.len() == 4).await;
    // These two are with vfio, and nobody has them open.
    let nodes = scene.host.dev.root().join("vfio");
    std::fs::create_dir(&nodes).unwrap();
    for pf in &scene.host.inventory().await.unwrap().pfs {
        let group = pf.vfs[0].iommu_group.unwrap();
        std::fs::write(nodes.join(group.to_string()), "").unwrap();
    }
    let error = scene.kubelet.admit("ns", "vm", RESOURCE, 2).await.unwrap_err();
    assert!(!error.contains("Available"), "{error}");
    scene.healthy(|ids| ids.len() == 4).await;
    assert!(scene.host.pools.lent().is_empty());
    assert_eq!(scene.host.journal.loans().unwrap(), []);

    // Without the network's settings a pod could get a trunk of all VLANs.
    let mut unknown = pool("fast", "*", 0);
    unknown.l2 = None;
    scene.host.pools.set_pools(&[unknown]);
    let error = scene.kubelet.admit("ns", "vm", RESOURCE, 2).await.unwrap_err();
    assert!(error.contains("which settings the network fast has"), "{error}");

    // A standby slot comes without.
    scene.host.pools.set_pools(&[pool("fast", "*", 8)]);
    scene.healthy(|ids| ids.len() == 12).await;
    let slots = super::super::slots::standby(
        &scene.host.inventory().await.unwrap(),
        &scene.host.pools.pools(),
        "fast",
    );
    let ids = [slots[0].to_string()].into();
    scene.kubelet.ask_for(RESOURCE, &ids).await.unwrap();
    assert!(scene.host.pools.lent().is_empty());
}
