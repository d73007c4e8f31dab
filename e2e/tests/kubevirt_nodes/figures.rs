//! What a migration costs: how much is lost in each of KubeVirt's phases, and for how long a NIC is without its VF.

use std::pin::pin;
use std::time::{Duration, Instant, SystemTime};

use futures::StreamExt as _;
use hybridnic_api::v1alpha1::{Path, VmHybridNic};
use hybridnic_e2e::cluster::Cluster;
use hybridnic_e2e::kubevirt::{Kind, Vm};
use hybridnic_e2e::lab::Report;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::seen::at;
use super::{NAMESPACE, SOON};

/// Says what was lost in each phase of a migration that has succeeded. KubeVirt says their beginnings to a second.
pub async fn by_phase(cluster: &Cluster, migration: &str, report: &Report, what: &str) {
    let all = Kind::VirtualMachineInstanceMigration.api(cluster.client(), NAMESPACE);
    let migration = all.get(migration).await.unwrap();
    let said = at(&migration, "/status/phaseTransitionTimestamps").as_array();
    let phases = said.into_iter().flatten().map(|said| {
        let time: Time = serde_json::from_value(said["phaseTransitionTimestamp"].clone()).unwrap();
        (
            said["phase"].as_str().unwrap().to_owned(),
            SystemTime::from(time.0),
        )
    });
    let mut phases: Vec<_> = phases.collect();
    phases.sort_by_key(|(_, began)| *began);
    let final_one = phases.last().map(|(phase, _)| phase.as_str());
    assert_eq!(final_one, Some("Succeeded"), "{phases:?}");
    let ends = phases.iter().skip(1).map(|(_, began)| *began);
    let ends: Vec<_> = ends.chain([SystemTime::now()]).collect();
    for ((phase, began), end) in phases.iter().zip(ends) {
        let lost = report.round_trip.lost_between(*began, end);
        let length = end.duration_since(*began).unwrap_or_default();
        eprintln!("figure: {what}: {phase} took {length:.0?}, {lost} packets were lost");
    }
}

/// What the status of a VM's NIC has said since, change by change.
pub struct History {
    states: watch::Receiver<Vec<State>>,
    task: JoinHandle<()>,
}

/// What it said from then on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub at: Instant,
    pub node: String,
    pub path: Path,
}

impl History {
    /// Begins with what it says now.
    pub fn of(cluster: &Cluster, vm: &Vm, interface: &str) -> Self {
        let nics: Api<VmHybridNic> = Api::namespaced(cluster.client(), NAMESPACE);
        let config = watcher::Config::default().fields(&format!("metadata.name={}", vm.nic(interface)));
        let (told, history) = watch::channel(Vec::new());
        let task = tokio::spawn(async move {
            let mut stream = pin!(watcher(nics, config).default_backoff().applied_objects());
            while let Some(nic) = stream.next().await {
                // The watch begins again by itself where it has ended.
                let Some(status) = nic.ok().and_then(|nic| nic.status) else {
                    continue;
                };
                let state = State {
                    at: Instant::now(),
                    node: status.node_name.unwrap_or_default(),
                    path: status.path,
                };
                told.send_modify(|states: &mut Vec<State>| states.push(state));
            }
        });
        Self {
            states: history,
            task,
        }
    }

    /// Waits until it has been so.
    async fn until(&self, what: &str, been: impl Fn(&[State]) -> bool) -> Vec<State> {
        let mut states = self.states.clone();
        let found = tokio::time::timeout(SOON, states.wait_for(|states| been(states))).await;
        let found = found.map(|states| states.unwrap().clone());
        found.unwrap_or_else(|_| panic!("never {what}: {:#?}", *self.states.borrow()))
    }

    /// It has been on its standby at this node.
    pub async fn stood_by(&self, node: usize) {
        let name = format!("n{node}");
        let here = |state: &State| state.node == name && state.path == Path::Standby;
        self.until(&format!("on its standby at {name}"), |states| {
            states.iter().any(here)
        })
        .await;
    }

    /// For how long it was without a VF, from the moment in which the guest let go of one, which opens the barrier.
    pub async fn without_vf(&self) -> Duration {
        let has = |state: &State| state.path == Path::FastPath;
        let back =
            |states: &[State]| states.iter().any(|state| !has(state)) && states.last().is_some_and(has);
        let states = self.until("on a VF again", back).await;
        let left = states.iter().position(|state| !has(state)).unwrap();
        let again = states.iter().rposition(|state| !has(state)).unwrap() + 1;
        states[again].at - states[left].at
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.task.abort();
    }
}
