//! NICs that come and go, VMs that end, two NICs in one VM, VLANs.

use std::sync::Arc;

use hybridnic_api::{
    conditions::{reasons, types},
    v1alpha1::{MigrationPhase, NicPhase, Path, VmHybridNic},
};
use hybridnic_e2e::{
    lab::Net,
    world::{NicSpec, VmSpec, World},
};
use libtest_mimic::Trial;

use crate::{
    common::{
        LATER, SOON, check_fast_path, condition, ended, fast, fast_on, migration, on, phase, vm_on_fast_path,
        watch, watched,
    },
    suite::Suite,
};

pub fn tests(suite: &Arc<Suite>) -> Vec<Trial> {
    vec![
        suite.test("nics_and_vms_come_and_go", async |w| come_and_go(w).await),
        suite.test("a_qemu_outside_of_its_pod_is_told_nothing", async |w| {
            outside(w).await
        }),
        suite.test("vf_and_standby_are_in_the_networks_vlan", async |w| vlan(w).await),
        suite.test(
            "standbys_in_vepa_mode_reach_each_other_by_the_switch",
            async |w| vepa(w).await,
        ),
    ]
}

async fn come_and_go(world: &World) {
    let clean = world.footprint(1).await.unwrap();

    // Two NICs, each with a trio of its own; they migrate together.
    let two = VmSpec::new("two", &[NicSpec::new(0, 56), NicSpec::new(1, 56)]);
    let vm = vm_on_fast_path(world, &two, "two-a", 1, "fast").await.unwrap();
    for index in 0..2 {
        let nic = fast(world, &two.nic_name(index)).await.unwrap();
        check_fast_path(world, &vm, &nic).await.unwrap();
    }
    let mut pingers = Vec::new();
    for nic in &two.nics {
        pingers.push(watch(&world.lab, nic.address, 50).await);
    }
    let moved = world.start_vm(&two, "two-b", 2, true).await.unwrap();
    world.apply(&migration("both", "two", "two-b")).await.unwrap();
    let done = ended(world, "both").await.unwrap();
    assert_eq!(phase(&done), MigrationPhase::Succeeded, "{:#?}", done.status);
    for (index, pinger) in pingers.into_iter().enumerate() {
        let object = fast_on(world, &two.nic_name(index), 2).await.unwrap();
        check_fast_path(world, &moved, &object).await.unwrap();
        eprintln!("NIC {index}");
        watched(pinger).await;
    }
    world.until_footprint(1, &clean).await.unwrap();

    // One NIC is deleted: it leaves the guest, the other stays.
    world
        .kubectl(&["delete", "vhn", "two-0", "--timeout=90s"])
        .await
        .unwrap();
    let (view, gone) = moved
        .guest
        .net_when(SOON, |v| v.with_mac(&two.nics[0].mac).next().is_none())
        .await
        .unwrap();
    assert!(gone, "the devices are still in the guest: {view:#?}");
    let pinger = world.lab.pinger(two.nics[1].address, 50).unwrap();
    assert!(pinger.answered(20, SOON).await, "the other NIC lost its traffic");

    // QEMU dies: the VF comes back without the guest's help, and the NIC says why it is not attached.
    let clean_2 = {
        moved.guest.kill().await.unwrap();
        world
            .until_nic("two-1", SOON, "pending", |n| {
                n.status.as_ref().is_some_and(|s| s.phase == NicPhase::Pending)
            })
            .await
            .unwrap();
        world.footprint(1).await.unwrap()
    };
    world.until_footprint(1, &clean_2).await.unwrap();

    // Its pod is gone, another comes: the same NIC with the same MAC is attached again.
    world.delete_pod(&moved).await.unwrap();
    let again = world.start_vm(&two, "two-c", 1, false).await.unwrap();
    let nic = fast(world, "two-1").await.unwrap();
    check_fast_path(world, &again, &nic).await.unwrap();
    assert_eq!(
        nic.status.as_ref().unwrap().mac.as_deref(),
        Some(two.nics[1].mac.as_str())
    );
    world.delete_pod(&again).await.unwrap();
    world.until_footprint(1, &clean).await.unwrap();
    world
        .kubectl(&["delete", "vhn", "two-1", "--timeout=60s"])
        .await
        .unwrap();
}

/// As a process of somebody else's that has got to listen on a VM's socket, until it turns out to be the pod's own.
async fn outside(world: &World) {
    let mut spec = VmSpec::new("out", &[NicSpec::new(0, 58)]);
    spec.grouped = false;
    let clean = world.footprint(1).await.unwrap();
    let vm = world.start_vm(&spec, "out-a", 1, false).await.unwrap();
    world.apply(&spec.nic_yaml(0, "fast")).await.unwrap();
    let refused = |nic: &VmHybridNic| condition(nic, types::READY) == reasons::QMP_UNTRUSTED;
    world.until_nic("out-0", SOON, "refused", refused).await.unwrap();
    let pid = vm.guest.qemu().pid();
    let limit = format!("grep 'Max locked memory' /proc/{pid}/limits");
    let limit = world.node(1).run(&limit, SOON).await.unwrap();
    assert!(!limit.contains("unlimited"), "{limit}");
    assert_eq!(
        world.footprint(1).await.unwrap(),
        clean,
        "nothing is taken for it"
    );
    vm.guest.join_group().await.unwrap();
    let nic = fast(world, "out-0").await.unwrap();
    check_fast_path(world, &vm, &nic).await.unwrap();
}

/// One VF, so that one NIC has it and the other runs on its standby.
const VLAN: &str = "
apiVersion: hybridnic.io/v1alpha1
kind: HybridNetwork
metadata: {name: tagged}
spec:
  uplinks:
  - pciAddresses: [\"0000:01:00.0\"]
    numVfs: 7
    vfs: [\"0\"]
  vlan: {id: 42}
  macRange: {from: \"52:54:00:77:00:00\", to: \"52:54:00:77:ff:ff\"}
";

/// VF and standby are in the same VLAN, seen on the wire: not every machine can give the peer a VLAN device, so the guest
/// sends to an address made up, and what leaves the card is told apart by the NICs' MACs.
async fn vlan(world: &World) {
    world.apply(VLAN).await.unwrap();
    let spec = VmSpec::new("tagged", &[NicSpec::new(4, 57), NicSpec::new(5, 57)]);
    let vm = world.start_vm(&spec, "tagged-a", 1, false).await.unwrap();
    world.apply(&spec.nic_yaml(0, "tagged")).await.unwrap();
    let nic = fast(world, "tagged-0").await.unwrap();
    check_fast_path(world, &vm, &nic).await.unwrap();
    world.apply(&spec.nic_yaml(1, "tagged")).await.unwrap();
    world
        .until_nic("tagged-1", LATER, "on standby", |n| on(n, Path::Standby))
        .await
        .unwrap();
    let vf = nic.status.unwrap().vf.unwrap();
    let table = world.node(1).vfs(&vf.pf).await.unwrap();
    let row = table
        .iter()
        .find(|r| i64::from(r.index) == i64::from(vf.index))
        .unwrap();
    assert_eq!(row.vlan(), 42, "{row:?}");

    for (nic, path) in spec.nics.iter().zip(["VF", "standby"]) {
        let wire = world
            .lab
            .capture(1, 0, &format!("ether src {}", nic.mac))
            .await
            .unwrap();
        let [a, b, c, _] = nic.address.octets();
        let peer = format!("{a}.{b}.{c}.1");
        let send = format!(
            "dev=$(ip -o -4 addr | sed -n 's/^[0-9]*: *\\([^ ]*\\) .* inet {}[/].*/\\1/p'); \
             ip neigh replace {peer} lladdr 02:00:00:00:00:fe dev $dev nud permanent; \
             ping -c 20 -i 0.1 -W 1 {peer} >/dev/null; [ $? = 1 ]",
            nic.address
        );
        vm.guest.run(&send, SOON).await.unwrap();
        let frames = wire.stop().unwrap();
        eprintln!("{} frames of the {path} left the card", frames.len());
        assert!(frames.len() >= 20, "the {path} has sent {frames:?}");
        assert!(
            frames.iter().all(|f| f.vlan == Some(42)),
            "untagged frames of the {path}: {frames:?}"
        );
    }
}

/// All on one card.
const VEPA: &str = "
apiVersion: hybridnic.io/v1alpha1
kind: HybridNetwork
metadata: {name: vepa}
spec:
  uplinks:
  - pciAddresses: [\"0000:01:00.0\"]
    numVfs: 7
  macvtapMode: Vepa
  macRange: {from: \"52:54:00:77:00:00\", to: \"52:54:00:77:ff:ff\"}
";

/// Two NICs on their standbys, by a switch whose port sends frames back. Without that, too, the lab's card would let them reach each
/// other: that nothing but the switch does is shown where there is no card (`crates/net/tests/kernel`).
async fn vepa(world: &World) {
    world.apply(VEPA).await.unwrap();
    let port = Net::tap(1, 0);
    let hairpin = async |state: &str| {
        let set = [
            "link",
            "set",
            "dev",
            &port,
            "type",
            "bridge_slave",
            "hairpin",
            state,
        ];
        world.lab.net().ip(&set).await.unwrap();
    };
    hairpin("on").await;
    let specs = [("left", 67), ("right", 68)].map(|(name, host)| VmSpec::new(name, &[NicSpec::new(0, host)]));
    let mut vms = Vec::new();
    for spec in &specs {
        vms.push(world.start_vm(spec, &spec.name, 1, false).await.unwrap());
        let yaml = spec.nic_yaml(0, "vepa");
        let told = yaml.replace("  pairing:", "  path: Standby\n  pairing:");
        world.apply(&told).await.unwrap();
        let nic = spec.nic_name(0);
        let stands = |n: &VmHybridNic| on(n, Path::Standby);
        world
            .until_nic(&nic, LATER, "on its standby", stands)
            .await
            .unwrap();
    }
    let macvtaps = world.node(1).macvtaps().await.unwrap();
    assert!(
        macvtaps.len() == 2 && macvtaps.iter().all(|m| m.mode == "vepa" && m.up),
        "{macvtaps:#?}"
    );
    for (from, to) in [(0, 1), (1, 0)] {
        let to = specs[to].nics[0].address;
        let ask = format!("ip neigh flush all; ping -c 5 -i 0.2 -W 2 {to}");
        let output = vms[from].guest.exec(&ask, SOON).await.unwrap();
        assert!(output.stdout.contains(" 0% packet loss"), "to {to}: {output:?}");
    }
    hairpin("off").await;
}
