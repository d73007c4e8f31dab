//! States in words, for a person who reads a trace.

use std::fmt::Write;

use super::state::{MOVES, State};
use super::world::World;
use crate::show;

/// What matters of a state, in one line.
pub fn state(world: &World, state: &State) -> String {
    let mut text = String::new();
    for which in MOVES {
        let Some(status) = world.status(state, which) else {
            continue;
        };
        let _ = write!(text, "{} {:?}", ["save", "restore"][which], status.phase);
        if let Some(failure) = &status.failure {
            let _ = write!(text, "({})", failure.reason);
        }
        for condition in &status.conditions {
            let _ = write!(text, "[{}]", condition.reason);
        }
        if state.moves.each[which].is_some_and(|of| of.deleting) {
            text.push_str(" deleting");
        }
        text.push_str(", ");
    }
    let _ = write!(text, "then {}", state.moves.then);
    if state.late.is_some() {
        text.push_str(", operator is late");
    }
    let _ = write!(text, ", disk {:?}, agents know {:?}", state.disk, state.known);
    for (end, node) in state.base.nodes.iter().enumerate() {
        if let Some(begun) = node.vm.begun {
            let _ = write!(
                text,
                ", journal of {} {:?}/{:?}",
                ["A", "B"][end],
                begun.saving,
                begun.arrival
            );
        }
    }
    let _ = write!(text, " | {}", show::state(&world.model, &state.base));
    text
}
