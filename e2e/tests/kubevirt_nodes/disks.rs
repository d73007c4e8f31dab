//! Disks that come and go beside the VF.

use std::time::{Duration, Instant};

use hybridnic_e2e::kubevirt::{Kind, Virtctl, Vm};
use hybridnic_e2e::lab::Inside;
use hybridnic_e2e::until::until;
use kube::api::DynamicObject;

use super::seen::{at, checked, fast, hardly_lost};
use super::{LONG, NAMESPACE, SOON, Story};

/// A disk, in the launcher's pod.
const DISK: &str = "/var/run/kubevirt-private/plugged.img";
/// A volume, its claim, and the disk that KubeVirt makes of it.
const VOLUME: &str = "plugged";
/// Where that volume is on the VM's node.
const DIRECTORY: &str = "/var/lib/plugged";
/// What an administrator makes.
const CLAIM: &str = "
apiVersion: v1
kind: PersistentVolume
metadata: {name: VOLUME}
spec:
  capacity: {storage: 16Mi}
  accessModes: [ReadWriteOnce]
  storageClassName: ''
  claimRef: {namespace: NAMESPACE, name: VOLUME}
  hostPath: {path: DIRECTORY}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: VOLUME, namespace: NAMESPACE}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: ''
  volumeName: VOLUME
  resources: {requests: {storage: 16Mi}}
";

impl Story<'_> {
    /// A disk is plugged and unplugged beside the VF: libvirt knows nothing of the VF and of its port, and takes neither.
    pub async fn disk_plugged(&self, vm: &Vm) {
        let inside = vm.inside(self.cluster).await.unwrap();
        let (before, pinger) = (devices(&inside).await, self.watch(vm).await);
        let file = format!("/proc/$pid/root{DISK}");
        self.run_with_qemu(vm, &format!("truncate -s 16M {file} && chmod 666 {file}"))
            .await;
        self.virsh(
            vm,
            &format!("attach-disk --targetbus virtio --live --source {DISK} --target vdz"),
        )
        .await;
        until_one_more(&inside, &before).await;
        let nics = fast(self.cluster, vm).await;
        checked(self.cluster, vm, &nics).await;
        self.virsh(vm, "detach-disk --live --target vdz").await;
        until_again(&inside, &before).await;
        let nics = fast(self.cluster, vm).await;
        checked(self.cluster, vm, &nics).await;
        hardly_lost(&pinger.stop().await, "a disk plugged and unplugged");
    }

    /// KubeVirt does the same for the VM's user, by a pod that has the volume, and by virt-handler, which shows the launcher the file in it.
    pub async fn volume_plugged(&self, vm: &Vm) {
        let cluster = self.cluster;
        let virtctl = Virtctl::new(cluster).await.unwrap();
        let node = self.node(vm).await;
        let file = format!("mkdir {DIRECTORY} && truncate -s 16M {DIRECTORY}/disk.img");
        node.run(&file, SOON).await.unwrap();
        let claim = CLAIM
            .replace("VOLUME", VOLUME)
            .replace("NAMESPACE", NAMESPACE)
            .replace("DIRECTORY", DIRECTORY);
        cluster.apply(&claim).await.unwrap();
        let inside = vm.inside(cluster).await.unwrap();
        let (before, pinger) = (devices(&inside).await, self.watch(vm).await);
        let add = [
            "addvolume",
            &vm.name,
            "-n",
            NAMESPACE,
            "--volume-name",
            VOLUME,
            "--bus",
            "virtio",
        ];
        let began = Instant::now();
        virtctl.run(&add).await.unwrap();
        let vmis = Kind::VirtualMachineInstance.api(cluster.client(), NAMESPACE);
        let has = |vmi: &DynamicObject| at(vmi, "/status/volumeStatus/0/phase") == "Ready";
        until(vmis.clone(), &vm.name, LONG, "with its disk", has)
            .await
            .unwrap();
        until_one_more(&inside, &before).await;
        let nics = fast(cluster, vm).await;
        checked(cluster, vm, &nics).await;
        eprintln!("figure: virtctl addvolume: {:.1?}", began.elapsed());

        let remove = ["removevolume", &vm.name, "-n", NAMESPACE, "--volume-name", VOLUME];
        let began = Instant::now();
        virtctl.run(&remove).await.unwrap();
        // With a disk that only one node has it would not migrate.
        let has_not = |vmi: &DynamicObject| at(vmi, "/status/volumeStatus/0").is_null() && may_migrate(vmi);
        until(vmis, &vm.name, LONG, "without its disk", has_not)
            .await
            .unwrap();
        until_again(&inside, &before).await;
        let nics = fast(cluster, vm).await;
        checked(cluster, vm, &nics).await;
        eprintln!("figure: virtctl removevolume: {:.1?}", began.elapsed());
        hardly_lost(&pinger.stop().await, "a volume plugged and unplugged");

        let claim = format!("persistentvolumeclaim/{VOLUME}");
        let volume = format!("persistentvolume/{VOLUME}");
        for object in [claim, volume] {
            let delete = ["delete", &object, "-n", NAMESPACE];
            cluster.kubectl(&delete).await.unwrap();
        }
        node.run(&format!("rm -r {DIRECTORY}"), SOON).await.unwrap();
    }
}

/// Whether KubeVirt would migrate a VM.
fn may_migrate(vmi: &DynamicObject) -> bool {
    let conditions = at(vmi, "/status/conditions").as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition["type"] == "LiveMigratable" && condition["status"] == "True")
}

/// A guest's PCI devices.
async fn devices(inside: &Inside) -> String {
    inside.run("ls /sys/bus/pci/devices", SOON).await.unwrap()
}

/// Waits until a guest has a PCI device more.
async fn until_one_more(inside: &Inside, before: &str) {
    let more = |now: &str| now.lines().count() == before.lines().count() + 1;
    until_devices(inside, "one more", more).await;
}

/// Waits until it has those that it had before.
async fn until_again(inside: &Inside, before: &str) {
    until_devices(inside, "those of before", |now| now == before).await;
}

async fn until_devices(inside: &Inside, what: &str, are: impl Fn(&str) -> bool) {
    let end = Instant::now() + SOON;
    loop {
        let now = devices(inside).await;
        if are(&now) {
            return;
        }
        assert!(Instant::now() < end, "the guest has not {what}: {now}");
        // A guest tells nobody of its devices.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}
