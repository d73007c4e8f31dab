use kube::CustomResourceExt as _;
use serde_json::json;

use super::*;
use crate::v1alpha1::{HybridNetwork, HybridNetworkSpec, HybridNode, VmHybridNic};

fn network() -> Checks {
    Checks::of(HybridNetwork::crd())
}

fn nic() -> Checks {
    Checks::of(VmHybridNic::crd()).without("vm")
}

fn rules(schema: &JSONSchemaProps, into: &mut Vec<String>) {
    let own = schema.x_kubernetes_validations.iter().flatten();
    into.extend(own.map(|rule| rule.rule.clone()));
    let fields = schema.properties.iter().flat_map(|fields| fields.values());
    fields.chain(items(schema)).for_each(|schema| rules(schema, into));
}

#[test]
fn every_rule_of_the_schemas_is_known() {
    let mut all = Vec::new();
    rules(&network().0, &mut all);
    rules(&nic().0, &mut all);
    // A file of a host says what is drained, and not the pools.
    rules(&Checks::of(HybridNode::crd()).without("pools").0, &mut all);
    assert!(all.len() > 25, "{all:#?}");
    let unknown: Vec<_> = all
        .iter()
        .filter(|rule| holds(rule, &json!(null), None).is_none())
        .collect();
    assert!(unknown.is_empty(), "{unknown:#?}");
}

/// What is wrong with a network that is fine except for this.
fn wrong(change: &Value) -> Vec<String> {
    let mut spec = json!({ "uplinks": [{ "drivers": ["igb"] }] });
    for (name, value) in change.as_object().unwrap() {
        spec[name] = value.clone();
    }
    let typed: HybridNetworkSpec = serde_json::from_value(spec).unwrap();
    network().broken(&serde_json::to_value(typed).unwrap(), None)
}

#[test]
fn a_network_is_checked_as_an_api_server_does() {
    for good in [
        json!({}),
        json!({"vlan": {"id": 42, "qos": 3}, "mtu": 9000, "rate": {"maxMbps": 100, "minMbps": 10}}),
        json!({"uplinks": [{"pfNames": ["ens1f*"], "vfs": ["0-3", "5"], "numVfs": 7}]}),
        json!({"uplinks": [{"pciAddresses": ["0000:01:00.0"]}, {"vendor": "8086", "device": "10c9"}]}),
        json!({"macRange": {"from": "52:54:00:77:00:00", "to": "52:54:00:77:ff:ff"}}),
        json!({"portProfile": {"name": "gold:web_1.2"}}),
        json!({"macvtapMode": "Vepa"}),
        json!({"portProfile": {"name": "gold"}, "vlan": {"id": 0}}),
    ] {
        assert_eq!(wrong(&good), Vec::<String>::new(), "{good}");
    }
    for (bad, words) in [
        (json!({"vlan": {"id": 4095}}), "from 0 (untagged) to 4094"),
        (json!({"vlan": {"id": 0, "qos": 3}}), "set vlan.id too"),
        (json!({"vlan": {"id": 1, "qos": 8}}), "from 0 to 7"),
        (json!({"mtu": 67}), "from 68 to 65535"),
        (json!({"portProfile": {"name": ""}}), "too short"),
        (json!({"portProfile": {"name": "x".repeat(40)}}), "40 characters"),
        (json!({"portProfile": {"name": "à la carte"}}), "without spaces"),
        (
            json!({"portProfile": {"name": "gold"}, "vlan": {"id": 42}}),
            "exclude each other",
        ),
        (json!({"rate": {"maxMbps": 1, "minMbps": 2}}), "must not be above"),
        (json!({"rate": {"maxMbps": 0}}), "from 1 to 1000000"),
        (json!({"standbySlots": 257}), "from 0 to 256"),
        (json!({"uplinks": []}), "too few entries"),
        (json!({"uplinks": [{}]}), "must say which PFs"),
        (json!({"uplinks": [{"device": "10c9"}]}), "set vendor too"),
        (
            json!({"uplinks": [{"vendor": "8O86"}]}),
            "four hexadecimal digits",
        ),
        (json!({"uplinks": [{"pfNames": ["a b"]}]}), "wildcards"),
        (
            json!({"uplinks": [{"pfNames": ["an-interface-of-too-many-letters"]}]}),
            "characters",
        ),
        (
            json!({"uplinks": [{"pciAddresses": ["01:00.0"]}]}),
            "full and in lower case",
        ),
        (json!({"uplinks": [{"drivers": ["i/gb"]}]}), "kernel drivers"),
        (
            json!({"uplinks": [{"drivers": ["igb"], "vfs": ["3-0"]}]}),
            "rising ranges",
        ),
        (
            json!({"uplinks": [{"drivers": ["igb"], "numVfs": 256}]}),
            "from 1 to 255",
        ),
        (
            json!({"macRange": {"from": "02:00:00:00:00:02", "to": "02:00:00:00:00:01"}}),
            "must not be above",
        ),
        (
            json!({"macRange": {"from": "01:00:00:00:00:02", "to": "02:00:00:00:00:01"}}),
            "unicast MAC",
        ),
        (
            json!({"macRange": {"from": "06:00:00:00:00:02", "to": "06:00:00:00:00:03"}}),
            "parked VFs",
        ),
    ] {
        let found = wrong(&bad);
        assert!(
            found.iter().any(|found| found.contains(words)),
            "{bad}: {found:?}"
        );
    }
}

#[test]
fn a_nics_mac_is_checked_as_an_api_server_does() {
    let wrong = |mac: &str| nic().broken(&json!({ "network": "net", "mac": mac }), None);
    assert!(wrong("52:54:00:00:00:01").is_empty());
    for bad in [
        "52:54:00:00:00",
        "53:54:00:00:00:01",
        "00:00:00:00:00:00",
        "06:00:00:00:00:01",
        "00:00:5E:00:01:01",
        "00:00:0c:9f:f1:01",
    ] {
        assert!(!wrong(bad).is_empty(), "{bad}");
    }
}

#[test]
fn what_cannot_change_is_compared_with_what_was() {
    let before = json!({ "network": "a", "mac": "52:54:00:00:00:01", "noFreeVf": "Standby" });
    let change = |spec: Value| nic().broken(&spec, Some(&before)).len();
    let mut now = before.clone();
    now["noFreeVf"] = json!("Wait");
    assert_eq!(change(now.clone()), 0);
    now["network"] = json!("b");
    assert_eq!(change(now), 1);
    assert_eq!(change(json!({ "network": "a" })), 1, "the MAC is gone");
}

#[test]
fn a_nic_is_known_to_the_switch_by_a_uuid() {
    let wrong = |id: &str| {
        nic()
            .broken(&json!({ "network": "net", "portInstanceId": id }), None)
            .len()
    };
    assert_eq!(wrong("09b11c53-8B5C-4eeb-8f00-d84eaa0aaa4f"), 0);
    for bad in [
        "",
        "09b11c53",
        "09b11c53-8b5c-4eeb-8f00-d84eaa0aaa4",
        "09b11c53-8b5c-4eeb-8f00-d84eaa0aaa4g",
    ] {
        assert_eq!(wrong(bad), 1, "{bad}");
    }
}

#[test]
fn a_vf_is_kept_under_the_path_standby_alone() {
    let wrong = |path: &str| {
        nic()
            .broken(&json!({ "network": "a", "path": path, "keepVf": true }), None)
            .len()
    };
    assert_eq!((wrong("Standby"), wrong("Auto")), (0, 1));
}

#[test]
fn a_nic_without_a_standby_is_of_a_qemu_pod_and_pairs_nothing() {
    let wrong = |spec: Value| nic().broken(&spec, None);
    let alone = |more: Value| {
        let mut spec = json!({ "network": "a", "standby": "None" });
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        wrong(spec)
    };
    assert_eq!(alone(json!({})), Vec::<String>::new());
    assert_eq!(
        alone(json!({ "pairing": "NetFailover", "path": "Standby", "keepVf": true })),
        Vec::<String>::new()
    );
    assert!(alone(json!({ "pairing": "Bond" }))[0].contains("leave it out"));
    assert!(alone(json!({ "vm": { "kubevirt": { "name": "vm" } } }))[0].contains("VMs in QEMU pods"));
    let change = nic().broken(
        &json!({ "network": "a", "standby": "None" }),
        Some(&json!({ "network": "a", "standby": "Macvtap" })),
    );
    assert_eq!(change.len(), 1, "{change:?}");
}

#[test]
fn what_is_misspelt_is_not_left_out() {
    let mut found = network().unknown(&json!({ "uplinks": [{ "driver": "igb" }], "spoofcheck": false }));
    found.sort();
    assert_eq!(
        found,
        [
            "spec.spoofcheck is not known",
            "spec.uplinks[0].driver is not known"
        ]
    );
    let labels = json!({ "uplinks": [], "nodeSelector": { "matchLabels": { "any": "x" } } });
    assert_eq!(network().unknown(&labels), Vec::<String>::new());
}
