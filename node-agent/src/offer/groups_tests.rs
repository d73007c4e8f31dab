//! The same where the kernel has vfio groups only, and a device is a VF.

use super::*;
use crate::journal::{Lent, Loan, VfRecord, tests::held_vf};

/// A VF that is lent, as the journal has it.
pub(super) fn loan(id: DeviceId, vf: PciAddress) -> Lent {
    let vf = VfRecord {
        address: vf,
        index: id.slot(),
        pf: id.pf(),
        ..held_vf(0, 0)
    };
    Lent::Known(Box::new(Loan::new(id, "a", L2Settings::default(), vf)))
}

impl Node {
    fn by_groups(pools: &[NodePool], vfs: usize) -> Self {
        let mut node = Self::new(pools, vfs);
        node.nodes = VfioNodes::Groups;
        node.say();
        node
    }

    fn vf(&self, id: DeviceId) -> PciAddress {
        devices::vf_of(&self.inventory, id).unwrap().1.address
    }

    fn refusal(&self, network: &str, id: DeviceId) -> Option<String> {
        self.with_inputs(|inputs| devices::refusal(inputs, network, id))
    }

    /// What no pod has any more goes back.
    pub(super) fn settle(&mut self) {
        for (vf, lent) in self.ledger.lent() {
            let Lent::Known(loan) = lent else { continue };
            let used = self.with_inputs(|inputs| {
                inputs.promises.iter().any(|promise| promise.id == loan.device)
                    || inputs
                        .seats
                        .values()
                        .any(|seat| seat.device() == Some(loan.device))
            });
            if !used && !self.ledger.holders().contains_key(&vf) {
                self.ledger.unlend(vf);
            }
        }
    }

    /// No VF has two owners: a pod that has its group, and a NIC of another one.
    fn check_groups(&self) {
        let (holders, seats) = (self.ledger.holders(), self.ledger.seats(&self.inventory));
        let mut owners: BTreeMap<PciAddress, u8> = BTreeMap::new();
        let running = self.kubelet.iter().filter(|(pod, _)| self.alive.contains(pod));
        for (pod, given) in running {
            for (_, id) in given {
                let Some((_, vf)) = devices::vf_of(&self.inventory, *id) else {
                    continue;
                };
                let other = owners.insert(vf.address, *pod);
                assert_eq!(other, None, "two pods have the group of {}", vf.address);
                let holder = holders.get(&vf.address);
                assert!(
                    holder.is_none_or(|holder| holder.uid == uid(*pod)),
                    "{} is {pod}'s, and {holder:?} holds it",
                    vf.address
                );
                assert!(
                    self.ledger.is_lent(vf.address),
                    "nobody knows that {} is lent",
                    vf.address
                );
            }
        }
        for (uid, seat) in &seats {
            if let (Some(lent), Some(device)) = (seat.lent, seat.device()) {
                assert_eq!(lent, device, "{uid} is on a VF that came with another device");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_vf_whose_group_a_pod_has_is_anybody_elses(
        events in prop::collection::vec(events(), 1..60),
        vfs in 1..4usize,
        together in any::<bool>(),
    ) {
        let pools = [pool("a", "*", 1), pool("b", if together { "*" } else { "ens1" }, 0)];
        let mut node = Node::by_groups(&pools, vfs);
        let mut networks: BTreeMap<u8, &str> = BTreeMap::new();
        for event in events {
            node.happen(event, &mut networks);
            node.check_groups();
        }
    }
}

#[test]
fn a_device_is_the_vf_of_its_number() {
    let mut node = Node::by_groups(&[pool("a", "*", 1)], 2);
    let [one, two] = [0, 1].map(|n| node.pf(n).address);
    let slot = super::super::slots::standby(&node.inventory, &node.ledger.pools(), "a")[0];
    let all = [(one, 0), (one, 1), (one, slot.slot()), (two, 0), (two, 1)];
    assert_eq!(healthy(&node.offer("a")), all);

    // A pod that asked for nothing takes the first VF: its device goes, and no other.
    node.alive.insert(7);
    node.take(7, "a");
    let [(taken, _)] = node.ledger.holders().into_iter().collect::<Vec<_>>()[..] else {
        panic!("it holds not one")
    };
    let of_taken = |offer: &Offer| {
        let unhealthy = offer.devices.iter().filter(|device| !device.healthy);
        unhealthy.map(|device| node.vf(device.id)).collect::<Vec<_>>()
    };
    assert_eq!(of_taken(&node.offer("a")), [taken]);

    // One that has a device gets the VF of its number, though others are as good.
    node.say();
    let id = node.admit(1, "a", false).unwrap();
    let vf = node.vf(id);
    node.take(1, "a");
    assert_eq!(node.ledger.holders()[&vf].uid, uid(1));
    // It gives the VF back, and nobody else gets it.
    node.ledger.release(vf);
    for pod in 2..9 {
        node.alive.insert(pod);
        node.take(pod, "a");
    }
    assert!(!node.ledger.holders().contains_key(&vf));
    // An older NIC waits for any, and this one is not for it.
    let any = Wish {
        network: "a",
        pick: Pick::Any,
        standby_pf: None,
    };
    node.ledger.enter("old", nic(0, "a"));
    node.ledger.set_ticket("old", Ticket::None);
    assert!(!node.ledger.offers(&node.inventory, &claimant(0), &any));
    node.take(1, "a");
    assert_eq!(node.ledger.holders()[&vf].uid, uid(1));
}

#[test]
fn a_vf_is_the_next_pods_only_when_its_nic_has_left() {
    let mut node = Node::by_groups(&[pool("a", "ens0", 0)], 1);
    let id = node.admit(1, "a", false).unwrap();
    node.take(1, "a");
    node.alive.remove(&1);
    node.kubelet.clear();
    node.list();
    assert!(!node.offer("a").device(id).unwrap().healthy);
    let why = node.refusal("a", id).unwrap();
    assert!(why.contains("the NIC ns/1 has the VF"), "{why}");
    node.release(1);
    // It is still with vfio, and can be lent again as it is; for a pod that is to be placed it is not there before it is given back.
    assert_eq!(node.refusal("a", id), None);
    assert!(!node.offer("a").device(id).unwrap().healthy);
    node.settle();
    assert!(node.offer("a").device(id).unwrap().healthy);
}

#[test]
fn a_loan_that_cannot_be_read_keeps_its_vf_from_everybody() {
    let mut node = Node::by_groups(&[pool("a", "ens0", 0)], 1);
    let id = DeviceId::new(node.pf(0).address, 0).unwrap();
    node.ledger
        .lend(node.vf(id), Lent::Unreadable("it is empty".into()));
    assert_eq!(healthy(&node.offer("a")), []);
    assert!(node.refusal("a", id).unwrap().contains("it is empty"));
    node.alive.insert(1);
    node.take(1, "a");
    assert!(node.ledger.holders().is_empty());
    node.settle();
    assert!(node.ledger.is_lent(node.vf(id)));
}
