//! What guards the macvtap, and a QEMU that gives it another MAC.

use super::{model::Node, *};

/// What a macvtap has beside up and down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tap {
    /// What passes it is guarded.
    pub guarded: bool,
    /// It has another MAC.
    pub foreign_mac: bool,
    /// It has had one; the journal says so.
    pub seized: bool,
    /// The QEMU that gave it that has ended.
    pub seizer_ended: bool,
}

impl Tap {
    /// As it is made.
    pub const NEW: Self = Self {
        guarded: false,
        foreign_mac: false,
        seized: false,
        seizer_ended: false,
    };

    /// Whether it may receive.
    pub fn may_be_up(self) -> bool {
        self.guarded && !self.foreign_mac && !self.seized
    }
}

impl Node {
    /// A process without a descriptor of the macvtap cannot.
    pub(super) fn steal_mac(&mut self) {
        let has_it = self.qemu.is_some_and(|q| q.standby && !q.dead_standby);
        self.tap.foreign_mac |= self.macvtap.is_some() && has_it;
    }

    pub(super) fn end_qemu(&mut self) {
        (self.qemu, self.moved) = (None, false);
        self.tap.seizer_ended = self.tap.seized;
        if self.is_runtimes() {
            // With its pod.
            self.macvtap = None;
        }
    }
}

/// A NIC whose macvtap is so.
fn with(tap: Tap, seen: Seen) -> Seen {
    Seen {
        guarded: tap.guarded,
        foreign_mac: tap.foreign_mac,
        seized: tap.seized,
        seizer_ended: tap.seizer_ended,
        ..seen
    }
}

const BARE: Guest = Guest {
    standby: false,
    ..GUEST
};
const GUARDED: Tap = Tap {
    guarded: true,
    ..Tap::NEW
};
const STOLEN: Tap = Tap {
    foreign_mac: true,
    ..GUARDED
};
const SEIZED: Tap = Tap {
    seized: true,
    ..STOLEN
};

#[test]
fn nothing_goes_up_or_into_a_guest_unguarded() {
    let no = Learnt::default();
    for goal in [TO_STANDBY, TO_VF] {
        for guest in [BARE, GUEST] {
            let unguarded = with(Tap::NEW, seen(guest, false, PARKED));
            does(goal, unguarded, no, Step::GuardStandby);
        }
    }
}

#[test]
fn a_guard_that_fails_holds_nothing_up_that_has_to_leave() {
    let no = Learnt::default();
    let unguarded = |guest, up, vf| with(Tap::NEW, seen(guest, up, vf));
    does(TO_STANDBY, unguarded(FAST, true, READY), no, Step::UnplugVf);
    does(OUT, unguarded(FAST, true, READY), no, Step::UnplugVf);
    let leaves = Guest {
        run: Run::HandedOver,
        ..GUEST
    };
    does(TO_STANDBY, unguarded(leaves, true, PARKED), no, Step::StandbyDown);
    does(TO_STANDBY, unguarded(leaves, false, READY), no, Step::Park);
    // What rests is guarded then.
    does(TO_VF, unguarded(FAST, false, READY), no, Step::GuardStandby);
    does(TO_STANDBY, unguarded(GUEST, true, PARKED), no, Step::GuardStandby);
}

#[test]
fn a_macvtap_with_another_mac_is_shut_until_its_qemu_has_ended() {
    let no = Learnt::default();
    for up in [true, false] {
        let stolen = with(STOLEN, seen(GUEST, up, PARKED));
        does(TO_VF, stolen, no, Step::SeizeStandby);
    }
    // Whatever MAC it has now.
    for foreign_mac in [true, false] {
        let tap = Tap {
            foreign_mac,
            ..SEIZED
        };
        let up = with(tap, seen(GUEST, true, PARKED));
        does(TO_STANDBY, up, no, Step::SeizeStandby);
        let shut = |guest, vf| with(tap, seen(guest, false, vf));
        let reason = reasons::STANDBY_SEIZED;
        waits(TO_STANDBY, shut(GUEST, PARKED), no, Pending, reason);
        waits(TO_VF, shut(GUEST, READY), no, Pending, reason);
        waits(TO_VF, shut(FAST, READY), no, FastPath, reason);
        does(OUT, shut(FAST, READY), no, Step::UnplugVf);
        // Its socket is gone, which proves nothing; another listens on it.
        let gone = |seen| Seen {
            qemu: QemuSeen::Gone,
            ..seen
        };
        waits(
            TO_VF,
            gone(shut(GUEST, PARKED)),
            no,
            Pending,
            reasons::QMP_UNAVAILABLE,
        );
        waits(TO_VF, shut(BARE, PARKED), no, Pending, reason);
        let ended = Tap {
            seizer_ended: true,
            ..tap
        };
        let shut = |guest| with(ended, seen(guest, false, PARKED));
        for now in [gone(shut(GUEST)), shut(BARE)] {
            does(TO_VF, now, no, Step::RemoveStandby);
        }
    }
}

#[test]
fn one_that_does_not_answer_is_shut_as_well_and_has_not_ended() {
    let no = Learnt::default();
    for qemu in [QemuSeen::Unreachable, QemuSeen::Gone] {
        let mute = |tap, up| Seen {
            qemu,
            ..with(tap, seen(GUEST, up, PARKED))
        };
        for goal in [TO_VF, TO_STANDBY, OUT] {
            does(goal, mute(STOLEN, true), no, Step::SeizeStandby);
        }
        waits(TO_VF, mute(SEIZED, false), no, Pending, reasons::QMP_UNAVAILABLE);
    }
}
