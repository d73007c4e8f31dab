//! What the operator measures. `docs/metrics-and-alerts.md` has them all.
//!
//! | module | measures | when |
//! |---|---|---|
//! | [`cluster`] | networks, NICs, nodes and migrations, as the leader's caches have them | at each reading |
//! | [`migrations`] | how migrations went | when their status is written |
//! | [`saves`] | how saves and restores went | when their status is written |
//! | [`reconciles`] | the operator's own work | when it is done |

mod cluster;
mod migrations;
mod reconciles;
mod saves;

use hybridnic_process::api::Requests;
use hybridnic_process::metrics::{Gauge, Registry};

pub use cluster::Cluster;
pub use migrations::{Change, End, Migrations};
pub use reconciles::Reconciles;
pub use saves::Saves;

/// The operator's metrics. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    /// Whether this process is the leader.
    pub leader: Gauge<0>,
    /// What the leader sees of the cluster.
    pub cluster: Cluster,
    /// How migrations went.
    pub migrations: Migrations,
    /// How saves and restores went.
    pub saves: Saves,
    /// The operator's own work.
    pub reconciles: Reconciles,
    /// Its requests to the API server.
    pub requests: Requests,
}

/// The operator's metrics, and the registry that writes them.
pub fn metrics() -> (Registry, Metrics) {
    let mut registry = Registry::new("operator", env!("CARGO_PKG_VERSION"));
    let metrics = Metrics {
        leader: registry.gauge(
            "hybridnic_leader",
            [],
            "1 where this process is the leader, else 0",
        ),
        cluster: Cluster::new(&mut registry),
        migrations: Migrations::new(&mut registry),
        saves: Saves::new(&mut registry),
        reconciles: Reconciles::new(&mut registry),
        requests: Requests::new(&mut registry),
    };
    (registry, metrics)
}
