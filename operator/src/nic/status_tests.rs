use hybridnic_api::v1alpha1::{MigrationEnd, VfRef};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

use super::*;
use crate::testing::{a_move, attachment, nic, observe, say};

struct Scene {
    nic: VmHybridNic,
    attachments: Vec<Arc<NicAttachment>>,
    admission: Result<(), Refusal>,
    kept: Option<Refusal>,
    obstacle: Option<Refusal>,
    located: bool,
    other_pods: Vec<String>,
    moving: Option<Move>,
    moves: Vec<Move>,
}

impl Scene {
    fn new() -> Self {
        Self {
            nic: nic("eth0", "vm", "net", 1),
            attachments: Vec::new(),
            admission: Ok(()),
            kept: None,
            obstacle: None,
            located: true,
            other_pods: Vec::new(),
            moving: None,
            moves: Vec::new(),
        }
    }

    fn status_now(&self) -> VmHybridNicStatus {
        let pod = ObjectRef {
            name: "a".to_owned(),
            uid: "a-uid".to_owned(),
        };
        build_status(&Inputs {
            nic: &self.nic,
            now: Timestamp::from_second(100).unwrap(),
            mac: Some("02:00:00:00:00:01".to_owned()),
            admission: self.admission.clone(),
            kept: self.kept.clone(),
            location: self.located.then(|| (pod, "n1".to_owned())),
            other_pods: self.other_pods.clone(),
            obstacle: self.obstacle.clone(),
            attachments: &self.attachments,
            moving: self.moving.as_ref(),
            moves: &self.moves,
        })
    }

    fn reasons(&self) -> (NicPhase, [String; 3]) {
        let status = self.status_now();
        let reason = |type_| {
            conditions::find(&status.conditions, type_)
                .unwrap()
                .reason
                .clone()
        };
        (
            status.phase,
            [
                reason(types::ACCEPTED),
                reason(types::READY),
                reason(types::FAST_PATH),
            ],
        )
    }
}

fn at(state: AttachmentState) -> NicAttachment {
    let mut attachment = attachment("eth0", "a", "n1");
    observe(&mut attachment, state);
    attachment
}

fn strings(reasons: [&str; 3]) -> [String; 3] {
    reasons.map(ToOwned::to_owned)
}

#[test]
fn what_may_be_live_on_a_lost_node_outweighs_its_last_word() {
    let mut scene = Scene::new();
    scene.obstacle = Some(Refusal::new(reasons::NODE_UNREACHABLE, "n1 is lost"));
    let lost = strings([
        reasons::ACCEPTED,
        reasons::NODE_UNREACHABLE,
        reasons::NODE_UNREACHABLE,
    ]);
    assert_eq!(scene.reasons(), (NicPhase::Pending, lost.clone()));
    let notes = notes(&VmHybridNicStatus::default(), &scene.status_now());
    let told: Vec<_> = notes
        .iter()
        .map(|note| (note.warning, note.reason.as_str()))
        .collect();
    assert_eq!(told, [(true, reasons::NODE_UNREACHABLE)]);

    // A NIC that is deleted, of a pod that is still said to run there.
    let mut there = at(AttachmentState::FastPath);
    say(&mut there, reasons::VF_ACTIVE, "the VF carries the traffic");
    scene.attachments = vec![Arc::new(there)];
    scene.nic.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    assert_eq!(scene.reasons(), (NicPhase::Detaching, lost));

    // One that is only waited for passes by itself.
    let mut waits = Scene::new();
    waits.obstacle = Some(Refusal::new(reasons::WAITING_FOR_DETACH, "n1 is asked"));
    assert_eq!(waits.reasons().1[1], reasons::WAITING_FOR_DETACH);
    assert_eq!(
        super::notes(&VmHybridNicStatus::default(), &waits.status_now()),
        []
    );
}

#[test]
fn an_address_that_is_kept_is_accepted_and_told_of() {
    let mut scene = Scene::new();
    scene.attachments = vec![Arc::new(at(AttachmentState::FastPath))];
    scene.kept = Some(Refusal::new(reasons::MAC_NOT_ALLOWED, "it is out of range"));
    let status = scene.status_now();
    assert_eq!(status.phase, NicPhase::FastPath);
    let accepted = conditions::find(&status.conditions, types::ACCEPTED).unwrap();
    assert_eq!(
        (accepted.status.as_str(), accepted.reason.as_str()),
        ("True", reasons::MAC_NOT_ALLOWED)
    );
    assert!(
        accepted.message.ends_with("and no longer: it is out of range"),
        "{}",
        accepted.message
    );
}

#[test]
fn every_refusal_is_shown() {
    let cases = [
        (reasons::NETWORK_NOT_FOUND, NicPhase::Pending),
        (reasons::NAMESPACE_NOT_ALLOWED, NicPhase::Failed),
        (reasons::MAC_CONFLICT, NicPhase::Failed),
        (reasons::MAC_NOT_ALLOWED, NicPhase::Failed),
        (reasons::MAC_RANGE_EXHAUSTED, NicPhase::Failed),
    ];
    for (reason, phase) in cases {
        let mut scene = Scene::new();
        scene.admission = Err(Refusal::new(reason, "why"));
        scene.obstacle = Some(Refusal::new(reasons::POD_NOT_FOUND, "less important"));
        assert_eq!(scene.reasons(), (phase, strings([reason, reason, reason])));
        let status = scene.status_now();
        let notes = notes(&VmHybridNicStatus::default(), &status);
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].warning && notes[0].reason == reason);
    }
}

#[test]
fn every_obstacle_is_shown() {
    let cases = [
        reasons::POD_NOT_FOUND,
        reasons::POD_NOT_RUNNING,
        reasons::AGENT_NOT_FOUND,
        reasons::NODE_NOT_IN_NETWORK,
    ];
    for reason in cases {
        let mut scene = Scene::new();
        scene.obstacle = Some(Refusal::new(reason, "why"));
        scene.located = reason != reasons::POD_NOT_FOUND;
        assert_eq!(
            scene.reasons(),
            (NicPhase::Pending, strings([reasons::ACCEPTED, reason, reason]))
        );
    }
}

#[test]
fn a_nic_that_is_told_to_stay_on_its_standby_is_no_trouble() {
    let mut told = at(AttachmentState::Standby);
    let conditions = &mut told.status.as_mut().unwrap().conditions;
    for condition in [
        NewCondition::yes(types::READY, reasons::ATTACHED, "it is where it should be"),
        NewCondition::no(types::FAST_PATH, reasons::STANDBY_REQUESTED, "it is told so"),
    ] {
        conditions::set(conditions, None, Timestamp::UNIX_EPOCH, condition);
    }
    let mut scene = Scene::new();
    scene.attachments = vec![Arc::new(told)];
    assert_eq!(
        scene.reasons(),
        (
            NicPhase::Standby,
            strings([reasons::ACCEPTED, reasons::ATTACHED, reasons::STANDBY_REQUESTED])
        )
    );
    let before = VmHybridNicStatus {
        path: Path::FastPath,
        ..VmHybridNicStatus::default()
    };
    let notes = notes(&before, &scene.status_now());
    let told: Vec<_> = notes
        .iter()
        .map(|note| (note.warning, note.reason.as_str()))
        .collect();
    assert_eq!(told, [(false, reasons::STANDBY_REQUESTED)]);
}

#[test]
fn the_agent_s_words_are_passed_on() {
    let mut scene = Scene::new();
    assert_eq!(
        scene.reasons(),
        (
            NicPhase::Attaching,
            strings([reasons::ACCEPTED, reasons::AGENT_PENDING, reasons::AGENT_PENDING])
        )
    );
    let mut standby = at(AttachmentState::Standby);
    say(&mut standby, reasons::NO_FREE_VF, "all 7 VFs are held");
    scene.attachments = vec![Arc::new(standby)];
    assert_eq!(
        scene.reasons(),
        (
            NicPhase::Standby,
            strings([reasons::ACCEPTED, reasons::NO_FREE_VF, reasons::NO_FREE_VF])
        )
    );
    let status = scene.status_now();
    assert_eq!(
        (status.path, status.node_name.as_deref()),
        (Path::Standby, Some("n1"))
    );
    let fast = conditions::find(&status.conditions, types::FAST_PATH).unwrap();
    assert_eq!(fast.message, "all 7 VFs are held");

    // A network that is deleted later takes nothing from the VM.
    scene.admission = Err(Refusal::new(reasons::NETWORK_NOT_FOUND, "gone"));
    assert_eq!(scene.status_now().phase, NicPhase::Standby);
}

#[test]
fn nothing_new_changes_nothing() {
    let mut scene = Scene::new();
    scene.attachments = vec![Arc::new(at(AttachmentState::FastPath))];
    let first = scene.status_now();
    scene.nic.status = Some(first.clone());
    assert_eq!(scene.status_now(), first);
    assert_eq!(notes(&first, &scene.status_now()), []);
}

#[test]
fn a_path_that_changes_is_told_once() {
    let mut scene = Scene::new();
    let mut fast = at(AttachmentState::FastPath);
    fast.status.as_mut().unwrap().vf = Some(VfRef {
        pci_address: "0000:01:10.0".to_owned(),
        pf: "ens1".to_owned(),
        index: 0,
    });
    scene.attachments = vec![Arc::new(fast)];
    let first = scene.status_now();
    let told = notes(&VmHybridNicStatus::default(), &first);
    assert_eq!(told.len(), 1);
    assert_eq!(
        (told[0].reason.as_str(), told[0].warning),
        (reasons::VF_ACTIVE, false)
    );
    assert!(told[0].message.contains("0000:01:10.0 of ens1 on n1"));

    let mut standby = at(AttachmentState::Standby);
    say(&mut standby, reasons::VF_LOST, "the VF has gone");
    scene.attachments = vec![Arc::new(standby)];
    scene.nic.status = Some(first.clone());
    let told = notes(&first, &scene.status_now());
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].message.contains("the VF has gone"));
}

fn moved(stage: Stage, start: i64) -> Move {
    let at = |end: MigrationEnd, node: &str| MigrationEnd {
        node_name: node.to_owned(),
        ..end
    };
    let mut of = a_move("m", "a", "b");
    (of.source, of.target) = (at(of.source, "n1"), at(of.target, "n2"));
    of.stage = stage;
    of.times.started_at = Some(MicroTime(Timestamp::from_second(start).unwrap()));
    of
}

#[test]
fn a_nic_that_is_deleted_says_so() {
    let mut scene = Scene::new();
    scene.nic.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    assert_eq!(scene.reasons().0, NicPhase::Detaching);
}

#[test]
fn a_nic_whose_vm_may_be_in_another_pod_says_what_to_do() {
    let mut scene = Scene::new();
    let mut waits = attachment("eth0", "a", "n1");
    observe(&mut waits, AttachmentState::Reserved);
    say(&mut waits, reasons::VM_INCOMING, "QEMU waits");
    scene.attachments = vec![Arc::new(waits.clone())];
    let messages = |scene: &Scene| {
        let status = scene.status_now();
        [types::READY, types::FAST_PATH].map(|type_| {
            conditions::find(&status.conditions, type_)
                .unwrap()
                .message
                .clone()
        })
    };
    assert_eq!(messages(&scene), ["QEMU waits"; 2]);
    scene.other_pods = vec!["b".to_owned(), "c".to_owned()];
    assert_eq!(
        messages(&scene),
        ["QEMU waits; if the VM runs in b or c, delete the pod a: the NIC follows"; 2]
    );
    say(&mut waits, reasons::QMP_UNAVAILABLE, "QEMU has ended");
    scene.attachments = vec![Arc::new(waits)];
    assert_eq!(messages(&scene), ["QEMU has ended"; 2]);
}

#[test]
fn a_nic_without_a_standby_tells_that_it_is_cut_off_and_that_it_is_back() {
    let mut scene = Scene::new();
    let alone = |state| {
        let mut attachment = at(state);
        attachment.spec.standby = StandbyKind::None;
        attachment
    };
    let mut fast = alone(AttachmentState::FastPath);
    for type_ in [types::READY, types::FAST_PATH] {
        let active = NewCondition::yes(type_, reasons::VF_ACTIVE, "");
        let conditions = &mut fast.status.as_mut().unwrap().conditions;
        conditions::set(conditions, None, Timestamp::UNIX_EPOCH, active);
    }
    let fast = Arc::new(fast);
    scene.attachments = vec![Arc::clone(&fast)];
    scene.moving = Some(moved(Stage::Leaving, 5));
    let on_vf = scene.status_now();
    assert_eq!(scene.reasons().1[2], reasons::VF_ACTIVE);
    let mut out = alone(AttachmentState::Aside);
    say(&mut out, reasons::STEPPED_ASIDE, "its VF is out");
    scene.attachments = vec![Arc::new(out)];
    scene.nic.status = Some(on_vf.clone());
    assert_eq!(scene.reasons().1[2], reasons::STEPPED_ASIDE);
    let cut = scene.status_now();
    assert_eq!((cut.phase, cut.path), (NicPhase::Migrating, Path::None));
    assert!(is_news(Some(&on_vf), &cut));
    let told = |old: &VmHybridNicStatus, new: &VmHybridNicStatus| {
        let notes = notes(old, new);
        let told = notes.iter().map(|note| (note.warning, note.reason.clone()));
        told.collect::<Vec<_>>()
    };
    assert_eq!(told(&on_vf, &cut), [(false, reasons::STEPPED_ASIDE.to_owned())]);
    assert_eq!(told(&cut, &cut), []);
    // The VF of the target is there before the migration is over.
    scene.attachments = vec![fast];
    scene.nic.status = Some(cut.clone());
    let back = scene.status_now();
    assert_eq!(told(&cut, &back), [(false, reasons::VF_ACTIVE.to_owned())]);
    // Outside of migrations it is a phase of its own.
    let mut without = alone(AttachmentState::Aside);
    say(&mut without, reasons::NO_FREE_VF, "there is none");
    (scene.moving, scene.attachments) = (None, vec![Arc::new(without)]);
    assert_eq!(
        scene.reasons(),
        (
            NicPhase::Aside,
            strings([reasons::ACCEPTED, reasons::NO_FREE_VF, reasons::NO_FREE_VF])
        )
    );
}

#[path = "status_moves_tests.rs"]
mod migrations;
