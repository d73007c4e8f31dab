//! What names of objects may be, and by which names a kind is found.

use hybridnic_e2e::controlplane::ControlPlane;
use serde_json::json;

use super::{api, object, verdict};

pub(super) async fn rules(control_plane: &ControlPlane) {
    let nics = api(&control_plane.client_admin(), "VmHybridNic").await;
    let bare = json!({ "network": "fast", "vm": { "qemu": { "name": "web" } } });
    let mut wrong = Vec::new();
    for (name, refusal) in [
        ("a-b", ""),
        ("a.b", "no dots"),
        (&*"n".repeat(51), "at most 50 characters"),
    ] {
        let said = verdict(&nics, &object("VmHybridNic", name, &bare)).await;
        if !(said.contains(refusal) && refusal.is_empty() == said.is_empty()) {
            wrong.push(format!("name {name}: expected {refusal:?}, got {said:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // Short names, the category, and the selector that agents use.
    let get = async |args: &[&str]| {
        let output = control_plane.kubectl(args).await.unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for short in ["hnet", "vhn", "nicatt", "hnode", "qmig", "qsave", "qrestore"] {
        get(&["get", short]).await;
    }
    assert!(
        get(&["get", "hybridnic", "-o", "name"])
            .await
            .contains("vmhybridnic.hybridnic.io/o0")
    );
    assert!(
        get(&[
            "get",
            "nicatt",
            "--field-selector",
            "spec.nodeName=n1",
            "-o",
            "name"
        ])
        .await
        .contains("nicattachment.hybridnic.io/")
    );
    assert_eq!(
        get(&[
            "get",
            "nicatt",
            "--field-selector",
            "spec.nodeName=n2",
            "-o",
            "name"
        ])
        .await,
        ""
    );
}
