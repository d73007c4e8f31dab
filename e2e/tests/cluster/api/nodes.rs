//! What of a `HybridNode` is drained.

use hybridnic_e2e::controlplane::ControlPlane;
use serde_json::{Value, json};

use super::{Case, judge};

fn pfs(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("0000:{n:02x}:00.0")).collect()
}

fn networks(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("net{n}")).collect()
}

fn pools(count: usize) -> Value {
    let pool = |network| json!({ "network": network, "uplinks": [{ "drivers": ["igb"] }] });
    networks(count).into_iter().map(pool).collect()
}

pub(super) async fn rules(control_plane: &ControlPlane) {
    let base = json!({ "pools": [] });
    let malformed = "drain.pfs are full PCI addresses in lower case";
    judge(
        control_plane,
        "HybridNode",
        &base,
        vec![
            Case("/drain", json!({}), ""),
            Case("/drain", json!({"all": true}), ""),
            Case("/drain", json!({"all": "yes"}), "must be of type boolean"),
            Case("/drain", json!({"pfs": ["0000:01:00.0", "0000:01:00.1"]}), ""),
            Case("/drain", json!({"pfs": ["01:00.0"]}), malformed),
            Case("/drain", json!({"pfs": ["0000:01:00.8"]}), malformed),
            Case("/drain", json!({"pfs": ["ens1f0"]}), malformed),
            Case(
                "/drain",
                json!({"pfs": ["0000:01:00.0", "0000:01:00.0"]}),
                "Duplicate value",
            ),
            Case("/drain", json!({"networks": ["fast"]}), ""),
            Case(
                "/drain",
                json!({"networks": [""]}),
                "should be at least 1 chars long",
            ),
            Case("/drain", json!({"networks": ["fast", "fast"]}), "Duplicate value"),
            Case("/drain", json!({"pfs": pfs(128)}), ""),
            Case("/drain", json!({"pfs": pfs(129)}), "must have at most 128 items"),
            Case("/drain", json!({"networks": networks(256)}), ""),
            Case(
                "/drain",
                json!({"networks": networks(257)}),
                "must have at most 256 items",
            ),
            Case("/pools", pools(256), ""),
            Case("/pools", pools(257), "must have at most 256 items"),
        ],
    )
    .await;
}
