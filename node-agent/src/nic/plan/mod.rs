//! The attachment state machine: from a goal and what is observed to the next step. Pure.
//!
//! ```text
//!   Reserve ─ MakeStandby ─ GuardStandby ─ PlugStandby ─ Bind ─ Park ──► Reserved          (the VM is not here yet)
//!   Reserve ─ Bind ─ Park ──► Reserved, and nothing else                                    (nor is its pod)
//!   Reserve ─ MakeStandby ─ GuardStandby ─ PlugStandby ─ StandbyUp ─ Announce ─ Bind ─ Park ──► Standby
//!   Standby ─ ConfigureVf ─ PlugVf ─ AwaitGuest ─ StandbyDown ──► FastPath       (make before break)
//!   Standby ─ StandbyDown ─ ConfigureVf ─ PlugVf ─ AwaitGuest ──► FastPath       (break before make)
//!   FastPath ─ StandbyUp ─ UnplugVf ─ Park ─ Announce ──► Standby               (make before break)
//!   FastPath ─ UnplugVf ─ Park ─ StandbyUp ─ Announce ──► Standby               (break before make)
//!   Reserve ─ … ─ Park ─ Preassociate ──► Reserved                               (where the network has a port profile)
//!   Standby ─ ConfigureVf ─ Associate ─ PlugVf ─ …; UnplugVf ─ Park ─ Announce ─ Disassociate ──► Standby
//!   Standby ─ RestoreVf ─ Reserve ─ Bind ─ Park ──► Standby, with another VF
//!   Standby ─ RestoreVf ──► Standby, without a VF                               (the NIC is told to stay there)
//!   FastPath ─ StandbyUp ─ UnplugVf ─ Park ─ Announce ─ RestoreVf ─ Reserve ─ … ──► FastPath, with a VF of another PF
//!                                                            (its PF is drained; without StandbyUp: has no link, or is not the standby's)
//!   MakeStandby ─ Reserve ─ MoveStandby ─ MakeStandby ─ GuardStandby ─ PlugStandby    (the VF came later, on another PF)
//!   Reserve ─ MakeStandby ─ GuardStandby ─ AnswerSandbox ─ Bind ─ Park ──► the runtime starts the VM, with its standby
//!   without a standby: Reserve ─ Bind ─ Park ─ ConfigureVf ─ PlugVf ─ AwaitGuest ──► FastPath
//!                      FastPath ─ UnplugVf ─ Park ──► Aside
//!   any ─ UnplugVf ─ UnplugStandby ─ RemoveStandby ─ RestoreVf ─ Forget ──► Detached
//! ```
//! The plan knows no history: after a crash it continues from what it sees.
//!
//! | module | is the way to |
//! |---|---|
//! | `attach` | the goals `Standby` and `FastPath`, up to where these part |
//! | `fast_path` | the VF |
//! | `reserve` | `Reserved` |
//! | `port` | the VF's port at the switch |
//! | `detach` | `Detached` |
//! | `alone` | `Standby` and `FastPath`, of a NIC that has no standby |

mod alone;
mod attach;
mod detach;
mod fast_path;
mod port;
mod reserve;
#[cfg(test)]
pub(in crate::nic) mod tests;

use hybridnic_api::v1alpha1::{
    Aside, AttachmentState, Goal, MigrationStep, NicAttachmentSpec, NoFreeVf, Pairing, StandbyKind,
    SwitchOrder,
};

use super::seen::{Seen, VfMac, VfSeen, VfThere};
use crate::machine::{Duties, Owner};

/// How often a VF may fail before another one is taken in its place.
pub const TRIES: u8 = 3;

/// One reversible step. Its name is in timelines, traces and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::Display, strum::IntoStaticStr)]
pub enum Step {
    /// Take a free VF, or a PF for the standby alone.
    Reserve,
    /// Give the VF to vfio-pci.
    Bind,
    /// Give the VF its parking MAC, no VLAN and its saved settings.
    Park,
    /// Forget a VF that is proven to be gone.
    DropVf,
    /// Make the macvtap, down, and its VLAN device.
    MakeStandby,
    /// Let the macvtap pass what the network allows, and nothing else.
    GuardStandby,
    /// Shut the macvtap of a guest that has given it another MAC.
    SeizeStandby,
    /// Let the pod's sandbox go on: its link is there.
    AnswerSandbox,
    /// Plug the standby into the guest.
    PlugStandby,
    /// Macvtap up: the standby receives.
    StandbyUp,
    /// Macvtap down: the standby receives no more.
    StandbyDown,
    /// Give the macvtap the MTU that it lost while its PF had a smaller one.
    RaiseMtu,
    /// Give the VF the network's settings and, last, the NIC's MAC.
    ConfigureVf,
    /// Have the switch keep what the port profile of the VF's port needs.
    Preassociate,
    /// Have the switch give the VF's port its profile.
    Associate,
    /// Have the switch take the profile away.
    Disassociate,
    /// Plug the VF into the guest.
    PlugVf,
    /// Wait until the guest uses the VF.
    AwaitGuest,
    /// Unplug the VF and wait until the guest has let go.
    UnplugVf,
    /// Tell the switches where the MAC is now.
    Announce,
    /// Unplug the standby from the guest.
    UnplugStandby,
    /// Delete the macvtap, and its VLAN device if nothing else uses it.
    RemoveStandby,
    /// Delete the macvtap, which is not in the guest, and have it on the VF's PF.
    MoveStandby,
    /// Give the VF back as it was.
    RestoreVf,
    /// End a QEMU that will never run the VM.
    QuitQemu,
    /// Remove the journal's record: nothing is held any more.
    Forget,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Take this step, then observe again.
    Do(Step),
    /// The goal is reached, as far as it can be for now.
    Done(AttachmentState),
    /// The goal is not reached, and nothing can be done until something changes.
    Wait(Wait),
}

impl Decision {
    /// Why a pod whose sandbox waits for its link gets none yet; nothing where a step may lead to it.
    pub fn withholds(&self) -> Option<&str> {
        match self {
            Self::Wait(wait) => Some(&wait.message),
            Self::Done(AttachmentState::Reserved) => Some(SOURCE_FIRST),
            Self::Do(_) | Self::Done(_) => None,
        }
    }
}

/// What keeps a migration's target from its link is at the other node, and only the operator sees both.
const SOURCE_FIRST: &str = "all is ready here, and the VM has not left its VFs at its source yet: the pod gets its link after that. \
     What keeps the VM is in the status of its NIC (kubectl get vhn)";

/// Why nothing can be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Where the NIC is meanwhile.
    pub state: AttachmentState,
    /// One of [`hybridnic_api::conditions::reasons`].
    pub reason: &'static str,
    /// A sentence for a person.
    pub message: String,
}

/// What earlier steps have taught, and is forgotten when the goal changes or the VM does something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Learnt {
    /// The guest did not let go of the VF in time.
    pub keeps_vf: bool,
    /// The guest did not let go of the standby in time.
    pub keeps_standby: bool,
    /// The guest did not use the VF in time, or no longer; what it sent through instead.
    pub ignores_vf: Option<Sends>,
    /// The VF could not be reserved, bound, parked, set up or plugged; one of
    /// [`reasons`](hybridnic_api::conditions::reasons). Tried again after a pause.
    pub vf_failed: Option<&'static str>,
    /// How often that happened with this VF. Kept until it works or is given back.
    pub vf_failures: u8,
    /// The VF's driver did not take its parking MAC.
    pub not_parked: bool,
    /// The macvtap did not take its MTU.
    pub mtu_refused: bool,
    /// The driver refused one MAC twice.
    pub refuses_twice: bool,
    /// The standby has taken over, and the switches have not been told.
    pub announce: bool,
    /// The guest was seen to have moved its traffic to the VF.
    pub moved: bool,
}

/// What a guest that does not use its VF as it should was seen to send through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sends {
    /// By its standby, while the driver of its VF runs too.
    BesideVf,
    /// By its standby, while its VF is still.
    ByStandby,
    /// By nothing that could be seen.
    ByNeither,
}

impl Learnt {
    /// What stays known when a failed step is tried again.
    #[must_use]
    pub fn again(self) -> Self {
        Self {
            announce: self.announce,
            refuses_twice: self.refuses_twice,
            vf_failures: self.vf_failures,
            ..Self::default()
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Where the NIC should be: `Standby` where it would be `FastPath` and the NIC is told to stay on its standby.
    pub goal: Goal,
    /// Whether it is told so, and what becomes of its VF.
    pub aside: Option<Aside>,
    /// Whether a migration has an order for the VM. Then a VF that is to go back stays: giving it back may take long, or fail,
    /// and the migration waits only for what it needs.
    pub ordered: bool,
    /// What to do without a VF.
    pub no_free_vf: NoFreeVf,
    /// What carries the traffic while the VF is out.
    pub standby: StandbyKind,
    /// How the guest makes one NIC of VF and standby.
    pub pairing: Pairing,
    /// The order that the PF's driver needs, as far as is known.
    pub driver_order: SwitchOrder,
    /// Whether the VF that the NIC holds is drained: then it is left, but not in a migration.
    pub drained: bool,
    /// Whether the VM is, or was, expected here by a migration. It may have come while that was called off: then
    /// it runs here and nowhere else, and keeps its NICs until the operator has seen it.
    pub expected: bool,
    /// Whether agent or runtime does each part.
    pub duties: Duties,
}

impl Ask {
    /// What an attachment's spec asks for.
    pub fn of(spec: &NicAttachmentSpec, driver_order: SwitchOrder, duties: Duties, drained: bool) -> Self {
        let expected = spec.migration.as_ref().is_some_and(|migration| {
            // Also at the source of one that is only watched: a VM that is here has not left.
            let watched = duties.migration == Owner::Runtime;
            watched || migration.step.receives() || migration.step == MigrationStep::GiveUp
        });
        Self {
            goal: goal(spec),
            aside: spec.aside,
            ordered: spec.migration.is_some(),
            no_free_vf: spec.no_free_vf,
            standby: spec.standby,
            pairing: spec.pairing,
            driver_order,
            drained,
            expected,
            duties,
        }
    }

    /// Whether the NIC is to have a VF, plugged or reserved.
    pub fn wants_vf(&self) -> bool {
        self.aside != Some(Aside::GiveVfBack)
    }

    /// Whether the NIC is to leave the VF that it holds: it is drained, and no migration is under way, which ends that anyway.
    pub fn leaves_vf(&self) -> bool {
        self.drained && !self.ordered
    }

    /// Whether the agent ends a QEMU that will never run the VM: also one that somebody has started on the host, where a migration that
    /// the agent carries out says that the VM has left it, or does not come.
    fn ends_qemu(&self) -> bool {
        let moved = self.ordered && self.duties.migration == Owner::Agent;
        self.duties.vm_end == Owner::Agent || moved
    }

    /// Whether the VF is all that the NIC has.
    pub fn is_alone(&self) -> bool {
        self.standby == StandbyKind::None
    }

    /// Where the NIC is when its VF is out of a guest that has it.
    pub fn off_vf(&self) -> AttachmentState {
        match self.standby {
            StandbyKind::Macvtap => AttachmentState::Standby,
            StandbyKind::None => AttachmentState::Aside,
        }
    }

    /// Whether the NIC waits until there is a VF for it.
    fn waits_for_vf(&self) -> bool {
        self.wants_vf() && self.no_free_vf == NoFreeVf::Wait
    }
}

/// Where a NIC should be, with what its owner says: a NIC that is told to stay on its standby does not go further than that.
pub fn goal(spec: &NicAttachmentSpec) -> Goal {
    match spec.goal {
        Goal::FastPath if spec.aside.is_some() => Goal::Standby,
        goal => goal,
    }
}

/// The order in which VF and standby are switched: which of the two comes first.
pub fn switch_order(ask: &Ask, seen: &Seen, learnt: &Learnt) -> SwitchOrder {
    let other_pf = matches!(
        seen.vf,
        Some(VfSeen::There(VfThere { other_pf: true, .. }) | VfSeen::Unknown { other_pf: true })
    );
    if other_pf || learnt.refuses_twice {
        SwitchOrder::BreakBeforeMake
    } else {
        ask.driver_order
    }
}

/// The next step.
pub fn next(ask: &Ask, seen: &Seen, learnt: &Learnt) -> Decision {
    // This comes first, in any other state, and whether or not QEMU answers.
    if seen.foreign_mac && !seen.seized || seen.seized && seen.macvtap == Some(true) {
        return Decision::Do(Step::SeizeStandby);
    }
    match ask.goal {
        Goal::Detached => detach::next(ask, seen, learnt),
        Goal::Reserved => guarded(reserve::next(ask, seen, learnt), seen),
        _ if ask.is_alone() => alone::next(ask, seen, learnt),
        goal => guarded(attach::next(goal, ask, seen, learnt), seen),
    }
}

/// Nothing is plugged or goes up unguarded. A standby that is up already, for example because its filters were removed or the network has
/// changed, is guarded after everything else: a guard that fails must not keep a VF in a guest, or a MAC live, that has to leave.
fn guarded(decision: Decision, seen: &Seen) -> Decision {
    let there = seen.macvtap.is_some() && !seen.guarded;
    match decision {
        Decision::Do(Step::AnswerSandbox | Step::PlugStandby | Step::StandbyUp) | Decision::Done(_)
            if there =>
        {
            Decision::Do(Step::GuardStandby)
        }
        Decision::Wait(_) if there && !seen.seized && matches!(seen.qemu, super::seen::QemuSeen::Up(_)) => {
            Decision::Do(Step::GuardStandby)
        }
        decision => decision,
    }
}

fn wait_because(state: AttachmentState, reason: &'static str, message: impl Into<String>) -> Decision {
    Decision::Wait(Wait {
        state,
        reason,
        message: message.into(),
    })
}

/// Gives back a VF that the NIC is no longer to have. It is not in the guest.
fn give_back(ask: &Ask, seen: &Seen) -> Option<Step> {
    let goes = (!ask.wants_vf() || ask.drained) && !ask.ordered && seen.there().is_some();
    goes.then_some(Step::RestoreVf)
}

fn has_nic_mac(seen: &Seen) -> bool {
    seen.there().is_some_and(|vf| vf.mac == VfMac::Nic)
}

fn is_parked(seen: &Seen) -> bool {
    seen.there().is_some_and(|vf| vf.mac == VfMac::Parking)
}

const FLOOD: &str = "the VM's QEMU sends more than a thousand events a second: it is broken, or its guest has taken it over. It is left \
                     alone for a while, longer each time; then it is tried again";
const KEEPS_VF: &str = "the guest did not let go of the VF in time: it needs a PCI hot-plug driver (acpiphp or pciehp) \
                        and must not be paused; the VF stays";

const UNKNOWN: &str =
    "how the VF is cannot be read at the moment, so it is left as it is; looked at again soon";
