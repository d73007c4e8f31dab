//! How NICs that were told where to be are drawn. Pure; writing to a string cannot fail.

use std::fmt::Write as _;

use hybridnic_api::v1alpha1::{Aside, VmHybridNic};
use kube::ResourceExt as _;

use crate::style::Tone;
use hybridnic_console::Standing;

/// What the NICs were told, in words.
pub fn told(aside: Option<Aside>) -> &'static str {
    match aside {
        None => "its VF carries the traffic, where there is one",
        Some(Aside::GiveVfBack) => {
            "its standby, if it has one, carries the traffic, and its VF goes back to the pool"
        }
        Some(Aside::KeepVf) => {
            "its standby, if it has one, carries the traffic, and its VF stays reserved for it"
        }
    }
}

/// One line: where a NIC is, and why.
pub fn line(nic: &VmHybridNic, standing: &Standing) -> String {
    let path = nic.status.as_ref().map(|status| status.path).unwrap_or_default();
    let tone = match standing {
        Standing::OnItsWay(_) => Tone::Plain,
        Standing::There(_) => Tone::Good,
        Standing::Stuck(_) => Tone::Bad,
    };
    let mark = match standing {
        Standing::OnItsWay(_) => "…",
        Standing::There(_) => "✓",
        Standing::Stuck(_) => "✗",
    };
    format!(
        "{} {}  {}  {}",
        tone.paint(mark),
        nic.name_any(),
        tone.paint(path.to_string()),
        standing.text()
    )
}

/// All NICs, with how many are there.
pub fn picture(all: &[(VmHybridNic, Standing)]) -> String {
    let mut text = String::new();
    let settled = all.iter().filter(|(_, standing)| standing.is_settled()).count();
    let there = all
        .iter()
        .filter(|(_, standing)| matches!(standing, Standing::There(_)))
        .count();
    let (full, rest) = ("━━".repeat(settled), "  ".repeat(all.len() - settled));
    let tone = if there == settled { Tone::Good } else { Tone::Bad };
    let _ = writeln!(
        text,
        "[{}{rest}]  {there} of {} NICs there",
        tone.paint(full),
        all.len()
    );
    for (nic, standing) in all {
        let _ = writeln!(text, "{}", line(nic, standing));
    }
    text
}

/// What is said to one who leaves before the end.
pub fn goodbye(aside: Option<Aside>, name: &str, namespace: &str) -> String {
    let back = if aside.is_some() { "fast" } else { "standby" };
    format!(
        "the order stands, and the NICs carry it out by themselves. Take it back: kubectl hybridnic {back} {name} -n {namespace}; \
         see them: kubectl get vhn -n {namespace} -w"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;
    use crate::style::plain;

    fn nic(name: &str, path: &str) -> VmHybridNic {
        from_value(json!({
            "metadata": {"name": name},
            "spec": {"network": "fast", "vm": {"qemu": {"name": "web"}}},
            "status": {"path": path},
        }))
        .unwrap()
    }

    #[test]
    fn a_vm_with_two_nics() {
        let all = [
            (
                nic("eth0", "Standby"),
                Standing::There("its VF is back".to_owned()),
            ),
            (
                nic("eth1", "FastPath"),
                Standing::OnItsWay("Progressing: next step: UnplugVf".to_owned()),
            ),
        ];
        assert_eq!(
            plain(&picture(&all)),
            "\
[━━  ]  1 of 2 NICs there
✓ eth0  Standby  its VF is back
… eth1  FastPath  Progressing: next step: UnplugVf
"
        );
        let stuck = [(
            nic("eth0", "FastPath"),
            Standing::Stuck("GuestKeepsVf: it stays".to_owned()),
        )];
        assert_eq!(
            plain(&picture(&stuck)),
            "[━━]  0 of 1 NICs there\n✗ eth0  FastPath  GuestKeepsVf: it stays\n"
        );
    }

    #[test]
    fn goodbye_says_how_to_take_it_back() {
        assert!(goodbye(None, "web", "shop").contains("kubectl hybridnic standby web -n shop;"));
        assert!(goodbye(Some(Aside::KeepVf), "web", "shop").contains("kubectl hybridnic fast web -n shop;"));
    }
}
