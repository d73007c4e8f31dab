//! A VM is written to a file on one node, and comes back from it on the other; snapshots; what is refused; and what dies meanwhile.
//!
//! Both nodes mount a directory of the host, as pods mount a volume of a file server.

use std::{fs, sync::Arc, time::Instant};

use hybridnic_api::{
    conditions::{find, types},
    v1alpha1::{MigrationPhase, QemuRestore, QemuSave, StateFileStatus},
};
use hybridnic_e2e::{
    lab::{COMMON, Pinger},
    world::{NicSpec, Vm, VmSpec, World},
};
use libtest_mimic::Trial;

use crate::{
    common::{LATER, SOON, check_fast_path, fast, fast_on, vm_on_fast_path, watch},
    suite::Suite,
};

pub fn tests(suite: &Arc<Suite>) -> Vec<Trial> {
    vec![
        suite.test("a_vm_is_saved_on_one_node_and_restored_on_the_other", async |w| {
            there(w).await
        }),
        suite.test("a_vm_runs_on_after_a_snapshot", async |w| snapshots(w).await),
        suite.test("a_save_that_is_called_off_leaves_the_vm_and_no_file", async |w| {
            called_off(w).await
        }),
        suite.test("a_wrong_file_is_refused", async |w| refused(w).await),
        suite.test("an_agent_dies_while_a_vm_is_saved_or_restored", async |w| {
            killed(w).await
        }),
    ]
}

/// The least that a `QemuSave` takes: so slow that a test can act while QEMU writes.
const SLOW: &str = "1048576";

/// Mounts what all nodes share, empty.
async fn volume(world: &World) {
    for node in [1, 2] {
        let mount = format!(
            "mkdir -p /volume && (grep -q ' /volume ' /proc/mounts || \
             mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none {COMMON} /volume)"
        );
        world.node(node).run(&mount, SOON).await.unwrap();
    }
    sh(world, 1, "rm -rf /volume/saves && mkdir /volume/saves").await;
}

async fn sh(world: &World, node: usize, script: &str) -> String {
    world.node(node).run(script, SOON).await.unwrap()
}

/// All names in the directory.
async fn names(world: &World) -> Vec<String> {
    let listed = sh(world, 1, "ls -A /volume/saves").await;
    listed.lines().map(ToOwned::to_owned).collect()
}

async fn is_whole(world: &World, file: &str) {
    assert_eq!(
        names(world).await,
        [file.to_owned(), format!("{file}.hybridnic.json")]
    );
    let text = sh(world, 1, &format!("cat /volume/saves/{file}.hybridnic.json")).await;
    let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    let length = sh(world, 1, &format!("stat -c %s /volume/saves/{file}")).await;
    assert_eq!(manifest["length"].to_string(), length.trim());
    eprintln!(
        "the file has {} octets, mapped-ram: {}, of {}",
        manifest["length"], manifest["mappedRam"], manifest["machineType"]
    );
}

fn save_yaml(name: &str, vm: &str, file: &str, more: &str) -> String {
    format!(
        "apiVersion: hybridnic.io/v1alpha1\nkind: QemuSave\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{vm: {vm}, file: {file}, {more}}}\n"
    )
}

fn restore_yaml(name: &str, vm: &str, file: &str, pod: &str) -> String {
    format!(
        "apiVersion: hybridnic.io/v1alpha1\nkind: QemuRestore\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{vm: {vm}, file: {file}, pod: {pod}}}\n"
    )
}

fn phase(status: Option<&StateFileStatus>) -> MigrationPhase {
    status.map(|status| status.phase).unwrap_or_default()
}

/// Reason and message.
fn why(status: Option<&StateFileStatus>) -> String {
    let condition = status.and_then(|status| find(&status.conditions, types::SUCCEEDED));
    condition
        .map(|c| format!("{}: {}", c.reason, c.message))
        .unwrap_or_default()
}

async fn saved(world: &World, name: &str) -> QemuSave {
    let is = |save: &QemuSave| phase(save.status.as_ref()).is_final();
    world.until_save(name, LATER, "over", is).await.unwrap()
}

async fn restored(world: &World, name: &str) -> QemuRestore {
    let is = |restore: &QemuRestore| phase(restore.status.as_ref()).is_final();
    world.until_restore(name, LATER, "over", is).await.unwrap()
}

/// The phases of one that goes well, in their order.
const WAY: [MigrationPhase; 5] = [
    MigrationPhase::Pending,
    MigrationPhase::PreparingTarget,
    MigrationPhase::SwitchingToStandby,
    MigrationPhase::Transferring,
    MigrationPhase::Completing,
];

/// Whether it has come so far, or is not on its way any more.
fn is_at(status: Option<&StateFileStatus>, wanted: MigrationPhase) -> bool {
    let rank = |phase| WAY.iter().position(|of| *of == phase);
    rank(phase(status)).is_none_or(|at| rank(wanted).is_some_and(|wanted| at >= wanted))
}

/// Waits until a save is that far; a phase may be over before it is seen.
async fn save_reaches(world: &World, name: &str, wanted: MigrationPhase) -> MigrationPhase {
    let is = |save: &QemuSave| is_at(save.status.as_ref(), wanted);
    let there = world.until_save(name, LATER, "that far", is).await.unwrap();
    let phase = phase(there.status.as_ref());
    assert!(
        WAY.contains(&phase) || phase == MigrationPhase::Succeeded,
        "{:#?}",
        there.status
    );
    phase
}

fn tell(what: &str, status: Option<&StateFileStatus>) {
    let Some(status) = status else { return };
    eprintln!(
        "{what}: {:?} ms in all, paused for {:?} ms, {:?} octets",
        status.total_ms, status.downtime_ms, status.written
    );
    for part in &status.phases {
        eprintln!("  {} took {:?} ms", part.name, part.ms);
    }
}

async fn gaps(what: &str, pinger: Pinger) {
    for gap in &pinger.stop().await.round_trip.gaps {
        eprintln!("{what}: gap of {:?}, {} lost", gap.length, gap.lost);
    }
}

/// Saves the VM, and waits until nothing of it is left on its node.
async fn save_and_end(world: &World, name: &str, vm: &Vm, clean: &str) {
    let done = saved(world, name).await;
    assert_eq!(
        phase(done.status.as_ref()),
        MigrationPhase::Succeeded,
        "{:#?}",
        done.status
    );
    tell("save", done.status.as_ref());
    assert_eq!(
        vm.guest.qemu().wait(SOON).await.unwrap(),
        Some(0),
        "QEMU was ended"
    );
    world.until_footprint(vm.node, clean).await.unwrap();
}

async fn there(world: &mut World) {
    volume(world).await;
    let spec = VmSpec::new("saved", &[NicSpec::new(0, 71)]);
    let clean = [
        world.footprint(1).await.unwrap(),
        world.footprint(2).await.unwrap(),
    ];
    let vm = vm_on_fast_path(world, &spec, "saved-a", 1, "fast").await.unwrap();
    vm.guest.run("echo kept >/tmp/mark", SOON).await.unwrap();
    let mac = fast(world, "saved-0").await.unwrap().status.unwrap().mac;
    let pinger = watch(&world.lab, spec.nics[0].address, 50).await;

    world
        .apply(&save_yaml(
            "there",
            "saved",
            "/volume/saves/web.state",
            "then: End",
        ))
        .await
        .unwrap();
    save_and_end(world, "there", &vm, &clean[0]).await;
    is_whole(world, "web.state").await;

    // The object first, so that the NIC is where the file says.
    world
        .apply(&restore_yaml(
            "again",
            "saved",
            "/volume/saves/web.state",
            "saved-b",
        ))
        .await
        .unwrap();
    let began = Instant::now();
    let target = world.start_vm(&spec, "saved-b", 2, true).await.unwrap();
    let done = restored(world, "again").await;
    assert_eq!(
        phase(done.status.as_ref()),
        MigrationPhase::Succeeded,
        "{:#?}",
        done.status
    );
    tell("restore", done.status.as_ref());
    assert!(pinger.answered(20, SOON).await, "no answer after the restore");
    eprintln!("it answers {:?} after its pod began to start", began.elapsed());
    let nic = fast_on(world, "saved-0", 2).await.unwrap();
    check_fast_path(world, &target, &nic).await.unwrap();
    assert_eq!(nic.status.unwrap().mac, mac);
    let mark = target.guest.run("cat /tmp/mark", SOON).await.unwrap();
    assert_eq!(mark.trim(), "kept", "it is the VM that was saved");
    is_whole(world, "web.state").await;
    gaps("save and restore", pinger).await;

    // What the file needs is not left in QEMU: it can be sent to another node.
    let third = world.start_vm(&spec, "saved-c", 1, true).await.unwrap();
    world
        .apply(&crate::common::migration("onward", "saved", "saved-c"))
        .await
        .unwrap();
    let done = crate::common::ended(world, "onward").await.unwrap();
    assert_eq!(
        crate::common::phase(&done),
        MigrationPhase::Succeeded,
        "{:#?}",
        done.status
    );
    let nic = fast_on(world, "saved-0", 1).await.unwrap();
    check_fast_path(world, &third, &nic).await.unwrap();
    world.until_footprint(2, &clean[1]).await.unwrap();
}

async fn snapshots(world: &mut World) {
    volume(world).await;
    let spec = VmSpec::new("snap", &[NicSpec::new(0, 72)]);
    let vm = vm_on_fast_path(world, &spec, "snap-a", 1, "fast").await.unwrap();
    let pinger = watch(&world.lab, spec.nics[0].address, 100).await;
    world
        .apply(&save_yaml("snap", "snap", "/volume/saves/snap", "then: Continue"))
        .await
        .unwrap();
    let done = saved(world, "snap").await;
    assert_eq!(
        phase(done.status.as_ref()),
        MigrationPhase::Succeeded,
        "{:#?}",
        done.status
    );
    tell("snapshot", done.status.as_ref());
    let nic = fast(world, "snap-0").await.unwrap();
    check_fast_path(world, &vm, &nic).await.unwrap();
    is_whole(world, "snap").await;
    assert!(pinger.answered(50, SOON).await, "no answer after the snapshot");
    gaps("snapshot", pinger).await;

    // The VM has one address, and runs once.
    let waiting = world.start_vm(&spec, "snap-b", 2, true).await.unwrap();
    world
        .apply(&restore_yaml("twice", "snap", "/volume/saves/snap", "snap-b"))
        .await
        .unwrap();
    let done = restored(world, "twice").await;
    assert!(
        why(done.status.as_ref()).starts_with("VmRuns"),
        "{:#?}",
        done.status
    );
    assert_eq!(waiting.guest.status().await.unwrap(), "inmigrate");
    world.delete_pod(&waiting).await.unwrap();

    // With its disks: it stands still until it is said what becomes of it.
    world
        .apply(&save_yaml("disks", "snap", "/volume/saves/disks", "then: Pause"))
        .await
        .unwrap();
    let paused = |save: &QemuSave| {
        why(save.status.as_ref()).starts_with("Paused") || phase(save.status.as_ref()).is_final()
    };
    let there = world.until_save("disks", LATER, "paused", paused).await.unwrap();
    assert_eq!(
        phase(there.status.as_ref()),
        MigrationPhase::Transferring,
        "{:#?}",
        there.status
    );
    assert_eq!(vm.guest.status().await.unwrap(), "postmigrate");
    let go_on = r#"{"spec": {"then": "Continue"}}"#;
    world
        .kubectl(&["patch", "qsave", "disks", "--type", "merge", "-p", go_on])
        .await
        .unwrap();
    let done = saved(world, "disks").await;
    assert_eq!(
        phase(done.status.as_ref()),
        MigrationPhase::Succeeded,
        "{:#?}",
        done.status
    );
    let nic = fast(world, "snap-0").await.unwrap();
    check_fast_path(world, &vm, &nic).await.unwrap();
}

async fn called_off(world: &mut World) {
    volume(world).await;
    let spec = VmSpec::new("called", &[NicSpec::new(0, 73)]);
    let vm = vm_on_fast_path(world, &spec, "called-a", 1, "fast")
        .await
        .unwrap();
    let slow = format!("then: End, bandwidth: {SLOW}");
    world
        .apply(&save_yaml("deleted", "called", "/volume/saves/off", &slow))
        .await
        .unwrap();
    let at = save_reaches(world, "deleted", MigrationPhase::Transferring).await;
    assert_eq!(at, MigrationPhase::Transferring);
    // It waits until the object has gone.
    world
        .kubectl(&["delete", "qsave", "deleted", "--timeout=120s"])
        .await
        .unwrap();
    assert!(names(world).await.is_empty(), "{:?}", names(world).await);
    assert_eq!(vm.guest.status().await.unwrap(), "running");
    let nic = fast(world, "called-0").await.unwrap();
    check_fast_path(world, &vm, &nic).await.unwrap();

    let late = format!("then: End, bandwidth: {SLOW}, deadlineSeconds: 3");
    world
        .apply(&save_yaml("late", "called", "/volume/saves/off", &late))
        .await
        .unwrap();
    let done = saved(world, "late").await;
    assert!(
        why(done.status.as_ref()).starts_with("DeadlineExceeded"),
        "{:#?}",
        done.status
    );
    assert!(names(world).await.is_empty(), "{:?}", names(world).await);
    let nic = fast(world, "called-0").await.unwrap();
    check_fast_path(world, &vm, &nic).await.unwrap();

    // What cannot be written costs the VM nothing: its VF never leaves.
    sh(
        world,
        1,
        "echo of somebody >/volume/saves/taken; mkdir -p /no-volume",
    )
    .await;
    let plugged = nic.status.unwrap().vf;
    for (name, file, words) in [
        (
            "taken",
            "/volume/saves/taken",
            "there is a file /volume/saves/taken already",
        ),
        (
            "nowhere",
            "/volume/saves/none/off",
            "the directory /volume/saves/none cannot be opened",
        ),
        ("lost", "/no-volume/off", "is on no volume"),
    ] {
        world
            .apply(&save_yaml(name, "called", file, "then: End"))
            .await
            .unwrap();
        let done = saved(world, name).await;
        let why = why(done.status.as_ref());
        assert!(why.starts_with("FileRefused") && why.contains(words), "{why}");
        let nic = fast(world, "called-0").await.unwrap();
        assert_eq!(nic.status.unwrap().vf, plugged);
    }
    assert_eq!(
        sh(world, 1, "cat /volume/saves/taken").await.trim(),
        "of somebody"
    );
    assert_eq!(names(world).await, ["taken"]);
}

async fn refused(world: &mut World) {
    volume(world).await;
    let spec = VmSpec::new("right", &[NicSpec::new(0, 74)]);
    let clean = world.footprint(1).await.unwrap();
    let vm = vm_on_fast_path(world, &spec, "right-a", 1, "fast").await.unwrap();
    world
        .apply(&save_yaml("right", "right", "/volume/saves/right", "then: End"))
        .await
        .unwrap();
    save_and_end(world, "right", &vm, &clean).await;

    // On this host, because a node takes a minute to copy so much.
    let saves = world.lab.dir().join("common/saves");
    let length = fs::copy(saves.join("right"), saves.join("half")).unwrap();
    let half = fs::File::options().write(true).open(saves.join("half")).unwrap();
    half.set_len(length - 4096).unwrap();
    for name in ["other", "machine", "bare"] {
        fs::hard_link(saves.join("right"), saves.join(name)).unwrap();
    }
    let copies = "cd /volume/saves && for n in half other machine; do cp right.hybridnic.json $n.hybridnic.json; done; \
                  sed -i 's/\"vm\": \"right\"/\"vm\": \"wrong\"/' other.hybridnic.json; \
                  sed -i 's/\"machineType\": \"[^\"]*\"/\"machineType\": \"pc-q35-8.2\"/' machine.hybridnic.json";
    sh(world, 1, copies).await;
    let target = world.start_vm(&spec, "right-b", 2, true).await.unwrap();
    for (name, words) in [
        ("half", "the file is not whole"),
        ("other", "the file is of the VM default/wrong"),
        ("machine", "on a machine of type pc-q35-8.2"),
        ("bare", "/volume/saves/bare.hybridnic.json is no file"),
        ("none", "is no file"),
    ] {
        let file = format!("/volume/saves/{name}");
        world
            .apply(&restore_yaml(name, "right", &file, "right-b"))
            .await
            .unwrap();
        let done = restored(world, name).await;
        let why = why(done.status.as_ref());
        assert!(
            why.starts_with("FileRefused") && why.contains(words),
            "{name}: {why}"
        );
        assert_eq!(target.guest.status().await.unwrap(), "inmigrate", "it waits on");
    }
    // And then the right one.
    world
        .apply(&restore_yaml("back", "right", "/volume/saves/right", "right-b"))
        .await
        .unwrap();
    let done = restored(world, "back").await;
    assert_eq!(
        phase(done.status.as_ref()),
        MigrationPhase::Succeeded,
        "{:#?}",
        done.status
    );
    let nic = fast_on(world, "right-0", 2).await.unwrap();
    check_fast_path(world, &target, &nic).await.unwrap();
}

async fn killed(world: &mut World) {
    volume(world).await;
    let spec = VmSpec::new("die", &[NicSpec::new(0, 75)]);
    let clean = world.footprint(1).await.unwrap();
    let vm = vm_on_fast_path(world, &spec, "die-a", 1, "fast").await.unwrap();
    let moments = [
        MigrationPhase::PreparingTarget,
        MigrationPhase::SwitchingToStandby,
        MigrationPhase::Transferring,
    ];
    for (run, then) in ["Continue", "End"].into_iter().enumerate() {
        let (name, file) = (format!("die-{run}"), format!("die{run}"));
        // Some seconds to die in.
        let more = format!("then: {then}, bandwidth: {}", 16 << 20);
        world
            .apply(&save_yaml(&name, "die", &format!("/volume/saves/{file}"), &more))
            .await
            .unwrap();
        for moment in moments {
            let at = save_reaches(world, &name, moment).await;
            eprintln!("--- the agent dies at {at}, then: {then}");
            world.kill_agent(1).await.unwrap();
            world.start_agent(1).await.unwrap();
        }
        if then == "End" {
            save_and_end(world, &name, &vm, &clean).await;
        } else {
            let done = saved(world, &name).await;
            assert_eq!(
                phase(done.status.as_ref()),
                MigrationPhase::Succeeded,
                "{:#?}",
                done.status
            );
            let nic = fast(world, "die-0").await.unwrap();
            check_fast_path(world, &vm, &nic).await.unwrap();
        }
        is_whole(world, &file).await;
        sh(world, 1, "rm -f /volume/saves/die0*").await;
    }

    world
        .apply(&restore_yaml("die-again", "die", "/volume/saves/die1", "die-b"))
        .await
        .unwrap();
    let target = world.start_vm(&spec, "die-b", 2, true).await.unwrap();
    for moment in [MigrationPhase::PreparingTarget, MigrationPhase::Transferring] {
        let is = |restore: &QemuRestore| is_at(restore.status.as_ref(), moment);
        let there = world
            .until_restore("die-again", LATER, "that far", is)
            .await
            .unwrap();
        eprintln!("--- the agent dies at {}", phase(there.status.as_ref()));
        world.kill_agent(2).await.unwrap();
        world.start_agent(2).await.unwrap();
    }
    let done = restored(world, "die-again").await;
    assert_eq!(
        phase(done.status.as_ref()),
        MigrationPhase::Succeeded,
        "{:#?}",
        done.status
    );
    let nic = fast_on(world, "die-0", 2).await.unwrap();
    check_fast_path(world, &target, &nic).await.unwrap();
    assert_eq!(target.guest.status().await.unwrap(), "running");
}
