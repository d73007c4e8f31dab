//! What a `NicAttachment` may be. The operator writes it from objects that have rules of their own; these rules hold for every writer.

use hybridnic_e2e::controlplane::ControlPlane;
use serde_json::{Value, json};

use super::{Case, judge};

/// One that is taken.
pub(super) fn attachment() -> Value {
    json!({
        "nodeName": "n1", "nic": { "name": "a", "uid": "u" }, "vm": {"qemu": {"name": "web"}}, "pod": { "name": "p", "uid": "v" },
        "network": "fast", "mac": "52:54:00:aa:bb:01", "goal": "FastPath", "noFreeVf": "Standby",
        "l2": { "spoofCheck": true, "trust": false },
    })
}

/// An order for a migration of so many NICs.
fn order(nics: usize) -> Value {
    let nics: Vec<String> = (0..nics).map(|n| format!("eth{n}")).collect();
    json!({ "migration": { "name": "m", "uid": "w" }, "step": "Prepare", "nics": nics })
}

pub(super) async fn rules(control_plane: &ControlPlane) {
    let million = 1_000_000;
    judge(
        control_plane,
        "NicAttachment",
        &attachment(),
        vec![
            Case("/l2/portProfile", json!({ "name": "gold:web_1.2" }), ""),
            Case("/l2/portProfile", json!({ "name": "x".repeat(39) }), ""),
            Case("/l2/portProfile", json!({ "name": "x".repeat(40) }), "Too long"),
            Case(
                "/l2/portProfile",
                json!({ "name": "" }),
                "should be at least 1 chars long",
            ),
            Case(
                "/l2/portProfile",
                json!({ "name": "gold plus" }),
                "portProfile.name is the name of a port profile of the switch",
            ),
            Case("/l2/onLinkLoss", json!("Stay"), ""),
            Case("/l2/onLinkLoss", json!("Off"), "Unsupported value"),
            Case("/l2/macvtapMode", json!("Vepa"), ""),
            Case("/l2/macvtapMode", json!("Private"), "Unsupported value"),
            Case("/l2/vlan", json!({ "id": 4094, "qos": 7 }), ""),
            Case("/l2/vlan", json!({ "id": 4095 }), "vlan.id must be from 0"),
            Case(
                "/l2/vlan",
                json!({ "id": 42, "qos": 8 }),
                "vlan.qos must be from 0 to 7",
            ),
            Case("/l2/rate", json!({ "minMbps": million, "maxMbps": million }), ""),
            Case(
                "/l2/rate",
                json!({ "maxMbps": million + 1 }),
                "rate.maxMbps is in Mbit/s",
            ),
            Case(
                "/l2/rate",
                json!({ "minMbps": million + 1 }),
                "rate.minMbps is in Mbit/s",
            ),
            Case(
                "/l2/rate",
                json!({ "minMbps": 2, "maxMbps": 1 }),
                "rate.minMbps must not be above rate.maxMbps",
            ),
            Case("/migration", order(128), ""),
            Case("/migration", order(129), "must have at most 128 items"),
        ],
    )
    .await;
}
