//! NICs without a standby (`standby: None`): a VF that steps aside for a migration and comes back, where no VF is free, and at a drain.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use hybridnic_api::{
    conditions::types,
    v1alpha1::{MigrationPhase, NicPhase, Path, VmHybridNic},
};
use hybridnic_e2e::{
    lab::{NetView, Netdev},
    world::{NicSpec, Vm, VmSpec, World},
};
use libtest_mimic::Trial;

use crate::{
    common::{LATER, SOON, condition, ended, fast, fast_on, migration, on, phase, vm_on_fast_path},
    faults::{failure, slow, transferring},
    flight::first_is_over,
    pool::SCARCE,
    suite::Suite,
};

pub fn tests(suite: &Arc<Suite>) -> Vec<Trial> {
    vec![
        suite.test("a_vf_without_a_standby_steps_aside_and_comes_back", async |w| {
            Box::pin(there_and_back(w)).await
        }),
        suite.test("a_nic_without_a_standby_waits_for_a_vf_and_says_so", async |w| {
            scarce(w).await
        }),
        suite.test("a_drain_leaves_a_vm_its_only_vf", async |w| drained(w).await),
    ]
}

/// How long a QEMU may take to end that is needed no more.
const ENDS: Duration = Duration::from_secs(30);

async fn there_and_back(world: &mut World) {
    let spec = VmSpec::new("lone", &[NicSpec::new(0, 65)]).alone();
    let clean = [
        world.footprint(1).await.unwrap(),
        world.footprint(2).await.unwrap(),
    ];
    let first = vm_on_fast_path(world, &spec, "lone-a", 1, "fast").await.unwrap();
    let nic = fast(world, "lone-0").await.unwrap();
    check(world, &first, &nic).await.unwrap();
    let place = nic.status.unwrap().guest.vf_pci_address;
    let pinger = world.lab.pinger(spec.nics[0].address, 100).unwrap();
    assert!(pinger.answered(100, SOON).await, "no answer by the VF");

    // There: the network is away meanwhile, and the NIC says so; then the guest finds its VF at the same place.
    let second = world.start_vm(&spec, "lone-b", 2, true).await.unwrap();
    step_aside(world, "there", "lone-b").await;
    world.restart_agent(2).await.unwrap();
    let done = ended(world, "there").await.unwrap();
    assert_eq!(phase(&done), MigrationPhase::Succeeded, "{:#?}", done.status);
    let nic = fast_on(world, "lone-0", 2).await.unwrap();
    check(world, &second, &nic).await.unwrap();
    assert_eq!(nic.status.unwrap().guest.vf_pci_address, place);
    first_is_over(world, &first, &clean[0]).await;
    assert!(pinger.answered(100, SOON).await, "no answer by the target's VF");
    let told = events(world, "lone-0").await;
    for reason in ["SteppedAside", "VfActive"] {
        assert!(
            told.lines().any(|line| line == reason),
            "no event {reason}: {told}"
        );
    }

    // At a word the VF is out and stays out, whichever agent runs.
    tell(world, r#"{"path": "Standby", "keepVf": true}"#).await;
    for killed in [false, true] {
        if killed {
            world.restart_agent(2).await.unwrap();
        }
        let nic = cut_off(world, "StandbyRequested", 2).await;
        is_parked(world, 2, &nic).await;
        is_out(&second, &spec.nics[0].mac).await;
    }
    tell(world, r#"{"path": "Auto", "keepVf": null}"#).await;
    world.restart_agent(2).await.unwrap();
    let nic = fast_on(world, "lone-0", 2).await.unwrap();
    check(world, &second, &nic).await.unwrap();
    assert!(pinger.answered(100, SOON).await, "no answer after a word");

    // And back. On both ways an agent dies while the VF is out: the target's, and then the source's.
    let third = world.start_vm(&spec, "lone-c", 1, true).await.unwrap();
    step_aside(world, "back", "lone-c").await;
    world.restart_agent(2).await.unwrap();
    let done = ended(world, "back").await.unwrap();
    assert_eq!(phase(&done), MigrationPhase::Succeeded, "{:#?}", done.status);
    let nic = fast_on(world, "lone-0", 1).await.unwrap();
    check(world, &third, &nic).await.unwrap();
    first_is_over(world, &second, &clean[1]).await;
    assert!(pinger.answered(100, SOON).await, "no answer after the way back");

    // One that fails while the VF is out brings it back.
    let target = world.start_vm(&spec, "lone-d", 2, true).await.unwrap();
    slow(&third).await;
    world.apply(&migration("fails", "lone", "lone-d")).await.unwrap();
    transferring(world, &third, "fails").await;
    is_out(&third, &spec.nics[0].mac).await;
    target.guest.kill().await.unwrap();
    let done = ended(world, "fails").await.unwrap();
    assert_eq!(phase(&done), MigrationPhase::Failed, "{:#?}", done.status);
    let nic = fast_on(world, "lone-0", 1).await.unwrap();
    check(world, &third, &nic).await.unwrap();
    world.until_footprint(2, &clean[1]).await.unwrap();
    assert!(pinger.answered(100, SOON).await, "no answer after the failure");

    let report = pinger.stop().await;
    for gap in &report.round_trip.gaps {
        eprintln!(
            "figure: without a standby: gap of {:?}, {} lost",
            gap.length, gap.lost
        );
    }
    // Three migrations and a word: at each of them the VM was without network.
    assert!(report.round_trip.gaps.len() >= 4, "{:#?}", report.round_trip.gaps);

    world
        .kubectl(&["delete", "vhn", "lone-0", "--timeout=60s"])
        .await
        .unwrap();
    world.until_footprint(1, &clean[0]).await.unwrap();
    is_out(&third, &spec.nics[0].mac).await;
}

async fn scarce(world: &mut World) {
    world.apply(SCARCE).await.unwrap();
    let (mover, stayer) = (
        VmSpec::new("lone", &[NicSpec::new(0, 66)]).alone(),
        VmSpec::new("stayer", &[NicSpec::new(0, 67)]),
    );
    let _there = vm_on_fast_path(world, &stayer, "stayer", 2, "scarce")
        .await
        .unwrap();
    let crowded = world.footprint(2).await.unwrap();
    let here = vm_on_fast_path(world, &mover, "lone-a", 1, "scarce")
        .await
        .unwrap();
    let pinger = world.lab.pinger(mover.nics[0].address, 50).unwrap();
    assert!(pinger.answered(50, SOON).await, "no answer by the VF");

    // It may stay where it has a VF: its network is not taken from it, and the QEMU that waited for it ends.
    tell(world, r#"{"noFreeVf": "Wait"}"#).await;
    let target = world.start_vm(&mover, "lone-b", 2, true).await.unwrap();
    world
        .apply(&migration("refused", "lone", "lone-b"))
        .await
        .unwrap();
    let done = ended(world, "refused").await.unwrap();
    assert_eq!(
        (phase(&done), failure(&done).as_str()),
        (MigrationPhase::Failed, "TargetNoFreeVf"),
        "{:#?}",
        done.status
    );
    assert_eq!(target.guest.qemu().wait(ENDS).await.unwrap(), Some(0));
    world.until_footprint(2, &crowded).await.unwrap();
    let nic = fast_on(world, "lone-0", 1).await.unwrap();
    check(world, &here, &nic).await.unwrap();
    assert!(pinger.answered(50, SOON).await, "no answer after it was refused");

    // Or it goes, waits there without network, and says so; no matter which agent runs.
    tell(world, r#"{"noFreeVf": "Standby"}"#).await;
    let arriving = world.start_vm(&mover, "lone-c", 2, true).await.unwrap();
    world.apply(&migration("goes", "lone", "lone-c")).await.unwrap();
    let done = ended(world, "goes").await.unwrap();
    assert_eq!(phase(&done), MigrationPhase::Succeeded, "{:#?}", done.status);
    for killed in [false, true] {
        if killed {
            world.restart_agent(2).await.unwrap();
        }
        cut_off(world, "NoFreeVf", 2).await;
        is_out(&arriving, &mover.nics[0].mac).await;
    }
    world
        .kubectl(&["delete", "vhn", "stayer-0", "--timeout=90s"])
        .await
        .unwrap();
    let nic = fast_on(world, "lone-0", 2).await.unwrap();
    check(world, &arriving, &nic).await.unwrap();
    assert!(
        pinger.answered(50, SOON).await,
        "no answer by the VF that has become free"
    );
    pinger.stop().await;
}

async fn drained(world: &mut World) {
    let spec = VmSpec::new("lone", &[NicSpec::new(0, 68)]).alone();
    let clean = world.footprint(1).await.unwrap();
    let vm = vm_on_fast_path(world, &spec, "lone-a", 1, "fast").await.unwrap();
    let first = fast(world, "lone-0").await.unwrap().status.unwrap().vf.unwrap();
    let pinger = world.lab.pinger(spec.nics[0].address, 50).unwrap();
    assert!(pinger.answered(50, SOON).await, "no answer by the VF");

    // Another card has a VF: the NIC goes there.
    let card = format!("basename $(readlink /sys/class/net/{}/device)", first.pf);
    let card = world.node(1).run(&card, SOON).await.unwrap();
    let card = card.trim();
    drain(world, &format!(r#"{{"pfs": ["{card}"]}}"#)).await;
    let other = |n: &VmHybridNic| {
        let vf = n.status.as_ref().and_then(|status| status.vf.as_ref());
        on(n, Path::FastPath)
            && condition(n, types::FAST_PATH) == "VfActive"
            && vf.is_some_and(|vf| vf.pf != first.pf)
    };
    let nic = world
        .until_nic("lone-0", LATER, "on the other card", other)
        .await
        .unwrap();
    check(world, &vm, &nic).await.unwrap();
    assert!(pinger.answered(50, SOON).await, "no answer by the other card");

    // No other has one: it stays, and says so; and the next agent does not take it out either.
    drain(world, r#"{"all": true}"#).await;
    let stays = |n: &VmHybridNic| on(n, Path::FastPath) && condition(n, types::READY) == "PfDrained";
    for killed in [false, true] {
        if killed {
            world.restart_agent(1).await.unwrap();
        }
        let nic = world
            .until_nic("lone-0", LATER, "on its VF, which is drained", stays)
            .await
            .unwrap();
        check(world, &vm, &nic).await.unwrap();
        assert!(pinger.answered(100, SOON).await, "the drain has cut it off");
    }

    // Its owner's word counts.
    tell(world, r#"{"path": "Standby"}"#).await;
    let nic = cut_off(world, "StandbyRequested", 1).await;
    assert_eq!(nic.status.unwrap().vf, None);
    drain(world, r#"{"all": false, "pfs": null}"#).await;
    tell(world, r#"{"path": "Auto"}"#).await;
    let nic = fast(world, "lone-0").await.unwrap();
    check(world, &vm, &nic).await.unwrap();
    assert!(
        pinger.answered(50, SOON).await,
        "no answer after all were undrained"
    );
    pinger.stop().await;

    world
        .kubectl(&["delete", "vhn", "lone-0", "--timeout=60s"])
        .await
        .unwrap();
    world.until_footprint(1, &clean).await.unwrap();
}

/// Says what of node 1 is drained.
async fn drain(world: &World, what: &str) {
    let patch = format!(r#"{{"spec": {{"drain": {what}}}}}"#);
    let name = world.node(1).name();
    world
        .kubectl(&["patch", "hnode", name, "--type", "merge", "-p", &patch])
        .await
        .unwrap();
}

async fn tell(world: &World, spec: &str) {
    let patch = format!(r#"{{"spec": {spec}}}"#);
    world
        .kubectl(&["patch", "vhn", "lone-0", "--type", "merge", "-p", &patch])
        .await
        .unwrap();
}

/// Begins a migration, and waits until the NIC says that its VM has no network meanwhile.
async fn step_aside(world: &World, name: &str, pod: &str) {
    let migration = migration(name, "lone", pod);
    let (said, applied) = tokio::join!(
        world.until_nic(
            "lone-0",
            LATER,
            "out of the way of a migration",
            has_stepped_aside
        ),
        world.apply(&migration)
    );
    applied.unwrap();
    said.unwrap();
}

/// Whether a NIC says that its VM has no network by it while the VM is moved or saved.
pub fn has_stepped_aside(nic: &VmHybridNic) -> bool {
    condition(nic, types::FAST_PATH) == "SteppedAside"
        && nic
            .status
            .as_ref()
            .is_some_and(|status| (status.phase, status.path) == (NicPhase::Migrating, Path::None))
}

/// Waits until the NIC says for this reason that its VM has no network by it, on this node.
async fn cut_off(world: &World, reason: &str, node: usize) -> VmHybridNic {
    let name = world.node(node).name();
    let is = |n: &VmHybridNic| {
        condition(n, types::FAST_PATH) == reason
            && n.status.as_ref().is_some_and(|status| {
                (status.phase, status.path) == (NicPhase::Aside, Path::None)
                    && status.node_name.as_deref() == Some(name)
            })
    };
    world.until_nic("lone-0", LATER, reason, is).await.unwrap()
}

/// The reasons of all events about a NIC, one to a line.
async fn events(world: &World, nic: &str) -> String {
    let about = format!("involvedObject.kind=VmHybridNic,involvedObject.name={nic}");
    let reasons = r#"jsonpath={range .items[*]}{.reason}{"\n"}{end}"#;
    world
        .kubectl(&["get", "events", "--field-selector", &about, "-o", reasons])
        .await
        .unwrap()
}

/// The NIC keeps its VF, which answers for nobody.
async fn is_parked(world: &World, node: usize, nic: &VmHybridNic) {
    let vf = nic.status.as_ref().unwrap().vf.as_ref().expect("it keeps its VF");
    let table = world.node(node).vfs(&vf.pf).await.unwrap();
    let row = table
        .iter()
        .find(|row| i64::from(row.index) == i64::from(vf.index));
    assert!(row.unwrap().mac.starts_with("06:"), "{row:?}");
}

/// The guest has no device of this MAC.
pub async fn is_out(vm: &Vm, mac: &str) {
    let (view, gone) = vm
        .guest
        .net_when(SOON, |view| view.with_mac(mac).next().is_none())
        .await
        .unwrap();
    assert!(gone, "the guest has a device yet: {view:#?}");
}

/// Checks on guest and node that the VF is all that the NIC has, whatever statuses say.
pub async fn check(world: &World, vm: &Vm, nic: &VmHybridNic) -> Result<()> {
    let status = nic.status.as_ref().context("no status")?;
    let mac = status.mac.as_deref().context("no MAC")?;
    let vf = status.vf.as_ref().context("no VF")?;
    ensure!(status.standby.is_none(), "a standby: {:?}", status.standby);
    // The guest's driver comes before its link.
    let up = |view: &NetView| view.with_mac(mac).next().is_some_and(|device| device.carrier);
    let (view, _) = vm.guest.net_when(SOON, up).await?;
    let devices: Vec<&Netdev> = view.with_mac(mac).collect();
    let [device] = devices[..] else {
        anyhow::bail!("not one device: {view:#?}");
    };
    ensure!(
        device.driver.as_deref() == Some("igbvf") && device.carrier && device.master.is_none(),
        "the guest's VF: {device:?}"
    );
    ensure!(
        device.device == status.guest.vf_pci_address,
        "{:?} is not {device:?}",
        status.guest
    );
    let node = world.node(vm.node);
    ensure!(
        node.driver_of(&vf.pci_address).await?.as_deref() == Some("vfio-pci"),
        "the VF's driver"
    );
    let table = node.vfs(&vf.pf).await?;
    let row = table
        .iter()
        .find(|row| i64::from(row.index) == i64::from(vf.index))
        .context("no such VF")?;
    ensure!(row.mac == mac, "the VF's MAC is {}", row.mac);
    let macvtaps = node.macvtaps().await?;
    ensure!(
        macvtaps.iter().all(|macvtap| macvtap.mac != mac),
        "a macvtap has the MAC: {macvtaps:?}"
    );
    Ok(())
}
