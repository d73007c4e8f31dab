//! What the lab's tests share.

#![allow(dead_code, reason = "each test binary uses some of it")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

use std::{
    any::Any,
    fs,
    net::Ipv4Addr,
    panic::{AssertUnwindSafe, resume_unwind},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures::FutureExt as _;
use hybridnic_api::v1alpha1::{MigrationPhase, NicPhase, Path, QemuMigration, VmHybridNic};
use hybridnic_e2e::{
    cluster::Cluster,
    lab::{Inside, Lab, NetView, Netdev, Node, Pinger, Report},
    precedence::Precedence,
    world::{Fault, Vm, VmSpec, World},
};

/// For what takes a moment.
pub const SOON: Duration = Duration::from_mins(1);
/// For what a guest must boot, or a VM must move for.
pub const LATER: Duration = Duration::from_mins(2);
/// For a whole test.
const WHOLE: Duration = Duration::from_mins(15);
/// How many times a failure that is proven to be the emulation's costs a test no try.
const FORGIVEN: usize = 2;

/// Runs a test as long as it may take, and only while its machines live: on a dead one a wait would never end.
pub async fn whole(test: impl Future<Output = ()>, dead: impl Future<Output = impl std::fmt::Display>) {
    whole_within(WHOLE, test, dead).await;
}

/// The same of a test that may take longer.
pub async fn whole_within(
    may_take: Duration,
    test: impl Future<Output = ()>,
    dead: impl Future<Output = impl std::fmt::Display>,
) {
    tokio::select! {
        over = tokio::time::timeout(may_take, test) => over.expect("it is over by now"),
        what = dead => panic!("{what}"),
    }
}

/// Runs a test on a cluster, and keeps its programs' logs if it fails.
pub async fn on_cluster(cluster: &mut Cluster, test: impl AsyncFnOnce(&mut Cluster)) {
    if let Err(why) = AssertUnwindSafe(test(&mut *cluster)).catch_unwind().await {
        cluster.keep_evidence().await;
        let reset = cluster.find_reset().map(|fault| fault.to_string());
        let node_lost = Some(said(&*why)).filter(|why| Fault::is_emulations_by(why));
        if let Some(fault) = reset.or_else(|| node_lost.map(str::to_owned)) {
            eprintln!("RESET: {fault}");
            resume_unwind(Box::new(fault));
        }
        resume_unwind(why);
    }
}

/// Runs something under a name and, if it fails, once more under another one, so that the logs of the first try stay. A failure that is
/// proven to be the emulation's costs no try, [`FORGIVEN`] times. In the lab's second run what is started once more gets the first one's priority.
pub async fn twice(name: &str, attempt: impl AsyncFn(&str)) {
    let (mut failures, mut forgiven) = (0, 0);
    let mut precedence = None;
    for nth in 1.. {
        let this = if nth == 1 {
            name.to_owned()
        } else {
            format!("{name}-{nth}")
        };
        let Err(why) = AssertUnwindSafe(attempt(&this)).catch_unwind().await else {
            return;
        };
        let reason = said(&*why);
        if Fault::is_emulations_by(reason) && forgiven < FORGIVEN {
            forgiven += 1;
        } else {
            failures += 1;
        }
        let reason = reason.lines().next().unwrap_or_default().to_owned();
        if failures == 2 {
            resume_unwind(why);
        }
        eprintln!("AGAIN: {name} has failed, see above; it is started once more: {reason}");
        precedence.get_or_insert_with(Precedence::take);
    }
}

/// What a panic says.
fn said(why: &(dyn Any + Send)) -> &str {
    let text = why.downcast_ref::<&str>().copied();
    text.or_else(|| why.downcast_ref::<String>().map(String::as_str))
        .unwrap_or_default()
}

/// Whether a NIC's traffic runs so.
pub fn on(nic: &VmHybridNic, path: Path) -> bool {
    nic.status.as_ref().is_some_and(|s| {
        s.path == path
            && matches!(
                (path, s.phase),
                (Path::FastPath, NicPhase::FastPath) | (Path::Standby, NicPhase::Standby)
            )
    })
}

/// Reason of a NIC's condition.
pub fn condition(nic: &VmHybridNic, type_: &str) -> String {
    let conditions = nic
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    hybridnic_api::conditions::find(conditions, type_)
        .map(|c| c.reason.clone())
        .unwrap_or_default()
}

/// How much longer than IPv4 IPv6 and multicast may be away: they ask less often.
const SLACK: Duration = Duration::from_secs(1);

/// Starts to watch a NIC's traffic: IPv4, IPv6, and multicast.
pub async fn watch(lab: &Lab, address: Ipv4Addr, rate: u32) -> Pinger {
    let pinger = lab.pinger(address, rate).unwrap();
    assert!(pinger.answered(20, SOON).await, "no answer");
    assert!(
        pinger.answered_beside(10, SOON).await,
        "no answer by IPv6, or none of the group: {:#?}",
        pinger.report()
    );
    pinger
}

/// Ends it. IPv6 and multicast were there whenever IPv4 was.
pub async fn watched(pinger: Pinger) -> Report {
    watched_with(pinger, SLACK).await
}

/// The same, if they may be away this much longer.
pub async fn watched_with(pinger: Pinger, slack: Duration) -> Report {
    assert!(
        pinger.answered_beside(10, SOON).await,
        "no answer by IPv6, or none of the group, after all"
    );
    let report = pinger.stop().await;
    for (name, stream) in [("IPv6", &report.ipv6), ("multicast", &report.multicast)] {
        for gap in &stream.gaps {
            eprintln!("{name}: gap of {:?}, {} lost", gap.length, gap.lost);
        }
    }
    report.beside(slack).unwrap();
    report
}

/// Waits until a NIC is on its fast path.
pub async fn fast(world: &World, nic: &str) -> Result<VmHybridNic> {
    world
        .until_nic(nic, LATER, "on the fast path", |n| on(n, Path::FastPath))
        .await
}

/// Waits until a NIC is on its fast path on node number `node`, as after a migration.
pub async fn fast_on(world: &World, nic: &str, node: usize) -> Result<VmHybridNic> {
    let name = world.node(node).name();
    let there = |n: &VmHybridNic| {
        on(n, Path::FastPath)
            && n.status
                .as_ref()
                .is_some_and(|s| s.node_name.as_deref() == Some(name))
    };
    world
        .until_nic(nic, LATER, &format!("on the fast path on {name}"), there)
        .await
}

/// How often a node's agent has said this.
pub fn times(world: &World, node: usize, text: &str) -> usize {
    let log = world.node(node).dir().join("agent.log");
    fs::read_to_string(log).unwrap_or_default().matches(text).count()
}

/// What an agent says as it writes down a VF that it takes. Nothing is done to the VF yet.
pub const RESERVED: &str = "VF reserved";

/// Waits until a node's agent has said this more often than `before`. It reports what its steps lead to and not each step, so its log is
/// read again and again.
pub async fn until_said(world: &World, node: usize, text: &str, before: usize) {
    let end = tokio::time::Instant::now() + LATER;
    while times(world, node, text) <= before {
        assert!(tokio::time::Instant::now() < end, "no agent says {text:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// YAML of a migration.
pub fn migration(name: &str, vm: &str, pod: &str) -> String {
    format!(
        "apiVersion: hybridnic.io/v1alpha1\nkind: QemuMigration\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{vm: {vm}, targetPod: {pod}}}\n"
    )
}

/// Where a migration is.
pub fn phase(migration: &QemuMigration) -> MigrationPhase {
    migration.status.as_ref().map(|s| s.phase).unwrap_or_default()
}

/// Waits until a migration has ended, and says how.
pub async fn ended(world: &World, name: &str) -> Result<QemuMigration> {
    world
        .until_migration(name, LATER, "over", |m| phase(m).is_final())
        .await
}

/// A VM of more NICs than this gets no traffic while it starts: that many streams would be dear.
const BUSY: usize = 3;

/// Starts a VM with its NICs on a node, each on its fast path.
pub async fn vm_on_fast_path(
    world: &World,
    spec: &VmSpec,
    pod: &str,
    node: usize,
    network: &str,
) -> Result<Vm> {
    let vm = world.start_vm(spec, pod, node, false).await?;
    let yaml: String = (0..spec.nics.len()).map(|i| spec.nic_yaml(i, network)).collect();
    // Of a guest that sends nothing the agent knows only after five seconds that it has moved to its VF.
    let busy = if spec.nics.len() <= BUSY { &*spec.nics } else { &[] };
    let _traffic: Vec<_> = busy
        .iter()
        .map(|nic| world.lab.pinger(nic.address, 50))
        .collect::<Result<_, _>>()?;
    world.apply(&yaml).await?;
    for index in 0..spec.nics.len() {
        fast(world, &spec.nic_name(index)).await?;
    }
    Ok(vm)
}

/// The three devices of a NIC in the guest, by net_failover or by a bond.
pub fn trio<'a>(view: &'a NetView, mac: &str) -> Result<(&'a Netdev, &'a Netdev, Option<&'a Netdev>)> {
    let failover = view
        .failover(mac)
        .or_else(|| view.bond(mac))
        .context("the guest has made neither failover device nor bond")?;
    Ok((failover.master, failover.standby, failover.primary))
}

/// Checks on guest and node that a NIC is on its fast path as it should be, no matter what statuses say.
pub async fn check_fast_path(world: &World, vm: &Vm, nic: &VmHybridNic) -> Result<()> {
    check_nic(world.node(vm.node), &vm.guest, nic).await
}

/// The same, for any node and guest.
pub async fn check_nic(node: &Node, guest: &Inside, nic: &VmHybridNic) -> Result<()> {
    check_vf(node, guest, nic).await?;
    let status = nic.status.as_ref().context("no status")?;
    let (vf, standby) = status
        .vf
        .as_ref()
        .zip(status.standby.as_ref())
        .context("no VF or standby")?;
    ensure!(standby.pf == vf.pf, "standby on {}, VF on {}", standby.pf, vf.pf);
    Ok(())
}

/// The same, also where VF and standby are on two PFs.
pub async fn check_vf(node: &Node, guest: &Inside, nic: &VmHybridNic) -> Result<()> {
    let status = nic.status.as_ref().context("no status")?;
    let mac = status.mac.as_deref().context("no MAC")?;
    let vf = status.vf.as_ref().context("no VF")?;
    let view = guest.net().await?;
    let (_, _, primary) = trio(&view, mac)?;
    let primary = primary.context("no VF is paired in the guest")?;
    ensure!(
        primary.driver.as_deref() == Some("igbvf") && primary.carrier,
        "the guest's VF: {primary:?}"
    );
    let guest_address = status
        .guest
        .vf_pci_address
        .clone()
        .context("no guest address of the VF")?;
    ensure!(
        primary.device.as_deref() == Some(&guest_address),
        "{guest_address} is not {primary:?}"
    );
    ensure!(
        node.driver_of(&vf.pci_address).await?.as_deref() == Some("vfio-pci"),
        "the VF's driver"
    );
    let table = node.vfs(&vf.pf).await?;
    let row = table
        .iter()
        .find(|r| i64::from(r.index) == i64::from(vf.index))
        .context("no such VF")?;
    ensure!(row.mac == mac, "the VF's MAC is {}", row.mac);
    let macvtaps = node.macvtaps().await?;
    let standby = status.standby.as_ref().context("no standby")?;
    let macvtap = macvtaps
        .iter()
        .find(|m| m.name == standby.macvtap && m.mac == mac)
        .context("no macvtap of this MAC")?;
    ensure!(!macvtap.up, "the macvtap at rest: {macvtap:?}");
    Ok(())
}
