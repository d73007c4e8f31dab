//! What is said of each file, in a file beside it: `NAME.status.yaml`, replaced as a whole and synced.
//!
//! The presence of such a file proves to a later agent that the directory is the one in which the NIC's own file was. So none is written
//! for a NIC whose file was not seen in this directory, and none into another one that is in its place.

use std::{collections::BTreeMap, io, sync::Arc};

use hybridnic_api::{
    conditions::{self, NewCondition, reasons, types},
    names::GROUP,
    v1alpha1::{
        AttachmentState, HybridNetworkStatus, NicAttachmentStatus, NicPhase, PoolStatus, Runtime,
        VmHybridNicStatus,
    },
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::{Value, json};
use tokio::sync::{Mutex, watch};
use tracing::{info, warn};

use super::{
    decide::{Kind, Verdict},
    file,
    order::Attached,
    place::Place,
};
use crate::wants::Want;

const HEADER: &str = "# Written by hybridnic-agent. What is changed here is lost.\n";

/// What is said of one file.
#[derive(Clone, Debug, Default)]
struct Entry {
    /// Of what the file asks for; `None` before its file was seen in this directory.
    verdict: Option<Verdict>,
    /// What is wanted of the NIC.
    want: Option<Want>,
    /// How the NIC is.
    attached: Option<NicAttachmentStatus>,
    /// How the network's pool is.
    pool: Option<PoolStatus>,
    /// What was said last, with the times since when.
    conditions: Vec<Condition>,
    /// What the file has.
    written: Option<Value>,
}

/// All that is said.
#[derive(Debug)]
pub struct Board {
    node: String,
    /// The directory; none where it is gone.
    place: watch::Sender<Option<Arc<Place>>>,
    /// Changes when what was said of the host is not there any more.
    host_lost: watch::Sender<()>,
    entries: Mutex<BTreeMap<String, Entry>>,
}

impl Board {
    /// Of this host, in no directory yet.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            place: watch::Sender::default(),
            host_lost: watch::Sender::default(),
            entries: Mutex::default(),
        }
    }

    /// All is said in this directory from now on.
    pub fn enter(&self, place: &Arc<Place>) {
        self.place.send_replace(Some(Arc::clone(place)));
        // What was said of the host was said in another one.
        self.host_lost.send_replace(());
    }

    /// Changes when what was said of the host is not there any more, from now on.
    pub fn host_lost(&self) -> watch::Receiver<()> {
        self.host_lost.subscribe()
    }

    /// The directory in which all is said.
    pub fn place(&self) -> io::Result<Arc<Place>> {
        let place = self.place.borrow().clone();
        place.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the directory is gone"))
    }

    /// What an earlier agent has said of an object; none where there is nothing that can be read.
    fn earlier(&self, name: &str) -> Option<Value> {
        earlier(self.place().ok()?.as_ref(), name)
    }

    /// The uid of a NIC, as an earlier agent has said it; none where that was said of an object of another name.
    pub fn uid(&self, name: &str) -> Option<String> {
        let earlier = self.earlier(name)?;
        let text = |pointer| earlier.pointer(pointer)?.as_str();
        let is_its = text("/metadata/name") == Some(name);
        text("/metadata/uid").filter(|_| is_its).map(str::to_owned)
    }

    /// The version of the host's own file that an earlier agent of this host has seen in a directory, as it has said there.
    pub fn seen_of_host(&self, place: &Place) -> Option<i64> {
        let earlier = earlier(place, file::NODE)?;
        let is_its = earlier.pointer("/metadata/name")?.as_str() == Some(&self.node);
        let seen = earlier.pointer("/status/observedGeneration")?.as_i64();
        seen.filter(|_| is_its)
    }

    /// How a NIC is, as an earlier agent has said it.
    pub fn attached(&self, name: &str, uid: &str) -> Option<NicAttachmentStatus> {
        let said = self.earlier(name)?.get("attached")?.clone();
        let attached: Attached = serde_json::from_value(said).ok()?;
        attached.status.filter(|_| attached.spec.nic.uid == uid)
    }

    /// Says whether what a file asks for is accepted, and what is wanted because of it.
    pub async fn say(&self, name: &str, verdict: &Verdict, want: Option<&Want>) -> io::Result<()> {
        let mut entries = self.entries.lock().await;
        let entry = entries.entry(name.to_owned()).or_insert_with(|| Entry {
            conditions: self
                .earlier(name)
                .map(|said| conditions_of(&said))
                .unwrap_or_default(),
            ..Entry::default()
        });
        if entry.verdict.as_ref() != Some(verdict) {
            if let Some((reason, why)) = &verdict.refusal {
                warn!(object = name, reason, why, "not as its file asks");
            } else {
                info!(object = name, "its file is understood");
            }
        }
        entry.verdict = Some(verdict.clone());
        entry.want = want.cloned();
        // Until this agent has a word of its own, that of an earlier one stands.
        if let (None, Some(want)) = (&entry.attached, want) {
            entry.attached = self.attached(name, &want.id.uid);
        }
        self.write(name, entry).await
    }

    /// Says how a NIC is; `None` says only that it is here.
    pub async fn tell(&self, name: &str, status: Option<&NicAttachmentStatus>) -> io::Result<()> {
        let mut entries = self.entries.lock().await;
        let entry = entries.entry(name.to_owned()).or_default();
        entry.attached = status.cloned().or_else(|| entry.attached.take());
        self.write(name, entry).await
    }

    /// Says how the networks' pools are.
    pub async fn count(&self, pools: &[PoolStatus]) -> io::Result<()> {
        let mut entries = self.entries.lock().await;
        for pool in pools {
            if let Some(entry) = entries.get_mut(&pool.network) {
                entry.pool = Some(pool.clone());
                self.write(&pool.network, entry).await?;
            }
        }
        Ok(())
    }

    /// Takes away what is said of an object that nobody asks for, and that is not here.
    pub async fn forget(&self, name: &str) -> io::Result<()> {
        let mut entries = self.entries.lock().await;
        self.put(name, None).await?;
        entries.remove(name);
        Ok(())
    }

    /// Says once more what was said of an object, if it was taken away.
    pub async fn again(&self, name: &str) -> io::Result<()> {
        if name == file::NODE {
            // Only the one who publishes it knows it as it is now.
            if !self.place()?.has(&file::status(name))? {
                self.host_lost.send_replace(());
            }
            return Ok(());
        }
        let mut entries = self.entries.lock().await;
        match entries.get_mut(name) {
            Some(entry) if !self.place()?.has(&file::status(name))? => {
                entry.written = None;
                self.write(name, entry).await
            }
            _ => Ok(()),
        }
    }

    /// Says once more all that was taken away.
    pub async fn all_again(&self) -> io::Result<()> {
        let names: Vec<String> = self.entries.lock().await.keys().cloned().collect();
        for name in names.iter().map(String::as_str).chain([file::NODE]) {
            self.again(name).await?;
        }
        Ok(())
    }

    /// The directory is gone. In another one no file was seen yet.
    pub async fn hide(&self) {
        self.place.send_replace(None);
        for entry in self.entries.lock().await.values_mut() {
            (entry.verdict, entry.written) = (None, None);
        }
    }

    async fn write(&self, name: &str, entry: &mut Entry) -> io::Result<()> {
        let Some(verdict) = entry.verdict.clone() else {
            return Ok(());
        };
        let now = document(name, &self.node, entry, &verdict, Timestamp::now());
        if entry.written.as_ref() != Some(&now) {
            self.put(name, Some(&now)).await?;
            entry.conditions = conditions_of(&now);
            entry.written = Some(now);
        }
        Ok(())
    }

    /// Makes this the content of an object's file, or removes it.
    async fn put(&self, name: &str, content: Option<&Value>) -> io::Result<()> {
        put(&self.place()?, name, content).await
    }
}

/// What was said of an object in a directory; none where there is nothing that can be read.
fn earlier(place: &Place, name: &str) -> Option<Value> {
    let text = place.read(&file::status(name)).ok()?;
    serde_saphyr::from_str(&text).ok()
}

/// Makes this what is said of an object in a directory, or removes it; returns once that is on disk.
pub async fn put(place: &Arc<Place>, name: &str, content: Option<&Value>) -> io::Result<()> {
    let text = content.map(|value| serde_saphyr::to_string(value).map_err(io::Error::other));
    let text = text.transpose()?.map(|text| format!("{HEADER}{text}"));
    place.set(&file::status(name), text).await
}

fn conditions_of(document: &Value) -> Vec<Condition> {
    let list = document.pointer("/status/conditions").cloned();
    list.and_then(|list| serde_json::from_value(list).ok())
        .unwrap_or_default()
}

/// What is said of an object.
fn document(name: &str, node: &str, entry: &Entry, verdict: &Verdict, now: Timestamp) -> Value {
    let mut list = entry.conditions.clone();
    let accepted = match &verdict.refusal {
        None => NewCondition::yes(types::ACCEPTED, reasons::ACCEPTED, "the file is understood"),
        Some((reason, message)) => NewCondition::no(types::ACCEPTED, *reason, message),
    };
    conditions::set(&mut list, verdict.generation, now, accepted);
    let mut document = json!({
        "apiVersion": format!("{GROUP}/v1alpha1"),
        "metadata": { "name": name },
    });
    match verdict.kind {
        Kind::Network => {
            document["kind"] = json!("HybridNetwork");
            document["status"] = json!(network(entry, verdict, list, now));
        }
        Kind::Nic => {
            document["kind"] = json!("VmHybridNic");
            if let Some(want) = &entry.want {
                document["metadata"]["uid"] = json!(want.id.uid);
                document["attached"] = json!(Attached {
                    generation: want.generation,
                    deleting: want.deleting,
                    socket: want.socket.clone().unwrap_or_default(),
                    spec: want.spec.clone(),
                    status: entry.attached.clone(),
                });
            }
            document["status"] = json!(nic(node, entry, verdict, list, now));
        }
        Kind::Unknown => {
            document["status"] = json!({ "observedGeneration": verdict.generation, "conditions": list });
        }
    }
    document
}

fn network(
    entry: &Entry,
    verdict: &Verdict,
    mut list: Vec<Condition>,
    now: Timestamp,
) -> HybridNetworkStatus {
    let pool = entry.pool.clone().unwrap_or_default();
    let vfs = pool.vfs;
    let ready = match (&entry.pool, vfs.total, vfs.free + vfs.held) {
        (None, ..) => NewCondition::unknown(
            types::READY,
            reasons::AGENT_PENDING,
            "the host's VFs are not known yet",
        ),
        (_, 0, _) => NewCondition::no(types::READY, reasons::POOL_EMPTY, pool.message),
        (_, _, 0) => NewCondition::no(types::READY, reasons::POOL_UNHEALTHY, pool.message),
        (_, total, usable) => {
            let message = format!("{usable} of {total} VFs can be used");
            NewCondition::yes(types::READY, reasons::POOL_READY, message)
        }
    };
    conditions::set(&mut list, verdict.generation, now, ready);
    HybridNetworkStatus {
        observed_generation: verdict.generation,
        nodes: i32::from(vfs.total > 0),
        vfs,
        conditions: list,
        ..HybridNetworkStatus::default()
    }
}

fn nic(
    node: &str,
    entry: &Entry,
    verdict: &Verdict,
    mut list: Vec<Condition>,
    now: Timestamp,
) -> VmHybridNicStatus {
    let attached = entry.attached.clone().unwrap_or_default();
    for type_ in [types::READY, types::FAST_PATH] {
        let said = conditions::find(&attached.conditions, type_).map(as_it_is);
        let said = said.unwrap_or_else(|| match &verdict.refusal {
            Some((reason, message)) => NewCondition::no("", *reason, message),
            None => NewCondition::no("", reasons::AGENT_PENDING, "nothing is known of the NIC yet"),
        });
        conditions::set(&mut list, verdict.generation, now, NewCondition { type_, ..said });
    }
    match conditions::find(&attached.conditions, types::STANDBY_FILTER).map(as_it_is) {
        Some(said) => {
            let type_ = types::STANDBY_FILTER;
            conditions::set(&mut list, verdict.generation, now, NewCondition { type_, ..said });
        }
        None => conditions::remove(&mut list, types::STANDBY_FILTER),
    }
    let leaves = entry.want.as_ref().is_some_and(|want| want.deleting);
    let phase = match (
        entry.attached.as_ref().map(|attached| attached.state),
        &verdict.refusal,
    ) {
        _ if leaves => NicPhase::Detaching,
        (Some(AttachmentState::FastPath), _) => NicPhase::FastPath,
        (Some(AttachmentState::Standby), _) => NicPhase::Standby,
        (Some(AttachmentState::Aside), _) => NicPhase::Aside,
        (None, Some(_)) => NicPhase::Failed,
        _ => NicPhase::Attaching,
    };
    VmHybridNicStatus {
        observed_generation: verdict.generation,
        runtime: Some(Runtime::Qemu),
        phase,
        mac: entry.want.as_ref().map(|want| want.spec.mac.clone()),
        node_name: Some(node.to_owned()),
        path: attached.path,
        vf: attached.vf,
        standby: attached.standby,
        guest: attached.guest,
        conditions: list,
        ..VmHybridNicStatus::default()
    }
}

/// In the agent's own words; the type is the caller's.
fn as_it_is(condition: &Condition) -> NewCondition {
    NewCondition {
        type_: "",
        status: match condition.status.as_str() {
            "True" => Some(true),
            "False" => Some(false),
            _ => None,
        },
        reason: condition.reason.clone(),
        message: condition.message.clone(),
    }
}

#[cfg(test)]
#[path = "board_tests.rs"]
pub(crate) mod tests;
