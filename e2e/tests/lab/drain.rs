//! A PF is drained under a VM that runs, changed, and undrained; a network is; and a PF loses its link.

use std::{
    process::Stdio,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hybridnic_api::v1alpha1::{DrainState, HybridNode, Path, PfStatus, VfRef, VfState, VmHybridNic};
use hybridnic_e2e::{
    lab::{Node, Pinger, Report},
    world::{NETWORK, NicSpec, Vm, VmSpec, World, binary},
};
use libtest_mimic::Trial;
use tokio::process::Command;

use crate::{
    common::{
        LATER, RESERVED, SOON, check_fast_path, check_vf, condition, fast, on, times, until_said,
        vm_on_fast_path, watch, watched, watched_with,
    },
    suite::{Suite, give_macs},
};

pub fn tests(suite: &Arc<Suite>) -> Vec<Trial> {
    vec![
        suite.test("a_pf_is_drained_under_a_vm_and_loses_its_link", async |w| {
            Box::pin(drained(w)).await
        }),
    ]
}

/// The most packets of ten milliseconds that a move to another card and its way back may cost each, twice what was measured. The guest
/// starts the other card's driver, or lets go of it, and nothing carries its traffic meanwhile.
const MOVE: u64 = 150;
/// How much longer IPv6 and multicast may be away than IPv4.
const BESIDE: Duration = Duration::from_secs(3);
/// A link must be missing for three seconds before a NIC leaves.
const LOSS: u64 = 300;
/// How long an agent that has died is missing: it may have died where the guest has neither device.
const RESTART: u64 = 200;

/// Two VFs of the first card, and one of the second.
const NARROW: &str = "
apiVersion: hybridnic.io/v1alpha1
kind: HybridNetwork
metadata: {name: narrow}
spec:
  uplinks:
  - pciAddresses: [\"0000:01:00.0\"]
    numVfs: 7
    vfs: [\"0-1\"]
  - pciAddresses: [\"0000:02:00.0\"]
    numVfs: 7
    vfs: [\"0\"]
  macRange: {from: \"52:54:00:77:00:00\", to: \"52:54:00:77:ff:ff\"}
";

async fn drained(world: &mut World) {
    world.apply(NARROW).await.unwrap();
    let spec = VmSpec::new("drain", &[NicSpec::new(0, 63), NicSpec::new(1, 63)]);
    let clean = world.footprint(1).await.unwrap();
    let [address, other] = [0, 1].map(Node::pf_address);
    let card = 0;
    let name = world.node(1).netdev_of(&address).await.unwrap().unwrap();

    // Both NICs begin on one card, because the other one is drained.
    plugin(world, &["drain-pf", "n1", &other, "-w"]).await;
    let vm = vm_on_fast_path(world, &spec, "drain-a", 1, "narrow")
        .await
        .unwrap();
    for index in 0..2 {
        home(world, &spec.nic_name(index), &name).await;
    }
    plugin(world, &["undrain-pf", "n1", &other]).await;
    let mut pingers = Vec::new();
    for nic in &spec.nics {
        pingers.push(watch(&world.lab, nic.address, 100).await);
    }
    let mut marks = Vec::new();

    // Drained, by its name: the first NIC to leave gets the other card's VF, the other one stands by; and the command ends.
    marks.push(("a PF is drained", SystemTime::now()));
    let said = plugin(world, &["drain-pf", "n1", &name, "-w"]).await;
    assert!(said.contains("no NIC holds a VF of it"), "{said}");
    let moved = tokio::select! {
        _ = elsewhere(world, "drain-0", &name) => 0,
        _ = elsewhere(world, "drain-1", &name) => 1,
    };
    let [nic, stayer] = [moved, 1 - moved].map(|index| spec.nic_name(index));
    let stayers = pingers.remove(1 - moved);
    let pinger = pingers.remove(0);
    let split = world.nic(&nic).await.unwrap();
    check_vf(world.node(1), &vm.guest, &split).await.unwrap();
    let split = split.status.unwrap();
    assert_eq!(split.standby.unwrap().pf, name, "its standby cannot move");
    assert!(pinger.answered(100, SOON).await, "no answer by the other card");
    stands_by(world, &stayer).await;
    assert!(stayers.answered(100, SOON).await, "no answer by the standby");
    let lost = watched(stayers).await.round_trip.lost();
    assert!(lost <= MOVE, "{lost} lost by the NIC that stands by");
    marks.push(("at rest on two PFs", SystemTime::now()));

    renumber(world, &address, &pinger).await;

    // Undrained, the agent makes those that the network asks for, and both NICs come back, though the agent dies when it is told: the one
    // that stands by at once, and the other one when its standby's card could have carried it for a while.
    marks.push(("it is undrained", SystemTime::now()));
    plugin(world, &["undrain-pf", "n1", &address]).await;
    world.restart_agent(1).await.unwrap();
    let all = |node: &HybridNode| {
        node.status
            .as_ref()
            .is_some_and(|s| (s.vfs.total, s.vfs.drained) == (14, 0))
    };
    world
        .until_node(1, SOON, "with all of its VFs", all)
        .await
        .unwrap();
    let back = fast(world, &stayer).await.unwrap();
    check_fast_path(world, &vm, &back).await.unwrap();
    let back = home(world, &nic, &name).await;
    check_fast_path(world, &vm, &back).await.unwrap();
    assert!(pinger.answered(100, SOON).await, "no answer by its own card");

    marks.push(("the network is drained", SystemTime::now()));
    network(world, &vm, [&nic, &stayer], &pinger).await;
    world
        .kubectl(&["delete", "vhn", &stayer, "--timeout=60s"])
        .await
        .unwrap();

    // An agent that dies on the way: the next one knows what is drained.
    marks.push(("its agent is killed while it drains", SystemTime::now()));
    plugin(world, &["drain-pf", "n1", &name]).await;
    let begun = |node: &HybridNode| row(node, &address).is_some_and(|pf| pf.drain.is_some());
    world.until_node(1, SOON, "told", begun).await.unwrap();
    world.restart_agent(1).await.unwrap();
    let there = elsewhere(world, &nic, &name).await;
    check_vf(world.node(1), &vm.guest, &there).await.unwrap();
    assert!(pinger.answered(100, SOON).await, "no answer after a restart");

    // All cards: the standby carries the traffic, and says why. Then the standby's card is the first choice.
    marks.push(("all PFs are drained", SystemTime::now()));
    plugin(world, &["drain-pf", "n1", "--all", "-w"]).await;
    stands_by(world, &nic).await;
    assert!(pinger.answered(100, SOON).await, "no answer by the standby");
    plugin(world, &["undrain-pf", "n1", "--all"]).await;
    // The PF that was drained by itself still is.
    elsewhere(world, &nic, &name).await;

    // On its way home the agent dies when it has a VF of the standby's card, which nothing was done to.
    marks.push(("its agent is killed on the way home", SystemTime::now()));
    let reserved = times(world, 1, RESERVED);
    plugin(world, &["undrain-pf", "n1", &name]).await;
    until_said(world, 1, RESERVED, reserved).await;
    world.restart_agent(1).await.unwrap();
    let back = home(world, &nic, &name).await;
    check_fast_path(world, &vm, &back).await.unwrap();
    assert!(
        pinger.answered(100, SOON).await,
        "no answer after all were undrained"
    );

    // The cable is pulled: it moves by itself, and goes back by itself when the link has stayed.
    marks.push(("a PF loses its link", SystemTime::now()));
    world.node(1).set_cable(card, false).await.unwrap();
    elsewhere(world, &nic, &name).await;
    assert!(
        pinger.answered(100, SOON).await,
        "no answer by the card with a link"
    );
    marks.push(("the link is back", SystemTime::now()));
    world.node(1).set_cable(card, true).await.unwrap();
    let back = home(world, &nic, &name).await;
    check_fast_path(world, &vm, &back).await.unwrap();
    assert!(pinger.answered(100, SOON).await, "no answer by its own card");

    let report = watched_with(pinger, BESIDE).await;
    show(&report, &marks);

    world
        .kubectl(&["delete", "vhn", &nic, "--timeout=60s"])
        .await
        .unwrap();
    // VFs that were made again have not the MACs that they were given before.
    give_macs(world.node(1)).await.unwrap();
    world.until_footprint(1, &clean).await.unwrap();
}

/// Another number of VFs while the VM runs. What is drained gets none by itself.
async fn renumber(world: &World, address: &str, pinger: &Pinger) {
    let sriov = format!("/sys/bus/pci/devices/{address}/sriov_numvfs");
    for count in [0, 3, 0] {
        let set = format!("echo {count} > {sriov}");
        world.node(1).run(&set, SOON).await.unwrap();
        let is = |node: &HybridNode| {
            row(node, address).is_some_and(|pf| {
                pf.vfs.len() == count
                    && pf.drain == Some(DrainState::Drained)
                    && pf.vfs.iter().all(|vf| vf.state == VfState::Drained)
            })
        };
        world
            .until_node(1, SOON, &format!("with {count} VFs, drained"), is)
            .await
            .unwrap();
        assert!(pinger.answered(100, SOON).await, "no answer with {count} VFs");
    }
    let made = world.node(1).run(&format!("cat {sriov}"), SOON).await.unwrap();
    assert_eq!(made.trim(), "0", "the agent has made VFs on a PF that is drained");
}

/// One network of two is drained: its NICs leave their VFs, which are the other one's to have.
async fn network(world: &World, vm: &Vm, nics: [&str; 2], pinger: &Pinger) {
    let said = plugin(world, &["drain-pf", "n1", "--network", "narrow", "-w"]).await;
    assert!(said.contains("no NIC holds a VF of it"), "{said}");
    for nic in nics {
        stands_by(world, nic).await;
    }
    let is = |node: &HybridNode| {
        node.status.as_ref().is_some_and(|status| {
            let pool = |name: &str| status.pools.iter().find(|pool| pool.network == name);
            pool("narrow")
                .is_some_and(|pool| pool.drain == Some(DrainState::Drained) && pool.vfs.drained == 3)
                && pool(NETWORK).is_some_and(|pool| pool.drain.is_none() && pool.vfs.free == 14)
                && status.pfs.iter().all(|pf| pf.drain.is_none())
        })
    };
    world
        .until_node(1, SOON, "with one network that is drained", is)
        .await
        .unwrap();
    assert!(pinger.answered(100, SOON).await, "no answer by the standby");
    plugin(world, &["undrain-pf", "n1", "--network", "narrow"]).await;
    for nic in nics {
        let back = fast(world, nic).await.unwrap();
        check_fast_path(world, vm, &back).await.unwrap();
    }
    assert!(pinger.answered(100, SOON).await, "no answer by its VF");
}

/// What was lost from each mark to the next.
fn show(report: &Report, marks: &[(&str, SystemTime)]) {
    let end = SystemTime::now();
    let ends = marks.iter().skip(1).map(|(_, at)| *at).chain([end]);
    for ((what, from), to) in marks.iter().zip(ends) {
        let lost = report.round_trip.lost_between(*from, to);
        eprintln!("figure: {what}: {lost} packets of 10 ms lost");
        let gaps = report.round_trip.gaps.iter();
        for gap in gaps.filter(|gap| (*from..to).contains(&gap.from)) {
            eprintln!("figure: {what}: gap of {:?}, {} lost", gap.length, gap.lost);
        }
        let most = match *what {
            "at rest on two PFs" => 0,
            // Nothing carries the traffic while the guest lets go of the VF either: the standby's card is the one without a link.
            "a PF loses its link" => LOSS + 2 * MOVE,
            "its agent is killed while it drains" | "its agent is killed on the way home" => MOVE + RESTART,
            // Two moves; or two NICs at once, and the guest takes one device after the other.
            "a PF is drained" | "the network is drained" | "all PFs are drained" => 2 * MOVE,
            _ => MOVE,
        };
        assert!(lost <= most, "{what}: {lost} lost");
    }
}

/// Waits until a NIC is on a VF of another PF than this.
async fn elsewhere(world: &World, nic: &str, pf: &str) -> VmHybridNic {
    let is = |n: &VmHybridNic| on_vf(n, |vf| vf.pf != pf);
    world
        .until_nic(nic, LATER, "on the other card", is)
        .await
        .unwrap()
}

/// Waits until a NIC is on a VF of this PF, where its standby is.
async fn home(world: &World, nic: &str, pf: &str) -> VmHybridNic {
    let is = |n: &VmHybridNic| on_vf(n, |vf| vf.pf == pf);
    world
        .until_nic(nic, LATER, "on its standby's card", is)
        .await
        .unwrap()
}

fn on_vf(nic: &VmHybridNic, is: impl Fn(&VfRef) -> bool) -> bool {
    let vf = nic.status.as_ref().and_then(|status| status.vf.as_ref());
    on(nic, Path::FastPath) && condition(nic, "FastPath") == "VfActive" && vf.is_some_and(is)
}

/// Waits until a NIC is on its standby because what it could have is drained.
async fn stands_by(world: &World, nic: &str) {
    let is = |n: &VmHybridNic| on(n, Path::Standby) && condition(n, "FastPath") == "PfDrained";
    world
        .until_nic(nic, LATER, "on its standby, because of the drain", is)
        .await
        .unwrap();
}

fn row<'a>(node: &'a HybridNode, address: &str) -> Option<&'a PfStatus> {
    let pfs = node.status.iter().flat_map(|status| &status.pfs);
    pfs.into_iter().find(|pf| pf.pci_address == address)
}

/// Runs the plugin as an administrator, with success; all that it said.
async fn plugin(world: &World, arguments: &[&str]) -> String {
    let mut command = Command::new(binary("kubectl-hybridnic").unwrap());
    command
        .args(arguments)
        .arg("--kubeconfig")
        .arg(world.control_plane.kubeconfig_admin())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(LATER, command.output())
        .await
        .unwrap()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    eprintln!("$ kubectl hybridnic {}\n{said}", arguments.join(" "));
    assert!(output.status.success(), "{said}");
    said
}
