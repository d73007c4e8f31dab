//! The node's `HybridNode`: takes from there which pools the node is part of, and says there what the node has.

use std::{sync::Arc, time::Duration};

use futures::TryStreamExt as _;
use hybridnic_api::{
    names::AGENT_MANAGER,
    v1alpha1::{HybridNode, HybridNodeSpec, HybridNodeStatus},
};
use hybridnic_process::{api, backoff::Backoff, watch::follow};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    runtime::watcher,
};
use serde_json::json;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::publish::{Publisher, SeenNode};
use crate::{error::is_refusal, host::Host, wants::Told};

/// The pause after a write that failed.
const BACKOFF: Duration = Duration::from_millis(500);
/// The longest pause after a write that failed.
const BACKOFF_CAP: Duration = Duration::from_secs(30);

/// The object, as it is written.
pub struct NodeObject {
    api: Api<HybridNode>,
    name: String,
}

impl NodeObject {
    /// That of the node of this name.
    pub fn new(client: Client, node: &str) -> Self {
        Self {
            api: Api::all(client),
            name: node.to_owned(),
        }
    }
}

impl Publisher for NodeObject {
    async fn publish(&self, status: &HybridNodeStatus) -> Told {
        match write(&self.api, &self.name, status).await {
            Ok(()) => Told::Done,
            Err(error) if is_refusal(&error) => {
                warn!(%error, "the API server refuses what the node has; tried again");
                Told::Refused
            }
            Err(error) => {
                debug!(%error, "cannot publish the node; tried again");
                Told::Failed
            }
        }
    }
}

/// Keeps the node's pools as its `HybridNode` says; makes that object if it is missing.
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
                    // Before the pools: no NIC is to get what is drained.
                    host.note_drain(&node.spec.drain).await;
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

/// What a watch of one object says about its existence. While the watch is broken, nothing reports a deletion: only the list that follows
/// shows it, because the object is missing there.
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
