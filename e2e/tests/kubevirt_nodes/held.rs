//! A guest that does not let go of its VF, and what becomes of its migrations.

use std::pin::pin;

use futures::TryStreamExt as _;
use hybridnic_api::conditions::{reasons, types};
use hybridnic_api::v1alpha1::VmHybridNic;
use hybridnic_e2e::kubevirt::{Kind, Virtctl, Vm};
use hybridnic_e2e::until::until;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{DynamicObject, ListParams};
use kube::runtime::wait::await_condition;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};

use super::common::condition;
use super::page::Page;
use super::seen::{
    at, call_off, checked, current, failed, fast, hardly_lost, migrate, node_of, plugin, settled,
};
use super::{LONG, NAMESPACE, SOON, Story};

/// What a target's pod is told by an agent that waits for the source.
const SOURCE_FIRST: &str = "the VM has not left its VFs at its source yet";
/// Where a node's container runtime finds our plugin.
const PLUGIN: &str = "/usr/lib/cni/hybridnic";
/// A plugin that waits for nothing. What the pod gets is good enough for QEMU to start on.
const EARLY: &str = r#"#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
case $CNI_COMMAND in
ADD)
	# By its path: nsenter is busybox's, and has an `ip` of its own, which makes no tap.
	nsenter -n"$CNI_NETNS" "$(command -v ip)" tuntap add dev "$CNI_IFNAME" mode tap user 107 >&2 || exit 1
	echo '{"cniVersion":"1.0.0","interfaces":[{"name":"'"$CNI_IFNAME"'","sandbox":"'"$CNI_NETNS"'"}]}' ;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}' ;;
esac
"#;

/// By this label the pod at a migration's target is known.
fn target_of(migration: &DynamicObject) -> String {
    format!("kubevirt.io/migrationJobUID={}", migration.uid().unwrap())
}

/// Why a migration has failed, as KubeVirt says.
fn reason(migration: &DynamicObject) -> Option<&str> {
    at(migration, "/status/migrationState/failureReason").as_str()
}

/// Whether nothing more becomes of a migration.
fn is_over(migration: Option<&DynamicObject>) -> bool {
    migration.is_none_or(|object| {
        let phase = at(object, "/status/phase");
        phase == "Failed" || phase == "Succeeded"
    })
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
        self.until_told(&target_of(&now)).await;
        call_off(cluster, &migration).await;
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
        let target = target_of(&migrations.get(&migration).await.unwrap());
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
        failed(cluster, &migration).await;
        let nics = fast(cluster, vm).await;
        checked(cluster, vm, &nics).await;
        hardly_lost(&pinger.stop().await, "a target whose pod was deleted");
    }

    /// Waits until a VM's guest keeps its VF from a migration.
    pub async fn until_held(&self, vm: &Vm) {
        let says = |n: &VmHybridNic| condition(n, types::READY) == reasons::GUEST_KEEPS_VF;
        let name = vm.first();
        let held = self
            .cluster
            .until_nic(NAMESPACE, &name, "held by its guest", says);
        held.await.unwrap();
    }

    /// Waits until the pod of this label is told why it has no link yet.
    async fn until_told(&self, label: &str) {
        let client = self.cluster.client();
        let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
        let pods = pods.list(&ListParams::default().labels(label)).await.unwrap();
        let pod = pods.items.first().expect("a pod for the target").name_any();
        let events: Api<Event> = Api::namespaced(client, NAMESPACE);
        let of = format!("involvedObject.name={pod},reason=FailedCreatePodSandBox");
        let stream = watcher(events, watcher::Config::default().fields(&of));
        let mut said = Vec::new();
        let told = async {
            let mut stream = pin!(stream.default_backoff().applied_objects());
            loop {
                let message = match stream.try_next().await {
                    Ok(event) => event.and_then(|event| event.message).unwrap_or_default(),
                    // The watch begins again by itself.
                    Err(_) => continue,
                };
                if message.contains(SOURCE_FIRST) {
                    return eprintln!("{pod}: {message}");
                }
                said.push(message);
            }
        };
        let told = tokio::time::timeout(LONG, told).await;
        assert!(told.is_ok(), "{pod} was not told why it waits: {said:#?}");
    }

    /// A target whose pod has its link before the guest has let go of its VF: QEMU refuses to send the VM, and KubeVirt says so.
    pub async fn barrier_missed(&self, vm: &Vm) {
        let cluster = self.cluster;
        let pinger = self.watch(vm).await;
        let target = cluster.node(3 - node_of(&current(cluster, vm).await));
        let early = format!("{PLUGIN}.early");
        target.put(&early, EARLY.as_bytes(), 0o755).await.unwrap();
        let swap = format!("mv {PLUGIN} {PLUGIN}.ours && mv {early} {PLUGIN}");
        target.run(&swap, SOON).await.unwrap();
        let migration = migrate(cluster, &vm.name).await;
        failed(cluster, &migration).await;
        let back = format!("mv {PLUGIN}.ours {PLUGIN}");
        target.run(&back, SOON).await.unwrap();
        let migrations = Kind::VirtualMachineInstanceMigration.api(cluster.client(), NAMESPACE);
        // KubeVirt says it after the phase.
        let says = |migration: &DynamicObject| reason(migration).is_some();
        let migration = until(migrations, &migration, SOON, "told why it failed", says)
            .await
            .unwrap();
        let why = reason(&migration).unwrap_or_default();
        eprintln!("without the barrier: {why}");
        assert!(why.contains("VFIO"), "{migration:#?}");
        // The agent at the source gives the guest its time, and only then takes the standby down again.
        settled(cluster, vm).await;
        hardly_lost(&pinger.stop().await, "a target that did not wait");
    }

    /// A drain that the guest holds is ended, as the documentation has it.
    pub async fn drain_ended(&self, vm: &Vm) {
        let cluster = self.cluster;
        let virtctl = Virtctl::new(cluster).await.unwrap();
        let page = Page::read(cluster, "make kubevirt-faults", &[virtctl.program()]);
        let pinger = self.watch(vm).await;
        let node = format!("n{}", node_of(&current(cluster, vm).await));
        let drain = [
            "drain",
            &node,
            "--ignore-daemonsets",
            "--delete-emptydir-data",
            "--force",
            "--pod-selector=kubevirt.io=virt-launcher",
        ];
        tokio::select! {
            ended = cluster.kubectl(&drain) => panic!("the drain has ended: {ended:?}"),
            () = self.until_held(vm) => {}
        }
        let here = |command: &str| {
            let command = command.replace("n1", &node);
            command.replace("/web/", &format!("/{}/", vm.name))
        };
        page.types_as("uncordon", here).await;
        page.types_as("evacuate/cancel", here).await;
        page.types_as("migrate-cancel", |command| {
            command.replace(" web ", &format!(" {} ", vm.name))
        })
        .await;
        page.is_typed();
        let vmis = Kind::VirtualMachineInstance.api(cluster.client(), NAMESPACE);
        let marked = |vmi: &DynamicObject| at(vmi, "/status/evacuationNodeName").is_null();
        until(vmis, &vm.name, SOON, "without a mark", marked)
            .await
            .unwrap();
        let migrations = Kind::VirtualMachineInstanceMigration.api(cluster.client(), NAMESPACE);
        for migration in migrations.list(&ListParams::default()).await.unwrap() {
            let name = migration.name_any();
            let over = await_condition(migrations.clone(), &name, is_over);
            let over = tokio::time::timeout(SOON, over).await;
            over.expect("it goes on").unwrap();
        }
        let nics = fast(cluster, vm).await;
        checked(cluster, vm, &nics).await;
        hardly_lost(&pinger.stop().await, "a drain that was ended");
    }
}
