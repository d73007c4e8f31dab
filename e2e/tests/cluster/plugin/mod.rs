//! The plugin against a real API server, with the real operator; the agents are those of the operator's tests.

mod doctor;
mod hostile;
mod trouble;
mod typed;

use hybridnic_api::names::attachment_name;
use hybridnic_api::v1alpha1::{HybridNetwork, HybridNode, MigrationPhase, Path, QemuMigration, VmHybridNic};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::agent::{Agents, Mood};
use super::bench::{Bench, is_fast};
use typed::Plugin;

fn vf(index: i32, state: &str, held_by: Option<&str>, message: &str) -> Value {
    json!({
        "index": index, "pciAddress": format!("0000:01:10.{index}"), "state": state, "message": message,
        "driver": if held_by.is_some() { "vfio-pci" } else { "igbvf" }, "iommuGroup": 20 + index, "heldBy": held_by,
    })
}

/// What an agent would publish of a node with one PF and seven VFs.
async fn publish(bench: &Bench, node: &str, vfs: &[Value]) {
    let count = |state: &str| vfs.iter().filter(|vf| vf["state"] == state).count();
    let (free, held, unhealthy) = (count("Free"), count("Held"), count("Unhealthy"));
    let counts =
        json!({"total": free + held + unhealthy, "free": free, "held": held, "unhealthy": unhealthy});
    let status = json!({"status": {
        "agentVersion": env!("CARGO_PKG_VERSION"), "pfCount": 1, "vfs": counts,
        "pools": [{"network": "net", "vfs": counts}],
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "Discovered", "message": "1 PF",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
        "pfs": [{
            "name": "ens1", "pciAddress": "0000:01:00.0", "vendor": "8086", "device": "10c9", "driver": "igb",
            "numaNode": 0, "mtu": 1500, "linkUp": true, "totalVfs": 7, "vfs": vfs,
        }],
    }});
    let api: Api<HybridNode> = Api::all(bench.client.clone());
    api.patch_status(node, &PatchParams::default(), &Patch::Merge(&status))
        .await
        .unwrap();
}

fn phase_is(phase: MigrationPhase) -> impl Fn(&QemuMigration) -> bool {
    move |migration| {
        migration
            .status
            .as_ref()
            .is_some_and(|status| status.phase == phase)
    }
}

async fn migration_names(bench: &Bench) -> Vec<String> {
    let list = bench.migrations().list(&ListParams::default()).await.unwrap();
    list.items
        .into_iter()
        .filter_map(|migration| migration.metadata.name)
        .collect()
}

/// What is drained is in the node's spec, and nothing else of it changes.
async fn drains(plugin: &Plugin) {
    let refusal = plugin.run(&["drain-pf", "n1", "ens9"]).await.refusal();
    assert!(
        refusal.contains("n1 has no PF ens9; it has ens1 (0000:01:00.0)"),
        "{refusal}"
    );
    let drain = ["get", "hnode", "n1", "-o", "jsonpath={.spec.drain}"];
    let pools = ["get", "hnode", "n1", "-o", "jsonpath={.spec.pools[*].network}"];
    let before = plugin.kubectl(&pools).await.ok();
    let said = plugin.run(&["drain-pf", "n1", "ens1"]).await.ok();
    assert!(
        said.contains("NICs leave the VFs of its PF 0000:01:00.0"),
        "{said}"
    );
    let said = plugin.kubectl(&drain).await.ok();
    assert_eq!(said, r#"{"pfs":["0000:01:00.0"]}"#);
    plugin.run(&["drain-pf", "n1", "--all"]).await.ok();
    let refusal = plugin.run(&["undrain-pf", "n1", "ens1"]).await.refusal();
    assert!(refusal.contains("undrain-pf n1 --all"), "{refusal}");
    plugin.run(&["undrain-pf", "n1", "--all"]).await.ok();
    assert_eq!(plugin.kubectl(&drain).await.ok(), "");
    assert_eq!(plugin.kubectl(&pools).await.ok(), before);
}

/// A NIC is told to leave its VF, and to come back.
async fn told(bench: &Bench, agents: &Agents, plugin: &Plugin) {
    let refusal = plugin.run(&["standby", "nosuch"]).await.refusal();
    assert!(refusal.contains("no VmHybridNic is named nosuch"), "{refusal}");
    let went = plugin.run(&["standby", "vm", "--watch"]).await.ok();
    assert!(
        went.contains("✓ eth0  Standby  the NIC is told to stay on its standby\n"),
        "{went}"
    );
    let is_told = |nic: &VmHybridNic| {
        nic.status
            .as_ref()
            .is_some_and(|status| status.path == Path::Standby && status.vf.is_none())
    };
    bench.nic_with("eth0", "told", is_told).await;
    let top = plugin.run(&["top", "-o", "json"]).await.ok();
    let top: Value = serde_json::from_str(&top).unwrap();
    assert_eq!(top["nics"][0]["why"], "StandbyRequested", "{top}");
    let nic = plugin.run(&["nic", "eth0"]).await.ok();
    for part in [
        "the standby; its VF goes back to the pool",
        "told        GiveVfBack",
    ] {
        assert!(nic.contains(part), "{part}: {nic}");
    }
    let doctor = plugin.run(&["doctor"]).await;
    assert!(
        doctor.out().contains("1 told to stay on their standby"),
        "{}",
        doctor.out()
    );

    let kept = plugin
        .run(&["standby", "nic/eth0", "--keep-vf", "-w", "-o", "json"])
        .await
        .ok();
    let kept: Value = serde_json::from_str(&kept).unwrap();
    assert_eq!(
        (&kept[0]["spec"]["path"], &kept[0]["spec"]["keepVf"]),
        (&json!("Standby"), &json!(true))
    );

    let back = plugin.run(&["fast", "eth0"]).await.ok();
    assert!(
        back.contains("vmhybridnic.hybridnic.io/eth0 changed: its VF carries the traffic"),
        "{back}"
    );
    let went = plugin.run(&["fast", "vm/vm", "--watch"]).await.ok();
    assert!(went.contains("✓ eth0  FastPath"), "{went}");
    bench.nic_with("eth0", "fast", is_fast).await;

    // The guest keeps its VF: it stays told.
    agents.be(Mood {
        keeps_vf: true,
        ..Mood::default()
    });
    let (out, err) = plugin.run(&["standby", "vm", "--watch"]).await.with_code(1);
    assert!(
        out.contains("✗ eth0  FastPath  GuestKeepsVf: ") && err.is_empty(),
        "{out}{err}"
    );
    agents.be(Mood::default());
    plugin.run(&["fast", "vm", "--watch"]).await.ok();
}

#[tokio::test]
async fn what_an_administrator_sees() {
    let mut bench = Bench::start().await;
    bench.start_operator();
    let agents = Agents::start(&bench.cluster).await;
    bench.run_pod("vm-a", "vm", "n1").await;
    bench.create_nic("eth0", "vm", Some("02:00:00:00:00:0a")).await;
    bench.nic_with("eth0", "fast", is_fast).await;
    let free = |from: i32| {
        (from..7)
            .map(|index| vf(index, "Free", None, ""))
            .collect::<Vec<_>>()
    };
    let held = vf(0, "Held", Some("default/eth0"), "");
    let sick = vf(
        1,
        "Unhealthy",
        None,
        "something other than hybridnic uses it through vfio",
    );
    publish(&bench, "n1", &[vec![held, sick], free(2)].concat()).await;
    publish(&bench, "n2", &free(0)).await;
    let plugin = Plugin::new(&bench.cluster.kubeconfig_admin()).await;

    let counted = |network: Option<&HybridNetwork>| {
        let status = network.and_then(|network| network.status.as_ref());
        status.is_some_and(|status| (status.vfs.free, status.on_fast_path) == (12, 1))
    };
    bench
        .until_object(Api::all(bench.client.clone()), "net", "counted", counted)
        .await;

    // The tables, for people and for programs.
    let top = plugin.run(&["top"]).await.ok();
    for part in [
        "Networks\nNAME",
        "Nodes\nNAME",
        "NICs\nNAMESPACE",
        "VfActive",
        "0000:01:10.0",
    ] {
        assert!(top.contains(part), "{part}: {top}");
    }
    let top: Value = serde_json::from_str(&plugin.run(&["top", "-A", "-o", "json"]).await.ok()).unwrap();
    assert_eq!(top["nics"][0]["phase"], "FastPath");
    assert_eq!(
        top["nodes"][0]["vfs"],
        json!({"total": 7, "free": 5, "held": 1, "unhealthy": 1})
    );
    let top = plugin.run(&["top", "-n", "kube-system", "-o", "yaml"]).await.ok();
    assert!(top.contains("nics: []") && top.contains("name: net"), "{top}");

    let node = plugin.run(&["node", "n1"]).await.ok();
    assert!(node.contains("0■  1✗  2□  3□  4□  5□  6□"), "{node}");
    assert!(node.contains("default/eth0: VM vm in vm-a"), "{node}");
    assert!(
        node.contains("7 VFs: □ 5 free  ■ 1 held  ◧ 0 parked  ✗ 1 unhealthy  ◌ 0 drained  · 0 unselected"),
        "{node}"
    );

    drains(&plugin).await;

    // Nowhere to go to.
    let refusal = plugin.run(&["migrate", "vm"]).await.refusal();
    assert!(
        refusal.contains("no pod of VM vm waits: it runs in vm-a on n1 (Running)"),
        "{refusal}"
    );
    let refusal = plugin.run(&["migrate", "vm", "--to", "n1"]).await.refusal();
    assert!(refusal.contains("VM vm already runs on n1"), "{refusal}");
    let refusal = plugin.run(&["migrate", "nosuch", "--to", "n2"]).await.refusal();
    assert!(refusal.contains("no pod runs VM nosuch"), "{refusal}");
    let refusal = plugin.run(&["migrate", "a,b!=c"]).await.refusal();
    assert!(refusal.contains("is not a VM's name"), "{refusal}");
    assert_eq!(
        migration_names(&bench).await,
        [] as [String; 0],
        "a refusal leaves nothing behind"
    );

    // There.
    bench.run_pod("vm-b", "vm", "n2").await;
    let went = plugin
        .kubectl(&["hybridnic", "migrate", "vm", "--to", "n2", "--watch"])
        .await
        .ok();
    for part in [
        "Succeeded  Completed: the VM runs on n2",
        "n1 → n2, VM vm",
        "VM paused 31 ms, NICs: eth0",
        "Transferring",
    ] {
        assert!(went.contains(part), "{part}: {went}");
    }
    let arrived = |nic: &VmHybridNic| {
        let last = nic
            .status
            .as_ref()
            .and_then(|status| status.last_migration.as_ref());
        is_fast(nic) && last.is_some_and(|migration| migration.result.is_some())
    };
    bench.nic_with("eth0", "arrived", arrived).await;
    // What a real agent has to tell besides.
    let timeline = json!({"status": {"timeline": [
        {"event": "RESUME", "at": "2026-01-01T12:00:00.031250Z"},
        {"event": "macvtap up", "at": "2026-01-01T12:00:00.034500Z"},
        {"event": "VF plugged", "at": "2026-01-01T12:00:00.912000Z"},
    ]}});
    let attachment = async |pod: &str| {
        let uid = bench.pods().get(pod).await.unwrap().metadata.uid.unwrap();
        attachment_name("eth0", &uid)
    };
    let (left, here) = (attachment("vm-a").await, attachment("vm-b").await);
    bench
        .until_object(bench.attachments(), &left, "gone", |a| a.is_none())
        .await;
    let patch = Patch::Merge(&timeline);
    let attachments = bench.attachments();
    attachments
        .patch_status(&here, &PatchParams::default(), &patch)
        .await
        .unwrap();
    let nic = plugin.kubectl(&["hybridnic", "nic", "eth0"]).await.ok();
    for part in [
        "NIC default/eth0  FastPath",
        "MAC         02:00:00:00:00:0a",
        "Node side (n2)\n  VF          0000:01:10.0, VF 0 of ens1",
        "n1 → n2  Succeeded",
        "VM paused 31 ms",
        "12:00:00.034  3 ms    macvtap up",
        "12:00:00.912  877 ms  VF plugged",
        "█",
        "VfActive",
    ] {
        assert!(nic.contains(part), "{part}: {nic}");
    }
    let nic: Value = serde_json::from_str(&plugin.run(&["nic", "eth0", "-o", "json"]).await.ok()).unwrap();
    assert_eq!(nic["nic"]["status"]["lastMigration"]["result"], "Succeeded");
    assert_eq!(nic["attachments"][0]["spec"]["nodeName"], "n2");
    assert!(
        nic["events"].as_array().is_some_and(|events| !events.is_empty()),
        "{nic}"
    );

    // Back, drawn on a terminal, and left halfway by Ctrl-C: it goes on, and can be cancelled.
    bench.end_pod("vm-a").await;
    bench.run_pod("vm-c", "vm", "n1").await;
    agents.be(Mood {
        endless: true,
        ..Mood::default()
    });
    let mut watch = plugin.start(&["migrate", "vm", "--watch"]);
    watch
        .shows(&["Transferring  Migrating: QEMU sends the VM\n"])
        .await;
    watch.interrupt();
    let (code, _, said) = watch.end().await;
    assert_eq!(code, Some(130), "{said}");
    let name = migration_names(&bench)
        .await
        .into_iter()
        .find(|name| said.contains(name.as_str()))
        .unwrap();
    assert!(
        said.contains(&format!(
            "goes on. Cancel it: kubectl delete qmig {name} -n default"
        )),
        "{said}"
    );
    let goes_on = bench.migrations().get(&name).await.unwrap();
    assert!(
        phase_is(MigrationPhase::Transferring)(&goes_on) && goes_on.metadata.deletion_timestamp.is_none()
    );
    bench
        .migrations()
        .delete(&name, &DeleteParams::default())
        .await
        .unwrap();
    bench
        .until_object(bench.migrations(), &name, "gone", |m| m.is_none())
        .await;
    bench.nic_with("eth0", "fast", is_fast).await;

    // Cancelled by somebody else, seen on a terminal.
    let mut watch = plugin.start_on_terminal("migrate vm --to n1 --watch", true);
    watch.shows(&["╸╸╸╸", "Transferring", "░"]).await;
    let mut names = migration_names(&bench).await;
    names.retain(|name| name.starts_with("vm-"));
    for name in names {
        let phase = bench.migrations().get(&name).await.unwrap();
        if phase_is(MigrationPhase::Transferring)(&phase) {
            bench
                .migrations()
                .delete(&name, &DeleteParams::default())
                .await
                .unwrap();
        }
    }
    let (code, screen, _) = watch.end().await;
    assert_eq!(code, Some(1), "{screen}");
    bench.nic_with("eth0", "fast", is_fast).await;

    // Refused by the guest.
    agents.be(Mood {
        keeps_vf: true,
        ..Mood::default()
    });
    let (out, err) = plugin.run(&["migrate", "vm", "--watch"]).await.with_code(1);
    assert!(
        out.contains("Failed  GuestKeepsVf: ") && err.is_empty(),
        "{out}{err}"
    );
    agents.be(Mood::default());
    // Something must change for the agents to look again; the target's attachment may be going.
    let source = bench.nic_with("eth0", "attached", |n| n.status.is_some()).await;
    let pod = source.status.and_then(|s| s.pod).unwrap();
    let attachment = attachment_name("eth0", &pod.uid);
    bench
        .kubectl(&["annotate", "nicatt", &attachment, "look=again"])
        .await;
    bench.nic_with("eth0", "fast", is_fast).await;

    told(&bench, &agents, &plugin).await;

    // The live table shows what changes, without being asked. Without colours it is drawn in place too.
    let clear = "\u{1b}[2J";
    let mut live = plugin.start_on_terminal("top", false);
    live.shows(&["Networks", "eth0", "VfActive", "q ends", clear])
        .await;
    bench.create_nic("eth7", "elsewhere", None).await;
    live.shows(&["eth7", "PodNotFound", clear]).await;
    live.press("q").await;
    let (code, screen, _) = live.end().await;
    assert_eq!(code, Some(0), "{screen}");
    let restored = "\u{1b}[?1049l";
    assert!(screen.contains(restored), "the terminal is as it was: {screen:?}");
    for colours in [true, false] {
        let once = plugin.start_on_terminal("top --once", colours);
        let (code, screen, _) = once.end().await;
        assert_eq!(code, Some(0), "{screen}");
        assert!(
            screen.contains("eth7") && screen.contains('\u{1b}') == colours,
            "{screen:?}"
        );
    }

    // Names are completed, as kubectl asks for them.
    let script = plugin.run(&["completion", "kubectl"]).await.ok();
    plugin.install("kubectl_complete-hybridnic", &script);
    let completed = plugin
        .kubectl(&["__complete", "hybridnic", "nic", ""])
        .await
        .with_code(0)
        .0;
    assert!(completed.contains("eth0\neth7\n:4\n"), "{completed}");
    let completed = plugin
        .kubectl(&["__complete", "hybridnic", "migrate", "vm", "--to", "n"])
        .await
        .with_code(0)
        .0;
    assert!(completed.contains("n1\nn2\n:4\n"), "{completed}");
    let completed = plugin
        .kubectl(&["__complete", "hybridnic", "mi"])
        .await
        .with_code(0)
        .0;
    assert!(completed.contains("migrate\t"), "{completed}");
    for shell in ["bash", "zsh", "fish"] {
        let script = plugin.run(&["completion", shell]).await.ok();
        assert!(
            script.contains("kubectl-hybridnic") && script.contains("doctor"),
            "{shell}"
        );
    }
}
