//! Writes what a NIC's task reports to its attachment, and keeps the agent's finalizer on it. Nothing is decided here but when
//! to try again.

use std::time::Duration;

use hybridnic_api::{
    names::{AGENT_MANAGER, ATTACHMENT_FINALIZER},
    v1alpha1::{AttachmentState, NicAttachment, NicAttachmentStatus},
};
use hybridnic_process::backoff::Backoff;
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::{sync::watch, time::Instant};
use tracing::{debug, warn};

use crate::{
    error::is_refusal,
    news::{Gate, News},
};

/// The pause after a write that failed.
const BACKOFF: Duration = Duration::from_millis(200);
/// The longest pause after a write that failed.
const BACKOFF_CAP: Duration = Duration::from_secs(10);

/// What is written to an attachment.
pub(super) enum Write<'a> {
    /// Whether the agent's finalizer is on it.
    Finalizer(bool),
    /// Its status.
    Status(&'a NicAttachmentStatus),
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tried {
    /// It is written, or nothing is left to write to.
    Done,
    /// The API server is away.
    Failed,
    /// The API server does not want it, and hardly will in a moment.
    Refused,
}

/// Writes one attachment's finalizer and status.
pub(super) struct Reporter {
    api: Api<NicAttachment>,
    name: String,
    uid: String,
}

impl Reporter {
    /// Of the object of this name and uid: a namesake is another.
    pub(super) fn new(client: &Client, namespace: &str, name: &str, uid: &str) -> Self {
        Self {
            api: Api::namespaced(client.clone(), namespace),
            name: name.to_owned(),
            uid: uid.to_owned(),
        }
    }

    /// Puts the finalizer on, writes each status, and takes the finalizer off once the NIC has left and the object is to go.
    pub(super) async fn run(
        self,
        mut status: watch::Receiver<Option<NicAttachmentStatus>>,
        mut deleting: watch::Receiver<bool>,
        finalizer: watch::Sender<bool>,
    ) {
        if !*finalizer.borrow() {
            if *deleting.borrow() {
                // Too late to add one; there is nothing to keep it for.
                finalizer.send_replace(true);
            } else {
                self.patiently(&Write::Finalizer(true)).await;
                finalizer.send_replace(true);
            }
        }
        let mut written: Option<NicAttachmentStatus> = None;
        let mut open = true;
        // Since when something is not written that can wait.
        let mut since = None;
        let mut backoff = Backoff::new(BACKOFF, BACKOFF_CAP);
        let mut gate = Gate::default();
        loop {
            let now = status.borrow_and_update().clone();
            let gone = *deleting.borrow_and_update();
            let unwritten = now.filter(|now| written.as_ref() != Some(now));
            let rest = unwritten.as_ref().map(|now| {
                let news = written
                    .as_ref()
                    .map_or(News::Moved, |written| News::of(written, now));
                gate.rest(news, *since.get_or_insert_with(Instant::now), Instant::now())
            });
            if rest.is_none() {
                since = None;
            }
            if let Some(now) = unwritten
                && rest == Some(Duration::ZERO)
            {
                gate.wrote(Instant::now());
                // Newer reports replace this one while it waits.
                match self.once(&Write::Status(&now)).await {
                    Tried::Done => {
                        (written, since) = (Some(now), None);
                        backoff.reset();
                    }
                    Tried::Failed => {
                        backoff.wait().await;
                        continue;
                    }
                    Tried::Refused => {
                        tokio::time::sleep(BACKOFF_CAP).await;
                        continue;
                    }
                }
            }
            let detached = written
                .as_ref()
                .is_some_and(|s| s.state == AttachmentState::Detached);
            if detached && gone {
                return self.patiently(&Write::Finalizer(false)).await;
            }
            tokio::select! {
                changed = status.changed(), if open => open = changed.is_ok(),
                changed = deleting.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(rest.unwrap_or_default()), if rest.is_some_and(|rest| !rest.is_zero()) => {}
            }
        }
    }

    async fn act(&self, write: &Write<'_>) -> kube::Result<()> {
        let params = PatchParams::apply(AGENT_MANAGER).force();
        let mut patch = json!({
            "apiVersion": "hybridnic.io/v1alpha1",
            "kind": "NicAttachment",
            "metadata": { "name": self.name, "uid": self.uid },
        });
        match write {
            Write::Finalizer(set) => {
                let finalizers: &[&str] = if *set { &[ATTACHMENT_FINALIZER] } else { &[] };
                patch["metadata"]["finalizers"] = json!(finalizers);
                self.api.patch(&self.name, &params, &Patch::Apply(&patch)).await?;
            }
            Write::Status(status) => {
                patch["status"] = json!(status);
                self.api
                    .patch_status(&self.name, &params, &Patch::Apply(&patch))
                    .await?;
            }
        }
        Ok(())
    }

    /// One try; an object that is gone needs no more.
    pub(super) async fn once(&self, write: &Write<'_>) -> Tried {
        match self.act(write).await {
            Ok(()) => Tried::Done,
            Err(kube::Error::Api(status)) if status.is_not_found() => Tried::Done,
            // Another has its name, or others write to it just now: only the object itself tells.
            Err(kube::Error::Api(status)) if status.is_conflict() && self.is_gone().await => Tried::Done,
            Err(error) if is_refusal(&error) => {
                warn!(attachment = self.name, %error, "the API server refuses the report; tried again");
                Tried::Refused
            }
            Err(error) => {
                debug!(attachment = self.name, %error, "cannot report; tried again");
                Tried::Failed
            }
        }
    }

    /// Whether the API server says that there is no such object, or another of that name. No answer is no proof.
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

    /// Tries until it is done.
    pub(super) async fn patiently(&self, write: &Write<'_>) {
        let mut backoff = Backoff::new(BACKOFF, BACKOFF_CAP);
        while self.once(write).await != Tried::Done {
            backoff.wait().await;
        }
    }
}
