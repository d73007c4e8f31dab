use super::*;

pub(crate) const NETWORK: &str = "
apiVersion: hybridnic.io/v1alpha1
kind: HybridNetwork
metadata: {name: fast}
spec:
  uplinks: [{drivers: [igb], numVfs: 7}]
";

pub(crate) const NIC: &str = "
apiVersion: hybridnic.io/v1alpha1
kind: VmHybridNic
metadata: {name: eth0}
spec:
  network: fast
  vm: {qemu: {socket: /run/vms/vm1.qmp}}
";

pub(crate) fn network() -> HybridNetworkSpec {
    match parse("fast", NETWORK, None).unwrap() {
        Asked::Network(network) => *network,
        Asked::Nic(_) => unreachable!(),
    }
}

pub(crate) fn nic() -> AskedNic {
    match parse("eth0", NIC, None).unwrap() {
        Asked::Nic(nic) => *nic,
        Asked::Network(_) => unreachable!(),
    }
}

#[test]
fn files_are_objects_of_the_api() {
    assert_eq!(network().uplinks[0].num_vfs, Some(7));
    assert!(network().spoof_check, "a default of the API");
    let nic = nic();
    assert_eq!(nic.socket, Path::new("/run/vms/vm1.qmp"));
    assert_eq!(
        (nic.spec.network.as_str(), nic.spec.vm.name()),
        ("fast", Some("vm1"))
    );
}

#[test]
fn the_hosts_file_says_what_is_drained() {
    let text = |spec: &str| {
        format!(
            "apiVersion: hybridnic.io/v1alpha1\nkind: HybridNode\nmetadata: {{name: node}}\nspec: {spec}\n"
        )
    };
    let drain = host(&text("{drain: {pfs: [\"0000:01:00.0\"], networks: [fast]}}")).unwrap();
    assert_eq!((drain.pfs.len(), drain.networks.len(), drain.all), (1, 1, false));
    assert_eq!(host(&text("{}")), Ok(Drain::default()));
    for drain in [drain, Drain::default()] {
        assert_eq!(host(&of_host(&drain, "id").unwrap()), Ok(drain));
    }
    let texts = ["1", "2"].map(|id| of_host(&Drain::default(), id).unwrap());
    assert_ne!(generation(&texts[0]), generation(&texts[1]));
    for (spec, why) in [
        ("{drain: {pfs: [ens1f0]}}", "full PCI addresses"),
        ("{drain: {pf: []}}", "spec.drain.pf is not known"),
        ("{drain: {all: perhaps}}", "spec"),
        ("{pools: []}", "spec.pools"),
        ("", "spec"),
    ] {
        let error = host(&text(spec)).unwrap_err();
        assert!(error.contains(why), "{spec}: {error}");
    }
    let error = host(&text("{}").replace("name: node", "name: n1")).unwrap_err();
    assert!(error.contains("metadata.name"), "{error}");
    let error = host(&NIC.replace("name: eth0", "name: node")).unwrap_err();
    assert!(error.contains("is the host's own"), "{error}");
}

#[test]
fn which_files_ask_for_something() {
    assert_eq!(object("eth0.yaml"), Some("eth0"));
    for other in [
        "eth0.status.yaml",
        "eth0.yml",
        ".eth0.yaml.swp",
        ".eth0.yaml",
        "eth0.yaml~",
        "4913",
    ] {
        assert_eq!(object(other), None, "{other}");
    }
}

#[test]
fn what_is_wrong_is_said() {
    let nic = |from: &str, to: &str| {
        assert!(NIC.contains(from), "{from}");
        parse("eth0", &NIC.replace(from, to), None).unwrap_err()
    };
    for (from, to, words) in [
        ("hybridnic.io/v1alpha1", "v1", "apiVersion"),
        ("VmHybridNic", "Pod", "HybridNetwork or a VmHybridNic"),
        ("eth0", "eth1", "as the file's name"),
        (
            "network: fast",
            "network: fast\n  noFreeVF: Wait",
            "spec.noFreeVF is not known",
        ),
        ("network: fast", "network: fast\n  noFreeVf: Perhaps", "Perhaps"),
        (
            "network: fast",
            "network: fast\n  mac: \"53:54:00:00:00:01\"",
            "unicast",
        ),
        ("network: fast", "", "network"),
        ("socket: /run/vms/vm1.qmp", "name: vm1", "QMP socket"),
        ("/run/vms/vm1.qmp", "vm1.qmp", "whole path"),
        ("/run/vms/vm1.qmp", "/run/../vm1.qmp", "whole path"),
        (
            "qemu: {socket: /run/vms/vm1.qmp}",
            "kubevirt: {name: vm1}",
            "QMP socket",
        ),
        ("spec:", "specs:", "specs"),
        ("metadata: {name: eth0}", "metadata: {name: eth0", ""),
    ] {
        let error = nic(from, to);
        assert!(error.contains(words), "{from} -> {to}: {error}");
    }
    // What an editor has written half.
    for text in [
        "",
        "apiVersion: hybridnic.io/v1alpha1\nkind: VmHybr",
        "---\na: 1\n---\nb: 2\n",
    ] {
        parse("eth0", text, None).unwrap_err();
    }
    let error = parse(
        "fast",
        &NETWORK.replace("spec:", "spec:\n  nodeSelector: {}"),
        None,
    )
    .unwrap_err();
    assert!(error.contains("without a cluster"), "{error}");
    for name in ["node", "Eth0", "eth0.1", "-a", "", &"a".repeat(51)] {
        parse(name, NIC, None).unwrap_err();
    }
}

#[test]
fn what_cannot_change_does_not() {
    let before = parse("eth0", NIC, None).unwrap();
    let change = |from: &str, to: &str| parse("eth0", &NIC.replace(from, to), Some(&before));
    change("network: fast", "network: fast\n  noFreeVf: Wait").unwrap();
    for (from, to) in [
        ("network: fast", "network: slow"),
        ("vm1.qmp", "vm2.qmp"),
        ("network: fast", "network: fast\n  mac: \"52:54:00:00:00:01\""),
    ] {
        let error = change(from, to).unwrap_err();
        assert!(error.contains("cannot change"), "{error}");
    }
    let network = NETWORK.replace("fast", "eth0");
    assert!(
        parse("eth0", &network, Some(&before))
            .unwrap_err()
            .contains("kind cannot change")
    );
}

#[test]
fn a_version_is_its_text() {
    assert_eq!(generation(NIC), generation(NIC));
    assert_ne!(generation(NIC), generation(NETWORK));
    assert!(generation(NIC) > 0);
}
