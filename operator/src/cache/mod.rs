//! One watch and one store of one kind.
//!
//! Reconciles read only from here. [`Feed`] writes a cache from a watch and says what changed, also what vanished while
//! the watch was broken, which neither kube's `touched_objects` nor its shared streams do; and it says so only after the
//! store has it, so that a reconcile that follows a change sees that change.
//!
//! A cluster has very many objects, of which few are in use at a time. So a cache holds only what is read of each, and
//! packs those at rest: see [`Object`] and [`pack`].

mod pack;
mod shelf;
mod wire;

use std::collections::{HashMap, HashSet};
use std::fmt::{self, Debug};
use std::net::IpAddr;
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
    /// What of an object is looked at for very many of them at once, so that it must be there without unpacking them.
    type Glance: Copy + Send + Sync;

    /// What it is looked up by, besides its name.
    fn keys(&self) -> Vec<Key>;

    /// What is seen of it at a glance.
    fn glance(&self) -> Self::Glance;

    /// Drops what nobody reads.
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

/// The objects that do not parse, and the MACs that they have all the same.
type Unread = HashMap<Name, Vec<String>>;

/// All objects of a kind, for reading. Clones share it.
pub struct Cache<K: Object> {
    shelf: Arc<Mutex<Shelf<K>>>,
    unread: Arc<Mutex<Unread>>,
    filled: watch::Receiver<bool>,
}

impl<K: Object> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self {
            shelf: Arc::clone(&self.shelf),
            unread: Arc::clone(&self.unread),
            filled: self.filled.clone(),
        }
    }
}

/// The writing end of a [`Cache`].
pub struct Feed<K: Object> {
    cache: Cache<K>,
    /// Those of a list that do not parse.
    listed_unread: HashSet<Name>,
    filled: watch::Sender<bool>,
}

/// The watch that feeds a cache has ended.
#[derive(Debug, thiserror::Error)]
#[error("the watch has ended")]
pub struct Ended;

/// A cache, and its feed.
pub fn cache<K: Object>() -> (Cache<K>, Feed<K>) {
    let (filled, receiver) = watch::channel(false);
    let cache = Cache {
        shelf: Arc::default(),
        unread: Arc::default(),
        filled: receiver,
    };
    let feed = Feed {
        cache: cache.clone(),
        listed_unread: HashSet::new(),
        filled,
    };
    (cache, feed)
}

impl<K: Object> Cache<K> {
    /// Waits until it holds what the API server had.
    pub async fn ready(&self) -> Result<(), Ended> {
        let filled = self.filled.clone().wait_for(|filled| *filled).await.map(|_| ());
        filled.map_err(|_| Ended)
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
        self.shelf().look(name)
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

    /// All objects, in no order. Each is unpacked: for kinds of which there are few.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.shelf().all(|_| true)
    }

    /// The objects, in no order, of which `want` wants what is seen at a glance.
    pub fn select(&self, want: impl Fn(K::Glance) -> bool) -> Vec<Arc<K>> {
        self.shelf().all(want)
    }

    /// Names of the objects with a key. By a chance of one to a million million it is one too many.
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

    /// Whether an object that does not parse, and is not here for that, has this MAC.
    pub fn unread_has(&self, mac: &str) -> bool {
        let unread = self.unread();
        unread.values().any(|macs| macs.iter().any(|other| other == mac))
    }

    fn unread(&self) -> MutexGuard<'_, Unread> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf<K>> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn order<K: Object>(object: &K) -> (Option<&str>, Option<&str>) {
    let meta = object.meta();
    (meta.namespace.as_deref(), meta.name.as_deref())
}

impl<K: Object> Feed<K> {
    /// Feeds the cache until the stream ends; calls `changed(old, new)` for each object that came, changed or went since the
    /// cache was filled. One that does not parse stays as it was, until it does or goes.
    pub async fn run(
        mut self,
        events: impl Stream<Item = Result<watcher::Event<Wire<K>>, watcher::Error>>,
        changed: impl Fn(Option<&K>, Option<&K>),
    ) {
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => self.apply(event, &changed),
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
                if !bad.macs.is_empty() {
                    self.listed_unread.insert(name.clone());
                    self.cache.unread().insert(name, bad.macs);
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
                self.filled.send_replace(true);
            }
        }
    }

    fn put(&mut self, object: K, changed: &impl Fn(Option<&K>, Option<&K>)) {
        self.cache.unread().remove(&Name::of(&object));
        // The lock is not held while others are called, who look here.
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
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::ObjectMeta;
    use std::cell::RefCell;

    fn map(name: &str, version: &str, vm: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some("ns".to_owned()),
                resource_version: Some(version.to_owned()),
                labels: Some([("vm".to_owned(), vm.to_owned())].into()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        }
    }

    impl Object for ConfigMap {
        type Glance = usize;
        fn keys(&self) -> Vec<Key> {
            let vm = self.labels().get("vm").cloned();
            vec![Key::Vm(VmRef::qemu("ns", vm.unwrap_or_default()))]
        }
        fn glance(&self) -> usize {
            self.labels().get("vm").map_or(0, String::len)
        }
        fn trim(&mut self) {
            self.data = None;
        }
    }

    fn names(cache: &Cache<ConfigMap>, vm: &str) -> Vec<String> {
        cache
            .by(&Key::Vm(VmRef::qemu("ns", vm)))
            .iter()
            .map(|m| m.name_any())
            .collect()
    }

    fn fill(feed: &mut Feed<ConfigMap>, maps: impl IntoIterator<Item = ConfigMap>) {
        let events = maps.into_iter().map(|map| watcher::Event::InitApply(map.into()));
        let events = std::iter::once(watcher::Event::Init).chain(events);
        for event in events.chain([watcher::Event::InitDone]) {
            feed.apply(event, &|_, _| {});
        }
    }

    #[test]
    fn of_many_objects_all_are_found_and_few_are_unpacked() {
        let (cache, mut feed) = cache();
        let maps = (0..100).map(|n| {
            let mut map = map(&format!("m{n:02}"), "1", ["x", "yy"][n % 2]);
            map.data = Some([("much".to_owned(), "x".repeat(1000))].into());
            map.annotations_mut().insert("many".to_owned(), "x".repeat(1000));
            map
        });
        fill(&mut feed, maps);
        assert_eq!(cache.by(&Key::Vm(VmRef::qemu("ns", "x"))).len(), 50);
        let seven = cache.get("ns", "m07").unwrap();
        assert_eq!((seven.labels()["vm"].as_str(), &seven.data), ("yy", &None));
        assert!(seven.annotations().is_empty());
        assert!(
            Arc::ptr_eq(&seven, &cache.get("ns", "m07").unwrap()),
            "still warm"
        );
        cache.get("ns", "m08");
        cache.get("ns", "m09");
        let again = cache.get("ns", "m07").unwrap();
        assert!(!Arc::ptr_eq(&seven, &again) && seven == again, "packed meanwhile");

        assert_eq!(cache.select(|length| length == 2).len(), 50);
        let key = Key::Vm(VmRef::qemu("ns", "yy"));
        assert_eq!(cache.glances(&key), vec![2; 50]);
        assert_eq!(cache.names(&key).len(), 50);
        let mut shares: Vec<_> = (0..7).flat_map(|turn| cache.share(turn, 7)).collect();
        shares.sort_by_key(ToString::to_string);
        let mut all = cache.all_names();
        all.sort_by_key(ToString::to_string);
        assert_eq!((all.len(), &all), (100, &shares));
        assert_eq!(all[7].to_string(), "ns/m07");

        // Whatever comes and goes afterwards, by its place in no order.
        for n in 0..60 {
            let gone = map(&format!("m{n:02}"), "2", "");
            feed.apply(watcher::Event::Delete(gone.into()), &|_, _| {});
        }
        feed.apply(watcher::Event::Apply(map("m99", "3", "zzz").into()), &|_, _| {});
        feed.apply(watcher::Event::Apply(map("new", "4", "x").into()), &|_, _| {});
        assert_eq!(names(&cache, "zzz"), ["m99"]);
        assert_eq!(cache.glances(&key).len(), 19);
        assert_eq!(names(&cache, "x").len(), 21);
        assert_eq!(cache.get("ns", "m07"), None);
    }

    #[test]
    fn what_vanished_while_the_watch_was_broken_is_said() {
        let (cache, mut feed) = cache::<ConfigMap>();
        let log = RefCell::new(Vec::new());
        let changed = |old: Option<&ConfigMap>, new: Option<&ConfigMap>| {
            let version =
                |m: Option<&ConfigMap>| m.and_then(ResourceExt::resource_version).unwrap_or_default();
            let name = new.or(old).map(ResourceExt::name_any).unwrap_or_default();
            // The store has it already.
            assert_eq!(
                cache
                    .get("ns", &name)
                    .and_then(|m| m.resource_version())
                    .unwrap_or_default(),
                version(new)
            );
            log.borrow_mut()
                .push(format!("{name}:{}>{}", version(old), version(new)));
        };
        fill(
            &mut feed,
            [map("a", "1", "x"), map("b", "2", "x"), map("c", "3", "y")],
        );
        assert_eq!(names(&cache, "x"), ["a", "b"]);

        feed.apply(watcher::Event::Apply(map("b", "4", "y").into()), &changed);
        feed.apply(watcher::Event::Delete(map("c", "5", "y").into()), &changed);
        assert_eq!(log.take(), ["b:2>4", "c:3>"]);
        assert_eq!(
            (names(&cache, "x"), names(&cache, "y")),
            (vec!["a".to_owned()], vec!["b".to_owned()])
        );

        for event in [
            watcher::Event::Init,
            watcher::Event::InitApply(map("b", "4", "y").into()),
            watcher::Event::InitApply(map("d", "9", "x").into()),
            watcher::Event::InitDone,
        ] {
            feed.apply(event, &changed);
        }
        log.borrow_mut().sort();
        assert_eq!(log.take(), ["a:1>", "d:>9"]);
        assert_eq!(names(&cache, "x"), ["d"]);
    }

    #[test]
    fn an_object_that_does_not_parse_any_more_stays_as_it_was() {
        let (cache, mut feed) = cache::<ConfigMap>();
        let bad = |name: &str| -> Wire<ConfigMap> {
            let text = format!(r#"{{"metadata": {{"namespace": "ns", "name": "{name}"}}, "data": 7}}"#);
            serde_json::from_str(&text).unwrap()
        };
        fill(&mut feed, [map("a", "1", "x")]);
        let changed =
            |_: Option<&ConfigMap>, _: Option<&ConfigMap>| panic!("nothing is known to have changed");
        for event in [
            watcher::Event::Apply(bad("a")),
            watcher::Event::Init,
            watcher::Event::InitApply(bad("a")),
            watcher::Event::InitApply(bad("b")),
            watcher::Event::InitDone,
        ] {
            feed.apply(event, &changed);
        }
        assert_eq!(names(&cache, "x"), ["a"]);
        feed.apply(watcher::Event::Delete(bad("a")), &|_, _| {});
        assert_eq!(cache.all(), []);
    }

    /// A leader that has just begun has never seen how it was.
    #[test]
    fn the_address_of_an_object_that_does_not_parse_is_known_for_as_long_as_it_is_there() {
        const MAC: &str = "52:54:00:00:00:0a";
        let (cache, mut feed) = cache::<ConfigMap>();
        let bad = || -> Wire<ConfigMap> {
            let text = format!(
                r#"{{"metadata": {{"namespace": "ns", "name": "a"}}, "data": 7, "spec": {{"mac": "{MAC}"}}}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        let mut seen = |events: Vec<watcher::Event<Wire<ConfigMap>>>| {
            for event in events {
                feed.apply(event, &|_, _| {});
            }
            cache.unread_has(MAC)
        };
        let list = |object: Option<Wire<ConfigMap>>| {
            let listed = object.map(watcher::Event::InitApply);
            [watcher::Event::Init]
                .into_iter()
                .chain(listed)
                .chain([watcher::Event::InitDone])
                .collect()
        };
        assert!(seen(list(Some(bad()))));
        assert!(seen(list(Some(bad()))), "listed once more");
        assert!(!seen(list(None)), "gone while nobody watched");
        assert!(seen(vec![watcher::Event::Apply(bad())]));
        assert!(
            !seen(vec![watcher::Event::Apply(map("a", "2", "x").into())]),
            "it parses again"
        );
        assert!(seen(vec![watcher::Event::Apply(bad())]));
        assert!(!seen(vec![watcher::Event::Delete(bad())]));
    }
}
