//! What operator and node agent share as processes: logs, signals, probes, TLS and leader election.
//!
//! Nothing here knows what a NIC is.

pub mod health;
pub mod lease;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
