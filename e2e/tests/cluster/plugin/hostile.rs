//! What a hostile user has written into the cluster does not control the terminal of another who looks at it.

use hybridnic_api::v1alpha1::{HybridNode, NicAttachment};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{super::bench::Bench, typed::Plugin};

/// Clears the screen, sets the title, hides what follows, turns the rest around, and writes over its line.
const HOSTILE: &str = "EVIL\u{1b}[2J\u{1b}]0;x\u{7}\u{9b}8m\u{202e}\rEND";

fn condition(type_: &str) -> Value {
    json!({
        "type": type_, "status": "False", "reason": "Failed", "message": HOSTILE, "lastTransitionTime": "2026-01-01T00:00:00Z",
    })
}

/// What is left when our own colours are taken out: `ESC [ digits m`.
fn without_colours(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let mut rest = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_digit() && c != ';');
        match end.and_then(|end| part[end..].strip_prefix('m')) {
            Some(after) => rest.push_str(after),
            None => panic!("an escape that is no colour: {part:?} in {text:?}"),
        }
    }
    rest
}

/// Only the plugin cleans here: an administrator has written everything, without operator and agents.
#[tokio::test]
async fn nothing_of_the_cluster_steers_the_terminal() {
    let bench = Bench::start().await;
    bench.create_nic("eth0", "vm", None).await;
    bench.run_pod("vm-a", "vm", "n1").await;
    bench.migrate("m", "vm").await;
    let merge = PatchParams::default();
    let status = json!({"status": {
        "phase": "Standby", "path": "Standby", "nodeName": "n1", "pod": {"name": "vm-a", "uid": "u"},
        "vf": {"pciAddress": HOSTILE, "pf": HOSTILE, "index": 0}, "standby": {"macvtap": HOSTILE, "pf": HOSTILE},
        "conditions": [condition("Accepted"), condition("Ready"), condition("FastPath")],
    }});
    bench
        .nics()
        .patch_status("eth0", &merge, &Patch::Merge(&status))
        .await
        .unwrap();
    let attachment: NicAttachment = serde_json::from_value(json!({
        "metadata": {"name": "eth0-u", "labels": {"hybridnic.io/nic": "eth0"}},
        "spec": {
            "nodeName": "n1", "nic": {"name": "eth0", "uid": "u"}, "vm": {"qemu": {"name": "vm"}}, "pod": {"name": "vm-a", "uid": "u"}, "network": "net",
            "mac": "02:00:00:00:00:01", "goal": "FastPath", "noFreeVf": "Standby", "l2": {"spoofCheck": true, "trust": false},
        },
    }))
    .unwrap();
    bench
        .attachments()
        .create(&PostParams::default(), &attachment)
        .await
        .unwrap();
    let status = json!({"status": {
        "state": "Standby", "path": "Standby",
        "guest": {"vfPort": HOSTILE, "standbyPort": HOSTILE, "standbyPciAddress": HOSTILE},
        "timeline": [{"event": HOSTILE, "at": "2026-01-01T00:00:00.000000Z"}],
        "conditions": [condition("Ready"), condition("FastPath")],
    }});
    bench
        .attachments()
        .patch_status("eth0-u", &merge, &Patch::Merge(&status))
        .await
        .unwrap();
    let status = json!({"status": {
        "phase": "Pending", "failure": {"reason": HOSTILE, "message": HOSTILE}, "conditions": [condition("Succeeded")],
        "phases": [{"name": HOSTILE, "startedAt": "2026-01-01T00:00:00.000000Z"}],
    }});
    bench
        .migrations()
        .patch_status("m", &merge, &Patch::Merge(&status))
        .await
        .unwrap();
    let nodes: Api<HybridNode> = Api::all(bench.client.clone());
    let node = serde_json::from_value(json!({"metadata": {"name": "n1"}, "spec": {}})).unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let counts = json!({"total": 1, "free": 0, "held": 0, "unhealthy": 1});
    let vf = json!({"index": 0, "pciAddress": HOSTILE, "state": "Unhealthy", "driver": HOSTILE, "heldBy": HOSTILE, "message": HOSTILE});
    let status = json!({"status": {
        "agentVersion": HOSTILE, "pfCount": 1, "vfs": counts, "conditions": [condition("Ready"), condition("Degraded")],
        "pools": [{"network": "net", "vfs": counts, "message": HOSTILE}],
        "pfs": [{
            "name": HOSTILE, "pciAddress": "0000:01:00.0", "vendor": "8086", "device": "10c9", "driver": HOSTILE, "mac": HOSTILE,
            "linkUp": true, "totalVfs": 1, "message": HOSTILE, "vfs": [vf],
        }],
    }});
    nodes
        .patch_status("n1", &merge, &Patch::Merge(&status))
        .await
        .unwrap();

    let plugin = Plugin::new(&bench.cluster.kubeconfig_admin()).await;
    let mut shown = 0;
    for command in [
        &["top", "--once"] as &[&str],
        &["top", "--once", "-o", "json"],
        &["nic", "eth0"],
        &["nic", "eth0", "-o", "json"],
        &["nic", "eth0", "-o", "yaml"],
        &["node", "n1"],
        &["node", "n1", "-o", "yaml"],
        &["doctor"],
        &["doctor", "-o", "json"],
        &["__complete", "--", "nic", ""],
    ] {
        let text = plugin.coloured(command).await;
        shown += usize::from(text.contains("EVIL") && text.contains("END"));
        let left = without_colours(&text);
        let steers = left.chars().find(|c| *c != '\n' && hybridnic_text::steers(*c));
        assert_eq!(steers, None, "{command:?}: {left:?}");
    }
    assert!(shown >= 6, "only {shown} of the commands show what was written");
}
