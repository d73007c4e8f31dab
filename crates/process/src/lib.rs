//! What operator and node agent share as processes: logs, signals, probes, metrics, traces, TLS, requests to the API
//! server and leader election.
//!
//! Nothing here knows what a NIC is.

pub mod api;
pub mod backoff;
pub mod deadline;
pub mod http;
pub mod lease;
pub mod log_level;
pub mod metrics;
pub mod pace;
pub mod pages;
pub mod probes;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
pub mod traces;
pub mod watch;
