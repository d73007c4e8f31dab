//! The watches that keep the caches true and ask for reconciles.

use futures::FutureExt;
use futures::future::{BoxFuture, try_join_all};
use hybridnic_process::api;
use hybridnic_process::watch::follow;
use kube::core::NamespaceResourceScope;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use tokio::sync::watch;

use crate::cache::{self, Cache, Ended, Wire};
use crate::kinds::Watched;
use crate::triggers::Triggers;

type Start = Box<dyn FnOnce(&Client, &Triggers) -> BoxFuture<'static, ()>>;

/// The watches of all kinds, not begun.
#[derive(Default)]
pub struct Watches {
    start: Vec<Start>,
    filled: Vec<watch::Receiver<bool>>,
}

impl Watches {
    /// The cache of a kind that is watched in all namespaces.
    pub fn all<K: Watched>(&mut self) -> Cache<K> {
        let config = api::watches();
        let config = match K::LABEL {
            None => config,
            Some(label) => config.labels(label),
        };
        self.some(config, |client| Api::all(client.clone()))
    }

    /// The cache of a kind of another project; if there is a label, only objects with it are watched. Always empty
    /// if `on` is false.
    pub fn foreign<K: Watched>(&mut self, on: bool, label: Option<&str>) -> Cache<K> {
        if !on {
            let (cache, _) = cache::cache();
            return cache;
        }
        let config = api::watches();
        let config = match label {
            None => config,
            Some(label) => config.labels(label),
        };
        self.some(config, |client| Api::all(client.clone()))
    }

    /// The cache of a kind; only a namespace's objects with some labels are watched.
    pub fn of<K>(&mut self, namespace: &str, labels: &str) -> Cache<K>
    where
        K: Watched + Resource<Scope = NamespaceResourceScope>,
    {
        let (namespace, config) = (namespace.to_owned(), api::watches().labels(labels));
        self.some(config, move |client| Api::namespaced(client.clone(), &namespace))
    }

    fn some<K: Watched>(
        &mut self,
        config: watcher::Config,
        api: impl FnOnce(&Client) -> Api<Wire<K>> + 'static,
    ) -> Cache<K> {
        let (cache, feed) = cache::cache();
        self.filled.push(cache.filled());
        self.start.push(Box::new(move |client, triggers| {
            let events = follow(api(client), config);
            let triggers = triggers.clone();
            let changed = move |old: Option<&K>, new: Option<&K>| match (old, new) {
                (None, None) => triggers.foreign_kind(),
                _ => K::changed(&triggers, old, new),
            };
            async move { feed.run(events, changed).await }.boxed()
        }));
        cache
    }

    /// The tasks that watch, none of which ends; and a wait until every cache holds what the API server had.
    pub fn begin(
        self,
        client: &Client,
        triggers: &Triggers,
    ) -> (
        Vec<BoxFuture<'static, ()>>,
        impl Future<Output = Result<(), Ended>>,
    ) {
        let tasks = self.start.into_iter().map(|start| start(client, triggers));
        let filled = try_join_all(self.filled.into_iter().map(cache::until_filled));
        (tasks.collect(), async { filled.await.map(|_| ()) })
    }
}
