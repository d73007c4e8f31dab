//! What becomes of a node's cards under a VM: renamed, with another MTU, without link.

use std::{pin::pin, sync::Arc, time::Duration};

use hybridnic_api::{
    conditions::{self, reasons, types},
    v1alpha1::{HybridNode, MigrationPhase, NicAttachment, Path, VmHybridNic, VmHybridNicStatus},
};
use hybridnic_e2e::{
    lab::Node,
    world::{NETWORK, NicSpec, Vm, VmSpec, World},
};
use libtest_mimic::Trial;
use tokio::time::{Instant, sleep};

use crate::{
    common::{
        LATER, RESERVED, SOON, check_fast_path, check_vf, condition, ended, fast, fast_on, migration, on,
        phase, times, until_said, vm_on_fast_path, watch, watched, watched_with,
    },
    suite::Suite,
};

pub fn tests(suite: &Arc<Suite>) -> Vec<Trial> {
    vec![
        suite.test("a_pf_is_renamed_has_another_mtu_and_loses_its_link", async |w| {
            cards(w).await
        }),
    ]
}

/// The life of one VM: on node 1 its PF is renamed and has another MTU, on node 2 it loses its link.
async fn cards(world: &mut World) {
    let spec = VmSpec::new("vm", &[NicSpec::new(0, 60)]);
    let clean = [
        world.footprint(1).await.unwrap(),
        world.footprint(2).await.unwrap(),
    ];
    let first = vm_on_fast_path(world, &spec, "vm-a", 1, "fast").await.unwrap();
    let nic = fast(world, "vm-0").await.unwrap().status.unwrap();
    let card = card_of(world.node(1), &nic).await;
    let name = nic.vf.clone().unwrap().pf;
    let pinger = watch(&world.lab, spec.nics[0].address, 50).await;

    let nic = renamed(world, &first, &name, "uplink1").await;
    another_mtu(world, &first, &nic).await;
    world.kill_agent(1).await.unwrap();
    rename(world.node(1), "uplink1", "uplink2").await;
    world.start_agent(1).await.unwrap();
    is_named(world, &first, &nic, "uplink2").await;

    // Of two PFs the one without link is chosen last, though nothing else is on it.
    let [last, chosen] = [0, 1].map(Node::pf_address);
    let down = format!("ip link set $(ls /sys/bus/pci/devices/{last}/net) down");
    world.node(2).run(&down, SOON).await.unwrap();
    let second = moved(world, &spec, "there", "vm-b", 2).await;
    let up = format!("ip link set $(ls /sys/bus/pci/devices/{last}/net) up");
    world.node(2).run(&up, SOON).await.unwrap();
    world.until_footprint(1, &clean[0]).await.unwrap();
    // The VF that was given back may have taken the name that was free, or be about to.
    let back = format!("until ip link set uplink2 name {name}; do ip link set {name} name {name}v; done");
    world.node(1).run(&back, SOON).await.unwrap();
    assert_eq!(world.node(1).netdev_of(&card).await.unwrap(), Some(name));
    let nic = world.nic("vm-0").await.unwrap().status.unwrap();
    assert_eq!(card_of(world.node(2), &nic).await, chosen);
    watched(pinger).await;

    without_link(world, &second, [&chosen, &last]).await;

    let pinger = watch(&world.lab, spec.nics[0].address, 50).await;
    let third = moved(world, &spec, "back", "vm-c", 1).await;
    world.until_footprint(2, &clean[1]).await.unwrap();
    watched(pinger).await;
    world
        .kubectl(&["delete", "vhn", "vm-0", "--timeout=60s"])
        .await
        .unwrap();
    world.until_footprint(1, &clean[0]).await.unwrap();
    drop(third);
}

/// PCI address of the card that a NIC's VF is of.
async fn card_of(node: &Node, nic: &VmHybridNicStatus) -> String {
    let vf = &nic.vf.as_ref().unwrap().pci_address;
    let find = format!("basename $(readlink /sys/bus/pci/devices/{vf}/physfn)");
    node.run(&find, SOON).await.unwrap().trim().to_owned()
}

async fn rename(node: &Node, from: &str, to: &str) {
    node.run(&format!("ip link set {from} name {to}"), SOON)
        .await
        .unwrap();
}

/// Renames a PF under a NIC: it keeps its VF, and says the new name.
async fn renamed(world: &World, vm: &Vm, from: &str, to: &str) -> VmHybridNicStatus {
    let before = world.nic("vm-0").await.unwrap().status.unwrap();
    rename(world.node(vm.node), from, to).await;
    is_named(world, vm, &before, to).await
}

async fn is_named(world: &World, vm: &Vm, before: &VmHybridNicStatus, name: &str) -> VmHybridNicStatus {
    let pf = |nic: &VmHybridNicStatus| nic.vf.as_ref().map(|vf| vf.pf.clone());
    let named = |nic: &VmHybridNic| nic.status.as_ref().and_then(pf).as_deref() == Some(name);
    let nic = world
        .until_nic("vm-0", SOON, "on the PF by its new name", named)
        .await
        .unwrap();
    assert!(on(&nic, Path::FastPath), "{:#?}", nic.status);
    until_fast_path(world, vm, &nic).await;
    let now = nic.status.unwrap();
    let vf = |nic: &VmHybridNicStatus| nic.vf.as_ref().map(|vf| vf.pci_address.clone());
    assert_eq!(
        (vf(before), &before.guest),
        (vf(&now), &now.guest),
        "it was plugged again"
    );
    now
}

/// A card resets itself to take another MTU, and the guest's driver finds its link again some seconds later.
async fn until_fast_path(world: &World, vm: &Vm, nic: &VmHybridNic) {
    let end = Instant::now() + SOON;
    while let Err(error) = check_fast_path(world, vm, nic).await {
        assert!(Instant::now() < end, "{error:#}");
        sleep(Duration::from_millis(200)).await;
    }
}

/// A PF with a smaller MTU takes the standby with it, and gives it back. The NIC does nothing else.
async fn another_mtu(world: &World, vm: &Vm, nic: &VmHybridNicStatus) {
    let node = world.node(vm.node);
    let (pf, tap) = (
        &nic.vf.as_ref().unwrap().pf,
        &nic.standby.as_ref().unwrap().macvtap,
    );
    let events = async || {
        let attachments: Vec<NicAttachment> = world.attachments().await.unwrap();
        let timeline = attachments
            .into_iter()
            .filter_map(|a| a.status)
            .flat_map(|s| s.timeline);
        timeline.map(|entry| entry.event).collect::<Vec<_>>()
    };
    let before = events().await;
    for mtu in [1400, 1500] {
        let set = format!(
            "ip link set {pf} mtu {mtu} && until [ $(cat /sys/class/net/{tap}/mtu) = {mtu} ]; do sleep 0.1; done"
        );
        node.run(&set, SOON).await.unwrap();
    }
    let settled = |nic: &VmHybridNic| condition(nic, "FastPath") == reasons::VF_ACTIVE;
    let nic = world.until_nic("vm-0", SOON, "settled", settled).await.unwrap();
    until_fast_path(world, vm, &nic).await;
    let after = events().await;
    let more: Vec<_> = after.iter().skip(before.len()).collect();
    assert!(
        more.iter().all(|event| *event == "RaiseMtu"),
        "{more:?} since {before:?}"
    );
}

async fn moved(world: &World, spec: &VmSpec, name: &str, pod: &str, to: usize) -> Vm {
    let target = world.start_vm(spec, pod, to, true).await.unwrap();
    world.apply(&migration(name, "vm", pod)).await.unwrap();
    let done = ended(world, name).await.unwrap();
    assert_eq!(phase(&done), MigrationPhase::Succeeded, "{:#?}", done.status);
    let nic = fast_on(world, "vm-0", to).await.unwrap();
    check_fast_path(world, &target, &nic).await.unwrap();
    target
}

/// How much longer than IPv4 its neighbours may be away after a long time without link.
const BESIDE: Duration = Duration::from_secs(3);
/// How long a NIC is watched that is to stay on a VF without link: others leave after three seconds.
const STAYS: Duration = Duration::from_secs(6);

/// The cable of the VM's card is pulled: the NIC says so, and stays for as long as its network says that; then it goes to the other card,
/// though its agent dies on the way.
async fn without_link(world: &mut World, vm: &Vm, [card, other]: [&str; 2]) {
    let node = world.node(vm.node).clone();
    let pf = u8::from(card == Node::pf_address(1));
    let address = vm.guest.spec().nics[0]
        .cidr
        .split('/')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let mac = &vm.guest.spec().nics[0].mac;
    let pinger = watch(&world.lab, address, 50).await;
    let elsewhere = node.netdev_of(other).await.unwrap();

    on_link_loss(world, "Stay").await;
    node.set_cable(pf, false).await.unwrap();
    let told = |nic: &VmHybridNic| {
        let fast_path = conditions::find(&nic.status.as_ref().unwrap().conditions, types::FAST_PATH);
        on(nic, Path::FastPath)
            && fast_path
                .is_some_and(|c| c.reason == reasons::PF_LINK_DOWN && c.message.contains("onLinkLoss: Stay"))
    };
    world.until_nic("vm-0", SOON, "without link", told).await.unwrap();
    let leaves = |nic: &VmHybridNic| !told(nic);
    let left = world.until_nic("vm-0", STAYS, "off its VF", leaves).await;
    left.expect_err("it has left, though its network says Stay");

    let reserved = times(world, vm.node, RESERVED);
    let moves = async {
        on_link_loss(world, "Move").await;
        until_said(world, vm.node, RESERVED, reserved).await;
        world.restart_agent(vm.node).await.unwrap();
        let there = |nic: &VmHybridNic| {
            let vf = nic.status.as_ref().and_then(|status| status.vf.as_ref());
            on(nic, Path::FastPath)
                && condition(nic, "FastPath") == reasons::VF_ACTIVE
                && vf.map(|vf| &vf.pf) == elsewhere.as_ref()
        };
        world
            .until_nic("vm-0", LATER, "on the other card", there)
            .await
            .unwrap()
    };
    let mut looks = Vec::new();
    let nic = {
        let mut moves = pin!(moves);
        loop {
            tokio::select! {
                nic = &mut moves => break nic,
                look = live_on(&node, mac, [other, card]) => looks.push(look),
            }
        }
    };
    looks.push(live_on(&node, mac, [other, card]).await);
    eprintln!("{} looks at both cards", looks.len());
    assert_eq!(
        (looks.first(), looks.last()),
        (Some(&[false, true]), Some(&[true, false]))
    );
    assert!(
        !looks.contains(&[true, true]),
        "the MAC is on both cards: {looks:?}"
    );
    check_vf(&node, &vm.guest, &nic).await.unwrap();
    let split = nic.status.unwrap();
    assert_ne!(
        split.vf.unwrap().pf,
        split.standby.unwrap().pf,
        "the standby has moved too"
    );
    assert!(pinger.answered(50, SOON).await, "no answer by the other card");

    // Its link comes back: its VFs may be used again, and the NIC stays where it is for a while (see `drain`).
    node.set_cable(pf, true).await.unwrap();
    let back = |node: &HybridNode| node.status.as_ref().is_some_and(|s| s.vfs.free == 13);
    world
        .until_node(vm.node, SOON, "with 13 free VFs", back)
        .await
        .unwrap();
    let nic = world.nic("vm-0").await.unwrap();
    check_vf(&node, &vm.guest, &nic).await.unwrap();
    for gap in &watched_with(pinger, BESIDE).await.round_trip.gaps {
        eprintln!("gap of {:?}, {} lost", gap.length, gap.lost);
    }
}

async fn on_link_loss(world: &World, what: &str) {
    let patch = format!(r#"{{"spec": {{"onLinkLoss": "{what}"}}}}"#);
    world
        .kubectl(&["patch", "hnet", NETWORK, "--type", "merge", "-p", &patch])
        .await
        .unwrap();
}

/// On which cards a MAC is live, by a VF or by a macvtap that is up. The card that it goes to is looked at first: if it is
/// there, it must not be on the one that it has left, which is looked at then.
async fn live_on(node: &Node, mac: &str, cards: [&str; 2]) -> [bool; 2] {
    let [to, from] = cards;
    let look = format!(
        "for pf in {to} {from}; do n=$(ls /sys/bus/pci/devices/$pf/net); \
           ip link show dev $n | grep -qi 'vf .*{mac}' && echo $pf; \
           ip -br link show up type macvtap | grep -qi '@'$n' .*{mac}' && echo $pf; done; true"
    );
    let live = node.run(&look, SOON).await.unwrap();
    cards.map(|pf| live.lines().any(|line| line == pf))
}
