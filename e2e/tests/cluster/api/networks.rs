//! What a `HybridNetwork` may be.

use hybridnic_e2e::controlplane::ControlPlane;
use serde_json::{Value, json};

use super::{Case, judge};

/// So many uplinks, or one with so many entries.
fn uplinks(count: usize) -> Value {
    vec![json!({ "drivers": ["igb"] }); count].into()
}

fn entries(field: &str, entry: &str, count: usize) -> Value {
    json!([{ "drivers": ["igb"], field: vec![entry; count] }])
}

/// A selector with so many requirements, of so many values each.
fn requirements(count: usize, values: usize) -> Value {
    let one = json!({ "key": "zone", "operator": "In", "values": vec!["a"; values] });
    json!({ "matchExpressions": vec![one; count] })
}

fn labels(count: usize) -> Value {
    let labels = (0..count).map(|n| (format!("zone{n}"), json!("a")));
    json!({ "matchLabels": labels.collect::<serde_json::Map<_, _>>() })
}

/// Lists and maps, which may hold what is printed here and no more.
async fn sizes(control_plane: &ControlPlane) {
    let mut cases = vec![
        Case("/uplinks", uplinks(16), ""),
        Case("/uplinks", uplinks(17), "must have at most 16 items"),
    ];
    for (field, entry) in [
        ("pfNames", "ens1f0"),
        ("pciAddresses", "0000:01:00.0"),
        ("drivers", "igb"),
        ("vfs", "0-3"),
    ] {
        cases.extend([
            Case(
                "/uplinks",
                entries(field, entry, 0),
                "should have at least 1 items",
            ),
            Case("/uplinks", entries(field, entry, 16), ""),
            Case(
                "/uplinks",
                entries(field, entry, 17),
                "must have at most 16 items",
            ),
        ]);
    }
    for selector in ["/nodeSelector", "/namespaceSelector"] {
        cases.extend([
            Case(selector, requirements(64, 1), ""),
            Case(selector, requirements(65, 1), "must have at most 64 items"),
            Case(selector, requirements(1, 64), ""),
            Case(selector, requirements(1, 65), "must have at most 64 items"),
            Case(selector, labels(64), ""),
            Case(selector, labels(65), "must have at most 64 items"),
        ]);
    }
    let base = json!({ "uplinks": [{ "drivers": ["igb"] }] });
    judge(control_plane, "HybridNetwork", &base, cases).await;
}

pub(super) async fn rules(control_plane: &ControlPlane) {
    sizes(control_plane).await;
    let million = 1_000_000;
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
            Case("/uplinks", json!([{ "drivers": ["igb"], "numVfs": 1 }]), ""),
            Case("/uplinks", json!([{ "drivers": ["igb"], "numVfs": 255 }]), ""),
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
            Case("/vlan/qos", json!(-1), "vlan.qos must be from 0 to 7"),
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
            Case("/rate", json!({ "minMbps": 1, "maxMbps": 1 }), ""),
            Case("/rate", json!({ "minMbps": 0 }), "rate.minMbps is in Mbit/s"),
            Case("/rate", json!({ "minMbps": million, "maxMbps": million }), ""),
            Case(
                "/rate",
                json!({ "minMbps": million + 1 }),
                "rate.minMbps is in Mbit/s",
            ),
            Case(
                "/rate",
                json!({ "maxMbps": million + 1 }),
                "rate.maxMbps is in Mbit/s",
            ),
            Case(
                "/portProfile",
                json!({ "name": "gold" }),
                "portProfile and vlan exclude each other",
            ),
            Case("/mtu", json!(9000), ""),
            Case("/mtu", json!(67), "mtu is in bytes, from 68 to 65535"),
            Case("/mtu", json!(68), ""),
            Case("/mtu", json!(65535), ""),
            Case("/mtu", json!(65536), "mtu is in bytes, from 68 to 65535"),
            Case("/standbySlots", json!(0), ""),
            Case("/standbySlots", json!(256), ""),
            Case("/standbySlots", json!(257), "standbySlots is from 0 to 256"),
            Case("/standbySlots", json!(-1), "standbySlots is from 0 to 256"),
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
            Case("/onLinkLoss", json!("Move"), ""),
            Case("/onLinkLoss", json!("Stay"), ""),
            Case("/onLinkLoss", json!(false), "must be of type string"),
            Case("/onLinkLoss", json!("Off"), "Unsupported value"),
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
