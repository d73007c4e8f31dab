//! VMs move: as their users ask for it, and where that is called off, or hardly possible.

use std::time::Instant;

use hybridnic_api::conditions::{reasons, types};
use hybridnic_api::v1alpha1::{HybridNetwork, Path, VmHybridNic};
use hybridnic_e2e::kubevirt::{Kind, Vm};
use hybridnic_e2e::until::until;
use kube::api::{DeleteParams, DynamicObject};
use kube::runtime::wait::await_condition;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::common::{self, condition};
use super::seen::{
    BUSY, at, checked, current, fast, gaps, hardly_lost, migrate, node_of, plugin, succeeded, writes,
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
fn is_in(migration: &DynamicObject, phase: &str) -> bool {
    let now = at(migration, "/status/phase").as_str().unwrap_or_default();
    let place = |phase| PHASES.iter().position(|one| *one == phase);
    // None is before all of them; a failure is not among them.
    now == "Failed" || place(now) >= place(phase)
}

impl Story<'_> {
    /// A guest that does not let go of its VF: KubeVirt waits, the NIC says why, and the VM notices nothing, also when somebody deletes
    /// the migration.
    pub async fn keeps_its_vf(&self, vm: &Vm) {
        let cluster = self.cluster;
        let pinger = self.watch(vm).await;
        let migration = migrate(cluster, &vm.name).await;
        self.until_held(vm).await;
        eprintln!("{}", plugin(cluster, &["nic", &vm.first()]).await);
        let migrations = Kind::VirtualMachineInstanceMigration.api(cluster.client(), NAMESPACE);
        let now = migrations.get(&migration).await.unwrap();
        assert_eq!(*at(&now, "/status/phase"), "Scheduling");
        migrations
            .delete(&migration, &DeleteParams::default())
            .await
            .unwrap();
        let nics = fast(cluster, vm).await;
        checked(cluster, vm, &nics).await;
        hardly_lost(&pinger.stop().await, "a migration that was held, and deleted");
    }

    /// The target's pod is deleted while it waits for its link: its runtime is told no more than that.
    pub async fn target_deleted(&self, vm: &Vm) {
        let cluster = self.cluster;
        let pinger = self.watch(vm).await;
        let migration = migrate(cluster, &vm.name).await;
        self.until_held(vm).await;
        let migrations = Kind::VirtualMachineInstanceMigration.api(cluster.client(), NAMESPACE);
        let uid = migrations.get(&migration).await.unwrap().uid().unwrap();
        let target = format!("kubevirt.io/migrationJobUID={uid}");
        cluster
            .kubectl(&[
                "delete",
                "pods",
                "-n",
                NAMESPACE,
                "-l",
                &target,
                "--grace-period=0",
                "--force",
            ])
            .await
            .unwrap();
        let failed = |object: &DynamicObject| *at(object, "/status/phase") == "Failed";
        until(migrations, &migration, LONG, "failed", failed)
            .await
            .unwrap();
        let nics = fast(cluster, vm).await;
        checked(cluster, vm, &nics).await;
        hardly_lost(&pinger.stop().await, "a target whose pod was deleted");
    }

    /// Waits until a VM's guest keeps its VF from a migration.
    async fn until_held(&self, vm: &Vm) {
        let says = |n: &VmHybridNic| condition(n, types::READY) == reasons::GUEST_KEEPS_VF;
        let name = vm.first();
        let held = self
            .cluster
            .until_nic(NAMESPACE, &name, "held by its guest", says);
        held.await.unwrap();
    }

    /// The figure that users ask for: for how long a VM is without its network, and without its VF.
    pub async fn side_by_side(&self, web: &Vm, old: &Vm) {
        let cluster = self.cluster;
        let (ours, theirs) = (self.watch(web).await, self.watch(old).await);
        let (asked, before) = (Instant::now(), writes(cluster));
        let migration = migrate(cluster, &old.name).await;
        eprintln!("{}", plugin(cluster, &["migrate", &web.name, "--watch"]).await);
        self.arrived(web, asked, "there").await;
        let [operator, agents] = [0, 1].map(|who| writes(cluster)[who] - before[who]);
        eprintln!("figure: API writes of a migration: {operator} of the operator, {agents} of both agents");
        succeeded(cluster, &migration).await;
        // Its VF comes after that.
        assert!(theirs.answered(20, SOON).await, "no answer of sriov: {{}}");
        gaps(&theirs.stop().await, "sriov: {}");
        let report = common::watched_with(ours, BUSY).await;
        gaps(&report, "hybridnic");
    }

    /// Everything leaves a node; where the VM comes to, the agent is killed while the VM's pod waits for its link.
    pub async fn drained(&self, web: &Vm) {
        let cluster = self.cluster;
        let nic = current(cluster, web).await;
        let (from, to) = (node_of(&nic), 3 - node_of(&nic));
        let pinger = self.watch(web).await;
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
            let switching = |n: &VmHybridNic| n.status.as_ref().is_some_and(|s| s.path == Path::Standby);
            cluster
                .until_nic(NAMESPACE, &web.first(), "on its standby", switching)
                .await
                .unwrap();
            self.kill_agent(to).await;
        };
        let (drained, ()) = tokio::join!(cluster.kubectl(&drain), kill);
        drained.unwrap();
        self.arrived(web, asked, "drained").await;
        gaps(
            &common::watched_with(pinger, BUSY).await,
            "drained, an agent killed",
        );
        cluster.kubectl(&["uncordon", &node]).await.unwrap();
    }

    /// Somebody deletes a migration in each of its phases: the VM has its VFs again, at one end or the other.
    pub async fn called_off(&self, vm: &Vm) {
        let cluster = self.cluster;
        let migrations = Kind::VirtualMachineInstanceMigration.api(cluster.client(), NAMESPACE);
        for phase in &PHASES[1..6] {
            let pinger = self.watch(vm).await;
            let migration = migrate(cluster, &vm.name).await;
            let is = |object: &DynamicObject| is_in(object, phase);
            let now = until(migrations.clone(), &migration, LONG, phase, is)
                .await
                .unwrap();
            eprintln!("deleted in {}", at(&now, "/status/phase"));
            migrations
                .delete(&migration, &DeleteParams::default())
                .await
                .unwrap();
            let gone = await_condition(migrations.clone(), &migration, |m: Option<&DynamicObject>| {
                m.is_none()
            });
            tokio::time::timeout(LONG, gone)
                .await
                .expect("it does not go")
                .unwrap();
            let nics = fast(cluster, vm).await;
            checked(cluster, vm, &nics).await;
            gaps(
                &common::watched_with(pinger, BUSY).await,
                &format!("deleted in {phase}"),
            );
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
        let free = async |network| networks.get(network).await.unwrap().status.unwrap().vfs.free;
        assert_eq!((free(SCARCE).await, free(PAIR).await), (0, 2));
        let pingers = [self.watch(both[0]).await, self.watch(both[1]).await];
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
            gaps(
                &common::watched_with(pinger, BUSY).await,
                &format!("{} crossed", vm.name),
            );
        }
        let after = [self.scarce(both[0]).await, self.scarce(both[1]).await];
        assert_eq!(after, [before[1], before[0]]);
    }

    /// The node where a VM has its VF of the scarce network.
    async fn scarce(&self, vm: &Vm) -> usize {
        let nics: Api<VmHybridNic> = Api::namespaced(self.cluster.client(), NAMESPACE);
        node_of(&nics.get(&vm.nic(SCARCE)).await.unwrap())
    }

    /// Operator, and the agents of both ends, are killed, each while it has something to do.
    pub async fn killed(&self, vm: &Vm) {
        let cluster = self.cluster;
        let from = node_of(&current(cluster, vm).await);
        let migrations = Kind::VirtualMachineInstanceMigration.api(cluster.client(), NAMESPACE);
        let pinger = self.watch(vm).await;
        let asked = Instant::now();
        let migration = migrate(cluster, &vm.name).await;
        let until_in = async |phase: &str| {
            let is = |object: &DynamicObject| is_in(object, phase);
            let now = until(migrations.clone(), &migration, LONG, phase, is)
                .await
                .unwrap();
            eprintln!("killed in {}", at(&now, "/status/phase"));
        };
        until_in("Scheduling").await;
        self.kill("operator", &[]).await;
        until_in("Running").await;
        self.kill_agent(from).await;
        until_in("Succeeded").await;
        self.kill_agent(3 - from).await;
        succeeded(cluster, &migration).await;
        self.arrived(vm, asked, "killed").await;
        gaps(
            &common::watched_with(pinger, BUSY).await,
            "operator and agents killed",
        );
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
        gaps(&common::watched_with(pinger, BUSY).await, "paused, and run on");
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
        gaps(&common::watched_with(pinger, BUSY).await, "post-copy");
        self.migrations(&Value::Null).await;
    }

    /// Configures how KubeVirt migrates.
    async fn migrations(&self, how: &Value) {
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
