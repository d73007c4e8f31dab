//! What of a `HybridNode` is drained.

use hybridnic_e2e::controlplane::ControlPlane;
use serde_json::json;

use super::{Case, judge};

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
        ],
    )
    .await;
}
