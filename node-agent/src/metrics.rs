//! What the agent measures. `docs/metrics-and-alerts.md` has it all.

use std::{collections::BTreeSet, time::Duration};

use hybridnic_api::{
    conditions::reasons,
    v1alpha1::{PfStatus, VfState},
};
use hybridnic_net::netlink::NetlinkError;
use hybridnic_process::{
    api::Requests,
    metrics::{Counter, Gauge, Registry, Seconds},
};

use crate::{
    audit::Finding,
    nic::{plan::Step, stopwatch::Switch},
    offer::devices::Device,
    troubles::Troubles,
};

/// Upper bounds of the times of steps and switches.
const BUCKETS: &[f64] = &[0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];
/// Why a step may fail.
const FAILURES: &[&str] = &[
    reasons::DEVICE_HUNG,
    reasons::FAILED,
    reasons::JOURNAL_FAILED,
    reasons::NO_GUEST_PORT,
    reasons::NO_UPLINK,
    reasons::QEMU_REFUSED,
    reasons::QMP_UNAVAILABLE,
    reasons::STANDBY_FAILED,
    reasons::VF_BIND_FAILED,
    reasons::VF_IN_USE,
    reasons::VF_LOST,
    reasons::VF_SETTING_REFUSED,
    reasons::VF_UNKNOWN,
];

/// The agent's metrics. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Its requests to the API server.
    pub requests: Requests,
    switches: Counter<4>,
    switch_duration: Seconds<2>,
    step_duration: Seconds<1>,
    step_failures: Counter<1>,
    qmp_errors: Counter<2>,
    netlink_errors: Counter<2>,
    vfs: Gauge<1>,
    findings: Gauge<1>,
    audits: Counter<1>,
    troubles: Gauge<1>,
    devices: Gauge<2>,
    registrations: Counter<1>,
}

/// The agent's metrics, and the registry that writes them.
pub fn metrics() -> (Registry, Metrics) {
    let mut registry = Registry::new("agent", env!("CARGO_PKG_VERSION"));
    let metrics = Metrics {
        requests: Requests::new(&mut registry),
        switches: registry.counter(
            "hybridnic_agent_switches",
            ["to", "order", "result", "reason"],
            "Switches between VF and standby that have ended, by where to, order of the two halves, result and reason",
        ),
        switch_duration: registry.seconds(
            "hybridnic_agent_switch_duration",
            ["to", "order"],
            BUCKETS,
            "How long a switch that went well took, from its first step to its last; not the gap that the traffic saw",
        ),
        step_duration: registry.seconds(
            "hybridnic_agent_step_duration",
            ["step"],
            BUCKETS,
            "How long a step that went well took",
        ),
        step_failures: registry.counter(
            "hybridnic_agent_step_failures",
            ["reason"],
            "Steps, and looks before them, that failed and are tried again, by reason",
        ),
        qmp_errors: registry.counter(
            "hybridnic_agent_qmp_errors",
            ["command", "error"],
            "QMP commands that failed, by error: refused (also where that is expected), timeout, closed, other",
        ),
        netlink_errors: registry.counter(
            "hybridnic_agent_netlink_errors",
            ["operation", "error"],
            "Netlink requests that failed, by error: refused, timeout, other",
        ),
        vfs: registry.gauge(
            "hybridnic_agent_vfs",
            ["state"],
            "The node's VFs, by state: free, held, unhealthy, drained, or unselected by any network",
        ),
        findings: registry.gauge(
            "hybridnic_agent_audit_findings",
            ["kind"],
            "What the last audit found and nobody touches, by kind",
        ),
        audits: registry.counter(
            "hybridnic_agent_audits",
            ["result"],
            "Audits, by result: ok (they could look), failed",
        ),
        troubles: registry.gauge(
            "hybridnic_agent_troubles",
            ["reason"],
            "What does not work on the node while the rest goes on, by reason",
        ),
        devices: registry.gauge(
            "hybridnic_agent_devices",
            ["network", "state"],
            "The devices that the kubelet has for pods, by network and state: free, given (to a pod), unhealthy",
        ),
        registrations: registry.counter(
            "hybridnic_agent_registrations",
            ["network"],
            "How often a network was registered with the kubelet: after each start of the kubelet or the agent",
        ),
    };
    for reason in FAILURES {
        metrics.step_failures.show([reason]);
    }
    for result in ["ok", "failed"] {
        metrics.audits.show([result]);
    }
    for reason in Troubles::REASONS {
        metrics.show_troubles(reason, 0);
    }
    metrics.show_findings(&BTreeSet::new());
    metrics.show_vfs(&[]);
    (registry, metrics)
}

impl Metrics {
    /// A switch has ended.
    pub fn switched(&self, switch: &Switch) {
        let (to, order): (&str, &str) = (switch.to.into(), switch.order.into());
        let result = if switch.ok { "ok" } else { "failed" };
        self.switches.inc([to, order, result, switch.reason]);
        if switch.ok {
            self.switch_duration
                .observe([to, order], switch.took.as_secs_f64());
        }
    }

    /// A step went well.
    pub fn step_taken(&self, step: Step, took: Duration) {
        self.step_duration.observe([step.into()], took.as_secs_f64());
    }

    /// A step failed for this reason.
    pub fn step_failed(&self, reason: &'static str) {
        self.step_failures.inc([reason]);
    }

    /// A QMP command failed, in one of a few words.
    pub fn qmp_error(&self, command: &str, error: &'static str) {
        self.qmp_errors.inc([command, error]);
    }

    /// A netlink request failed.
    pub fn netlink_error(&self, operation: &str, error: &NetlinkError) {
        let error = match error {
            NetlinkError::Refused { .. } => "refused",
            NetlinkError::Timeout { .. } => "timeout",
            _ => "other",
        };
        self.netlink_errors.inc([operation, error]);
    }

    /// What the node has.
    pub fn show_vfs(&self, pfs: &[PfStatus]) {
        for (name, state) in [
            ("free", VfState::Free),
            ("held", VfState::Held),
            ("unhealthy", VfState::Unhealthy),
            ("drained", VfState::Drained),
            ("unselected", VfState::Unselected),
        ] {
            let vfs = pfs.iter().flat_map(|pf| &pf.vfs).filter(|vf| vf.state == state);
            self.vfs.set([name], vfs.count().try_into().unwrap_or(i64::MAX));
        }
    }

    /// An audit has found this.
    pub fn show_findings(&self, findings: &BTreeSet<Finding>) {
        for kind in Finding::KINDS {
            let of_kind = findings.iter().filter(|finding| finding.kind() == *kind).count();
            self.findings.set([kind], of_kind.try_into().unwrap_or(i64::MAX));
        }
    }

    /// So many troubles of this kind are not over.
    pub fn show_troubles(&self, reason: &str, count: usize) {
        self.troubles.set([reason], count.try_into().unwrap_or(i64::MAX));
    }

    /// What a network offers to the kubelet.
    pub fn show_devices(&self, network: &str, devices: &[Device]) {
        let is = |state: &str, device: &Device| match (device.given, device.healthy) {
            (true, _) => state == "given",
            (false, true) => state == "free",
            (false, false) => state == "unhealthy",
        };
        for state in ["free", "given", "unhealthy"] {
            let count = devices.iter().filter(|device| is(state, device)).count();
            self.devices
                .set([network, state], count.try_into().unwrap_or(i64::MAX));
        }
    }

    /// A network's devices are registered with the kubelet.
    pub fn registered(&self, network: &str) {
        self.registrations.inc([network]);
    }

    /// An audit could look, or not.
    pub fn audited(&self, ok: bool) {
        self.audits.inc([if ok { "ok" } else { "failed" }]);
    }
}

#[cfg(test)]
mod tests {
    use hybridnic_api::v1alpha1::{SwitchOrder, VfStatus};

    use super::*;
    use crate::nic::stopwatch::To;

    #[test]
    fn what_happens_is_counted_under_words_of_fixed_lists() {
        let (registry, metrics) = metrics();
        let switch = Switch {
            to: To::FastPath,
            order: SwitchOrder::MakeBeforeBreak,
            ok: true,
            reason: reasons::VF_ACTIVE,
            took: Duration::from_millis(400),
        };
        metrics.switched(&switch);
        metrics.switched(&Switch {
            ok: false,
            reason: reasons::GUEST_IGNORES_VF,
            ..switch
        });
        metrics.step_taken(Step::UnplugVf, Duration::from_millis(350));
        metrics.step_failed(reasons::VF_LOST);
        metrics.qmp_error("device_del", "timeout");
        let vf = |state| VfStatus {
            state,
            ..VfStatus::default()
        };
        metrics.show_vfs(&[PfStatus {
            vfs: vec![vf(VfState::Held), vf(VfState::Free), vf(VfState::Held)],
            ..PfStatus::default()
        }]);
        let text = registry.encode();
        for line in [
            "hybridnic_agent_switches_total{to=\"FastPath\",order=\"MakeBeforeBreak\",result=\"ok\",reason=\"VfActive\"} 1",
            "hybridnic_agent_switches_total{to=\"FastPath\",order=\"MakeBeforeBreak\",result=\"failed\",reason=\"GuestIgnoresVf\"} 1",
            "hybridnic_agent_switch_duration_seconds_count{to=\"FastPath\",order=\"MakeBeforeBreak\"} 1",
            "hybridnic_agent_step_duration_seconds_sum{step=\"UnplugVf\"} 0.35",
            "hybridnic_agent_step_failures_total{reason=\"VfLost\"} 1",
            "hybridnic_agent_step_failures_total{reason=\"JournalFailed\"} 0",
            "hybridnic_agent_qmp_errors_total{command=\"device_del\",error=\"timeout\"} 1",
            "hybridnic_agent_vfs{state=\"held\"} 2",
            "hybridnic_agent_vfs{state=\"unhealthy\"} 0",
            "hybridnic_agent_audit_findings{kind=\"mac_two_owners\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
        }
    }
}
