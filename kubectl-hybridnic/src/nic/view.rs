//! One NIC on a page. Pure; writing to a string cannot fail.

use std::fmt::{Display, Write as _};

use hybridnic_api::v1alpha1::{
    Aside, NicAttachment, NicMigration, NoFreeVf, StandbyKind, TimelineEntry, Vm, VmHybridNicStatus,
};
use jiff::Timestamp;
use k8s_openapi::{api::events::v1::Event, apimachinery::pkg::apis::meta::v1::Condition};
use kube::ResourceExt as _;

use super::{Observed, order};
use crate::{
    style::{Grid, Tone, cell},
    time, timeline, top,
};

/// Columns of a migration's bars without a terminal.
const BARS: usize = 40;
/// Columns beside the bars: the longest phase's name, the length, the indent.
const BESIDE_BARS: usize = 36;

/// Draws the page; times are told as of `now`.
pub fn draw(observed: &Observed, now: Timestamp, width: Option<usize>) -> String {
    let mut page = Page {
        text: String::new(),
        width,
    };
    let nic = &observed.nic;
    let status = nic.status.clone().unwrap_or_default();
    let name = format!("{}/{}", nic.namespace().unwrap_or_default(), nic.name_any());
    let phase = top::tone(status.phase).paint(status.phase.to_string());
    page.line(format!("{}  {phase}", Tone::Strong.paint(format!("NIC {name}"))));
    if nic.metadata.deletion_timestamp.is_some() {
        page.line(Tone::Warn.paint("It is being deleted."));
    }
    page.section("Asked for", &asked(observed));
    page.section("What it has", &has(&status));
    let node = status.node_name.as_deref().unwrap_or("no node");
    page.section(&format!("Node side ({node})"), &node_side(&status));
    page.section("Guest side", &guest_side(&status));
    page.conditions("Conditions", &status.conditions, now);
    for attachment in &observed.attachments {
        attachment_section(&mut page, attachment, now);
    }
    if let Some(migration) = &status.last_migration {
        migration_section(&mut page, migration, now);
    }
    page.events(&observed.events, now);
    for error in &observed.errors {
        page.line(format!("\n{} {error}", Tone::Bad.paint("error:")));
    }
    page.text
}

type Pairs = Vec<(&'static str, String)>;

fn asked(observed: &Observed) -> Pairs {
    let spec = &observed.nic.spec;
    let mac = spec
        .mac
        .clone()
        .unwrap_or_else(|| "one of the network's range".to_owned());
    let alone = spec.standby == StandbyKind::None;
    let no_free_vf = match spec.no_free_vf {
        NoFreeVf::Standby if alone => "run without network",
        NoFreeVf::Standby => "run on the standby",
        NoFreeVf::Wait => "wait for one",
    };
    let path = match spec.aside() {
        None => "the VF",
        Some(Aside::GiveVfBack) if alone => "none; its VF goes back to the pool",
        Some(Aside::KeepVf) if alone => "none; its VF stays reserved",
        Some(Aside::GiveVfBack) => "the standby; its VF goes back to the pool",
        Some(Aside::KeepVf) => "the standby; its VF stays reserved",
    };
    let standby = if alone { "none" } else { "a macvtap" };
    vec![
        ("network", spec.network.clone()),
        ("VM", vm(&observed.nic.spec.vm)),
        ("MAC", mac),
        ("standby", standby.to_owned()),
        ("no free VF", no_free_vf.to_owned()),
        ("path", path.to_owned()),
    ]
}

/// Its name, and what runs it.
fn vm(vm: &Vm) -> String {
    match (vm.name(), vm.runtime()) {
        (Some(name), Some(runtime)) => format!("{name} ({runtime})"),
        _ => "of a runtime that this version does not know".to_owned(),
    }
}

fn has(status: &VmHybridNicStatus) -> Pairs {
    vec![
        ("MAC", text(status.mac.as_ref())),
        ("pod", text(status.pod.as_ref().map(|pod| &pod.name))),
        ("path", status.path.to_string()),
    ]
}

fn node_side(status: &VmHybridNicStatus) -> Pairs {
    let vf = status
        .vf
        .as_ref()
        .map(|vf| format!("{}, VF {} of {}", vf.pci_address, vf.index, vf.pf));
    let standby = status
        .standby
        .as_ref()
        .map(|standby| format!("macvtap {} on {}", standby.macvtap, standby.pf));
    vec![("VF", text(vf)), ("standby", text(standby))]
}

fn guest_side(status: &VmHybridNicStatus) -> Pairs {
    let guest = &status.guest;
    let device = |address: Option<&String>, port: Option<&String>| match (address, port) {
        (None, None) => "-".to_owned(),
        (address, port) => {
            let address = address.map_or("not plugged", String::as_str);
            format!("{address}, root port {}", text(port))
        }
    };
    vec![
        (
            "VF",
            device(guest.vf_pci_address.as_ref(), guest.vf_port.as_ref()),
        ),
        (
            "standby",
            device(guest.standby_pci_address.as_ref(), guest.standby_port.as_ref()),
        ),
    ]
}

fn text(value: Option<impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn attachment_section(page: &mut Page, attachment: &NicAttachment, now: Timestamp) {
    let spec = &attachment.spec;
    let status = attachment.status.clone().unwrap_or_default();
    page.heading(&format!("Attachment {}", attachment.name_any()));
    let mut pairs = vec![
        ("where", format!("pod {} on {}", spec.pod.name, spec.node_name)),
        (
            "goal",
            format!("{}, is {}, path {}", spec.goal, status.state, status.path),
        ),
    ];
    if let Some(aside) = spec.aside {
        pairs.push(("told", aside.to_string()));
    }
    if let Some(order) = &spec.migration {
        pairs.extend(order::lines(order, status.migration.as_ref()));
    }
    if let Some(order) = status.unplug_order {
        pairs.push(("last unplug", order.to_string()));
    }
    page.pairs(&pairs);
    let trouble: Vec<_> = status
        .conditions
        .iter()
        .filter(|c| c.status != "True")
        .cloned()
        .collect();
    if !trouble.is_empty() {
        page.condition_rows(&trouble, now);
    }
    page.timeline(&status.timeline);
}

fn migration_section(page: &mut Page, migration: &NicMigration, now: Timestamp) {
    page.heading(&format!("Last migration {}", migration.name));
    let result = migration.result.as_deref().unwrap_or("goes on");
    let tone = match result {
        "Succeeded" => Tone::Good,
        "Failed" => Tone::Bad,
        _ => Tone::Warn,
    };
    let mut line = format!("  {} → {}  {}", migration.from, migration.to, tone.paint(result));
    if let Some(began) = &migration.started_at {
        let end = migration.finished_at.as_ref().map_or(now, |end| end.0);
        let _ = write!(line, ", {} in all", time::length(time::between(began.0, end)));
    }
    if let Some(ms) = migration.downtime_ms {
        let _ = write!(line, ", VM paused {}", time::length(ms));
    }
    if let Some(order) = migration.unplug_order {
        let _ = write!(line, ", {order}");
    }
    page.line(line);
    let columns = page
        .width
        .map_or(BARS, |width| width.saturating_sub(BESIDE_BARS).clamp(10, 80));
    for bar in timeline::draw(&migration.phases, now, columns) {
        page.line(format!("  {bar}"));
    }
}

/// When an event was last seen.
pub fn last_time(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().map(|series| series.last_observed_time.0);
    let old = event.deprecated_last_timestamp.as_ref().map(|time| time.0);
    series
        .or_else(|| event.event_time.as_ref().map(|time| time.0))
        .or(old)
}

struct Page {
    text: String,
    width: Option<usize>,
}

impl Page {
    fn line(&mut self, line: impl AsRef<str>) {
        self.text.push_str(line.as_ref());
        self.text.push('\n');
    }

    fn heading(&mut self, title: &str) {
        self.line(format!("\n{}", Tone::Strong.paint(title)));
    }

    /// Room for a grid that is indented by two.
    fn room(&self) -> Option<usize> {
        self.width.map(|width| width - 2)
    }

    fn section(&mut self, title: &str, pairs: &Pairs) {
        self.heading(title);
        self.pairs(pairs);
    }

    fn pairs(&mut self, pairs: &[(&str, String)]) {
        for (name, value) in pairs {
            self.line(format!("  {name:<12}{value}"));
        }
    }

    fn conditions(&mut self, title: &str, conditions: &[Condition], now: Timestamp) {
        self.heading(title);
        if conditions.is_empty() {
            self.line("  none yet: does the operator run? (kubectl hybridnic doctor)");
        } else {
            self.condition_rows(conditions, now);
        }
    }

    fn condition_rows(&mut self, conditions: &[Condition], now: Timestamp) {
        let mut grid = Grid::new(&["TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"], self.room());
        for condition in conditions {
            grid.row(vec![
                cell(&condition.type_),
                Tone::of_condition(&condition.status).cell(&condition.status),
                cell(&condition.reason),
                cell(time::age(condition.last_transition_time.0, now)),
                cell(&condition.message),
            ]);
        }
        self.text.push_str(&grid.render(2));
    }

    fn timeline(&mut self, entries: &[TimelineEntry]) {
        if entries.is_empty() {
            return;
        }
        let mut grid = Grid::new(&["TIME", "AFTER", "WHAT"], self.room());
        let mut before: Option<Timestamp> = None;
        for entry in entries {
            let after = before.map(|before| time::length(time::between(before, entry.at.0)));
            grid.row(vec![
                Tone::Quiet.cell(time::clock(entry.at.0)),
                cell(after.unwrap_or_default()),
                cell(&entry.event),
            ]);
            before = Some(entry.at.0);
        }
        self.text.push_str(&grid.render(2));
    }

    fn events(&mut self, events: &[Event], now: Timestamp) {
        self.heading("Events");
        if events.is_empty() {
            self.line("  none: the API server forgets them after an hour");
            return;
        }
        let mut grid = Grid::new(&["LAST", "TIMES", "TYPE", "REASON", "MESSAGE"], self.room());
        for event in events {
            let type_ = event.type_.as_deref().unwrap_or_default();
            let tone = if type_ == "Warning" {
                Tone::Warn
            } else {
                Tone::Plain
            };
            let times = event
                .series
                .as_ref()
                .map(|series| series.count)
                .or(event.deprecated_count)
                .unwrap_or(1);
            grid.row(vec![
                cell(last_time(event).map(|at| time::age(at, now)).unwrap_or_default()),
                cell(times),
                tone.cell(type_),
                cell(event.reason.as_deref().unwrap_or_default()),
                cell(event.note.as_deref().unwrap_or_default()),
            ]);
        }
        self.text.push_str(&grid.render(2));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;
    use crate::style::plain;

    fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
        json!({
            "type": type_, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2026-01-01T12:00:00Z",
        })
    }

    fn observed() -> Observed {
        let nic = json!({
            "metadata": {"name": "eth0", "namespace": "shop"},
            "spec": {"network": "fast", "vm": {"qemu": {"name": "web"}}},
            "status": {
                "phase": "FastPath", "path": "FastPath", "mac": "02:00:00:00:00:0a", "nodeName": "n2",
                "pod": {"name": "web-b", "uid": "b"},
                "vf": {"pciAddress": "0000:01:10.0", "pf": "ens1", "index": 3},
                "standby": {"macvtap": "hn0b2e7c1d90a", "pf": "ens1"},
                "guest": {
                    "vfPciAddress": "0000:02:00.0", "standbyPciAddress": "0000:01:00.0",
                    "vfPort": "rp1", "standbyPort": "rp0",
                },
                "lastMigration": {
                    "name": "web-x", "from": "n1", "to": "n2", "result": "Succeeded", "downtimeMs": 31,
                    "startedAt": "2026-01-01T11:59:00.000000Z", "finishedAt": "2026-01-01T11:59:04.000000Z",
                    "unplugOrder": "MakeBeforeBreak",
                    "phases": [
                        {"name": "PreparingTarget", "startedAt": "2026-01-01T11:59:00.000000Z", "ms": 1000},
                        {"name": "Transferring", "startedAt": "2026-01-01T11:59:01.000000Z", "ms": 3000},
                    ],
                },
                "conditions": [
                    condition("Ready", "True", "Attached", "the NIC is where it should be"),
                    condition("FastPath", "True", "VfActive", "the VF carries the traffic"),
                ],
            },
        });
        let attachment = json!({
            "metadata": {"name": "eth0-b", "namespace": "shop"},
            "spec": {
                "nodeName": "n2", "nic": {"name": "eth0", "uid": "n"}, "vm": {"qemu": {"name": "web"}}, "pod": {"name": "web-b", "uid": "b"},
                "network": "fast", "mac": "02:00:00:00:00:0a", "goal": "FastPath", "noFreeVf": "Standby",
                "l2": {"spoofCheck": true, "trust": false},
                "migration": {"migration": {"name": "web-x", "uid": "m"}, "nics": ["eth0"], "step": "Listen"},
            },
            "status": {
                "state": "FastPath", "path": "FastPath", "guest": {}, "unplugOrder": "MakeBeforeBreak",
                "migration": {"uid": "m", "state": "Completed"},
                "timeline": [
                    {"event": "RESUME", "at": "2026-01-01T11:59:03.500000Z"},
                    {"event": "macvtap up", "at": "2026-01-01T11:59:03.504000Z"},
                ],
                "conditions": [
                    condition("Ready", "True", "Attached", ""),
                    condition("FastPath", "False", "PfLinkDown", "ens1 has no link"),
                ],
            },
        });
        let event = json!({
            "metadata": {}, "eventTime": "2026-01-01T12:00:30.000000Z", "type": "Warning", "reason": "PfLinkDown",
            "note": "ens1 has no link", "series": {"count": 3, "lastObservedTime": "2026-01-01T12:00:40.000000Z"},
        });
        Observed {
            nic: from_value(nic).unwrap(),
            attachments: vec![from_value(attachment).unwrap()],
            events: vec![from_value(event).unwrap()],
            errors: Vec::new(),
        }
    }

    fn now() -> Timestamp {
        "2026-01-01T12:01:00Z".parse().unwrap()
    }

    #[test]
    fn a_page() {
        assert_eq!(
            plain(&draw(&observed(), now(), None)),
            "\
NIC shop/eth0  FastPath

Asked for
  network     fast
  VM          web (qemu)
  MAC         one of the network's range
  standby     a macvtap
  no free VF  run on the standby
  path        the VF

What it has
  MAC         02:00:00:00:00:0a
  pod         web-b
  path        FastPath

Node side (n2)
  VF          0000:01:10.0, VF 3 of ens1
  standby     macvtap hn0b2e7c1d90a on ens1

Guest side
  VF          0000:02:00.0, root port rp1
  standby     0000:01:00.0, root port rp0

Conditions
  TYPE      STATUS  REASON    SINCE  MESSAGE
  Ready     True    Attached  60s    the NIC is where it should be
  FastPath  True    VfActive  60s    the VF carries the traffic

Attachment eth0-b
  where       pod web-b on n2
  goal        FastPath, is FastPath, path FastPath
  migration   web-x: told Listen, says Completed
  last unplug MakeBeforeBreak
  TYPE      STATUS  REASON      SINCE  MESSAGE
  FastPath  False   PfLinkDown  60s    ens1 has no link
  TIME          AFTER  WHAT
  11:59:03.500  -      RESUME
  11:59:03.504  4 ms   macvtap up

Last migration web-x
  n1 → n2  Succeeded, 4.00 s in all, VM paused 31 ms, MakeBeforeBreak
  PreparingTarget  ██████████······························     1.00 s
  Transferring               ██████████████████████████████     3.00 s

Events
  LAST  TIMES  TYPE     REASON      MESSAGE
  20s   3      Warning  PfLinkDown  ens1 has no link
"
        );
    }

    #[test]
    fn a_nic_of_which_nothing_is_known_yet() {
        let mut observed = observed();
        observed.nic.status = None;
        observed.attachments.clear();
        observed.events.clear();
        observed.errors.push("events: not allowed".to_owned());
        let page = plain(&draw(&observed, now(), Some(60)));
        assert!(page.starts_with("NIC shop/eth0  Pending\n"), "{page}");
        assert!(page.contains("does the operator run?"), "{page}");
        assert!(page.ends_with("\nerror: events: not allowed\n"), "{page}");
    }

    #[test]
    fn a_page_fits_its_terminal() {
        for width in [60, 80, 120] {
            let page = plain(&draw(&observed(), now(), Some(width)));
            for line in page.lines().filter(|line| !line.contains('→')) {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
        }
    }
}
