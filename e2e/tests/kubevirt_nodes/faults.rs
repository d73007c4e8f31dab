//! What is done to a VM's programs, and to ours while it runs.

use hybridnic_api::v1alpha1::{Path, VmHybridNic};
use hybridnic_e2e::cluster::SYSTEM;
use hybridnic_e2e::kubevirt::{Kind, Vm};
use hybridnic_e2e::lab::Node;
use hybridnic_e2e::until::until;
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::runtime::wait::await_condition;
use serde_json::json;

use super::common;
use super::seen::{checked, current, fast, hardly_lost, node_of};
use super::{LONG, NAMESPACE, SOON, Story};

/// What of a VM's pod is killed.
#[derive(Debug, Clone, Copy)]
pub enum Victim {
    Qemu,
    Launcher,
    Libvirt,
}

/// A script that finds the VM's QEMU, as `$pid`, and runs `then`.
pub fn with_qemu(vm: &Vm, then: &str) -> String {
    format!(
        "for pid in $(pidof qemu-system-x86_64); do \
           if grep -q 'guest={}_{},' /proc/$pid/cmdline; then {then}; exit; fi; done; echo no QEMU >&2; exit 1",
        vm.namespace, vm.name
    )
}

impl Story<'_> {
    /// Something is done to hybridnic while a VM's traffic goes on: it never notices.
    pub async fn undisturbed(&self, vm: &Vm, what: &str, act: impl AsyncFn()) {
        let pinger = self.watch(vm).await;
        act().await;
        let nics = fast(self.cluster, vm).await;
        checked(self.cluster, vm, &nics).await;
        hardly_lost(&pinger.stop().await, what);
    }

    /// The VM's pod ends: KubeVirt makes it a new one, and it has the same NICs.
    pub async fn crashed(&self, vm: &Vm, victim: Victim) {
        let before = current(self.cluster, vm).await;
        self.kill_of(vm, victim).await;
        self.again(vm, &before).await;
    }

    /// libvirt ends, and is started by its launcher again: QEMU and the guest do not notice.
    pub async fn libvirt_killed(&self, vm: &Vm) {
        let pinger = self.watch(vm).await;
        self.kill_of(vm, Victim::Libvirt).await;
        let answers = in_launcher("domstate", vm);
        self.run_with_qemu(vm, &format!("until {answers}; do sleep 0.5; done"))
            .await;
        let nics = fast(self.cluster, vm).await;
        checked(self.cluster, vm, &nics).await;
        hardly_lost(&pinger.stop().await, "libvirt killed");
    }

    /// Its user stops it and starts it again.
    pub async fn restarted(&self, vm: &Vm) {
        let before = current(self.cluster, vm).await;
        self.run_strategy(vm, "Halted").await;
        let vmis = Kind::VirtualMachineInstance.api(self.cluster.client(), NAMESPACE);
        let stopped = await_condition(vmis, &vm.name, |vmi: Option<&DynamicObject>| vmi.is_none());
        tokio::time::timeout(LONG, stopped)
            .await
            .expect("it does not stop")
            .unwrap();
        let stays = current(self.cluster, vm).await;
        assert_eq!(stays.metadata.uid, before.metadata.uid);
        self.run_strategy(vm, "Always").await;
        self.again(vm, &before).await;
    }

    /// The guest starts again, and QEMU does not end for it.
    pub async fn rebooted(&self, vm: &Vm) {
        let inside = vm.inside(self.cluster).await.unwrap();
        let boot = "cat /proc/sys/kernel/random/boot_id";
        let before = inside.run(boot, SOON).await.unwrap();
        // It does not live to say that it was done.
        let _ = inside.exec("echo b >/proc/sysrq-trigger", SOON).await;
        // The guest answers again.
        drop(self.watch(vm).await);
        let nics = fast(self.cluster, vm).await;
        checked(self.cluster, vm, &nics).await;
        assert_ne!(inside.run(boot, SOON).await.unwrap(), before);
    }

    /// The VM has a pod that it did not have, and in it its NICs as they were.
    async fn again(&self, vm: &Vm, before: &VmHybridNic) {
        let pod = |n: &VmHybridNic| n.status.as_ref().and_then(|s| s.pod.clone()).map(|p| p.name);
        let old = pod(before);
        let again = |n: &VmHybridNic| pod(n).is_some() && pod(n) != old && common::on(n, Path::FastPath);
        let nics: Api<VmHybridNic> = Api::namespaced(self.cluster.client(), NAMESPACE);
        let name = vm.first();
        let nic = until(nics, &name, LONG, "on a VF in a new pod", again);
        let mac = |n: &VmHybridNic| n.status.as_ref().and_then(|s| s.mac.clone());
        assert_eq!(mac(&nic.await.unwrap()), mac(before));
        let nics = fast(self.cluster, vm).await;
        checked(self.cluster, vm, &nics).await;
    }

    async fn run_strategy(&self, vm: &Vm, strategy: &str) {
        let vms = Kind::VirtualMachine.api(self.cluster.client(), NAMESPACE);
        let patch = Patch::Merge(json!({ "spec": { "runStrategy": strategy } }));
        vms.patch(&vm.name, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }

    async fn kill_of(&self, vm: &Vm, victim: Victim) {
        let program = match victim {
            Victim::Qemu => return self.run_with_qemu(vm, "kill -9 $pid").await,
            Victim::Launcher => "virt-launcher",
            Victim::Libvirt => "virtqemud",
        };
        // Of all programs of that name the one in this pod's container.
        let kill = format!(
            "for other in $(pidof {program}); do \
               if cmp -s /proc/$pid/cgroup /proc/$other/cgroup; then kill -9 $other; fi; done"
        );
        self.run_with_qemu(vm, &kill).await;
    }

    /// Tells libvirt something about a VM.
    pub async fn virsh(&self, vm: &Vm, command: &str) {
        self.run_with_qemu(vm, &in_launcher(command, vm)).await;
    }

    pub async fn run_with_qemu(&self, vm: &Vm, then: &str) {
        self.node(vm).await.run(&with_qemu(vm, then), SOON).await.unwrap();
    }

    /// Where a VM runs.
    pub async fn node(&self, vm: &Vm) -> &Node {
        self.cluster.node(node_of(&current(self.cluster, vm).await))
    }

    /// Kills the agent of a node.
    pub async fn kill_agent(&self, node: usize) {
        self.kill("agent", &[&format!("--field-selector=spec.nodeName=n{node}")])
            .await;
    }

    /// Kills pods of ours.
    pub async fn kill(&self, component: &str, which: &[&str]) {
        let label = format!("app.kubernetes.io/component={component}");
        let mut all = vec![
            "delete",
            "pods",
            "-n",
            SYSTEM,
            "-l",
            &label,
            "--force",
            "--grace-period=0",
        ];
        all.extend(which);
        self.cluster.kubectl(&all).await.unwrap();
    }
}

/// A command of libvirt's, in the pod of QEMU `$pid`.
pub fn in_launcher(command: &str, vm: &Vm) -> String {
    let socket = "/var/run/libvirt/virtqemud-sock";
    format!(
        "nsenter -t $pid -m virsh -c 'qemu+unix:///session?socket={socket}' {command} --domain {}_{}",
        vm.namespace, vm.name
    )
}
