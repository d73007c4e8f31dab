//! Runs one kind's reconciles: kube's controller core on a shared cache.
//!
//! kube's `Controller` opens a watch of its own for each kind it looks at; here all controllers share one watch a kind,
//! so this uses the part of it beneath, [`applier`]: one reconcile at a time for each object, bounded concurrency,
//! requeues and graceful shutdown.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use kube::runtime::applier;
use kube::runtime::controller::{self, Action};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Resource, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::cache::Object;
use crate::metrics::Reconciles;
use crate::write;

/// After a conflict the newer version is on its way here already.
const AFTER_CONFLICT: Duration = Duration::from_secs(1);
/// The pause after an object's first failure; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause after failures.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// Every object is looked at this often though nothing has changed, should a trigger be missing.
const SAFETY_NET: Duration = Duration::from_mins(15);

/// Makes one kind of objects true.
pub trait Reconciler: Send + Sync + 'static {
    /// The kind.
    type Kind: Object;

    /// Makes `object` true as far as it can be now.
    fn reconcile(&self, object: Arc<Self::Kind>) -> impl Future<Output = Result<Done, write::Error>> + Send;
}

/// What a reconcile has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Whether the object itself was written, and still is: its next version comes back here.
    pub wrote: bool,
    /// After how long to come again though nothing has changed.
    pub again: Option<Duration>,
}

/// Where changes ask for reconciles.
pub struct Queue<K: Object> {
    sender: UnboundedSender<ObjectRef<K>>,
    waiting: Waiting<K>,
}

/// The other end of a [`Queue`].
pub struct Requests<K: Object> {
    receiver: UnboundedReceiver<ObjectRef<K>>,
    waiting: Waiting<K>,
}

/// A queue. It is unbounded, as its reader only drops what it has already.
pub fn queue<K: Object>(reconciles: &Reconciles) -> (Queue<K>, Requests<K>) {
    let (sender, receiver) = futures::channel::mpsc::unbounded();
    let waiting = Waiting {
        objects: Arc::default(),
        reconciles: reconciles.clone(),
    };
    let queue = Queue {
        sender,
        waiting: waiting.clone(),
    };
    waiting.with(|_| ());
    (queue, Requests { receiver, waiting })
}

/// The objects for which a reconcile was asked and has not begun, for the metrics.
struct Waiting<K: Object> {
    objects: Arc<Mutex<HashSet<ObjectRef<K>>>>,
    reconciles: Reconciles,
}

impl<K: Object> Clone for Waiting<K> {
    fn clone(&self) -> Self {
        Self {
            objects: Arc::clone(&self.objects),
            reconciles: self.reconciles.clone(),
        }
    }
}

impl<K: Object> Waiting<K> {
    fn with<T>(&self, change: impl FnOnce(&mut HashSet<ObjectRef<K>>) -> T) {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut objects);
        self.reconciles.wait(&K::kind(&()), objects.len());
    }
}

impl<K: Object> Queue<K> {
    /// Asks for a reconcile of an object.
    pub fn add(&self, object: &K) {
        self.send(ObjectRef::from_obj(object));
    }

    /// Asks for a reconcile of an object by its name; `namespace` is empty for a cluster-scoped kind.
    pub fn add_name(&self, namespace: &str, name: &str) {
        let object = ObjectRef::new(name);
        self.send(if namespace.is_empty() {
            object
        } else {
            object.within(namespace)
        });
    }

    fn send(&self, object: ObjectRef<K>) {
        self.waiting.with(|objects| objects.insert(object.clone()));
        // A queue whose controller has stopped belongs to a process that stops.
        let _ = self.sender.unbounded_send(object);
    }
}

struct Context<R: Reconciler> {
    reconciler: R,
    work: Reconciles,
    waiting: Waiting<R::Kind>,
    failures: Mutex<HashMap<ObjectRef<R::Kind>, u32>>,
    /// Versions on which a write was decided: when one is seen again, the cache has not caught up yet.
    overwritten: Mutex<HashMap<ObjectRef<R::Kind>, Option<String>>>,
}

impl<R: Reconciler> Context<R> {
    /// Whether this version is known to be out of date. It is said once: a write may have changed nothing after all.
    fn is_stale(&self, name: &ObjectRef<R::Kind>, version: Option<&String>) -> bool {
        let mut overwritten = self.overwritten.lock().unwrap_or_else(PoisonError::into_inner);
        overwritten
            .remove(name)
            .is_some_and(|old| old.as_ref() == version)
    }
}

/// Runs reconciles, at most `concurrency` at once, until `stop`; those that run then are finished.
pub async fn run<R: Reconciler>(
    reconciler: R,
    store: Store<R::Kind>,
    requests: Requests<R::Kind>,
    concurrency: u16,
    work: Reconciles,
    stop: CancellationToken,
) {
    let Requests { receiver, waiting } = requests;
    let context = Arc::new(Context {
        reconciler,
        work,
        waiting: waiting.clone(),
        failures: Mutex::default(),
        overwritten: Mutex::default(),
    });
    let requests = receiver
        .take_until(stop.cancelled_owned())
        .map(Ok::<_, std::convert::Infallible>);
    let config = controller::Config::default().concurrency(concurrency);
    let kind = <R::Kind as Resource>::kind(&());
    let kind = kind.as_ref();
    applier(reconcile, retry, context, store, requests, config)
        .for_each(|done| {
            match done {
                Ok((object, _)) => tracing::trace!(%object, "reconciled"),
                // It was deleted between the change and now.
                Err(controller::Error::ObjectNotFound(object)) => {
                    tracing::trace!(%object, "gone");
                    let is_it = |waits: &ObjectRef<_>| {
                        (&waits.name, &waits.namespace) == (&object.name, &object.namespace)
                    };
                    waiting.with(|objects| objects.retain(|waits| !is_it(waits)));
                }
                Err(controller::Error::ReconcilerFailed(error, object))
                    if error.is_conflict() || error.is_gone() =>
                {
                    let (namespace, name) = (object.namespace.as_deref(), object.name.as_str());
                    tracing::debug!(kind, namespace, name, error = %Chain(&error), "changed meanwhile");
                }
                Err(controller::Error::ReconcilerFailed(error, object)) => {
                    let (namespace, name) = (object.namespace.as_deref(), object.name.as_str());
                    tracing::warn!(kind, namespace, name, error = %Chain(&error), "not reconciled; will be tried again");
                }
                Err(error) => tracing::warn!(kind, error = %Chain(&error), "not reconciled"),
            }
            std::future::ready(())
        })
        .await;
}

fn reconcile<R: Reconciler>(
    object: Arc<R::Kind>,
    context: Arc<Context<R>>,
) -> BoxFuture<'static, Result<Action, write::Error>> {
    async move {
        let name = ObjectRef::from_obj(object.as_ref());
        context.waiting.with(|objects| objects.remove(&name));
        let version = ResourceExt::resource_version(object.as_ref());
        if context.is_stale(&name, version.as_ref()) {
            return Ok(Action::requeue(AFTER_CONFLICT));
        }
        let begun = context.work.begin(&<R::Kind as Resource>::kind(&()));
        let Done { wrote, again } = context.reconciler.reconcile(object).await?;
        drop(begun);
        if wrote {
            let mut overwritten = context.overwritten.lock().unwrap_or_else(PoisonError::into_inner);
            overwritten.insert(name.clone(), version);
        }
        context
            .failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&name);
        Ok(Action::requeue(again.unwrap_or(SAFETY_NET).min(SAFETY_NET)))
    }
    .boxed()
}

#[allow(clippy::needless_pass_by_value)] // kube's signature
fn retry<R: Reconciler>(object: Arc<R::Kind>, error: &write::Error, context: Arc<Context<R>>) -> Action {
    context.work.failed(&<R::Kind as Resource>::kind(&()), error);
    if error.is_gone() {
        return Action::await_change();
    }
    if error.is_conflict() {
        return Action::requeue(AFTER_CONFLICT);
    }
    let mut failures = context.failures.lock().unwrap_or_else(PoisonError::into_inner);
    let failed = failures.entry(ObjectRef::from_obj(object.as_ref())).or_default();
    *failed = failed.saturating_add(1);
    Action::requeue(pause(*failed))
}

fn pause(failed: u32) -> Duration {
    FIRST_PAUSE
        .saturating_mul(2_u32.saturating_pow(failed.saturating_sub(1)))
        .min(LONGEST_PAUSE)
}

/// An error with its causes. kube's own errors print theirs themselves, so it stops at the first of them.
struct Chain<'a>(&'a (dyn std::error::Error + 'static));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        self.0.source().map_or(Ok(()), |source| write!(f, ": {source}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        let pauses: Vec<_> = [1, 2, 3, 7, 8, u32::MAX]
            .into_iter()
            .map(|n| pause(n).as_millis())
            .collect();
        assert_eq!(pauses, [500, 1000, 2000, 32_000, 60_000, 60_000]);
    }
}
