//! VMs move: as their users ask for it, and where that is called off, or hardly possible.

use std::time::Instant;

use hybridnic_api::v1alpha1::{HybridNetwork, Path, VmHybridNic};
use hybridnic_e2e::kubevirt::{Kind, Vm};
use hybridnic_e2e::until::until;
use kube::Api;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::common::{self, on};
use super::figures::{History, by_phase};
use super::page::Page;
use super::seen::{
    BUSY, at, call_off, checked, current, fast, gaps, hardly_lost, migrate, moved, node_of, settled,
    succeeded, writes,
};
use super::{LONG, NAMESPACE, PAIR, SCARCE, SOON, Story};

/// What a migration goes through, in this order.
const PHASES: [&str; 7] = [
    "Pending",
    "Scheduling",
    "Scheduled",
    "PreparingTarget",
    "TargetReady",
    "Running",
    "Succeeded",
];

/// Whether a migration is in this phase, or further.
pub fn is_in(migration: &DynamicObject, phase: &str) -> bool {
    let now = at(migration, "/status/phase").as_str().unwrap_or_default();
    let place = |phase| PHASES.iter().position(|one| *one == phase);
    // None is before all of them; a failure is not among them.
    now == "Failed" || place(now) >= place(phase)
}

impl Story<'_> {
    /// The figures that users ask for: for how long a VM is without its network, and without its VF. One VM after the other, because two emulated
    /// nodes are too busy with both at once: what was lost then was theirs.
    pub async fn compared(&self, page: &Page, web: &Vm, old: &Vm) {
        let cluster = self.cluster;
        let theirs = self.watch(old).await;
        let old = migrate(cluster, &old.name).await;
        succeeded(cluster, &old).await;
        // Its VF comes after that.
        assert!(theirs.answered(20, SOON).await, "no answer of sriov: {{}}");
        let theirs = theirs.stop().await;
        gaps(&theirs, "sriov: {}");
        by_phase(cluster, &old, &theirs, "sriov: {}").await;

        let ours = self.watch(web).await;
        let history = History::of(cluster, web, &web.interfaces[0].name);
        let (asked, before) = (Instant::now(), writes(cluster));
        page.types("hybridnic migrate").await;
        page.types("vhn/web-fast --timeout=5m").await;
        let web = self.arrived(web, asked, "there").await;
        let [operator, agents] = [0, 1].map(|who| writes(cluster)[who] - before[who]);
        eprintln!("figure: API writes of a migration: {operator} of the operator, {agents} of both agents");
        let ours = self.moved(ours, &web, "hybridnic").await;
        let on_standby = history.without_vf().await;
        let [longest, theirs_longest] = [&ours, &theirs].map(|report| report.round_trip.longest());
        eprintln!("figure: hybridnic: {on_standby:.1?} on its standby, {longest:.1?} of it without network");
        // It has nothing but its VF.
        eprintln!("figure: sriov: {{}}: {theirs_longest:.1?} without its VF, and without network");
        // Whatever the nodes' busy processors make of both.
        let [ours, theirs] = [ours, theirs].map(|report| report.longest_of_network());
        assert!(ours < theirs / 2, "{ours:?} is not much less than {theirs:?}");
    }

    /// Its user sends it to its standbys, and back.
    pub async fn sent_aside(&self, page: &Page, vm: &Vm) {
        let pinger = self.watch(vm).await;
        page.types("hybridnic standby").await;
        for interface in &vm.interfaces {
            let is = |nic: &VmHybridNic| on(nic, Path::Standby);
            let name = vm.nic(&interface.name);
            let there = self.cluster.until_nic(NAMESPACE, &name, "on its standby", is);
            there.await.unwrap();
        }
        assert!(pinger.answered(20, SOON).await, "no answer by the standby");
        page.types("hybridnic fast").await;
        let nics = fast(self.cluster, vm).await;
        checked(self.cluster, vm, &nics).await;
        hardly_lost(&pinger.stop().await, "sent to its standby, and back");
    }

    /// Everything leaves a node; where the VM comes to, the agent is killed while the VM's pod waits for its link.
    pub async fn drained(&self, page: &Page, web: &Vm) {
        let cluster = self.cluster;
        let nic = current(cluster, web).await;
        let (from, to) = (node_of(&nic), 3 - node_of(&nic));
        let pinger = self.watch(web).await;
        let asked = Instant::now();
        let node = format!("n{from}");
        let drain = page.types_as("kubectl drain", |command| {
            format!("{} --timeout=280s", command.replace(" n1 ", &format!(" {node} ")))
        });
        let kill = async {
            let switching = |n: &VmHybridNic| n.status.as_ref().is_some_and(|s| s.path == Path::Standby);
            cluster
                .until_nic(NAMESPACE, &web.first(), "on its standby", switching)
                .await
                .unwrap();
            self.kill_agent(to).await;
        };
        tokio::join!(drain, kill);
        let migration = self.arrived(web, asked, "drained").await;
        assert_eq!(node_of(&current(cluster, web).await), to);
        self.moved(pinger, &migration, "drained, an agent killed").await;
        cluster.kubectl(&["uncordon", &node]).await.unwrap();
    }

    /// Somebody deletes a migration in each of its phases: the VM has its VFs again, at one end or the other.
    pub async fn called_off(&self, vm: &Vm) {
        let cluster = self.cluster;
        let migrations = Kind::VirtualMachineInstanceMigration.api(cluster.client(), NAMESPACE);
        for phase in &PHASES[..6] {
            // It would not stay in the first one otherwise.
            let turns = match *phase {
                "Pending" => json!({ "parallelMigrationsPerCluster": 0 }),
                _ => Value::Null,
            };
            self.migrations(&turns).await;
            let pinger = self.watch(vm).await;
            let migration = migrate(cluster, &vm.name).await;
            let is = |object: &DynamicObject| is_in(object, phase);
            let now = until(migrations.clone(), &migration, LONG, phase, is)
                .await
                .unwrap();
            eprintln!("deleted in {}", at(&now, "/status/phase"));
            call_off(cluster, &migration).await;
            settled(cluster, vm).await;
            let report = common::watched_with(pinger, BUSY).await;
            moved(&report, &format!("deleted in {phase}"));
        }
    }

    /// Two VMs want to be where the other one is. Of one of their networks each node has one free VF. Of the other there is none: each
    /// comes by a place for a standby, and has the VF that the other one has left.
    pub async fn crossing(&self, web: &Vm, rare: &Vm) {
        let cluster = self.cluster;
        let both = [web, rare];
        let before = [self.scarce(both[0]).await, self.scarce(both[1]).await];
        assert_ne!(before[0], before[1], "on one node");
        let networks: Api<HybridNetwork> = Api::all(cluster.client());
        for (network, free) in [(SCARCE, 0), (PAIR, 2)] {
            let is = |network: &HybridNetwork| network.status.as_ref().is_some_and(|s| s.vfs.free == free);
            until(
                networks.clone(),
                network,
                SOON,
                &format!("with {free} free VFs"),
                is,
            )
            .await
            .unwrap();
        }
        let pingers = [self.watch(both[0]).await, self.watch(both[1]).await];
        let histories = both.map(|vm| History::of(cluster, vm, SCARCE));
        let asked = Instant::now();
        let migrations = [
            migrate(cluster, &both[0].name).await,
            migrate(cluster, &both[1].name).await,
        ];
        for migration in &migrations {
            succeeded(cluster, migration).await;
        }
        for (vm, pinger) in both.into_iter().zip(pingers) {
            self.arrived(vm, asked, &format!("{} crossed", vm.name)).await;
            moved(
                &common::watched_with(pinger, BUSY).await,
                &format!("{} crossed", vm.name),
            );
        }
        let after = [self.scarce(both[0]).await, self.scarce(both[1]).await];
        assert_eq!(after, [before[1], before[0]]);
        for (history, node) in histories.iter().zip(after) {
            history.stood_by(node).await;
        }
    }

    /// The node where a VM has its VF of the scarce network.
    async fn scarce(&self, vm: &Vm) -> usize {
        let nics: Api<VmHybridNic> = Api::namespaced(self.cluster.client(), NAMESPACE);
        node_of(&nics.get(&vm.nic(SCARCE)).await.unwrap())
    }

    /// A VM that is paused lets go of nothing: its migration waits until it runs on.
    pub async fn paused(&self, vm: &Vm) {
        let cluster = self.cluster;
        vm.tell(cluster, "pause").await.unwrap();
        let migration = migrate(cluster, &vm.name).await;
        self.until_held(vm).await;
        vm.tell(cluster, "unpause").await.unwrap();
        let pinger = self.watch(vm).await;
        succeeded(cluster, &migration).await;
        let nics = fast(cluster, vm).await;
        checked(cluster, vm, &nics).await;
        self.moved(pinger, &migration, "paused, and run on").await;
    }

    /// A migration that takes too long ends in post-copy: the VM runs at the target on its standby while its memory is still at the source,
    /// and gets its VFs when all of that has come.
    pub async fn post_copied(&self, vm: &Vm) {
        let cluster = self.cluster;
        let slow =
            json!({ "allowPostCopy": true, "completionTimeoutPerGiB": 1, "bandwidthPerMigration": "8Mi" });
        self.migrations(&slow).await;
        let pinger = self.watch(vm).await;
        let asked = Instant::now();
        let migration = migrate(cluster, &vm.name).await;
        succeeded(cluster, &migration).await;
        self.arrived(vm, asked, "post-copy").await;
        let vmis = Kind::VirtualMachineInstance.api(cluster.client(), NAMESPACE);
        let vmi = vmis.get(&vm.name).await.unwrap();
        assert_eq!(*at(&vmi, "/status/migrationState/mode"), "PostCopy");
        self.moved(pinger, &migration, "post-copy").await;
        self.migrations(&Value::Null).await;
    }

    /// Configures how KubeVirt migrates.
    pub async fn migrations(&self, how: &Value) {
        let patch = json!({ "spec": { "configuration": { "migrations": how } } }).to_string();
        let patch = [
            "patch",
            "kubevirt",
            "kubevirt",
            "-n",
            "kubevirt",
            "--type=merge",
            "-p",
            &patch,
        ];
        self.cluster.kubectl(&patch).await.unwrap();
    }
}
