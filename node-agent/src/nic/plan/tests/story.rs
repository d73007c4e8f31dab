//! What a history on the model of a node is made of: how its guest and hardware are, and what happens. Words only.

use hybridnic_api::v1alpha1::{Aside, Goal, NoFreeVf, Pairing, StandbyKind, SwitchOrder};

use super::VfMac;
use crate::machine::Duties;

/// What a guest does when it is asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manners {
    /// It moves to its VF and lets go of it.
    Good,
    /// It lets go of nothing.
    KeepsVf,
    /// It has no driver for the VF.
    IgnoresVf,
    /// It has no hot-plug driver: it neither sees the VF nor lets go of it.
    Blind,
    /// Its virtio-net driver does not accept the standby feature, which is right if it is to have a bond.
    NoFailover,
    /// It uses VF and standby as two interfaces, where it is to have a bond.
    TwoNics,
    /// Its virtio-net driver has not started.
    Asleep,
}

impl Manners {
    pub fn lets_go(self) -> bool {
        !matches!(self, Self::KeepsVf | Self::Blind)
    }

    pub fn sees_vf(self) -> bool {
        !matches!(self, Self::IgnoresVf | Self::Blind | Self::Asleep)
    }

    /// Whether its traffic moves to a VF that it sees.
    pub fn moves(self, pairing: Pairing) -> bool {
        self.sees_vf() && (pairing == Pairing::NetFailover || self != Self::TwoNics)
    }
}

/// What does not change during a history.
#[derive(Clone, Copy, Debug)]
pub struct Hardware {
    /// The PF's driver refuses a MAC that its filter has.
    pub refuses_twice: bool,
    /// The order that the driver is known to need.
    pub order: SwitchOrder,
    /// What the NIC says of a node without a free VF.
    pub no_free_vf: NoFreeVf,
    /// What the NIC has besides its VF.
    pub standby: StandbyKind,
    /// How its guest makes one NIC of VF and standby.
    pub pairing: Pairing,
    /// Whose MAC a VF has that nobody has parked yet.
    pub stale_mac: VfMac,
    /// The network asks nothing of a VF that a parked one has not.
    pub plain: bool,
    /// The network has a port profile.
    pub profile: bool,
    /// What does which part.
    pub duties: Duties,
}

/// What happens besides the plan's steps.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// The plan's next step; it may fail for no reason.
    Step { fails: bool },
    /// The agent dies and starts again.
    Crash,
    /// What had failed may work now.
    Relearn,
    /// The operator wants something else.
    Goal(Goal),
    /// The NIC is told to stay on its standby, or not to any more.
    Told(Option<Aside>),
    /// A migration has an order for the VM, or none any more.
    Ordered(bool),
    /// The guest becomes another.
    Guest(Manners),
    /// The link of a PF.
    Link { pf: usize, link: bool },
    /// A PF has been without link for long, or with link.
    LinkSettles,
    /// A PF is drained, or no more.
    Drain { pf: usize, drained: bool },
    /// A NIC has been split for a while, and its standby's PF fit; or not.
    Steady(bool),
    /// Another NIC gives a VF of a PF back, or takes the last one.
    Offer { pf: usize, offered: bool },
    /// The VF's PF is in a reset, or something else keeps the VF from being read; or no more.
    Unread(bool),
    /// The PF goes through a smaller MTU.
    MtuLost,
    /// Somebody takes the filters off the macvtap, or the network gets others.
    GuardLost,
    /// A process that has the macvtap's descriptor gives it another MAC.
    MacStolen,
    /// The reserved VF disappears from the node; QEMU gets the guest to let go of it, or not.
    VfLost,
    /// Something deletes the macvtap.
    MacvtapLost,
    /// The network gets other settings.
    Settings,
    /// A PF's driver refuses settings from now on, or no more.
    Refuses(bool),
    /// VFs cannot be bound from now on, or can again.
    NoBind(bool),
    /// VFs do not take their parking MACs from now on, or do again.
    NoPark(bool),
    /// QEMU takes no VF from now on, or does again.
    NoPlug(bool),
    /// The switch takes part in no port profile from now on, or does again.
    NoPort(bool),
    /// Something else is asked for the port of the VF.
    PortLost,
    /// A migration expects the VM here, or no more.
    Expected(bool),
    /// QEMU ends.
    QemuEnds,
    /// QEMU starts; `incoming` waits for its VM.
    QemuStarts { incoming: bool },
    /// The runtime makes another sandbox for the VM's pod, which asks for its link. With the one before it that one's link has gone.
    Sandbox,
    /// QEMU's socket.
    Mute(bool),
    /// The guest restarts.
    Reset,
    /// The guest's driver of the VF has interrupts; its traffic has not moved yet.
    Interrupts,
    /// The guest goes on without its VF, and is seen to.
    GoesWithout,
    /// The VM goes on to the next stage of a migration: it arrives, or is handed over, or has been.
    Migrate,
    /// A VM that was to be handed over, or was, runs on here.
    TakenBack,
}
