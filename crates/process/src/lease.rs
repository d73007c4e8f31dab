//! Leader election over a `coordination.k8s.io/v1` Lease, safe when the API server is away.
//!
//! A lease belongs to another process until its record has not changed for its whole duration, by this process's *monotonic*
//! clock: wall clocks of two machines are never compared. The holder stops being the leader when it could not renew
//! for [`Timing::renew_deadline`], which is shorter than the duration, so that it has stopped before another begins.
//! Every write carries the resource version that it was decided on.

use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::{api, watch::follow};

/// How long one request may take while no deadline is nearer: short enough for another one before the lease is lost.
const REQUEST_DEADLINE: Duration = Duration::from_secs(3);

/// The times of an election. The defaults are those of Kubernetes' own controllers, except for the pause: each renewal wakes all
/// that stand by, and is most of what an operator at rest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long a lease is held after its last renewal. Whole seconds.
    pub duration: Duration,
    /// How long its holder goes on without a renewal; below `duration`.
    pub renew_deadline: Duration,
    /// The pause between renewals. After one that has failed it is a quarter of it.
    pub renew_every: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            renew_every: Duration::from_secs(4),
        }
    }
}

/// Why this process is not, or is no longer, the leader.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The watch on the lease has ended, which it does not do by itself.
    #[error("the watch on the lease has ended")]
    WatchEnded,
    /// The lease could not be renewed in time.
    #[error("the lease could not be renewed for {0:?}")]
    Expired(Duration),
    /// Another process has taken the lease.
    #[error("{0} has taken the lease")]
    Taken(String),
}

/// What to do about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is free: take it.
    Acquire,
    /// It is ours: renew it.
    Renew,
    /// It is another's for so long.
    Wait(Duration),
}

/// Judges a lease that has looked as it does for `unchanged`, by this process's clock.
pub fn evaluate(spec: Option<&LeaseSpec>, me: &str, unchanged: Duration) -> Verdict {
    let Some(spec) = spec else { return Verdict::Acquire };
    match spec.holder_identity.as_deref() {
        None | Some("") => Verdict::Acquire,
        Some(holder) if holder == me => Verdict::Renew,
        Some(_) => {
            let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or_default()).unwrap_or_default();
            match Duration::from_secs(seconds).checked_sub(unchanged) {
                Some(left) if !left.is_zero() => Verdict::Wait(left),
                _ => Verdict::Acquire,
            }
        }
    }
}

/// A candidate for a lease.
#[derive(Clone)]
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
    timing: Timing,
}

impl Candidate {
    /// A candidate named `identity`, which no other process may share, for the lease `namespace/name`.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str, timing: Timing) -> Self {
        let api = Api::namespaced(client, namespace);
        Self {
            api,
            name: name.to_owned(),
            identity: identity.to_owned(),
            timing,
        }
    }

    /// Waits until the lease is free and takes it. Errors of the API server are logged and waited out. `standing` is called once,
    /// when the lease has been read: from then on this process takes part.
    pub async fn acquire(&self, standing: impl FnOnce() + Send) -> Result<Leadership, Error> {
        let mut standing = Some(standing);
        let config = api::watches().fields(&format!("metadata.name={}", self.name));
        let mut events = follow(self.api.clone(), config).boxed();
        let (mut seen, mut since): (Option<Lease>, _) = (None, Instant::now());
        // The first list says whether there is a lease at all.
        let mut listed = false;
        loop {
            let verdict = match (
                listed,
                evaluate(spec(seen.as_ref()), &self.identity, since.elapsed()),
            ) {
                (false, _) => None,
                (true, Verdict::Wait(left)) => Some(Instant::now() + left),
                (true, Verdict::Acquire | Verdict::Renew) => {
                    let asked = Instant::now();
                    match self.take(seen.as_ref()).await {
                        Ok(lease) => {
                            return Ok(Leadership {
                                candidate: self.clone(),
                                lease,
                                renewed: asked,
                            });
                        }
                        Err(kube::Error::Api(status)) if status.is_forbidden() => {
                            tracing::warn!(status.message, "this process may not take the lease");
                        }
                        Err(error) => tracing::debug!(%error, "the lease could not be taken"),
                    }
                    // The watch reports which process was faster, or what was wrong; it does not report a request that was lost.
                    Some(Instant::now() + self.timing.renew_every)
                }
            };
            let event = match verdict {
                None => events.next().await,
                Some(until) => match timeout_at(until, events.next()).await {
                    Ok(event) => event,
                    Err(_) => continue,
                },
            };
            let changed = match event.ok_or(Error::WatchEnded)? {
                Ok(watcher::Event::Apply(lease) | watcher::Event::InitApply(lease)) => Some(lease),
                Ok(watcher::Event::Delete(_)) => None,
                Ok(watcher::Event::InitDone) => {
                    listed = true;
                    if let Some(standing) = standing.take() {
                        standing();
                    }
                    continue;
                }
                Ok(watcher::Event::Init) => continue,
                Err(error) => {
                    tracing::warn!(%error, "cannot watch the lease");
                    continue;
                }
            };
            if spec(changed.as_ref()) != spec(seen.as_ref()) {
                since = Instant::now();
            }
            seen = changed;
        }
    }

    async fn take(&self, seen: Option<&Lease>) -> Result<Lease, kube::Error> {
        let lease = self.claimed(seen, Timestamp::now());
        let write = async {
            match seen {
                None => self.api.create(&PostParams::default(), &lease).await,
                Some(_) => self.api.replace(&self.name, &PostParams::default(), &lease).await,
            }
        };
        timeout(REQUEST_DEADLINE, write)
            .await
            .unwrap_or_else(|_| Err(late()))
    }

    /// The lease as it is when this candidate holds it from `now`.
    fn claimed(&self, seen: Option<&Lease>, now: Timestamp) -> Lease {
        let old = spec(seen).cloned().unwrap_or_default();
        let ours = old.holder_identity.as_deref() == Some(&self.identity);
        let transitions = old.lease_transitions.unwrap_or_default();
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                resource_version: seen.and_then(|lease| lease.metadata.resource_version.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(self.timing.duration.as_secs()).ok(),
                acquire_time: if ours {
                    old.acquire_time
                } else {
                    Some(MicroTime(now))
                },
                renew_time: Some(MicroTime(now)),
                lease_transitions: Some(if ours || seen.is_none() {
                    transitions
                } else {
                    transitions + 1
                }),
                ..LeaseSpec::default()
            }),
        }
    }
}

/// The lease, held.
pub struct Leadership {
    candidate: Candidate,
    lease: Lease,
    /// When the last renewal that succeeded was asked for; its answer may have come much later.
    renewed: Instant,
}

impl Leadership {
    /// Renews the lease for as long as it is polled; returns when this process is no longer the leader. It must end then,
    /// because what it has begun cannot be called back in any other way.
    pub async fn lost(&mut self) -> Error {
        loop {
            sleep_until(self.renewed + self.candidate.timing.renew_every).await;
            if let Err(error) = self.renew().await {
                return error;
            }
        }
    }

    /// Gives the lease up, so that another takes it at once. Call it when all work has stopped.
    pub async fn release(mut self) {
        // A renewal may have been dropped half-way, and then the version is a new one.
        match self.reread(Instant::now() + REQUEST_DEADLINE).await {
            Ok(()) => {}
            Err(error) => return tracing::warn!(%error, "nothing to release"),
        }
        let mut lease = self.lease;
        if let Some(spec) = lease.spec.as_mut() {
            spec.holder_identity = None;
            // For a client that looks only at the times.
            spec.lease_duration_seconds = Some(1);
        }
        lease.metadata.managed_fields = None;
        let params = PostParams::default();
        let write = self.candidate.api.replace(&self.candidate.name, &params, &lease);
        match timeout(REQUEST_DEADLINE, write).await {
            Ok(Ok(_)) => tracing::info!("the lease is released"),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the lease could not be released; it runs out by itself");
            }
            Err(_) => tracing::warn!("the lease could not be released in time; it runs out by itself"),
        }
    }

    async fn renew(&mut self) -> Result<(), Error> {
        let Timing {
            renew_deadline,
            renew_every,
            ..
        } = self.candidate.timing;
        let end = self.renewed + renew_deadline;
        loop {
            let asked = Instant::now();
            let lease = self.candidate.claimed(Some(&self.lease), Timestamp::now());
            let params = PostParams::default();
            let write = self.candidate.api.replace(&self.candidate.name, &params, &lease);
            match timeout_at(end.min(asked + REQUEST_DEADLINE), write).await {
                Ok(Ok(lease)) => {
                    (self.lease, self.renewed) = (lease, asked);
                    return Ok(());
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the lease could not be renewed");
                    self.reread(end).await?;
                }
                Err(_) => tracing::warn!("the lease could not be renewed: no answer"),
            }
            if Instant::now() >= end {
                return Err(Error::Expired(renew_deadline));
            }
            // A refusal that stays must not become a storm.
            sleep_until(end.min(Instant::now() + renew_every / 4)).await;
        }
    }

    /// Reads the lease again: a write of ours may have arrived while its answer was lost.
    async fn reread(&mut self, end: Instant) -> Result<(), Error> {
        let read = self.candidate.api.get_opt(&self.candidate.name);
        let Ok(Ok(found)) = timeout_at(end.min(Instant::now() + REQUEST_DEADLINE), read).await else {
            return Ok(());
        };
        let holder = spec(found.as_ref())
            .and_then(|spec| spec.holder_identity.clone())
            .unwrap_or_default();
        match found {
            Some(lease) if holder == self.candidate.identity => self.lease = lease,
            _ => {
                return Err(Error::Taken(if holder.is_empty() {
                    "nobody".to_owned()
                } else {
                    holder
                }));
            }
        }
        Ok(())
    }
}

fn spec(lease: Option<&Lease>) -> Option<&LeaseSpec> {
    lease.and_then(|lease| lease.spec.as_ref())
}

fn late() -> kube::Error {
    kube::Error::Service(Box::from(format!("no answer within {REQUEST_DEADLINE:?}")))
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
