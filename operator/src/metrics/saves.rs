//! How saves and restores went.

use hybridnic_api::conditions::reasons;
use hybridnic_process::metrics::{Counter, Registry, Seconds};

use super::migrations::{BUCKETS, DOWNTIMES, End, result, seconds};
use crate::moves::Outcome;

/// Why either may fail.
const FAILURES: &[&str] = &[
    reasons::NO_NICS,
    reasons::TOO_MANY_NICS,
    reasons::TARGET_NOT_READY,
    reasons::FILE_REFUSED,
    reasons::TRANSFER_FAILED,
    reasons::DEADLINE_EXCEEDED,
];
/// Why only a save may fail.
const OF_SAVES: &[&str] = &[reasons::GUEST_KEEPS_VF, reasons::SOURCE_LOST, reasons::FAILED];
/// Why only a restore may fail.
const OF_RESTORES: &[&str] = &[reasons::VM_RUNS, reasons::TARGET_NO_FREE_VF, reasons::TARGET_LOST];

/// How saves and restores went. Clones share it.
#[derive(Clone, Debug)]
pub struct Saves {
    ended: Counter<3>,
    total: Seconds<2>,
    downtime: Seconds<0>,
}

impl Saves {
    /// Adds its metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let this = Self {
            ended: registry.counter(
                "hybridnic_saves",
                ["kind", "result", "reason"],
                "Saves and restores that have ended, by kind (save, restore), result (succeeded, failed, cancelled) and reason",
            ),
            total: registry.seconds(
                "hybridnic_save_duration",
                ["kind", "result"],
                BUCKETS,
                "How long a save or a restore took, by kind and result",
            ),
            downtime: registry.seconds(
                "hybridnic_save_downtime",
                [],
                DOWNTIMES,
                "The VM's pause before QEMU had written it, in a save that succeeded, as QEMU says",
            ),
        };
        for (kind, more) in [("save", OF_SAVES), ("restore", OF_RESTORES)] {
            this.ended.show([kind, "succeeded", reasons::COMPLETED]);
            this.ended.show([kind, "cancelled", reasons::CANCELLED]);
            for reason in FAILURES.iter().chain(more) {
                this.ended.show([kind, "failed", reason]);
            }
        }
        this
    }

    /// Counts an end, once it is written.
    pub fn count(&self, kind: &str, end: &End) {
        let result = result(end.outcome);
        self.ended.inc([kind, result, &end.reason]);
        if let Some(ms) = end.total_ms {
            self.total.observe([kind, result], seconds(ms));
        }
        if let Some(ms) = end.downtime_ms.filter(|_| end.outcome == Outcome::Succeeded) {
            self.downtime.observe([], seconds(ms));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_failures_from_the_start() {
        let mut registry = Registry::default();
        let saves = Saves::new(&mut registry);
        saves.count(
            "save",
            &End {
                outcome: Outcome::Succeeded,
                reason: reasons::COMPLETED.to_owned(),
                total_ms: Some(2000),
                downtime_ms: Some(31),
            },
        );
        let text = registry.encode();
        let has = |line: &str| text.lines().any(|l| l == line);
        for line in [
            "hybridnic_saves_total{kind=\"save\",result=\"succeeded\",reason=\"Completed\"} 1",
            "hybridnic_saves_total{kind=\"save\",result=\"failed\",reason=\"GuestKeepsVf\"} 0",
            "hybridnic_saves_total{kind=\"restore\",result=\"succeeded\",reason=\"Completed\"} 0",
            "hybridnic_saves_total{kind=\"restore\",result=\"failed\",reason=\"VmRuns\"} 0",
            "hybridnic_save_duration_seconds_count{kind=\"save\",result=\"succeeded\"} 1",
            "hybridnic_save_downtime_seconds_sum 0.031",
        ] {
            assert!(has(line), "no {line} in\n{text}");
        }
        assert!(!text.contains("kind=\"save\",result=\"failed\",reason=\"VmRuns\""));
    }
}
