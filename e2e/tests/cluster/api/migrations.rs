//! What a `QemuMigration` may be.

use hybridnic_e2e::controlplane::ControlPlane;
use serde_json::{Value, json};

use super::{Case, judge};

pub(super) async fn rules(control_plane: &ControlPlane) {
    judge(
        control_plane,
        "QemuMigration",
        &json!({ "vm": "web" }),
        vec![
            Case("/vm", Value::Null, "Required value"),
            Case(
                "/vm",
                json!("w w"),
                "vm must be the value of the VM's pods' label",
            ),
            Case("/vm", json!("v".repeat(63)), ""),
            Case("/vm", json!("v".repeat(64)), "Too long"),
            Case("/targetPod", json!("web-b"), ""),
            Case("/targetPod", json!("p".repeat(253)), ""),
            Case("/targetPod", json!("p".repeat(254)), "Too long"),
            Case("/targetPod", json!(""), "should be at least 1 chars long"),
            Case(
                "/decision",
                json!("ResumeSource"),
                "a decision is taken once the migration asks for it",
            ),
        ],
    )
    .await;
}
