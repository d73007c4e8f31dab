//! What of an object can change, and what cannot.

use hybridnic_e2e::controlplane::ControlPlane;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use super::{api, attachments::attachment, object};

pub(super) async fn rules(control_plane: &ControlPlane) {
    let client = control_plane.client_admin();
    let nic = json!({ "network": "fast", "vm": { "qemu": { "name": "web" } }, "mac": "52:54:00:aa:bb:01" });
    let bare = json!({ "network": "fast", "vm": { "qemu": { "name": "web" } } });
    let kept =
        json!({ "network": "fast", "vm": { "qemu": { "name": "web" } }, "path": "Standby", "keepVf": true });
    let network = json!({ "uplinks": [{ "drivers": ["igb"] }], "vlan": { "id": 42 }, "mtu": 1500 });
    let profiled = json!({ "uplinks": [{ "drivers": ["enic"] }], "portProfile": { "name": "gold" } });
    let (one, other) = (
        "09b11c53-8b5c-4eeb-8f00-d84eaa0aaa4f",
        "19b11c53-8b5c-4eeb-8f00-d84eaa0aaa4f",
    );
    let known = json!({ "network": "fast", "vm": { "qemu": { "name": "web" } }, "portInstanceId": one });
    let attachment = attachment();
    let mut known_attachment = attachment.clone();
    known_attachment["portInstanceId"] = one.into();
    let migration = json!({ "vm": "web" });
    let save = json!({ "vm": "web", "file": "/saves/web", "then": "End" });
    let paused = json!({ "vm": "web", "file": "/saves/web", "then": "Pause" });
    let slow = json!({ "vm": "web", "file": "/saves/web", "then": "End", "bandwidth": 1_048_576 });
    let restore = json!({ "vm": "web", "file": "/saves/web" });
    let changes = [
        (
            "VmHybridNic",
            &nic,
            json!({ "network": "slow" }),
            "network cannot change",
        ),
        (
            "VmHybridNic",
            &nic,
            json!({ "vm": { "qemu": { "name": "db" } } }),
            "vm cannot change",
        ),
        (
            "VmHybridNic",
            &nic,
            json!({ "vm": { "qemu": null, "kubevirt": { "name": "web" } } }),
            "vm cannot change",
        ),
        (
            "VmHybridNic",
            &nic,
            json!({ "mac": "52:54:00:aa:bb:02" }),
            "mac cannot change",
        ),
        ("VmHybridNic", &nic, json!({ "mac": null }), "mac cannot change"),
        (
            "VmHybridNic",
            &bare,
            json!({ "mac": "52:54:00:aa:bb:02" }),
            "mac cannot change",
        ),
        (
            "VmHybridNic",
            &nic,
            json!({ "pairing": "Bond" }),
            "pairing cannot change",
        ),
        ("VmHybridNic", &nic, json!({ "pairing": "NetFailover" }), ""),
        (
            "VmHybridNic",
            &nic,
            json!({ "standby": "None" }),
            "standby cannot change",
        ),
        ("VmHybridNic", &nic, json!({ "standby": "Macvtap" }), ""),
        ("VmHybridNic", &nic, json!({ "noFreeVf": "Wait" }), ""),
        ("VmHybridNic", &nic, json!({ "path": "Standby" }), ""),
        (
            "VmHybridNic",
            &nic,
            json!({ "path": "Standby", "keepVf": true }),
            "",
        ),
        (
            "VmHybridNic",
            &kept,
            json!({ "path": "Auto" }),
            "with path: Auto leave it out",
        ),
        (
            "VmHybridNic",
            &kept,
            json!({ "path": "Auto", "keepVf": null }),
            "",
        ),
        ("VmHybridNic", &kept, json!({ "keepVf": null }), ""),
        ("NicAttachment", &attachment, json!({ "aside": "KeepVf" }), ""),
        (
            "NicAttachment",
            &attachment,
            json!({ "standby": "None" }),
            "standby cannot change",
        ),
        (
            "NicAttachment",
            &attachment,
            json!({ "aside": "Auto" }),
            "Unsupported value",
        ),
        (
            "HybridNetwork",
            &network,
            json!({ "vlan": { "id": 43 } }),
            "vlan cannot change",
        ),
        (
            "HybridNetwork",
            &network,
            json!({ "vlan": null }),
            "vlan cannot change",
        ),
        (
            "HybridNetwork",
            &network,
            json!({ "mtu": 9000 }),
            "mtu cannot change",
        ),
        ("HybridNetwork", &network, json!({ "trust": true }), ""),
        ("HybridNetwork", &network, json!({ "onLinkLoss": "Stay" }), ""),
        (
            "HybridNetwork",
            &profiled,
            json!({ "portProfile": { "name": "iron" } }),
            "portProfile cannot change",
        ),
        (
            "HybridNetwork",
            &profiled,
            json!({ "portProfile": null }),
            "portProfile cannot change",
        ),
        (
            "HybridNetwork",
            &network,
            json!({ "vlan": null, "portProfile": { "name": "gold" } }),
            "portProfile cannot change",
        ),
        ("HybridNetwork", &profiled, json!({ "trust": true }), ""),
        (
            "HybridNetwork",
            &network,
            json!({ "macvtapMode": "Vepa" }),
            "macvtapMode cannot change",
        ),
        ("HybridNetwork", &network, json!({ "macvtapMode": "Bridge" }), ""),
        (
            "VmHybridNic",
            &known,
            json!({ "portInstanceId": other }),
            "portInstanceId cannot change",
        ),
        (
            "VmHybridNic",
            &known,
            json!({ "portInstanceId": null }),
            "portInstanceId cannot change",
        ),
        (
            "VmHybridNic",
            &bare,
            json!({ "portInstanceId": one }),
            "portInstanceId cannot change",
        ),
        ("VmHybridNic", &known, json!({ "noFreeVf": "Wait" }), ""),
        (
            "NicAttachment",
            &attachment,
            json!({ "nodeName": "n2" }),
            "nodeName cannot change",
        ),
        (
            "NicAttachment",
            &attachment,
            json!({ "mac": "52:54:00:aa:bb:02" }),
            "mac cannot change",
        ),
        (
            "NicAttachment",
            &attachment,
            json!({ "pairing": "Bond" }),
            "pairing cannot change",
        ),
        (
            "NicAttachment",
            &known_attachment,
            json!({ "portInstanceId": other }),
            "portInstanceId cannot change",
        ),
        (
            "NicAttachment",
            &known_attachment,
            json!({ "portInstanceId": null }),
            "portInstanceId cannot change",
        ),
        (
            "NicAttachment",
            &attachment,
            json!({ "portInstanceId": one }),
            "portInstanceId cannot change",
        ),
        (
            "NicAttachment",
            &known_attachment,
            json!({ "goal": "Standby" }),
            "",
        ),
        ("NicAttachment", &attachment, json!({ "goal": "Standby" }), ""),
        (
            "QemuMigration",
            &migration,
            json!({ "targetPod": "p" }),
            "a QemuMigration cannot change",
        ),
        (
            "QemuMigration",
            &migration,
            json!({ "decision": "AbandonSource" }),
            "a decision is taken once the migration asks for it",
        ),
        (
            "QemuSave",
            &save,
            json!({ "file": "/saves/other" }),
            "a QemuSave cannot change",
        ),
        (
            "QemuSave",
            &save,
            json!({ "vm": "db" }),
            "a QemuSave cannot change",
        ),
        (
            "QemuSave",
            &save,
            json!({ "bandwidth": 2_097_152 }),
            "a QemuSave cannot change",
        ),
        (
            "QemuSave",
            &slow,
            json!({ "bandwidth": 2_097_152 }),
            "a QemuSave cannot change",
        ),
        (
            "QemuSave",
            &slow,
            json!({ "bandwidth": null }),
            "a QemuSave cannot change",
        ),
        (
            "QemuSave",
            &save,
            json!({ "deadlineSeconds": 5 }),
            "a QemuSave cannot change",
        ),
        (
            "QemuSave",
            &save,
            json!({ "then": "Continue" }),
            "only then: Pause can be changed",
        ),
        ("QemuSave", &paused, json!({ "then": "End" }), ""),
        ("QemuSave", &paused, json!({ "then": "Continue" }), ""),
        (
            "QemuRestore",
            &restore,
            json!({ "vm": "db" }),
            "a QemuRestore cannot change",
        ),
        (
            "QemuRestore",
            &restore,
            json!({ "file": "/saves/other" }),
            "a QemuRestore cannot change",
        ),
        (
            "QemuRestore",
            &restore,
            json!({ "deadlineSeconds": 5 }),
            "a QemuRestore cannot change",
        ),
        (
            "QemuRestore",
            &restore,
            json!({ "pod": "web-b" }),
            "a QemuRestore cannot change",
        ),
    ];
    let mut wrong = Vec::new();
    for (number, (kind, spec, change, refusal)) in changes.into_iter().enumerate() {
        let api = api(&client, kind).await;
        let name = format!("o{number}");
        api.create(&PostParams::default(), &object(kind, &name, spec))
            .await
            .unwrap();
        let patch = Patch::Merge(json!({ "spec": change }));
        let said = match api.patch(&name, &PatchParams::default(), &patch).await {
            Ok(_) => String::new(),
            Err(kube::Error::Api(status)) => status.message,
            Err(error) => panic!("{error}"),
        };
        if said.contains(refusal) && refusal.is_empty() == said.is_empty() {
            continue;
        }
        wrong.push(format!("{kind} {change}: expected {refusal:?}, got {said:?}"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
