//! What names of objects may be, and by which names a kind is found.

use hybridnic_e2e::controlplane::ControlPlane;
use serde_json::json;

use super::{api, object, verdict};

pub(super) async fn rules(control_plane: &ControlPlane) {
    let client = control_plane.client_admin();
    let bare = json!({ "network": "fast", "vm": { "qemu": { "name": "web" } } });
    let network = json!({ "uplinks": [{ "drivers": ["igb"] }] });
    let migration = json!({ "vm": "web" });
    let save = json!({ "vm": "web", "file": "/saves/web", "then": "End" });
    let restore = json!({ "vm": "web", "file": "/saves/web" });
    let mut wrong = Vec::new();
    for (kind, spec, name, refusal) in [
        ("VmHybridNic", &bare, "a-b".to_owned(), ""),
        ("VmHybridNic", &bare, "a.b".to_owned(), "no dots"),
        ("VmHybridNic", &bare, "n".repeat(50), ""),
        ("VmHybridNic", &bare, "n".repeat(51), "at most 50 characters"),
        ("HybridNetwork", &network, "n".repeat(50), ""),
        ("HybridNetwork", &network, "n".repeat(51), "at most 50 characters"),
        ("QemuMigration", &migration, "n".repeat(63), ""),
        (
            "QemuMigration",
            &migration,
            "n".repeat(64),
            "at most 63 characters",
        ),
        ("QemuSave", &save, "n".repeat(63), ""),
        ("QemuSave", &save, "n".repeat(64), "at most 63 characters"),
        ("QemuRestore", &restore, "n".repeat(63), ""),
        ("QemuRestore", &restore, "n".repeat(64), "at most 63 characters"),
    ] {
        let of_kind = api(&client, kind).await;
        let said = verdict(&of_kind, &object(kind, &name, spec)).await;
        if !(said.contains(refusal) && refusal.is_empty() == said.is_empty()) {
            wrong.push(format!("{kind} {name}: expected {refusal:?}, got {said:?}"));
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
