//! Publishes what the node has in its `HybridNode`, and takes from there which pools it is part of.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::TryStreamExt as _;
use hybridnic_api::{
    conditions::{self, NewCondition, reasons, types},
    names::AGENT_MANAGER,
    v1alpha1::{HybridNode, HybridNodeSpec, HybridNodeStatus},
};
use hybridnic_net::{
    PciAddress,
    netlink::{LinkEvents, NetlinkError},
    sysfs::Inventory,
    uevent::Uevents,
};
use hybridnic_process::{api, backoff::Backoff, pace::Pace, watch::follow};
use jiff::Timestamp;
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    runtime::watcher,
};
use serde_json::json;
use tokio::{sync::watch, time::Instant};
use tracing::{debug, info, warn};

use super::{
    concern,
    provision::Provisioner,
    table::{self, Sources, Table},
};
use crate::{
    error::{chain, is_refusal},
    host::Host,
};

/// Events of the hardware come in bursts: a PF that gets VFs sends some for each. What they add up to is
/// published once.
const BURST: Duration = Duration::from_millis(200);
/// So many writes may follow each other at once, and then there is one a second: the object is large, and NICs that users make and
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

/// The `HybridNode` as it was seen last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenNode {
    /// Its uid: one that was made again has no status yet.
    pub uid: Option<String>,
    /// The generation of its spec.
    pub generation: Option<i64>,
}

/// Keeps the node's pools as its `HybridNode` says; makes that object where it is not there.
pub async fn watch_pools(client: Client, host: Arc<Host>, seen: watch::Sender<Option<SeenNode>>) {
    let api: Api<HybridNode> = Api::all(client);
    let name = host.options.node_name.clone();
    let config = api::watches().fields(&format!("metadata.name={name}"));
    let stream = follow(api.clone(), config);
    futures::pin_mut!(stream);
    ensure(&api, &name).await;
    let mut listing = Listing::default();
    loop {
        match stream.try_next().await {
            Ok(Some(event)) => {
                if listing.is_missing(&event) {
                    // Somebody removed it: it is made again. The pools come back with the operator's next write.
                    ensure(&api, &name).await;
                }
                if let watcher::Event::Apply(node) | watcher::Event::InitApply(node) = event {
                    host.pools.set_pools(&node.spec.pools);
                    seen.send_replace(Some(SeenNode {
                        uid: node.metadata.uid,
                        generation: node.metadata.generation,
                    }));
                }
            }
            Ok(None) => return,
            Err(error) => warn!(%error, "cannot watch the HybridNode; tried again"),
        }
    }
}

/// What a watch of one object says of its being there. While it is broken nobody tells of a deletion: only the list that
/// follows does, by not having the object.
#[derive(Debug, Default)]
struct Listing {
    has_it: bool,
}

impl Listing {
    /// Whether the object is not there, as of this event.
    fn is_missing<K>(&mut self, event: &watcher::Event<K>) -> bool {
        match event {
            watcher::Event::Init => self.has_it = false,
            watcher::Event::InitApply(_) => self.has_it = true,
            watcher::Event::InitDone => return !self.has_it,
            watcher::Event::Apply(_) => {}
            watcher::Event::Delete(_) => return true,
        }
        false
    }
}

/// Makes the object, however long that takes.
async fn ensure(api: &Api<HybridNode>, name: &str) {
    let mut backoff = Backoff::new(BACKOFF, BACKOFF_CAP);
    let object = HybridNode {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        spec: HybridNodeSpec::default(),
        status: None,
    };
    loop {
        match api.create(&PostParams::default(), &object).await {
            Ok(_) => return info!(node = name, "HybridNode created"),
            Err(kube::Error::Api(status)) if status.is_already_exists() => return,
            Err(error) => warn!(%error, "cannot create the HybridNode; tried again"),
        }
        backoff.pause().await;
    }
}

/// Discovers, creates VFs where asked for, and publishes what has changed.
/// `first` tells that something was.
pub async fn publish(
    client: Client,
    host: Arc<Host>,
    mut node: watch::Receiver<Option<SeenNode>>,
    first: watch::Sender<bool>,
) {
    let api: Api<HybridNode> = Api::all(client);
    let mut hardware = host.hardware.subscribe();
    let mut pools = host.pools.subscribe();
    let mut troubles = host.troubles.subscribe();
    let provisioner = Provisioner::default();
    let mut published: Option<HybridNodeStatus> = None;
    // The object that it is in.
    let mut within = None;
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
        if within != uid || published.as_ref() != Some(&status) {
            pace.done(Instant::now());
            match write(&api, &host.options.node_name, &status).await {
                Ok(()) => {
                    (published, within) = (Some(status), uid);
                    first.send_replace(true);
                    backoff.reset();
                }
                Err(error) => {
                    if is_refusal(&error) {
                        warn!(%error, "the API server refuses what the node has; tried again");
                    } else {
                        debug!(%error, "cannot publish the node; tried again");
                    }
                    retry = Some(backoff.next_pause());
                }
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
    let Table { pfs, pools, vfs } = table::build(&Sources {
        inventory,
        pools: &host.pools.pools(),
        holders: &host.pools.holders(),
        foreign: &host.pools.foreign(),
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
    HybridNodeStatus {
        observed_generation: generation,
        agent_version: Some(env!("CARGO_PKG_VERSION").into()),
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

async fn write(api: &Api<HybridNode>, name: &str, status: &HybridNodeStatus) -> kube::Result<()> {
    let patch = json!({
        "apiVersion": "hybridnic.io/v1alpha1",
        "kind": "HybridNode",
        "metadata": { "name": name },
        "status": status,
    });
    api.patch_status(
        name,
        &PatchParams::apply(AGENT_MANAGER).force(),
        &Patch::Apply(&patch),
    )
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use kube::runtime::watcher::Event;

    use super::*;

    #[test]
    fn an_object_that_a_list_does_not_have_is_missing() {
        let mut listing = Listing::default();
        let mut missing = |event| listing.is_missing(&event);
        assert!(!missing(Event::Init) && !missing(Event::InitApply(())) && !missing(Event::InitDone));
        assert!(!missing(Event::Apply(())));
        assert!(missing(Event::Delete(())));
        assert!(!missing(Event::Apply(())), "it was made again");
        // The watch broke, and it was deleted meanwhile.
        assert!(!missing(Event::Init));
        assert!(missing(Event::InitDone));
    }
}
