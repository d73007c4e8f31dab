//! The API, the chart, the operator and `kubectl hybridnic` on a real control plane. The agents are fake, see [`agent`]; the
//! lab has real ones.
//!
//! ```text
//! cargo test --workspace --all-features --test cluster -- operator::
//! ```
//! One program: each control plane waits more than it computes, so many tests run at once.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "a test ends where something is not as it should be; a control plane takes seconds, so a story is one test"
)]

mod agent;
mod api;
mod bench;
mod chart;
mod commands;
mod controlplane;
mod flood;
mod operator;
mod plugin;
mod restricted;
