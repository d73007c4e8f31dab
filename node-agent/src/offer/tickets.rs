//! Which NIC uses which of its pod's devices. Pure.
//!
//! The kubelet names a pod's devices, but not which is for which NIC; those of one PF are equally good. A NIC that
//! has a VF or a standby gets one of that PF, and the others take what is left. A VF that was lent to the pod has its own device.

use std::collections::{BTreeMap, BTreeSet};

use hybridnic_net::DeviceId;

use super::devices::Promise;
use crate::node::ledger::{Nic, Seat, Ticket};

/// What a NIC without a ticket gets. `seats` are those of all NICs.
pub fn ticket(seats: &BTreeMap<String, Seat>, promises: &BTreeSet<Promise>, uid: &str) -> Option<Ticket> {
    let seat = seats.get(uid)?;
    let beside = |other: &&Seat| is_beside(&seat.nic, &other.nic);
    let used = seats
        .values()
        .filter(beside)
        .flat_map(|seat| [seat.device(), seat.lent]);
    let used: BTreeSet<DeviceId> = used.flatten().collect();
    let of_pod = |promise: &&Promise| {
        let pod = promise.pod.as_ref();
        promise.network == seat.nic.network
            && pod.is_some_and(|(namespace, pod)| *namespace == seat.nic.namespace && *pod == seat.nic.pod)
    };
    if let Some(id) = seat.lent
        && promises.iter().filter(of_pod).any(|promise| promise.id == id)
    {
        return Some(Ticket::Device { id, tied: false });
    }
    let left = promises
        .iter()
        .filter(of_pod)
        .map(|promise| promise.id)
        .filter(|id| !used.contains(id));
    let pf = seat.vf_pf.or(seat.standby_pf);
    let mut left = left.filter(|id| pf.is_none_or(|pf| id.pf() == pf));
    Some(
        left.next()
            .map_or(Ticket::None, |id| Ticket::Device { id, tied: false }),
    )
}

/// Whether the other one is a NIC of the same pod in the same network.
fn is_beside(nic: &Nic, other: &Nic) -> bool {
    nic.pod_uid == other.pod_uid && nic.network == other.network
}

#[cfg(test)]
mod tests {
    use hybridnic_net::PciAddress;

    use super::*;

    fn id(pf: u8, slot: u16) -> DeviceId {
        DeviceId::new(PciAddress::new(0, pf, 0, 0).unwrap(), slot).unwrap()
    }

    fn seat(pod: &str, vf_pf: Option<u8>) -> Seat {
        Seat {
            nic: Nic {
                namespace: "ns".into(),
                pod: pod.into(),
                pod_uid: format!("uid of {pod}"),
                network: "net".into(),
            },
            ticket: None,
            vf_pf: vf_pf.map(|pf| id(pf, 0).pf()),
            lent: None,
            gives_back: false,
            standby_pf: None,
        }
    }

    fn promise(pod: &str, network: &str, id: DeviceId) -> Promise {
        Promise {
            network: network.into(),
            id,
            pod: Some(("ns".into(), pod.into())),
        }
    }

    #[test]
    fn each_nic_of_a_pod_gets_one_of_its_devices_and_of_its_own_pf() {
        let promises = BTreeSet::from([
            promise("vm", "net", id(1, 4)),
            promise("vm", "net", id(2, 0)),
            promise("vm", "other", id(1, 9)),
            promise("another", "net", id(1, 5)),
        ]);
        let mut seats = BTreeMap::from([
            ("a".to_owned(), seat("vm", None)),
            ("b".to_owned(), seat("vm", None)),
            ("has one".to_owned(), seat("vm", Some(1))),
            ("asks for none".to_owned(), seat("plain", None)),
        ]);
        let mut give = |uid: &str| {
            let ticket = ticket(&seats, &promises, uid);
            seats.get_mut(uid).unwrap().ticket = ticket;
            seats[uid].device()
        };
        assert_eq!(give("has one"), Some(id(1, 4)));
        assert_eq!(give("a"), Some(id(2, 0)));
        assert_eq!(give("b"), None, "the pod has asked for two");
        assert_eq!(give("asks for none"), None);
        assert_eq!(ticket(&seats, &promises, "nobody"), None);
    }

    #[test]
    fn a_nic_on_a_vf_that_was_lent_has_the_device_of_that_vf() {
        let promises = BTreeSet::from([promise("vm", "net", id(1, 0)), promise("vm", "net", id(1, 3))]);
        let on = |slot| Seat {
            lent: Some(id(1, slot)),
            ..seat("vm", Some(1))
        };
        let device = |slot| {
            Some(Ticket::Device {
                id: id(1, slot),
                tied: false,
            })
        };
        let seats = BTreeMap::from([("a".to_owned(), on(3)), ("b".to_owned(), seat("vm", None))]);
        assert_eq!(ticket(&seats, &promises, "a"), device(3));
        assert_eq!(
            ticket(&seats, &promises, "b"),
            device(0),
            "it is not the other one's"
        );
        // The kubelet has lost its checkpoint.
        let gone = BTreeSet::from([promise("vm", "net", id(1, 0))]);
        let seats = BTreeMap::from([("a".to_owned(), on(3))]);
        assert_eq!(ticket(&seats, &gone, "a"), device(0));
    }
}
