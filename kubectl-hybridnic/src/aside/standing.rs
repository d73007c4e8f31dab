//! How far a NIC is with what it was told. Pure.

use hybridnic_api::{
    conditions::{self, reasons, types},
    v1alpha1::{Aside, NicAttachment, NicPhase, Path, VmHybridNic},
};
use hybridnic_console::Standing;

/// Where a NIC that was told `aside` is; `generation` is that of its spec since then. Earlier reports of its agent
/// say nothing.
pub fn standing(
    nic: &VmHybridNic,
    attachments: &[NicAttachment],
    aside: Option<Aside>,
    generation: Option<i64>,
) -> Standing {
    let status = nic.status.clone().unwrap_or_default();
    if nic.metadata.deletion_timestamp.is_some() {
        return Standing::Stuck("it is being deleted".to_owned());
    }
    if nic.spec.aside() != aside {
        return Standing::Stuck("somebody has changed spec.path or spec.keepVf since".to_owned());
    }
    if status.observed_generation < generation {
        return Standing::OnItsWay("the operator has not looked at it yet".to_owned());
    }
    let condition = |type_| conditions::find(&status.conditions, type_);
    let why = |type_| condition(type_).map_or(String::new(), |c| format!("{}: {}", c.reason, c.message));
    if status.phase == NicPhase::Migrating {
        return Standing::OnItsWay(why(types::FAST_PATH));
    }
    let refused = condition(types::ACCEPTED).is_some_and(|c| c.status == "False");
    let here = attachments.iter().find(|attachment| {
        status
            .pod
            .as_ref()
            .is_some_and(|pod| pod.uid == attachment.spec.pod.uid)
    });
    let Some(attachment) = here else {
        let ready = why(types::READY);
        return match status.phase {
            NicPhase::Failed => Standing::Stuck(ready),
            _ if refused => Standing::Stuck(why(types::ACCEPTED)),
            NicPhase::Pending => Standing::There(format!(
                "it is not attached ({ready}); this takes effect when it is"
            )),
            _ => Standing::OnItsWay(ready),
        };
    };
    let reported = attachment
        .status
        .as_ref()
        .and_then(|status| status.observed_generation);
    if attachment.spec.aside != aside || reported != attachment.metadata.generation {
        return Standing::OnItsWay("its agent has not acted on it yet".to_owned());
    }
    judge(nic, attachment, aside)
}

/// By what its agent has said since.
fn judge(nic: &VmHybridNic, attachment: &NicAttachment, aside: Option<Aside>) -> Standing {
    let said = attachment.status.clone().unwrap_or_default();
    let find = |type_| conditions::find(&said.conditions, type_);
    let there = match aside {
        None => said.path == Path::FastPath,
        // The reason comes once all is done that was asked for.
        Some(_) => find(types::FAST_PATH).is_some_and(|c| c.reason == reasons::STANDBY_REQUESTED),
    };
    // The NIC's own status has it too, or it is not shown at the next look.
    let shown = nic.status.as_ref().is_some_and(|status| status.path == said.path);
    if there {
        let message = find(types::FAST_PATH).map_or("", |c| &c.message).to_owned();
        return if shown {
            Standing::There(message)
        } else {
            Standing::OnItsWay(message)
        };
    }
    let Some(ready) = find(types::READY) else {
        return Standing::OnItsWay("its agent has not said how it is".to_owned());
    };
    let text = format!("{}: {}", ready.reason, ready.message);
    let passes = [
        reasons::PROGRESSING,
        reasons::AGENT_PENDING,
        reasons::MIGRATING,
        reasons::WAITING_FOR_RUNTIME,
        reasons::VM_INCOMING,
    ];
    if ready.status == "True" || passes.contains(&ready.reason.as_str()) {
        Standing::OnItsWay(text)
    } else {
        Standing::Stuck(text)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn condition(type_: &str, status: &str, reason: &str) -> Value {
        json!({
            "type": type_, "status": status, "reason": reason, "message": "so it is",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    }

    /// The second generation of a NIC, which is told to stay on its standby.
    fn nic(phase: &str, path: &str, observed: i64) -> VmHybridNic {
        from_value(json!({
            "metadata": {"name": "eth0", "namespace": "shop", "generation": 2},
            "spec": {"network": "fast", "vm": {"qemu": {"name": "web"}}, "path": "Standby"},
            "status": {
                "observedGeneration": observed, "phase": phase, "path": path, "pod": {"name": "web-a", "uid": "a"},
                "conditions": [condition("Ready", "False", "PodNotFound"), condition("FastPath", "False", "Migrating")],
            },
        }))
        .unwrap()
    }

    fn attachment(
        aside: Option<Aside>,
        current: bool,
        path: &str,
        ready: (&str, &str),
        fast: &str,
    ) -> NicAttachment {
        from_value(json!({
            "metadata": {"name": "eth0-a", "namespace": "shop", "generation": 5},
            "spec": {
                "nodeName": "n1", "nic": {"name": "eth0", "uid": "n"}, "vm": {"qemu": {"name": "web"}},
                "pod": {"name": "web-a", "uid": "a"}, "network": "fast", "mac": "02:00:00:00:00:0a", "goal": "FastPath",
                "aside": aside, "noFreeVf": "Standby", "l2": {"spoofCheck": true, "trust": false},
            },
            "status": {
                "observedGeneration": if current { 5 } else { 4 }, "path": path,
                "conditions": [condition("Ready", ready.0, ready.1), condition("FastPath", "False", fast)],
            },
        }))
        .unwrap()
    }

    const GIVES: Option<Aside> = Some(Aside::GiveVfBack);

    fn is(nic: &VmHybridNic, attachment: Option<&NicAttachment>, aside: Option<Aside>) -> &'static str {
        match standing(
            nic,
            attachment.map(std::slice::from_ref).unwrap_or_default(),
            aside,
            Some(2),
        ) {
            Standing::OnItsWay(_) => "on its way",
            Standing::There(_) => "there",
            Standing::Stuck(_) => "stuck",
        }
    }

    #[test]
    fn what_was_said_before_it_was_told_says_nothing() {
        let told = GIVES;
        let done = ("True", "Attached");
        let there = attachment(told, true, "Standby", done, "StandbyRequested");
        assert_eq!(is(&nic("Standby", "Standby", 2), Some(&there), GIVES), "there");
        assert_eq!(
            is(&nic("Standby", "Standby", 1), Some(&there), GIVES),
            "on its way"
        );
        assert_eq!(
            is(&nic("FastPath", "FastPath", 2), Some(&there), GIVES),
            "on its way"
        );
        let keeps = |current| attachment(told, current, "FastPath", ("False", "GuestKeepsVf"), "VfActive");
        assert_eq!(
            is(&nic("FastPath", "FastPath", 2), Some(&keeps(false)), GIVES),
            "on its way"
        );
        assert_eq!(
            is(&nic("FastPath", "FastPath", 2), Some(&keeps(true)), GIVES),
            "stuck"
        );
        let untold = attachment(None, true, "FastPath", ("False", "GuestKeepsVf"), "VfActive");
        assert_eq!(
            is(&nic("FastPath", "FastPath", 2), Some(&untold), GIVES),
            "on its way"
        );
        let steps = attachment(told, true, "FastPath", ("False", "Progressing"), "VfActive");
        assert_eq!(
            is(&nic("FastPath", "FastPath", 2), Some(&steps), GIVES),
            "on its way"
        );
    }

    #[test]
    fn a_nic_that_is_to_be_fast_is_so_or_says_why_not() {
        let auto = |path| {
            let mut nic = nic(path, path, 2);
            nic.spec.path = hybridnic_api::v1alpha1::WantedPath::Auto;
            nic
        };
        let fast = attachment(None, true, "FastPath", ("True", "Attached"), "VfActive");
        assert_eq!(is(&auto("FastPath"), Some(&fast), None), "there");
        let none = attachment(None, true, "Standby", ("False", "NoFreeVf"), "NoFreeVf");
        assert_eq!(is(&auto("Standby"), Some(&none), None), "stuck");
        let still = attachment(
            Some(Aside::KeepVf),
            true,
            "Standby",
            ("True", "Attached"),
            "StandbyRequested",
        );
        assert_eq!(is(&auto("Standby"), Some(&still), None), "on its way");
    }

    #[test]
    fn a_nic_in_no_guest_is_told_for_later() {
        assert_eq!(is(&nic("Pending", "None", 2), None, GIVES), "there");
        assert_eq!(is(&nic("Failed", "None", 2), None, GIVES), "stuck");
        assert_eq!(is(&nic("Attaching", "None", 2), None, GIVES), "on its way");
        assert_eq!(is(&nic("Migrating", "Standby", 2), None, GIVES), "on its way");
        assert_eq!(
            is(&nic("Pending", "None", 2), None, Some(Aside::KeepVf)),
            "stuck",
            "told otherwise"
        );
    }
}
