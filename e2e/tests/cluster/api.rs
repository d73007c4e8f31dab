//! Every rule of the API, on a real API server: what it accepts, what it refuses, and what it then says to write.

use hybridnic_e2e::chart;
use hybridnic_e2e::controlplane::{ControlPlane, Options};
use hybridnic_e2e::world::repository;
use kube::{
    Api, Client, Discovery,
    api::{DynamicObject, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};

const GROUP: &str = "hybridnic.io";

async fn start() -> (ControlPlane, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(Options::new(dir.path().join("cp")))
        .await
        .unwrap();
    control_plane.apply(&repository("crds")).await.unwrap();
    chart::wait_for_kinds(&control_plane).await.unwrap();
    (control_plane, dir)
}

async fn api(client: &Client, kind: &str) -> Api<DynamicObject> {
    let discovery = Discovery::new(client.clone())
        .filter(&[GROUP])
        .run()
        .await
        .unwrap();
    let gvk = GroupVersionKind::gvk(GROUP, "v1alpha1", kind);
    let (resource, capabilities) = discovery.resolve_gvk(&gvk).unwrap();
    match capabilities.scope {
        kube::discovery::Scope::Cluster => Api::all_with(client.clone(), &resource),
        kube::discovery::Scope::Namespaced => Api::namespaced_with(client.clone(), "default", &resource),
    }
}

fn object(kind: &str, name: &str, spec: &Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "hybridnic.io/v1alpha1",
        "kind": kind,
        "metadata": { "name": name },
        "spec": spec,
    }))
    .unwrap()
}

/// What the API server says to an object; nothing when it takes it.
async fn verdict(api: &Api<DynamicObject>, object: &DynamicObject) -> String {
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    match api.create(&dry, object).await {
        Ok(_) => String::new(),
        Err(kube::Error::Api(status)) => status.message,
        Err(error) => panic!("{error}"),
    }
}

/// A spec with one change in it, and what the refusal must say; nothing where it must be taken.
struct Case(&'static str, Value, &'static str);

async fn judge(control_plane: &ControlPlane, kind: &str, base: &Value, cases: Vec<Case>) {
    let api = api(&control_plane.client_admin(), kind).await;
    assert_eq!(verdict(&api, &object(kind, "base", base)).await, "");
    let mut wrong = Vec::new();
    for Case(path, value, refusal) in cases {
        let mut spec = base.clone();
        set(&mut spec, path, value.clone());
        let said = verdict(&api, &object(kind, "case", &spec)).await;
        let right = if refusal.is_empty() {
            said.is_empty()
        } else {
            said.contains(refusal)
        };
        if !right {
            wrong.push(format!("{path} = {value}: expected {refusal:?}, got {said:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Sets a value by its path; a null removes it.
fn set(spec: &mut Value, path: &str, value: Value) {
    let (parent, last) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = spec.pointer_mut(parent).unwrap_or_else(|| panic!("no {parent}"));
    match (parent, value) {
        (Value::Object(map), Value::Null) => {
            map.remove(last);
        }
        (Value::Object(map), value) => {
            map.insert(last.to_owned(), value);
        }
        _ => panic!("{path} is in no object"),
    }
}

#[tokio::test]
async fn every_rule() {
    let (control_plane, _dir) = start().await;
    networks(&control_plane).await;
    nodes(&control_plane).await;
    nics(&control_plane).await;
    migrations_and_names(&control_plane).await;
    saves_and_restores(&control_plane).await;
    what_cannot_change_and_what_names_can_be(&control_plane).await;
}

async fn networks(control_plane: &ControlPlane) {
    let base = json!({
        "uplinks": [{ "drivers": ["ixgbe"] }],
        "vlan": { "id": 42 },
        "rate": { "minMbps": 10, "maxMbps": 100 },
        "macRange": { "from": "02:00:00:00:00:01", "to": "02:00:00:00:ff:ff" },
    });
    judge(
        control_plane,
        "HybridNetwork",
        &base,
        vec![
            Case("/uplinks", json!([]), "should have at least 1 items"),
            Case("/uplinks", Value::Null, "Required value"),
            Case("/uplinks", json!([{ "pfNames": ["ens1f*", "eth?"] }]), ""),
            Case(
                "/uplinks",
                json!([{ "pfNames": ["ens 1"] }]),
                "pfNames are interface names",
            ),
            Case(
                "/uplinks",
                json!([{ "pfNames": ["a/b"] }]),
                "pfNames are interface names",
            ),
            Case(
                "/uplinks",
                json!([{ "pfNames": ["a-name-that-is-too-long"] }]),
                "Too long",
            ),
            Case("/vlan", json!({ "id": 42, "qos": 5 }), ""),
            Case("/vlan", json!({ "id": 0, "qos": 0 }), ""),
            Case("/vlan", json!({ "id": 0, "qos": 5 }), "set vlan.id too"),
            Case(
                "/uplinks",
                json!([{ "numVfs": 3 }]),
                "an uplink must say which PFs it means",
            ),
            Case("/uplinks", json!([{ "pciAddresses": ["0000:01:00.0"] }]), ""),
            Case(
                "/uplinks",
                json!([{ "pciAddresses": ["01:00.0"] }]),
                "pciAddresses are full and in lower case",
            ),
            Case(
                "/uplinks",
                json!([{ "pciAddresses": ["0000:01:00.8"] }]),
                "pciAddresses are full and in lower case",
            ),
            Case("/uplinks", json!([{ "vendor": "8086", "device": "10c9" }]), ""),
            Case(
                "/uplinks",
                json!([{ "vendor": "0x8086" }]),
                "vendor is four hexadecimal digits",
            ),
            Case(
                "/uplinks",
                json!([{ "vendor": "8086", "device": "10C9" }]),
                "device is four hexadecimal digits",
            ),
            Case("/uplinks", json!([{ "device": "10c9" }]), "set vendor too"),
            Case(
                "/uplinks",
                json!([{ "drivers": ["i g b"] }]),
                "drivers are names of kernel drivers",
            ),
            Case(
                "/uplinks",
                json!([{ "drivers": ["igb"], "vfs": ["0-3", "5"] }]),
                "",
            ),
            Case(
                "/uplinks",
                json!([{ "drivers": ["igb"], "vfs": ["3-0"] }]),
                "rising ranges",
            ),
            Case(
                "/uplinks",
                json!([{ "drivers": ["igb"], "vfs": ["all"] }]),
                "rising ranges",
            ),
            Case("/uplinks", json!([{ "drivers": ["igb"], "numVfs": 7 }]), ""),
            Case(
                "/uplinks",
                json!([{ "drivers": ["igb"], "numVfs": 0 }]),
                "numVfs is from 1 to 255",
            ),
            Case(
                "/uplinks",
                json!([{ "drivers": ["igb"], "numVfs": 256 }]),
                "numVfs is from 1 to 255",
            ),
            Case("/vlan/id", json!(0), ""),
            Case("/vlan/id", json!(4094), ""),
            Case(
                "/vlan/id",
                json!(4095),
                "vlan.id must be from 0 (untagged) to 4094",
            ),
            Case("/vlan/id", json!(-1), "vlan.id must be from 0 (untagged) to 4094"),
            Case("/vlan/qos", json!(7), ""),
            Case("/vlan/qos", json!(8), "vlan.qos must be from 0 to 7"),
            Case("/vlan/protocol", json!("802.1ad"), ""),
            Case("/vlan/protocol", json!("qinq"), "Unsupported value"),
            Case("/rate/maxMbps", json!(0), "rate.maxMbps is in Mbit/s"),
            Case(
                "/rate/maxMbps",
                json!(5),
                "rate.minMbps must not be above rate.maxMbps",
            ),
            Case("/rate/minMbps", json!(-5), "rate.minMbps is in Mbit/s"),
            Case("/rate/minMbps", json!(100), ""),
            Case(
                "/portProfile",
                json!({ "name": "gold" }),
                "portProfile and vlan exclude each other",
            ),
            Case("/mtu", json!(9000), ""),
            Case("/mtu", json!(67), "mtu is in bytes, from 68 to 65535"),
            Case("/mtu", json!(70000), "mtu is in bytes, from 68 to 65535"),
            Case(
                "/macRange/from",
                json!("02-00-00-00-00-01"),
                "macRange.from must be a unicast MAC address",
            ),
            Case(
                "/macRange/from",
                json!("03:00:00:00:00:01"),
                "macRange.from must be a unicast MAC address",
            ),
            Case(
                "/macRange/to",
                json!("00:00:00:00:00:00"),
                "macRange.to must be a unicast MAC address",
            ),
            Case(
                "/macRange/to",
                json!("02:00:00:00:00:00"),
                "macRange.from must not be above macRange.to",
            ),
            Case("/macRange/to", json!("02:00:00:00:FF:FF"), ""),
            Case(
                "/macRange/to",
                json!("06:00:00:00:00:00"),
                "macRange.to must not begin with 06",
            ),
            Case(
                "/macRange/from",
                json!("06:00:00:00:00:00"),
                "macRange.from must not begin with 06",
            ),
            Case("/macvtapMode", json!("Bridge"), ""),
            Case("/macvtapMode", json!("Vepa"), ""),
            Case("/macvtapMode", json!("Private"), "Unsupported value"),
            Case("/macs", json!("Generated"), ""),
            Case("/macs", json!("Any"), ""),
            Case("/macs", json!("Some"), "Unsupported value"),
        ],
    )
    .await;
    judge(
        control_plane,
        "HybridNetwork",
        &json!({ "uplinks": [{ "drivers": ["enic"] }], "portProfile": { "name": "gold" } }),
        vec![
            Case("/portProfile/name", json!("gold:web_1.2"), ""),
            Case("/portProfile/name", json!("x".repeat(39)), ""),
            Case("/portProfile/name", json!("x".repeat(40)), "Too long"),
            Case("/portProfile/name", json!(""), "should be at least 1 chars long"),
            Case("/portProfile/name", json!("gold plus"), "without spaces"),
            Case("/portProfile/name", json!("or"), ""),
            Case("/portProfile/name", json!("orné"), "printable ASCII characters"),
            Case("/portProfile", json!({}), "Required value"),
            Case(
                "/vlan",
                json!({ "id": 42 }),
                "portProfile and vlan exclude each other",
            ),
            Case("/vlan", json!({ "id": 0 }), ""),
        ],
    )
    .await;
}

/// What of a node is drained.
async fn nodes(control_plane: &ControlPlane) {
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

async fn nics(control_plane: &ControlPlane) {
    let base = json!({ "network": "fast", "vm": { "qemu": { "name": "web" } } });
    judge(
        control_plane,
        "VmHybridNic",
        &base,
        vec![
            Case("/network", Value::Null, "Required value"),
            Case("/network", json!(""), "should be at least 1 chars long"),
            Case(
                "/vm",
                json!({}),
                "vm must name exactly one runtime, as in vm: {qemu: {name: my-vm}} or vm: {kubevirt: {name: my-vm}}",
            ),
            Case(
                "/vm",
                json!({"qemu": {"name": "web"}, "kubevirt": {"name": "web"}}),
                "vm must name exactly one runtime",
            ),
            // As files have it where there is no cluster.
            Case(
                "/vm",
                json!({"qemu": {"socket": "/run/vms/web.qmp"}}),
                "Required value",
            ),
            Case("/vm", json!({"kubevirt": {"name": "web.a"}}), ""),
            Case("/vm", json!({"kubevirt": {"name": "web", "interface": "fast_0"}}), ""),
            Case(
                "/vm",
                json!({"kubevirt": {"name": "Web"}}),
                "the name of a VirtualMachine",
            ),
            Case(
                "/vm",
                json!({"kubevirt": {"name": "web", "interface": "a.b"}}),
                "interface must be the name of an interface of the VM",
            ),
            Case("/path", json!("Auto"), ""),
            Case("/path", json!("Standby"), ""),
            Case("/path", json!("FastPath"), "Unsupported value"),
            Case("/keepVf", json!(false), ""),
            Case(
                "/keepVf",
                json!(true),
                "keepVf says what becomes of the VF under path: Standby",
            ),
            Case("/keepVf", json!("yes"), "must be of type boolean"),
            Case("/pairing", json!("NetFailover"), ""),
            Case("/pairing", json!("Bond"), ""),
            Case("/pairing", json!("Team"), "Unsupported value"),
            Case("/standby", json!("Macvtap"), ""),
            Case("/standby", json!("None"), ""),
            Case("/standby", json!("Bridge"), "Unsupported value"),
            Case(
                "/portInstanceId",
                json!("09b11c53-8B5C-4eeb-8f00-d84eaa0aaa4f"),
                "",
            ),
            Case(
                "/portInstanceId",
                json!("09b11c53-8b5c-4eeb-8f00"),
                "portInstanceId must be a UUID",
            ),
            Case("/vm/qemu/name", json!("web.1"), ""),
            Case("/vm/qemu/name", json!("-web"), "label hybridnic.io/vm"),
            Case("/vm/qemu/name", json!("a b"), "label hybridnic.io/vm"),
            Case("/mac", json!("52:54:00:AA:bb:01"), ""),
            Case(
                "/mac",
                json!("52:54:00:aa:bb"),
                "mac must be six hexadecimal pairs with colons",
            ),
            Case(
                "/mac",
                json!("52-54-00-aa-bb-01"),
                "mac must be six hexadecimal pairs with colons",
            ),
            Case(
                "/mac",
                json!("01:54:00:aa:bb:01"),
                "mac must be a unicast address",
            ),
            Case("/mac", json!("00:00:00:00:00:00"), "mac must not be all zeros"),
            Case(
                "/mac",
                json!("ff:ff:ff:ff:ff:ff"),
                "mac must be a unicast address",
            ),
            Case("/mac", json!("06:00:00:aa:bb:01"), "mac must not begin with 06"),
            Case(
                "/mac",
                json!("00:00:5E:00:01:01"),
                "mac must not be one of virtual routers",
            ),
            Case(
                "/mac",
                json!("00:00:5e:00:02:ff"),
                "mac must not be one of virtual routers",
            ),
            Case(
                "/mac",
                json!("00:00:0c:07:ac:01"),
                "mac must not be one of virtual routers",
            ),
            Case(
                "/mac",
                json!("00:00:0C:9F:F1:23"),
                "mac must not be one of virtual routers",
            ),
            Case(
                "/mac",
                json!("00:05:73:a0:0f:ff"),
                "mac must not be one of virtual routers",
            ),
            Case(
                "/mac",
                json!("00:07:b4:00:01:02"),
                "mac must not be one of virtual routers",
            ),
            Case("/mac", json!("00:00:5e:00:03:01"), ""),
            Case("/mac", json!("00:05:73:a0:10:00"), ""),
            Case("/noFreeVf", json!("Wait"), ""),
            Case("/noFreeVf", json!("Panic"), "Unsupported value"),
        ],
    )
    .await;
    judge(
        control_plane,
        "VmHybridNic",
        &json!({ "network": "fast", "vm": { "kubevirt": { "name": "web" } } }),
        vec![
            Case("/pairing", json!("NetFailover"), ""),
            Case("/pairing", json!("Bond"), "pairing: Bond is for VMs in QEMU pods"),
            Case("/standby", json!("Macvtap"), ""),
            Case("/standby", json!("None"), "standby: None is for VMs in QEMU pods"),
        ],
    )
    .await;
    judge(
        control_plane,
        "VmHybridNic",
        &json!({ "network": "fast", "vm": { "qemu": { "name": "web" } }, "standby": "None" }),
        vec![
            Case("/pairing", json!("NetFailover"), ""),
            Case("/pairing", json!("Bond"), "with standby: None leave it out"),
            // At a word the VF is out, and the VM without network by the NIC.
            Case("/path", json!("Standby"), ""),
            Case("/noFreeVf", json!("Wait"), ""),
            Case("/noFreeVf", json!("Standby"), ""),
        ],
    )
    .await;
}

async fn migrations_and_names(control_plane: &ControlPlane) {
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
            Case("/targetPod", json!("web-b"), ""),
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

async fn saves_and_restores(control_plane: &ControlPlane) {
    let label = "vm must be the value of the VM's pods' label";
    let path = "file must be an absolute path";
    let long = format!("/saves/{}", "n".repeat(129));
    let paths = || {
        vec![
            Case("/vm", json!("w w"), label),
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
            Case("/file", json!("/saves/of/..web.state"), ""),
            Case(
                "/deadlineSeconds",
                json!(0),
                "should be greater than or equal to 1",
            ),
            Case("/deadlineSeconds", json!(600), ""),
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
            json!(1024),
            "should be greater than or equal to 1048576",
        ),
        Case("/bandwidth", json!(1_048_576), ""),
    ]);
    let save = json!({ "vm": "web", "file": "/saves/web", "then": "End" });
    judge(control_plane, "QemuSave", &save, saves).await;
    let mut restores = paths();
    restores.extend([
        Case("/pod", json!(""), "should be at least 1 chars long"),
        Case("/pod", json!("web-b"), ""),
    ]);
    let restore = json!({ "vm": "web", "file": "/saves/web" });
    judge(control_plane, "QemuRestore", &restore, restores).await;
}

async fn what_cannot_change_and_what_names_can_be(control_plane: &ControlPlane) {
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
    let attachment = json!({
        "nodeName": "n1", "nic": { "name": "a", "uid": "u" }, "vm": {"qemu": {"name": "web"}}, "pod": { "name": "p", "uid": "v" },
        "network": "fast", "mac": "52:54:00:aa:bb:01", "goal": "FastPath", "noFreeVf": "Standby",
        "l2": { "spoofCheck": true, "trust": false },
    });
    let migration = json!({ "vm": "web" });
    let save = json!({ "vm": "web", "file": "/saves/web", "then": "End" });
    let paused = json!({ "vm": "web", "file": "/saves/web", "then": "Pause" });
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
    let nics = api(&client, "VmHybridNic").await;
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
