//! Which callers wait for an interface of which pod, and which of a pod's sandboxes counts. Pure: what is to be done is returned as
//! [`Output`]s.
//!
//! A kubelet that does not get a sandbox makes another one for the same pod, with another id and network namespace. The latest counts.
//! A sandbox is here from the runtime's `ADD` until its `DEL`, or until no caller waits for it any more. Each caller that waits gets one answer,
//! unless it has gone; there is no answer after that.

use std::collections::BTreeMap;

use hybridnic_cni::wire::{Answer, Attachment, Why};

/// An interface of a pod, whatever sandbox it is in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The pod's uid.
    pub pod_uid: String,
    /// The interface's name in the pod.
    pub ifname: String,
}

/// A request of a runtime's.
pub type Id = u64;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output<S> {
    /// The caller is answered.
    Reply(Id, Answer),
    /// The sandbox does not count any more: its interface goes.
    End(S),
}

/// What is known of the sandbox of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<S> {
    /// The request, by which it is answered; a sandbox that was found after a restart has one, too.
    pub id: Id,
    /// The runtime's id of the sandbox.
    pub container_id: String,
    /// The sandbox.
    pub sandbox: S,
    /// Whether the runtime waits for an answer.
    pub waits: bool,
    /// Whether all that was before it is gone.
    open: bool,
    /// Why it is not answered yet.
    why: Option<String>,
}

/// The sandboxes of a node.
#[derive(Clone, Debug)]
pub struct Registry<S> {
    entries: BTreeMap<Key, Entry<S>>,
    last: Id,
}

impl<S> Default for Registry<S> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            last: 0,
        }
    }
}

impl<S: Clone> Registry<S> {
    /// A runtime asks. Nobody sees the sandbox until it is [opened](Self::open): an earlier one must have gone before.
    pub fn add(&mut self, key: Key, container_id: &str, sandbox: S) -> (Id, Vec<Output<S>>) {
        let mut outputs = Vec::new();
        if let Some(earlier) = self.entries.remove(&key) {
            let message = if earlier.container_id == container_id {
                "the runtime has asked for the same sandbox again"
            } else {
                "the runtime has made another sandbox for the pod"
            };
            outputs = end(earlier, message);
        }
        let id = self.insert(key, container_id, sandbox, true);
        (id, outputs)
    }

    /// A sandbox whose interface was made before the agent was restarted. What a runtime has asked since counts more; then it is `None`.
    pub fn adopt(&mut self, key: Key, container_id: &str, sandbox: S) -> Option<Id> {
        if self.entries.contains_key(&key) {
            return None;
        }
        let id = self.insert(key, container_id, sandbox, false);
        self.open(id);
        Some(id)
    }

    fn insert(&mut self, key: Key, container_id: &str, sandbox: S, waits: bool) -> Id {
        self.last += 1;
        let entry = Entry {
            id: self.last,
            container_id: container_id.to_owned(),
            sandbox,
            waits,
            open: false,
            why: None,
        };
        self.entries.insert(key, entry);
        self.last
    }

    /// All that was before this one has gone.
    pub fn open(&mut self, id: Id) {
        if let Some(entry) = self.entries.values_mut().find(|entry| entry.id == id) {
            entry.open = true;
        }
    }

    /// The sandbox of an interface that counts now.
    pub fn get(&self, key: &Key) -> Option<&Entry<S>> {
        self.entries.get(key).filter(|entry| entry.open)
    }

    /// All that count now.
    pub fn all(&self) -> impl Iterator<Item = (&Key, &Entry<S>)> {
        self.entries.iter().filter(|(_, entry)| entry.open)
    }

    /// Why a request still waits, for the case that it gets no other answer.
    pub fn explain(&mut self, key: &Key, why: &str) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.why = Some(why.to_owned());
        }
    }

    /// The interface is there, or cannot be. `None`: nobody waits for it any more, and what was made for it goes.
    pub fn answer(&mut self, id: Id, answer: Answer) -> Option<Vec<Output<S>>> {
        let key = self.key_of(id)?;
        let entry = self
            .entries
            .get_mut(&key)
            .filter(|entry| entry.waits && entry.open)?;
        if let Answer::Refused { .. } = answer {
            let Entry { sandbox, .. } = self.entries.remove(&key)?;
            return Some(vec![Output::End(sandbox), Output::Reply(id, answer)]);
        }
        entry.waits = false;
        Some(vec![Output::Reply(id, answer)])
    }

    /// The caller has gone, which means nothing once it has been answered.
    pub fn closed(&mut self, id: Id) -> Vec<Output<S>> {
        match self.remove_waiting(id) {
            Some(entry) => vec![Output::End(entry.sandbox)],
            None => Vec::new(),
        }
    }

    /// It has waited long enough.
    pub fn late(&mut self, id: Id) -> Vec<Output<S>> {
        let Some(entry) = self.remove_waiting(id) else {
            return Vec::new();
        };
        let message = entry.why.clone();
        end(entry, message.as_deref().unwrap_or(NOBODY))
    }

    /// A runtime takes a sandbox away.
    pub fn del(&mut self, attachment: &Attachment) -> Vec<Output<S>> {
        let known = self
            .entries
            .iter()
            .find(|(key, entry)| {
                key.ifname == attachment.ifname && entry.container_id == attachment.container_id
            })
            .map(|(key, _)| key.clone());
        let entry = known.and_then(|key| self.entries.remove(&key));
        entry
            .map(|entry| end(entry, "the runtime has taken the sandbox away"))
            .unwrap_or_default()
    }

    /// A pod has gone, or its interface belongs to no NIC any more.
    pub fn forget(&mut self, key: &Key) -> Vec<Output<S>> {
        let entry = self.entries.remove(key);
        entry
            .map(|entry| end(entry, "the pod has gone, or its NIC has"))
            .unwrap_or_default()
    }

    fn key_of(&self, id: Id) -> Option<Key> {
        let mut found = self.entries.iter().filter(|(_, entry)| entry.id == id);
        found.next().map(|(key, _)| key.clone())
    }

    fn remove_waiting(&mut self, id: Id) -> Option<Entry<S>> {
        let key = self.key_of(id)?;
        if !self.entries.get(&key)?.waits {
            return None;
        }
        self.entries.remove(&key)
    }
}

/// Of a request that nobody has taken up.
const NOBODY: &str = "no NIC is attached to this interface of the pod yet: is there a VmHybridNic for it, and what does it say?";

/// An entry that was removed.
fn end<S>(entry: Entry<S>, message: &str) -> Vec<Output<S>> {
    let mut outputs = vec![Output::End(entry.sandbox)];
    if entry.waits {
        outputs.push(Output::Reply(entry.id, Answer::refused(Why::NotNow, message)));
    }
    outputs
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
