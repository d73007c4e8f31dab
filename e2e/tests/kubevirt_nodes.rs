//! KubeVirt as its users have it: a Helm chart, Multus, launchers that are pods, VFs, on a real two-node cluster. One cluster for all
//! of it, as making one is dear.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

mod common;
#[path = "kubevirt_nodes/faults.rs"]
mod faults;
#[path = "kubevirt_nodes/moves.rs"]
mod moves;
#[path = "kubevirt_nodes/seen.rs"]
mod seen;

use std::time::{Duration, Instant};

use common::{on_cluster, twice, whole_within};
use faults::Victim;
use hybridnic_e2e::cluster::Cluster;
use hybridnic_e2e::kubevirt::{Kind, OnNodes, Vm, images};
use hybridnic_e2e::lab::Pinger;
use hybridnic_e2e::world::{NicSpec, footprint};
use seen::{checked, current, fast, gone, node_of, reached};
use serde_json::json;

const NAMESPACE: &str = "default";
/// In MiB: beside what `nodes` has, an image of 250 MB twice, and virt-handler.
const MEMORY: u32 = 6144;
/// For a VM's start or move, all of it emulated.
const LONG: Duration = Duration::from_mins(5);
/// For what a program does by itself.
const SOON: Duration = Duration::from_mins(2);
/// From the nodes' first breath to the end.
const WHOLE: Duration = Duration::from_mins(20);
/// Packets a second.
const RATE: u32 = 100;
/// A network with one VF on each node, and a place for one NIC more.
const SCARCE: &str = "scarce";
/// The VF of each node's first PF that is not ours, but KubeVirt's own.
const LENT: u8 = 6;

#[tokio::test(flavor = "multi_thread")]
async fn vms_keep_their_network() {
    twice("kubevirt", async |name| {
        let began = Instant::now();
        let images = images().await.unwrap();
        let mut cluster = Cluster::start_with(name, MEMORY, &images, |what| eprintln!("--- {what}"))
            .await
            .unwrap();
        let dead = cluster.lab.node_ended();
        on_cluster(&mut cluster, async |cluster: &mut Cluster| {
            let story = Story { cluster, began };
            whole_within(WHOLE, Box::pin(story.run()), dead).await;
        })
        .await;
    })
    .await;
}

struct Story<'a> {
    cluster: &'a Cluster,
    began: Instant,
}

impl Story<'_> {
    fn say(&self, what: &str) {
        eprintln!("--- {:5.1} s  {what}", self.began.elapsed().as_secs_f64());
    }

    async fn run(&self) {
        let cluster = self.cluster;
        self.say("the cluster is ready");
        // The nodes' own KVM, nested in what emulates them.
        let gates = json!({ "developerConfiguration": { "featureGates": ["VSOCK"] } });
        let mut kubevirt = OnNodes::start(cluster, gates).await.unwrap();
        self.say("KubeVirt is ready");
        self.install().await;
        kubevirt.offer_vf(cluster, NAMESPACE, LENT).await.unwrap();
        self.say("hybridnic is installed");
        let clean = [self.tidy(1).await, self.tidy(2).await];

        let vms = Vms::new();
        vms.start(cluster).await;
        self.say("the VMs run, and their guests are on their VFs");
        self.keeps_its_vf(&vms.keeps).await;
        self.target_deleted(&vms.keeps).await;
        vms.keeps.delete(cluster).await.unwrap();
        gone(cluster, &vms.keeps).await;
        self.say("a guest that keeps its VF has held its migrations, and nothing happened to it");
        self.side_by_side(&vms).await;
        vms.old.delete(cluster).await.unwrap();
        gone(cluster, &vms.old).await;
        self.say("two VMs have moved side by side, one of them with KubeVirt's own interface");
        vms.start_rare(cluster).await;
        self.crossing(&vms).await;
        vms.rare.delete(cluster).await.unwrap();
        gone(cluster, &vms.rare).await;
        self.say("two VMs have changed places, and there was no VF for either");
        self.drained(&vms).await;
        self.say("a node was drained, and the agent killed at the target meanwhile");
        self.killed(&vms.web).await;
        self.say("operator and agents were killed during a migration");
        self.called_off(&vms.web).await;
        self.say("migrations were deleted in each phase");
        self.paused(&vms.web).await;
        self.rebooted(&vms.web).await;
        self.libvirt_killed(&vms.web).await;
        self.say("the VM was paused, its guest booted again, its libvirt killed");
        self.undisturbed(&vms.web, "upgrade", async || {
            cluster
                .helm(&["upgrade", "hybridnic"], &["log.filter=debug"])
                .await
                .unwrap();
        })
        .await;
        self.undisturbed(&vms.web, "uninstall and install", async || {
            cluster.helm(&["uninstall", "hybridnic"], &[]).await.unwrap();
            cluster.helm(&["install", "hybridnic"], &[]).await.unwrap();
        })
        .await;
        self.say("upgraded, uninstalled and installed again");
        self.crashed(&vms.web, Victim::Qemu).await;
        self.crashed(&vms.web, Victim::Launcher).await;
        self.restarted(&vms.web).await;
        self.say("QEMU and launcher were killed, the VM stopped and started");
        vms.web.delete(cluster).await.unwrap();
        gone(cluster, &vms.web).await;
        for (node, clean) in [1, 2].into_iter().zip(clean) {
            self.until_tidy(node, &clean).await;
        }
        self.say("all VMs are gone, and nothing is left of them");
    }

    /// `helm install`, and a pool of VFs, but for one that is lent.
    async fn install(&self) {
        let installed = self
            .cluster
            .helm(
                &["install", "hybridnic", "--create-namespace"],
                &["kubevirt.registerBinding=true"],
            )
            .await;
        installed.unwrap();
        let network = |name: &str, uplink: &str, slots: u8| {
            format!(
                "---\napiVersion: hybridnic.io/v1alpha1\nkind: HybridNetwork\nmetadata: {{name: {name}}}\n\
                 spec:\n  uplinks: [{{{uplink}, numVfs: 7}}]\n  standbySlots: {slots}\n  \
                 macRange: {{from: \"52:54:00:77:00:00\", to: \"52:54:00:77:ff:ff\"}}\n"
            )
        };
        let fast = network("fast", "drivers: [igb], vfs: [\"0-5\"]", 0);
        let scarce = network(SCARCE, "pfNames: [eth2], vfs: [\"6\"]", 1);
        self.cluster.apply(&format!("{fast}{scarce}")).await.unwrap();
        for node in 1..=2 {
            self.cluster
                .until_node(node, "with 13 free VFs", |n| {
                    n.status.as_ref().is_some_and(|s| s.vfs.free == 13)
                })
                .await
                .unwrap();
        }
    }

    async fn arrived(&self, vm: &Vm, asked: Instant, what: &str) {
        let nics = fast(self.cluster, vm).await;
        eprintln!(
            "figure: {what}: from asked to its VF {:.1} s",
            asked.elapsed().as_secs_f64()
        );
        checked(self.cluster, vm, &nics).await;
    }

    async fn watch(&self, vm: &Vm) -> Pinger {
        let pinger = self
            .cluster
            .lab
            .pinger(vm.interfaces[0].nic.address, RATE)
            .unwrap();
        if !pinger.answered(20, SOON).await || !pinger.answered_beside(10, SOON).await {
            let inside = match vm.inside(self.cluster).await {
                Ok(inside) => format!("{:#?}", inside.net().await),
                Err(error) => format!("{error:#}"),
            };
            panic!(
                "{} does not answer: {:#?}; inside: {inside}",
                vm.name,
                pinger.report()
            );
        }
        pinger
    }

    /// What a node has of NICs.
    async fn tidy(&self, node: usize) -> String {
        let node = self.cluster.node(node);
        let nodes = node.run("ls /dev | grep '^tap' || true", SOON).await.unwrap();
        format!("{}{nodes}", footprint(node).await.unwrap())
    }

    async fn until_tidy(&self, node: usize, clean: &str) {
        let end = Instant::now() + SOON;
        loop {
            let now = self.tidy(node).await;
            if now == clean {
                return;
            }
            assert!(
                Instant::now() < end,
                "node {node} is not as it was:\n{now}\ninstead of\n{clean}"
            );
            // A node tells nobody of what is on it.
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

/// The VMs of the story.
struct Vms {
    /// An ordinary one, on two networks.
    web: Vm,
    /// One whose guest does not let go of devices.
    keeps: Vm,
    /// One on the network of which there are few VFs, and with an interface of KubeVirt's own.
    rare: Vm,
    /// One with KubeVirt's own SR-IOV.
    old: Vm,
}

impl Vms {
    fn new() -> Self {
        let vm = |name, network, nic| Vm::new(NAMESPACE, name, network, nic);
        let mut keeps = vm("keeps", "fast", NicSpec::new(0, 51));
        keeps.arguments = "acpiphp.disable=1 lab.rescan=1";
        Self {
            web: vm("web", "fast", NicSpec::new(0, 50)).and(SCARCE, NicSpec::new(1, 50)),
            keeps,
            rare: vm("rare", SCARCE, NicSpec::new(0, 53)).with_plain(),
            old: Vm::with_sriov(NAMESPACE, "old", NicSpec::new(0, 52)),
        }
    }

    /// One after the other: KubeVirt 1.8 mounts a guest's kernel only once, and a VM whose start then takes more than 20 s stays as it is.
    async fn start(&self, cluster: &Cluster) {
        for vm in [&self.web, &self.keeps] {
            self.begin(cluster, vm).await;
        }
        self.old.create(cluster).await.unwrap();
        reached(cluster, Kind::VirtualMachineInstance, &self.old.name, "Running").await;
    }

    /// Starts the one that takes the other node's only VF of its network.
    async fn start_rare(&self, cluster: &Cluster) {
        let node = format!("n{}", node_of(&current(cluster, &self.web).await));
        cluster.kubectl(&["cordon", &node]).await.unwrap();
        self.begin(cluster, &self.rare).await;
        cluster.kubectl(&["uncordon", &node]).await.unwrap();
    }

    async fn begin(&self, cluster: &Cluster, vm: &Vm) {
        let asked = Instant::now();
        vm.create(cluster).await.unwrap();
        let nics = fast(cluster, vm).await;
        eprintln!(
            "figure: {}, from asked to its fast path {:.1} s",
            vm.name,
            asked.elapsed().as_secs_f64()
        );
        checked(cluster, vm, &nics).await;
    }
}
