//! A NIC while its VM moves, and afterwards.

use hybridnic_api::v1alpha1::{MigrationState, SwitchOrder};

use super::*;

#[test]
fn a_migration_shows_while_the_vf_is_off() {
    let mut scene = Scene::new();
    scene.moving = Some(moved(Stage::Preparing, 5));
    let mut fast = at(AttachmentState::FastPath);
    let condition = NewCondition::yes(types::FAST_PATH, reasons::VF_ACTIVE, "");
    conditions::set(
        &mut fast.status.as_mut().unwrap().conditions,
        None,
        Timestamp::UNIX_EPOCH,
        condition,
    );
    scene.attachments = vec![Arc::new(fast)];
    let (phase, [_, _, fast]) = scene.reasons();
    assert_eq!((phase, fast.as_str()), (NicPhase::Migrating, reasons::VF_ACTIVE));
    scene.attachments = vec![Arc::new(at(AttachmentState::Standby))];
    let (phase, [_, _, fast]) = scene.reasons();
    assert_eq!((phase, fast.as_str()), (NicPhase::Migrating, reasons::MIGRATING));
}

#[test]
fn a_guest_that_keeps_its_vf_from_a_migration_is_in_the_word_that_kubectl_shows() {
    let mut scene = Scene::new();
    scene.moving = Some(moved(Stage::Preparing, 5));
    let on_its_vf = |ready: NewCondition| {
        let mut fast = at(AttachmentState::FastPath);
        for condition in [
            ready,
            NewCondition::yes(types::FAST_PATH, reasons::VF_ACTIVE, "the VF carries the traffic"),
        ] {
            let conditions = &mut fast.status.as_mut().unwrap().conditions;
            conditions::set(conditions, None, Timestamp::UNIX_EPOCH, condition);
        }
        vec![Arc::new(fast)]
    };
    let shown = |scene: &Scene| {
        let fast = scene.status_now().conditions;
        let fast = conditions::find(&fast, types::FAST_PATH).unwrap().clone();
        (fast.status, fast.reason, fast.message)
    };
    let words = |reason: &str, message: &str| ("True".to_owned(), reason.to_owned(), message.to_owned());
    let keeps = NewCondition::no(types::READY, reasons::GUEST_KEEPS_VF, "it has not let go of it");
    scene.attachments = on_its_vf(keeps);
    assert_eq!(
        shown(&scene),
        words(reasons::GUEST_KEEPS_VF, "it has not let go of it")
    );
    scene.nic.status = Some(scene.status_now());
    // It is asked again.
    let asked = NewCondition::no(types::READY, reasons::PROGRESSING, "next step: unplug the VF");
    scene.attachments = on_its_vf(asked);
    assert_eq!(
        shown(&scene).1,
        reasons::GUEST_KEEPS_VF,
        "and has not let go of it yet"
    );
    scene.moving = None;
    assert_eq!(
        shown(&scene).1,
        reasons::VF_ACTIVE,
        "what passes by itself is no trouble"
    );
    let well = NewCondition::yes(types::READY, reasons::ATTACHED, "it is where it should be");
    scene.attachments = on_its_vf(well);
    assert_eq!(
        shown(&scene),
        words(reasons::VF_ACTIVE, "the VF carries the traffic")
    );
}

#[test]
fn during_a_migration_only_what_moves_the_traffic_is_news() {
    let mut scene = Scene::new();
    let mut fast = at(AttachmentState::FastPath);
    say_yes(&mut fast);
    scene.attachments = vec![Arc::new(fast)];
    scene.nic.status = Some(scene.status_now());
    let next = |scene: &mut Scene| {
        let (old, new) = (scene.nic.status.clone(), scene.status_now());
        let news = is_news(old.as_ref(), &new);
        let told = notes(&old.unwrap_or_default(), &new).len();
        if news {
            scene.nic.status = Some(new);
        }
        (news, told)
    };
    let of = moved(Stage::Preparing, 5);
    scene.moving = Some(of.clone());
    scene.moves = vec![of];
    assert_eq!(next(&mut scene), (true, 0), "that it migrates");

    let of = moved(Stage::Leaving, 5);
    scene.moving = Some(of.clone());
    scene.moves = vec![of];
    let mut leaves = at(AttachmentState::FastPath);
    say(&mut leaves, reasons::PROGRESSING, "next step: Unplug");
    leaves.status.as_mut().unwrap().guest.vf_port = Some("rp1".to_owned());
    scene.attachments = vec![Arc::new(leaves)];
    let ready = |scene: &Scene| {
        let conditions = scene.status_now().conditions;
        conditions::find(&conditions, types::READY)
            .unwrap()
            .reason
            .clone()
    };
    assert_eq!(ready(&scene), reasons::ATTACHED, "it passes");
    let (news, told) = next(&mut scene);
    assert_eq!((news, told), (true, 0), "the condition FastPath");
    let mut leaves = scene.attachments[0].as_ref().clone();
    leaves.status.as_mut().unwrap().vf = Some(VfRef::default());
    scene.attachments = vec![Arc::new(leaves)];
    assert_eq!(next(&mut scene), (false, 0), "a device");

    let mut stuck = at(AttachmentState::FastPath);
    say(&mut stuck, reasons::GUEST_KEEPS_VF, "the guest keeps its VF");
    scene.attachments = vec![Arc::new(stuck)];
    assert_eq!(
        ready(&scene),
        reasons::GUEST_KEEPS_VF,
        "what does not pass is told"
    );
    assert_eq!(next(&mut scene), (true, 1));

    scene.moving = None;
    let mut fast = at(AttachmentState::FastPath);
    say_yes(&mut fast);
    scene.attachments = vec![Arc::new(fast)];
    scene.moves = vec![moved(Stage::Over(Outcome::Succeeded), 5)];
    assert!(next(&mut scene).0);
}

fn say_yes(attachment: &mut NicAttachment) {
    let status = attachment.status.as_mut().unwrap();
    for (type_, reason) in [
        (types::READY, reasons::ATTACHED),
        (types::FAST_PATH, reasons::VF_ACTIVE),
    ] {
        let condition = NewCondition::yes(type_, reason, "");
        conditions::set(&mut status.conditions, None, Timestamp::UNIX_EPOCH, condition);
    }
}

#[test]
fn the_last_migration_is_kept_when_its_object_is_deleted() {
    let mut scene = Scene::new();
    let mut source = at(AttachmentState::Standby);
    source.status.as_mut().unwrap().unplug_order = Some(SwitchOrder::MakeBeforeBreak);
    crate::testing::report(&mut source, MigrationState::Active);
    scene.attachments = vec![Arc::new(source)];
    scene.moves = vec![moved(Stage::Over(Outcome::Succeeded), 5), moved(Stage::Moving, 9)];
    let last = scene.status_now().last_migration.unwrap();
    assert_eq!(
        (last.from.as_str(), last.to.as_str(), last.result.as_deref()),
        ("n1", "n2", None)
    );
    assert_eq!(
        last.started_at,
        Some(MicroTime(Timestamp::from_second(9).unwrap()))
    );
    assert_eq!(last.unplug_order, Some(SwitchOrder::MakeBeforeBreak));

    // The source's attachment goes first, then the object.
    scene.nic.status = Some(scene.status_now());
    scene.attachments.clear();
    scene.moves = vec![moved(Stage::Over(Outcome::Succeeded), 9)];
    let last = scene.status_now().last_migration.unwrap();
    assert_eq!(
        (last.result.as_deref(), last.unplug_order),
        (Some("Succeeded"), Some(SwitchOrder::MakeBeforeBreak))
    );
    scene.nic.status = Some(scene.status_now());
    scene.moves = vec![moved(Stage::Over(Outcome::Succeeded), 5)];
    assert_eq!(
        scene.status_now().last_migration.unwrap(),
        last,
        "an older one does not replace it"
    );
    scene.moves.clear();
    assert_eq!(scene.status_now().last_migration.unwrap(), last);
}

#[test]
fn a_migration_of_kubevirts_has_the_end_that_was_seen_first_and_one_that_vanishes_was_cancelled() {
    let mut scene = Scene::new();
    scene.nic.spec.vm = hybridnic_api::v1alpha1::Vm {
        qemu: None,
        kubevirt: Some(hybridnic_api::v1alpha1::KubevirtVm::default()),
    };
    let after = |scene: &mut Scene, moves: Vec<Move>| {
        scene.moves = moves;
        let old = scene.nic.status.clone().unwrap_or_default();
        let new = scene.status_now();
        let told: Vec<_> = notes(&old, &new).into_iter().map(|note| note.reason).collect();
        scene.nic.status = Some(new.clone());
        let result = new.last_migration.and_then(|last| last.result);
        (result, told.contains(&reasons::MIGRATING.to_owned()), told)
    };
    // One of before the NIC was made is not its own.
    let (result, _, _) = after(&mut scene, vec![moved(Stage::Over(Outcome::Succeeded), 0)]);
    assert_eq!(result, None);
    let (result, begins, _) = after(&mut scene, vec![moved(Stage::Leaving, 5)]);
    assert_eq!((result, begins), (None, true));
    // Its object is gone, and it still has the NIC in its hands.
    let mut nameless = moved(Stage::Returning, 5);
    nameless.times.started_at = None;
    assert_eq!(after(&mut scene, vec![nameless]).0, None);
    let (result, _, told) = after(&mut scene, Vec::new());
    assert_eq!(result.as_deref(), Some("Cancelled"));
    assert!(told.contains(&reasons::CANCELLED.to_owned()), "{told:?}");
    assert_eq!(after(&mut scene, Vec::new()).2, Vec::<String>::new(), "told once");
    // The VM has arrived, as its ends report; what KubeVirt says later is no news.
    let (result, _, _) = after(&mut scene, vec![moved(Stage::Over(Outcome::Succeeded), 9)]);
    assert_eq!(result.as_deref(), Some("Succeeded"));
    let (result, _, _) = after(&mut scene, vec![moved(Stage::Over(Outcome::Failed), 9)]);
    assert_eq!(result.as_deref(), Some("Succeeded"));
    // It has brought the VM, and its object goes before the source has said anything.
    assert_eq!(after(&mut scene, vec![moved(Stage::Arrived, 20)]).0, None);
    let mut nameless = moved(Stage::Over(Outcome::Succeeded), 20);
    nameless.times.started_at = None;
    let (result, _, told) = after(&mut scene, vec![nameless]);
    assert_eq!(result.as_deref(), Some("Succeeded"));
    assert!(told.contains(&reasons::COMPLETED.to_owned()), "{told:?}");
}
