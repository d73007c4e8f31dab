//! What a state of the world is: small, so that millions of them can be compared.
//!
//! Objects of the API are numbers, see [`crate::objects`]. A NIC's objects and a NIC's place are the same for both NICs, so that
//! two states that differ only in which NIC is which are one.

use std::hash::{BuildHasher, Hash, Hasher};

use foldhash::fast::FixedState;
use hybridnic_agent::journal::{Arrival, Custody};
use hybridnic_agent::nic::plan::Learnt;
use hybridnic_api::conditions::reasons;
use hybridnic_api::v1alpha1::Aside;

/// Number of NICs of the VM.
pub const NICS: usize = 2;
/// Number of PFs of a node.
pub const PFS: usize = 2;
/// The end at which the VM runs when the migration is made.
pub const SOURCE: usize = 0;
/// The end to which it is to go.
pub const TARGET: usize = 1;
/// Both ends; each is a node with one pod.
pub const ENDS: [usize; 2] = [SOURCE, TARGET];

/// The number of an object that is known by its contents; 0 is none.
pub type Id = u16;

/// Everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// What the API server has.
    pub api: Api,
    /// What the operator's caches have not heard of yet.
    pub lag: Lag,
    /// Both nodes.
    pub nodes: [Node; 2],
    /// What runs between the QEMUs.
    pub stream: Stream,
    /// What no part of the system can see, but the invariants check.
    pub truth: Truth,
    /// How many more faults may happen.
    pub faults: u8,
    /// How often more one NIC may be ahead of the other.
    pub splits: u8,
    /// How often more a user tells the NICs where their traffic is to run.
    pub tells: u8,
    /// How often more a PF is drained or undrained, or loses its link or finds it.
    pub turns: u8,
}

/// What the API server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Api {
    /// The migration's status, if there is a migration.
    pub migration: Id,
    /// Whether it was deleted, which cancels it.
    pub deleting: bool,
    /// What a person has decided.
    pub decision: Option<Choice>,
    /// Whether the NICs are told to stay on their standby.
    pub aside: Option<Aside>,
    /// The pods.
    pub pods: [Pod; 2],
    /// In which pod each NIC's status says that the VM is.
    pub nic_pods: [Option<u8>; NICS],
    /// The attachments, by node and NIC.
    pub attachments: [[Option<Attachment>; NICS]; 2],
}

/// What the operator's caches still have as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lag {
    /// Nothing: they are up to date.
    None,
    /// The migration's status.
    Migration(Id),
    /// The attachments of an end.
    Attachments(u8, [Option<Attachment>; NICS]),
}

/// What a person decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Choice {
    /// The source goes on.
    ResumeSource,
    /// The source is given up.
    AbandonSource,
}

/// A pod's object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pod {
    /// It runs.
    Running,
    /// Its kubelet says that its containers have ended.
    Ended,
    /// There is none any more.
    Gone,
}

/// An attachment's object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attachment {
    /// Its spec.
    pub spec: Id,
    /// Its status, as the operator has seen it; the agent may know better.
    pub status: Id,
    /// Whether the status is about this spec.
    pub current: bool,
    /// Whether it has the agent's finalizer.
    pub finalizer: bool,
    /// Whether it was deleted.
    pub deleting: bool,
}

/// A node: its agent, its QEMU, its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// Its agent.
    pub agent: Agent,
    /// The pod's QEMU.
    pub qemu: Qemu,
    /// What the agent remembers of the VM.
    pub vm: Vm,
    /// What there is of each NIC.
    pub nics: [Nic; NICS],
    /// How each PF is.
    pub pfs: [Pf; PFS],
    /// The switch behind them.
    pub switch: Switch,
}

/// How a PF is. Its agent knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pf {
    /// Whether it is drained of VFs.
    pub drained: bool,
    /// Whether it has had no link for long.
    pub dark: bool,
}

impl Pf {
    /// Whether it has a link, as far as its agent can tell.
    pub const fn is_linked(self) -> bool {
        !self.dark
    }

    /// Whether a NIC may take a VF of it.
    pub const fn is_fit(self) -> bool {
        !self.drained && !self.dark
    }
}

/// A QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Qemu {
    /// Whether its process lives.
    pub alive: bool,
    /// Whether it does not answer; it still runs.
    pub mute: bool,
    /// What it does.
    pub run: Run,
    /// Its migration.
    pub migration: Transfer,
    /// Whether it listens for a VM.
    pub listens: bool,
    /// Whether it talks only to the migration's other end, encrypted.
    pub tls: bool,
    /// Whether it was told to stop before the VM came: it leaves it paused then.
    pub stopped: bool,
    /// Whether each NIC's standby is plugged.
    pub standby: [bool; NICS],
    /// The VF of each NIC that is plugged.
    pub vf: [Option<u8>; NICS],
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
    Setup,
    Active,
    PreSwitchover,
    Device,
    Completed,
    Failed,
    Cancelled,
}

/// What runs between the QEMUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Nothing.
    None,
    /// Memory flows; not all has been sent.
    Flowing,
    /// All has been sent; the target has not loaded the VM yet.
    Sent,
    /// The target has loaded the VM; the source does not know.
    Loaded,
    /// It has ended, well or not.
    Over,
}

/// Whether an agent does anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Agent {
    /// It does at once what there is to do on its node.
    Prompt,
    /// It is held up, and goes on later where it was.
    HeldUp,
    /// It has died, and is not started again yet.
    Down,
}

/// What the agent remembers of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vm {
    /// Whether QEMU's socket was tried since the agent started.
    pub tried: bool,
    /// How the migration goes, as told to the NICs.
    pub report: Id,
    /// Journal: the migration that was begun here.
    pub begun: Option<Begun>,
    /// In memory, outlasting the agent: whether the certificate for the stream is made.
    pub certified: bool,
}

/// A migration that was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Begun {
    /// Which object has asked for it: see [`crate::objects::MOVE`].
    pub of: u8,
    /// Whether that was in the QEMU that is there, or was there last.
    pub here: bool,
    /// Target: how far the VM's arrival is.
    pub arrival: Option<Arrival>,
    /// Source: where the VM is.
    pub custody: Custody,
    /// How far the file is, where the VM goes to one.
    pub saving: Option<Stage>,
}

/// How far a file is, by the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Stage {
    Writing,
    Whole,
    Named,
    Spoilt,
}

/// What there is of a NIC on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Nic {
    /// Its task.
    pub task: Task,
    /// The spec that the agent goes by; in the journal too, once there is a record.
    pub spec: Id,
    /// Whether that is the API server's; of a task that has left, whether its last report was about that.
    pub current: bool,
    /// Whether the agent has heard of it since it started.
    pub heard: bool,
    /// Journal: whether there is a record.
    pub recorded: bool,
    /// Journal: the VF that it holds.
    pub vf: Option<Vf>,
    /// Journal: the PF of its standby.
    pub standby: Option<u8>,
    /// Whether its macvtap is there, and up.
    pub macvtap: Option<bool>,
    /// Whether the switches have not been told.
    pub announce: bool,
    /// Whether the guest was seen to have moved to the VF.
    pub moved: bool,
    /// Whether the guest has not let go of the VF.
    pub keeps_vf: bool,
    /// Whether it waits for the switch.
    pub asking: Asking,
    /// What it shows to the VM's task.
    pub shown: Option<Shown>,
    /// What it has reported last, once it has left.
    pub left: Id,
}

/// A NIC's task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// There is none.
    None,
    /// It runs.
    Runs,
    /// The NIC has left the node.
    Left,
}

/// A VF that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vf {
    /// Which; each is on a PF of its own.
    pub index: u8,
    /// Whether it is bound to vfio-pci.
    pub bound: bool,
    /// Its MAC.
    pub mac: Mac,
    /// Its port at the switch.
    pub port: Port,
}

/// A VF's port at the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Port {
    /// The network has no port profile.
    NoProfile,
    /// What the switch has done last.
    Has(Asked),
    /// What the switch has been asked for, and has not answered.
    Asked(Asked),
}

/// What a switch is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Asked {
    /// Keep what the profile needs.
    Preassociate,
    /// Give the port its profile.
    Associate,
    /// Take it away.
    Disassociate,
}

/// How the switch is to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Switch {
    /// It does at once what it is asked for.
    Answers,
    /// It does not answer.
    Silent,
    /// It refuses to give any port its profile.
    Refuses,
}

/// Whether a NIC's task waits for the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Asking {
    /// It does not.
    No,
    /// It does.
    Waits,
    /// It has waited in vain, and tries again after a pause.
    Failed,
}

/// A VF's MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Mac {
    Other,
    Parking,
    Nic,
}

/// What a NIC shows to its VM's task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shown {
    /// Its state, by number.
    pub state: u8,
    /// The spec whose order it has.
    pub spec: Id,
    /// Whether it has a macvtap.
    pub macvtap: bool,
    /// Whether its order is the API server's.
    pub heard: bool,
}

/// What no part of the system can see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Truth {
    /// The VM has run at the target.
    pub arrived: bool,
    /// QEMU itself resumes the VM at the source, and the target has all of it.
    pub own_double: bool,
    /// The VM was sent to an unknown peer, or in plain.
    pub plain: bool,
    /// The source was told to run the VM on after it had run at the target, and no person has decided so.
    pub zombie: bool,
}

impl Qemu {
    /// A QEMU that has just started.
    pub const fn fresh(run: Run) -> Self {
        Self {
            alive: true,
            mute: false,
            run,
            migration: Transfer::None,
            listens: false,
            tls: false,
            stopped: false,
            standby: [false; NICS],
            vf: [None; NICS],
        }
    }

    /// None.
    pub const fn dead() -> Self {
        Self {
            alive: false,
            ..Self::fresh(Run::Incoming)
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
}

impl Vm {
    /// Nothing.
    pub const NEW: Self = Self {
        tried: false,
        report: 0,
        begun: None,
        certified: false,
    };
}

impl Nic {
    /// Nothing.
    pub const NONE: Self = Self {
        task: Task::None,
        spec: 0,
        current: false,
        heard: false,
        recorded: false,
        vf: None,
        standby: None,
        macvtap: None,
        announce: false,
        moved: false,
        keeps_vf: false,
        asking: Asking::No,
        shown: None,
        left: 0,
    };

    /// What earlier steps have taught its task.
    pub fn learnt(&self) -> Learnt {
        Learnt {
            announce: self.announce,
            moved: self.moved,
            keeps_vf: self.keeps_vf,
            vf_failed: (self.asking == Asking::Failed).then_some(reasons::PORT_PROFILE_TIMEOUT),
            ..Learnt::default()
        }
    }

    /// Whether its MAC is live on a PF, and on which, by its VF and by its standby.
    pub fn live(&self) -> [Option<u8>; 2] {
        let vf = self.vf.filter(|vf| vf.mac == Mac::Nic).map(|vf| vf.index);
        let standby = self.standby.filter(|_| self.macvtap == Some(true));
        [vf, standby]
    }
}

impl State {
    /// What the API server has, as the operator knows it.
    pub fn cached(&self) -> Api {
        let mut api = self.api;
        match self.lag {
            Lag::None => {}
            Lag::Migration(status) => api.migration = status,
            Lag::Attachments(end, attachments) => api.attachments[usize::from(end)] = attachments,
        }
        api
    }

    /// Whether the operator knows the attachment as it is: a write that was decided on an older version is refused.
    pub fn knows(&self, end: usize, n: usize) -> bool {
        self.cached().attachments[end][n] == self.api.attachments[end][n]
    }

    /// The same world with its NICs and PFs in an order of their own, so that it is found again however they were named.
    #[must_use]
    pub fn sorted(mut self, nics: usize) -> Self {
        if nics == NICS && self.key(0) > self.key(1) {
            self.api.nic_pods.swap(0, 1);
            if let Lag::Attachments(_, attachments) = &mut self.lag {
                attachments.swap(0, 1);
            }
            for end in ENDS {
                self.api.attachments[end].swap(0, 1);
                self.nodes[end].nics.swap(0, 1);
                self.nodes[end].qemu.standby.swap(0, 1);
                self.nodes[end].qemu.vf.swap(0, 1);
            }
        }
        for node in &mut self.nodes {
            node.name_pfs();
        }
        self
    }

    /// All that there is of a NIC, without the names of PFs.
    fn key(&self, n: usize) -> u64 {
        let mut hasher = FixedState::default().build_hasher();
        self.api.nic_pods[n].hash(&mut hasher);
        if let Lag::Attachments(_, attachments) = self.lag {
            attachments[n].hash(&mut hasher);
        }
        for end in ENDS {
            self.api.attachments[end][n].hash(&mut hasher);
            let (nic, qemu) = (&self.nodes[end].nics[n], &self.nodes[end].qemu);
            let unnamed = Nic {
                vf: nic.vf.map(|vf| Vf { index: 0, ..vf }),
                standby: nic.standby.map(|_| 0),
                ..*nic
            };
            let held = nic.vf.map(|vf| vf.index);
            (unnamed, held == nic.standby, held == qemu.vf[n]).hash(&mut hasher);
            (qemu.standby[n], qemu.vf[n].is_some()).hash(&mut hasher);
        }
        hasher.finish()
    }
}

impl Node {
    /// The VFs that a NIC may take, no matter which NICs hold them. Each is on a PF of its own.
    pub fn fit(&self, vfs: u8) -> impl Iterator<Item = u8> {
        (0..vfs).filter(|vf| self.pf(*vf).is_fit())
    }

    /// How a PF is.
    pub fn pf(&self, pf: u8) -> Pf {
        self.pfs.get(usize::from(pf)).copied().unwrap_or_default()
    }

    /// Gives the PFs the numbers in whose order the NICs use them.
    fn name_pfs(&mut self) {
        let mut first = None;
        for (nic, plugged) in self.nics.iter().zip(&self.qemu.vf) {
            let held = nic.vf.map(|vf| vf.index);
            first = first.or(held).or(nic.standby).or(*plugged);
        }
        if first != Some(1) {
            return;
        }
        let other = |pf: &mut u8| *pf = 1 - *pf;
        self.qemu.vf.iter_mut().flatten().for_each(other);
        self.pfs.swap(0, 1);
        for nic in &mut self.nics {
            nic.vf.iter_mut().for_each(|vf| vf.index = 1 - vf.index);
            nic.standby.iter_mut().for_each(other);
        }
    }
}
