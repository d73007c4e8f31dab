//! What is looked at, and what is done with one command.

use std::time::{Duration, Instant};

use futures::future::try_join_all;
use hybridnic_api::v1alpha1::{Path, VmHybridNic};
use hybridnic_e2e::cluster::{Cluster, SYSTEM};
use hybridnic_e2e::controlplane::audit::Write;
use hybridnic_e2e::kubevirt::{Kind, Vm};
use hybridnic_e2e::lab::Report;
use hybridnic_e2e::until::until;
use kube::api::{DeleteParams, DynamicObject, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::common::{check_nic, on};
use super::{LONG, NAMESPACE, SOON};

/// For how long a guest on an emulated node may not get to answer.
pub const BUSY: Duration = Duration::from_secs(5);

/// For how long at most a guest that runs may be without its network in a migration that succeeds. Of gaps of 1 to 23 s that were measured, less
/// than 0.7 s were not the guest's own standing still; KubeVirt's own interface was away for 18 to 57 s. A node that compiles besides may hold up
/// the agent, too, for some seconds.
pub const AWAY: Duration = Duration::from_secs(15);
/// For how long at most a guest may answer nothing, whatever the reason.
const STILL: Duration = Duration::from_secs(20);
/// The same in a migration: twice what two nodes have made of it that were busy with two VMs at once.
const STILL_MOVING: Duration = Duration::from_mins(1);

/// A part of an object.
pub fn at<'a>(object: &'a DynamicObject, pointer: &str) -> &'a Value {
    object.data.pointer(pointer).unwrap_or(&Value::Null)
}

/// A VM's first NIC.
pub async fn current(cluster: &Cluster, vm: &Vm) -> VmHybridNic {
    let nics: Api<VmHybridNic> = Api::namespaced(cluster.client(), NAMESPACE);
    nics.get(&vm.first()).await.unwrap()
}

/// Waits until all of a VM's NICs are on VFs.
pub async fn fast(cluster: &Cluster, vm: &Vm) -> Vec<VmHybridNic> {
    let mut all = Vec::new();
    for interface in &vm.interfaces {
        let nics = Api::namespaced(cluster.client(), NAMESPACE);
        let is = |nic: &VmHybridNic| on(nic, Path::FastPath);
        let reached = until(nics, &vm.nic(&interface.name), LONG, "on the fast path", is).await;
        all.push(reached.unwrap());
    }
    all
}

/// Its NICs are on their fast paths in the guest's and the node's own view, whatever statuses say. Of an idle guest the agent judges by
/// silence, and one on a busy node may be a moment late to pair its VF.
pub async fn checked(cluster: &Cluster, vm: &Vm, nics: &[VmHybridNic]) {
    checked_within(cluster, vm, BUSY, async || nics.to_vec()).await;
}

/// The same after a migration that has failed or was called off. A status may be old by then: an agent that waits for a guest to let go of its
/// VF reports nothing meanwhile.
pub async fn settled(cluster: &Cluster, vm: &Vm) {
    checked_within(cluster, vm, SOON, async || fast(cluster, vm).await).await;
}

async fn checked_within(
    cluster: &Cluster,
    vm: &Vm,
    patience: Duration,
    nics: impl AsyncFn() -> Vec<VmHybridNic>,
) {
    let end = Instant::now() + patience;
    loop {
        let nics = nics().await;
        let inside = vm.inside(cluster).await.unwrap();
        let looks = nics
            .iter()
            .map(|nic| check_nic(cluster.node(node_of(nic)), &inside, nic));
        let Err(error) = try_join_all(looks).await else {
            return;
        };
        let late = Instant::now() >= end;
        assert!(!late, "{error:#}: {:#?}", inside.net().await);
        // A guest tells nobody of its links.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// The number of the node where a NIC is.
pub fn node_of(nic: &VmHybridNic) -> usize {
    let name = nic.status.as_ref().and_then(|s| s.node_name.as_deref());
    name.unwrap_or_default().trim_start_matches('n').parse().unwrap()
}

/// Says what was lost, and how much of that was a guest that stood still.
pub fn gaps(report: &Report, what: &str) {
    eprintln!(
        "figure: {what}: {} of {} packets lost, {} of them answers",
        report.round_trip.lost(),
        report.round_trip.sent,
        report.answers_lost,
    );
    for gap in &report.round_trip.gaps {
        let stood = report.stood_in(gap);
        eprintln!(
            "figure: {what}: gap of {:?}, {} lost; the guest stood still for {stood:?} of it",
            gap.length, gap.lost
        );
    }
}

/// No more than an emulated node may be busy with something else: an answer that comes late counts as lost.
pub fn hardly_lost(report: &Report, what: &str) {
    away_less_than(BUSY, STILL, report, what);
}

/// The same of a migration that succeeds.
pub fn moved(report: &Report, what: &str) {
    away_less_than(AWAY, STILL_MOVING, report, what);
}

/// A guest that gets no time of its node's busy processors has not lost its network. But what is done to it must not hold it up for long, either.
fn away_less_than(most: Duration, still: Duration, report: &Report, what: &str) {
    gaps(report, what);
    let (longest, network) = (report.round_trip.longest(), report.longest_of_network());
    assert!(
        network < most,
        "{what}: {network:?} without network while the guest ran"
    );
    assert!(longest < still, "{what}: {longest:?} without an answer");
}

/// What our programs have written to the API server, but for the operator's lease: the operator's, and the agents'.
pub fn writes(cluster: &Cluster) -> [usize; 2] {
    let all = cluster.control_plane.writes().unwrap();
    ["operator", "agent"].map(|who| {
        let user = format!("system:serviceaccount:{SYSTEM}:hybridnic-{who}");
        let is = |write: &&Write| write.user == user && write.resource != "leases";
        all.iter().filter(is).count()
    })
}

/// Runs `kubectl hybridnic` as an administrator of the VMs' namespace; it must say that all is well.
pub async fn plugin(cluster: &Cluster, args: &[&str]) -> String {
    cluster
        .plugin(&[args, &["-n", NAMESPACE]].concat())
        .await
        .unwrap()
}

/// Asks KubeVirt to migrate a VM, as `virtctl migrate` does; gives the migration's name.
pub async fn migrate(cluster: &Cluster, vm: &str) -> String {
    let migration = json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
        "metadata": { "generateName": format!("{vm}-") }, "spec": { "vmiName": vm },
    });
    let migration: DynamicObject = serde_json::from_value(migration).unwrap();
    let all = Kind::VirtualMachineInstanceMigration.api(cluster.client(), NAMESPACE);
    all.create(&PostParams::default(), &migration)
        .await
        .unwrap()
        .name_any()
}

/// Waits until an object is in a phase, or in one that it does not leave.
pub async fn reached(cluster: &Cluster, kind: Kind, name: &str, phase: &str) {
    let all = kind.api(cluster.client(), NAMESPACE);
    let is = |object: &DynamicObject| {
        let now = at(object, "/status/phase");
        now == phase || now == "Failed"
    };
    let reached = until(all, name, LONG, phase, is).await;
    let there = reached
        .as_ref()
        .is_ok_and(|object| at(object, "/status/phase") == phase);
    assert!(there, "{name} is not {phase}: {reached:#?}");
}

/// Waits until a migration has moved its VM.
pub async fn succeeded(cluster: &Cluster, migration: &str) {
    reached(
        cluster,
        Kind::VirtualMachineInstanceMigration,
        migration,
        "Succeeded",
    )
    .await;
}

/// Waits until a migration has failed, and gives it.
pub async fn failed(cluster: &Cluster, migration: &str) -> DynamicObject {
    let all = Kind::VirtualMachineInstanceMigration.api(cluster.client(), NAMESPACE);
    let over = |object: &DynamicObject| {
        let now = at(object, "/status/phase");
        now == "Failed" || now == "Succeeded"
    };
    let migration = until(all, migration, LONG, "over", over).await.unwrap();
    assert_eq!(*at(&migration, "/status/phase"), "Failed", "{migration:#?}");
    migration
}

/// Somebody deletes a migration; it is gone when this returns.
pub async fn call_off(cluster: &Cluster, migration: &str) {
    let all = Kind::VirtualMachineInstanceMigration.api(cluster.client(), NAMESPACE);
    all.delete(migration, &DeleteParams::default()).await.unwrap();
    let gone = await_condition(all, migration, |m: Option<&DynamicObject>| m.is_none());
    let gone = tokio::time::timeout(LONG, gone).await;
    gone.expect("it does not go").unwrap();
}

/// Waits until a VM and its NICs are gone.
pub async fn gone(cluster: &Cluster, vm: &Vm) {
    let vmis = Kind::VirtualMachineInstance.api(cluster.client(), NAMESPACE);
    let nics: Api<VmHybridNic> = Api::namespaced(cluster.client(), NAMESPACE);
    let all = async {
        await_condition(vmis, &vm.name, |vmi: Option<&DynamicObject>| vmi.is_none())
            .await
            .unwrap();
        for interface in &vm.interfaces {
            let name = vm.nic(&interface.name);
            let gone = await_condition(nics.clone(), &name, |nic: Option<&VmHybridNic>| nic.is_none());
            gone.await.unwrap();
        }
    };
    let all = tokio::time::timeout(SOON, all).await;
    assert!(all.is_ok(), "{} is not gone", vm.name);
}
