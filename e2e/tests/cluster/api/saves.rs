//! What a `QemuSave` and a `QemuRestore` may be.

use hybridnic_e2e::controlplane::ControlPlane;
use serde_json::{Value, json};

use super::{Case, judge};

pub(super) async fn rules(control_plane: &ControlPlane) {
    let label = "vm must be the value of the VM's pods' label";
    let path = "file must be an absolute path";
    let long = format!("/saves/{}", "n".repeat(129));
    // 1,021 characters before its name.
    let deep = |name: &str| json!("/d".repeat(510) + "/" + name);
    let paths = || {
        vec![
            Case("/vm", json!("w w"), label),
            Case("/vm", json!("v".repeat(63)), ""),
            Case("/vm", json!("v".repeat(64)), "Too long"),
            Case("/file", Value::Null, "Required value"),
            Case("/file", json!("saves/web"), path),
            Case("/file", json!("/saves/"), path),
            Case("/file", json!("/saves/../web"), path),
            Case("/file", json!("/saves/./web"), path),
            Case("/file", json!("/saves/.."), path),
            Case("/file", json!("/saves//web"), path),
            Case("/file", json!("/saves/web,offset=1"), path),
            Case("/file", json!(long), path),
            Case("/file", json!("/saves/web.hybridnic.json"), path),
            Case("/file", json!("/saves/hybridnic.json"), ""),
            Case("/file", json!("/web"), ""),
            Case("/file", json!(format!("/saves/{}", "n".repeat(128))), ""),
            Case("/file", deep("web"), ""),
            Case("/file", deep("web1"), "Too long"),
            Case("/file", json!("/saves/of/..web.state"), ""),
            Case(
                "/deadlineSeconds",
                json!(0),
                "should be greater than or equal to 1",
            ),
            Case("/deadlineSeconds", json!(1), ""),
            Case("/deadlineSeconds", json!(604_800), ""),
            Case(
                "/deadlineSeconds",
                json!(604_801),
                "should be less than or equal to 604800",
            ),
        ]
    };
    let mut saves = paths();
    saves.extend([
        Case("/then", Value::Null, "Required value"),
        Case("/then", json!("Explode"), "Unsupported value"),
        Case("/then", json!("Continue"), ""),
        Case("/then", json!("Pause"), ""),
        Case(
            "/bandwidth",
            json!(1_048_575),
            "should be greater than or equal to 1048576",
        ),
        Case("/bandwidth", json!(1_048_576), ""),
        // More than any card has, and still a number of QEMU's.
        Case("/bandwidth", json!(i64::MAX), ""),
    ]);
    let save = json!({ "vm": "web", "file": "/saves/web", "then": "End" });
    judge(control_plane, "QemuSave", &save, saves).await;
    let mut restores = paths();
    restores.extend([
        Case("/pod", json!(""), "should be at least 1 chars long"),
        Case("/pod", json!("web-b"), ""),
        Case("/pod", json!("p".repeat(253)), ""),
        Case("/pod", json!("p".repeat(254)), "Too long"),
    ]);
    let restore = json!({ "vm": "web", "file": "/saves/web" });
    judge(control_plane, "QemuRestore", &restore, restores).await;
}
