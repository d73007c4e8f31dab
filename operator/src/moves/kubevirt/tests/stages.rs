//! What follows from what, step by step.

use super::*;

/// Its QEMU at the target looks as one that has not been handed the VM's run yet: only both other reports show that it has.
#[test]
fn a_vm_that_is_paused_has_come_once_kubevirt_and_the_source_say_so() {
    for source_first in [true, false] {
        let mut world = World::come();
        world.paused = true;
        world.act("fast", "b");
        let first = |world: &mut World| world.act("fast", "a");
        if source_first {
            first(&mut world);
        } else {
            world.kubevirt_says_so();
        }
        assert_eq!(world.stage(), Some(Stage::Moving), "one word is no proof");
        if source_first {
            world.kubevirt_says_so();
        } else {
            first(&mut world);
        }
        assert_eq!(world.stage(), Some(Stage::Arrived));
        world.phase("Succeeded");
        world.settle();
        world.end_pod("a");
        world.settle();
        assert_eq!(
            (world.goals("a"), world.goals("b")),
            (vec![], vec![Goal::FastPath; 2])
        );
        assert_eq!(world.stage(), Some(Stage::Over(Outcome::Succeeded)));
    }
}

#[test]
fn a_target_whose_agent_is_away_is_believed_to_have_the_vm_by_two_other_words() {
    let mut world = World::come();
    world.mute = true;
    world.phase("Succeeded");
    assert_eq!(world.awaited(), Some(End::Source));
    world.all_act();
    world.all_operate();
    assert_eq!(
        (world.stage(), world.awaited()),
        (Some(Stage::Moving), Some(End::Target))
    );
    assert_eq!(
        (world.goals("a"), world.goals("b")),
        (vec![Goal::Standby; 2], vec![Goal::Standby; 2])
    );
    // KubeVirt's report about an earlier migration, or about the node where the VM was.
    for (node, uid) in [("n2", "another"), ("n1", UID)] {
        world.vmi = Some(vmi(node, uid));
        assert_eq!(world.stage(), Some(Stage::Moving));
    }
    world.kubevirt_says_so();
    assert_eq!((world.stage(), world.awaited()), (Some(Stage::Arrived), None));
    world.settle();
    world.end_pod("a");
    world.settle();
    assert_eq!(
        (world.goals("a"), world.goals("b")),
        (vec![], vec![Goal::FastPath; 2])
    );
}

#[test]
fn a_source_that_is_over_has_let_the_vm_go() {
    let mut world = World::come();
    world.mute = true;
    world.phase("Succeeded");
    world.kubevirt_says_so();
    world.end_pod("a");
    assert_eq!(
        (world.stage(), world.awaited()),
        (Some(Stage::Moving), Some(End::Source)),
        "a pod that is not there any more proves nothing"
    );
    let mut over = pod("a", "vm", 1, "Succeeded", "n1");
    over.labels_mut().clear();
    world.pods.push(Arc::new(over));
    assert_eq!(world.stage(), Some(Stage::Arrived));
    world.all_operate();
    assert_eq!(world.stage(), Some(Stage::Over(Outcome::Succeeded)));
}

/// The operator ended between the source and the target, or could write to only one of them because its cache was late. Meanwhile the
/// target's QEMU does not answer.
#[test]
fn it_may_be_over_before_the_target_is_told_that_the_vm_has_come() {
    for (word, at_target) in [("Failed", false), ("Succeeded", false), ("Succeeded", true)] {
        let case = format!("{word}, {at_target}");
        let mut world = World::seen();
        world.mute = true;
        world.phase(word);
        if at_target {
            world.kubevirt_says_so();
        }
        let all = world.attachments.clone();
        let untold = |a: &&Arc<NicAttachment>| a.spec.pod.name == "b";
        world.all_operate();
        world.attachments.retain(|a| !untold(&a));
        world.attachments.extend(all.iter().filter(untold).cloned());
        for nic in NICS {
            world.act(nic, "a");
        }
        assert_eq!(world.stage(), Some(Stage::Over(Outcome::Succeeded)), "{case}");
        assert_eq!(world.goals("b"), [Goal::Standby; 2], "{case}");
        world.settle();
        assert_eq!(
            (world.goals("a"), world.goals("b")),
            (vec![], vec![Goal::FastPath; 2]),
            "{case}"
        );
        assert!(world.moves().iter().all(|of| !of.is_under_way()), "{case}");
    }
}

#[test]
fn a_migration_goes_from_gate_to_gate() {
    let mut world = World::begun();
    assert_eq!(world.stage(), Some(Stage::Preparing));
    world.all_operate();
    assert_eq!(world.goals("b"), [Goal::Reserved; 2]);
    assert_eq!(world.goals("a"), [Goal::FastPath; 2]);
    let order = world.attachments[0].spec.migration.clone().unwrap();
    assert_eq!(
        (order.step, order.migration.uid.as_str()),
        (MigrationStep::Watch, UID)
    );
    assert_eq!(order.nics, NICS);
    // One NIC is ready, the other is not.
    world.act("fast", "b");
    assert_eq!(world.stage(), Some(Stage::Preparing));
    world.all_act();
    assert_eq!(world.stage(), Some(Stage::Leaving));
    world.all_operate();
    assert_eq!(world.goals("a"), [Goal::Standby; 2]);
    assert_eq!(world.goals("b"), [Goal::Reserved; 2]);
    world.act("fast", "a");
    assert_eq!(world.stage(), Some(Stage::Leaving));
    world.all_act();
    assert_eq!(world.stage(), Some(Stage::Moving));
    world.all_operate();
    assert_eq!(world.goals("b"), [Goal::Standby; 2]);
    world.send();
    world.settle();
    assert_eq!(world.stage(), Some(Stage::Moving));
    world.arrive();
    world.all_act();
    assert_eq!(world.stage(), Some(Stage::Arrived));
    world.settle();
    assert_eq!(world.goals("b"), [Goal::FastPath; 2]);
    world.phase("Succeeded");
    world.end_pod("a");
    assert_eq!(world.stage(), Some(Stage::Over(Outcome::Succeeded)));
    world.settle();
    assert_eq!(world.goals("a"), []);
    assert!(world.attachments.iter().all(|a| a.spec.migration.is_none()));
    assert_eq!(world.stage(), Some(Stage::Over(Outcome::Succeeded)));
}

/// KubeVirt is done, and the target has said so; the source's agent is away.
fn done() -> World {
    let mut world = World::seen();
    world.all_operate();
    world.phase("Succeeded");
    world.kubevirt_says_so();
    assert_eq!(world.stage(), Some(Stage::Arrived));
    world
}

#[test]
fn a_source_whose_pod_is_no_more_need_not_say_that_it_has_let_go() {
    let mut world = done();
    world.all_operate();
    assert_eq!(world.stage(), Some(Stage::Arrived), "its pod is there");
    world.end_pod("a");
    assert_eq!(world.stage(), Some(Stage::Over(Outcome::Succeeded)));
    world.all_operate();
    assert_eq!(world.goals("a"), [Goal::Detached; 2], "it is asked all the same");
}

/// The cache is late with the source's attachments, so the operator cannot tell them. KubeVirt's object may go at any time.
#[test]
fn it_is_not_over_before_the_source_is_told_to_detach() {
    let mut world = World::seen();
    world.phase("Succeeded");
    world.kubevirt_says_so();
    world.end_pod("a");
    assert_eq!(world.goals("a"), [Goal::Standby; 2]);
    assert_eq!(world.stage(), Some(Stage::Arrived));
    world.operate("fast");
    assert_eq!(
        world.stage(),
        Some(Stage::Arrived),
        "one NIC is told, the other is not"
    );
    world.operate("slow");
    assert_eq!(world.stage(), Some(Stage::Over(Outcome::Succeeded)));
    world.migration = None;
    world.all_operate();
    assert!(world.moves().iter().all(|of| !of.is_under_way()));
    assert_eq!(
        (world.goals("a"), world.goals("b")),
        (vec![Goal::Detached; 2], vec![Goal::FastPath; 2])
    );
}

/// Its source's agent is away, and the pods of both ends are deleted by force while the VM goes on to a third.
#[test]
fn a_source_that_is_left_alone_is_not_taken_for_a_target() {
    let mut world = done();
    world.all_operate();
    world.end_pod("a");
    world.all_operate();
    world.another = Some(named("k", "k-uid", "Running"));
    world.pods.push(launcher("c", 20, "n3", Some("k-uid")));
    world.all_operate();
    world.end_pod("b");
    for migration in [world.migration.clone(), None] {
        world.migration = migration;
        let moves = world.moves();
        let of = moves.iter().find(|of| of.id.name == "m").unwrap();
        assert!(!of.is_under_way(), "{of:?}");
        assert_eq!(of.target.pod.name, "", "{of:?}");
    }
}

/// Its agent is away, and the source has its VFs back, without an order.
#[test]
fn a_target_that_is_left_alone_is_not_taken_for_the_source() {
    let mut world = World::begun();
    world.all_operate();
    world.all_act();
    world.all_operate();
    world.phase("Failed");
    world.end_pod("b");
    for _ in 0..4 {
        for nic in NICS {
            world.act(nic, "a");
        }
        world.all_operate();
    }
    assert_eq!(
        (world.goals("a"), world.goals("b")),
        (vec![Goal::FastPath; 2], vec![Goal::Detached; 2])
    );
    let [of] = &world.moves()[..] else {
        panic!("{:?}", world.moves())
    };
    assert_eq!(of.stage, Stage::Over(Outcome::Failed));
    assert_eq!((&*of.source.pod.name, &*of.target.pod.name), ("a", "b"));
}

/// The node of its source is lost, so that says nothing. KubeVirt removes the migrations of a VM that is no more.
#[test]
fn it_is_over_when_the_vm_has_ended_at_its_target() {
    let mut world = World::seen();
    world.phase("Failed");
    world.all_operate();
    world.end_pod("a");
    assert_eq!(world.stage(), Some(Stage::Arrived));
    world.end_pod("b");
    (world.migration, world.vmi) = (None, None);
    assert_eq!(world.stage(), Some(Stage::Over(Outcome::Succeeded)));
}

/// By its name the second one comes first.
#[test]
fn a_move_that_is_over_does_not_come_back_with_the_next_one() {
    let mut world = done();
    world.another = Some(named("k", "k-uid", "Scheduling"));
    world.pods.push(launcher("c", 20, "n3", Some("k-uid")));
    let known = |world: &World| {
        world
            .moves()
            .into_iter()
            .map(|of| (of.id.name, of.stage))
            .collect::<Vec<_>>()
    };
    let m = |stage| ("m".to_owned(), stage);
    let k = |stage| ("k".to_owned(), stage);
    assert_eq!(known(&world), [m(Stage::Arrived)], "one after the other");
    world.end_pod("a");
    let over = m(Stage::Over(Outcome::Succeeded));
    assert_eq!(known(&world), [k(Stage::Preparing), over.clone()]);
    world.all_operate();
    assert_eq!(world.goals("c"), [Goal::Reserved; 2]);
    // The target of the first is the source of the second, and no longer says anything about the first.
    for a in world.attachments.iter_mut().filter(|a| a.spec.pod.name == "b") {
        if let Some(status) = &mut Arc::make_mut(a).status {
            status.migration = None;
        }
    }
    assert_eq!(known(&world), [k(Stage::Preparing), over.clone()]);
    world.another = Some(named("k", "k-uid", "Failed"));
    world.all_operate();
    assert_eq!(known(&world), [k(Stage::Over(Outcome::Failed)), over]);
    assert_eq!(world.goals("b"), [Goal::FastPath; 2], "where the VM is");
    assert_eq!(world.goals("a"), [Goal::Detached; 2]);
}

#[test]
fn one_that_is_deleted_before_the_gate_gives_the_vfs_back_once_the_source_is_known_to_run_the_vm() {
    let mut world = World::begun();
    world.all_operate();
    world.all_act();
    world.all_operate();
    assert_eq!(world.goals("a"), [Goal::Standby; 2]);
    world.migration = None;
    world.end_pod("b");
    // What the source has said is of before it was told to leave; it says the same again.
    world.settle();
    assert_eq!(world.goals("a"), [Goal::FastPath; 2]);
    assert_eq!(world.goals("b"), []);
    assert_eq!(world.stage(), None);
}

#[test]
fn nothing_is_given_back_while_the_source_does_not_speak() {
    let mut world = World::begun();
    world.all_operate();
    for nic in NICS {
        world.act(nic, "b");
    }
    world.all_operate();
    world.phase("Failed");
    world.all_operate();
    assert_eq!(world.stage(), Some(Stage::Returning));
    assert_eq!(world.goals("a"), [Goal::Standby; 2]);
    assert_eq!(world.goals("b"), [Goal::Detached; 2], "no link, no VM");
    assert_eq!(world.awaited(), Some(End::Source));
    world.settle();
    assert_eq!(world.goals("a"), [Goal::FastPath; 2]);
    assert_eq!(world.stage(), Some(Stage::Over(Outcome::Failed)));
}

#[test]
fn one_that_fails_late_leaves_the_source_on_its_standby_until_it_is_known_to_run_there() {
    let mut world = World::begun();
    for _ in 0..4 {
        world.all_operate();
        world.all_act();
    }
    world.send();
    world.all_act();
    world.phase("Failed");
    world.settle();
    assert_eq!(world.goals("a"), [Goal::Standby; 2]);
    world.vm = Whereabouts::Source;
    world.settle();
    assert_eq!(world.goals("a"), [Goal::FastPath; 2]);
}

#[test]
fn what_has_begun_without_leave_is_not_called_back() {
    let mut world = World::begun();
    world.all_operate();
    world.send();
    world.all_act();
    assert_eq!(world.stage(), Some(Stage::Moving));
    world.arrive();
    world.settle();
    assert_eq!(world.stage(), Some(Stage::Arrived));
}

#[test]
fn what_goes_to_another_cluster_is_no_move() {
    let mut world = World::begun();
    let mut other = Migration::clone(world.migration.as_ref().unwrap());
    other.spec.send_to = Some(hybridnic_api::foreign::kubevirt::Elsewhere {});
    world.migration = Some(Arc::new(other));
    assert_eq!(world.moves(), []);
}

#[test]
fn a_pod_without_a_node_and_a_migration_that_ended_before_it_had_one_are_no_moves_of_nics() {
    let mut world = World::new();
    world.migration = Some(migration("Pending"));
    world.pods.push(launcher("b", 9, "", Some(UID)));
    assert_eq!(world.moves(), []);
    world.phase("Failed");
    assert_eq!(world.moves()[0].nics, Vec::<String>::new());
}

#[test]
fn a_pod_asks_for_its_links_one_after_the_other() {
    let mut world = World::begun();
    world.all_operate();
    let wait = |world: &mut World, nic: &str| {
        world.act(nic, "b");
        let mut slots = world.attachments.iter_mut();
        let slot = slots.find(|a| a.spec.nic.name == nic && a.spec.pod.name == "b");
        let slot = Arc::make_mut(slot.unwrap());
        observe(slot, AttachmentState::Pending);
        say(slot, reasons::WAITING_FOR_RUNTIME, "");
    };
    wait(&mut world, "fast");
    wait(&mut world, "slow");
    assert_eq!(world.stage(), Some(Stage::Preparing), "no sandbox has come");
    world.act("fast", "b");
    assert_eq!(
        world.stage(),
        Some(Stage::Leaving),
        "the other is not asked for before"
    );
    world.all_operate();
    assert_eq!(world.goals("a"), [Goal::Standby; 2]);
    for nic in NICS {
        world.act(nic, "a");
    }
    world.all_operate();
    assert_eq!(world.goals("b"), [Goal::Standby; 2]);
}

/// It was paused at its arrival there, and goes on from there without having run.
#[test]
fn a_vm_that_has_not_run_at_its_source_may_go() {
    let mut world = World::begun();
    for slot in &mut world.attachments {
        observe(Arc::make_mut(slot), AttachmentState::Reserved);
    }
    world.all_operate();
    for nic in NICS {
        world.act(nic, "b");
    }
    world.all_operate();
    assert_eq!(world.goals("a"), [Goal::Standby; 2]);
    assert_eq!(
        world.stage(),
        Some(Stage::Leaving),
        "it has not answered to that yet"
    );
    for slot in &mut world.attachments {
        if slot.spec.pod.name == "a" {
            observe(Arc::make_mut(slot), AttachmentState::Reserved);
        }
    }
    world.all_operate();
    assert_eq!(world.goals("b"), [Goal::Standby; 2]);
}
