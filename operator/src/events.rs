//! Events on objects, for `kubectl describe`.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use tokio::sync::mpsc;

use hybridnic_api::names::OPERATOR_MANAGER;

use crate::cache::Object;

/// The API takes no longer note.
const NOTE_MAX: usize = 1024;
/// An event is worth no longer wait.
const DEADLINE: Duration = Duration::from_secs(5);
/// So many may wait to be published: those of all phases of many migrations at once.
const LINE: usize = 4096;

/// Something to tell about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Whether it is a failure.
    pub warning: bool,
    /// One of [`hybridnic_api::conditions::reasons`].
    pub reason: String,
    /// A sentence for a person.
    pub message: String,
    /// What it is about besides its object.
    pub about: Option<About>,
}

/// An object in the namespace of a note's own. Kubernetes counts a note that comes again, and keeps the words of the first: notes of one
/// reason are the same one unless they are about different objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    api_version: String,
    kind: String,
    name: String,
}

impl About {
    /// The object of kind `K` with this name.
    pub fn new<K: Resource<DynamicType = ()>>(name: &str) -> Self {
        Self {
            api_version: K::api_version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            name: name.to_owned(),
        }
    }
}

impl Note {
    /// Something that is as it should be.
    pub fn normal(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            warning: false,
            reason: reason.into(),
            message: message.into(),
            about: None,
        }
    }

    /// Something that is not.
    pub fn warning(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            warning: true,
            reason: reason.into(),
            message: message.into(),
            about: None,
        }
    }

    /// The same about an object besides.
    pub fn about(self, object: About) -> Self {
        Self {
            about: Some(object),
            ..self
        }
    }
}

/// Publishes events, one after the other and beside all else: the caller does not wait. Clones share one line.
#[derive(Clone)]
pub struct Events(mpsc::Sender<(ObjectReference, Note)>);

impl Events {
    /// Events in the name of the operator's process `identity`.
    pub fn new(client: Client, identity: &str) -> Self {
        let reporter = Reporter {
            controller: OPERATOR_MANAGER.to_owned(),
            instance: Some(identity.to_owned()),
        };
        let (sender, mut told) = mpsc::channel(LINE);
        let recorder = Recorder::new(client, reporter);
        tokio::spawn(async move {
            while let Some((object, note)) = told.recv().await {
                publish(&recorder, &object, note).await;
            }
        });
        Self(sender)
    }

    /// Publishes `notes` about `object`. An event that cannot be published is logged, and lost: nothing depends on it.
    pub fn tell<K: Object>(&self, object: &K, notes: Vec<Note>) {
        for note in notes {
            let reason = note.reason.clone();
            if self.0.try_send((object.object_ref(&()), note)).is_err() {
                tracing::debug!(reason, "an event was not published: too many wait");
            }
        }
    }
}

async fn publish(recorder: &Recorder, object: &ObjectReference, note: Note) {
    let Note {
        warning,
        reason,
        message,
        about,
    } = note;
    let type_ = if warning {
        EventType::Warning
    } else {
        EventType::Normal
    };
    let event = Event {
        type_,
        action: reason.clone(),
        reason,
        note: Some(shortened(&message)),
        secondary: about.map(|about| ObjectReference {
            api_version: Some(about.api_version),
            kind: Some(about.kind),
            name: Some(about.name),
            namespace: object.namespace.clone(),
            ..ObjectReference::default()
        }),
    };
    match tokio::time::timeout(DEADLINE, recorder.publish(&event, object)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::debug!(%error, reason = event.reason, "an event was not published");
        }
        Err(_) => tracing::debug!(reason = event.reason, "an event was not published: no answer"),
    }
}

/// On one line, without what would control a reader's terminal.
fn shortened(text: &str) -> String {
    let mut text = hybridnic_text::line(text);
    if text.len() > NOTE_MAX {
        let end = (0..=NOTE_MAX - 3)
            .rev()
            .find(|&end| text.is_char_boundary(end))
            .unwrap_or_default();
        text.truncate(end);
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_fit() {
        assert_eq!(shortened("a"), "a");
        assert_eq!(shortened("a\u{1b}[2Jb\nc"), "a�[2Jb c");
        let long = shortened(&"ü".repeat(1000));
        assert!(long.len() <= NOTE_MAX && long.len() > NOTE_MAX - 4 && long.ends_with("ü..."));
    }
}
