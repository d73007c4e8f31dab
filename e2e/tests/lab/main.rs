//! Two emulated nodes with SR-IOV, the real operator and agents, and guests that migrate.
//!
//! ```text
//! cargo test --workspace --all-features --test lab -- there_and_back
//! ```
//! All tests of one kernel share a world (see [`suite`]): each leaves it as it has found it, or fails.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::semicolon_if_nothing_returned,
    clippy::too_many_lines,
    reason = "a test ends where something is not as it should be"
)]

mod alone;
mod aside;
mod bond;
#[path = "../common/mod.rs"]
mod common;
mod containment;
mod debian;
mod devices;
mod drain;
mod faults;
mod flight;
mod hosts;
mod lifecycle;
mod local;
mod managers;
mod once;
mod pool;
mod profile;
mod readme;
mod save;
mod standby;
mod suite;
mod unfit;

use std::env;

use hybridnic_e2e::world::kernel_of_the_run;
use libtest_mimic::Arguments;
use suite::Suite;

fn main() {
    let mut arguments = Arguments::from_args();
    // One lab to a run; a test alone runs on the main thread, and its output comes as it is made.
    arguments.test_threads = Some(1);
    let suite = Suite::new(kernel_of_the_run());
    // Each change of the kernel is another world, and so is a test that makes its own: these first. Then those that measure most closely
    // for how long a network is away: a run that goes from the end has less of the processors.
    let tests = [
        debian::tests,
        unfit::tests,
        local::tests,
        hosts::tests,
        drain::tests,
        flight::tests,
        aside::tests,
        bond::tests,
        devices::tests,
        faults::tests,
        lifecycle::tests,
        once::tests,
        managers::tests,
        pool::tests,
        alone::tests,
        profile::tests,
        containment::tests,
        standby::tests,
        save::tests,
    ];
    let mut tests: Vec<_> = tests.iter().flat_map(|of| of(&suite)).collect();
    if env::var_os("LAB_LAST_FIRST").is_some_and(|set| !set.is_empty()) {
        tests.reverse();
    }
    let conclusion = libtest_mimic::run(&arguments, tests);
    drop(suite);
    conclusion.exit();
}
