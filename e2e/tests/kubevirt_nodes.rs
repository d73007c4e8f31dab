//! KubeVirt as its users have it: a Helm chart, Multus, launchers that are pods, VFs, on a real two-node cluster. One cluster for each
//! story, as making one is dear.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

mod common;
#[path = "kubevirt_nodes/disks.rs"]
mod disks;
#[path = "kubevirt_nodes/events.rs"]
mod events;
#[path = "kubevirt_nodes/faults.rs"]
mod faults;
#[path = "kubevirt_nodes/figures.rs"]
mod figures;
#[path = "kubevirt_nodes/groups.rs"]
mod groups;
#[path = "kubevirt_nodes/held.rs"]
mod held;
#[path = "kubevirt_nodes/moves.rs"]
mod moves;
#[path = "kubevirt_nodes/page.rs"]
mod page;
#[path = "kubevirt_nodes/seen.rs"]
mod seen;
#[path = "kubevirt_nodes/transfers.rs"]
mod transfers;

use std::time::{Duration, Instant};

use common::{on_cluster, twice, watched_with, whole_within};
use faults::Victim;
use figures::by_phase;
use hybridnic_e2e::cluster::Cluster;
use hybridnic_e2e::kubevirt::{OnNodes, Vm, images};
use hybridnic_e2e::lab::{Kernel, Pinger, Report};
use hybridnic_e2e::world::{NicSpec, footprint};
use page::Page;
use seen::{BUSY, checked, current, fast, gone, node_of};
use serde_json::json;
use tokio::sync::Mutex;

/// Where the VMs are; the documentation's.
const NAMESPACE: &str = "shop";
/// In MiB: beside what `nodes` has, an image of 250 MB twice, and virt-handler.
const MEMORY: u32 = 6144;
/// For a VM's start or move, all of it emulated.
const LONG: Duration = Duration::from_mins(5);
/// For what a program does by itself.
const SOON: Duration = Duration::from_mins(2);
/// From the nodes' first breath to the end.
const WHOLE: Duration = Duration::from_mins(35);
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

/// What its users do every day, as the documentation has it, beside a VM with KubeVirt's own SR-IOV. It is the one that CI runs.
#[tokio::test(flavor = "multi_thread")]
async fn vms_keep_their_network() {
    twice("kubevirt", async |name| told(name, Tale::EveryDay).await).await;
}

/// What goes wrong in a migration before its VM is sent, and migrations that are called off.
#[tokio::test(flavor = "multi_thread")]
async fn faults_cost_no_vm_its_network() {
    twice("kubevirt-faults", async |name| told(name, Tale::Faults).await).await;
}

/// What goes wrong while a VM is sent.
#[tokio::test(flavor = "multi_thread")]
async fn faults_of_a_transfer_cost_no_vm_its_network() {
    twice("kubevirt-transfers", async |name| {
        told(name, Tale::Transfers).await;
    })
    .await;
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
    Transfers,
    Rare,
    Groups,
}

impl Tale {
    /// What its nodes run.
    fn kernel(self) -> Kernel {
        match self {
            Self::EveryDay | Self::Faults | Self::Transfers | Self::Rare => Kernel::Kube,
            Self::Groups => Kernel::KubeDebian,
        }
    }
}

/// Tells a story on a cluster of its own.
async fn told(name: &str, tale: Tale) {
    let began = Instant::now();
    let images = images().await.unwrap();
    let say = |what: &str| eprintln!("--- {what}");
    let started = Cluster::start_for_kubevirt(name, tale.kernel(), MEMORY, &images, say).await;
    let mut cluster = started.unwrap();
    let dead = cluster.lab.node_ended();
    on_cluster(&mut cluster, async |cluster: &mut Cluster| {
        let story = async {
            let story = Story::begin(cluster, began).await;
            story.told(tale).await;
        };
        whole_within(WHOLE, Box::pin(story), dead).await;
    })
    .await;
}

struct Story<'a> {
    cluster: &'a Cluster,
    kubevirt: Mutex<OnNodes>,
    began: Instant,
}

impl<'a> Story<'a> {
    /// KubeVirt is there before it.
    async fn begin(cluster: &'a Cluster, began: Instant) -> Self {
        // KubeVirt gives containers beside a VM a hundredth of a processor: on an emulated node each takes 10 s to start then, three in a
        // pod, one after the other, while the node has nothing to do.
        let enough = |of| json!({ "type": of, "resources": { "limits": { "cpu": "1" } } });
        let beside = ["container-disk", "guest-console-log", "hotplug-disk"].map(enough);
        // The nodes' own KVM, nested in what emulates them.
        let configuration = json!({
            "developerConfiguration": { "featureGates": ["VSOCK", "HotplugVolumes"] },
            "supportContainerResources": beside,
        });
        let kubevirt = OnNodes::start(cluster, configuration).await.unwrap();
        let story = Self {
            cluster,
            kubevirt: Mutex::new(kubevirt),
            began,
        };
        story.say("KubeVirt is ready");
        story
    }

    fn say(&self, what: &str) {
        eprintln!("--- {:5.1} s  {what}", self.began.elapsed().as_secs_f64());
    }

    async fn told(&self, tale: Tale) {
        match tale {
            Tale::EveryDay => {
                let page = self.installed_as_written().await;
                self.tidily(Box::pin(self.every_day(&page))).await;
            }
            Tale::Faults => self.installed(Box::pin(self.faults())).await,
            Tale::Transfers => self.installed(Box::pin(self.transfers())).await,
            Tale::Rare => self.installed(Box::pin(self.rare())).await,
            Tale::Groups => self.installed(Box::pin(self.groups())).await,
        }
    }

    /// Hybridnic is there before it.
    async fn installed(&self, story: impl Future<Output = ()>) {
        self.install().await;
        self.say("hybridnic is installed");
        self.tidily(story).await;
    }

    /// Nothing is left after it.
    async fn tidily(&self, story: impl Future<Output = ()>) {
        let clean = [self.tidy(1).await, self.tidy(2).await];
        story.await;
        for (node, clean) in [1, 2].into_iter().zip(clean) {
            self.until_tidy(node, &clean).await;
        }
        self.say("all VMs are gone, and nothing is left of them");
    }

    async fn every_day(&self, page: &Page) {
        let cluster = self.cluster;
        let (web, old) = (
            web().with_any_mac(),
            Vm::with_sriov(NAMESPACE, "old", NicSpec::new(0, SRIOV)),
        );
        self.start_as_written(page, &web, &old).await;
        self.say("two VMs run, and the guest of ours is on its VFs");
        self.looked_at(page, &web).await;
        self.compared(page, &web, &old).await;
        // It goes while the other one goes on.
        old.delete(cluster).await.unwrap();
        self.say("both have moved, one of them with KubeVirt's own interface");
        self.sent_aside(page, &web).await;
        self.drained(page, &web).await;
        gone(cluster, &old).await;
        self.say("the VM was on its standbys for a while; a node was drained, and the agent killed at the target meanwhile");
        self.undisturbed(&web, "uninstall and install", async || {
            cluster.helm(&["uninstall", "hybridnic"], &[]).await.unwrap();
            cluster.helm(&["install", "hybridnic"], &[]).await.unwrap();
        })
        .await;
        self.say("uninstalled and installed again");
        page.is_typed();
        self.end(&web).await;
    }

    async fn faults(&self) {
        let web = web().and(PAIR, NicSpec::new(2, 50));
        let rare = Vm::new(NAMESPACE, "rare", SCARCE, NicSpec::new(0, 53)).and(PAIR, NicSpec::new(2, 53));
        let rare = rare.with_plain();
        self.start(&web).await;
        self.start_elsewhere(&rare, &web).await;
        self.say("each node has a VM, one free VF of one of their networks, and none of the other");
        self.crossing(&web, &rare).await;
        self.end(&rare).await;
        self.say("two VMs have changed places");
        self.called_off(&web).await;
        self.end(&web).await;
        self.say("migrations were deleted in each phase");
        let mut keeps = Vm::new(NAMESPACE, "keeps", "fast", NicSpec::new(0, 51));
        keeps.arguments = "acpiphp.disable=1 lab.rescan=1".into();
        self.start(&keeps).await;
        // First: KubeVirt does not always evacuate a VM right after a migration of it has failed.
        self.drain_ended(&keeps).await;
        self.say("a drain that a guest held by keeping its VF was ended");
        self.keeps_its_vf(&keeps).await;
        self.target_deleted(&keeps).await;
        self.say("it has held its migrations, and nothing happened to it");
        self.barrier_missed(&keeps).await;
        self.say("a target did not wait for it, and QEMU refused to send the VM");
        self.end(&keeps).await;
    }

    async fn transfers(&self) {
        let web = web();
        self.start(&web).await;
        self.say("a VM runs, and its guest is on its VFs");
        self.killed(&web).await;
        self.say("operator and agents were killed during a migration, the source's as QEMU stopped the VM");
        self.api_stopped(&web).await;
        self.say("the API server stood still from the VM's pause until it ran at its target");
        self.deleted(&web).await;
        self.target_killed(&web).await;
        self.say("a migration was deleted while it sent the VM, and QEMU killed at a target");
        self.handler_killed(&web).await;
        self.say("virt-handler was killed, and started again");
        self.end(&web).await;
    }

    async fn rare(&self) {
        let web = web();
        self.start(&web).await;
        self.say("a VM runs, and its guest is on its VFs");
        self.undisturbed(&web, "upgrade", async || {
            let changed = self
                .cluster
                .helm(&["upgrade", "hybridnic"], &["log.filter=debug"]);
            changed.await.unwrap();
        })
        .await;
        self.paused(&web).await;
        self.rebooted(&web).await;
        self.libvirt_killed(&web).await;
        self.say("upgraded; the VM was paused, its guest booted again, its libvirt killed");
        self.disk_plugged(&web).await;
        self.volume_plugged(&web).await;
        self.say("disks came and went, by libvirt and by KubeVirt");
        self.post_copied(&web).await;
        self.say("a migration has ended in post-copy");
        self.crashed(&web, Victim::Qemu).await;
        self.crashed(&web, Victim::Launcher).await;
        self.restarted(&web).await;
        self.say("QEMU and the launcher were killed, the VM stopped and started");
        self.end(&web).await;
    }

    /// `helm install`, and a pool of VFs, but for one that is KubeVirt's own.
    async fn install(&self) {
        let values = &["kubevirt.registerBinding=true"];
        let command = &["install", "hybridnic", "--create-namespace"];
        self.cluster.helm(command, values).await.unwrap();
        self.make_namespace().await;
        let all = [
            network("fast", "drivers: [igb], vfs: [\"0-3\"]", 0),
            network(PAIR, "pfNames: [eth2], vfs: [\"4-5\"]", 0),
            network(SCARCE, "pfNames: [eth2], vfs: [\"6\"]", 1),
        ];
        self.cluster.apply(&all.concat()).await.unwrap();
        self.until_free(11).await;
    }

    async fn make_namespace(&self) {
        let made = self.cluster.kubectl(&["create", "namespace", NAMESPACE]).await;
        made.unwrap();
    }

    /// Waits until each node has so many free VFs.
    async fn until_free(&self, vfs: i32) {
        for node in 1..=2 {
            self.cluster
                .until_node(node, &format!("with {vfs} free VFs"), |n| {
                    n.status.as_ref().is_some_and(|s| s.vfs.free == vfs)
                })
                .await
                .unwrap();
        }
    }

    /// A VM has come to its target: says how long that took, and gives what KubeVirt has called its migration.
    async fn arrived(&self, vm: &Vm, asked: Instant, what: &str) -> String {
        let nics = fast(self.cluster, vm).await;
        eprintln!(
            "figure: {what}: from asked to its VF {:.1} s",
            asked.elapsed().as_secs_f64()
        );
        let moved = nics[0].status.as_ref().and_then(|s| s.last_migration.as_ref());
        let moved = moved.expect("it has moved");
        eprintln!(
            "figure: {what}: the VM stood still for {:?} ms",
            moved.downtime_ms
        );
        checked(self.cluster, vm, &nics).await;
        moved.name.clone()
    }

    /// It ends, and what it has lost is as little as may be in a migration.
    async fn moved(&self, pinger: Pinger, migration: &str, what: &str) -> Report {
        let report = watched_with(pinger, BUSY).await;
        by_phase(self.cluster, migration, &report, what).await;
        seen::moved(&report, what);
        report
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

/// A network's YAML.
fn network(name: &str, uplink: &str, slots: u8) -> String {
    format!(
        "---\napiVersion: hybridnic.io/v1alpha1\nkind: HybridNetwork\nmetadata: {{name: {name}}}\n\
         spec:\n  uplinks: [{{{uplink}, numVfs: 7}}]\n  standbySlots: {slots}\n  \
         macRange: {{from: \"52:54:00:77:00:00\", to: \"52:54:00:77:ff:ff\"}}\n"
    )
}

/// An ordinary VM, on two networks.
fn web() -> Vm {
    Vm::new(NAMESPACE, "web", "fast", NicSpec::new(0, 50)).and(SCARCE, NicSpec::new(1, 50))
}
