use serde_json::{Value, from_value, json};

use super::*;
use crate::style::plain;

fn ready(status: &str, reason: &str) -> Value {
    json!([{
        "type": "Ready", "status": status, "reason": reason, "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }])
}

fn objects() -> (Fetched<HybridNetwork>, Fetched<HybridNode>, Fetched<VmHybridNic>) {
    let network = json!({
        "metadata": {"name": "fast"}, "spec": {"uplinks": []},
        "status": {
            "vfs": {"total": 14, "free": 11, "held": 2, "unhealthy": 1},
            "nodes": 2, "nics": 3, "onFastPath": 1, "onStandby": 1, "conditions": ready("True", "PoolReady"),
        },
    });
    let node = json!({
        "metadata": {"name": "n1"}, "spec": {},
        "status": {
            "pfCount": 2, "agentVersion": "0.1.0", "vfs": {"total": 7, "free": 5, "held": 2, "unhealthy": 0},
            "conditions": ready("False", "NoUplink"),
        },
    });
    let nic = |name: &str, status: Value| {
        json!({
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"network": "fast", "vm": {"qemu": {"name": "web"}}}, "status": status,
        })
    };
    let fast = nic(
        "eth0",
        json!({
            "phase": "FastPath", "path": "FastPath", "nodeName": "n1",
            "vf": {"pciAddress": "0000:01:10.0", "pf": "ens1", "index": 3},
            "conditions": [{
                "type": "FastPath", "status": "True", "reason": "VfActive", "message": "the VF carries the traffic",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        }),
    );
    let slow = nic(
        "eth1",
        json!({
            "phase": "Standby", "path": "Standby", "nodeName": "n1",
            "conditions": [{
                "type": "FastPath", "status": "False", "reason": "NoFreeVf", "message": "no VF is free on n1",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        }),
    );
    // Out of order, and one without a status.
    let nics = [slow, nic("eth2", Value::Null), fast].map(|nic| from_value(nic).unwrap());
    (
        Ok(vec![from_value(network).unwrap()]),
        Ok(vec![from_value(node).unwrap()]),
        Ok(nics.to_vec()),
    )
}

#[test]
fn three_tables() {
    let (networks, nodes, nics) = objects();
    let tables = Tables::new(&networks, &nodes, &nics);
    assert_eq!(
        plain(&draw(&tables, Place::Cluster, None)),
        "\
Networks
NAME  READY  VFS  FREE  HELD  UNHEALTHY  NICS  FAST  STANDBY  NEITHER  WHY
fast  True   14   11    2     1          3     1     1        1        PoolReady

Nodes
NAME  READY  PFS  VFS  FREE  HELD  UNHEALTHY  AGENT  WHY
n1    False  2    7    5     2     0          0.1.0  NoUplink

NICs
NAMESPACE  NAME  VM   NETWORK  PHASE     PATH      NODE  VF                   WHY       MESSAGE
shop       eth0  web  fast     FastPath  FastPath  n1    ens1/3 0000:01:10.0  VfActive  -
shop       eth1  web  fast     Standby   Standby   n1    -                    NoFreeVf  no VF is free on n1
shop       eth2  web  fast     Pending   None      -     -                    -         -
"
    );
}

#[test]
fn a_host_has_rates_in_place_of_namespaces() {
    let (networks, nodes, mut nics) = objects();
    let refused = json!([{
        "type": "Accepted", "status": "False", "reason": "FileUnknown", "message": "it has no spec",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]);
    for nic in nics.iter_mut().flatten().filter(|nic| nic.name_any() == "eth0") {
        nic.status.as_mut().unwrap().conditions = from_value(refused.clone()).unwrap();
    }
    let mut tables = Tables::new(&networks, &nodes, &nics);
    let rates = Rates {
        rx: 9_412_300_000.0,
        tx: 0.0,
    };
    tables.measured("eth0", Some(rates));
    let text = plain(&draw(&tables, Place::Host, None));
    let (_, nics) = text.split_once("NICs\n").unwrap();
    assert_eq!(
        nics,
        "\
NAME  VM   NETWORK  PHASE     PATH      VF                   RX BIT/S  TX BIT/S  WHY          MESSAGE
eth0  web  fast     FastPath  FastPath  ens1/3 0000:01:10.0  9.4G      0         FileUnknown  it has no spec
eth1  web  fast     Standby   Standby   -                    -         -         NoFreeVf     no VF is free on n1
eth2  web  fast     Pending   None      -                    -         -         -            -
"
    );
    let none: (Fetched<HybridNetwork>, Fetched<HybridNode>, Fetched<VmHybridNic>) =
        (Ok(vec![]), Ok(vec![]), Ok(vec![]));
    let text = plain(&draw(&Tables::new(&none.0, &none.1, &none.2), Place::Host, None));
    assert!(text.contains("ctl attach") && !text.contains("-A"), "{text}");
}

#[test]
fn rates_are_short() {
    let shown = [0.0, 12.4, 999.4, 999.6, 12_345.0, 999_960.0, 1e9, 9.96e9, 1e11].map(rate);
    assert_eq!(
        shown,
        ["0", "12", "999", "1.0k", "12k", "1.0M", "1.0G", "10G", "100G"]
    );
}

#[test]
fn what_cannot_be_seen_is_said_beside_the_rest() {
    let (networks, _, nics) = objects();
    let tables = Tables::new(&networks, &Err("Nodes: not allowed".to_owned()), &nics);
    assert!(!tables.is_blind());
    let text = plain(&draw(&tables, Place::Cluster, None));
    assert!(text.contains("\nNodes\nnot seen\n"), "{text}");
    assert!(text.ends_with("\nerror: Nodes: not allowed\n"), "{text}");
}

#[test]
fn one_reason_is_said_once() {
    let errors = ["a: no: way", "b: no: way", "c: else"].map(str::to_owned);
    assert_eq!(together(&errors), "a, b: no: way; c: else");
}

#[test]
fn lines_are_cut_to_the_terminal() {
    let (networks, nodes, nics) = objects();
    let text = plain(&draw(
        &Tables::new(&networks, &nodes, &nics),
        Place::Cluster,
        Some(80),
    ));
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn programs_get_the_rows() {
    let (networks, nodes, nics) = objects();
    let value = serde_json::to_value(Tables::new(&networks, &nodes, &nics)).unwrap();
    assert_eq!(value["networks"][0]["vfs"]["free"], 11);
    assert_eq!(value["nics"][0]["phase"], "FastPath");
    assert_eq!(value.get("errors"), None);
}
