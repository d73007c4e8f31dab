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
#[path = "kubevirt_nodes/groups.rs"]
mod groups;
#[path = "kubevirt_nodes/moves.rs"]
mod moves;
#[path = "kubevirt_nodes/seen.rs"]
mod seen;

use std::time::{Duration, Instant};

use common::{on_cluster, twice, whole_within};
use faults::Victim;
use hybridnic_e2e::cluster::Cluster;
use hybridnic_e2e::kubevirt::{Kind, OnNodes, Vm, images};
use hybridnic_e2e::lab::{Kernel, Pinger};
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
const WHOLE: Duration = Duration::from_mins(25);
/// Packets a second.
const RATE: u32 = 100;
/// A network with one VF on each node, and a place for one NIC more.
const SCARCE: &str = "scarce";
/// One with two VFs on each node.
const PAIR: &str = "pair";
/// By this the VM with KubeVirt's own SR-IOV is known.
const SRIOV: u8 = 52;
/// The VF of each node's first PF that is not ours, but KubeVirt's own.
const LENT: u8 = 6;

/// What its users do every day, beside a VM with KubeVirt's own SR-IOV.
#[tokio::test(flavor = "multi_thread")]
async fn vms_keep_their_network() {
    twice("kubevirt", async |name| told(name, Tale::EveryDay).await).await;
}

/// What goes wrong in a migration.
#[tokio::test(flavor = "multi_thread")]
async fn faults_cost_no_vm_its_network() {
    twice("kubevirt-faults", async |name| told(name, Tale::Faults).await).await;
}

/// What happens to a VM seldom, and is no fault.
#[tokio::test(flavor = "multi_thread")]
async fn vms_live_through_what_is_rare() {
    twice("kubevirt-rare", async |name| told(name, Tale::Rare).await).await;
}

/// A kernel as most distributions have it today: vfio with groups only.
#[tokio::test(flavor = "multi_thread")]
async fn vms_without_iommufd() {
    twice("kubevirt-groups", async |name| told(name, Tale::Groups).await).await;
}

/// What is told.
#[derive(Clone, Copy)]
enum Tale {
    EveryDay,
    Faults,
    Rare,
    Groups,
}

impl Tale {
    /// What its nodes run.
    fn kernel(self) -> Kernel {
        match self {
            Self::EveryDay | Self::Faults | Self::Rare => Kernel::Kube,
            Self::Groups => Kernel::KubeDebian,
        }
    }
}

/// Tells a story on a cluster of its own.
async fn told(name: &str, tale: Tale) {
    let began = Instant::now();
    let images = images().await.unwrap();
    let say = |what: &str| eprintln!("--- {what}");
    let started = Cluster::start_with(name, tale.kernel(), MEMORY, &images, say).await;
    let mut cluster = started.unwrap();
    let dead = cluster.lab.node_ended();
    on_cluster(&mut cluster, async |cluster: &mut Cluster| {
        let story = Story { cluster, began };
        whole_within(WHOLE, Box::pin(story.told(tale)), dead).await;
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

    /// KubeVirt and hybridnic are there before it, and nothing is left after it.
    async fn told(&self, tale: Tale) {
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
        match tale {
            Tale::EveryDay => self.every_day().await,
            Tale::Faults => self.faults().await,
            Tale::Rare => self.rare().await,
            Tale::Groups => self.groups().await,
        }
        for (node, clean) in [1, 2].into_iter().zip(clean) {
            self.until_tidy(node, &clean).await;
        }
        self.say("all VMs are gone, and nothing is left of them");
    }

    async fn every_day(&self) {
        let cluster = self.cluster;
        let (web, old) = (web(), Vm::with_sriov(NAMESPACE, "old", NicSpec::new(0, SRIOV)));
        self.start(&web).await;
        old.create(cluster).await.unwrap();
        reached(cluster, Kind::VirtualMachineInstance, &old.name, "Running").await;
        self.say("two VMs run, and the guest of ours is on its VFs");
        self.side_by_side(&web, &old).await;
        self.end(&old).await;
        self.say("both have moved side by side, one of them with KubeVirt's own interface");
        self.drained(&web).await;
        self.say("a node was drained, and the agent killed at the target meanwhile");
        self.undisturbed(&web, "upgrade", async || {
            let changed = cluster.helm(&["upgrade", "hybridnic"], &["log.filter=debug"]);
            changed.await.unwrap();
        })
        .await;
        self.undisturbed(&web, "uninstall and install", async || {
            cluster.helm(&["uninstall", "hybridnic"], &[]).await.unwrap();
            cluster.helm(&["install", "hybridnic"], &[]).await.unwrap();
        })
        .await;
        self.say("upgraded, uninstalled and installed again");
        self.crashed(&web, Victim::Qemu).await;
        self.say("QEMU was killed, and KubeVirt has started the VM again");
        self.end(&web).await;
    }

    async fn faults(&self) {
        let mut keeps = Vm::new(NAMESPACE, "keeps", "fast", NicSpec::new(0, 51));
        keeps.arguments = "acpiphp.disable=1 lab.rescan=1".into();
        self.start(&keeps).await;
        self.keeps_its_vf(&keeps).await;
        self.target_deleted(&keeps).await;
        self.end(&keeps).await;
        self.say("a guest that keeps its VF has held its migrations, and nothing happened to it");
        let web = web().and(PAIR, NicSpec::new(2, 50));
        let rare = Vm::new(NAMESPACE, "rare", SCARCE, NicSpec::new(0, 53)).and(PAIR, NicSpec::new(2, 53));
        let rare = rare.with_plain();
        self.start(&web).await;
        self.start_elsewhere(&rare, &web).await;
        self.say("each node has a VM, one free VF of one of their networks, and none of the other");
        self.crossing(&web, &rare).await;
        self.end(&rare).await;
        self.say("two VMs have changed places");
        self.killed(&web).await;
        self.say("operator and agents were killed during a migration");
        self.called_off(&web).await;
        self.say("migrations were deleted in each phase");
        self.end(&web).await;
    }

    async fn rare(&self) {
        let web = web();
        self.start(&web).await;
        self.say("a VM runs, and its guest is on its VFs");
        self.paused(&web).await;
        self.rebooted(&web).await;
        self.libvirt_killed(&web).await;
        self.say("the VM was paused, its guest booted again, its libvirt killed");
        self.disk_plugged(&web).await;
        self.post_copied(&web).await;
        self.say("a disk came and went, and a migration has ended in post-copy");
        self.crashed(&web, Victim::Launcher).await;
        self.restarted(&web).await;
        self.say("the launcher was killed, the VM stopped and started");
        self.end(&web).await;
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
        let fast = network("fast", "drivers: [igb], vfs: [\"0-3\"]", 0);
        let pair = network(PAIR, "pfNames: [eth2], vfs: [\"4-5\"]", 0);
        let scarce = network(SCARCE, "pfNames: [eth2], vfs: [\"6\"]", 1);
        let all = format!("{fast}{pair}{scarce}");
        self.cluster.apply(&all).await.unwrap();
        for node in 1..=2 {
            self.cluster
                .until_node(node, "with 11 free VFs", |n| {
                    n.status.as_ref().is_some_and(|s| s.vfs.free == 11)
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
        let moved = nics[0].status.as_ref().and_then(|s| s.last_migration.as_ref());
        let downtime = moved.and_then(|moved| moved.downtime_ms);
        eprintln!("figure: {what}: the VM stood still for {downtime:?} ms");
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

    /// What a node has of NICs. A VF that has been used may keep a MAC of its own, because igb takes no zero MAC: only MACs of NICs count, and
    /// not that of the VF that was lent.
    async fn tidy(&self, node: usize) -> String {
        let node = self.cluster.node(node);
        let nodes = node
            .run(
                "ls /dev | grep '^tap'; ls /dev/hybridnic /var/lib/hybridnic/* 2>/dev/null | grep -E '^group-|loan$'; true",
                SOON,
            )
            .await
            .unwrap();
        let (nics, lent) = ("52:54:00:77:", NicSpec::new(0, SRIOV).mac);
        let without = |line: &str| match line.split_once("link/ether ") {
            Some((before, after)) if !after.starts_with(nics) || after.starts_with(&lent) => {
                format!("{before}{}", after.split_once(' ').unwrap_or_default().1)
            }
            _ => line.to_owned(),
        };
        let footprint = footprint(node).await.unwrap();
        let lines: Vec<_> = footprint.lines().map(without).collect();
        format!("{}\n{nodes}", lines.join("\n"))
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

    async fn start(&self, vm: &Vm) {
        let asked = Instant::now();
        vm.create(self.cluster).await.unwrap();
        let nics = fast(self.cluster, vm).await;
        eprintln!(
            "figure: {}, from asked to its fast path {:.1} s",
            vm.name,
            asked.elapsed().as_secs_f64()
        );
        checked(self.cluster, vm, &nics).await;
    }

    /// Starts a VM where another one is not.
    async fn start_elsewhere(&self, vm: &Vm, other: &Vm) {
        let node = format!("n{}", node_of(&current(self.cluster, other).await));
        self.cluster.kubectl(&["cordon", &node]).await.unwrap();
        self.start(vm).await;
        self.cluster.kubectl(&["uncordon", &node]).await.unwrap();
    }

    async fn end(&self, vm: &Vm) {
        vm.delete(self.cluster).await.unwrap();
        gone(self.cluster, vm).await;
    }
}

/// An ordinary VM, on two networks.
fn web() -> Vm {
    Vm::new(NAMESPACE, "web", "fast", NicSpec::new(0, 50)).and(SCARCE, NicSpec::new(1, 50))
}
