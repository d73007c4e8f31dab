use super::{
    super::file::tests::{NETWORK, NIC},
    *,
};

/// What an agent says of an object.
fn say(dir: &Path, name: &str, document: &Value) {
    fs::write(
        dir.join(file::status(name)),
        serde_saphyr::to_string(document).unwrap(),
    )
    .unwrap();
}

fn counters(rx_bytes: u64, tx_bytes: u64) -> Counters {
    Counters {
        rx_bytes,
        tx_bytes,
        ..Counters::default()
    }
}

#[test]
fn rates_are_of_one_counter() {
    let tap = || Counter::Link("hn0".into());
    let vf = || Counter::Vf("ens1".into(), 3);
    let of = |counter, counted| Sample::from([("eth0".to_owned(), (counter, counted))]);
    let second = Duration::from_secs(1);
    let before = of(tap(), counters(1_000, 500));
    let after = rates(&before, &of(tap(), counters(3_000, 500)), 2 * second);
    assert_eq!(after["eth0"], Rates { rx: 8_000.0, tx: 0.0 });
    // On its VF meanwhile, made again, or read twice at once: nothing is known.
    for (now, elapsed) in [
        (of(vf(), counters(3_000, 500)), second),
        (of(tap(), counters(10, 0)), second),
        (of(tap(), counters(3_000, 500)), Duration::ZERO),
        (Sample::new(), second),
    ] {
        assert_eq!(rates(&before, &now, elapsed), BTreeMap::new());
    }
}

#[test]
fn files_become_the_tables() {
    let at = tempfile::tempdir().unwrap();
    let dir = at.path();
    fs::write(dir.join("fast.yaml"), NETWORK).unwrap();
    fs::write(dir.join("eth0.yaml"), NIC).unwrap();
    let attached = json!({ "spec": { "network": "fast", "vm": { "qemu": { "name": "vm2" } } } });
    fs::write(dir.join("eth1.yaml"), "spec: {").unwrap();
    let status =
        |path: &str| json!({ "phase": path, "path": path, "standby": { "macvtap": "hn1", "pf": "ens1" } });
    say(
        dir,
        "eth0",
        &json!({ "kind": "VmHybridNic", "status": status("FastPath") }),
    );
    say(
        dir,
        "eth1",
        &json!({ "kind": "VmHybridNic", "attached": attached, "status": status("Standby") }),
    );
    say(
        dir,
        "node",
        &json!({ "kind": "HybridNode", "metadata": { "name": "h1" }, "status": {} }),
    );
    let mut shown = Shown::default();
    shown.read(dir);
    assert_eq!(shown.errors, Vec::<String>::new());
    let text = top::draw(&shown.tables(), Place::Host, None);
    for words in ["fast", "h1", "eth0", "vm1", "eth1", "vm2", "RX BIT/S"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let counted = shown.networks[0].status.as_ref().unwrap();
    assert_eq!(
        (
            counted.nics,
            counted.on_fast_path,
            counted.on_standby,
            counted.told_standby
        ),
        (2, 1, 1, 0)
    );
    assert_eq!(counter(&shown.nics[0]), None, "its VF is not said");
    assert_eq!(counter(&shown.nics[1]), Some(Counter::Link("hn1".into())));

    fs::write(dir.join("eth1.status.yaml"), "a: [").unwrap();
    shown.read(dir);
    assert_eq!(shown.errors.len(), 1);
    assert!(shown.errors[0].contains("eth1.status.yaml"), "{:?}", shown.errors);
    assert_eq!(shown.nics.len(), 2, "what was seen last stays");
}
