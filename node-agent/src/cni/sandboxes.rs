//! The node's sandboxes, as NICs' tasks and the server see them: does what [`Registry`] says.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hybridnic_cni::wire::{Answer, Attachment, Pod, Why};
use hybridnic_net::{DeviceId, MacAddr};
use tokio::sync::{oneshot, watch};
use tracing::warn;

use super::{
    registry::{Id, Key, Output, Registry},
    sandbox::{Held, Inside, Sandbox},
};
use crate::error::{bounded, chain};

/// The node's sandboxes. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Sandboxes(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    registry: Registry<Arc<Held>>,
    replies: BTreeMap<Id, oneshot::Sender<Answer>>,
    /// Those that are ending: their interfaces may still be there.
    ending: Vec<Arc<Held>>,
}

/// An interface that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its MAC.
    pub mac: MacAddr,
    /// Its MTU, in octets.
    pub mtu: u32,
}

fn key(pod_uid: &str, ifname: &str) -> Key {
    Key {
        pod_uid: pod_uid.to_owned(),
        ifname: ifname.to_owned(),
    }
}

/// For a NIC's task.
impl Sandboxes {
    /// Grows with each sandbox that comes, is answered, or ends.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// The sandbox of a pod's interface that counts now: the latest. It does not end while one has it.
    pub fn of(&self, pod_uid: &str, ifname: &str) -> Option<Sandbox> {
        self.with(|state| {
            let entry = state.registry.get(&key(pod_uid, ifname))?;
            entry.sandbox.current(entry.waits)
        })
    }

    /// The interface is there, so the runtime is answered, once. `false`: it does not wait any more, or the sandbox is another.
    pub fn answer(&self, pod_uid: &str, ifname: &str, container: &str, made: Made) -> bool {
        let made = Answer::Added {
            mac: made.mac.to_string(),
            mtu: made.mtu,
        };
        self.reply(&key(pod_uid, ifname), container, made)
    }

    /// The interface cannot be made. The runtime gets one answer, and tries again with another sandbox. `false` as above.
    pub fn refuse(&self, pod_uid: &str, ifname: &str, container: &str, why: &str) -> bool {
        self.reply(
            &key(pod_uid, ifname),
            container,
            Answer::refused(Why::NotNow, bounded(why)),
        )
    }

    /// Why a pod waits: what its runtime is told if it has waited too long.
    pub fn hold(&self, pod_uid: &str, ifname: &str, why: &str) {
        self.with(|state| state.registry.explain(&key(pod_uid, ifname), &bounded(why)));
    }

    /// A sandbox whose interface was made before the agent's start. `false`: a runtime has asked since, which counts more.
    pub fn adopt(&self, pod: &Pod, attachment: Attachment, device: DeviceId, inside: Inside) -> bool {
        let held = Held::new(attachment, pod, device, inside);
        let (key, container) = (held.key.clone(), held.attachment.container_id.clone());
        let adopted = self.with(|state| state.registry.adopt(key, &container, Arc::new(held)));
        self.note_change();
        adopted.is_some()
    }

    /// The pod has gone, or its NIC has: the interface goes, if it is still there, and the namespace is released.
    pub fn forget(&self, pod_uid: &str, ifname: &str) {
        let outputs = self.with(|state| state.registry.forget(&key(pod_uid, ifname)));
        self.act(outputs);
    }

    fn reply(&self, key: &Key, container: &str, answer: Answer) -> bool {
        let outputs = self.with(|state| {
            let entry = state
                .registry
                .get(key)
                .filter(|entry| entry.container_id == container)?;
            let id = entry.id;
            state.registry.answer(id, answer)
        });
        let taken = outputs.is_some();
        self.act(outputs.unwrap_or_default());
        taken
    }
}

/// For the server.
impl Sandboxes {
    /// A runtime asks for a pod's interface. What was in the pod's earlier sandboxes has gone when this returns.
    pub(super) async fn add(&self, held: Held) -> Waiting {
        let (key, container) = (held.key.clone(), held.attachment.container_id.clone());
        let (reply, answer) = oneshot::channel();
        let (id, outputs, before) = self.with(|state| {
            let (id, outputs) = state.registry.add(key.clone(), &container, Arc::new(held));
            state.replies.insert(id, reply);
            let before = state.ending.iter().filter(|other| other.key == key);
            (id, outputs, before.cloned().collect::<Vec<_>>())
        });
        let waiting = Waiting {
            sandboxes: self.clone(),
            id,
            answer,
        };
        let ended = self.act(outputs);
        for earlier in before.into_iter().chain(ended) {
            if let Err(error) = earlier.end().await {
                let why = format!(
                    "the interface in the pod's sandbox before cannot be removed: {}",
                    chain(&error)
                );
                self.with(|state| state.registry.open(id));
                self.reply(&key, &container, Answer::refused(Why::NotNow, why));
                return waiting;
            }
        }
        self.with(|state| state.registry.open(id));
        self.note_change();
        waiting
    }

    /// A runtime takes a sandbox away; says whether it was known. Its interface has gone when this returns.
    pub(super) async fn del(&self, attachment: &Attachment) -> Result<bool, String> {
        let (outputs, mut ending) = self.with(|state| {
            let outputs = state.registry.del(attachment);
            let ending = state.ending.iter();
            let ending = ending.filter(|other| other.attachment == *attachment);
            (outputs, ending.cloned().collect::<Vec<_>>())
        });
        ending.extend(self.act(outputs));
        let known = !ending.is_empty();
        for sandbox in ending {
            sandbox.end().await.map_err(|error| chain(&error))?;
        }
        Ok(known)
    }

    fn late(&self, id: Id) {
        let outputs = self.with(|state| state.registry.late(id));
        self.act(outputs);
    }

    fn closed(&self, id: Id) {
        let outputs = self.with(|state| {
            state.replies.remove(&id);
            state.registry.closed(id)
        });
        self.act(outputs);
    }
}

impl Sandboxes {
    /// Answers callers that wait, and removes ended sandboxes; returns these.
    fn act(&self, outputs: Vec<Output<Arc<Held>>>) -> Vec<Arc<Held>> {
        if outputs.is_empty() {
            return Vec::new();
        }
        let mut ended = Vec::new();
        for output in outputs {
            match output {
                Output::Reply(id, answer) => {
                    if let Some(reply) = self.with(|state| state.replies.remove(&id)) {
                        // The caller may have gone.
                        let _ = reply.send(answer);
                    }
                }
                Output::End(sandbox) => {
                    self.with(|state| state.ending.push(Arc::clone(&sandbox)));
                    tokio::spawn(self.clone().see_off(Arc::clone(&sandbox)));
                    ended.push(sandbox);
                }
            }
        }
        self.note_change();
        ended
    }

    /// Its interface goes, and callers wait for that. Where the kernel does not remove it, it goes with its network namespace.
    async fn see_off(self, sandbox: Arc<Held>) {
        if let Err(error) = sandbox.end().await {
            warn!(
                pod = sandbox.pod,
                interface = sandbox.attachment.ifname,
                error = chain(&error),
                "the interface of a pod's sandbox stays until its network namespace goes"
            );
        }
        self.with(|state| state.ending.retain(|other| !Arc::ptr_eq(other, &sandbox)));
    }

    fn note_change(&self) {
        self.0.changed.send_modify(|number| *number += 1);
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A runtime that waits. It has gone when this is dropped.
#[derive(Debug)]
pub(super) struct Waiting {
    sandboxes: Sandboxes,
    id: Id,
    answer: oneshot::Receiver<Answer>,
}

impl Waiting {
    /// The answer, after this long at the latest.
    pub(super) async fn answer(mut self, patience: Duration) -> Answer {
        if let Ok(Ok(answer)) = tokio::time::timeout(patience, &mut self.answer).await {
            return answer;
        }
        self.sandboxes.late(self.id);
        let none = |_| Answer::refused(Why::NotNow, "nobody has answered");
        (&mut self.answer).await.unwrap_or_else(none)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.sandboxes.closed(self.id);
    }
}
