//! Compares the documentation with the programs. No cluster is needed.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

mod docs;
mod metrics;
mod sbom;
mod tests;
