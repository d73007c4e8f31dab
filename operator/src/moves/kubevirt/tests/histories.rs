//! Whatever happens, in any order.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug)]
enum Event {
    Operate(usize),
    Act(usize, bool),
    Send { without_leave: bool },
    Arrive,
    FailsLate,
    Fails,
    Deleted,
    TargetPodGone,
    Succeeds,
    KubevirtSaysSo,
    Pause(bool),
    Mute(bool),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => (0..2_usize).prop_map(Event::Operate),
        12 => (0..2_usize, any::<bool>()).prop_map(|(nic, at)| Event::Act(nic, at)),
        4 => prop::bool::weighted(0.2).prop_map(|without_leave| Event::Send { without_leave }),
        3 => Just(Event::Arrive),
        1 => Just(Event::FailsLate),
        1 => Just(Event::Fails),
        1 => Just(Event::Deleted),
        1 => Just(Event::TargetPodGone),
        2 => Just(Event::Succeeds),
        2 => Just(Event::KubevirtSaysSo),
        1 => any::<bool>().prop_map(Event::Pause),
        1 => any::<bool>().prop_map(Event::Mute),
    ]
}

impl World {
    /// Whether the pod at the target has a link.
    fn has_link(&self) -> bool {
        let goals = self.goals("b");
        goals
            .iter()
            .any(|goal| matches!(goal, Goal::Standby | Goal::FastPath))
    }

    fn happens(&mut self, event: Event) {
        let has_target = self.pods.iter().any(|pod| pod.name_any() == "b");
        let goes_on = self.migration.as_ref().is_some_and(|m| !is_final(m));
        match event {
            Event::Operate(nic) => self.operate(NICS[nic]),
            Event::Act(nic, source) => self.act(NICS[nic], if source { "a" } else { "b" }),
            // QEMU sends no VM that has a VF.
            Event::Send { without_leave }
                if goes_on
                    && has_target
                    && self.vm == Whereabouts::Source
                    && (without_leave || self.is_open()) =>
            {
                let has_vf = self
                    .attachments
                    .iter()
                    .any(|a| a.spec.pod.name == "a" && attachment::state(a) == AttachmentState::FastPath);
                if has_vf {
                    self.phase("Failed");
                } else {
                    self.send();
                }
            }
            // A pod that has no link has not started, no matter what QEMU at the source does.
            Event::Arrive if self.vm == Whereabouts::Leaving && has_target && self.has_link() => {
                self.arrive();
            }
            Event::FailsLate if self.vm == Whereabouts::Leaving => {
                self.vm = Whereabouts::Source;
                self.phase("Failed");
            }
            // KubeVirt's word need not be QEMU's.
            Event::Fails if goes_on => self.phase("Failed"),
            Event::Deleted => self.migration = None,
            Event::TargetPodGone if self.vm != Whereabouts::Target => {
                self.end_pod("b");
                self.vm = Whereabouts::Source;
            }
            Event::KubevirtSaysSo if self.vm == Whereabouts::Target => self.kubevirt_says_so(),
            Event::Pause(paused) => self.paused = paused,
            Event::Mute(mute) => self.mute = mute,
            Event::Succeeds if self.vm == Whereabouts::Target && goes_on => {
                self.kubevirt_says_so();
                self.phase("Succeeded");
                self.end_pod("a");
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// `check` looks at every order on the way.
    #[test]
    fn whatever_kubevirt_does_no_vm_loses_its_nics_and_it_ends_well(
        events in prop::collection::vec(event(), 0..60),
    ) {
        let mut world = World::begun();
        for event in events {
            world.happens(event);
        }
        // It comes to an end: what is being sent arrives, or stays.
        if world.vm == Whereabouts::Leaving {
            world.vm = Whereabouts::Source;
            world.phase("Failed");
        }
        if world.vm == Whereabouts::Target {
            world.kubevirt_says_so();
            world.phase("Succeeded");
            world.end_pod("a");
        } else {
            world.phase("Failed");
            world.end_pod("b");
        }
        world.settle();
        let at = if world.vm == Whereabouts::Target { "b" } else { "a" };
        let other = if world.vm == Whereabouts::Target { "a" } else { "b" };
        prop_assert_eq!(world.goals(at), [Goal::FastPath; 2]);
        prop_assert_eq!(world.goals(other), []);
        prop_assert!(world.moves().iter().all(|of| !of.is_under_way()));
    }
}
