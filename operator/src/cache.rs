//! One watch, one store and the indexes of one kind.
//!
//! Reconciles read only from here. [`Feed`] writes a cache from a watch and says what changed, also what vanished while
//! the watch was broken, which neither kube's `touched_objects` nor its shared streams do; and it says so only after the
//! store has it, so that a reconcile that follows a change sees that change.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock};

use futures::{Stream, StreamExt};
use kube::ResourceExt;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;

/// A Kubernetes kind as the caches hold it.
pub trait Object:
    ResourceExt + kube::Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static
{
}
impl<K: kube::Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static> Object for K {}

/// What an object is looked up by, besides its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// By namespace.
    Namespace(String),
    /// By the VM: namespace and name.
    Vm(String, String),
    /// By the NIC: namespace and name.
    Nic(String, String),
    /// By the network.
    Network(String),
    /// By the node.
    Node(String),
    /// By the MAC address, lower case.
    Mac(String),
}

type Index<K> = HashMap<Key, BTreeMap<(String, String), Arc<K>>>;

/// All objects of a kind, for reading. Clones share it.
#[derive(Clone)]
pub struct Cache<K: Object> {
    store: Store<K>,
    index: Arc<RwLock<Index<K>>>,
    keys: fn(&K) -> Vec<Key>,
}

/// The writing end of a [`Cache`].
pub struct Feed<K: Object> {
    writer: Writer<K>,
    cache: Cache<K>,
}

/// A cache with the keys that `keys` gives for each object, and its feed.
pub fn cache<K: Object>(keys: fn(&K) -> Vec<Key>) -> (Cache<K>, Feed<K>) {
    let writer = Writer::default();
    let cache = Cache {
        store: writer.as_reader(),
        index: Arc::default(),
        keys,
    };
    (cache.clone(), Feed { writer, cache })
}

impl<K: Object> Cache<K> {
    /// The object of a name; of a cluster-scoped kind with `namespace` empty.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let key = ObjectRef::new(name);
        self.store.get(&if namespace.is_empty() {
            key
        } else {
            key.within(namespace)
        })
    }

    /// The objects with a key, ordered by namespace and name.
    pub fn by(&self, key: &Key) -> Vec<Arc<K>> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index
            .get(key)
            .map(|objects| objects.values().cloned().collect())
            .unwrap_or_default()
    }

    /// All objects, in no order.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.store.state()
    }

    /// kube's own view of it.
    pub fn store(&self) -> Store<K> {
        self.store.clone()
    }

    fn reindex(&self, old: Option<&Arc<K>>, new: Option<&Arc<K>>) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = old {
            let id = identity(old.as_ref());
            for key in (self.keys)(old) {
                if let Some(objects) = index.get_mut(&key) {
                    objects.remove(&id);
                    if objects.is_empty() {
                        index.remove(&key);
                    }
                }
            }
        }
        if let Some(new) = new {
            for key in (self.keys)(new) {
                index
                    .entry(key)
                    .or_default()
                    .insert(identity(new.as_ref()), new.clone());
            }
        }
    }
}

impl<K: Object> Feed<K> {
    /// Feeds the cache until the stream ends; calls `changed(old, new)` for each object that came, changed or went.
    pub async fn run(
        mut self,
        events: impl Stream<Item = Result<watcher::Event<K>, watcher::Error>>,
        changed: impl Fn(Option<&K>, Option<&K>),
    ) {
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => self.apply(&event, &changed),
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "the watch broke; it is taken up again");
                }
            }
        }
    }

    fn apply(&mut self, event: &watcher::Event<K>, changed: &impl Fn(Option<&K>, Option<&K>)) {
        let store = self.cache.store.clone();
        match event {
            watcher::Event::Apply(object) | watcher::Event::Delete(object) => {
                let name = ObjectRef::from_obj(object);
                let old = store.get(&name);
                self.writer.apply_watcher_event(event);
                self.note(old.as_ref(), store.get(&name).as_ref(), changed);
            }
            watcher::Event::InitDone => {
                let mut old: HashMap<_, _> = by_ref(&store);
                self.writer.apply_watcher_event(event);
                for (name, new) in by_ref(&store) {
                    let old = old.remove(&name);
                    let same = |old: &Arc<K>| old.resource_version() == new.resource_version();
                    if !old.as_ref().is_some_and(same) {
                        self.note(old.as_ref(), Some(&new), changed);
                    }
                }
                for gone in old.values() {
                    self.note(Some(gone), None, changed);
                }
            }
            watcher::Event::Init | watcher::Event::InitApply(_) => self.writer.apply_watcher_event(event),
        }
    }

    fn note(&self, old: Option<&Arc<K>>, new: Option<&Arc<K>>, changed: &impl Fn(Option<&K>, Option<&K>)) {
        self.cache.reindex(old, new);
        changed(old.map(AsRef::as_ref), new.map(AsRef::as_ref));
    }
}

fn by_ref<K: Object>(store: &Store<K>) -> HashMap<ObjectRef<K>, Arc<K>> {
    store
        .state()
        .into_iter()
        .map(|object| (ObjectRef::from_obj(object.as_ref()), object))
        .collect()
}

fn identity<K: Object>(object: &K) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Leaves out objects that do not parse, with a warning, so that one of them cannot stop the watch on all others.
pub fn parsed<K: Object>(
    events: impl Stream<Item = Result<watcher::Event<DeserializeGuard<K>>, watcher::Error>>,
) -> impl Stream<Item = Result<watcher::Event<K>, watcher::Error>> {
    events.filter_map(|event| async {
        let object = |guard: DeserializeGuard<K>| match guard.0 {
            Ok(object) => Some(object),
            Err(bad) => {
                let (namespace, name) = (bad.metadata.namespace, bad.metadata.name);
                tracing::warn!(kind = %K::kind(&()), ?namespace, ?name, error = bad.error, "ignored, as it does not parse");
                None
            }
        };
        match event {
            Ok(watcher::Event::Apply(guard)) => object(guard).map(watcher::Event::Apply).map(Ok),
            Ok(watcher::Event::Delete(guard)) => object(guard).map(watcher::Event::Delete).map(Ok),
            Ok(watcher::Event::InitApply(guard)) => object(guard).map(watcher::Event::InitApply).map(Ok),
            Ok(watcher::Event::Init) => Some(Ok(watcher::Event::Init)),
            Ok(watcher::Event::InitDone) => Some(Ok(watcher::Event::InitDone)),
            Err(error) => Some(Err(error)),
        }
    })
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

    fn keys(map: &ConfigMap) -> Vec<Key> {
        vec![Key::Vm("ns".to_owned(), map.labels()["vm"].clone())]
    }

    fn names(cache: &Cache<ConfigMap>, vm: &str) -> Vec<String> {
        cache
            .by(&Key::Vm("ns".to_owned(), vm.to_owned()))
            .iter()
            .map(|m| m.name_any())
            .collect()
    }

    #[test]
    fn what_vanished_while_the_watch_was_broken_is_said() {
        let (cache, mut feed) = cache(keys);
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
        for event in [
            watcher::Event::Init,
            watcher::Event::InitApply(map("a", "1", "x")),
            watcher::Event::InitApply(map("b", "2", "x")),
            watcher::Event::InitApply(map("c", "3", "y")),
        ] {
            feed.apply(&event, &changed);
        }
        assert!(log.borrow().is_empty(), "nothing is there before all is");
        feed.apply(&watcher::Event::InitDone, &changed);
        log.borrow_mut().sort();
        assert_eq!(log.take(), ["a:>1", "b:>2", "c:>3"]);
        assert_eq!(names(&cache, "x"), ["a", "b"]);

        feed.apply(&watcher::Event::Apply(map("b", "4", "y")), &changed);
        feed.apply(&watcher::Event::Delete(map("c", "5", "y")), &changed);
        assert_eq!(log.take(), ["b:2>4", "c:3>"]);
        assert_eq!(
            (names(&cache, "x"), names(&cache, "y")),
            (vec!["a".to_owned()], vec!["b".to_owned()])
        );

        for event in [
            watcher::Event::Init,
            watcher::Event::InitApply(map("b", "4", "y")),
            watcher::Event::InitApply(map("d", "9", "x")),
            watcher::Event::InitDone,
        ] {
            feed.apply(&event, &changed);
        }
        log.borrow_mut().sort();
        assert_eq!(log.take(), ["a:1>", "d:>9"]);
        assert_eq!(names(&cache, "x"), ["d"]);
    }

    #[tokio::test]
    async fn an_object_that_does_not_parse_is_left_out() {
        let bad =
            serde_json::from_value(serde_json::json!({"metadata": {"name": "bad"}, "data": 7})).unwrap();
        let good = DeserializeGuard(Ok(map("good", "1", "x")));
        let events = futures::stream::iter([Ok(watcher::Event::Apply(bad)), Ok(watcher::Event::Apply(good))]);
        let left: Vec<_> = parsed::<ConfigMap>(events).collect().await;
        assert!(matches!(&left[..], [Ok(watcher::Event::Apply(m))] if m.name_any() == "good"));
    }
}
