//! Runs one kind's reconciles: one at a time for each object, but many in parallel, because most of them wait for the API server.
//!
//! kube's `Controller` opens a watch of its own for each kind it looks at, and keeps whole objects; here all controllers
//! share one watch and one [`Cache`] for each kind, and urgent reconciles come first.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hybridnic_process::backoff::Backoff;
use hybridnic_process::pace::Pace;
use kube::{Resource, ResourceExt};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;
use tokio_util::time::{DelayQueue, delay_queue};
use tracing::{Instrument, Span};

use crate::cache::{Cache, Name, Object};
use crate::metrics::Reconciles;
use crate::queue::{Requests, Turn, Urgency};
use crate::write;

/// After a conflict the newer version is on its way here already.
const AFTER_CONFLICT: Duration = Duration::from_secs(1);
/// The pause after an object's first failure; it grows up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause after failures.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// How many writes of one object may follow each other at once, as those of a migration do; then there is one a second. What users
/// and agents write leads to writes, and no client should cause more of them by writing faster.
const BURST: u32 = 30;
/// See [`BURST`].
const APART: Duration = Duration::from_secs(1);
/// Every object is looked at even if nothing has changed, in case a trigger is missing: a share of them this often,
const SAFETY_NET: Duration = Duration::from_mins(1);
/// and all of them after so many shares.
const SHARES: usize = 15;

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

/// A reconcile that has ended.
struct Ended {
    name: Name,
    urgency: Urgency,
    /// The version that it was about.
    version: Option<String>,
    span: Span,
    done: Result<Done, write::Error>,
}

/// What is known of objects besides what the cache has.
struct Memory<R: Reconciler> {
    requests: Requests<R::Kind>,
    work: Reconciles,
    failures: HashMap<Name, Backoff>,
    /// Versions on which a write was decided: when one is seen again, the cache has not caught up yet.
    overwritten: HashMap<Name, Option<String>>,
    /// Of those that were written of late.
    paces: HashMap<Name, Pace>,
    later: DelayQueue<(Name, Urgency)>,
    timers: HashMap<Name, delay_queue::Key>,
}

/// Runs reconciles, as many at once as the requests have places for, until `stop`; those that run then are finished.
pub async fn run<R: Reconciler>(
    reconciler: R,
    cache: Cache<R::Kind>,
    requests: Requests<R::Kind>,
    work: Reconciles,
    stop: CancellationToken,
) {
    let mut memory = Memory::<R> {
        requests,
        work: work.clone(),
        failures: HashMap::new(),
        overwritten: HashMap::new(),
        paces: HashMap::new(),
        later: DelayQueue::new(),
        timers: HashMap::new(),
    };
    let mut running = FuturesUnordered::new();
    let mut shares = (0..SHARES).cycle();
    let mut net = interval_at(Instant::now() + SAFETY_NET, SAFETY_NET);
    net.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // First what frees a place, then what fills it.
            biased;
            () = stop.cancelled() => break,
            Some(ended) = running.next(), if !running.is_empty() => memory.settle(ended),
            Some(due) = memory.later.next(), if !memory.later.is_empty() => {
                let (name, urgency) = due.into_inner();
                memory.timers.remove(&name);
                memory.requests.ask(name, urgency);
            }
            _ = net.tick() => {
                memory.paces.retain(|_, pace| !pace.is_rested(Instant::now()));
                for name in cache.share(shares.next().unwrap_or_default(), SHARES) {
                    memory.requests.ask(name, Urgency::Usual);
                }
            }
            Turn { name, urgency, waited } = memory.requests.next() => {
                if let Some(timer) = memory.timers.remove(&name) {
                    memory.later.remove(&timer);
                }
                let Some(object) = cache.named(&name) else {
                    memory.forget(&name);
                    continue;
                };
                let version = ResourceExt::resource_version(object.as_ref());
                // It is said once: a write may have changed nothing after all.
                if memory.overwritten.remove(&name).is_some_and(|old| old == version) {
                    memory.requests.done(&name);
                    memory.again_after(AFTER_CONFLICT, name, urgency);
                    continue;
                }
                let rest = memory.paces.get(&name).map(|pace| pace.time_left(Instant::now()));
                if let Some(rest) = rest.filter(|rest| !rest.is_zero()) {
                    memory.requests.done(&name);
                    memory.again_after(rest, name, urgency);
                    continue;
                }
                let kind = <R::Kind as Resource>::kind(&());
                work.waited(&kind, urgency, waited);
                let begun = work.begin(&kind);
                // Which object every line is about, whatever is logged.
                let span = tracing::error_span!("reconcile", %kind, object = %name);
                let reconcile = reconciler.reconcile(object).instrument(span.clone());
                running.push(async move {
                    let done = reconcile.await;
                    drop(begun);
                    Ended { name, urgency, version, span, done }
                });
            }
        }
    }
    while running.next().await.is_some() {}
}

impl<R: Reconciler> Memory<R> {
    fn settle(&mut self, ended: Ended) {
        let Ended {
            name,
            urgency,
            version,
            span,
            done,
        } = ended;
        self.requests.done(&name);
        // A write that met a newer version costs the API server as much.
        if !matches!(done, Ok(Done { wrote: false, .. })) {
            let pace = self.paces.entry(name.clone());
            pace.or_insert_with(|| Pace::new(BURST, APART))
                .done(Instant::now());
        }
        let again = match done {
            Ok(Done { wrote, again }) => {
                if wrote {
                    self.overwritten.insert(name.clone(), version);
                }
                self.failures.remove(&name);
                again
            }
            Err(error) => span.in_scope(|| self.failed(&name, &error)),
        };
        if let Some(again) = again {
            self.again_after(again, name, urgency);
        }
    }

    /// Notes a failure; gives when to try again, if not at the next change.
    fn failed(&mut self, name: &Name, error: &write::Error) -> Option<Duration> {
        let kind = <R::Kind as Resource>::kind(&());
        self.work.failed(&kind, error);
        if error.is_conflict() || error.is_gone() {
            tracing::debug!(error = %Chain(error), "changed meanwhile");
            return error.is_conflict().then_some(AFTER_CONFLICT);
        }
        tracing::warn!(error = %Chain(error), "not reconciled; will be tried again");
        let backoff = self
            .failures
            .entry(name.clone())
            .or_insert_with(|| Backoff::new(FIRST_PAUSE, LONGEST_PAUSE));
        Some(backoff.next_pause())
    }

    fn again_after(&mut self, pause: Duration, name: Name, urgency: Urgency) {
        let timer = self.later.insert((name.clone(), urgency), pause);
        if let Some(before) = self.timers.insert(name, timer) {
            self.later.remove(&before);
        }
    }

    /// It was deleted between the change and now.
    fn forget(&mut self, name: &Name) {
        self.requests.done(name);
        self.failures.remove(name);
        self.overwritten.remove(name);
    }
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

    use std::sync::Mutex;

    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::ObjectMeta;
    use kube::runtime::watcher::Event;
    use tokio::sync::mpsc;

    use crate::cache::cache;
    use crate::queue::{Places, Queue};

    /// Records what it was asked to make true, and answers as a test says.
    struct Obedient {
        seen: mpsc::UnboundedSender<(String, Instant)>,
        orders: Mutex<HashMap<&'static str, Vec<Result<Done, write::Error>>>>,
        takes: Duration,
    }

    impl Reconciler for Obedient {
        type Kind = ConfigMap;

        async fn reconcile(&self, object: Arc<ConfigMap>) -> Result<Done, write::Error> {
            let name = object.name_any();
            let order = self
                .orders
                .lock()
                .unwrap()
                .get_mut(name.as_str())
                .and_then(Vec::pop);
            self.seen.send((name, Instant::now())).unwrap();
            tokio::time::sleep(self.takes).await;
            order.unwrap_or(Ok(Done::default()))
        }
    }

    fn late() -> Result<Done, write::Error> {
        Err(write::Error::Late {
            step: "apply the status",
            object: "ConfigMap ns/a".to_owned(),
        })
    }

    struct Bench {
        queue: Queue<ConfigMap>,
        seen: mpsc::UnboundedReceiver<(String, Instant)>,
        stop: CancellationToken,
        running: tokio::task::JoinHandle<()>,
        begun: Instant,
    }

    async fn bench(orders: HashMap<&'static str, Vec<Result<Done, write::Error>>>, at_once: usize) -> Bench {
        let (cache, feed) = cache();
        let map = |name: &str| ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some("ns".to_owned()),
                resource_version: Some("1".to_owned()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        };
        let names = ["a", "b", "c"].map(|name| Event::InitApply(map(name).into()));
        let events = [Event::Init].into_iter().chain(names).chain([Event::InitDone]);
        feed.run(futures::stream::iter(events.map(Ok)), |_, _| {}).await;
        let work = Reconciles::new(&mut hybridnic_process::metrics::Registry::default());
        let places = Places {
            urgent: at_once,
            others: at_once,
            beside_urgent: at_once,
        };
        let queue = Queue::new(&work, places);
        let (seen, receiver) = mpsc::unbounded_channel();
        let reconciler = Obedient {
            seen,
            orders: Mutex::new(orders),
            takes: Duration::from_millis(5),
        };
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(reconciler, cache, queue.requests(), work, stop.clone()));
        Bench {
            queue,
            seen: receiver,
            stop,
            running,
            begun: Instant::now(),
        }
    }

    impl Bench {
        fn ask(&self, name: &str, urgency: Urgency) {
            self.queue.add(Name::new("ns", name), urgency);
        }

        async fn next(&mut self) -> (String, u128) {
            let (name, at) = self.seen.recv().await.unwrap();
            (name, at.duration_since(self.begun).as_millis())
        }

        async fn next_is(&mut self, name: &str, at: u128) {
            assert_eq!(self.next().await, (name.to_owned(), at));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_at_a_time_the_urgent_first_and_the_last_is_finished() {
        let mut bench = bench(HashMap::new(), 1).await;
        bench.ask("a", Urgency::Usual);
        bench.next_is("a", 0).await;
        bench.ask("a", Urgency::Usual);
        bench.ask("gone", Urgency::Usual);
        bench.ask("b", Urgency::Usual);
        bench.ask("c", Urgency::Urgent);
        // What is urgent has places of its own.
        bench.next_is("c", 0).await;
        bench.next_is("b", 5).await;
        bench.next_is("a", 10).await;
        bench.stop.cancel();
        bench.running.await.unwrap();
        assert_eq!(bench.begun.elapsed().as_millis(), 15);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_failed_or_waits_comes_again() {
        let again = Ok(Done {
            wrote: false,
            again: Some(Duration::from_secs(3)),
        });
        // The last comes first.
        let orders = HashMap::from([("a", vec![late(), late()]), ("b", vec![again])]);
        let mut bench = bench(orders, 4).await;
        bench.ask("a", Urgency::Usual);
        bench.ask("b", Urgency::Usual);
        bench.next_is("a", 0).await;
        bench.next_is("b", 0).await;
        // A pause is up to twice as long as it would be without its random part. A timer is good to a millisecond.
        let mut tries = HashMap::from([("a", Vec::new()), ("b", Vec::new())]);
        for _ in 0..3 {
            let (name, at) = bench.next().await;
            tries.get_mut(name.as_str()).unwrap().push(at);
        }
        let (a, b) = (&tries["a"], &tries["b"]);
        assert!((505..1009).contains(&a[0]), "{a:?}");
        assert!((a[0] + 1005..a[0] + 2009).contains(&a[1]), "{a:?}");
        assert!((3005..3009).contains(&b[0]), "{b:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_version_that_was_overwritten_is_not_judged_again_at_once() {
        let wrote = Ok(Done {
            wrote: true,
            again: None,
        });
        let mut bench = bench(HashMap::from([("a", vec![wrote])]), 4).await;
        bench.ask("a", Urgency::Usual);
        bench.next_is("a", 0).await;
        bench.ask("a", Urgency::Usual);
        let (_, at) = bench.next().await;
        assert!((1005..1010).contains(&at), "{at}");
    }

    #[tokio::test(start_paused = true)]
    async fn all_are_looked_at_though_nothing_changes() {
        let mut bench = bench(HashMap::new(), 4).await;
        let mut all = Vec::new();
        for _ in 0..3 {
            all.push(bench.next().await.0);
        }
        all.sort();
        assert_eq!(all, ["a", "b", "c"]);
        assert!(bench.begun.elapsed() <= Duration::from_mins(16));
    }
}
