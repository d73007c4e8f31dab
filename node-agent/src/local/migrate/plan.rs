//! What follows for both ends, and for the migration, from what both say. Pure: the decisions are those of [`hybridnic_flight`], by which
//! an operator drives a `QemuMigration`. Here two hosts are put in its words, and its answers in those of files.
//!
//! A QEMU stands for a pod. A pod is never seen to be gone here: what is left of a QEMU only its agent says.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hybridnic_api::{
    names::attachment_name,
    v1alpha1::{
        Decision, MigrationPhase, NicAttachment, NicAttachmentSpec, ObjectRef, QemuMigration,
        QemuMigrationSpec, QemuMigrationStatus, VmHybridNic, VmHybridNicSpec, VmHybridNicStatus,
    },
};
use hybridnic_flight::{
    desired::{self, Place, desired_attachments},
    migration::{
        encryption::Encryption,
        inputs::{Deadlines, Inputs, NicInputs},
        phases::Waits,
        step::{Step, step},
    },
    moves::{Move, Outcome, Stage, ends::Ends, qemu},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Pod, PodSpec, PodStatus},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use serde::{Deserialize, Serialize};

use super::{
    super::{
        decide::{NAMESPACE, vm},
        order::{Be, Order, Says},
    },
    hand::{Command, Seen, SeenNic},
    reach::AWAY,
};

/// An end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
pub enum Side {
    /// Where the VM comes from: this host.
    Source,
    /// Where it goes to.
    Target,
}

/// Where an end's QEMU is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// The host's name.
    pub node: String,
    /// The QMP socket of its QEMU.
    pub socket: PathBuf,
    /// Target: the address to which the VM is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// A NIC of the VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Nic {
    /// What its file at the source asked for when the migration began.
    pub spec: VmHybridNicSpec,
    /// The text of the file that it gets at the target.
    pub there: String,
    /// Its uid.
    pub uid: String,
    /// Its address.
    pub mac: String,
}

/// A migration, as it is kept in the source's directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flight {
    /// Its uid.
    pub uid: String,
    /// Its VM's name.
    pub vm: String,
    /// When it was asked for.
    pub created: Timestamp,
    /// How often its driver has been started.
    pub session: u64,
    /// Whether it was called off.
    pub cancelled: bool,
    /// A person's word on where the VM goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// Where the VM comes from.
    pub source: End,
    /// Where it goes to.
    pub target: End,
    /// All NICs of the VM.
    pub nics: BTreeMap<String, Nic>,
    /// Whether the VM is sent encrypted.
    pub encryption: String,
    /// How far it is.
    pub status: QemuMigrationStatus,
    /// The target's host, as the user calls it.
    pub host: String,
    /// What runs a command there.
    pub connect: String,
    /// The agent's directory there.
    pub dir: PathBuf,
    /// The agent's program there.
    #[serde(default = "agent")]
    pub agent: String,
}

/// What the agent's program is called where nobody says otherwise.
pub(super) fn agent() -> String {
    "hybridnic-agent".to_owned()
}

/// What is known of both ends. Of the target, what was seen last; nothing before that.
#[derive(Clone, Copy, Debug)]
pub struct Both<'a> {
    /// The source.
    pub source: &'a Seen,
    /// The target.
    pub target: Option<&'a Seen>,
    /// For how long each try to reach the target has failed; nothing while it is reached, or was not tried yet.
    pub failing_for: Option<Duration>,
}

impl<'a> Both<'a> {
    /// Whether the target cannot be reached, and not just now.
    pub fn is_away(&self) -> bool {
        self.failing_for.is_some_and(|failing| failing >= AWAY)
    }

    pub(super) fn nic(&self, side: Side, name: &str) -> Option<&'a SeenNic> {
        let seen = match side {
            Side::Source => Some(self.source),
            Side::Target => self.target,
        };
        seen?.nics.get(name)
    }
}

/// How the driver goes about it.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How long to wait.
    pub deadlines: Deadlines,
    /// Whether the VM is sent encrypted.
    pub encryption: Encryption,
}

impl Flight {
    fn end(&self, side: Side) -> &End {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    /// What stands for the pod of an end: both hosts may have a socket of the same path.
    pub(super) fn pod(&self, side: Side) -> ObjectRef {
        let end = self.end(side);
        let word = match side {
            Side::Source => "source",
            Side::Target => "target",
        };
        let local = vm(&end.socket);
        ObjectRef {
            name: format!("{}:{}", end.node, local.name),
            uid: format!("{word}-{}", local.uid),
        }
    }

    /// How its object is called: as the first of its NICs.
    pub fn name(&self) -> String {
        self.nics.keys().next().cloned().unwrap_or_default()
    }

    /// The command that goes on with it on this host, where the agent's directory is `dir`. How the target is reached is kept.
    pub fn command(&self, dir: &Path) -> String {
        let nics: Vec<&str> = self.nics.keys().map(String::as_str).collect();
        format!(
            "hybridnic-agent ctl --dir {} migrate {}",
            dir.display(),
            nics.join(" ")
        )
    }

    fn metadata(&self, name: &str, uid: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            uid: Some(uid.to_owned()),
            generation: Some(1),
            creation_timestamp: Some(Time(self.created)),
            ..ObjectMeta::default()
        }
    }

    /// As an operator sees it.
    pub fn migration(&self) -> QemuMigration {
        let mut metadata = self.metadata(&self.name(), &self.uid);
        metadata.deletion_timestamp = self.cancelled.then_some(Time(self.created));
        QemuMigration {
            metadata,
            spec: QemuMigrationSpec {
                vm: self.vm.clone(),
                target_pod: Some(self.pod(Side::Target).name),
                decision: self.decision,
            },
            status: Some(self.status.clone()),
        }
    }

    /// What stands for the pods.
    fn pods(&self) -> Vec<Arc<Pod>> {
        let pod = |side| {
            let (of, end) = (self.pod(side), self.end(side));
            Arc::new(Pod {
                metadata: self.metadata(&of.name, &of.uid),
                spec: Some(PodSpec {
                    node_name: Some(end.node.clone()),
                    ..PodSpec::default()
                }),
                status: Some(PodStatus {
                    phase: Some("Running".to_owned()),
                    pod_ip: end.address.clone(),
                    ..PodStatus::default()
                }),
            })
        };
        vec![pod(Side::Source), pod(Side::Target)]
    }

    /// A NIC's attachment at an end, as an operator sees it: what was ordered, and what the agent says.
    fn attachment(&self, both: Both<'_>, side: Side, name: &str) -> Option<NicAttachment> {
        let nic = both.nic(side, name)?;
        let uid = &self.nics.get(name)?.uid;
        let attached = nic
            .attached
            .as_ref()
            .filter(|attached| attached.spec.nic.uid == *uid);
        // What the target's agent does not take up is not there.
        if side == Side::Target && attached.is_none() && nic.refusal.is_some() {
            return None;
        }
        let ordered = nic
            .order
            .as_ref()
            .filter(|(order, _)| order.migration == self.uid);
        let ordered = ordered.and_then(|(order, version)| match &order.says {
            Says::Be(be) => Some((be.spec.clone(), Some(*version))),
            Says::Over => None,
        });
        let (mut spec, generation) =
            ordered.or_else(|| attached.map(|attached| (attached.spec.clone(), attached.generation)))?;
        spec.pod = self.pod(side);
        spec.node_name.clone_from(&self.end(side).node);
        let mut metadata = self.metadata(&attachment_name(name, &spec.pod.uid), &format!("{uid}-{side}"));
        metadata.generation = generation;
        metadata.deletion_timestamp = attached
            .is_some_and(|attached| attached.deleting)
            .then_some(Time(self.created));
        Some(NicAttachment {
            metadata,
            spec,
            status: attached.and_then(|attached| attached.status.clone()),
        })
    }

    pub(super) fn attachments(&self, both: Both<'_>, name: &str) -> Vec<Arc<NicAttachment>> {
        let sides = [Side::Source, Side::Target].into_iter();
        sides
            .filter_map(|side| self.attachment(both, side, name))
            .map(Arc::new)
            .collect()
    }

    fn all_attachments(&self, both: Both<'_>) -> Vec<Arc<NicAttachment>> {
        self.nics
            .keys()
            .flat_map(|name| self.attachments(both, name))
            .collect()
    }

    /// A NIC, as an operator sees it.
    fn nic(&self, both: Both<'_>, name: &str, nic: &Nic) -> VmHybridNic {
        let mut metadata = self.metadata(name, &nic.uid);
        let begun = self.status.phase != MigrationPhase::Pending;
        // Of what nothing is said, it is not said that it leaves.
        let attached = both.nic(Side::Source, name).and_then(|nic| nic.attached.as_ref());
        let leaves = attached.is_some_and(|attached| attached.deleting);
        metadata.deletion_timestamp = (leaves && !begun).then_some(Time(self.created));
        // The NIC is the target's once its file is there.
        let arrived = matches!(
            self.status.phase,
            MigrationPhase::Completing | MigrationPhase::Succeeded
        ) && both
            .nic(Side::Target, name)
            .is_some_and(|there| there.file.is_some());
        let pod = self.pod(if arrived { Side::Target } else { Side::Source });
        VmHybridNic {
            metadata,
            spec: nic.spec.clone(),
            status: Some(VmHybridNicStatus {
                pod: Some(pod),
                mac: Some(nic.mac.clone()),
                ..VmHybridNicStatus::default()
            }),
        }
    }

    /// What both ends say, once the migration has begun.
    pub fn ends(&self, both: Both<'_>) -> Option<(Move, Ends)> {
        let of = qemu::begun(&self.migration())?;
        let ends = Ends::observe(&of, &self.all_attachments(both), &self.pods());
        Some((of, ends))
    }

    /// The status that follows.
    pub fn step(&self, both: Both<'_>, waits: Waits, rules: Rules, now: Timestamp, decide: String) -> Step {
        let migration = self.migration();
        let pods = self.pods();
        let ends = self.ends(both).map(|(_, ends)| ends);
        let nics = self.nics.iter().map(|(name, nic)| NicInputs {
            nic: Arc::new(self.nic(both, name, nic)),
            attachments: self.looked_at(both, name, ends.as_ref(), waits.in_phase_for, rules),
            target_refusal: match both.target {
                None => Some(format!("{} does not answer", self.target.node)),
                Some(_) => both
                    .nic(Side::Target, name)
                    .and_then(|there| there.refusal.clone()),
            },
        });
        let mut next = step(&Inputs {
            now,
            in_phase_for: waits.in_phase_for,
            silent_for: waits.silent_for,
            migration: &migration,
            blocked_by: None,
            nics: nics.collect(),
            pods: &pods,
            away: BTreeSet::new(),
            of_nodes: BTreeSet::new(),
            ends,
            deadlines: rules.deadlines,
            encryption: rules.encryption,
            decide,
        });
        // The source is not told to run the VM on before the target is sure not to.
        if self.status.resuming_since.is_none() && !self.is_revoked(both) {
            next.status.resuming_since = None;
        }
        next
    }

    /// What is still to be changed at both ends, now that the status says what it says.
    pub fn changes(&self, both: Both<'_>) -> Vec<(Side, Command)> {
        match self.ends(both) {
            Some((of, ends)) if of.is_under_way() => self.orders(both, &of, &ends),
            Some((of, _)) => self.endings(both, of.stage == Stage::Over(Outcome::Succeeded)),
            None => Vec::new(),
        }
    }

    fn orders(&self, both: Both<'_>, of: &Move, ends: &Ends) -> Vec<(Side, Command)> {
        let mut changes = Vec::new();
        for (name, known) in &self.nics {
            let nic = self.nic(both, name, known);
            let existing = self.attachments(both, name);
            let inputs = desired::Inputs {
                nic: &nic,
                mac: &known.mac,
                l2: None,
                interface: None,
                existing: &existing,
                pods: &[],
                place: Place::Moving(of, ends),
            };
            for spec in desired_attachments(&inputs) {
                let side = if spec.pod == self.pod(Side::Source) {
                    Side::Source
                } else {
                    Side::Target
                };
                let step = spec.migration.as_ref().map(|order| order.step);
                if !self.may_be_told(both, of, side, name, step) {
                    continue;
                }
                changes.extend(self.order(both, side, name, spec).map(|command| (side, command)));
            }
            // The NIC goes on there, whatever becomes of this command.
            let arrived = of.stage == Stage::Arrived;
            if arrived
                && both
                    .nic(Side::Target, name)
                    .is_some_and(|there| there.file.is_none())
            {
                changes.push((Side::Target, self.file(name, Some(known.there.clone()))));
            }
        }
        changes
    }

    /// The order that says this; none where it is there.
    fn order(&self, both: Both<'_>, side: Side, name: &str, mut spec: NicAttachmentSpec) -> Option<Command> {
        let nic = both.nic(side, name)?;
        let socket = self.end(side).socket.clone();
        spec.pod = vm(&socket);
        let says = Says::Be(Box::new(Be { socket, spec }));
        self.say(name, nic, says)
    }

    pub(super) fn say(&self, name: &str, nic: &SeenNic, says: Says) -> Option<Command> {
        let there = nic.order.as_ref().map(|(order, _)| order);
        if there.is_some_and(|there| there.says == says && there.session == self.session) {
            return None;
        }
        let order = Order {
            migration: self.uid.clone(),
            session: self.session,
            serial: there.map_or(0, |there| there.serial) + 1,
            says,
        };
        Some(Command::Order {
            nic: name.to_owned(),
            order: Box::new(order),
        })
    }

    pub(super) fn file(&self, name: &str, text: Option<String>) -> Command {
        Command::File {
            nic: name.to_owned(),
            text,
            migration: self.uid.clone(),
            session: self.session,
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
