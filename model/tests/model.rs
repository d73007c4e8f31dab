//! Searches all states of a migration that a number of faults can lead to. See `docs/testing.md`.
//!
//! | variable | is |
//! |---|---|
//! | `MODEL_DRIVER` | who drives the migration: `operator` or `kubevirt`; or `bonded`, which is the operator and guests that bond VF and standby; `alone`, which is the operator and NICs without a standby; `profile`, which is the operator and a network with a port profile; `end`, `continue` or `pause`, which is a VM that is saved to a file, by what is to become of it then, and restored; or `prompt`, which is KubeVirt with two migrations and news that come at once |
//! | `MODEL_FAULTS` | how many faults |
//! | `MODEL_NICS` | NICs of the VM: 1 or 2 |
//! | `MODEL_TELLS` | how often a user tells the NICs where their traffic is to run |
//! | `MODEL_TURNS` | how often a PF is drained or undrained, or loses its link or finds it, where the operator drives |
//! | `MODEL_SPLITS` | how often one NIC may be ahead of the other |
//! | `MODEL_VFS` | VFs of each node: 0, 1 or 2 |
//! | `MODEL_DEEP` | set: the largest worlds, in place of the others |
//! | `MODEL_BROKEN` | how many different broken things are looked for before it stops |
//! | `MODEL_TRACE` | 1: each state on the way to what is broken |

use std::env;
use std::process::ExitCode;
use std::str::FromStr;

use hybridnic_api::v1alpha1::{AfterSave, Pairing};
use hybridnic_model::model::Model;
use hybridnic_model::search::{Bounds, search};
use hybridnic_model::system::System;
use hybridnic_model::{file, kubevirt};

/// Who drives the migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    /// The operator.
    Operator,
    /// The operator; the guest bonds VF and standby.
    Bonded,
    /// The operator; the NICs have no standby.
    Alone,
    /// The operator; the network has a port profile.
    Profile,
    /// The operator, which saves the VM to a file, and restores it.
    File(AfterSave),
    /// KubeVirt, which asks for one.
    Kubevirt,
    /// KubeVirt, which asks for two, one after the other; all news come at once, except for faults.
    Prompt,
}

/// One search.
#[derive(Clone, Copy)]
struct World {
    driver: Driver,
    nics: usize,
    vfs: u8,
    faults: u8,
    splits: u8,
    tells: u8,
    turns: u8,
}

impl World {
    /// The same with a user who tells the NICs so often where their traffic is to run.
    const fn told(self, tells: u8) -> Self {
        Self { tells, ..self }
    }

    /// The same in which PFs are so often drained or undrained, or lose their link or find it.
    const fn turned(self, turns: u8) -> Self {
        Self { turns, ..self }
    }
}

/// What `make model` searches.
const WORLDS: [World; 35] = [
    world(Driver::Operator, 1, 1, 2, 0),
    world(Driver::Operator, 1, 0, 2, 0),
    world(Driver::Operator, 2, 2, 1, 1),
    world(Driver::Operator, 2, 1, 1, 1),
    world(Driver::Bonded, 1, 1, 1, 0),
    world(Driver::Alone, 1, 1, 1, 0),
    world(Driver::Alone, 1, 0, 1, 0),
    world(Driver::Alone, 2, 1, 1, 0),
    world(Driver::Alone, 1, 1, 1, 0).told(1),
    world(Driver::Alone, 1, 2, 1, 0).turned(1),
    world(Driver::Kubevirt, 1, 1, 1, 0),
    world(Driver::Kubevirt, 1, 0, 1, 0),
    world(Driver::Kubevirt, 2, 2, 1, 0),
    world(Driver::Prompt, 1, 1, 2, 0),
    world(Driver::Operator, 2, 1, 0, 1).told(1),
    world(Driver::Kubevirt, 1, 1, 0, 0).told(2),
    world(Driver::Prompt, 1, 1, 1, 0).told(2),
    world(Driver::Operator, 1, 2, 1, 0).turned(1),
    world(Driver::Operator, 1, 2, 0, 0).turned(3),
    world(Driver::Operator, 2, 2, 0, 0).turned(2),
    world(Driver::Operator, 1, 2, 0, 0).told(1).turned(2),
    world(Driver::Alone, 1, 1, 1, 0).turned(2),
    world(Driver::Alone, 1, 2, 0, 0).told(1).turned(2),
    world(Driver::Bonded, 1, 2, 1, 0).turned(1),
    world(Driver::Bonded, 1, 2, 0, 0).told(1).turned(2),
    world(Driver::Bonded, 1, 1, 1, 0).told(1),
    world(Driver::Profile, 1, 1, 1, 0),
    world(Driver::Profile, 1, 2, 1, 0).turned(1),
    world(Driver::Profile, 1, 1, 1, 0).told(1),
    world(Driver::Profile, 2, 1, 1, 0),
    world(Driver::File(AfterSave::Continue), 1, 1, 2, 0),
    world(Driver::File(AfterSave::End), 1, 1, 2, 0),
    world(Driver::File(AfterSave::End), 1, 0, 1, 0),
    world(Driver::File(AfterSave::End), 2, 2, 1, 0),
    world(Driver::File(AfterSave::Pause), 1, 1, 1, 0),
];

/// What `make model-deep` searches: more states than all others together.
const DEEP: [World; 9] = [
    world(Driver::Operator, 1, 1, 3, 0),
    world(Driver::Operator, 2, 2, 2, 0),
    world(Driver::Operator, 1, 1, 1, 0).told(2),
    world(Driver::Bonded, 1, 1, 2, 0),
    world(Driver::Alone, 1, 1, 2, 0),
    world(Driver::Profile, 1, 1, 2, 0),
    world(Driver::Kubevirt, 1, 1, 2, 0),
    world(Driver::Prompt, 1, 1, 3, 0),
    world(Driver::File(AfterSave::Pause), 1, 1, 2, 0),
];

const fn world(driver: Driver, nics: usize, vfs: u8, faults: u8, splits: u8) -> World {
    World {
        driver,
        nics,
        vfs,
        faults,
        splits,
        tells: 0,
        turns: 0,
    }
}

fn variable<T: FromStr>(name: &str) -> Option<T> {
    env::var(name).ok()?.parse().ok()
}

fn main() -> ExitCode {
    let worlds = if ["DRIVER", "FAULTS", "NICS", "SPLITS", "TELLS", "TURNS", "VFS"]
        .iter()
        .any(|name| env::var(format!("MODEL_{name}")).is_ok())
    {
        let nics = variable("MODEL_NICS").unwrap_or(2);
        let driver = match env::var("MODEL_DRIVER").as_deref() {
            Ok("kubevirt") => Driver::Kubevirt,
            Ok("prompt") => Driver::Prompt,
            Ok("bonded") => Driver::Bonded,
            Ok("alone") => Driver::Alone,
            Ok("profile") => Driver::Profile,
            Ok("end") => Driver::File(AfterSave::End),
            Ok("continue") => Driver::File(AfterSave::Continue),
            Ok("pause") => Driver::File(AfterSave::Pause),
            _ => Driver::Operator,
        };
        vec![World {
            driver,
            nics,
            vfs: variable("MODEL_VFS").unwrap_or_else(|| u8::try_from(nics).unwrap_or(2)),
            faults: variable("MODEL_FAULTS").unwrap_or(1),
            splits: variable("MODEL_SPLITS").unwrap_or(1),
            tells: variable("MODEL_TELLS").unwrap_or(0),
            turns: variable("MODEL_TURNS").unwrap_or(0),
        }]
    } else if env::var_os("MODEL_DEEP").is_some_and(|set| !set.is_empty()) {
        DEEP.to_vec()
    } else {
        WORLDS.to_vec()
    };
    let holds: Vec<bool> = worlds.into_iter().map(look).collect();
    if holds.into_iter().all(|holds| holds) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Searches a world; whether all holds.
fn look(world: World) -> bool {
    match world.driver {
        Driver::Operator => look_at(
            &Model::new(world.vfs, world.nics, world.tells, Pairing::NetFailover).with_turns(world.turns),
            world,
        ),
        Driver::Bonded => look_at(
            &Model::new(world.vfs, world.nics, world.tells, Pairing::Bond).with_turns(world.turns),
            world,
        ),
        Driver::Alone => look_at(
            &Model::new(world.vfs, world.nics, world.tells, Pairing::NetFailover)
                .with_turns(world.turns)
                .without_standby(),
            world,
        ),
        Driver::Profile => look_at(
            &Model::new(world.vfs, world.nics, world.tells, Pairing::NetFailover)
                .with_turns(world.turns)
                .with_profile(),
            world,
        ),
        Driver::File(then) => look_at(&file::world::World::new(world.vfs, world.nics, then), world),
        Driver::Kubevirt | Driver::Prompt => {
            let prompt = world.driver == Driver::Prompt;
            let system = kubevirt::world::World::new(world.vfs, world.nics, world.tells, prompt, prompt);
            look_at(&system, world)
        }
    }
}

fn look_at<S: System>(system: &S, world: World) -> bool {
    let World {
        driver,
        nics,
        vfs,
        faults,
        splits,
        tells,
        turns,
    } = world;
    let found = search(
        system,
        &Bounds {
            faults,
            splits,
            states: variable("MODEL_STATES").unwrap_or(100_000_000),
            broken: variable("MODEL_BROKEN").unwrap_or(1),
            settling: true,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        },
    );
    println!(
        "{driver:?}, {nics} NICs, {vfs} VFs a node, {faults} faults, {splits} splits, {tells} tells, {turns} turns: {} states, {} transitions, depth {}, {:.1} s{}",
        found.states,
        found.transitions,
        found.depth,
        found.time.as_secs_f64(),
        if found.complete { "" } else { ", NOT ALL" }
    );
    for (broken, way) in &found.broken {
        println!("\nBROKEN {broken}\nafter {} steps:", way.len());
        let mut state = system.start(faults, splits);
        for action in way {
            state = system.next(&state, *action);
            if variable("MODEL_TRACE") == Some(1) {
                println!("  {action:?}\n     {}", system.show(&state));
            } else {
                println!("  {action:?}");
            }
        }
        println!("is {}", system.show(&state));
    }
    found.broken.is_empty() && found.complete
}
