//! `QemuSave` and `QemuRestore`: drives their phase; the NICs decide what each of them does in it.
//!
//! They are moves with one end ([`crate::moves::file`]), so the NICs' goals, their switches and what holds them are those of a migration.

mod begin;
mod change;
pub mod inputs;
mod record;
pub mod step;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hybridnic_api::names::MIGRATION_FINALIZER;
use hybridnic_api::v1alpha1::{MigrationPhase, StateFileStatus, VmHybridNic};
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};

use crate::cache::Object;
use crate::controller::{Done, Reconciler};
use crate::events::Events;
use crate::metrics::Saves;
use crate::migration::inputs::{Deadlines, NicInputs};
use crate::moves::claims::{self, Claim};
use crate::moves::ends::Ends;
use crate::moves::file::{self, OnFile};
use crate::moves::told::progress;
use crate::nic::admit;
use crate::vm::VmRef;
use crate::world::World;
use crate::write;
use inputs::{Inputs, Request};
use step::step;

/// What a wait waits for is written once it has lasted so long, and how far QEMU is no more often than that.
const WORDS: Duration = Duration::from_secs(5);

/// Reconciles saves or restores. The only writer of their status.
pub struct FileReconciler<K> {
    client: Client,
    world: World,
    deadlines: Deadlines,
    events: Events,
    metrics: Saves,
    clocks: Mutex<HashMap<String, PhaseClock>>,
    kind: std::marker::PhantomData<fn() -> K>,
}

/// Since when one is in its phase, by this process's own steady clock.
#[derive(Clone, Copy, Debug)]
struct PhaseClock {
    phase: MigrationPhase,
    entered: Instant,
    wrote: Option<Instant>,
}

impl<K> FileReconciler<K>
where
    K: OnFile + Object + Resource<Scope = NamespaceResourceScope>,
{
    /// A reconciler that reads from `world`.
    pub fn new(client: Client, world: World, deadlines: Deadlines, events: Events, metrics: Saves) -> Self {
        Self {
            client,
            world,
            deadlines,
            events,
            metrics,
            clocks: Mutex::default(),
            kind: std::marker::PhantomData,
        }
    }

    async fn run(&self, object: &K) -> Result<Done, write::Error> {
        let namespace = object.namespace().unwrap_or_default();
        let api: Api<K> = Api::namespaced(self.client.clone(), &namespace);
        let deleting = object.meta().deletion_timestamp.is_some();
        let mut finalizers = object.finalizers().to_vec();
        let guarded = finalizers
            .iter()
            .any(|finalizer| finalizer == MIGRATION_FINALIZER);
        if object.phase().is_final() || deleting && !guarded {
            self.clocks().remove(&object.uid().unwrap_or_default());
            if deleting && guarded {
                finalizers.retain(|finalizer| finalizer != MIGRATION_FINALIZER);
                write::finalizers(&api, object, &finalizers).await?;
            }
            return Ok(Done::default());
        }
        if !guarded {
            finalizers.push(MIGRATION_FINALIZER.to_owned());
            // Its change comes back here.
            write::finalizers(&api, object, &finalizers).await?;
            return Ok(Done {
                wrote: true,
                again: None,
            });
        }
        let now = Instant::now();
        let clock = self.clock(object, now);
        let vm = VmRef::on_file(object);
        let pods = self.world.pods_of(&vm);
        let ends =
            file::begun(object).map(|of| Ends::observe(&of, &self.world.attachments_of_vm(&vm), &pods));
        let kind = if object.saves() { "save" } else { "restore" };
        let own = Claim::of(kind, object, object.phase());
        let inputs = Inputs {
            now: Timestamp::now(),
            in_phase_for: now.saturating_duration_since(clock.entered),
            request: Request::of(object),
            blocked_by: claims::blocked_by(&own, self.world.claims(&vm)),
            nics: self.nics(object, &vm),
            pods: &pods,
            away: self.world.away(&pods),
            ends,
            deadlines: self.deadlines,
        };
        let next = step(&inputs);
        let rest = rest(object.file_status(), &next.status, clock, now);
        let wrote = rest == Some(Duration::ZERO);
        if wrote {
            let old = inputs.request.status;
            write::apply_status(&api, object, &next.status).await?;
            if let Some(end) = change::end(&old, &next.status) {
                self.metrics.count(kind, &end);
            }
            if let Some(clock) = self.clocks().get_mut(&object.uid().unwrap_or_default()) {
                clock.wrote = Some(now);
            }
            if old.phase != next.status.phase {
                tracing::info!(
                    vm = object.vm(),
                    from = ?old.phase,
                    to = ?next.status.phase,
                    reason = next.status.failure.as_ref().map(|failure| failure.reason.as_str()),
                    "{kind}"
                );
            }
            let (was, is) = (&old, &next.status);
            let notes = progress((was.phase, &was.conditions), (is.phase, &is.conditions));
            self.events.tell(object, notes);
        }
        let rest = rest.filter(|rest| !rest.is_zero());
        Ok(Done {
            wrote,
            again: next.again.into_iter().chain(rest).min(),
        })
    }

    fn clocks(&self) -> std::sync::MutexGuard<'_, HashMap<String, PhaseClock>> {
        self.clocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clock(&self, object: &K, now: Instant) -> PhaseClock {
        let phase = object.phase();
        let mut all = self.clocks();
        let new = PhaseClock {
            phase,
            entered: now,
            wrote: None,
        };
        let clock = all.entry(object.uid().unwrap_or_default()).or_insert(new);
        if clock.phase != phase {
            *clock = new;
        }
        *clock
    }

    fn nics(&self, object: &K, vm: &VmRef) -> Vec<NicInputs> {
        let begun = object.file_status().filter(|status| status.end.is_some());
        let node = begun.and_then(|status| status.end.as_ref().map(|end| end.node_name.as_str()));
        let takes_part =
            |nic: &Arc<VmHybridNic>| begun.is_none_or(|status| status.nics.contains(&nic.name_any()));
        let nics = self.world.nics_of(vm).into_iter().filter(takes_part);
        nics.map(|nic| {
            let refusal = node.and_then(|name| {
                let node = self.world.hybrid_nodes.get("", name);
                admit::to_node(&nic.spec, name, node.as_deref()).err()
            });
            NicInputs {
                attachments: self.world.attachments_of(&nic),
                target_refusal: refusal.map(|refusal| format!("{}: {}", refusal.reason, refusal.message)),
                nic,
            }
        })
        .collect()
    }
}

impl<K> Reconciler for FileReconciler<K>
where
    K: OnFile + Object + Resource<Scope = NamespaceResourceScope>,
{
    type Kind = K;

    async fn reconcile(&self, object: Arc<K>) -> Result<Done, write::Error> {
        self.run(&object).await
    }
}

/// How long the new status may wait for its write; `None` where nothing has changed. What drives the move does not wait.
fn rest(
    old: Option<&StateFileStatus>,
    new: &StateFileStatus,
    clock: PhaseClock,
    now: Instant,
) -> Option<Duration> {
    let Some(old) = old else {
        return Some(Duration::ZERO);
    };
    if old == new {
        return None;
    }
    if without_words(old) != without_words(new) {
        return Some(Duration::ZERO);
    }
    let since = clock.wrote.unwrap_or(clock.entered);
    Some(WORDS.saturating_sub(now.saturating_duration_since(since)))
}

fn without_words(status: &StateFileStatus) -> StateFileStatus {
    let mut status = status.clone();
    (status.downtime_ms, status.written, status.remaining) = (None, None, None);
    status.observed_generation = None;
    for condition in &mut status.conditions {
        condition.message.clear();
        condition.observed_generation = None;
    }
    status
}
