//! A migration in a world where anything may happen: QEMUs that fail at any moment, agents whose reports come
//! late, in any order, a user who cancels. One invariant must always hold: no VF at the source while the VM may run
//! at the target; and when everything was reported, the migration ends.

use hybridnic_api::v1alpha1::{
    AttachmentState, Goal, MigrationPhase, MigrationState, MigrationStep, NicAttachment,
};
use proptest::prelude::*;

use crate::attachment;
use crate::migration::encryption::Encryption;
use crate::migration::testing::Scene;
use crate::testing::{observe, report, report_kept};

/// The truth; the operator sees only reports of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Idle,
    Sending,
    HandedOver,
    Cancelled,
    /// Failed before the VM could leave.
    Kept,
    /// Failed after that: QEMU ran it again, and the agent has paused it.
    Held,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Idle,
    Listening,
    Receiving,
    /// All of it is there, and its agent has not started it.
    Loaded,
    Running,
    /// Without ever having run it.
    Dead,
    /// After it ran there.
    Ended,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Operator,
    Nics,
    SourceAgent,
    TargetAgent,
    Advance,
    SourceFails,
    SourceEnds,
    TargetEnds,
    Cancel,
    Late,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => Just(Event::Operator),
        6 => Just(Event::Nics),
        6 => Just(Event::SourceAgent),
        6 => Just(Event::TargetAgent),
        5 => Just(Event::Advance),
        1 => Just(Event::SourceFails),
        1 => Just(Event::SourceEnds),
        1 => Just(Event::TargetEnds),
        1 => Just(Event::Cancel),
        1 => Just(Event::Late),
    ];
    proptest::collection::vec(event, 0..120)
}

struct Sim {
    scene: Scene,
    source: Source,
    target: Target,
    /// All of the VM has been sent: the target runs it next, no matter what becomes of the source.
    sent: bool,
}

impl Sim {
    /// A migration that has come so far without trouble: the transfer is where most can go wrong.
    fn new(stage: u8) -> Self {
        let (scene, target) = match stage {
            0 => (Scene::new(), Target::Idle),
            4 => (Scene::encrypted(), Target::Idle),
            5 => (Scene::certified(Encryption::Preferred), Target::Idle),
            1 => (Scene::switching(), Target::Listening),
            _ => (Scene::transferring(), Target::Listening),
        };
        Self {
            scene,
            source: Source::Idle,
            target,
            sent: false,
        }
    }

    /// Whether the target has run the VM, or will without another order.
    fn target_may_run(&self) -> bool {
        let gives_up = self.scene.target.as_ref().is_some_and(|target| {
            let order = target.spec.migration.as_ref();
            order.is_some_and(|order| order.step == MigrationStep::GiveUp)
        });
        matches!(self.target, Target::Running | Target::Ended)
            || !gives_up && (self.target == Target::Loaded || self.sent && self.target == Target::Receiving)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Operator => {
                self.scene.step();
            }
            Event::Nics => self.scene.apply(),
            Event::SourceAgent => self.source_agent(),
            Event::TargetAgent => self.target_agent(),
            Event::Advance => self.advance(),
            // Also after everything was sent: the way back, on which the target reports it, may break.
            Event::SourceFails if self.source == Source::Sending => self.source = Source::Kept,
            Event::SourceFails if self.source == Source::HandedOver => self.source = Source::Held,
            Event::SourceEnds => {
                self.source = Source::Gone;
                self.scene.end_pod(0);
            }
            Event::TargetEnds => {
                let ran = matches!(self.target, Target::Running | Target::Ended);
                self.target = if ran { Target::Ended } else { Target::Dead };
                self.scene.end_pod(1);
            }
            Event::Cancel => self.scene.delete(),
            Event::Late => self.scene.second += 200,
            Event::SourceFails => {}
        }
        self.check();
    }

    /// The QEMUs among themselves.
    fn advance(&mut self) {
        (self.source, self.target) = match (self.source, self.target) {
            (Source::Sending, Target::Listening) => (Source::Sending, Target::Receiving),
            (Source::Sending, Target::Receiving) => {
                self.sent = true;
                (Source::HandedOver, Target::Receiving)
            }
            (_, Target::Receiving) if self.sent => (self.source, Target::Loaded),
            // The stream has broken off.
            (Source::Sending, Target::Dead) => (Source::Kept, Target::Dead),
            (Source::Cancelled | Source::Kept | Source::Gone, Target::Receiving) => {
                (self.source, Target::Dead)
            }
            same => same,
        };
    }

    fn source_agent(&mut self) {
        let may_run = self.target_may_run();
        let Some(attachment) = self.scene.source.as_mut() else {
            return;
        };
        let order = attachment.spec.migration.clone();
        match order.as_ref().map(|order| order.step) {
            Some(MigrationStep::Transfer)
                if self.source == Source::Idle && order.as_ref().unwrap().target_uri.is_some() =>
            {
                self.source = Source::Sending;
            }
            Some(MigrationStep::Cancel) if matches!(self.source, Source::Idle | Source::Sending) => {
                self.source = Source::Cancelled;
            }
            Some(MigrationStep::Resume) if matches!(self.source, Source::HandedOver | Source::Held) => {
                assert!(!may_run, "two of the same VM");
                self.source = Source::Cancelled;
            }
            _ => {}
        }
        let state = match (attachment.spec.goal, self.source) {
            (Goal::FastPath, Source::Idle | Source::Cancelled | Source::Kept) => AttachmentState::FastPath,
            (Goal::Standby, Source::Idle | Source::Sending | Source::Cancelled | Source::Kept) => {
                AttachmentState::Standby
            }
            (Goal::Detached, _) => AttachmentState::Detached,
            _ => AttachmentState::Pending,
        };
        observe(attachment, state);
        let certifies = order.as_ref().is_some_and(|order| order.tls.is_some());
        let word = match self.source {
            Source::Idle if certifies => MigrationState::Prepared,
            Source::Idle => return,
            Source::Sending => MigrationState::Active,
            Source::HandedOver => MigrationState::Completed,
            Source::Cancelled => MigrationState::Cancelled,
            Source::Held | Source::Kept => MigrationState::Failed,
            Source::Gone => MigrationState::Lost,
        };
        if order.is_some() && self.source == Source::Kept {
            report_kept(attachment);
        } else if order.is_some() {
            report(attachment, word);
        }
    }

    fn target_agent(&mut self) {
        let Some(attachment) = self.scene.target.as_mut() else {
            return;
        };
        let step = attachment.spec.migration.as_ref().map(|order| order.step);
        let listen = step == Some(MigrationStep::Listen);
        if listen && self.target == Target::Loaded {
            self.target = Target::Running;
        } else if attachment.spec.goal == Goal::Detached
            && !matches!(self.target, Target::Running | Target::Ended)
        {
            // Incoming QEMUs are ended before their devices are taken.
            self.target = Target::Dead;
        } else if listen && self.target == Target::Idle {
            self.target = Target::Listening;
        }
        let state = match (attachment.spec.goal, self.target) {
            (Goal::Detached, Target::Dead | Target::Ended) => AttachmentState::Detached,
            (Goal::FastPath, Target::Running) => AttachmentState::FastPath,
            _ => AttachmentState::Reserved,
        };
        observe(attachment, state);
        let word = match self.target {
            Target::Idle => return,
            Target::Listening => MigrationState::Listening,
            Target::Receiving | Target::Loaded => MigrationState::Active,
            Target::Running => MigrationState::Completed,
            Target::Dead => MigrationState::Lost,
            Target::Ended => MigrationState::Ended,
        };
        if listen || step == Some(MigrationStep::GiveUp) {
            report(attachment, word);
        }
    }

    /// Holds after every event, also between a decision and its effect.
    fn check(&self) {
        let fast =
            |end: &Option<NicAttachment>| end.as_ref().is_some_and(|end| end.spec.goal == Goal::FastPath);
        if self.target_may_run() {
            assert!(
                !fast(&self.scene.source),
                "source {:?}, target {:?}: {:?}",
                self.source,
                self.target,
                self.scene.wishes()
            );
            for spec in self.scene.specs().iter().filter(|spec| spec.pod.uid == "a-uid") {
                assert_ne!(
                    spec.goal,
                    Goal::FastPath,
                    "to be applied: {:?}",
                    self.scene.status_now()
                );
            }
        }
    }

    /// All that is under way comes to its end.
    fn settle(&mut self) {
        for _ in 0..40 {
            for event in [
                Event::Operator,
                Event::Nics,
                Event::SourceAgent,
                Event::TargetAgent,
                Event::Advance,
            ] {
                self.handle(event);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn the_vm_never_has_a_vf_at_an_end_where_it_may_not_run(stage in 0_u8..6, events in events()) {
        let mut sim = Sim::new(stage);
        for event in events {
            sim.handle(event);
        }
        // A user who waits long enough, or gives up.
        sim.settle();
        sim.scene.second += 1000;
        sim.settle();
        let began = sim.scene.status_now().target.is_some();
        if began {
            prop_assert!(sim.scene.phase().is_final(), "{:?}: {:?} {:?}", sim.scene.status_now(), sim.source, sim.target);
        }
        match sim.scene.phase() {
            MigrationPhase::Succeeded => prop_assert!(sim.source != Source::Idle),
            MigrationPhase::Failed | MigrationPhase::Cancelled if began => {
                prop_assert!(!matches!(sim.target, Target::Running | Target::Ended));
                if sim.source != Source::Gone {
                    prop_assert_eq!(attachment::state(sim.scene.source.as_ref().unwrap()), AttachmentState::FastPath);
                }
            }
            _ => {}
        }
    }
}
