//! An agent dies at each stage that the journal has, and the next one goes on with what the journal says.

use super::*;
use crate::journal::Arrival;

/// QEMU has nothing of the file any more, and is told so again.
async fn has_forgotten(peer: &mut Peer) {
    peer.answer("query-fdsets", json!([])).await;
    has_capabilities(peer).await;
    assert!(are_of_files(&sets(peer).await, false));
}

/// QEMU is paused, or runs, and is not in the middle of anything.
async fn has_settled(peer: &mut Peer, run: &str) {
    let running = run == "running";
    peer.answer("query-status", json!({"status": run, "running": running}))
        .await;
}

/// A save that has ended as it was to, with QEMU in this state.
async fn is_sealed(world: &World, peer: &mut Peer, run: &str) {
    peer.shows("completed", run).await;
    world.says(MigrationState::Completed).await;
    assert_eq!(world.stage().await, Some(SaveStage::Named(10)));
    assert_eq!(world.names(), ["vm", "vm.hybridnic.json"]);
}

/// A save from QEMU's first word to the file's name, beside which the VM stands still.
async fn is_saved(world: &World, peer: &mut Peer) {
    writes(world, peer).await;
    is_a_machine(peer).await;
    has_settled(peer, "postmigrate").await;
    forgets(peer).await;
    is_sealed(world, peer, "postmigrate").await;
}

/// The journal says `Writing`, and QEMU was not told.
#[tokio::test]
async fn what_qemu_was_not_told_to_write_it_is_told_again() {
    let mut world = World::new();
    world.order(MigrationStep::Save, Some(AfterSave::End));
    let (client, mut peer) = Peer::connect().await;
    let dies = async {
        peer.shows("none", "running").await;
        peer.answer("query-migrate", json!({})).await;
        has_capabilities(&mut peer).await;
        has_capabilities(&mut peer).await;
        sets(&mut peer).await;
        peer.answer("migrate-set-parameters", json!({})).await;
        peer.answer("add-fd", json!({"fdset-id": 6, "fd": 19})).await;
        peer.asked("migrate").await;
    };
    world.serve(&client, dies).await;
    assert_eq!(world.stage().await, Some(SaveStage::Writing));

    world.next_agent().await;
    world.order(MigrationStep::Save, Some(AfterSave::End));
    let (client, mut peer) = Peer::connect().await;
    world.serve(&client, is_saved(&world, &mut peer)).await;
}

/// The journal says `Whole`: what QEMU has written has no name yet, and the VM may have run on.
#[tokio::test]
async fn a_file_that_is_whole_gets_its_name_from_the_next_agent() {
    for then in [AfterSave::End, AfterSave::Continue] {
        let mut world = World::new();
        world.order(MigrationStep::Save, Some(then));
        let (client, mut peer) = Peer::connect().await;
        let dies = async {
            writes(&world, &mut peer).await;
            is_a_machine(&mut peer).await;
            has_settled(&mut peer, "postmigrate").await;
            if then == AfterSave::Continue {
                peer.asked("cont").await;
            } else {
                peer.asked("query-fdsets").await;
            }
        };
        world.serve(&client, dies).await;
        assert_eq!(world.stage().await, Some(SaveStage::Whole), "{then:?}");
        assert_eq!(world.names(), [".vm.m.part"]);

        world.next_agent().await;
        world.order(MigrationStep::Save, Some(then));
        let (client, mut peer) = Peer::connect().await;
        let qemu = async {
            // QEMU has taken the word that the dead agent heard no answer to.
            let run = match then {
                AfterSave::Continue => "running",
                _ => "postmigrate",
            };
            peer.shows("completed", run).await;
            is_a_machine(&mut peer).await;
            has_settled(&mut peer, run).await;
            if then == AfterSave::Continue {
                peer.answer("cont", json!({})).await;
            }
            forgets(&mut peer).await;
            is_sealed(&world, &mut peer, run).await;
        };
        world.serve(&client, qemu).await;
    }
}

/// The file has its name, and the journal still says `Whole`.
#[tokio::test]
async fn a_file_that_has_its_name_is_known_again() {
    let mut world = World::new();
    world.order(MigrationStep::Save, Some(AfterSave::End));
    let (client, mut peer) = Peer::connect().await;
    world.serve(&client, is_saved(&world, &mut peer)).await;
    stage(&world.vm, &world.host, "m", SaveStage::Whole)
        .await
        .unwrap_or_else(|failure| panic!("{}", failure.error));

    world.next_agent().await;
    world.order(MigrationStep::Save, Some(AfterSave::End));
    let (client, mut peer) = Peer::connect().await;
    let qemu = async {
        peer.shows("completed", "postmigrate").await;
        is_a_machine(&mut peer).await;
        has_settled(&mut peer, "postmigrate").await;
        has_forgotten(&mut peer).await;
        is_sealed(&world, &mut peer, "postmigrate").await;
    };
    world.serve(&client, qemu).await;
}

/// The journal says `Named`, the VM waits for a word, and the next agent is the one that hears it.
#[tokio::test]
async fn a_vm_that_waits_beside_its_file_runs_on_at_a_word() {
    let mut world = World::new();
    world.order(MigrationStep::Save, Some(AfterSave::Pause));
    let (client, mut peer) = Peer::connect().await;
    world.serve(&client, is_saved(&world, &mut peer)).await;

    world.next_agent().await;
    world.order(MigrationStep::Save, Some(AfterSave::Continue));
    let (client, mut peer) = Peer::connect().await;
    let qemu = async {
        peer.shows("completed", "postmigrate").await;
        has_settled(&mut peer, "postmigrate").await;
        peer.answer("cont", json!({})).await;
        is_sealed(&world, &mut peer, "running").await;
    };
    world.serve(&client, qemu).await;
}

/// The file has its name, and something has run the VM on that was to be ended for it: QEMU may end before the save is called off.
#[tokio::test]
async fn what_a_vm_ran_on_past_is_removed_before_anything_loads_it() {
    let mut world = World::new();
    world.order(MigrationStep::Save, Some(AfterSave::End));
    let (client, mut peer) = Peer::connect().await;
    world.serve(&client, is_saved(&world, &mut peer)).await;

    world.next_agent().await;
    world.order(MigrationStep::Save, Some(AfterSave::End));
    let (client, mut peer) = Peer::connect().await;
    let qemu = async {
        peer.shows("completed", "running").await;
        has_forgotten(&mut peer).await;
        peer.shows("completed", "running").await;
        world.says(MigrationState::Failed).await;
    };
    world.serve(&client, qemu).await;
    assert_eq!(world.stage().await, Some(SaveStage::Spoilt));
    assert!(world.names().is_empty(), "{:?}", world.names());
}

/// The journal says `Spoilt`: nothing of it stays, whether the VM runs on already or not.
#[tokio::test]
async fn what_was_given_up_is_removed_by_the_next_agent() {
    for runs in [true, false] {
        let mut world = World::new();
        world.order(MigrationStep::Save, Some(AfterSave::End));
        let (client, mut peer) = Peer::connect().await;
        world.serve(&client, writes(&world, &mut peer)).await;
        world.order(MigrationStep::Cancel, Some(AfterSave::End));
        let (client, mut peer) = Peer::connect().await;
        let dies = async {
            peer.shows("completed", "postmigrate").await;
            peer.asked("query-status").await;
        };
        world.serve(&client, dies).await;
        assert_eq!(world.stage().await, Some(SaveStage::Spoilt));
        // As if it had died before that, too.
        fs::write(world.volume.path().join(".vm.m.part"), b"a whole VM").unwrap();

        world.next_agent().await;
        world.order(MigrationStep::Cancel, Some(AfterSave::End));
        let (client, mut peer) = Peer::connect().await;
        let qemu = async {
            if runs {
                peer.shows("completed", "running").await;
            } else {
                peer.shows("completed", "postmigrate").await;
                has_settled(&mut peer, "postmigrate").await;
                peer.answer("cont", json!({})).await;
            }
            forgets(&mut peer).await;
            peer.shows("completed", "running").await;
            world.says(MigrationState::Cancelled).await;
        };
        world.serve(&client, qemu).await;
        assert!(world.names().is_empty(), "{:?}", world.names());
    }
}

/// The journal says that QEMU is about to be told to load, and it was not; then that the VM is about to be started, and it was not.
#[tokio::test]
async fn a_vm_is_loaded_and_started_by_the_agent_that_comes_next() {
    let mut world = World::new();
    saved(&world, 10);
    world.order(MigrationStep::Load, None);
    let (client, mut peer) = Peer::connect().await;
    let dies = async {
        peer.shows("none", "inmigrate").await;
        is_a_machine(&mut peer).await;
        has_capabilities(&mut peer).await;
        has_capabilities(&mut peer).await;
        sets(&mut peer).await;
        peer.answer("migrate-set-parameters", json!({})).await;
        peer.answer("add-fd", json!({"fdset-id": 6, "fd": 19})).await;
        peer.answer("stop", json!({})).await;
        peer.asked("migrate-incoming").await;
    };
    world.serve(&client, dies).await;

    world.next_agent().await;
    world.order(MigrationStep::Load, None);
    let (client, mut peer) = Peer::connect().await;
    let dies = async {
        peer.shows("none", "inmigrate").await;
        is_a_machine(&mut peer).await;
        has_capabilities(&mut peer).await;
        is_given(&mut peer, "migrate-incoming").await;
        peer.shows("completed", "paused").await;
        // It looks once more before it starts the VM.
        peer.shows("completed", "paused").await;
        forgets(&mut peer).await;
        peer.asked("cont").await;
    };
    world.serve(&client, dies).await;
    assert_eq!(world.arrival().await, Some(Arrival::Starting));

    world.next_agent().await;
    world.order(MigrationStep::Load, None);
    let (client, mut peer) = Peer::connect().await;
    let qemu = async {
        peer.shows("completed", "paused").await;
        peer.shows("completed", "paused").await;
        has_forgotten(&mut peer).await;
        peer.answer("cont", json!({})).await;
        peer.answer("announce-self", json!({})).await;
        peer.shows("completed", "running").await;
        world.says(MigrationState::Completed).await;
    };
    world.serve(&client, qemu).await;
    assert_eq!(world.arrival().await, Some(Arrival::Started));
}
