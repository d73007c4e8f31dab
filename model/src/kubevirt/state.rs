//! What a state of the world is.

use hybridnic_agent::journal::Role;
use hybridnic_api::v1alpha1::Aside;

use crate::state::{Agent, Attachment, Id, NICS, Nic};

/// The VM's pods: where it is first, and one for each of two migrations.
pub const PODS: usize = 3;
/// The nodes.
pub const NODES: usize = 2;
/// The migrations.
pub const MOVES: usize = 2;

/// Everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// What KubeVirt has written.
    pub kube: Kube,
    /// Whether the NICs are told to stay on their standby.
    pub aside: Option<Aside>,
    /// In which pod each NIC's status says that the VM is.
    pub nic_pods: [Option<u8>; NICS],
    /// The pods, and what there is in them.
    pub places: [Place; PODS],
    /// The nodes' agents.
    pub agents: [Agent; NODES],
    /// What the operator's caches have not heard of yet.
    pub lag: Lag,
    /// Whose news are held up, in a world where they otherwise come at once.
    pub held: Held,
    /// The migration whose stream runs.
    pub stream: Option<u8>,
    /// Whether there is a migration yet to be asked for.
    pub again: bool,
    /// What no part of the system can see.
    pub truth: Truth,
    /// How many more faults may happen.
    pub faults: u8,
    /// How often more one NIC may be ahead of the other.
    pub splits: u8,
    /// How often more a user tells the NICs where their traffic is to run.
    pub tells: u8,
}

/// What KubeVirt and kubelets have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kube {
    /// The migrations.
    pub moves: [Migration; MOVES],
    /// The pods.
    pub pods: [Pod; PODS],
    /// In which pod KubeVirt says that the VM is.
    pub vmi: u8,
    /// Which migration has begun last to send it, as KubeVirt says.
    pub sent: Option<u8>,
}

/// A `VirtualMachineInstanceMigration`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Migration {
    /// Where it is.
    pub phase: Phase,
    /// Whether it was deleted.
    pub deleting: bool,
    /// Whether its object is there.
    pub there: bool,
    /// The pod that the VM comes from.
    pub source: u8,
}

/// Where a migration is, by KubeVirt's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// It was not asked for yet.
    None,
    /// Its pod is to start: `Pending`, `Scheduling`, and so on to `TargetReady`.
    Scheduling,
    /// libvirt was told to send the VM.
    Running,
    /// It has succeeded.
    Succeeded,
    /// It has failed.
    Failed,
}

/// A pod's object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pod {
    /// Where it is.
    pub phase: PodPhase,
    /// Whether it was deleted.
    pub leaves: bool,
}

/// Where a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PodPhase {
    /// There is none.
    Gone,
    /// It has a node, and its launcher has not started.
    Pending,
    /// Its launcher runs.
    Running,
    /// Its kubelet says that its containers have ended.
    Ended,
}

/// What the operator's caches still have as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lag {
    /// Nothing: they are up to date.
    None,
    /// What KubeVirt and kubelets have written.
    Kube(Kube),
    /// The attachments of a pod.
    Attachments(u8, [Option<Attachment>; NICS]),
}

/// Whose news are held up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Held {
    /// No news are held up.
    Nobody,
    /// The operator does nothing.
    Operator,
    /// The agent does not hear what is wanted in a pod.
    Wants(u8),
    /// What it says of a pod is not heard.
    Words(u8),
}

/// A pod and what there is in it, and of it on its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Its sandbox.
    pub sandbox: Sandbox,
    /// Its QEMU.
    pub qemu: Qemu,
    /// What the agent knows of its VM.
    pub vm: Vm,
    /// What there is of each NIC.
    pub nics: [Nic; NICS],
    /// The NICs' attachments to it.
    pub attachments: [Option<Attachment>; NICS],
}

/// A pod's sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sandbox {
    /// There is none, or the last one has failed.
    None,
    /// It waits for the link of this NIC; those before it have theirs. Multus asks for one after the other.
    Waits(u8),
    /// It has all its links.
    Ready,
}

/// A QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Qemu {
    /// Whether its process lives.
    pub alive: bool,
    /// Whether our monitor does not answer; QEMU still runs.
    pub mute: bool,
    /// What it does.
    pub run: Run,
    /// Its last migration.
    pub migration: Transfer,
    /// The VF of each NIC that is plugged.
    pub vf: [Option<u8>; NICS],
    /// Whether the guest does not let go of each NIC's VF.
    pub keeps: [bool; NICS],
}

/// QEMU's run state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Run {
    /// `inmigrate`
    Incoming,
    /// `paused`
    Paused,
    /// `running`
    Running,
    /// `finish-migrate`
    Finishing,
    /// `postmigrate`
    HandedOver,
}

/// QEMU's migration status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Transfer {
    None,
    Active,
    PreSwitchover,
    Completed,
    Failed,
    Cancelled,
}

/// What the agent knows of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vm {
    /// Whether QEMU's socket was tried since the agent started.
    pub tried: bool,
    /// Whether this agent has talked to it.
    pub met: bool,
    /// How the migration goes, as told to the NICs.
    pub report: Id,
    /// Journal: whether an agent has talked to it.
    pub process: bool,
    /// Journal: whether it was seen to wait for its VM.
    pub incoming: bool,
    /// Journal: whether the VM was seen to run in it.
    pub ran: bool,
    /// Journal: the migration that was watched last.
    pub watched: Option<Watched>,
}

/// A migration that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Watched {
    /// Which.
    pub migration: u8,
    /// Whether QEMU was seen in it.
    pub process: bool,
    /// Which end it is.
    pub role: Role,
    /// Source: whether it was seen to begin.
    pub begun: bool,
    /// Target: whether the VM was seen to run.
    pub arrived: bool,
}

/// What no part of the system can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Truth {
    /// The pod in which the VM runs, or ran last.
    pub home: u8,
    /// Whether an agent has done what is KubeVirt's to do.
    pub trespass: bool,
    /// Whether nothing has gone wrong.
    pub well: bool,
}

impl Migration {
    /// One that was not asked for.
    pub const NONE: Self = Self {
        phase: Phase::None,
        deleting: false,
        there: false,
        source: 0,
    };

    /// Whether nothing more happens, by KubeVirt's word.
    pub const fn is_over(&self) -> bool {
        matches!(self.phase, Phase::None | Phase::Succeeded | Phase::Failed)
    }
}

impl Pod {
    /// None.
    pub const GONE: Self = Self {
        phase: PodPhase::Gone,
        leaves: false,
    };

    /// Whether its containers have not ended.
    pub const fn lives(&self) -> bool {
        matches!(self.phase, PodPhase::Pending | PodPhase::Running)
    }
}

impl Qemu {
    /// None.
    pub const DEAD: Self = Self {
        alive: false,
        mute: false,
        run: Run::Incoming,
        migration: Transfer::None,
        vf: [None; NICS],
        keeps: [false; NICS],
    };

    /// One that has just started.
    pub const fn fresh(run: Run) -> Self {
        Self {
            alive: true,
            run,
            ..Self::DEAD
        }
    }

    /// Whether it runs the VM.
    pub const fn runs(&self) -> bool {
        self.alive && matches!(self.run, Run::Running)
    }

    /// Whether it can be talked to.
    pub const fn answers(&self) -> bool {
        self.alive && !self.mute
    }

    /// Whether it sends or takes a VM.
    pub const fn is_migrating(&self) -> bool {
        self.alive && matches!(self.migration, Transfer::Active | Transfer::PreSwitchover)
    }
}

impl Vm {
    /// Nothing.
    pub const NEW: Self = Self {
        tried: false,
        met: false,
        report: 0,
        process: false,
        incoming: false,
        ran: false,
        watched: None,
    };
}

impl Place {
    /// Nothing.
    pub const NONE: Self = Self {
        sandbox: Sandbox::None,
        qemu: Qemu::DEAD,
        vm: Vm::NEW,
        nics: [Nic::NONE; NICS],
        attachments: [None; NICS],
    };
}

impl State {
    /// The node of a pod. The second migration's is where the VM then is not.
    pub const fn node(&self, pod: usize) -> usize {
        match pod {
            0 | 1 => pod,
            _ => 1 - self.kube.moves[1].source as usize,
        }
    }

    /// The pod that a migration brings the VM to.
    pub const fn target(migration: usize) -> usize {
        migration + 1
    }

    /// The pod that the VM comes from by a migration.
    pub fn source(&self, migration: usize) -> usize {
        usize::from(self.kube.moves[migration].source)
    }

    /// The agent of a pod's node.
    pub fn agent(&self, pod: usize) -> Agent {
        self.agents[self.node(pod)]
    }

    /// The same as the operator knows it.
    pub fn cached(&self) -> View {
        let mut view = View {
            kube: self.kube,
            aside: self.aside,
            nic_pods: self.nic_pods,
            attachments: self.places.map(|place| place.attachments),
        };
        match self.lag {
            Lag::None => {}
            Lag::Kube(kube) => view.kube = kube,
            Lag::Attachments(pod, attachments) => view.attachments[usize::from(pod)] = attachments,
        }
        view
    }
}

/// What the operator knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// Of KubeVirt and kubelets.
    pub kube: Kube,
    /// What the NICs are told.
    pub aside: Option<Aside>,
    /// Of the NICs' status.
    pub nic_pods: [Option<u8>; NICS],
    /// Of the attachments.
    pub attachments: [[Option<Attachment>; NICS]; PODS],
}
