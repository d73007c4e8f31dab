//! What goes wrong while a VM is sent, or just as it is handed over.

use std::time::{Instant, SystemTime};

use hybridnic_api::v1alpha1::VmHybridNic;
use hybridnic_e2e::kubevirt::{Kind, Virtctl, Vm};
use hybridnic_e2e::lab::Pinger;
use hybridnic_e2e::until::until;
use kube::Api;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::common::watched_with;
use super::faults::with_qemu;
use super::moves::is_in;
use super::seen::{
    AWAY, BUSY, call_off, checked, current, failed, fast, hardly_lost, migrate, node_of, succeeded,
};
use super::{LONG, NAMESPACE, SOON, Story};

impl Story<'_> {
    /// Operator, and the agents of both ends, are killed, each while it has something to do: the source's as QEMU stops the VM.
    pub async fn killed(&self, vm: &Vm) {
        let cluster = self.cluster;
        let from = node_of(&current(cluster, vm).await);
        let migrations = Kind::VirtualMachineInstanceMigration.api(cluster.client(), NAMESPACE);
        let pinger = self.watch(vm).await;
        let asked = Instant::now();
        let migration = migrate(cluster, &vm.name).await;
        let is = |object: &DynamicObject| is_in(object, "Scheduling");
        until(migrations, &migration, LONG, "Scheduling", is)
            .await
            .unwrap();
        self.kill("operator", &[]).await;
        self.when_stopped(vm, "kill -9 $(pidof hybridnic-agent)").await;
        succeeded(cluster, &migration).await;
        self.kill_agent(3 - from).await;
        self.arrived(vm, asked, "killed").await;
        self.moved(pinger, &migration, "operator and agents killed").await;
    }

    /// The API server stands still from the VM's pause until the VM runs at its target: it pays for no call of the API in it.
    pub async fn api_stopped(&self, vm: &Vm) {
        let cluster = self.cluster;
        let pinger = self.watch(vm).await;
        let asked = Instant::now();
        let migration = migrate(cluster, &vm.name).await;
        self.when_stopped(vm, "true").await;
        cluster.control_plane.pause_api().unwrap();
        let stopped = SystemTime::now();
        let answers = pinger.answered(20, AWAY).await;
        cluster.control_plane.resume_api().unwrap();
        assert!(
            answers,
            "no answer while the API server stands still: {:#?}",
            pinger.report()
        );
        succeeded(cluster, &migration).await;
        self.arrived(vm, asked, "without the API server").await;
        let report = self.moved(pinger, &migration, "without the API server").await;
        let mut gaps = report.round_trip.gaps.iter();
        let within = gaps.any(|gap| (gap.from..gap.from + gap.length).contains(&stopped));
        assert!(within, "it ran again before that: {:#?}", report.round_trip.gaps);
    }

    /// A migration is deleted while it sends the VM.
    pub async fn deleted(&self, vm: &Vm) {
        let from = node_of(&current(self.cluster, vm).await);
        let (migration, pinger) = self.slow(vm).await;
        call_off(self.cluster, &migration).await;
        self.stayed(vm, from, pinger, "deleted while it sent the VM")
            .await;
    }

    /// The QEMU that receives the VM ends.
    pub async fn target_killed(&self, vm: &Vm) {
        let from = node_of(&current(self.cluster, vm).await);
        let (migration, pinger) = self.slow(vm).await;
        let target = self.cluster.node(3 - from);
        target.run(&with_qemu(vm, "kill -9 $pid"), SOON).await.unwrap();
        failed(self.cluster, &migration).await;
        self.stayed(vm, from, pinger, "QEMU killed at the target").await;
    }

    /// The source's virt-handler ends, through which KubeVirt sends VMs, and another one begins. The VM moves afterwards.
    pub async fn handler_killed(&self, vm: &Vm) {
        let cluster = self.cluster;
        let from = node_of(&current(cluster, vm).await);
        let (migration, pinger) = self.slow(vm).await;
        let mut kubevirt = self.kubevirt.lock().await;
        kubevirt.kill_handler(from).await.unwrap();
        kubevirt.start_handler(from).await.unwrap();
        failed(cluster, &migration).await;
        self.stayed(vm, from, pinger, "virt-handler killed").await;

        let virtctl = Virtctl::new(cluster).await.unwrap();
        let (pinger, asked) = (self.watch(vm).await, Instant::now());
        virtctl
            .run(&["migrate", &vm.name, "-n", NAMESPACE])
            .await
            .unwrap();
        let nics: Api<VmHybridNic> = Api::namespaced(cluster.client(), NAMESPACE);
        let (name, target) = (vm.first(), format!("n{}", 3 - from));
        let there = |nic: &VmHybridNic| {
            let status = nic.status.as_ref();
            status.and_then(|s| s.node_name.as_deref()) == Some(target.as_str())
        };
        until(nics, &name, LONG, "at the other node", there)
            .await
            .unwrap();
        let migration = self.arrived(vm, asked, "by virtctl").await;
        succeeded(cluster, &migration).await;
        self.moved(pinger, &migration, "by virtctl").await;
    }

    /// A migration that sends the VM, and would for minutes.
    async fn slow(&self, vm: &Vm) -> (String, Pinger) {
        self.migrations(&json!({ "bandwidthPerMigration": "1Mi" })).await;
        let pinger = self.watch(vm).await;
        let migration = migrate(self.cluster, &vm.name).await;
        self.until_sent(vm).await;
        (migration, pinger)
    }

    /// Such a migration is over: the VM is where it was, on its VFs.
    async fn stayed(&self, vm: &Vm, node: usize, pinger: Pinger, what: &str) {
        let nics = fast(self.cluster, vm).await;
        checked(self.cluster, vm, &nics).await;
        for nic in &nics {
            assert_eq!(node_of(nic), node, "{what}");
        }
        hardly_lost(&watched_with(pinger, BUSY).await, what);
        self.migrations(&Value::Null).await;
    }
}
