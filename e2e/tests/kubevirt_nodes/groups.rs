//! VMs on nodes whose kernel has vfio groups only: QEMU opens the group of its VF by its path, in its launcher's pod.

use std::time::Instant;

use hybridnic_api::v1alpha1::{HybridNode, Path, VmHybridNic};
use hybridnic_e2e::kubevirt::Vm;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::common::on;
use super::seen::{checked, current, fast, migrate, node_of, succeeded};
use super::{NAMESPACE, SOON, Story, web};

impl Story<'_> {
    pub async fn groups(&self) {
        for node in [1, 2] {
            let kernel = "! grep -w vfio-dev /proc/devices && grep -w vfio /proc/devices";
            self.cluster
                .node(node)
                .run(kernel, SOON)
                .await
                .expect("this kernel has more than groups");
        }
        let web = web();
        self.start(&web).await;
        self.has_groups(&web).await;
        self.say("a VM runs, and its guest is on its VFs, by their groups");
        self.aside(&web).await;
        self.say("a NIC was on its standby for a while, and has its VF again");
        let first = node_of(&current(self.cluster, &web).await);
        for what in ["there", "back"] {
            self.moves(&web, what).await;
            self.has_groups(&web).await;
        }
        assert_eq!(node_of(&current(self.cluster, &web).await), first);
        self.say("the VM has moved there and back");
        let agent_of = node_of(&current(self.cluster, &web).await);
        self.undisturbed(&web, "the agent killed", async || self.kill_agent(agent_of).await)
            .await;
        self.aside(&web).await;
        self.say("the agent was killed, and knows whose the VF is");
        self.end(&web).await;
    }

    /// KubeVirt migrates the VM, and its NICs are on VFs again.
    async fn moves(&self, vm: &Vm, what: &str) {
        let (before, pinger) = (node_of(&current(self.cluster, vm).await), self.watch(vm).await);
        let asked = Instant::now();
        let migration = migrate(self.cluster, &vm.name).await;
        succeeded(self.cluster, &migration).await;
        let migration = self.arrived(vm, asked, what).await;
        assert_ne!(node_of(&current(self.cluster, vm).await), before);
        // Its VFs are given back with its pod, and only then others can have them, or it itself.
        let all = |node: &HybridNode| node.status.as_ref().is_some_and(|s| s.vfs.free == 11);
        let free = self.cluster.until_node(before, "with all VFs given back", all);
        free.await.unwrap();
        self.moved(pinger, &migration, what).await;
    }

    /// Its QEMU has one group open for each NIC, and none by a descriptor of the VF's own.
    async fn has_groups(&self, vm: &Vm) {
        let groups = format!(
            "test $(ls -l /proc/$pid/fd | grep -c '/dev/vfio/[0-9]') = {}",
            vm.interfaces.len()
        );
        self.run_with_qemu(vm, &groups).await;
    }

    /// Its first NIC is told to do without a VF, and then gets the one again whose group its pod has.
    async fn aside(&self, vm: &Vm) {
        let vf = |nic: &VmHybridNic| {
            let status = nic.status.as_ref();
            status.and_then(|s| s.vf.clone()).map(|vf| vf.pci_address)
        };
        let (name, before) = (vm.first(), vf(&current(self.cluster, vm).await));
        let nics: Api<VmHybridNic> = Api::namespaced(self.cluster.client(), NAMESPACE);
        let tell = async |path: &str| {
            let patch = Patch::Merge(json!({ "spec": { "path": path } }));
            nics.patch(&name, &PatchParams::default(), &patch).await.unwrap();
        };
        tell("Standby").await;
        let without = |nic: &VmHybridNic| on(nic, Path::Standby) && vf(nic).is_none();
        let told = self
            .cluster
            .until_nic(NAMESPACE, &name, "on its standby, without a VF", without);
        told.await.unwrap();
        tell("Auto").await;
        let all = fast(self.cluster, vm).await;
        checked(self.cluster, vm, &all).await;
        assert!(before.is_some());
        assert_eq!(vf(&all[0]), before, "its pod has the group of another VF");
    }
}
