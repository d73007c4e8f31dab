//! A hostile guest, or QEMU: what it may not send by its standby stays on the node, a MAC that is not its own gets it nothing, and a
//! descriptor that it keeps costs nobody else anything.

use std::{sync::Arc, time::Duration};

use hybridnic_api::v1alpha1::Path;
use hybridnic_e2e::{
    lab::{Frame, Process},
    world::{NicSpec, Vm, VmSpec, World},
};
use libtest_mimic::Trial;
use tokio::time::{Instant, sleep};

use crate::{
    common::{LATER, SOON, check_fast_path, condition, fast, on, vm_on_fast_path},
    suite::Suite,
};

pub fn tests(suite: &Arc<Suite>) -> Vec<Trial> {
    vec![
        suite.test("a_hostile_guest_gets_nowhere_by_its_standby", async |w| {
            standby(w).await
        }),
        suite.test("a_vf_whose_descriptor_is_kept_comes_back_by_itself", async |w| {
            descriptor(w).await
        }),
    ]
}

/// One VF, so that one NIC has it and the other runs on its standby.
const NETWORK: &str = "
apiVersion: hybridnic.io/v1alpha1
kind: HybridNetwork
metadata: {name: narrow}
spec:
  uplinks:
  - pciAddresses: [\"0000:01:00.0\"]
    numVfs: 7
    vfs: [\"0\"]
  rate: {maxMbps: 100}
  macRange: {from: \"52:54:00:77:00:00\", to: \"52:54:00:77:ff:ff\"}
";

/// On the same card.
const VLAN: &str = "
apiVersion: hybridnic.io/v1alpha1
kind: HybridNetwork
metadata: {name: blue}
spec:
  uplinks:
  - pciAddresses: [\"0000:01:00.0\"]
  vlan: {id: 42}
";

/// The MAC of a station that is not there, or is somebody else's.
const OTHER: &str = "52:54:00:66:66:66";
/// Between two looks at what tells of no change.
const LOOK: Duration = Duration::from_millis(200);
/// Where a bridge listens for others.
const BRIDGES: &str = "01:80:c2:00:00:00";

async fn standby(world: &World) {
    world.apply(NETWORK).await.unwrap();
    let spec = VmSpec::new("hostile", &[NicSpec::new(4, 59), NicSpec::new(5, 59)]);
    let vm = world.start_vm(&spec, "hostile-a", 1, false).await.unwrap();
    world.apply(&spec.nic_yaml(0, "narrow")).await.unwrap();
    let first = fast(world, "hostile-0").await.unwrap();
    check_fast_path(world, &vm, &first).await.unwrap();
    world.apply(&spec.nic_yaml(1, "narrow")).await.unwrap();
    let nic = world
        .until_nic("hostile-1", LATER, "on standby", |n| on(n, Path::Standby))
        .await
        .unwrap();
    let macvtap = nic.status.unwrap().standby.unwrap().macvtap;
    let rules = format!("tc filter show dev {macvtap} egress; tc filter show dev {macvtap} ingress");
    let rules = world.node(1).run(&rules, SOON).await.unwrap();
    assert!(
        rules.contains("police") && rules.contains("rate 100Mbit"),
        "{rules}"
    );

    let attacker = Attacker {
        world,
        vm: &vm,
        spec: &spec,
    };
    // It does send what is its own: what follows is stopped, and not merely not sent.
    let own = attacker.sends("", "02:00:00:00:00:fe").await;
    assert_eq!(own.len(), 20, "{own:?}");
    let on_top = |kind: &str, net: u8| {
        format!(
            "ip link add link $dev name top {kind}; ip addr add 10.99.{net}.1/24 dev top; ip link set top up; dev=top; \
             peer=10.99.{net}.2;"
        )
    };
    let tagged = on_top("type vlan id 42", 0);
    let others = format!(
        "ip link del top; {}",
        on_top(&format!("address {OTHER} type macvlan"), 1)
    );
    let attacks = [
        ("a frame for bridges", String::new(), BRIDGES),
        ("a frame with a tag", tagged, "02:00:00:00:00:fe"),
        ("another's MAC", others, "02:00:00:00:00:fe"),
    ];
    for (attack, prepare, to) in attacks {
        let frames = attacker.sends(&prepare, to).await;
        assert_eq!(frames, [], "{attack} has left the card");
    }

    // The network gets another rate: the filters are replaced, and what may pass does.
    let faster = r#"{"spec":{"rate":{"maxMbps":50}}}"#;
    world
        .kubectl(&["patch", "hnet", "narrow", "--type=merge", "-p", faster])
        .await
        .unwrap();
    // The kernel tells nobody here of filters.
    let replaced = format!(
        "until tc filter show dev {macvtap} egress >/tmp/rules; grep -q 'rate 50Mbit' /tmp/rules && \
         ! grep -q 'rate 100Mbit' /tmp/rules; do sleep 0.1; done"
    );
    world.node(1).run(&replaced, SOON).await.unwrap();
    let own = attacker.sends("ip link del top;", "02:00:00:00:00:fe").await;
    assert_eq!(own.len(), 20, "{own:?}");

    // A network with a VLAN comes to the card: it is a trunk now, and an untagged network gets no VF there any more.
    world.apply(VLAN).await.unwrap();
    world
        .until_node(1, SOON, "with a trunk", |n| {
            let pools = n.status.iter().flat_map(|s| &s.pools);
            let mut narrow = pools.filter(|pool| pool.network == "narrow");
            narrow.any(|pool| pool.message.contains("the network blue, which has a VLAN"))
        })
        .await
        .unwrap();
    world
        .kubectl(&["delete", "hnet", "blue", "--timeout=60s"])
        .await
        .unwrap();

    // QEMU has the macvtap's descriptor, and may give it another's MAC without any capability.
    for name in ["hostile-1", "hostile-0"] {
        let standby = world.nic(name).await.unwrap().status.unwrap().standby.unwrap();
        let steal = format!("ip link set {} address {OTHER}", standby.macvtap);
        world.node(1).run(&steal, SOON).await.unwrap();
        world
            .until_nic(name, SOON, "without its standby", |n| {
                condition(n, "Ready") == "StandbySeized"
            })
            .await
            .unwrap();
        let flags = format!("ip -o link show {}", standby.macvtap);
        let link = world.node(1).run(&flags, SOON).await.unwrap();
        assert!(!link.contains(",UP") && !link.contains("<UP"), "{link}");
    }
    let still = world.nic("hostile-0").await.unwrap();
    assert!(on(&still, Path::FastPath), "{:#?}", still.status);
    let events = ["get", "events.events.k8s.io", "-o", "jsonpath={.items[*].reason}"];
    let events = world.kubectl(&events).await.unwrap();
    assert!(events.contains("StandbySeized"), "{events}");
}

struct Attacker<'a> {
    world: &'a World,
    vm: &'a Vm,
    spec: &'a VmSpec,
}

impl Attacker<'_> {
    /// What it has sent, as seen on the wire, after `prepare`, to a peer of this MAC.
    async fn sends(&self, prepare: &str, to: &str) -> Vec<Frame> {
        let mac = &self.spec.nics[1].mac;
        let filter = format!("ether src {mac} or ether src {OTHER}");
        let wire = self.world.lab.capture(1, 0, &filter).await.unwrap();
        let [a, b, c, _] = self.spec.nics[1].address.octets();
        let send = format!(
            "peer={a}.{b}.{c}.77; {prepare} ip neigh replace $peer lladdr {to} dev $dev nud permanent; \
             ping -c 20 -i 0.1 -W 1 $peer >/dev/null; [ $? = 1 ]"
        );
        self.run(&send).await;
        let frames = wire.stop().unwrap();
        // What the guest asks by itself, such as for its neighbours, is no part of it.
        frames.into_iter().filter(|f| f.destination == to).collect()
    }

    async fn run(&self, script: &str) {
        let address = self.spec.nics[1].address;
        // The guest gives a new device its address, then sets it up, and tells nobody; it gives the address to what is stacked on the
        // device too, which comes later.
        let dev = format!(
            "until dev=$(ip -o -4 addr | sed -n 's/^[0-9]*: *\\([^ ]*\\) .* inet {address}[/].*/\\1/p' | head -n 1); \
             [ -n \"$dev\" ] && ip -o link show $dev | grep -q LOWER_UP; do sleep 0.1; done; "
        );
        self.vm.guest.run(&(dev + script), SOON).await.unwrap();
    }
}

/// A QEMU that a guest has taken over gives its VF's descriptor to somebody, and says that it has closed it.
async fn descriptor(world: &mut World) {
    let clean = world.footprint(1).await.unwrap();
    let spec = VmSpec::new("keeper", &[NicSpec::new(6, 61), NicSpec::new(7, 61)]);
    let vm = vm_on_fast_path(world, &spec, "keeper-a", 1, "fast")
        .await
        .unwrap();
    let other = world.nic("keeper-1").await.unwrap();
    let vf = keep(world, &vm).await;
    is_stuck(world, "VfInUse").await;
    assert_eq!(
        world.node(1).driver_of(&vf.address).await.unwrap().as_deref(),
        Some("vfio-pci"),
        "its driver was asked to let go of it"
    );
    check_fast_path(world, &vm, &other).await.unwrap();
    // The agent is restarted: vfio says that what its predecessor has handed out is open.
    let log = world.node(1).dir().join("agent.log");
    let refused = || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        log.matches("a process keeps the descriptor").count()
    };
    world.kill_agent(1).await.unwrap();
    let before = refused();
    world.start_agent(1).await.unwrap();
    let end = Instant::now() + SOON;
    while refused() == before {
        assert!(Instant::now() < end, "the agent does not try again");
        sleep(LOOK).await;
    }
    vf.let_go(world, "").await;

    // Somebody has opened the VF's own node, and has bound it to nothing: neither the watch nor vfio knows. So its driver is asked, which hangs, deaf
    // to kill; and the next agent knows.
    world.apply(&spec.nic_yaml(0, "fast")).await.unwrap();
    fast(world, "keeper-0").await.unwrap();
    let vf = open(world).await;
    let calls = "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q '^hybridnic-call .*setDriver' && \
                 echo ${p#/proc/}; done; true";
    let hangs = format!("until pid=$({calls} | head -n 1); [ -n \"$pid\" ]; do sleep 0.1; done; echo $pid");
    let pid = world.node(1).run(&hangs, SOON).await.unwrap();
    world.kill_agent(1).await.unwrap();
    let killed = format!(
        "kill -9 {0}; until grep -q ' D ' /proc/{0}/stat; do sleep 0.1; done",
        pid.trim()
    );
    world.node(1).run(&killed, SOON).await.unwrap();
    world.start_agent(1).await.unwrap();
    is_stuck(world, "DeviceHung").await;
    let told = world
        .until_node(1, SOON, "with a device that hangs", |n| {
            let conditions = n.status.iter().flat_map(|s| &s.conditions);
            let mut degraded = conditions.filter(|c| c.type_ == "Degraded");
            degraded.any(|c| c.reason == "DeviceHung" && c.message.contains("an earlier agent"))
        })
        .await;
    told.unwrap();
    assert_eq!(
        world.node(1).run(calls, SOON).await.unwrap().trim(),
        pid.trim(),
        "nothing is asked a second time"
    );
    check_fast_path(world, &vm, &other).await.unwrap();
    vf.let_go(world, pid.trim()).await;

    world
        .kubectl(&["delete", "vhn", "keeper-1", "--timeout=60s"])
        .await
        .unwrap();
    world.until_footprint(1, &clean).await.unwrap();
}

/// A VF whose descriptor somebody keeps.
struct Kept {
    address: String,
    by: Process,
}

/// The first NIC is deleted, and somebody keeps what its QEMU was given.
async fn keep(world: &World, vm: &Vm) -> Kept {
    let pid = vm.guest.qemu().pid();
    let keeper = |address: &str| format!("exec /host/lab-exec keep {pid} /dev/hybridnic/{address}.");
    held(world, keeper).await
}

/// The first NIC is deleted, and somebody has opened its VF as well.
async fn open(world: &World) -> Kept {
    let opener = |address: &str| {
        let name = format!("$(ls /sys/bus/pci/devices/{address}/vfio-dev)");
        format!("exec 7<>/dev/vfio/devices/{name} && echo kept 1 && sleep 600")
    };
    held(world, opener).await
}

async fn held(world: &World, by: impl Fn(&str) -> String) -> Kept {
    let nic = world.nic("keeper-0").await.unwrap().status.unwrap();
    let address = nic.vf.unwrap().pci_address;
    let script = by(&address);
    let argv = ["sh", "-c", &script];
    // A log for each: one that has ended has said the same.
    let log = format!("keeper-{}", script.len());
    let by = world.node(1).spawn(&argv, &[], &log).await.unwrap();
    assert!(by.logged("kept 1", SOON).await.unwrap(), "{:?}", by.read_log());
    world
        .kubectl(&["delete", "vhn", "keeper-0", "--wait=false"])
        .await
        .unwrap();
    Kept { address, by }
}

/// The first NIC's attachment says why it does not go.
async fn is_stuck(world: &World, reason: &str) {
    let end = Instant::now() + SOON;
    loop {
        let all = world.attachments().await.unwrap();
        let said = all
            .iter()
            .filter(|a| a.spec.nic.name == "keeper-0")
            .flat_map(|a| &a.status)
            .flat_map(|status| &status.conditions)
            .map(|c| (c.type_.clone(), c.reason.clone(), c.message.clone()))
            .collect::<Vec<_>>();
        if said.iter().any(|(type_, r, _)| type_ == "Ready" && r == reason) {
            return;
        }
        assert!(Instant::now() < end, "not {reason}: {said:?}");
        sleep(LOOK).await;
    }
}

impl Kept {
    /// Who keeps it ends, and the VF is given back without anybody doing anything. So has the process that hung, if there was one.
    async fn let_go(self, world: &World, hung: &str) {
        self.by.kill(SOON).await.unwrap();
        world
            .kubectl(&["wait", "--for=delete", "vhn/keeper-0", "--timeout=60s"])
            .await
            .unwrap();
        let driver = world.node(1).driver_of(&self.address).await.unwrap();
        assert_ne!(driver.as_deref(), Some("vfio-pci"));
        let left = "ls /dev/hybridnic | wc -l";
        // That of the other NIC.
        assert_eq!(world.node(1).run(left, SOON).await.unwrap().trim(), "1");
        if !hung.is_empty() {
            let gone = format!("[ ! -e /proc/{hung} ]");
            world.node(1).run(&gone, SOON).await.unwrap();
        }
    }
}
