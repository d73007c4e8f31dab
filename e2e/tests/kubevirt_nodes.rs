//! KubeVirt as its users have it: a Helm chart, Multus, launchers that are pods, VFs, on a real two-node cluster. One cluster for all
//! of it, as making one is dear.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

mod common;
#[path = "kubevirt_nodes/seen.rs"]
mod seen;

use std::time::{Duration, Instant};

use common::{condition, on_cluster, twice, whole_within};
use hybridnic_api::conditions::{reasons, types};
use hybridnic_e2e::cluster::{Cluster, SYSTEM};
use hybridnic_e2e::kubevirt::{Kind, OnNodes, Vm, images};
use hybridnic_e2e::lab::Pinger;
use hybridnic_e2e::until::until;
use hybridnic_e2e::world::{NicSpec, footprint};
use seen::{BUSY, at, checked, current, fast, gaps, gone, hardly_lost, migrate, plugin, reached, writes};
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
            whole_within(WHOLE, story.run(), dead).await;
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
        self.say("a guest that keeps its VF has held its migration, and nothing happened to it");
        self.side_by_side(&vms).await;
        self.say("two VMs have moved side by side, one of them with KubeVirt's own interface");
        self.drained(&vms).await;
        self.say("a node was drained, and the agent killed at the target meanwhile");
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
        self.crashed(&vms.web).await;
        self.say("QEMU was killed, and KubeVirt has started the VM again");
        for vm in [&vms.web, &vms.old] {
            vm.delete(cluster).await.unwrap();
            gone(cluster, &vm.name).await;
        }
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
        let network = "apiVersion: hybridnic.io/v1alpha1\nkind: HybridNetwork\nmetadata: {name: fast}\n\
                       spec:\n  uplinks: [{drivers: [igb], numVfs: 7, vfs: [\"0-5\"]}]\n  \
                       macRange: {from: \"52:54:00:77:00:00\", to: \"52:54:00:77:ff:ff\"}\n";
        self.cluster.apply(network).await.unwrap();
        for node in 1..=2 {
            self.cluster
                .until_node(node, "with 12 free VFs", |n| {
                    n.status.as_ref().is_some_and(|s| s.vfs.free == 12)
                })
                .await
                .unwrap();
        }
    }

    /// A guest that does not let go of its VF: KubeVirt waits, the NIC says why, and the VM notices nothing, also when somebody deletes
    /// the migration.
    async fn keeps_its_vf(&self, vm: &Vm) {
        let cluster = self.cluster;
        let pinger = self.watch(vm).await;
        let migration = migrate(cluster, &vm.name).await;
        let says =
            |n: &hybridnic_api::v1alpha1::VmHybridNic| condition(n, types::READY) == reasons::GUEST_KEEPS_VF;
        let held = cluster
            .until_nic(NAMESPACE, &vm.nic("fast"), "held by its guest", says)
            .await;
        held.unwrap();
        eprintln!("{}", plugin(cluster, &["nic", &vm.nic("fast")]).await);
        let migrations = Kind::VirtualMachineInstanceMigration.api(cluster.client(), NAMESPACE);
        let now = migrations.get(&migration).await.unwrap();
        assert_eq!(*at(&now, "/status/phase"), "Scheduling");
        migrations
            .delete(&migration, &kube::api::DeleteParams::default())
            .await
            .unwrap();
        let nics = fast(cluster, vm).await;
        checked(cluster, vm, &nics).await;
        hardly_lost(&pinger.stop().await, "a migration that was held, and deleted");
        vm.delete(cluster).await.unwrap();
        gone(cluster, &vm.name).await;
    }

    /// The figure that users ask for: for how long a VM is without its network, and without its VF.
    async fn side_by_side(&self, vms: &Vms) {
        let cluster = self.cluster;
        let (ours, theirs) = (self.watch(&vms.web).await, self.watch(&vms.old).await);
        let (asked, before) = (Instant::now(), writes(cluster));
        let migration = migrate(cluster, &vms.old.name).await;
        eprintln!(
            "{}",
            plugin(cluster, &["migrate", &vms.web.name, "--watch"]).await
        );
        self.arrived(&vms.web, asked, "there").await;
        let [operator, agents] = [0, 1].map(|who| writes(cluster)[who] - before[who]);
        eprintln!("figure: API writes of a migration: {operator} of the operator, {agents} of both agents");
        reached(
            cluster,
            Kind::VirtualMachineInstanceMigration,
            &migration,
            "Succeeded",
        )
        .await;
        // Its VF comes after that.
        assert!(theirs.answered(20, SOON).await, "no answer of sriov: {{}}");
        gaps(&theirs.stop().await, "sriov: {}");
        let report = common::watched_with(ours, BUSY).await;
        gaps(&report, "hybridnic");
    }

    /// Everything leaves a node; where the VM comes to, the agent is killed while the VM's pod waits for its link.
    async fn drained(&self, vms: &Vms) {
        let cluster = self.cluster;
        let nic = current(cluster, &vms.web).await;
        let (from, to) = (seen::node_of(&nic), 3 - seen::node_of(&nic));
        let pinger = self.watch(&vms.web).await;
        let asked = Instant::now();
        let node = format!("n{from}");
        let drain = [
            "drain",
            &node,
            "--ignore-daemonsets",
            "--delete-emptydir-data",
            "--force",
            "--timeout=280s",
            "--pod-selector=kubevirt.io=virt-launcher",
        ];
        let kill = async {
            let switching = |n: &hybridnic_api::v1alpha1::VmHybridNic| {
                n.status
                    .as_ref()
                    .is_some_and(|s| s.path == hybridnic_api::v1alpha1::Path::Standby)
            };
            cluster
                .until_nic(NAMESPACE, &vms.web.nic("fast"), "on its standby", switching)
                .await
                .unwrap();
            let agent = self.agent(to).await;
            let now = [
                "delete",
                "pod",
                "-n",
                SYSTEM,
                agent.as_str(),
                "--force",
                "--grace-period=0",
            ];
            cluster.kubectl(&now).await.unwrap();
        };
        let (drained, ()) = tokio::join!(cluster.kubectl(&drain), kill);
        drained.unwrap();
        self.arrived(&vms.web, asked, "drained").await;
        gaps(
            &common::watched_with(pinger, BUSY).await,
            "drained, an agent killed",
        );
        cluster.kubectl(&["uncordon", &node]).await.unwrap();
    }

    /// Something is done to hybridnic while a VM's traffic goes on: it never notices.
    async fn undisturbed(&self, vm: &Vm, what: &str, act: impl AsyncFn()) {
        let pinger = self.watch(vm).await;
        act().await;
        let nics = fast(self.cluster, vm).await;
        checked(self.cluster, vm, &nics).await;
        hardly_lost(&pinger.stop().await, what);
    }

    /// QEMU ends: KubeVirt makes the VM a new pod, and it has the same NIC.
    async fn crashed(&self, vm: &Vm) {
        let cluster = self.cluster;
        let before = current(cluster, vm).await;
        let node = cluster.node(seen::node_of(&before));
        let guest = format!(
            "for pid in $(pidof qemu-system-x86_64); do \
               if grep -q 'guest=default_{},' /proc/$pid/cmdline; then kill -9 $pid; fi; done",
            vm.name
        );
        node.run(&guest, SOON).await.unwrap();
        let pod = |n: &hybridnic_api::v1alpha1::VmHybridNic| {
            n.status.as_ref().and_then(|s| s.pod.clone()).map(|p| p.name)
        };
        let old = pod(&before);
        let again = |n: &hybridnic_api::v1alpha1::VmHybridNic| {
            pod(n).is_some() && pod(n) != old && common::on(n, hybridnic_api::v1alpha1::Path::FastPath)
        };
        let nics = kube::Api::namespaced(cluster.client(), NAMESPACE);
        let nic = until(nics, &vm.nic("fast"), LONG, "on a VF in a new pod", again).await;
        assert_eq!(nic.unwrap().status.unwrap().mac, before.status.unwrap().mac);
        let nics = fast(cluster, vm).await;
        checked(cluster, vm, &nics).await;
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
        let pinger = self.cluster.lab.pinger(vm.nics[0].1.address, RATE).unwrap();
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

    async fn agent(&self, node: usize) -> String {
        let field = format!("--field-selector=spec.nodeName=n{node}");
        let label = "app.kubernetes.io/component=agent";
        let pods = self
            .cluster
            .kubectl(&["get", "pods", "-n", SYSTEM, "-l", label, &field, "-o", "name"])
            .await
            .unwrap();
        pods.trim().trim_start_matches("pod/").to_owned()
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
    /// An ordinary one, of two NICs.
    web: Vm,
    /// One whose guest does not let go of devices.
    keeps: Vm,
    /// One with KubeVirt's own SR-IOV.
    old: Vm,
}

impl Vms {
    fn new() -> Self {
        let mut keeps = Vm::new(NAMESPACE, "keeps", NicSpec::new(0, 51));
        keeps.arguments = "acpiphp.disable=1 lab.rescan=1";
        Self {
            web: Vm::new(NAMESPACE, "web", NicSpec::new(0, 50)).and("other", NicSpec::new(1, 50)),
            keeps,
            old: Vm::with_sriov(NAMESPACE, "old", NicSpec::new(0, 52)),
        }
    }

    /// One after the other: KubeVirt 1.8 mounts a guest's kernel only once, and a VM whose start then takes more than 20 s stays as it is.
    async fn start(&self, cluster: &Cluster) {
        for vm in [&self.web, &self.keeps] {
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
        self.old.create(cluster).await.unwrap();
        reached(cluster, Kind::VirtualMachineInstance, &self.old.name, "Running").await;
    }
}
