//! VMs on their way from one of their pods to another, no matter who drives them.
//!
//! Each runtime has its own kind of object to move a VM, and its own words for how far it is. One module here reads each
//! kind as a [`Move`]; NICs, their status and the metrics know only that.
//!
//! | module | does |
//! |---|---|
//! | [`ends`] | where the VM may run, according to both ends' reports |
//! | [`qemu`] | a `QemuMigration` as a move |
//! | [`mod@file`] | a `QemuSave` or a `QemuRestore` as a move with one end |
//!
//! ```text
//!  Preparing ─► Leaving ─► Moving ─► Arrived ─► Over
//!      │           │         │  ▲        ▲       ▲
//!      └───────────┴─────────┴──► Returning ─────┘
//! ```
//! A move that we drive, an operator or `ctl migrate`, goes from stage to stage when we say so. A move that a runtime drives need not: it
//! may begin in any stage, and be at its target in any. So a stage says what each end is to do, and only [`ends`] says where the VM may run.

pub mod ends;
pub mod file;
pub mod qemu;

use hybridnic_api::v1alpha1::{Decision, MigrationEnd, MigrationPhaseTime, ObjectRef};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

/// A VM's move from one of its pods to another, or to a file or from one, once its ends are chosen. A request that has not begun is not a
/// move.
#[derive(Clone, Debug, PartialEq)]
pub struct Move {
    /// The object that it was asked for by.
    pub id: ObjectRef,
    /// The VM's NICs that take part.
    pub nics: Vec<String>,
    /// Where the VM comes from; empty where that is a file.
    pub source: MigrationEnd,
    /// Where it goes to; empty where that is a file.
    pub target: MigrationEnd,
    /// How far it is.
    pub stage: Stage,
    /// What drives it.
    pub driver: Driver,
    /// Its times.
    pub times: Times,
}

/// How far a move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The target gets its standbys and reserves VFs. The VM has its VFs.
    Preparing,
    /// The VFs leave the guest at the source.
    Leaving,
    /// The VM may go: it is on its standbys.
    Moving,
    /// It is at the target. The source is cleaned up.
    Arrived,
    /// It is to stay at the source, and gets its VFs back once it is known to run there. Or it may be at the target after all:
    /// see [`ends::Rollback`].
    Returning,
    /// Nothing more will happen.
    Over(Outcome),
}

/// How a move has ended. The words are those of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
pub enum Outcome {
    /// The VM is at the target.
    Succeeded,
    /// It has stayed at the source.
    Failed,
    /// It has stayed there because the move was called off.
    Cancelled,
}

/// What drives a move.
#[derive(Clone, Debug, PartialEq)]
pub enum Driver {
    /// We, an operator or `ctl migrate`: besides a goal each end gets an order for its QEMU.
    Ours(Orders),
    /// An operator, with a file in the place of one end.
    File(file::FileMove),
    /// KubeVirt: each end gets a goal, and says what its QEMU does.
    Theirs {
        /// Whether the pod at the target has got its links, or was told that it gets them: before that, nothing can come there.
        open: bool,
        /// KubeVirt is done, and it is not proven where the VM is until this end has reported.
        awaited: Option<End>,
    },
}

/// An end of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Where the VM comes from.
    Source,
    /// Where it goes to.
    Target,
}

/// What we, an operator or `ctl migrate`, have ordered, or may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// Whether the stream is encrypted.
    pub encrypted: bool,
    /// Whether the transfer may have been ordered.
    pub transfer: bool,
    /// Whether the source is told to resume the VM.
    pub resume: bool,
    /// A person's decision on where the VM goes on: one that was asked for.
    pub decision: Option<Decision>,
}

/// When a move began and ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Times {
    /// When it began.
    pub started_at: Option<MicroTime>,
    /// When it ended.
    pub finished_at: Option<MicroTime>,
    /// The VM's pause, in milliseconds.
    pub downtime_ms: Option<i64>,
    /// Its parts.
    pub phases: Vec<MigrationPhaseTime>,
}

/// A request that has not ended, as it is counted. Unlike a [`Move`] it may wait to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Going {
    /// How far it is, in its kind's own word.
    pub phase: &'static str,
    /// Since when it is there.
    pub since: Option<Timestamp>,
    /// The reason for which a person should look at it, if one should.
    pub undecided: Option<&'static str>,
}

impl Move {
    /// What a person calls it.
    pub fn kind(&self) -> &'static str {
        match &self.driver {
            Driver::File(file) if file.saves() => "save",
            Driver::File(_) => "restore",
            Driver::Ours(_) | Driver::Theirs { .. } => "migration",
        }
    }

    /// Whether the NICs are in its hands.
    pub fn is_under_way(&self) -> bool {
        !matches!(self.stage, Stage::Over(_))
    }

    /// Whether it decides about this NIC: one that it began with, until it ends.
    pub fn has(&self, nic: &str) -> bool {
        self.is_under_way() && self.nics.iter().any(|name| name == nic)
    }

    /// The end at which the VM is, as far as the stage shows.
    pub fn whereabouts(&self) -> &MigrationEnd {
        match self.stage {
            _ if self.target.pod.uid.is_empty() => &self.source,
            _ if self.source.pod.uid.is_empty() => &self.target,
            Stage::Arrived | Stage::Over(Outcome::Succeeded) => &self.target,
            Stage::Preparing
            | Stage::Leaving
            | Stage::Moving
            | Stage::Returning
            | Stage::Over(Outcome::Failed | Outcome::Cancelled) => &self.source,
        }
    }
}
