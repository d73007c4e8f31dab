//! What does not work on the node while the rest goes on: a device that hangs, a record that cannot be read. The
//! `HybridNode`'s condition `Degraded` and a metric show it until it is over.

use std::{collections::BTreeMap, fmt};

use hybridnic_api::conditions::{NewCondition, reasons, types};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::metrics::Metrics;

/// Troubles by what has them.
type Found = BTreeMap<String, (&'static str, String)>;

/// The node's troubles of now.
pub struct Troubles {
    found: watch::Sender<Found>,
    metrics: Metrics,
}

impl fmt::Debug for Troubles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Troubles").field(&*self.found.borrow()).finish()
    }
}

impl Troubles {
    /// Why there may be trouble.
    pub const REASONS: &[&str] = &[
        reasons::DEVICE_HUNG,
        reasons::JOURNAL_FAILED,
        reasons::KUBELET_UNREACHABLE,
        reasons::NOT_OFFERED,
        reasons::SOCKETS_NOT_WATCHED,
        reasons::CNI_UNAVAILABLE,
        reasons::FILE_UNKNOWN,
    ];

    /// None yet.
    pub fn new(metrics: Metrics) -> Self {
        Self {
            found: watch::Sender::default(),
            metrics,
        }
    }

    /// `what` has this trouble from now on.
    pub fn begin(&self, what: &str, reason: &'static str, message: impl Into<String>) {
        let message = message.into();
        let changed = self.found.send_if_modified(|found| {
            let new = (reason, message.clone());
            found.insert(what.to_owned(), new.clone()) != Some(new)
        });
        if changed {
            warn!(what, reason, message, "trouble");
            self.show();
        }
    }

    /// `what` has no trouble any more.
    pub fn end(&self, what: &str) {
        if self.found.send_if_modified(|found| found.remove(what).is_some()) {
            info!(what, "the trouble is over");
            self.show();
        }
    }

    /// Resolves when they change.
    pub fn subscribe(&self) -> watch::Receiver<Found> {
        self.found.subscribe()
    }

    /// What the `HybridNode` says of them.
    pub fn condition(&self) -> NewCondition {
        let found = self.found.borrow();
        let Some((reason, _)) = found.values().next() else {
            return NewCondition::no(types::DEGRADED, reasons::ALL_WELL, "nothing is known to be wrong");
        };
        let messages: Vec<&str> = found.values().map(|(_, message)| message.as_str()).collect();
        NewCondition::yes(
            types::DEGRADED,
            *reason,
            crate::error::bounded(&messages.join("; ")),
        )
    }

    fn show(&self) {
        let found = self.found.borrow();
        for reason in Self::REASONS {
            let count = found.values().filter(|(r, _)| r == reason).count();
            self.metrics.show_troubles(reason, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::metrics;

    #[test]
    fn they_stand_in_the_condition_and_in_the_metric_until_they_are_over() {
        let (registry, metrics) = metrics();
        let count = |n: u8| {
            let line = format!("hybridnic_agent_troubles{{reason=\"DeviceHung\"}} {n}");
            assert!(registry.encode().lines().any(|l| l == line), "no {line}");
        };
        let troubles = Troubles::new(metrics);
        assert_eq!(troubles.condition().status, Some(false));
        count(0);
        troubles.begin("0000:01:10.0", reasons::DEVICE_HUNG, "0000:01:10.0 hangs");
        troubles.begin("0000:01:10.2", reasons::DEVICE_HUNG, "0000:01:10.2 hangs");
        let condition = troubles.condition();
        assert_eq!(
            (condition.status, condition.reason.as_str()),
            (Some(true), reasons::DEVICE_HUNG)
        );
        assert_eq!(condition.message, "0000:01:10.0 hangs; 0000:01:10.2 hangs");
        count(2);
        let seen = troubles.subscribe();
        troubles.begin("0000:01:10.0", reasons::DEVICE_HUNG, "0000:01:10.0 hangs");
        assert!(!seen.has_changed().unwrap(), "nothing new");
        troubles.end("0000:01:10.0");
        troubles.end("0000:01:10.2");
        assert_eq!(troubles.condition().status, Some(false));
        count(0);
    }
}
