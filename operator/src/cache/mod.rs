//! One watch and one store of one kind.
//!
//! Reconciles read only from here. [`Feed`] writes a cache from a watch and says what changed, also what disappeared while
//! the watch was broken, which neither kube's `touched_objects` nor its shared streams do. It says so only after the
//! store has it, so that a reconcile that follows a change sees that change.
//!
//! A cluster has very many objects, and few are in use at a time. So a cache holds only the fields that are used, and
//! packs the objects at rest: see [`Object`] and [`pack`].

mod pack;
mod shelf;
mod wire;

use std::collections::{HashMap, HashSet};
use std::fmt::{self, Debug};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::{Stream, StreamExt};
use kube::ResourceExt;
use kube::runtime::watcher;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use shelf::{Put, Shelf};
pub use wire::{Wire, finalizers_are_cut};

use crate::vm::VmRef;

/// A Kubernetes kind as the caches hold it.
pub trait Object:
    kube::Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// The part of an object that is looked at for very many objects at once, so it must be there without unpacking.
    type Glance: Copy + Send + Sync;

    /// Whether a cluster may be without the kind, because another project brings it. That is no failure of the watch.
    const OPTIONAL: bool = false;

    /// Whether its annotations are read; [`trim`](Self::trim) then drops the others.
    const ANNOTATED: bool = false;

    /// What it is looked up by, besides its name.
    fn keys(&self) -> Vec<Key>;

    /// What is seen of it at a glance.
    fn glance(&self) -> Self::Glance;

    /// Drops fields that are not used.
    fn trim(&mut self);
}

/// What an object is looked up by, besides its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// By namespace.
    Namespace(String),
    /// By the VM.
    Vm(VmRef),
    /// By the NIC: namespace and name.
    Nic(String, String),
    /// By the network.
    Network(String),
    /// By the node.
    Node(String),
    /// By the MAC address, lower case.
    Mac(String),
    /// By the IP address.
    Address(IpAddr),
}

/// Namespace and name of an object of a kind. Clones share it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// The name of an object; of a cluster-scoped kind with `namespace` empty.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    /// The name of this object.
    pub fn of(object: &impl ResourceExt) -> Self {
        let meta = object.meta();
        Self::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }

    /// Its namespace; empty for a cluster-scoped kind.
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// Its name in the namespace.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(_, name)| name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.trim_start_matches('/'))
    }
}

/// The objects that do not parse, and the keys to look them up nevertheless.
type Unread = HashMap<Name, Vec<Key>>;

/// All objects of a kind, for reading. Clones share it.
pub struct Cache<K: Object> {
    shelf: Arc<Mutex<Shelf<K>>>,
    unread: Arc<Mutex<Unread>>,
    filled: watch::Receiver<bool>,
    /// Whether the API server has listed the kind, and has not said since that it has none.
    served: Arc<AtomicBool>,
}

impl<K: Object> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self {
            shelf: Arc::clone(&self.shelf),
            unread: Arc::clone(&self.unread),
            filled: self.filled.clone(),
            served: Arc::clone(&self.served),
        }
    }
}

/// The writing end of a [`Cache`].
pub struct Feed<K: Object> {
    cache: Cache<K>,
    /// Those of a list that do not parse.
    listed_unread: HashSet<Name>,
    filled: watch::Sender<bool>,
    /// Whether the API server has said that it has no such kind.
    absent: bool,
}

/// The watch that feeds a cache has ended.
#[derive(Debug, thiserror::Error)]
#[error("the watch has ended")]
pub struct Ended;

/// Waits until a cache holds what the API server had.
pub async fn until_filled(mut filled: watch::Receiver<bool>) -> Result<(), Ended> {
    let waited = filled.wait_for(|filled| *filled).await.map(|_| ());
    waited.map_err(|_| Ended)
}

/// A cache, and its feed.
pub fn cache<K: Object>() -> (Cache<K>, Feed<K>) {
    let (filled, receiver) = watch::channel(false);
    let cache = Cache {
        shelf: Arc::default(),
        unread: Arc::default(),
        filled: receiver,
        served: Arc::default(),
    };
    let feed = Feed {
        cache: cache.clone(),
        listed_unread: HashSet::new(),
        filled,
        absent: false,
    };
    (cache, feed)
}

impl<K: Object> Cache<K> {
    /// Whether it holds what the API server had.
    pub fn filled(&self) -> watch::Receiver<bool> {
        self.filled.clone()
    }

    /// Whether the cluster has the kind, as far as is known.
    pub fn is_served(&self) -> bool {
        self.served.load(Ordering::Relaxed)
    }

    /// The object of a name; of a cluster-scoped kind with `namespace` empty.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.named(&Name::new(namespace, name))
    }

    /// The object of a name.
    pub fn named(&self, name: &Name) -> Option<Arc<K>> {
        self.shelf().get(name)
    }

    /// The object of a name, as one of very many that are looked at once.
    pub fn peek(&self, name: &Name) -> Option<Arc<K>> {
        self.shelf().named(name)
    }

    /// The objects with a key, ordered by namespace and name.
    pub fn by(&self, key: &Key) -> Vec<Arc<K>> {
        let mut found = self.shelf().by(key, |_| true);
        found.sort_by(|a, b| order(a.as_ref()).cmp(&order(b.as_ref())));
        found
    }

    /// What is seen at a glance of the object of a name; of a cluster-scoped kind with `namespace` empty.
    pub fn glance(&self, namespace: &str, name: &str) -> Option<K::Glance> {
        self.shelf().glance(&Name::new(namespace, name))
    }

    /// Whether there is an object with a key.
    pub fn any(&self, key: &Key) -> bool {
        self.shelf().any(key)
    }

    /// All objects, in no order. Each is unpacked: use it for kinds with few objects.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.shelf().all(|_| true)
    }

    /// The objects, in no order, that `want` selects by what is seen at a glance.
    pub fn select(&self, want: impl Fn(K::Glance) -> bool) -> Vec<Arc<K>> {
        self.shelf().all(want)
    }

    /// Names of the objects with a key. With a chance of one in a million million it is one too many.
    pub fn names(&self, key: &Key) -> Vec<Name> {
        self.shelf().glances(key).map(|(name, _)| name.clone()).collect()
    }

    /// What is seen at a glance of the objects with a key; as exact as [`names`](Self::names).
    pub fn glances(&self, key: &Key) -> Vec<K::Glance> {
        self.shelf().glances(key).map(|(_, glance)| glance).collect()
    }

    /// What is seen at a glance of all objects.
    pub fn all_glances(&self) -> Vec<K::Glance> {
        self.shelf().all_glances().map(|(_, _, glance)| glance).collect()
    }

    /// Names of all objects.
    pub fn all_names(&self) -> Vec<Name> {
        self.share(0, 1)
    }

    /// The names of one of `of` shares of all objects, by turns.
    pub fn share(&self, turn: usize, of: usize) -> Vec<Name> {
        self.shelf()
            .all_glances()
            .filter(|(place, _, _)| place % of.max(1) == turn)
            .map(|(_, name, _)| name.clone())
            .collect()
    }

    /// Whether an object that does not parse, and is not here for that or only as it was, has this key. The one with the name `except`
    /// is left out: a NIC does not keep an address from itself.
    pub fn unread_has(&self, key: &Key, except: Option<&Name>) -> bool {
        let unread = self.unread();
        let mut others = unread.iter().filter(|(name, _)| Some(*name) != except);
        others.any(|(_, keys)| keys.contains(key))
    }

    fn unread(&self) -> MutexGuard<'_, Unread> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf<K>> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the API server says that it serves no such kind.
fn has_no_such_kind(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 404,
        _ => false,
    }
}

fn order<K: Object>(object: &K) -> (Option<&str>, Option<&str>) {
    let meta = object.meta();
    (meta.namespace.as_deref(), meta.name.as_deref())
}

impl<K: Object> Feed<K> {
    /// Feeds the cache until the stream ends; calls `changed(old, new)` for each object that came, changed or went since the
    /// cache was filled, and once with neither when the cluster has got the kind since then. One that does not parse stays as it was, until it
    /// does or goes.
    pub async fn run(
        mut self,
        events: impl Stream<Item = Result<watcher::Event<Wire<K>>, watcher::Error>>,
        changed: impl Fn(Option<&K>, Option<&K>),
    ) {
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => self.apply(event, &changed),
                Err(error) if K::OPTIONAL && has_no_such_kind(&error) => self.is_absent(),
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "the watch broke; it is taken up again");
                }
            }
        }
    }

    /// One event of the stream.
    pub fn apply(&mut self, event: watcher::Event<Wire<K>>, changed: &impl Fn(Option<&K>, Option<&K>)) {
        match event {
            watcher::Event::Init => {
                self.cache.shelf().unlist();
                self.listed_unread.clear();
            }
            watcher::Event::Apply(Wire(Ok(object))) | watcher::Event::InitApply(Wire(Ok(object))) => {
                self.put(object, changed);
            }
            watcher::Event::Apply(Wire(Err(bad))) | watcher::Event::InitApply(Wire(Err(bad))) => {
                let (kind, meta, error) = (K::kind(&()), &bad.metadata, &bad.error);
                let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
                tracing::warn!(%kind, namespace, name, error, "ignored: it does not parse");
                let name = Name::new(namespace.unwrap_or_default(), name.unwrap_or_default());
                self.cache.shelf().list(&name);
                // As it is now: what it had before is free.
                if bad.keys.is_empty() {
                    self.cache.unread().remove(&name);
                } else {
                    self.listed_unread.insert(name.clone());
                    self.cache.unread().insert(name, bad.keys);
                }
            }
            watcher::Event::Delete(object) => {
                let name = Name::of(&object);
                self.cache.unread().remove(&name);
                self.remove(&name, changed);
            }
            watcher::Event::InitDone => {
                let listed = std::mem::take(&mut self.listed_unread);
                self.cache.unread().retain(|name, _| listed.contains(name));
                let gone = self.cache.shelf().unlisted();
                for name in &gone {
                    self.remove(name, changed);
                }
                self.cache.served.store(true, Ordering::Relaxed);
                self.filled.send_replace(true);
                if std::mem::take(&mut self.absent) {
                    tracing::info!(kind = %K::kind(&()), group = %K::group(&()), "the cluster has this kind now");
                    changed(None, None);
                }
            }
        }
    }

    /// The cluster does not have the kind now: nothing waits for its objects. What is known of them stays, because an API server that
    /// has just started may not serve it yet.
    fn is_absent(&mut self) {
        self.cache.served.store(false, Ordering::Relaxed);
        if !std::mem::replace(&mut self.absent, true) {
            let (kind, group) = (K::kind(&()), K::group(&()));
            tracing::info!(%kind, %group, "the cluster does not have this kind; it is looked for again and again");
        }
        self.filled.send_replace(true);
    }

    fn put(&mut self, object: K, changed: &impl Fn(Option<&K>, Option<&K>)) {
        self.cache.unread().remove(&Name::of(&object));
        // The lock is not held during the call: it looks here.
        let put = self.cache.shelf().put(object);
        if let Put {
            old,
            new,
            changed: true,
        } = put
            && *self.filled.borrow()
        {
            changed(old.as_deref(), Some(&new));
        }
    }

    fn remove(&mut self, name: &Name, changed: &impl Fn(Option<&K>, Option<&K>)) {
        let old = self.cache.shelf().remove(name);
        if let Some(old) = old
            && *self.filled.borrow()
        {
            changed(Some(&old), None);
        }
    }
}

#[cfg(test)]
mod tests;
