//! What the API server has for this node.

use std::{fmt, pin::Pin};

use futures::{Stream, TryStreamExt as _};
use hybridnic_api::{
    names::{AGENT_MANAGER, ATTACHMENT_FINALIZER},
    v1alpha1::NicAttachment,
};
use hybridnic_process::{api, watch::follow};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
    runtime::watcher,
};
use serde_json::json;
use tracing::{debug, warn};

use super::{Heard, Teller, Told, Want, WantId, Wants, Word};
use crate::error::is_refusal;

/// The attachments of a node, as the API server has them.
pub struct Cluster {
    client: Client,
    events: Pin<Box<dyn Stream<Item = watcher::Result<watcher::Event<NicAttachment>>> + Send>>,
}

impl Cluster {
    /// Those of the node of this name.
    pub fn new(client: Client, node: &str) -> Self {
        let api: Api<NicAttachment> = Api::all(client.clone());
        let config = api::watches().fields(&format!("spec.nodeName={node}"));
        let events = Box::pin(follow(api, config));
        Self { client, events }
    }
}

impl Wants for Cluster {
    type Teller = Object;

    async fn next(&mut self) -> Option<Heard> {
        loop {
            match self.events.try_next().await {
                Ok(event) => return event.map(heard),
                Err(error) => warn!(%error, "cannot watch the attachments; tried again"),
            }
        }
    }

    fn teller(&self, of: &WantId) -> Object {
        Object {
            api: Api::namespaced(self.client.clone(), &of.namespace),
            name: of.name.clone(),
            uid: of.uid.clone(),
        }
    }
}

pub(crate) fn heard(event: watcher::Event<NicAttachment>) -> Heard {
    match event {
        watcher::Event::Init => Heard::Begins,
        watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
            Heard::Wanted(Box::new(want(object)))
        }
        watcher::Event::InitDone => Heard::Ends,
        watcher::Event::Delete(object) => Heard::Gone(object.uid().unwrap_or_default()),
    }
}

pub(crate) fn want(object: NicAttachment) -> Want {
    let created = object.metadata.creation_timestamp.as_ref();
    Want {
        id: WantId {
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
        },
        created: created.map_or(0, |time| time.0.as_second()),
        generation: object.metadata.generation,
        deleting: object.metadata.deletion_timestamp.is_some(),
        socket: None,
        spec: object.spec,
        status: object.status,
    }
}

/// One attachment's object.
pub struct Object {
    api: Api<NicAttachment>,
    name: String,
    uid: String,
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object")
            .field("name", &self.name)
            .field("uid", &self.uid)
            .finish_non_exhaustive()
    }
}

impl Teller for Object {
    async fn tell(&self, word: &Word<'_>) -> Told {
        match self.write(word).await {
            Ok(()) => Told::Done,
            Err(kube::Error::Api(status)) if status.is_not_found() => Told::Done,
            // Another object has its name, or others write to it just now: only the object itself shows which.
            Err(kube::Error::Api(status)) if status.is_conflict() && self.is_gone().await => Told::Done,
            Err(error) if is_refusal(&error) => {
                warn!(attachment = self.name, %error, "the API server refuses the report; tried again");
                Told::Refused
            }
            Err(error) => {
                debug!(attachment = self.name, %error, "cannot report; tried again");
                Told::Failed
            }
        }
    }
}

impl Object {
    async fn write(&self, word: &Word<'_>) -> kube::Result<()> {
        let params = PatchParams::apply(AGENT_MANAGER).force();
        let mut patch = json!({
            "apiVersion": "hybridnic.io/v1alpha1",
            "kind": "NicAttachment",
            "metadata": { "name": self.name, "uid": self.uid },
        });
        match word {
            Word::Held(held) => {
                let finalizers: &[&str] = if *held { &[ATTACHMENT_FINALIZER] } else { &[] };
                patch["metadata"]["finalizers"] = json!(finalizers);
                self.api.patch(&self.name, &params, &Patch::Apply(&patch)).await?;
            }
            Word::Status(status) => {
                patch["status"] = json!(status);
                self.api
                    .patch_status(&self.name, &params, &Patch::Apply(&patch))
                    .await?;
            }
        }
        Ok(())
    }

    /// Whether the API server says that there is no such object, or that another has that name. No answer is no proof.
    async fn is_gone(&self) -> bool {
        // The agent may list attachments, and may not get one: a list of a name costs the same.
        let named = ListParams::default().fields(&format!("metadata.name={}", self.name));
        match self.api.list_metadata(&named).await {
            Ok(list) => list
                .items
                .iter()
                .all(|o| o.metadata.uid.as_ref() != Some(&self.uid)),
            Err(error) => {
                debug!(attachment = self.name, %error, "cannot see whether it is still there");
                false
            }
        }
    }
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
