//! Which devices the kubelet has given to which pods, as far as is known, and what follows from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use hybridnic_cni::wire::Pod;
use hybridnic_kubelet::pod_resources::{Given, PodResources, Pods};
use hybridnic_net::{DeviceId, PciAddress, dev::VfioNodes, sysfs::Inventory};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tracing::info;

use super::{
    DOMAIN,
    devices::{self, Inputs, Offer, Promise},
    tickets,
};
use crate::{
    cni,
    error::chain,
    node::{
        choice::Pick,
        ledger::{Ledger, Seat, Ticket},
        table::Sources,
    },
};

/// The kubelet writes down what it has given right after the plugin has answered. If after this time it does not say which pod has it,
/// no pod has.
const WRITTEN_DOWN: Duration = Duration::from_secs(10);

/// What the kubelet has been asked and has said.
#[derive(Debug, Default)]
struct State {
    /// The node's PFs and VFs when they were looked at last.
    inventory: Option<Inventory>,
    /// What was given to pods, as the kubelet has said last; `None` before it has said anything.
    given: Option<BTreeSet<Promise>>,
    /// What pods have of other plugins' that is a PCI function, in words.
    elsewhere: BTreeMap<PciAddress, String>,
    /// How many pods of each namespace and name it runs.
    pods: BTreeMap<(String, String), usize>,
    /// What it has asked for and not yet said for which pod: network and device, and when.
    fresh: BTreeMap<(String, DeviceId), Instant>,
    /// What is offered.
    offers: Vec<Offer>,
    /// How QEMU gets a VF on this node; `None` before the kernel shows it.
    nodes: Option<VfioNodes>,
}

/// The answer to the last question.
#[derive(Debug)]
struct Answer {
    /// When it was asked.
    asked: Instant,
    /// When the answer was there, or there was none.
    came: Instant,
    result: Result<(), String>,
}

/// What is known of the node's devices. Without a kubelet none are offered, and no pod has one.
#[derive(Debug, Default)]
pub struct Offers {
    kubelet: Option<PodResources>,
    /// Namespace and name of this agent's own pod, where it has one.
    own: Option<(String, String)>,
    state: Mutex<State>,
    /// Held while the kubelet is asked.
    answer: tokio::sync::Mutex<Option<Answer>>,
    /// What is offered has changed.
    changed: watch::Sender<u64>,
    /// The kubelet has asked for a device.
    pub(super) asked: Notify,
    /// The kubelet has said which pods have devices.
    heard: watch::Sender<u64>,
    /// Held while a VF is lent, or taken back.
    pub(super) lending: tokio::sync::Mutex<()>,
}

impl Offers {
    /// Asks the kubelet whose directory `pod-resources` this is. `own` is the pod that the agent runs in, namespace and name: a kubelet that
    /// does not list it has not heard of its pods yet. A kubelet that has just started answers before it has asked the API server
    /// (`NewSourceApiserver` in pkg/kubelet/config/apiserver.go), and its answer has no pods but static ones.
    pub fn new(pod_resources: &Path, own: Option<(String, String)>) -> Self {
        Self {
            kubelet: Some(PodResources::new(pod_resources)),
            own,
            ..Self::default()
        }
    }

    /// How QEMU gets a VF on this node. Before vfio is loaded nothing is lent.
    pub fn nodes(&self) -> VfioNodes {
        self.state().nodes.unwrap_or(VfioNodes::Functions)
    }

    /// Learns that from the kernel, once.
    pub fn learn_nodes(&self, proc: &Path) {
        if self.state().nodes.is_some() {
            return;
        }
        // No such file, and a vfio that is not loaded yet, are looked for again.
        let devices = std::fs::read_to_string(proc.join("devices")).unwrap_or_default();
        if let Some(nodes) = VfioNodes::of(&devices) {
            info!(?nodes, "what the kernel's vfio has for VFs");
            self.state().nodes = Some(nodes);
        }
    }

    /// What a NIC has of its pod's devices. The kubelet is asked where that is not known yet, so this is for a NIC whose pod runs.
    /// `requested`: how many the pod asks for, where that is known. An error says why it is not known.
    pub async fn ticket(&self, ledger: &Ledger, uid: &str, requested: Option<i32>) -> Result<Ticket, String> {
        if self.kubelet.is_none() {
            return Ok(Ticket::None);
        }
        if let Some(ticket) = ledger.ticket(uid) {
            return Ok(ticket);
        }
        if requested == Some(0) {
            // It need not wait for a kubelet that does not answer.
            ledger.set_ticket(uid, Ticket::None);
            return Ok(Ticket::None);
        }
        self.ask().await?;
        let state = self.state();
        let (Some(inventory), Some(given)) = (&state.inventory, &state.given) else {
            return Err("the node's devices have not been looked at yet".into());
        };
        let seats = ledger.seats(inventory);
        let seat = seats.get(uid).ok_or("the NIC has left")?;
        let pod = (seat.nic.namespace.clone(), seat.nic.pod.clone());
        match state.pods.get(&pod) {
            None => return Err(format!("the kubelet runs no pod {}/{}", pod.0, pod.1)),
            Some(1) => {}
            Some(_) => return Err(format!("the kubelet runs two pods {}/{}", pod.0, pod.1)),
        }
        let ticket = tickets::ticket(&seats, given, uid).unwrap_or(Ticket::None);
        drop(state);
        ledger.set_ticket(uid, ticket);
        Ok(ticket)
    }

    /// Asks the kubelet which pod has which device, unless another caller has since this call began. A failure also answers all callers
    /// that wait meanwhile: they do not wait one after the other.
    pub async fn ask(&self) -> Result<(), String> {
        let began = Instant::now();
        let mut answer = self.answer.lock().await;
        if let Some(Answer { asked, came, result }) = &*answer
            && (*asked >= began || result.is_err() && *came >= began)
        {
            return result.clone();
        }
        let Some(kubelet) = &self.kubelet else {
            return Err("devices are not offered to the kubelet here".into());
        };
        let asked = Instant::now();
        let result = match kubelet.list(DOMAIN).await {
            Ok(pods) if self.own.as_ref().is_none_or(|own| pods.pods.contains(own)) => {
                self.learn(&pods, asked);
                Ok(())
            }
            Ok(_) => Err(
                "it has just started and does not know its pods yet: this agent's own is not among them"
                    .into(),
            ),
            Err(error) => Err(chain(&error)),
        };
        *answer = Some(Answer {
            asked,
            came: Instant::now(),
            result: result.clone(),
        });
        result
    }

    fn learn(&self, pods: &Pods, asked: Instant) {
        let mut state = self.state();
        let given = pods.given.iter().filter_map(|given| {
            Some(Promise {
                network: given.resource.strip_prefix(DOMAIN)?.strip_prefix('/')?.to_owned(),
                id: given.id.parse().ok()?,
                pod: Some((given.namespace.clone(), given.pod.clone())),
            })
        });
        let given: BTreeSet<Promise> = given.collect();
        state.fresh.retain(|(network, id), at| {
            let is_given = given
                .iter()
                .any(|given| given.id == *id && given.network == *network);
            !is_given && asked < *at + WRITTEN_DOWN
        });
        state.given = Some(given);
        state.elsewhere = pods.others.iter().filter_map(elsewhere).collect();
        state.pods.clear();
        for pod in &pods.pods {
            *state.pods.entry(pod.clone()).or_default() += 1;
        }
        drop(state);
        self.heard.send_modify(|n| *n += 1);
    }

    /// Resolves when the kubelet has said which pods have devices.
    pub(super) fn heard(&self) -> watch::Receiver<u64> {
        self.heard.subscribe()
    }

    /// Keeps the ledger off VFs that the kubelet has given to pods as devices of other plugins. It is asked before a VF is taken, because
    /// it does not report this by itself. An error means that it does not answer now: its last answer counts, if there was one.
    pub async fn look_elsewhere(&self, ledger: &Ledger) -> Result<(), String> {
        if self.kubelet.is_none() {
            return Ok(());
        }
        self.ask().await?;
        self.tell_elsewhere(ledger);
        Ok(())
    }

    pub(super) fn tell_elsewhere(&self, ledger: &Ledger) {
        let elsewhere = self.state().elsewhere.clone();
        ledger.set_elsewhere(elsewhere);
    }

    /// The NICs that have a VF or a standby, and so a pod that runs, get their tickets: the agent has been restarted.
    pub(super) fn give_tickets(&self, ledger: &Ledger) {
        loop {
            let state = self.state();
            let (Some(inventory), Some(given)) = (&state.inventory, &state.given) else {
                return;
            };
            let seats = ledger.seats(inventory);
            let waits = |seat: &Seat| {
                let pod = (seat.nic.namespace.clone(), seat.nic.pod.clone());
                seat.ticket.is_none()
                    && (seat.vf_pf.is_some() || seat.standby_pf.is_some())
                    && state.pods.get(&pod) == Some(&1)
            };
            let Some((uid, _)) = seats.iter().find(|(_, seat)| waits(seat)) else {
                return;
            };
            let ticket = tickets::ticket(&seats, given, uid).unwrap_or(Ticket::None);
            drop(state);
            ledger.set_ticket(uid, ticket);
        }
    }

    /// Whether a pod may have a device, or get one: otherwise the kubelet has nothing to say.
    pub(super) fn may_be_given(&self, ledger: &Ledger) -> bool {
        let state = self.state();
        let given = state.given.as_ref().is_none_or(|given| !given.is_empty());
        let lent = !ledger.lent().is_empty();
        given || lent || !state.fresh.is_empty() || state.has_elsewhere() || ledger.may_have_devices()
    }

    /// The devices that pods have by the kubelet's last answer.
    pub(super) fn given(&self) -> Vec<DeviceId> {
        let state = self.state();
        let given = state.given.iter().flatten();
        given.map(|promise| promise.id).collect()
    }

    /// Takes a new look at the node's PFs and VFs.
    pub(super) fn see(&self, inventory: Inventory) {
        self.state().inventory = Some(inventory);
    }

    /// Makes the offers again from all that is known.
    pub(super) fn update(&self, ledger: &Ledger) {
        let mut state = self.state();
        let Some((offers, owed)) = state.make(ledger) else {
            return;
        };
        let changed = state.offers != offers;
        state.offers = offers;
        drop(state);
        ledger.set_owed(owed);
        if changed {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// The kubelet asks for devices of a network for a container. No device goes to two of them; an error says why one is refused.
    pub(super) fn promise(&self, ledger: &Ledger, network: &str, ids: &[DeviceId]) -> Result<(), String> {
        let mut state = self.state();
        // They count as owed before the agent checks whether that is possible: a NIC that takes a VF before that is seen here, and one that
        // takes a VF later takes none that is owed.
        let before = state.fresh.clone();
        let now = Instant::now();
        for id in ids {
            state.fresh.insert((network.to_owned(), *id), now);
        }
        if let Some(owed) = state.with_inputs(ledger, devices::owed) {
            ledger.set_owed(owed);
        }
        let with_these = std::mem::replace(&mut state.fresh, before);
        let refused = state.with_inputs(ledger, |inputs| {
            let refusal = |id: &DeviceId| devices::refusal(inputs, network, *id);
            ids.iter().find_map(refusal)
        });
        let refused = refused.unwrap_or_else(|| Some("the node's devices are not known yet".into()));
        if refused.is_none() {
            state.fresh = with_these;
        }
        drop(state);
        self.update(ledger);
        if let Some(why) = refused {
            return Err(why);
        }
        self.asked.notify_one();
        Ok(())
    }

    /// The kubelet gets these now: what it needs to write that down counts from here.
    pub(super) fn renew(&self, network: &str, ids: &[DeviceId]) {
        let mut state = self.state();
        let now = Instant::now();
        for id in ids {
            state.fresh.insert((network.to_owned(), *id), now);
        }
    }

    /// The kubelet does not get these after all.
    pub(super) fn retract(&self, ledger: &Ledger, network: &str, ids: &[DeviceId]) {
        let mut state = self.state();
        state
            .fresh
            .retain(|(of, id), _| of != network || !ids.contains(id));
        drop(state);
        self.update(ledger);
        // What was lent goes back.
        ledger.look_again();
    }

    /// Whether a device that is a VF elsewhere comes with none here and now: it is a standby slot, or its last pod's NIC has not left. Where a
    /// device is a slot, no device is better than another.
    pub(super) fn comes_without(&self, ledger: &Ledger, id: DeviceId) -> bool {
        let state = self.state();
        let without = state.with_inputs(ledger, |inputs| {
            inputs.nodes == VfioNodes::Groups
                && (devices::vf_of(inputs.sources.inventory, id).is_none() || devices::has_nic(inputs, id))
        });
        without.unwrap_or(false)
    }

    /// Whether a device that is a VF still has a NIC; also as long as the node has not been looked at.
    pub(super) fn has_nic(&self, ledger: &Ledger, id: DeviceId) -> bool {
        let has = self
            .state()
            .with_inputs(ledger, |inputs| devices::has_nic(inputs, id));
        has.unwrap_or(true)
    }

    /// What is offered.
    pub fn offers(&self) -> Vec<Offer> {
        self.state().offers.clone()
    }

    /// Resolves when what is offered changes.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Whether somebody has a device, or may have: the kubelet has given it, or a NIC uses it.
    pub(super) fn is_used(&self, ledger: &Ledger, id: DeviceId) -> bool {
        let state = self.state();
        let used = state.with_inputs(ledger, |inputs| {
            inputs.promises.iter().any(|promise| promise.id == id)
                || inputs.seats.values().any(|seat| seat.device() == Some(id))
        });
        used.unwrap_or(true)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic leaves plain data, which is made again.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The PCI function that a device of another plugin is, and whose it is. The SR-IOV device plugin's ids are PCI addresses.
fn elsewhere(given: &Given) -> Option<(PciAddress, String)> {
    let Given {
        namespace,
        pod,
        resource,
        id,
    } = given;
    let why = format!(
        "the kubelet has given it to the pod {namespace}/{pod} as {resource}, of another device plugin: take it out of that plugin's \
         configuration, or out of the uplinks' vfs"
    );
    Some((id.parse().ok()?, why))
}

impl cni::Kubelet for Offers {
    fn has_given<'a>(
        &'a self,
        pod: &'a Pod,
        network: &'a str,
        device_id: &'a str,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            self.ask().await?;
            let is_it = |promise: &Promise| {
                let theirs = promise.pod.as_ref();
                promise.network == network
                    && promise.id.to_string() == device_id
                    && theirs
                        .is_some_and(|(namespace, name)| *namespace == pod.namespace && *name == pod.name)
            };
            if self.state().given.iter().flatten().any(is_it) {
                return Ok(());
            }
            Err(format!(
                "the kubelet has not given {device_id} of {DOMAIN}/{network} to the pod {}/{}",
                pod.namespace, pod.name
            ))
        })
    }
}

impl State {
    /// Whether a pod has a VF of this node through another plugin.
    fn has_elsewhere(&self) -> bool {
        let pfs = self.inventory.iter().flat_map(|inventory| &inventory.pfs);
        let mut vfs = pfs.flat_map(|pf| &pf.vfs);
        vfs.any(|vf| self.elsewhere.contains_key(&vf.address))
    }

    /// `None` before both the node and the kubelet have been looked at.
    fn with_inputs<T>(&self, ledger: &Ledger, answer: impl FnOnce(&Inputs<'_>) -> T) -> Option<T> {
        let (inventory, given) = (self.inventory.as_ref()?, self.given.as_ref()?);
        let fresh = self.fresh.keys().map(|(network, id)| Promise {
            network: network.clone(),
            id: *id,
            pod: None,
        });
        let promises: BTreeSet<Promise> = given.iter().cloned().chain(fresh).collect();
        Some(answer(&Inputs {
            sources: Sources {
                inventory,
                pools: &ledger.pools(),
                holders: &ledger.holders(),
                foreign: &ledger.foreign(),
                lent: &ledger.lent(),
                draining: &ledger.draining(),
                provision_errors: &BTreeMap::new(),
            },
            promises: &promises,
            seats: &ledger.seats(inventory),
            nodes: self.nodes.unwrap_or(VfioNodes::Functions),
        }))
    }

    fn make(&self, ledger: &Ledger) -> Option<(Vec<Offer>, BTreeMap<Pick, usize>)> {
        self.with_inputs(ledger, |inputs| (devices::offers(inputs), devices::owed(inputs)))
    }
}

#[cfg(test)]
#[path = "known_tests.rs"]
mod tests;
