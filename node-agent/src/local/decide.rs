//! From what files ask for to what should be here. Pure.
//!
//! | a file | the NIC |
//! |---|---|
//! | is understood | is as it says |
//! | cannot be read or understood | stays as it was: what is asked for is not known |
//! | is gone, and it is proven that this is the directory in which it was | is to go: that is the user's word |
//! | is gone, and nothing proves that | stays as it was |
//!
//! The file that says how a NIC is, is there before anything is taken for it. So its presence proves the directory, also to an agent that
//! has just been started.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use hybridnic_api::{
    conditions::reasons,
    v1alpha1::{AttachedVm, Goal, HybridNetworkSpec, NicAttachmentSpec, NodePool, ObjectRef},
};
use hybridnic_decisions::{mac, network};

use super::{
    file::{self, Asked, AskedNic},
    order,
};
use crate::{
    journal::Record,
    wants::{Want, WantId},
};

/// The namespace of all NICs of a host without a cluster.
pub const NAMESPACE: &str = "local";

/// What was read of a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    /// It asks for this, in this version.
    Asks(Asked, i64),
    /// What it asks for is not known, in this version, where that could be read; says why.
    Unknown(Option<i64>, String),
    /// It is not there, which may pass: an editor may be about to replace it.
    Missing,
    /// It is not there, and it is proven that it is no more.
    Removed,
    /// It is not there, and nothing proves that it ever was in this directory.
    Unproven,
}

/// A NIC that is here, or is to go.
#[derive(Clone, Debug, PartialEq)]
pub struct Nic {
    /// What was wanted of it last.
    pub want: Want,
}

/// What was wanted of a NIC, as the journal has it. One that was on its way out goes on.
pub fn held(record: &Record) -> Want {
    Want {
        id: WantId {
            namespace: record.namespace.clone(),
            name: record.name.clone(),
            uid: record.uid.clone(),
        },
        created: record.created,
        spec: record.spec.clone(),
        socket: record.socket.clone(),
        generation: None,
        deleting: record.spec.goal == Goal::Detached && record.spec.migration.is_none(),
        status: None,
    }
}

/// What is known of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Its name.
    pub node: String,
    /// What tells its MAC addresses from those of others.
    pub seed: String,
    /// The addresses of its PFs; `None` where they cannot be read.
    pub cards: Option<BTreeSet<String>>,
    /// The time, in seconds since the epoch.
    pub now: i64,
}

/// What a file is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A network.
    Network,
    /// A NIC.
    Nic,
    /// That has never been understood.
    Unknown,
}

/// What is said of what a file asks for: whether it is accepted, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What it is about.
    pub kind: Kind,
    /// The version of the file that this is about.
    pub generation: Option<i64>,
    /// Why it is not accepted: a reason of the API, and a sentence.
    pub refusal: Option<(&'static str, String)>,
}

/// All that is decided on.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The networks, each as it was understood last.
    pub networks: BTreeMap<String, HybridNetworkSpec>,
    /// The NICs that are here, or are to go.
    pub nics: BTreeMap<String, Nic>,
    /// What was read of each file last.
    pub readings: BTreeMap<String, Reading>,
    /// What each file asked for when it was understood last.
    pub understood: BTreeMap<String, Asked>,
    /// What migrations order.
    pub orders: BTreeMap<String, order::Reading>,
}

/// What follows.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    /// What is wanted of NICs, where that has changed.
    pub wants: Vec<Want>,
    /// What is said of each file that is there, or stands for something that is, by its object's name.
    pub said: BTreeMap<String, Verdict>,
    /// What nobody asks for, and is not here either.
    pub forgotten: Vec<String>,
}

impl Outcome {
    pub(super) fn say(
        &mut self,
        name: &str,
        kind: Kind,
        generation: Option<i64>,
        refusal: Option<(&'static str, String)>,
    ) {
        let verdict = Verdict {
            kind,
            generation,
            refusal,
        };
        self.said.insert(name.to_owned(), verdict);
    }
}

impl State {
    /// Takes in what was read of a file.
    pub fn read(&mut self, name: &str, reading: Reading) {
        if let Reading::Asks(asked, _) = &reading {
            self.understood.insert(name.to_owned(), asked.clone());
        }
        self.readings.insert(name.to_owned(), reading);
    }

    /// What a file asked for when it was understood last, where what is here still is of that.
    pub fn before(&self, name: &str) -> Option<Asked> {
        if let Some(network) = self.networks.get(name) {
            return Some(Asked::Network(Box::new(network.clone())));
        }
        let nic = self.nics.get(name).filter(|nic| !nic.want.deleting);
        nic.and_then(|_| self.understood.get(name)).cloned()
    }

    /// Whether a file asks for a NIC that is new: its address must be none of the host's cards'.
    pub fn has_new(&self) -> bool {
        let asks = |(name, reading): (&String, &Reading)| {
            matches!(reading, Reading::Asks(Asked::Nic(_), _)) && !self.nics.contains_key(name)
        };
        self.readings.iter().any(asks) || self.orders_new()
    }

    /// A NIC has left: nothing of it is here any more.
    pub fn left(&mut self, uid: &str) -> Option<String> {
        let name = self.nics.iter().find(|(_, nic)| nic.want.id.uid == uid);
        let name = name.map(|(name, _)| name.clone())?;
        self.nics.remove(&name);
        Some(name)
    }

    /// The pools that the host is part of.
    pub fn pools(&self) -> Vec<NodePool> {
        let pools = self.networks.iter();
        pools
            .map(|(name, network)| network::pool(name, network))
            .collect()
    }

    /// Decides on all. `uid` makes the uid of a NIC that is new.
    pub fn decide(&mut self, host: &Host, mut uid: impl FnMut(&str) -> String) -> Outcome {
        let mut outcome = Outcome::default();
        let readings = self.readings.clone();
        let (networks, others): (Vec<_>, Vec<_>) = readings
            .iter()
            .partition(|(name, reading)| self.is_network(name, reading));
        for (name, reading) in networks {
            self.decide_network(name, reading, &mut outcome);
        }
        let read: BTreeSet<&String> = others.iter().map(|(name, _)| *name).collect();
        let orders = self.orders.keys().filter(|name| !readings.contains_key(*name));
        let ordered: Vec<String> = orders.chain(read).cloned().collect();
        let ordered: BTreeSet<String> = ordered.into_iter().filter(|name| self.is_ordered(name)).collect();
        for name in &ordered {
            self.decide_ordered(name, host, &mut outcome);
        }
        for (name, reading) in others.into_iter().filter(|(name, _)| !ordered.contains(*name)) {
            self.decide_nic(name, reading, host, &mut uid, &mut outcome);
        }
        for name in &outcome.forgotten {
            self.readings.remove(name);
            self.understood.remove(name);
        }
        outcome
    }

    fn is_network(&self, name: &str, reading: &Reading) -> bool {
        match reading {
            Reading::Asks(asked, _) => matches!(asked, Asked::Network(_)),
            _ => self.networks.contains_key(name),
        }
    }

    fn decide_network(&mut self, name: &str, reading: &Reading, outcome: &mut Outcome) {
        let (generation, refusal) = match reading {
            Reading::Asks(Asked::Network(spec), generation) => {
                self.networks.insert(name.to_owned(), (**spec).clone());
                (Some(*generation), None)
            }
            Reading::Asks(Asked::Nic(_), _) | Reading::Missing => return,
            Reading::Unknown(generation, why) => (*generation, Some((reasons::FILE_UNKNOWN, stays(why)))),
            Reading::Unproven => (None, Some((reasons::FILE_UNKNOWN, unproven(name)))),
            Reading::Removed => {
                let nics = self.nics.values();
                let users = nics.filter(|nic| nic.want.spec.network == name);
                let users: Vec<&str> = users.map(|nic| nic.want.id.name.as_str()).collect();
                if users.is_empty() {
                    self.networks.remove(name);
                    return outcome.forgotten.push(name.to_owned());
                }
                let why = format!(
                    "its file is gone; it is kept while NICs are attached to it: {}",
                    users.join(", ")
                );
                (None, Some((reasons::NETWORK_IN_USE, why)))
            }
        };
        outcome.say(name, Kind::Network, generation, refusal);
    }

    fn decide_nic(
        &mut self,
        name: &str,
        reading: &Reading,
        host: &Host,
        uid: &mut dyn FnMut(&str) -> String,
        outcome: &mut Outcome,
    ) {
        let known = self.nics.get(name).cloned();
        let leaves = known.as_ref().is_some_and(|nic| nic.want.deleting);
        let (generation, refusal) = match (reading, known) {
            (Reading::Asks(Asked::Network(_), _) | Reading::Missing, _) => return,
            (Reading::Asks(Asked::Nic(_), generation), Some(_)) if leaves => {
                let why = "the NIC of this name that was deleted before is on its way out; this one follows";
                (
                    Some(*generation),
                    Some((reasons::WAITING_FOR_DETACH, why.to_owned())),
                )
            }
            (_, Some(nic)) if leaves => (nic.want.generation, None),
            (Reading::Asks(Asked::Nic(asked), generation), known) => {
                let want = self.want(name, asked, *generation, known.as_ref(), host, uid);
                let want = want.map(|want| self.settle(want, outcome));
                (Some(*generation), want.err())
            }
            (Reading::Unknown(generation, why), known) => {
                let kind = known.as_ref().map_or(Kind::Unknown, |_| Kind::Nic);
                let why = known.map_or_else(|| why.clone(), |_| stays(why));
                return outcome.say(name, kind, *generation, Some((reasons::FILE_UNKNOWN, why)));
            }
            (Reading::Removed, Some(nic)) => {
                let generation = nic.want.generation;
                let want = Want {
                    deleting: true,
                    ..nic.want
                };
                self.settle(want, outcome);
                (generation, None)
            }
            (Reading::Unproven, Some(nic)) => {
                (nic.want.generation, Some((reasons::FILE_UNKNOWN, unproven(name))))
            }
            (Reading::Removed | Reading::Unproven, None) => return outcome.forgotten.push(name.to_owned()),
        };
        outcome.say(name, Kind::Nic, generation, refusal);
    }

    pub(super) fn settle(&mut self, want: Want, outcome: &mut Outcome) {
        let name = want.id.name.clone();
        if self.nics.get(&name).is_none_or(|nic| nic.want != want) {
            outcome.wants.push(want.clone());
            self.nics.insert(name, Nic { want });
        }
    }

    /// What is wanted of a NIC whose file was understood.
    fn want(
        &self,
        name: &str,
        asked: &AskedNic,
        generation: i64,
        known: Option<&Nic>,
        host: &Host,
        uid: &mut dyn FnMut(&str) -> String,
    ) -> Result<Want, (&'static str, String)> {
        let network = self.networks.get(&asked.spec.network);
        let known = known.map(|nic| &nic.want);
        if let Some(known) = known {
            changed(asked, known).map_or(Ok(()), |why| Err((reasons::FILE_UNKNOWN, stays(&why))))?;
        }
        let mac = match (known, network) {
            (Some(known), _) => known.spec.mac.clone(),
            (None, Some(network)) => self.mac(name, asked, network, host)?,
            (None, None) => {
                let network = &asked.spec.network;
                let why = format!(
                    "there is no HybridNetwork {network}: make its file {}",
                    file::asking(network)
                );
                return Err((reasons::NETWORK_NOT_FOUND, why));
            }
        };
        let l2 = network::kept(
            network.map(network::l2).as_ref(),
            known.map(|known| &known.spec.l2),
        );
        let id = known.map_or_else(
            || WantId {
                namespace: NAMESPACE.to_owned(),
                name: name.to_owned(),
                uid: uid(name),
            },
            |known| known.id.clone(),
        );
        Ok(Want {
            created: known.map_or(host.now, |known| known.created),
            spec: NicAttachmentSpec {
                node_name: host.node.clone(),
                nic: ObjectRef {
                    name: name.to_owned(),
                    uid: id.uid.clone(),
                },
                vm: AttachedVm::Qemu {
                    name: asked.spec.vm.name().unwrap_or_default().to_owned(),
                },
                pod: vm(&asked.socket),
                network: asked.spec.network.clone(),
                mac,
                goal: Goal::FastPath,
                aside: asked.spec.aside(),
                no_free_vf: asked.spec.no_free_vf,
                // A device that exists has it.
                standby: known.map_or(asked.spec.standby, |known| known.spec.standby),
                pairing: known.map_or(asked.spec.pairing, |known| known.spec.pairing),
                port_instance_id: known.map_or_else(
                    || asked.spec.port_instance_id.clone(),
                    |known| known.spec.port_instance_id.clone(),
                ),
                l2,
                placement: None,
                pod_devices: None,
                migration: None,
            },
            socket: Some(asked.socket.clone()),
            generation: Some(generation),
            deleting: false,
            status: None,
            id,
        })
    }
}

/// What stands in the place of a pod: all NICs of a socket have the same VM.
pub(super) fn vm(socket: &Path) -> ObjectRef {
    let path = socket.to_string_lossy();
    ObjectRef {
        name: path.chars().take(hybridnic_api::limits::NAME).collect(),
        uid: format!("host-{:016x}", mac::hash(&[path.as_ref()])),
    }
}

/// What of a NIC has changed that cannot: an agent that was started again knows no other text of the file.
fn changed(asked: &AskedNic, known: &Want) -> Option<String> {
    let spec = &known.spec;
    if asked.spec.network != spec.network {
        return Some(format!(
            "network cannot change, and the NIC is on {}",
            spec.network
        ));
    }
    if Some(&asked.socket) != known.socket.as_ref() {
        let socket = known.socket.as_deref().unwrap_or_else(|| Path::new("")).display();
        return Some(format!("vm cannot change, and the NIC is in that of {socket}"));
    }
    if asked.spec.standby != spec.standby {
        return Some("standby cannot change while its devices are there".to_owned());
    }
    if asked.spec.pairing != spec.pairing {
        return Some("pairing cannot change while its devices are there".to_owned());
    }
    if asked.spec.port_instance_id != spec.port_instance_id {
        return Some("portInstanceId cannot change while its devices are there".to_owned());
    }
    let other = |mac: &&String| !mac.eq_ignore_ascii_case(&spec.mac);
    let mac = asked.spec.mac.as_ref().filter(other)?;
    Some(format!(
        "mac cannot change to {mac}, and the NIC has {}",
        spec.mac
    ))
}

fn unproven(name: &str) -> String {
    let file = file::asking(name);
    format!(
        "neither {file} nor what was said of it is in the directory, so nothing proves that it was deleted, and it stays as it was. Is \
         this another directory? To delete it, make the file once more and remove it then"
    )
}

fn stays(why: &str) -> String {
    format!("{why}; it stays as it was")
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
