//! Publishes what the node has: in its `HybridNode`, or wherever a [`Publisher`] writes it.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use hybridnic_api::{
    conditions::{self, NewCondition, reasons, types},
    features::AgentFeature,
    v1alpha1::HybridNodeStatus,
};
use hybridnic_net::{
    PciAddress,
    netlink::{LinkEvents, NetlinkError},
    sysfs::Inventory,
    uevent::Uevents,
};
use hybridnic_process::{backoff::Backoff, pace::Pace};
use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};
use tracing::{debug, warn};

use super::{
    concern,
    provision::Provisioner,
    table::{self, Sources, Table},
};
use crate::{error::chain, host::Host, wants::Told};

/// Events of the hardware come in bursts: a PF that gets VFs sends some for each. What they add up to is
/// published once.
const BURST: Duration = Duration::from_millis(200);
/// How many writes may follow each other at once; then there is one a second, because the object is large, and NICs that users make and
/// delete change it.
const WRITES: u32 = 10;
/// See [`WRITES`].
const APART: Duration = Duration::from_secs(1);
/// The pause after a write that failed.
const BACKOFF: Duration = Duration::from_millis(500);
/// The longest pause after a write that failed.
const BACKOFF_CAP: Duration = Duration::from_secs(30);

/// Counts the kernel's events of links and PCI functions that concern the agent. Ends only with an error.
pub async fn watch_hardware(host: Arc<Host>) -> anyhow::Result<()> {
    // Before the first look, so that nothing is missed in between.
    let (events, devices) = (LinkEvents::open()?, Uevents::open()?);
    let warned = |error: NetlinkError| warn!(error = chain(&error), "the links cannot be listed");
    let links = async || host.netlink.links().await.map_err(warned).ok();
    let is_vf = |function| matches!(host.sysfs.physfn(function), Ok(Some(_)));
    concern::follow(events, devices, links, is_vf, |change| {
        if change.devices {
            host.pools.forget_foreign();
        }
        host.hardware_changed();
    })
    .await
}

/// Where it is said what the node has.
pub trait Publisher: Send + Sync {
    /// One try.
    fn publish(&self, status: &HybridNodeStatus) -> impl Future<Output = Told> + Send;

    /// Resolves when what was published is not there any more. Of an object that was made again, its uid tells this.
    fn lost(&mut self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}

/// What is known of the object that says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenNode {
    /// Its uid: one that was made again has no status yet.
    pub uid: Option<String>,
    /// The generation of its spec.
    pub generation: Option<i64>,
}

/// Discovers, creates VFs where asked for, and publishes what has changed, or is not there any more.
/// `first` tells that something was.
pub async fn publish(
    mut to: impl Publisher,
    host: Arc<Host>,
    mut node: watch::Receiver<Option<SeenNode>>,
    first: watch::Sender<bool>,
) {
    let mut hardware = host.hardware.subscribe();
    let mut pools = host.pools.subscribe();
    let mut troubles = host.troubles.subscribe();
    let provisioner = Provisioner::default();
    let mut published: Option<HybridNodeStatus> = None;
    // The object that it is in.
    let mut within = None;
    let mut is_lost = false;
    let mut backoff = Backoff::new(BACKOFF, BACKOFF_CAP);
    let mut pace = Pace::new(WRITES, APART);
    loop {
        tokio::time::sleep(pace.time_left(Instant::now())).await;
        hardware.mark_unchanged();
        pools.mark_unchanged();
        troubles.mark_unchanged();
        let (uid, generation) = match node.borrow_and_update().clone() {
            Some(node) => (node.uid, node.generation),
            None => (None, None),
        };
        let status = match take_inventory(&host, &provisioner).await {
            Ok((inventory, errors)) => {
                build_status(&host, &inventory, &errors, generation, published.as_ref())
            }
            Err(error) => failed(generation, published.as_ref(), &error),
        };
        host.metrics.show_vfs(&status.pfs);
        let mut retry = None;
        if is_lost || within != uid || published.as_ref() != Some(&status) {
            pace.done(Instant::now());
            match to.publish(&status).await {
                Told::Done => {
                    (published, within, is_lost) = (Some(status), uid, false);
                    first.send_replace(true);
                    backoff.reset();
                }
                Told::Failed | Told::Refused => retry = Some(backoff.next_pause()),
            }
        }
        let again = async {
            match retry {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = hardware.changed() => tokio::time::sleep(BURST).await,
            _ = pools.changed() => tokio::time::sleep(BURST).await,
            _ = troubles.changed() => tokio::time::sleep(BURST).await,
            changed = node.changed() => if changed.is_err() { return },
            () = to.lost() => is_lost = true,
            () = again => {}
        }
    }
}

async fn take_inventory(
    host: &Arc<Host>,
    provisioner: &Provisioner,
) -> Result<(Inventory, BTreeMap<PciAddress, String>), String> {
    let inventory = host.inventory().await.map_err(|e| chain(&e))?;
    // What is created comes as a change of the hardware.
    let errors = provisioner.begin(host, &inventory);
    for problem in &inventory.problems {
        debug!(path = %problem.path.display(), problem.reason, "sysfs");
    }
    Ok((inventory, errors))
}

fn build_status(
    host: &Host,
    inventory: &Inventory,
    errors: &BTreeMap<PciAddress, String>,
    generation: Option<i64>,
    old: Option<&HybridNodeStatus>,
) -> HybridNodeStatus {
    let (all_pools, holders, draining) = (host.pools.pools(), host.pools.holders(), host.pools.draining());
    let Table { pfs, pools, vfs } = table::build(&Sources {
        inventory,
        pools: &all_pools,
        holders: &holders,
        foreign: &host.pools.foreign(),
        lent: &host.pools.lent(),
        draining: &draining,
        provision_errors: errors,
    });
    let mut list = old.map(|o| o.conditions.clone()).unwrap_or_default();
    let ready = if pfs.is_empty() {
        NewCondition::no(
            types::READY,
            reasons::NO_UPLINK,
            "the node has no PF that can have VFs",
        )
    } else if is_without_iommu(inventory) {
        NewCondition::no(
            types::READY,
            reasons::NO_IOMMU,
            "none of the node's VFs has an IOMMU group, so none can be passed to a guest: switch the IOMMU on in firmware \
             and kernel (intel_iommu=on); until then NICs run on their standby",
        )
    } else {
        NewCondition::yes(
            types::READY,
            reasons::DISCOVERED,
            "the node's PFs and VFs are published",
        )
    };
    conditions::set(&mut list, generation, Timestamp::now(), ready);
    conditions::set(&mut list, generation, Timestamp::now(), host.troubles.condition());
    match draining.condition(inventory, &all_pools, &holders) {
        Some(condition) => conditions::set(&mut list, generation, Timestamp::now(), condition),
        None => conditions::remove(&mut list, types::DRAINED),
    }
    HybridNodeStatus {
        observed_generation: generation,
        agent_version: Some(env!("CARGO_PKG_VERSION").into()),
        features: AgentFeature::words(),
        pf_count: i32::try_from(pfs.len()).unwrap_or(i32::MAX),
        vfs,
        pools,
        pfs,
        conditions: list,
    }
}

/// The VFs show it: without any, it is not known.
fn is_without_iommu(inventory: &Inventory) -> bool {
    let mut vfs = inventory.pfs.iter().flat_map(|pf| &pf.vfs).peekable();
    vfs.peek().is_some() && vfs.all(|vf| vf.iommu_group.is_none())
}

fn failed(generation: Option<i64>, old: Option<&HybridNodeStatus>, error: &str) -> HybridNodeStatus {
    let mut status = old.cloned().unwrap_or_default();
    let condition = NewCondition::no(
        types::READY,
        reasons::FAILED,
        format!("the node cannot be discovered: {error}"),
    );
    conditions::set(&mut status.conditions, generation, Timestamp::now(), condition);
    status
}
