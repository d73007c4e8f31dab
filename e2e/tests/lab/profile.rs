//! A network with a port profile. The lab's igb keeps what it is asked for, says so in the kernel's log, and answers as a switch would
//! (`e2e/lab/kernel-igb-vf-port.patch`).

use std::sync::Arc;

use hybridnic_api::{
    conditions::{find, types},
    v1alpha1::{MigrationPhase, NicAttachment, Path, VfRef, VmHybridNic},
};
use hybridnic_e2e::{
    lab::{Kernel, Node},
    world::{NETWORK_YAML, NicSpec, VmSpec, World},
};
use libtest_mimic::Trial;

use crate::{
    common::{
        LATER, SOON, check_fast_path, condition, ended, fast, fast_on, migration, on, phase, watch, watched,
    },
    faults::reach,
    suite::Suite,
};

pub fn tests(suite: &Arc<Suite>) -> Vec<Trial> {
    vec![
        suite.test_on(
            Kernel::Small,
            "a_vf_has_its_port_profile_wherever_its_vm_goes",
            async |w| there_and_back(w).await,
        ),
        suite.test_on(
            Kernel::Small,
            "a_nic_whose_port_profile_is_refused_stays_on_its_standby",
            async |w| refused(w).await,
        ),
        suite.test_on(
            Kernel::Small,
            "a_switch_that_does_not_answer_is_asked_once_by_two_agents",
            async |w| silent(w).await,
        ),
    ]
}

/// YAML of a network like `fast`, with a port profile.
pub fn network(name: &str) -> String {
    let yaml = NETWORK_YAML.replace("name: fast", &format!("name: {name}"));
    format!("{yaml}  portProfile: {{name: {name}}}\n")
}

/// What a switch knows a NIC by whose owner says so.
const INSTANCE: &str = "09b11c53-8b5c-4eeb-8f00-d84eaa0aaa4f";

async fn there_and_back(world: &mut World) {
    world.apply(&network("gold")).await.unwrap();
    let spec = VmSpec::new("gold", &[NicSpec::new(0, 63)]);
    let clean = [
        world.footprint(1).await.unwrap(),
        world.footprint(2).await.unwrap(),
    ];
    for node in [1, 2] {
        mark(world.node(node)).await;
    }
    let mut vm = world.start_vm(&spec, "gold-0", 1, false).await.unwrap();
    let known = format!("  portInstanceId: {INSTANCE}\n  pairing:");
    let yaml = spec.nic_yaml(0, "gold").replace("  pairing:", &known);
    world.apply(&yaml).await.unwrap();
    let nic = fast(world, "gold-0").await.unwrap();
    check_fast_path(world, &vm, &nic).await.unwrap();
    let gold = |request: &str| format!("{request} profile 'gold' instance {INSTANCE}");
    let mut source = vf(&nic);
    assert_eq!(asked(world.node(1), &source).await, [gold("ASSOCIATE")]);

    let pinger = watch(&world.lab, spec.nics[0].address, 50).await;
    // A migration that fails when its target's port is kept: that is given up there, and the VM has its own.
    let target = world.start_vm(&spec, "gold-dies", 2, true).await.unwrap();
    world
        .apply(&migration("dies", "gold", "gold-dies"))
        .await
        .unwrap();
    reach(world, "dies", MigrationPhase::SwitchingToStandby).await;
    let kept = attachment_on(world, 2).await.status.unwrap().vf.unwrap();
    target.guest.kill().await.unwrap();
    let done = ended(world, "dies").await.unwrap();
    assert_eq!(phase(&done), MigrationPhase::Failed, "{:#?}", done.status);
    let nic = fast_on(world, "gold-0", 1).await.unwrap();
    check_fast_path(world, &vm, &nic).await.unwrap();
    world.until_footprint(2, &clean[1]).await.unwrap();
    let requests = asked(world.node(2), &kept).await;
    assert_eq!(requests.first(), Some(&gold("PREASSOCIATE_RR")));
    assert!(
        requests.len() == 2 && requests[1].starts_with("DISASSOCIATE"),
        "{requests:?}"
    );
    let requests = asked(world.node(1), &source).await;
    assert_eq!(requests.last(), Some(&gold("ASSOCIATE")), "{requests:?}");
    for node in [1, 2] {
        mark(world.node(node)).await;
    }

    // An agent that dies while the switch is asked, the target's and then the source's: the next one asks no second time.
    let moments = [("there", "PREASSOCIATE_RR"), ("back", "DISASSOCIATE")];
    for (run, (name, moment)) in moments.into_iter().enumerate() {
        let (from, to) = (vm.node, 3 - vm.node);
        let pod = format!("gold-{}", run + 1);
        let target = world.start_vm(&spec, &pod, to, true).await.unwrap();
        world.apply(&migration(name, "gold", &pod)).await.unwrap();
        until_asked(world.node(2), moment).await;
        world.restart_agent(2).await.unwrap();
        let done = ended(world, name).await.unwrap();
        assert_eq!(phase(&done), MigrationPhase::Succeeded, "{:#?}", done.status);
        let nic = fast_on(world, "gold-0", to).await.unwrap();
        check_fast_path(world, &target, &nic).await.unwrap();
        // Of one that has died the timeline is gone.
        if to == 1 {
            is_kept_before_the_vm_runs(world, to).await;
        }
        world.until_footprint(from, &clean[from - 1]).await.unwrap();
        let left = asked(world.node(from), &source).await;
        assert!(left.last().unwrap().starts_with("DISASSOCIATE"), "{left:?}");
        assert_eq!(
            left.iter().filter(|line| line.starts_with("DIS")).count(),
            1,
            "{left:?}"
        );
        source = vf(&nic);
        let kept = asked(world.node(to), &source).await;
        assert_eq!(kept, [gold("PREASSOCIATE_RR"), gold("ASSOCIATE")]);
        mark(world.node(from)).await;
        vm = target;
    }
    assert!(pinger.answered(50, SOON).await, "no answer after all");
    for gap in &watched(pinger).await.round_trip.gaps {
        eprintln!("gap of {:?}, {} lost", gap.length, gap.lost);
    }

    // At a word the VF is parked, and its port is nobody's.
    let told = r#"{"spec": {"path": "Standby", "keepVf": true}}"#;
    let patch = ["patch", "vhn", "gold-0", "--type", "merge", "-p", told];
    world.kubectl(&patch).await.unwrap();
    let told = |n: &VmHybridNic| on(n, Path::Standby) && condition(n, types::FAST_PATH) == "StandbyRequested";
    world.until_nic("gold-0", LATER, "told", told).await.unwrap();
    let left = asked(world.node(1), &source).await;
    assert!(left.last().unwrap().starts_with("DISASSOCIATE"), "{left:?}");
}

/// The target's port was kept for the VM while that was elsewhere, and got its profile before the VF was plugged.
async fn is_kept_before_the_vm_runs(world: &World, node: usize) {
    let here = attachment_on(world, node).await;
    let timeline: Vec<String> = here
        .status
        .unwrap()
        .timeline
        .into_iter()
        .map(|entry| entry.event)
        .collect();
    let at = |event: &str| {
        let found = timeline.iter().position(|said| said == event);
        found.unwrap_or_else(|| panic!("no {event}: {timeline:#?}"))
    };
    // That it is associated before it is plugged the driver says: the step may be cut short by news, and be found done.
    let order = ["Park", "Preassociate", "RESUME", "ConfigureVf", "PlugVf"].map(at);
    assert!(order.is_sorted(), "{timeline:#?}");
}

/// The attachment of the one NIC.
async fn attachment_on(world: &World, node: usize) -> NicAttachment {
    let name = world.node(node).name();
    let attachments = world.attachments().await.unwrap();
    attachments
        .into_iter()
        .find(|a| a.spec.node_name == name)
        .unwrap()
}

async fn refused(world: &World) {
    world.apply(&network("refused")).await.unwrap();
    let spec = VmSpec::new("refused", &[NicSpec::new(0, 65)]);
    let clean = world.footprint(1).await.unwrap();
    let vm = world.start_vm(&spec, "refused-a", 1, false).await.unwrap();
    mark(world.node(1)).await;
    world.apply(&spec.nic_yaml(0, "refused")).await.unwrap();
    let nic = on_standby(world, "refused-0", "PortProfileRefused").await;
    let said = words(&nic);
    assert!(said.contains("port profile refused with INVALID"), "{said}");
    let requests = asked(world.node(1), &vf(&nic)).await;
    let uid = nic.metadata.uid.clone().unwrap();
    assert_eq!(requests[0], format!("ASSOCIATE profile 'refused' instance {uid}"));
    assert!(requests[1].starts_with("DISASSOCIATE"), "{requests:?}");
    // It has its network meanwhile.
    let pinger = watch(&world.lab, spec.nics[0].address, 50).await;
    assert!(pinger.answered(100, SOON).await, "no answer by the standby");
    watched(pinger).await;
    assert!(
        vm.guest
            .net()
            .await
            .unwrap()
            .failover(&spec.nics[0].mac)
            .unwrap()
            .primary
            .is_none()
    );
    leaves(world, "refused-0", &clean).await;
}

async fn silent(world: &mut World) {
    world.apply(&network("never")).await.unwrap();
    let spec = VmSpec::new("never", &[NicSpec::new(0, 66)]);
    let clean = world.footprint(1).await.unwrap();
    let _vm = world.start_vm(&spec, "never-a", 1, false).await.unwrap();
    mark(world.node(1)).await;
    world.apply(&spec.nic_yaml(0, "never")).await.unwrap();
    // The agent dies while the switch has the request.
    until_asked(world.node(1), "ASSOCIATE").await;
    world.restart_agent(1).await.unwrap();
    let nic = on_standby(world, "never-0", "PortProfileTimeout").await;
    let said = words(&nic);
    assert!(said.contains("has not answered ASSOCIATE"), "{said}");
    let requests = asked(world.node(1), &vf(&nic)).await;
    let kinds: Vec<_> = requests
        .iter()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(kinds[..2], ["ASSOCIATE", "DISASSOCIATE"], "{requests:?}");
    leaves(world, "never-0", &clean).await;
}

/// Waits until a NIC is on its standby for this reason.
pub async fn on_standby(world: &World, nic: &str, reason: &str) -> VmHybridNic {
    let is = |n: &VmHybridNic| on(n, Path::Standby) && condition(n, types::FAST_PATH) == reason;
    world.until_nic(nic, LATER, reason, is).await.unwrap()
}

/// What the NIC says of its fast path.
pub fn words(nic: &VmHybridNic) -> String {
    let conditions = &nic.status.as_ref().unwrap().conditions;
    find(conditions, types::FAST_PATH).unwrap().message.clone()
}

/// The NIC is deleted, and its VF is given back.
pub async fn leaves(world: &World, nic: &str, clean: &str) {
    world
        .kubectl(&["delete", "vhn", nic, "--timeout=60s"])
        .await
        .unwrap();
    world.until_footprint(1, clean).await.unwrap();
}

fn vf(nic: &VmHybridNic) -> VfRef {
    nic.status.as_ref().unwrap().vf.clone().unwrap()
}

/// Where in the kernel's log [`mark`] was.
const MARK: &str = "hybridnic-lab-mark";

/// From here on the kernel's log counts.
async fn mark(node: &Node) {
    node.run(&format!("echo {MARK} >/dev/kmsg"), SOON).await.unwrap();
}

/// Waits until a driver was asked for this since [`mark`]. The kernel's log tells nobody.
async fn until_asked(node: &Node, request: &str) {
    let look = format!("/{MARK}/ {{ asked = 0 }} /: {request} / {{ asked = 1 }} END {{ exit !asked }}");
    let script = format!("until busybox dmesg | awk '{look}'; do sleep 0.05; done");
    node.run(&script, LATER).await.unwrap();
}

/// What the driver was asked for the port of a VF since [`mark`], without the host.
async fn asked(node: &Node, vf: &VfRef) -> Vec<String> {
    let log = node.run("busybox dmesg", SOON).await.unwrap();
    let log = log.rsplit(MARK).next().unwrap_or_default();
    let of = format!(" {}: VF {}: ", vf.pf, vf.index);
    let lines = log.lines().filter_map(|line| line.split_once(&of));
    lines
        .filter_map(|(_, request)| Some(request.split_once(" host ")?.0.to_owned()))
        .collect()
}
