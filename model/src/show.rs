//! States in words, for a person who reads a trace.

use std::fmt::Write;

use crate::model::Model;
use crate::objects::Objects;
use crate::state::{Agent, Attachment, ENDS, Lag, Mac, Nic, State, Task};

/// What matters of a state, in one line.
pub fn state(model: &Model, state: &State) -> String {
    let mut text = format!("{:?}", model.phase(state));
    let status = model.status(state);
    if let Some(failure) = &status.failure {
        let _ = write!(text, "({})", failure.reason);
    }
    for condition in &status.conditions {
        let _ = write!(text, "[{}]", condition.reason);
    }
    if state.api.deleting {
        text.push_str(" deleting");
    }
    if let Some(choice) = state.api.decision {
        let _ = write!(text, " {choice:?}");
    }
    if let Some(aside) = state.api.aside {
        let _ = write!(text, " told {aside}");
    }
    match state.lag {
        Lag::None => {}
        Lag::Migration(status) => {
            let phase = model.objects.migrations.get(status).map(|status| status.phase);
            let _ = write!(text, " operator still sees {:?}", phase.unwrap_or_default());
        }
        Lag::Attachments(end, _) => {
            let _ = write!(text, " operator is late with {}", ["A", "B"][usize::from(end)]);
        }
    }
    let _ = write!(text, " stream {:?}", state.stream);
    for end in ENDS {
        let node = &state.nodes[end];
        let _ = write!(text, " | {} pod {:?} ", ["A", "B"][end], state.api.pods[end]);
        let qemu = node.qemu;
        for (n, pf) in node.pfs.iter().enumerate() {
            for (is, word) in [(pf.drained, "drained"), (pf.dark, "dark")] {
                if is {
                    let _ = write!(text, "pf{n} {word} ");
                }
            }
        }
        if node.agent != Agent::Prompt {
            let _ = write!(text, "agent {:?} ", node.agent);
        }
        if qemu.alive {
            let _ = write!(text, "{:?}/{:?}", qemu.run, qemu.migration);
            if qemu.listens {
                text.push_str(" listens");
            }
            if qemu.mute {
                text.push_str(" mute");
            }
        } else {
            text.push_str("dead");
        }
        if let Some(report) = model.objects.reports.get(node.vm.report) {
            let _ = write!(text, " says {:?}", report.state);
        }
        for n in 0..model.nics {
            let (of, guest) = (&node.nics[n], qemu.vf[n].is_some());
            let attachment = state.api.attachments[end][n].as_ref();
            let _ = write!(text, "; {}", nic(&model.objects, of, attachment, guest));
        }
    }
    text
}

/// What matters of a NIC in a pod. `guest`: whether its VF is plugged.
pub(crate) fn nic(objects: &Objects, nic: &Nic, attachment: Option<&Attachment>, guest: bool) -> String {
    let mut text = String::new();
    match attachment {
        None => text.push('-'),
        Some(attachment) => {
            if let Some(spec) = objects.specs.get(attachment.spec) {
                let step = spec.migration.as_ref().map(|order| order.step);
                let _ = write!(text, "{:?}/{step:?}", spec.goal);
            }
            if let Some(status) = objects.statuses.get(attachment.status) {
                let word = status.migration.as_ref().map(|report| report.state);
                let _ = write!(text, " op sees {:?}/{word:?}", status.state);
                if !attachment.current {
                    text.push_str(" old");
                }
            }
            if attachment.deleting {
                text.push_str(" deleting");
            }
        }
    }
    if nic.task == Task::Runs {
        let behind = attachment.is_none_or(|attachment| attachment.spec != nic.spec);
        if behind && let Some(spec) = objects.specs.get(nic.spec) {
            let step = spec.migration.as_ref().map(|order| order.step);
            let _ = write!(text, " agent {:?}/{step:?}", spec.goal);
        }
    }
    if let Some(vf) = nic.vf {
        let _ = write!(text, " vf{}", vf.index);
        if vf.mac == Mac::Nic {
            text.push_str("+mac");
        }
        if guest {
            text.push_str("+guest");
        }
    }
    match nic.macvtap {
        Some(true) => text.push_str(" tap up"),
        Some(false) => text.push_str(" tap down"),
        None => {}
    }
    text
}
