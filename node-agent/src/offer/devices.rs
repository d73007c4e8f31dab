//! What each network offers to the kubelet, from the same table as the `HybridNode`, the ledger, and the kubelet's answer which pod has
//! which device. Pure.
//!
//! Where QEMU can be handed a VF's descriptor, a device is a slot of a PF, not a VF: which VF of its PF a NIC gets is chosen when it takes one.
//! So there are at most as many healthy devices without a pod as their PF has free VFs that are not promised to a pod that has yet to take one.
//!
//! Where the kernel has vfio groups only, QEMU opens a VF's group by its path, and a container has only nodes that it was given when it was
//! made. There a device is the VF of its slot's number: healthy as long as this very VF is free, or its pod has it.

use std::collections::{BTreeMap, BTreeSet};

use hybridnic_api::v1alpha1::{NodePool, VfState};
use hybridnic_net::{
    DeviceId, PciAddress,
    dev::VfioNodes,
    sysfs::{Inventory, Pf, Vf},
};

use super::slots;
use crate::journal::Lent;
use crate::node::{
    choice::Pick,
    ledger::Seat,
    select,
    table::{self, Sources},
    trunk,
};

/// A device of a network that was given to a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Promise {
    /// The network.
    pub network: String,
    /// The device.
    pub id: DeviceId,
    /// Namespace and name of the pod; `None` if the kubelet has asked for it and not yet said for which pod.
    pub pod: Option<(String, String)>,
}

/// What an offer is made from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// As for the table.
    pub sources: Sources<'a>,
    /// What the kubelet has given to pods.
    pub promises: &'a BTreeSet<Promise>,
    /// The NICs of the node, with the devices of their pods, by the attachment's uid.
    pub seats: &'a BTreeMap<String, Seat>,
    /// By what QEMU gets a VF on this node.
    pub nodes: VfioNodes,
}

/// A device as it is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its id.
    pub id: DeviceId,
    /// Whether the kubelet may give it to a pod, or the pod that has it may start again.
    pub healthy: bool,
    /// Whether a pod has it.
    pub given: bool,
    /// The NUMA node of its PF.
    pub numa_node: Option<u16>,
}

/// What a network offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The network.
    pub network: String,
    /// Its devices, by id.
    pub devices: Vec<Device>,
    /// PFs that no device is offered of, because no index can stand for it.
    pub left_out: Vec<PciAddress>,
}

impl Offer {
    /// A device of it.
    pub fn device(&self, id: DeviceId) -> Option<&Device> {
        self.devices.iter().find(|device| device.id == id)
    }
}

/// Which VFs are owed to how many NICs: their pods have a device, and they hold no VF of its PF and are to have one.
pub fn owed(inputs: &Inputs<'_>) -> BTreeMap<Pick, usize> {
    let mut owed = BTreeMap::new();
    for promise in inputs.promises.iter().filter(|promise| is_owed(inputs, promise)) {
        let pick = match inputs.nodes {
            VfioNodes::Functions => Some(Pick::OnPf(promise.id.pf())),
            // From the request until it is lent. A standby slot comes without one.
            VfioNodes::Groups if promise.pod.is_none() => {
                vf_of(inputs.sources.inventory, promise.id).map(|(_, vf)| Pick::Exactly(vf.address))
            }
            VfioNodes::Groups => None,
        };
        if let Some(pick) = pick {
            *owed.entry(pick).or_default() += 1;
        }
    }
    owed
}

/// The VF with the number of a device's slot; a standby slot has none.
pub fn vf_of(inventory: &Inventory, id: DeviceId) -> Option<(&Pf, &Vf)> {
    let pf = inventory.pfs.iter().find(|pf| pf.address == id.pf())?;
    Some((pf, pf.vfs.iter().find(|vf| vf.index == id.slot())?))
}

/// What each network of the node offers.
pub fn offers(inputs: &Inputs<'_>) -> Vec<Offer> {
    let pools = inputs.sources.pools.iter();
    pools.map(|pool| offer(inputs, pool)).collect()
}

/// A PF with its VFs and how these are.
type OfPf<'a> = (&'a Pf, Vec<(&'a Vf, VfState)>);

fn offer(inputs: &Inputs<'_>, pool: &NodePool) -> Offer {
    let mut by_pf: BTreeMap<PciAddress, OfPf<'_>> = BTreeMap::new();
    for (pf, vf, state) in table::of_pool(&inputs.sources, pool) {
        by_pf
            .entry(pf.address)
            .or_insert_with(|| (pf, vec![]))
            .1
            .push((vf, state));
    }
    let mut devices = BTreeMap::new();
    let mut left_out = vec![];
    for (address, (pf, mut vfs)) in by_pf {
        let free = vfs.iter().filter(|(_, state)| *state == VfState::Free).count();
        let mut spare = free.saturating_sub(owed_of(inputs, pool, pf));
        // A slot with the number of a free VF comes first, so that what is offered and what is free look alike.
        vfs.sort_by_key(|(vf, state)| (*state != VfState::Free, vf.index));
        for (vf, state) in vfs {
            let Some(id) = DeviceId::new(address, vf.index) else {
                left_out.push(address);
                break;
            };
            let healthy = match standing(inputs, pool, id) {
                Standing::Given => true,
                Standing::Taken => false,
                Standing::Open if inputs.nodes == VfioNodes::Groups => state == VfState::Free,
                Standing::Open => {
                    let healthy = spare > 0;
                    spare -= usize::from(healthy);
                    healthy
                }
            };
            devices.insert(id, healthy);
        }
    }
    for id in slots::standby(inputs.sources.inventory, inputs.sources.pools, &pool.network) {
        let carries = || {
            let pf = inputs
                .sources
                .inventory
                .pfs
                .iter()
                .find(|pf| pf.address == id.pf());
            pf.is_some_and(|pf| {
                select::pf_problem(pf).is_none()
                    && trunk::problem(inputs.sources.pools, pool, pf).is_none()
                    && !inputs.sources.draining.keeps_free(pool, pf)
            })
        };
        let healthy = match standing(inputs, pool, id) {
            Standing::Given => true,
            Standing::Taken => false,
            Standing::Open => carries(),
        };
        devices.insert(id, healthy);
    }
    // A pod that has one may start again, no matter what has become of its PF: otherwise the kubelet would refuse it.
    let given: BTreeSet<DeviceId> = given(inputs, &pool.network).collect();
    for id in &given {
        devices.insert(*id, true);
    }
    let numa_node = |id: DeviceId| {
        let pf = inputs
            .sources
            .inventory
            .pfs
            .iter()
            .find(|pf| pf.address == id.pf());
        pf?.numa_node.and_then(|node| u16::try_from(node).ok())
    };
    Offer {
        network: pool.network.clone(),
        devices: devices
            .into_iter()
            .map(|(id, healthy)| Device {
                id,
                healthy,
                given: given.contains(&id),
                numa_node: numa_node(id),
            })
            .collect(),
        left_out,
    }
}

/// How it stands with a device.
enum Standing {
    /// A pod has it.
    Given,
    /// A pod has it through another network over the same PF, or it is still used by a NIC whose pod the kubelet no longer knows.
    Taken,
    /// No pod has it.
    Open,
}

fn standing(inputs: &Inputs<'_>, pool: &NodePool, id: DeviceId) -> Standing {
    if given(inputs, &pool.network).any(|given| given == id) {
        Standing::Given
    } else if inputs.promises.iter().any(|promise| promise.id == id)
        || inputs.seats.values().any(|seat| seat.device() == Some(id))
    {
        Standing::Taken
    } else {
        Standing::Open
    }
}

fn given<'a>(inputs: &'a Inputs<'_>, network: &'a str) -> impl Iterator<Item = DeviceId> {
    let of_network = inputs.promises.iter().filter(move |p| p.network == network);
    of_network.map(|promise| promise.id)
}

/// How many of this network's VFs on a PF are owed. Another network's pods may take those that it selects too.
fn owed_of(inputs: &Inputs<'_>, pool: &NodePool, pf: &Pf) -> usize {
    let shares = |network: &str| {
        let other = inputs.sources.pools.iter().find(|other| other.network == network);
        // If a network is no longer here, it is not known which VFs it had.
        other.is_none_or(|other| {
            pf.vfs.iter().any(|vf| {
                select::selects_vf(&other.uplinks, pf, vf) && select::selects_vf(&pool.uplinks, pf, vf)
            })
        })
    };
    let of_pf = inputs
        .promises
        .iter()
        .filter(|promise| promise.id.pf() == pf.address);
    of_pf
        .filter(|promise| shares(&promise.network) && is_owed(inputs, promise))
        .count()
}

/// Whether the pod has no NIC that holds a VF of the PF for this device, or is told to do without.
fn is_owed(inputs: &Inputs<'_>, promise: &Promise) -> bool {
    let Some((namespace, pod)) = &promise.pod else {
        return true;
    };
    !inputs.seats.values().any(|seat| {
        seat.nic.namespace == *namespace
            && seat.nic.pod == *pod
            && seat.nic.network == promise.network
            && seat.device() == Some(promise.id)
            && (seat.vf_pf == Some(promise.id.pf()) || seat.gives_back)
    })
}

/// Why the kubelet may not give a device to a pod although it asks to: its list of devices is older than the present state.
pub fn refusal(inputs: &Inputs<'_>, network: &str, id: DeviceId) -> Option<String> {
    let Some(pool) = inputs.sources.pools.iter().find(|pool| pool.network == network) else {
        return Some(format!("the network {network} is not on this node"));
    };
    let offer = offer(inputs, pool);
    let Some(device) = offer.device(id) else {
        return Some(format!("the network {network} has no device {id} on this node"));
    };
    if (inputs.sources.draining.drain).covers(network, &id.pf().to_string()) {
        return Some(format!("the PF {} is drained", id.pf()));
    }
    if device.healthy {
        return None;
    }
    if inputs.promises.iter().any(|promise| promise.id == id) {
        return Some(format!(
            "another pod has just got {id} by another network over the same PF"
        ));
    }
    if inputs.nodes == VfioNodes::Groups {
        return of_group(inputs, id);
    }
    let mut leaving = inputs.seats.values().filter(|seat| seat.device() == Some(id));
    if leaving.any(|seat| seat.vf_pf == Some(id.pf())) {
        // The kubelet says that its pod is over, and the next one gets that NIC's VF when it has left.
        return None;
    }
    Some(format!(
        "no VF of the PF {} is free that is not promised to another pod",
        id.pf()
    ))
}

/// The same of a device that is a VF.
fn of_group(inputs: &Inputs<'_>, id: DeviceId) -> Option<String> {
    let Some((_, vf)) = vf_of(inputs.sources.inventory, id) else {
        return Some(format!("{id} is not there"));
    };
    if let Some(holder) = inputs.sources.holders.get(&vf.address) {
        return Some(format!(
            "the NIC {} has the VF {}, which is {id}",
            holder.nic, vf.address
        ));
    }
    match inputs.sources.lent.get(&vf.address) {
        // Its pod is over, and its VF can go to the next one as it is.
        Some(Lent::Known(loan)) if loan.device == id => None,
        Some(lent) => Some(format!("of the VF {}, which is {id}, {lent}", vf.address)),
        None => Some(format!("the VF {}, which is {id}, is not free", vf.address)),
    }
}

/// Whether a device that is a VF still has a NIC: its pod may be over, and the NIC has not left yet.
pub fn has_nic(inputs: &Inputs<'_>, id: DeviceId) -> bool {
    let vf = vf_of(inputs.sources.inventory, id);
    inputs.seats.values().any(|seat| seat.device() == Some(id))
        || vf.is_some_and(|(_, vf)| inputs.sources.holders.contains_key(&vf.address))
}
