//! A PF is drained under a VM that runs, changed, and undrained; and it loses its link.

use std::{
    process::Stdio,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hybridnic_api::v1alpha1::{DrainState, HybridNode, Path, PfStatus, VfState, VmHybridNic};
use hybridnic_e2e::{
    lab::{Node, Report},
    world::{NicSpec, VmSpec, World, binary},
};
use libtest_mimic::Trial;
use tokio::process::Command;

use crate::{
    common::{
        LATER, SOON, check_fast_path, check_vf, condition, fast, on, vm_on_fast_path, watch, watched_with,
    },
    suite::{Suite, give_macs},
};

pub fn tests(suite: &Arc<Suite>) -> Vec<Trial> {
    vec![
        suite.test("a_pf_is_drained_under_a_vm_and_loses_its_link", async |w| {
            drained(w).await
        }),
    ]
}

/// The most packets of ten milliseconds that a move to another card and its way back may cost each. The guest removes one VF and starts
/// the other one's driver, and nothing carries its traffic meanwhile.
const MOVE: u64 = 500;
/// How much longer IPv6 and multicast may be away than IPv4.
const BESIDE: Duration = Duration::from_secs(3);
/// A link must be missing for three seconds before a NIC leaves.
const LOSS: u64 = 300;

async fn drained(world: &mut World) {
    let spec = VmSpec::new("drain", &[NicSpec::new(0, 63)]);
    let clean = world.footprint(1).await.unwrap();
    let vm = vm_on_fast_path(world, &spec, "drain-a", 1, "fast").await.unwrap();
    let nic = fast(world, "drain-0").await.unwrap();
    let name = nic.status.unwrap().vf.unwrap().pf;
    let address = card_of(world.node(1), &name).await;
    let card = u8::from(address == Node::pf_address(1));
    let pinger = watch(&world.lab, spec.nics[0].address, 100).await;
    let mut marks = Vec::new();

    // Drained, by its name: the NIC goes to the other card, and the command ends when it has.
    marks.push(("a PF is drained", SystemTime::now()));
    let (code, said) = plugin(world, &["drain-pf", "n1", &name, "-w"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("no NIC holds a VF of it"), "{said}");
    let nic = elsewhere(world, &name).await;
    check_vf(world.node(1), &vm.guest, &nic).await.unwrap();
    let split = nic.status.unwrap();
    assert_eq!(split.standby.unwrap().pf, name, "its standby cannot move");
    assert!(pinger.answered(100, SOON).await, "no answer by the other card");
    marks.push(("at rest on two PFs", SystemTime::now()));

    // Another number of VFs while the VM runs. What is drained gets none by itself.
    let sriov = format!("/sys/bus/pci/devices/{address}/sriov_numvfs");
    for count in [0, 3, 0] {
        let set = format!("echo {count} > {sriov}");
        world.node(1).run(&set, SOON).await.unwrap();
        let is = |node: &HybridNode| {
            row(node, &address).is_some_and(|pf| {
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

    // Undrained, the agent makes those that the network asks for, and the NIC goes back to its standby's card.
    marks.push(("it is undrained", SystemTime::now()));
    let (code, said) = plugin(world, &["undrain-pf", "n1", &address]).await;
    assert_eq!(code, Some(0), "{said}");
    let all = |node: &HybridNode| node.status.as_ref().is_some_and(|s| s.vfs.free == 13);
    world.until_node(1, SOON, "with 13 free VFs", all).await.unwrap();
    let nic = home(world, &name).await;
    check_fast_path(world, &vm, &nic).await.unwrap();
    assert!(pinger.answered(100, SOON).await, "no answer by its own card");

    // An agent that dies on the way: the next one knows what is drained.
    marks.push(("its agent is killed while it drains", SystemTime::now()));
    let (code, said) = plugin(world, &["drain-pf", "n1", &name]).await;
    assert_eq!(code, Some(0), "{said}");
    let begun = |node: &HybridNode| row(node, &address).is_some_and(|pf| pf.drain.is_some());
    world.until_node(1, SOON, "told", begun).await.unwrap();
    world.kill_agent(1).await.unwrap();
    world.start_agent(1).await.unwrap();
    let nic = elsewhere(world, &name).await;
    check_vf(world.node(1), &vm.guest, &nic).await.unwrap();
    assert!(pinger.answered(100, SOON).await, "no answer after a restart");

    // All cards: the standby carries the traffic, and says why. Then the standby's card is the first choice.
    marks.push(("all PFs are drained", SystemTime::now()));
    let (code, said) = plugin(world, &["drain-pf", "n1", "--all", "-w"]).await;
    assert_eq!(code, Some(0), "{said}");
    let waits = |n: &VmHybridNic| on(n, Path::Standby) && condition(n, "FastPath") == "PfDrained";
    world
        .until_nic("drain-0", LATER, "on its standby, because of the drain", waits)
        .await
        .unwrap();
    assert!(pinger.answered(100, SOON).await, "no answer by the standby");
    let (code, said) = plugin(world, &["undrain-pf", "n1", "--all"]).await;
    assert_eq!(code, Some(0), "{said}");
    // The PF that was drained by itself still is.
    elsewhere(world, &name).await;
    let (code, said) = plugin(world, &["undrain-pf", "n1", &name]).await;
    assert_eq!(code, Some(0), "{said}");
    home(world, &name).await;
    assert!(
        pinger.answered(100, SOON).await,
        "no answer after all were undrained"
    );

    // The cable is pulled: it moves by itself, and goes back by itself when the link has stayed.
    marks.push(("a PF loses its link", SystemTime::now()));
    world.node(1).set_cable(card, false).await.unwrap();
    elsewhere(world, &name).await;
    assert!(
        pinger.answered(100, SOON).await,
        "no answer by the card with a link"
    );
    marks.push(("the link is back", SystemTime::now()));
    world.node(1).set_cable(card, true).await.unwrap();
    let nic = home(world, &name).await;
    check_fast_path(world, &vm, &nic).await.unwrap();
    assert!(pinger.answered(100, SOON).await, "no answer by its own card");

    let report = watched_with(pinger, BESIDE).await;
    show(&report, &marks);

    world
        .kubectl(&["delete", "vhn", "drain-0", "--timeout=60s"])
        .await
        .unwrap();
    // VFs that were made again have not the MACs that they were given before.
    give_macs(world.node(1)).await.unwrap();
    world.until_footprint(1, &clean).await.unwrap();
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
            "a PF loses its link" => MOVE + LOSS,
            // Three moves: to the standby, to the other card, and home.
            "all PFs are drained" => 3 * MOVE,
            _ => MOVE,
        };
        assert!(lost <= most, "{what}: {lost} lost");
    }
}

/// Waits until the NIC is on a VF of another PF than this.
async fn elsewhere(world: &World, pf: &str) -> VmHybridNic {
    let is = |n: &VmHybridNic| {
        let vf = n.status.as_ref().and_then(|status| status.vf.as_ref());
        on(n, Path::FastPath) && condition(n, "FastPath") == "VfActive" && vf.is_some_and(|vf| vf.pf != pf)
    };
    world
        .until_nic("drain-0", LATER, "on the other card", is)
        .await
        .unwrap()
}

/// Waits until the NIC is on a VF of this PF, where its standby is.
async fn home(world: &World, pf: &str) -> VmHybridNic {
    let is = |n: &VmHybridNic| {
        let vf = n.status.as_ref().and_then(|status| status.vf.as_ref());
        on(n, Path::FastPath) && condition(n, "FastPath") == "VfActive" && vf.is_some_and(|vf| vf.pf == pf)
    };
    world
        .until_nic("drain-0", LATER, "back on its standby's card", is)
        .await
        .unwrap()
}

fn row<'a>(node: &'a HybridNode, address: &str) -> Option<&'a PfStatus> {
    let pfs = node.status.iter().flat_map(|status| &status.pfs);
    pfs.into_iter().find(|pf| pf.pci_address == address)
}

async fn card_of(node: &Node, pf: &str) -> String {
    let find = format!("basename $(readlink /sys/class/net/{pf}/device)");
    node.run(&find, SOON).await.unwrap().trim().to_owned()
}

/// Runs the plugin as an administrator; its exit code, and all that it said.
async fn plugin(world: &World, arguments: &[&str]) -> (Option<i32>, String) {
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
    (output.status.code(), said)
}
