//! What a migration asks of a NIC, in a file beside the NIC's own: `NAME.order.json`. Pure.
//!
//! As long as there is an order, the NIC is as that says, and its file counts again when the order says that the migration is over. An
//! order that is gone without that says nothing: the NIC stays as it was.

use std::path::{Component, Path, PathBuf};

use hybridnic_api::{
    conditions::reasons,
    v1alpha1::{AttachedVm, L2Settings, NicAttachmentSpec, NicAttachmentStatus},
};
use hybridnic_decisions::{mac::Mac, network};
use serde::{Deserialize, Serialize};

use super::{
    decide::{Host, Kind, NAMESPACE, Outcome, State, vm},
    file,
};
use crate::wants::{Want, WantId};

/// How the name of a file ends that has an order.
const END: &str = ".order.json";

/// The NIC that a file orders something of, by the file's name.
pub fn object(file: &str) -> Option<&str> {
    file.strip_suffix(END).filter(|name| !name.starts_with('.'))
}

/// The file that has the order of a NIC.
pub fn file(name: &str) -> String {
    format!("{name}{END}")
}

/// An order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Order {
    /// The uid of the migration.
    pub migration: String,
    /// Which start of its driver has written it: one that is late must not write over that of a later one.
    pub session: u64,
    /// Which order of the NIC's it is, so that no two are the same.
    pub serial: u64,
    /// What it says.
    pub says: Says,
}

/// What an order says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Says {
    /// The NIC is to be like this.
    Be(Box<Be>),
    /// The migration is over: the NIC is as its file says, and is to go where it has none.
    Over,
}

/// What a NIC is to be like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Be {
    /// The QMP socket of its VM's QEMU on this host.
    pub socket: PathBuf,
    /// As an operator says it.
    pub spec: NicAttachmentSpec,
}

/// How a NIC is, as the agent says it beside what it says to people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attached {
    /// Which version of what is wanted this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// Whether it is to go.
    #[serde(default)]
    pub deleting: bool,
    /// The QMP socket of its VM's QEMU.
    pub socket: PathBuf,
    /// What is wanted.
    pub spec: NicAttachmentSpec,
    /// How it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<NicAttachmentStatus>,
}

/// What was read of an order.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    /// It says this, in this version.
    Says(Box<Order>, i64),
    /// It is there, and what it says is not known; why.
    Unknown(String),
}

/// Reads an order.
pub fn parse(text: &str) -> Reading {
    match serde_json::from_str(text) {
        Ok(order) => Reading::Says(Box::new(order), file::generation(text)),
        Err(error) => Reading::Unknown(format!("it cannot be understood: {error}")),
    }
}

/// Whether it is a path on which all agree.
pub fn is_whole(socket: &Path) -> bool {
    let is_plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    socket.is_absolute() && socket.components().all(is_plain) && socket.file_name().is_some()
}

type Refusal = (&'static str, String);

impl State {
    /// Whether an order decides on a NIC, and not its file.
    pub(super) fn is_ordered(&self, name: &str) -> bool {
        let known = self.nics.get(name).map(|nic| &nic.want);
        match self.orders.get(name) {
            // One that leaves goes on, and what is ordered of its namesake follows.
            _ if known.is_some_and(|known| known.deleting) => false,
            Some(Reading::Says(order, _)) => order.says != Says::Over,
            Some(Reading::Unknown(_)) => true,
            None => known.is_some_and(|known| known.spec.migration.is_some()),
        }
    }

    /// Whether an order asks for a NIC that is new.
    pub(super) fn orders_new(&self) -> bool {
        let mut names = self.orders.keys();
        names.any(|name| self.is_ordered(name) && !self.nics.contains_key(name))
    }

    /// Decides on a NIC by its order.
    pub(super) fn decide_ordered(&mut self, name: &str, host: &Host, outcome: &mut Outcome) {
        let refused = |why: String| (None, Some((reasons::FILE_UNKNOWN, why)));
        let order = file(name);
        let (generation, refusal) = match self.orders.get(name).cloned() {
            None => refused(format!(
                "{order} is gone, and did not say that the migration is over; the NIC stays as it was. Say `ctl migrate` once more where \
                 that was begun"
            )),
            Some(Reading::Unknown(why)) => refused(format!("{order}: {why}; the NIC stays as it was")),
            Some(Reading::Says(order, generation)) => match order.says {
                Says::Over => return,
                Says::Be(be) => {
                    let want = self.ordered(name, *be, generation, host);
                    let want = want.map(|want| self.settle(want, outcome));
                    (Some(generation), want.err())
                }
            },
        };
        outcome.say(name, Kind::Nic, generation, refusal);
    }

    /// What is wanted of a NIC by its order.
    fn ordered(&self, name: &str, be: Be, generation: i64, host: &Host) -> Result<Want, Refusal> {
        let Be { socket, spec } = be;
        let unknown = |why: &str| (reasons::FILE_UNKNOWN, format!("{}: {why}", file(name)));
        if spec.nic.name != name || spec.nic.uid.is_empty() || !is_whole(&socket) {
            return Err(unknown(
                "it is not for this NIC, or does not name the socket of its VM",
            ));
        }
        let AttachedVm::Qemu { .. } = spec.vm else {
            return Err(unknown("the VM is no QEMU of this host"));
        };
        let known = self.nics.get(name).map(|nic| &nic.want);
        match known {
            Some(known) => {
                let same = known.id.uid == spec.nic.uid
                    && known.socket.as_ref() == Some(&socket)
                    && known.spec.network == spec.network
                    && known.spec.mac == spec.mac
                    && known.spec.standby == spec.standby
                    && known.spec.pairing == spec.pairing
                    && known.spec.port_instance_id == spec.port_instance_id;
                if !same {
                    return Err(unknown(
                        "there is another NIC of this name, which stays as it was",
                    ));
                }
            }
            None => self.check_new(&spec, host)?,
        }
        Ok(Want {
            id: WantId {
                namespace: NAMESPACE.to_owned(),
                name: name.to_owned(),
                uid: spec.nic.uid.clone(),
            },
            created: known.map_or(host.now, |known| known.created),
            spec: NicAttachmentSpec {
                node_name: host.node.clone(),
                pod: vm(&socket),
                ..spec
            },
            socket: Some(socket),
            generation: Some(generation),
            deleting: false,
            status: None,
        })
    }

    /// Whether a NIC that comes from another host can come.
    fn check_new(&self, spec: &NicAttachmentSpec, host: &Host) -> Result<(), Refusal> {
        let name = &spec.network;
        let Some(settings) = self.networks.get(name) else {
            let why = format!(
                "there is no HybridNetwork {name} on {}: make its file {}",
                host.node,
                file::asking(name)
            );
            return Err((reasons::NETWORK_NOT_FOUND, why));
        };
        let other = differing(&spec.l2, &network::l2(settings));
        if !other.is_empty() {
            let why = format!(
                "the HybridNetwork {name} of {} is not that of the NIC: it has another {}",
                host.node,
                other.join(", another ")
            );
            return Err((reasons::FILE_UNKNOWN, why));
        }
        let Some(cards) = &host.cards else {
            let why = "the host's PFs cannot be read, and none of their addresses may be the NIC's";
            return Err((reasons::VF_UNKNOWN, why.to_owned()));
        };
        if cards.contains(&spec.mac) {
            let why = format!("{} is the address of a PF of {}", spec.mac, host.node);
            return Err((reasons::MAC_NOT_ALLOWED, why));
        }
        let mac = |text: &str| text.parse::<Mac>().ok();
        let holds = |want: &&Want| mac(&want.spec.mac) == mac(&spec.mac) || want.id.uid == spec.nic.uid;
        match self.nics.values().map(|nic| &nic.want).find(holds) {
            Some(other) => {
                let why = format!("the NIC {} of {} has its address", other.id.name, host.node);
                Err((reasons::MAC_CONFLICT, why))
            }
            None => Ok(()),
        }
    }
}

/// The settings without which a VM would be cut off, or in another network, where a network only has the same name.
fn differing(nic: &L2Settings, here: &L2Settings) -> Vec<&'static str> {
    let settings = [
        ("vlan", nic.vlan != here.vlan),
        ("portProfile", nic.port_profile != here.port_profile),
        ("mtu", nic.mtu != here.mtu),
        ("macvtapMode", nic.macvtap_mode != here.macvtap_mode),
        ("trust", nic.trust != here.trust),
    ];
    let other = settings.into_iter().filter(|(_, differs)| *differs);
    other.map(|(name, _)| name).collect()
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
