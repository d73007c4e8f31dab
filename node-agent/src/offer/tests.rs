//! The offers beside a kubelet that gives devices away, over any order of what may happen.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use hybridnic_api::v1alpha1::{L2Settings, NodePool, PoolTags, Uplink};
use hybridnic_net::{
    DeviceId, PciAddress,
    dev::VfioNodes,
    sysfs::{Inventory, Pf},
    testing,
};
use proptest::prelude::*;

use super::{
    devices::{self, Device, Inputs, Offer, Promise},
    tickets,
};
use crate::node::{
    choice::{Pick, Wish},
    ledger::{Claimant, Ledger, Nic, Ticket},
    table::Sources,
};

/// PFs with a link and their VFs. They are made of files, which takes its time: once.
pub(crate) fn inventory(pfs: usize, vfs: usize) -> Inventory {
    static MOST: LazyLock<Inventory> = LazyLock::new(|| {
        let dir = tempfile::tempdir().unwrap();
        let mut inventory = testing::make_sysfs(dir.path(), 2, 4).unwrap().discover().unwrap();
        for pf in &mut inventory.pfs {
            pf.carrier = Some(true);
        }
        inventory
    });
    let mut inventory = MOST.clone();
    inventory.pfs.truncate(pfs);
    for pf in &mut inventory.pfs {
        pf.vfs.truncate(vfs);
    }
    inventory
}

/// A network on the PFs of this name.
pub(crate) fn pool(network: &str, pf: &str, standby_slots: i32) -> NodePool {
    NodePool {
        network: network.into(),
        uplinks: vec![Uplink {
            pf_names: vec![pf.into()],
            ..Uplink::default()
        }],
        tags: PoolTags::None,
        standby_slots,
        l2: Some(L2Settings::default()),
    }
}

/// A node and its kubelet. What each knows of the other is as old as the last message.
struct Node {
    inventory: Inventory,
    ledger: Ledger,
    /// The kubelet's: who has which devices. Pods are numbers.
    kubelet: BTreeMap<u8, BTreeSet<(String, DeviceId)>>,
    /// Pods that run.
    alive: BTreeSet<u8>,
    /// What the kubelet has heard of devices last.
    heard: Vec<Offer>,
    /// What the agent has heard of pods last.
    given: BTreeSet<Promise>,
    fresh: BTreeSet<Promise>,
    refused: usize,
    nodes: VfioNodes,
}

fn uid(pod: u8) -> String {
    format!("uid{pod}")
}

fn claimant(pod: u8) -> Claimant {
    Claimant {
        created: pod.into(),
        nic: format!("ns/{pod}"),
        uid: uid(pod),
    }
}

fn nic(pod: u8, network: &str) -> Nic {
    Nic {
        namespace: "ns".into(),
        pod: pod.to_string(),
        pod_uid: uid(pod),
        network: network.into(),
    }
}

impl Node {
    fn new(pools: &[NodePool], vfs: usize) -> Self {
        let ledger = Ledger::default();
        ledger.set_pools(pools);
        let mut node = Self {
            inventory: inventory(2, vfs),
            ledger,
            kubelet: BTreeMap::new(),
            alive: BTreeSet::new(),
            heard: vec![],
            given: BTreeSet::new(),
            fresh: BTreeSet::new(),
            refused: 0,
            nodes: VfioNodes::Functions,
        };
        node.say();
        node
    }

    fn with_inputs<T>(&self, f: impl FnOnce(&Inputs<'_>) -> T) -> T {
        let promises: BTreeSet<Promise> = self.given.union(&self.fresh).cloned().collect();
        f(&Inputs {
            sources: Sources {
                inventory: &self.inventory,
                pools: &self.ledger.pools(),
                holders: &self.ledger.holders(),
                foreign: &self.ledger.foreign(),
                lent: &self.ledger.lent(),
                draining: &self.ledger.draining(),
                provision_errors: &BTreeMap::new(),
            },
            promises: &promises,
            seats: &self.ledger.seats(&self.inventory),
            nodes: self.nodes,
        })
    }

    fn offer(&self, network: &str) -> Offer {
        let mut offers = self.with_inputs(devices::offers);
        offers.retain(|offer| offer.network == network);
        offers.remove(0)
    }

    fn owe(&self) {
        self.ledger.set_owed(self.with_inputs(devices::owed));
    }

    /// The agent tells the kubelet.
    fn say(&mut self) {
        self.heard = self.with_inputs(devices::offers);
    }

    /// The kubelet tells the agent.
    fn list(&mut self) {
        let promises = self.kubelet.iter().flat_map(|(pod, given)| {
            given.iter().map(|(network, id)| Promise {
                network: network.clone(),
                id: *id,
                pod: Some(("ns".into(), pod.to_string())),
            })
        });
        self.given = promises.collect();
        self.fresh.clear();
        let seats = self.ledger.seats(&self.inventory);
        for (uid, seat) in &seats {
            if seat.ticket.is_none() && (seat.vf_pf.is_some() || seat.standby_pf.is_some()) {
                let ticket = tickets::ticket(&self.ledger.seats(&self.inventory), &self.given, uid);
                self.ledger.set_ticket(uid, ticket.unwrap());
            }
        }
        self.owe();
    }

    /// A pod comes that asks for a device; the kubelet admits it or not. It may fail after that.
    fn admit(&mut self, pod: u8, network: &str, fails: bool) -> Option<DeviceId> {
        self.kubelet.retain(|pod, _| self.alive.contains(pod));
        let in_use: BTreeSet<DeviceId> = self
            .kubelet
            .values()
            .flatten()
            .filter(|(n, _)| n == network)
            .map(|(_, id)| *id)
            .collect();
        let heard = self.heard.iter().find(|offer| offer.network == network)?;
        let free: Vec<String> = heard
            .devices
            .iter()
            .filter(|device| device.healthy && !in_use.contains(&device.id))
            .map(|device| device.id.to_string())
            .collect();
        let id = super::prefer::prefer(&free, &[], 1, |_| 0, |_| false)
            .first()?
            .parse()
            .unwrap();
        if self.nodes == VfioNodes::Groups && self.with_inputs(|inputs| devices::has_nic(inputs, id)) {
            // That NIC has not left in time.
            self.refused += 1;
            return None;
        }
        if self
            .with_inputs(|inputs| devices::refusal(inputs, network, id))
            .is_some()
        {
            self.refused += 1;
            return None;
        }
        self.fresh.insert(Promise {
            network: network.into(),
            id,
            pod: None,
        });
        self.owe();
        if self.nodes == VfioNodes::Groups
            && let Some((_, vf)) = devices::vf_of(&self.inventory, id)
        {
            self.ledger.lend(vf.address, groups::loan(id, vf.address));
        }
        if fails {
            return None;
        }
        self.kubelet.insert(pod, [(network.to_owned(), id)].into());
        self.alive.insert(pod);
        Some(id)
    }

    /// The NIC of a pod wants a VF; QEMU runs there.
    fn take(&mut self, pod: u8, network: &str) {
        if !self.alive.contains(&pod) || self.ledger.holders().values().any(|c| c.uid == uid(pod)) {
            return;
        }
        self.ledger.enter(&uid(pod), nic(pod, network));
        if self.ledger.ticket(&uid(pod)).is_none() {
            self.list();
            let ticket = tickets::ticket(&self.ledger.seats(&self.inventory), &self.given, &uid(pod));
            self.ledger.set_ticket(&uid(pod), ticket.unwrap());
        }
        let pick = match self.ledger.ticket(&uid(pod)) {
            Some(Ticket::Device { id, .. }) => match self.ledger.loan_by(id) {
                Some(loan) => Pick::Exactly(loan.vf.address),
                None => Pick::OnPf(id.pf()),
            },
            _ => Pick::Any,
        };
        let wish = Wish {
            network,
            pick,
            standby_pf: None,
        };
        self.ledger.take(&self.inventory, &claimant(pod), &wish);
        self.owe();
    }

    /// A NIC has left a pod that is over.
    fn release(&mut self, pod: u8) {
        if self.alive.contains(&pod) {
            return;
        }
        let held = self.ledger.holders();
        if let Some((vf, _)) = held.iter().find(|(_, c)| c.uid == uid(pod)) {
            self.ledger.release(*vf);
        }
        self.ledger.leave(&uid(pod));
        self.owe();
    }

    /// The agent is restarted: it knows what is in the journal.
    fn restart_agent(&mut self) {
        let networks: BTreeMap<String, Nic> = self
            .ledger
            .seats(&self.inventory)
            .into_iter()
            .map(|(uid, seat)| (uid, seat.nic))
            .collect();
        let before = std::mem::take(&mut self.ledger);
        self.ledger.set_pools(&before.pools());
        for (vf, lent) in before.lent() {
            self.ledger.lend(vf, lent);
        }
        for (vf, holder) in before.holders() {
            self.ledger.enter(&holder.uid, networks[&holder.uid].clone());
            self.ledger.restore(holder, vf);
        }
        self.list();
        self.say();
    }

    /// What may happen at any time.
    fn happen(&mut self, event: Event, networks: &mut BTreeMap<u8, &'static str>) {
        match event {
            // Each number is one pod at a time, and its NIC has left before there is another.
            Event::Admit(pod, a, fails) => {
                if !self.alive.contains(&pod) && !self.ledger.seats(&self.inventory).contains_key(&uid(pod)) {
                    let network = if a { "a" } else { "b" };
                    networks.insert(pod, network);
                    self.admit(pod, network, fails);
                }
            }
            Event::Plain(pod) => {
                if !self.alive.contains(&pod) && !self.ledger.seats(&self.inventory).contains_key(&uid(pod)) {
                    networks.insert(pod, "a");
                    self.kubelet.retain(|pod, _| self.alive.contains(pod));
                    self.alive.insert(pod);
                    self.take(pod, "a");
                }
            }
            Event::Take(pod) => {
                if let Some(network) = networks.get(&pod).copied() {
                    self.take(pod, network);
                }
            }
            Event::Over(pod) => drop(self.alive.remove(&pod)),
            Event::Release(pod) => self.release(pod),
            Event::List => {
                self.kubelet.retain(|pod, _| self.alive.contains(pod));
                self.list();
                self.settle();
            }
            Event::Say => self.say(),
            Event::RestartAgent => {
                self.kubelet.retain(|pod, _| self.alive.contains(pod));
                self.restart_agent();
            }
        }
    }

    fn pf(&self, n: usize) -> &Pf {
        &self.inventory.pfs[n]
    }

    /// No device has two pods that run, and each that has one can have a VF, once those of pods that are over are given back.
    fn check(&self) {
        let mut owners: BTreeMap<DeviceId, u8> = BTreeMap::new();
        let running = self.kubelet.iter().filter(|(pod, _)| self.alive.contains(pod));
        for (pod, given) in running {
            for (_, id) in given {
                if let Some(other) = owners.insert(*id, *pod) {
                    panic!("{id} is {other}'s and {pod}'s");
                }
            }
        }
        let holders = self.ledger.holders();
        let uids: BTreeSet<&str> = holders.values().map(|c| c.uid.as_str()).collect();
        assert_eq!(uids.len(), holders.len(), "a NIC has two VFs");
        let seats = self.ledger.seats(&self.inventory);
        for pf in &self.inventory.pfs {
            let promised = owners.iter().filter(|(id, _)| id.pf() == pf.address);
            let without = promised
                .filter(|(_, pod)| seats.get(&uid(**pod)).is_none_or(|seat| seat.vf_pf.is_none()))
                .count();
            let for_them = pf.vfs.iter().filter(|vf| match holders.get(&vf.address) {
                None => true,
                Some(holder) => !self.alive.iter().any(|pod| uid(*pod) == holder.uid),
            });
            let there = for_them.count();
            assert!(
                without <= there,
                "{without} pods are owed a VF of {}, and {there} can come",
                pf.address
            );
        }
    }
}

/// Its pod keeps the device, and others may have the VF that comes with it.
#[test]
fn a_nic_that_is_told_to_do_without_is_owed_nothing() {
    let mut node = Node::new(&[pool("blue", "*", 0)], 1);
    node.inventory.pfs.truncate(1);
    node.say();
    node.admit(1, "blue", false).unwrap();
    node.list();
    node.ledger.enter(&uid(1), nic(1, "blue"));
    let ticket = tickets::ticket(&node.ledger.seats(&node.inventory), &node.given, &uid(1));
    node.ledger.set_ticket(&uid(1), ticket.unwrap());
    node.owe();
    let other = claimant(2);
    let wish = Wish {
        network: "blue",
        pick: Pick::Any,
        standby_pf: None,
    };
    node.ledger.enter(&other.uid, nic(2, "blue"));
    node.ledger.set_ticket(&other.uid, Ticket::None);
    assert_eq!(
        node.ledger.take(&node.inventory, &other, &wish),
        None,
        "it is promised"
    );
    node.ledger.set_gives_back(&uid(1), true);
    node.owe();
    assert!(node.ledger.take(&node.inventory, &other, &wish).is_some());
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Admit(u8, bool, bool),
    Plain(u8),
    Take(u8),
    Over(u8),
    Release(u8),
    List,
    Say,
    RestartAgent,
}

fn events() -> impl Strategy<Value = Event> {
    let pod = 0..9u8;
    prop_oneof![
        5 => (pod.clone(), any::<bool>(), prop::bool::weighted(0.1)).prop_map(|(p, a, f)| Event::Admit(p, a, f)),
        1 => pod.clone().prop_map(Event::Plain),
        5 => pod.clone().prop_map(Event::Take),
        3 => pod.clone().prop_map(Event::Over),
        3 => pod.prop_map(Event::Release),
        2 => Just(Event::List),
        3 => Just(Event::Say),
        1 => Just(Event::RestartAgent),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_device_is_two_pods_and_no_promise_is_broken(
        events in prop::collection::vec(events(), 1..60),
        vfs in 1..4usize,
        together in any::<bool>(),
    ) {
        // Two networks over the same PFs, or one of them on its own.
        let pools = [pool("a", "*", 0), pool("b", if together { "*" } else { "ens1" }, 0)];
        let mut node = Node::new(&pools, vfs);
        let mut networks: BTreeMap<u8, &str> = BTreeMap::new();
        for event in events {
            node.happen(event, &mut networks);
            node.check();
        }
    }
}

fn healthy(offer: &Offer) -> Vec<(PciAddress, u16)> {
    let healthy = offer.devices.iter().filter(|device| device.healthy);
    healthy.map(|device| (device.id.pf(), device.id.slot())).collect()
}

#[test]
fn a_device_is_healthy_while_a_vf_is_free_for_it_or_a_pod_has_it() {
    let mut node = Node::new(&[pool("a", "*", 0)], 2);
    node.inventory.pfs[0].numa_node = Some(1);
    let [one, two] = [0, 1].map(|n| node.pf(n).address);
    assert_eq!(
        healthy(&node.offer("a")),
        [(one, 0), (one, 1), (two, 0), (two, 1)]
    );
    assert_eq!(node.offer("a").devices[0].numa_node, Some(1));
    assert_eq!(node.offer("a").devices[2].numa_node, None);

    // A pod that asked for nothing takes a VF: the device of its number goes.
    node.alive.insert(7);
    node.take(7, "a");
    assert_eq!(healthy(&node.offer("a")), [(one, 1), (two, 0), (two, 1)]);
    assert_eq!(node.offer("a").devices.len(), 4, "it is offered all the same");

    // A pod gets a device, and its NIC a VF.
    node.say();
    let id = node.admit(1, "a", false).unwrap();
    assert_eq!(
        node.offer("a").device(id).map(|d| (d.healthy, d.given)),
        Some((true, true))
    );
    node.take(1, "a");
    assert_eq!(healthy(&node.offer("a")).len(), 3);

    // PF and VF are gone, or hang: the pod may still start again, and nobody else gets anything.
    for pf in &mut node.inventory.pfs {
        pf.hung = Some("it hangs".into());
    }
    assert_eq!(healthy(&node.offer("a")), [(id.pf(), id.slot())]);
    node.inventory.pfs.clear();
    assert_eq!(healthy(&node.offer("a")), [(id.pf(), id.slot())]);
    assert_eq!(node.offer("a").devices.len(), 1);
}

#[test]
fn a_device_whose_pod_is_over_is_unhealthy_until_its_nic_has_left() {
    let mut node = Node::new(&[pool("a", "*", 0)], 1);
    let id = node.admit(1, "a", false).unwrap();
    node.take(1, "a");
    node.alive.remove(&1);
    node.kubelet.clear();
    assert!(
        node.offer("a").device(id).unwrap().healthy,
        "nobody has said that it is over"
    );
    node.list();
    assert!(!node.offer("a").device(id).unwrap().healthy);
    // The same where it is the kubelet that has lost its checkpoint, and the pod runs on.
    let refusal = |node: &Node| node.with_inputs(|inputs| devices::refusal(inputs, "a", id));
    assert_eq!(refusal(&node), None, "one that was asked for before waits for it");
    node.release(1);
    assert!(node.offer("a").device(id).unwrap().healthy);
}

#[test]
fn one_slot_is_not_given_by_two_networks_over_one_pf() {
    let mut node = Node::new(&[pool("a", "*", 0), pool("b", "ens0", 0)], 2);
    let ens0 = node.pf(0).address;
    let first = node.admit(1, "b", false).unwrap();
    assert_eq!(first.pf(), ens0);
    assert!(!node.offer("a").device(first).unwrap().healthy);
    // The kubelet has not heard of it yet, and asks for the same.
    let stale = node.with_inputs(|inputs| devices::refusal(inputs, "a", first));
    assert!(stale.unwrap().contains("another network"));
    // Of two VFs one is promised, whichever it will be.
    assert_eq!(healthy(&node.offer("a")).len(), 3);
    node.admit(2, "b", false).unwrap();
    let of_ens0 = |offer: &Offer| healthy(offer).iter().filter(|(pf, _)| *pf == ens0).count();
    assert_eq!(of_ens0(&node.offer("a")), 0);
    let unknown = DeviceId::new(ens0, 99).unwrap();
    for (network, id) in [("a", unknown), ("nobody's", first)] {
        let why = node.with_inputs(|inputs| devices::refusal(inputs, network, id));
        assert!(why.is_some());
    }
}

#[test]
fn a_standby_slot_needs_no_free_vf() {
    let mut node = Node::new(&[pool("a", "*", 2)], 1);
    let slots: Vec<DeviceId> = super::slots::standby(&node.inventory, &node.ledger.pools(), "a");
    assert_eq!(slots.len(), 2);
    assert_eq!(healthy(&node.offer("a")).len(), 4);
    for pod in [7, 8] {
        node.alive.insert(pod);
        node.take(pod, "a");
    }
    let expected: Vec<_> = slots.iter().map(|id| (id.pf(), id.slot())).collect();
    assert_eq!(healthy(&node.offer("a")), expected);
    // Without its PF there is no standby either.
    node.inventory.pfs[1].hung = Some("it hangs".into());
    assert_eq!(healthy(&node.offer("a")), [expected[0]]);
    let Device { given, .. } = *node.offer("a").device(slots[0]).unwrap();
    assert!(!given);
}

#[path = "groups_tests.rs"]
mod groups;
