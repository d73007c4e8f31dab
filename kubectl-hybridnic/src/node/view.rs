//! The map of a node. Pure; writing to a string cannot fail.

use std::{collections::BTreeMap, fmt::Write as _};

use hybridnic_api::{
    conditions::{self, types},
    v1alpha1::{HybridNodeStatus, NicAttachment, Path, PfStatus, VfState, VfStatus},
};
use kube::ResourceExt as _;

use super::Observed;
use crate::style::{Grid, Tone, cell};

/// Columns where there is no terminal to ask.
const WIDTH: usize = 100;

/// What a cell of the map says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    Free,
    Held,
    Parked,
    Unhealthy,
    Drained,
    Unselected,
}

impl Mark {
    const ALL: [Self; 6] = [
        Self::Free,
        Self::Held,
        Self::Parked,
        Self::Unhealthy,
        Self::Drained,
        Self::Unselected,
    ];

    /// A VF is parked when a NIC holds it, and the NIC's traffic does not run on it.
    fn of(vf: &VfStatus, user: Option<&NicAttachment>) -> Self {
        let path = user
            .and_then(|attachment| attachment.status.as_ref())
            .map(|status| status.path);
        match vf.state {
            VfState::Free => Self::Free,
            VfState::Held if path.is_some_and(|path| path != Path::FastPath) => Self::Parked,
            VfState::Held => Self::Held,
            VfState::Unhealthy => Self::Unhealthy,
            VfState::Drained => Self::Drained,
            VfState::Unselected => Self::Unselected,
        }
    }

    fn sign(self) -> &'static str {
        match self {
            Self::Free => "□",
            Self::Held => "■",
            Self::Parked => "◧",
            Self::Unhealthy => "✗",
            Self::Drained => "◌",
            Self::Unselected => "·",
        }
    }

    fn tone(self) -> Tone {
        match self {
            Self::Free => Tone::Good,
            Self::Held => Tone::Plain,
            Self::Parked | Self::Drained => Tone::Warn,
            Self::Unhealthy => Tone::Bad,
            Self::Unselected => Tone::Quiet,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Held => "held",
            Self::Parked => "parked",
            Self::Unhealthy => "unhealthy",
            Self::Drained => "drained",
            Self::Unselected => "unselected",
        }
    }
}

/// Draws the map.
pub fn draw(observed: &Observed, width: Option<usize>) -> String {
    let node = &observed.node;
    let status = node.status.clone().unwrap_or_default();
    let users: BTreeMap<&str, &NicAttachment> = observed
        .attachments
        .iter()
        .filter_map(|attachment| {
            Some((
                attachment.status.as_ref()?.vf.as_ref()?.pci_address.as_str(),
                attachment,
            ))
        })
        .collect();
    let mut text = header(&node.name_any(), &status);
    let mut totals: BTreeMap<Mark, usize> = BTreeMap::new();
    for pf in &status.pfs {
        text.push('\n');
        text.push_str(&pf_header(pf));
        let marks: Vec<_> = pf
            .vfs
            .iter()
            .map(|vf| (vf, Mark::of(vf, users.get(vf.pci_address.as_str()).copied())))
            .collect();
        for (_, mark) in &marks {
            *totals.entry(*mark).or_default() += 1;
        }
        text.push_str(&map(&marks, width.unwrap_or(WIDTH)));
        text.push_str(&details(&marks, &users, width));
    }
    if !status.pfs.is_empty() {
        text.push_str(&legend(&totals));
    }
    text.push_str(&pools(&status, width));
    for error in &observed.errors {
        let _ = writeln!(text, "\n{} {error}", Tone::Bad.paint("error:"));
    }
    text
}

fn header(name: &str, status: &HybridNodeStatus) -> String {
    let agent = status.agent_version.as_deref().unwrap_or("of an unknown version");
    let mut text = format!("{}  agent {agent}", Tone::Strong.paint(format!("Node {name}")));
    let ready = conditions::find(&status.conditions, types::READY);
    match ready {
        Some(ready) => {
            let tone = Tone::of_condition(&ready.status);
            let _ = write!(
                text,
                "  {}",
                tone.paint(format!("Ready={} {}", ready.status, ready.reason))
            );
            if ready.status != "True" && !ready.message.is_empty() {
                let _ = write!(text, "\n{}", ready.message);
            }
        }
        None => {
            let _ = write!(text, "  {}", Tone::Warn.paint("has not reported yet"));
        }
    }
    text.push('\n');
    if status.pfs.is_empty() {
        text.push_str("No PF: no network card here can have VFs, or the agent has not looked yet.\n");
    }
    text
}

fn pf_header(pf: &PfStatus) -> String {
    let name = if pf.name.is_empty() {
        "(no interface)"
    } else {
        &pf.name
    };
    let driver = if pf.driver.is_empty() {
        Tone::Bad.paint("no driver")
    } else {
        pf.driver.clone()
    };
    let link = if pf.link_up {
        Tone::Good.paint("link up")
    } else {
        Tone::Bad.paint("no link")
    };
    let mut text = format!(
        "{}  {}  {driver}  {}:{}  {link}",
        Tone::Strong.paint(name),
        pf.pci_address,
        pf.vendor,
        pf.device
    );
    if let Some(numa) = pf.numa_node {
        let _ = write!(text, "  NUMA {numa}");
    }
    if let Some(mtu) = pf.mtu {
        let _ = write!(text, "  MTU {mtu}");
    }
    let _ = writeln!(text, "  {} of {} VFs", pf.vfs.len(), pf.total_vfs);
    if !pf.message.is_empty() {
        let _ = writeln!(text, "  {}", Tone::Bad.paint(&pf.message));
    }
    text
}

/// A cell for each VF: its index and its mark; as many beside one another as fit.
fn map(marks: &[(&VfStatus, Mark)], width: usize) -> String {
    let digits = marks
        .iter()
        .map(|(vf, _)| vf.index.to_string().len())
        .max()
        .unwrap_or(1);
    // Index, mark, and two spaces.
    let across = ((width.saturating_sub(2)) / (digits + 3)).clamp(1, 16);
    let mut text = String::new();
    for row in marks.chunks(across) {
        let cells: Vec<_> = row
            .iter()
            .map(|(vf, mark)| format!("{:>digits$}{}", vf.index, mark.tone().paint(mark.sign())))
            .collect();
        let _ = writeln!(text, "  {}", cells.join("  "));
    }
    text
}

/// A line for each VF of which there is more to say.
fn details(
    marks: &[(&VfStatus, Mark)],
    users: &BTreeMap<&str, &NicAttachment>,
    width: Option<usize>,
) -> String {
    let mut grid = Grid::new(&[], width.map(|width| width - 2));
    for (vf, mark) in marks {
        if matches!(mark, Mark::Free | Mark::Drained | Mark::Unselected) {
            continue;
        }
        let holder = vf.held_by.clone().unwrap_or_default();
        let note = match (users.get(vf.pci_address.as_str()), mark) {
            (_, Mark::Unhealthy) => vf.message.clone(),
            (Some(attachment), Mark::Parked) => {
                let state = attachment
                    .status
                    .as_ref()
                    .map(|status| status.state)
                    .unwrap_or_default();
                format!(
                    "{holder}: VM {} in {}, NIC is {state}",
                    attachment.spec.vm.name(),
                    attachment.spec.pod.name
                )
            }
            (Some(attachment), _) => format!(
                "{holder}: VM {} in {}",
                attachment.spec.vm.name(),
                attachment.spec.pod.name
            ),
            (None, _) => holder,
        };
        let group = vf
            .iommu_group
            .map_or_else(|| "no IOMMU group".to_owned(), |group| format!("group {group}"));
        grid.row(vec![
            cell(vf.index),
            mark.tone().cell(mark.word()),
            cell(&vf.pci_address),
            cell(if vf.driver.is_empty() {
                "no driver"
            } else {
                &vf.driver
            }),
            cell(group),
            cell(note),
        ]);
    }
    if grid.is_empty() {
        String::new()
    } else {
        grid.render(2)
    }
}

/// Every mark with its number, also those that are not on the map: it explains them too.
fn legend(totals: &BTreeMap<Mark, usize>) -> String {
    let part = |mark: Mark| {
        let number = totals.get(&mark).copied().unwrap_or(0);
        format!("{} {number} {}", mark.tone().paint(mark.sign()), mark.word())
    };
    let all: usize = totals.values().sum();
    format!("\n{all} VFs: {}\n", Mark::ALL.map(part).join("  "))
}

fn pools(status: &HybridNodeStatus, width: Option<usize>) -> String {
    let mut grid = Grid::new(&["NETWORK", "VFS", "FREE", "HELD", "UNHEALTHY", "MESSAGE"], width);
    for pool in &status.pools {
        let vfs = pool.vfs;
        grid.row(vec![
            cell(&pool.network),
            cell(vfs.total),
            cell(vfs.free),
            cell(vfs.held),
            cell(vfs.unhealthy),
            if pool.message.is_empty() {
                cell("")
            } else {
                Tone::Bad.cell(&pool.message)
            },
        ]);
    }
    if grid.is_empty() {
        "\nNo network selects this node.\n".to_owned()
    } else {
        format!("\n{}", grid.render(0))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;
    use crate::style::plain;

    fn vf(index: i32, state: &str, held_by: Option<&str>, message: &str) -> Value {
        json!({
            "index": index, "pciAddress": format!("0000:01:10.{index}"), "state": state, "message": message,
            "driver": if held_by.is_some() { "vfio-pci" } else { "igbvf" },
            "iommuGroup": if index == 3 { Value::Null } else { json!(20 + index) }, "heldBy": held_by,
        })
    }

    fn attachment(nic: &str, vf: i32, path: &str, state: &str) -> Value {
        json!({
            "metadata": {"name": nic},
            "spec": {
                "nodeName": "n1", "nic": {"name": nic, "uid": "n"}, "vm": {"qemu": {"name": "web"}}, "pod": {"name": "web-a", "uid": "b"},
                "network": "fast", "mac": "02:00:00:00:00:0a", "goal": "FastPath", "noFreeVf": "Standby",
                "l2": {"spoofCheck": true, "trust": false},
            },
            "status": {
                "state": state, "path": path,
                "vf": {"pciAddress": format!("0000:01:10.{vf}"), "pf": "ens1", "index": vf},
            },
        })
    }

    fn observed() -> Observed {
        let node = json!({
            "metadata": {"name": "n1"}, "spec": {},
            "status": {
                "agentVersion": "0.1.0", "pfCount": 2,
                "conditions": [{
                    "type": "Ready", "status": "True", "reason": "Discovered", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }],
                "pools": [
                    {"network": "fast", "vfs": {"total": 4, "free": 1, "held": 2, "unhealthy": 1}},
                    {"network": "slow", "vfs": {"total": 0, "free": 0, "held": 0, "unhealthy": 0}, "message": "no PF"},
                ],
                "pfs": [
                    {
                        "name": "ens1", "pciAddress": "0000:01:00.0", "vendor": "8086", "device": "10c9", "driver": "igb",
                        "numaNode": 0, "mtu": 1500, "linkUp": true, "totalVfs": 7,
                        "vfs": [
                            vf(0, "Held", Some("shop/eth0"), ""), vf(1, "Held", Some("shop/eth1"), ""),
                            vf(2, "Free", None, ""), vf(3, "Unhealthy", None, "the VF has no IOMMU group"),
                            vf(4, "Unselected", None, ""),
                        ],
                    },
                    {
                        "name": "", "pciAddress": "0000:02:00.0", "vendor": "8086", "device": "10c9", "driver": "",
                        "linkUp": false, "totalVfs": 7, "message": "the PF has no interface",
                    },
                ],
            },
        });
        let attachments = [
            attachment("eth0", 0, "FastPath", "FastPath"),
            attachment("eth1", 1, "Standby", "Standby"),
        ];
        Observed {
            node: from_value(node).unwrap(),
            attachments: attachments.map(|a| from_value(a).unwrap()).to_vec(),
            errors: Vec::new(),
        }
    }

    #[test]
    fn a_map() {
        assert_eq!(
            plain(&draw(&observed(), None)),
            "\
Node n1  agent 0.1.0  Ready=True Discovered

ens1  0000:01:00.0  igb  8086:10c9  link up  NUMA 0  MTU 1500  5 of 7 VFs
  0■  1◧  2□  3✗  4·
  0  held       0000:01:10.0  vfio-pci  group 20        shop/eth0: VM web in web-a
  1  parked     0000:01:10.1  vfio-pci  group 21        shop/eth1: VM web in web-a, NIC is Standby
  3  unhealthy  0000:01:10.3  igbvf     no IOMMU group  the VF has no IOMMU group

(no interface)  0000:02:00.0  no driver  8086:10c9  no link  0 of 7 VFs
  the PF has no interface

5 VFs: □ 1 free  ■ 1 held  ◧ 1 parked  ✗ 1 unhealthy  ◌ 0 drained  · 1 unselected

NETWORK  VFS  FREE  HELD  UNHEALTHY  MESSAGE
fast     4    1     2     1          -
slow     0    0     0     0          no PF
"
        );
    }

    #[test]
    fn many_vfs_are_wrapped() {
        let vfs: Vec<VfStatus> = (0..40)
            .map(|index| VfStatus {
                index,
                state: VfState::Free,
                ..VfStatus::default()
            })
            .collect();
        let marks: Vec<_> = vfs.iter().map(|vf| (vf, Mark::of(vf, None))).collect();
        let rows = plain(&map(&marks, 100));
        assert_eq!(rows.lines().count(), 3, "sixteen in a row: {rows}");
        assert!(rows.starts_with("   0□   1□"), "{rows}");
        assert!(
            plain(&map(&marks, 40))
                .lines()
                .all(|line| line.chars().count() <= 40)
        );
    }

    #[test]
    fn who_holds_a_vf_is_said_without_its_attachment_too() {
        let mut observed = observed();
        observed.attachments.clear();
        observed
            .errors
            .push("which VFs are parked: not allowed".to_owned());
        let text = plain(&draw(&observed, None));
        assert!(
            text.contains("0  held       0000:01:10.0  vfio-pci  group 20        shop/eth0\n"),
            "{text}"
        );
        assert!(
            text.ends_with("error: which VFs are parked: not allowed\n"),
            "{text}"
        );
    }

    #[test]
    fn a_node_without_anything() {
        let node = json!({"metadata": {"name": "n9"}, "spec": {}});
        let observed = Observed {
            node: from_value(node).unwrap(),
            attachments: Vec::new(),
            errors: Vec::new(),
        };
        let text = plain(&draw(&observed, Some(80)));
        assert!(
            text.contains("has not reported yet") && text.contains("No network selects"),
            "{text}"
        );
    }
}
