//! On a model of a node: no matter what happens, nothing is wrong at any step, and it ends well.

use hybridnic_api::v1alpha1::{Aside, AttachmentState, Goal, NoFreeVf, Pairing, StandbyKind, SwitchOrder};
use proptest::prelude::*;

use super::{
    Ask, Decision, Guest, Learnt, PARKED, Run, Seen, Sends, Step, VfMac, VfThere, ask,
    model::{Node, PFS, RUNTIME},
    next, seen,
    story::{Event, Hardware, Manners},
};
use crate::machine::Duties;

fn goals() -> impl Strategy<Value = Goal> {
    prop::sample::select(
        &[
            Goal::Standby,
            Goal::FastPath,
            Goal::FastPath,
            Goal::Detached,
            Goal::Reserved,
        ][..],
    )
}

fn asides() -> impl Strategy<Value = Option<Aside>> {
    prop::sample::select(&[None, None, Some(Aside::GiveVfBack), Some(Aside::KeepVf)][..])
}

fn duties() -> impl Strategy<Value = Duties> {
    prop::sample::select(&[Duties::QEMU, RUNTIME][..])
}

fn hardware() -> impl Strategy<Value = Hardware> {
    let order = prop::sample::select(&[SwitchOrder::MakeBeforeBreak, SwitchOrder::BreakBeforeMake][..]);
    let no_free_vf = prop::sample::select(&[NoFreeVf::Standby, NoFreeVf::Wait][..]);
    let mac = prop::sample::select(&[VfMac::Other, VfMac::Nic][..]);
    let pairing = any::<bool>();
    (
        any::<bool>(),
        order,
        no_free_vf,
        mac,
        any::<bool>(),
        duties(),
        pairing,
        any::<bool>(),
        prop::bool::weighted(0.3),
    )
        .prop_map(
            |(refuses_twice, order, no_free_vf, stale_mac, plain, duties, bond, profile, alone)| Hardware {
                refuses_twice,
                order,
                no_free_vf,
                // A runtime starts its VMs with a standby.
                standby: if alone && duties != RUNTIME {
                    StandbyKind::None
                } else {
                    StandbyKind::Macvtap
                },
                // A runtime's standby always has the feature.
                pairing: if bond && duties != RUNTIME {
                    Pairing::Bond
                } else {
                    Pairing::NetFailover
                },
                stale_mac,
                plain,
                profile,
                duties,
            },
        )
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    use Manners::{Asleep, Blind, Good, IgnoresVf, KeepsVf, NoFailover, TwoNics};
    let manners = prop::sample::select(
        &[
            Good, Good, Good, Good, KeepsVf, IgnoresVf, Blind, NoFailover, TwoNics, Asleep,
        ][..],
    );
    let event = prop_oneof![
        40 => prop::bool::weighted(0.1).prop_map(|fails| Event::Step { fails }),
        2 => Just(Event::Crash),
        2 => Just(Event::Relearn),
        5 => goals().prop_map(Event::Goal),
        4 => asides().prop_map(Event::Told),
        2 => any::<bool>().prop_map(Event::Ordered),
        3 => manners.prop_map(Event::Guest),
        3 => (0..PFS, any::<bool>()).prop_map(|(pf, link)| Event::Link { pf, link }),
        2 => Just(Event::LinkSettles),
        2 => (0..PFS, any::<bool>()).prop_map(|(pf, drained)| Event::Drain { pf, drained }),
        1 => any::<bool>().prop_map(Event::Steady),
        3 => (0..PFS, any::<bool>()).prop_map(|(pf, offered)| Event::Offer { pf, offered }),
        2 => any::<bool>().prop_map(Event::Unread),
        1 => Just(Event::MtuLost),
        1 => Just(Event::GuardLost),
        1 => Just(Event::MacStolen),
        1 => Just(Event::VfLost),
        1 => Just(Event::MacvtapLost),
        1 => Just(Event::Settings),
        1 => any::<bool>().prop_map(Event::Expected),
        1 => any::<bool>().prop_map(Event::Refuses),
        1 => any::<bool>().prop_map(Event::NoBind),
        1 => any::<bool>().prop_map(Event::NoPark),
        1 => any::<bool>().prop_map(Event::NoPlug),
        1 => any::<bool>().prop_map(Event::NoPort),
        1 => Just(Event::PortLost),
        1 => Just(Event::QemuEnds),
        2 => any::<bool>().prop_map(|incoming| Event::QemuStarts { incoming }),
        1 => Just(Event::Sandbox),
        2 => any::<bool>().prop_map(Event::Mute),
        1 => Just(Event::Reset),
        1 => Just(Event::Interrupts),
        2 => Just(Event::GoesWithout),
        4 => Just(Event::Migrate),
        2 => Just(Event::TakenBack),
    ];
    prop::collection::vec(event, 0..80)
}

/// More cases than usual when `PROPTEST_CASES` asks for them.
fn config() -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig {
        cases: usual.cases.max(1000),
        failure_persistence: None,
        ..usual
    }
}

/// A NIC without trouble leaves each PF that is drained, no matter when its agent dies, and comes back to that of its standby.
fn drains(node: &mut Node) {
    node.avoided = [false; PFS];
    let [first, other] = match node.vf.map(|vf| vf.pf) {
        Some(1) => [1, 0],
        _ => [0, 1],
    };
    let pf = |node: &Node| node.vf.map(|vf| vf.pf);
    let drain = |node: &mut Node, pf, drained| node.handle(Event::Drain { pf, drained });
    drain(node, first, true);
    node.handle(Event::Step { fails: false });
    node.handle(Event::Crash);
    assert_eq!(node.settle(), Decision::Done(AttachmentState::FastPath));
    assert_eq!(pf(node), Some(other), "it goes to the other PF");
    drain(node, other, true);
    let Decision::Wait(wait) = node.settle() else {
        panic!("{node:#?}")
    };
    if node.is_alone() {
        assert_eq!(
            (wait.state, pf(node)),
            (AttachmentState::FastPath, Some(other)),
            "there is none, and it has nothing else"
        );
        drain(node, first, false);
        assert_eq!(node.settle(), Decision::Done(AttachmentState::FastPath));
        assert_eq!(pf(node), Some(first));
        drain(node, other, false);
        return;
    }
    assert_eq!(
        (wait.state, pf(node)),
        (AttachmentState::Standby, None),
        "there is none"
    );
    drain(node, first, false);
    drain(node, other, false);
    assert_eq!(node.settle(), Decision::Done(AttachmentState::FastPath));
    assert_eq!(pf(node), node.standby, "it prefers its standby's PF");
    if let Some(home) = node.standby {
        drain(node, home, true);
        assert_eq!(node.settle(), Decision::Done(AttachmentState::FastPath));
        drain(node, home, false);
        assert_eq!(node.settle(), Decision::Done(AttachmentState::FastPath));
        assert_ne!(pf(node), Some(home), "not at once");
        node.handle(Event::Steady(true));
        assert_eq!(node.settle(), Decision::Done(AttachmentState::FastPath));
        assert_eq!(pf(node), Some(home), "it is split no longer");
        node.handle(Event::Steady(false));
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn whatever_happens_it_ends_well(
        hardware in hardware(),
        incoming: bool,
        history in events(),
        goal in goals(),
        aside in asides(),
    ) {
        let mut node = Node::new(hardware, incoming);
        for event in history {
            node.handle(event);
        }
        node.settle();
        node.handle(Event::Goal(goal));
        node.settle();
        node.handle(Event::Crash);
        node.settle();
        node.heal();
        node.handle(Event::Goal(Goal::FastPath));
        node.handle(Event::Told(aside));
        if let Some(aside) = aside {
            let off_vf = Decision::Done(node.off_vf());
            prop_assert_eq!(node.settle(), off_vf.clone());
            prop_assert_eq!(node.vf.is_some(), aside == Aside::KeepVf);
            node.handle(Event::Crash);
            prop_assert_eq!(node.settle(), off_vf);
        }
        node.handle(Event::Told(None));
        prop_assert_eq!(node.settle(), Decision::Done(AttachmentState::FastPath));
        drains(&mut node);
        node.handle(Event::Goal(Goal::Detached));
        prop_assert_eq!(node.settle(), Decision::Done(AttachmentState::Detached));
    }

    /// Also states that no history leads to: an agent starts with what it finds.
    #[test]
    fn a_vm_that_is_not_here_stays_silent_and_nothing_is_taken_from_it(
        goal in goals(),
        run in prop::sample::select(&[Run::Incoming, Run::HandingOver, Run::HandedOver][..]),
        guest: (bool, bool, bool),
        vf: (bool, bool, bool, bool),
        macvtap: Option<bool>,
        learnt: (bool, bool, bool, bool),
        duties in duties(),
        aside in asides(),
        alone: bool,
    ) {
        let standby = if alone && duties != RUNTIME { StandbyKind::None } else { StandbyKind::Macvtap };
        let guest = Guest { run, standby: guest.0, vf: guest.1, uses_vf: guest.2, failover: None, migrating: false, acpi: true };
        let mac = if vf.0 { VfMac::Nic } else { VfMac::Parking };
        let vf = VfThere { mac, settings_ok: vf.1, link: vf.2, other_pf: vf.3, dark: !vf.2, ..PARKED };
        let learnt = Learnt {
            keeps_vf: learnt.0, ignores_vf: learnt.1.then_some(Sends::ByStandby), refuses_twice: learnt.2, announce: learnt.3, ..Learnt::default()
        };
        let decision = next(&Ask { aside, standby, duties, ..ask(goal) }, &Seen { macvtap, ..seen(guest, true, vf) }, &learnt);
        let wrong = match decision {
            // Told, it does without one, and that is not in the guest.
            Decision::Do(Step::RestoreVf) if aside == Some(Aside::GiveVfBack) => guest.vf,
            Decision::Do(Step::RemoveStandby | Step::MoveStandby | Step::RestoreVf | Step::Forget) => guest.vf || guest.standby,
            Decision::Do(step) => matches!(
                step,
                Step::StandbyUp
                    | Step::ConfigureVf
                    | Step::PlugVf
                    | Step::Announce
                    | Step::UnplugVf
                    | Step::UnplugStandby
            ),
            _ => false,
        };
        let theirs = matches!(decision, Decision::Do(Step::PlugStandby | Step::UnplugStandby | Step::QuitQemu | Step::MoveStandby));
        prop_assert!(!(theirs && duties == RUNTIME), "{decision:?} is the runtime's");
        prop_assert!(!wrong, "{decision:?}");
    }
}
