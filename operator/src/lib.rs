//! The operator: decides what should be true of hybrid NICs across nodes, and never touches a device.
//!
//! ```text
//! watches ─► cache ─► controller ─► node       HybridNode.spec
//!              │                    network    HybridNetwork.status
//!              │                    nic        NicAttachment.spec, VmHybridNic.status; finalizers of nodes that are off
//!              ├────────────────────migration  QemuMigration.status
//!              └────────────────────save       QemuSave.status, QemuRestore.status
//! ```
//! Each reconcile reads from the caches, decides with pure functions, and writes. Each field has one writer. All of this runs
//! only while this process is the leader. A new leader starts with fresh caches, so that it does not decide on what an older
//! leader has changed since.
//!
//! Besides, `kubevirt` makes what KubeVirt's VMs need, if there are any: definitions of networks, our binding, NICs.
//!
//! Runtimes of VMs differ in three places: which VM an object is about ([`vm`]), in which of its pods that VM is
//! ([`nic::whereabouts`]), and how far it is on its way to another ([`moves`]).

mod cache;
mod check;
mod controller;
mod events;
pub mod fence;
mod kinds;
mod kubevirt;
mod metrics;
pub mod migration;
pub mod moves;
mod network;
pub mod nic;
mod node;
mod options;
mod presence;
mod queue;
pub mod save;
mod select;
#[cfg(test)]
mod testing;
mod triggers;
mod version;
pub mod vm;
mod watches;
mod world;
mod write;

use std::sync::Arc;

use anyhow::{Context, bail};
use hybridnic_api::foreign::kubevirt::{VirtualMachine, VirtualMachineInstance};
use hybridnic_api::v1alpha1::{QemuRestore, QemuSave};
use hybridnic_process::http::{self, Pages};
use hybridnic_process::lease::{Candidate, Timing};
use hybridnic_process::log_level::LogLevel;
use hybridnic_process::probes::{Probes, probes};
use hybridnic_process::traces::{self, Traces};
use hybridnic_process::{api, shutdown};
use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use metrics::{Metrics, metrics};
pub use options::{Command, Options};

use cache::Cache;
use controller::Reconciler;
use events::Events;
use fence::lookup::NodeLookup;
use hybridnic_flight::{attachment, pods};
use kubevirt::{BindingReconciler, Definitions, ElsewhereReconciler, MachineReconciler};
use migration::inputs::Deadlines;
use migration::{MigrationReconciler, Told};
use network::NetworkReconciler;
use nic::{NicReconciler, Patience, ReleaseReconciler};
use node::NodeReconciler;
use queue::Queue;
use save::FileReconciler;
use triggers::{Queues, Triggers};
use world::World;

/// Labels of the agents' pods for `check`, where nothing else is said.
const AGENTS: &str = "app.kubernetes.io/component=agent";

/// Does what the command line says. `logs` changes what is logged.
pub async fn execute(options: Options, logs: LogLevel) -> anyhow::Result<()> {
    match &options.command {
        None => run(options, logs).await,
        Some(Command::Check) => {
            let client = Client::try_default()
                .await
                .context("cannot find the API server")?;
            let namespace = options.namespace(&client);
            let agents = options.agents.as_deref().unwrap_or(AGENTS);
            check::run(client, &namespace, &options.lease_name, agents).await
        }
    }
}

/// What all of a process's life needs.
struct Process {
    options: Options,
    identity: String,
    metrics: Metrics,
    probes: Probes,
    traces: Traces,
    stop: CancellationToken,
}

/// Runs the operator until a signal asks it to stop, or until it is no longer the leader, which is an error.
async fn run(options: Options, logs: LogLevel) -> anyhow::Result<()> {
    let stop = shutdown::on_signal().context("cannot handle signals")?;
    let (registry, metrics) = metrics();
    let (probes, mut heart) = probes();
    let reconciles = metrics.reconciles.clone();
    probes.require(move || reconciles.check());
    let pages = Pages {
        probes: probes.clone(),
        metrics: Arc::new(registry),
        logs,
    };
    let listeners = options.http.clone();
    let identity = options.identity.clone().map_or_else(identity, Ok)?;
    let (traces, exports) =
        traces::start(&options.traces, "hybridnic-operator", &identity).context("cannot send traces")?;
    let process = Process {
        options,
        identity,
        metrics,
        probes,
        traces,
        stop,
    };
    let done = tokio::select! {
        done = process.stand() => done,
        served = http::serve(&listeners, pages, None) => served.context("probes and metrics"),
        never = heart.beat() => match never {},
    };
    exports.finish().await;
    done
}

impl Process {
    /// Stands for election, and leads when elected.
    async fn stand(&self) -> anyhow::Result<()> {
        let (identity, lease) = (&self.identity, &self.options.lease_name);
        let client = api::client(self.metrics.requests.clone())
            .await
            .context("cannot find the API server")?;
        let namespace = self.options.namespace(&client);
        let candidate = Candidate::new(client.clone(), &namespace, lease, identity, Timing::default());

        tracing::info!(identity, namespace, lease, "waiting for the lease");
        // Startup is complete. A process that cannot read the lease is not ready, but restarting it would not help.
        self.probes.set_started();
        // A standby that has read the lease is ready to take over.
        let standing = || self.probes.set_ready(true);
        let mut leadership = tokio::select! {
            leadership = candidate.acquire(standing) => leadership?,
            () = self.stop.cancelled() => return Ok(()),
        };
        // Until its caches are filled.
        self.probes.set_ready(false);
        self.metrics.leader.set([], 1);
        tracing::info!("leading");
        let done = tokio::select! {
            // The lease is renewed until the last reconcile has ended.
            done = self.lead(&client) => done,
            lost = leadership.lost() => Err(lost.into()),
        };
        if done.is_ok() {
            leadership.release().await;
        }
        done
    }

    /// Runs caches and controllers until it is to stop, and lets what runs then end.
    async fn lead(&self, client: &Client) -> anyhow::Result<()> {
        let agents = self.options.agent_pods(client);
        let kubevirt = self.options.kubevirt(client);
        let (world, watches) = World::new(agents.as_ref(), kubevirt);
        let triggers = Triggers {
            world: world.clone(),
            queues: Arc::new(Queues::new(&self.metrics.reconciles)),
        };
        let (tasks, filled) = watches.begin(client, &triggers);
        let mut watches = JoinSet::new();
        for task in tasks {
            watches.spawn(task);
        }
        tokio::select! {
            filled = filled => filled.context("a watch has ended")?,
            () = self.stop.cancelled() => return Ok(()),
        }
        tracing::info!("caches are filled");
        self.metrics.cluster.set(world.clone());
        self.probes.set_ready(true);

        let mut controllers = self.controllers(client, &world, &triggers.queues);
        triggers.everything();
        loop {
            tokio::select! {
                ended = controllers.join_next() => match ended {
                    Some(ended) if self.stop.is_cancelled() => ended.context("a controller broke")?,
                    Some(ended) => bail!("a controller has ended: {ended:?}"),
                    None => return Ok(()),
                },
                ended = watches.join_next() => bail!("a watch has ended: {ended:?}"),
            }
        }
    }

    fn controllers(&self, client: &Client, world: &World, queues: &Queues) -> JoinSet<()> {
        let events = Events::new(client.clone(), &self.identity);
        let deadlines = Deadlines {
            prepare: self.options.prepare_deadline,
            switch: self.options.switch_deadline,
        };
        let (client, seen) = (|| client.clone(), || world.clone());
        let node = NodeReconciler::new(client(), seen());
        let kubevirt = world.kubevirt.as_deref();
        let definitions = Definitions::new(client(), seen(), kubevirt.cloned(), events.clone());
        let network = NetworkReconciler::new(client(), seen(), definitions, events.clone());
        let lookup = NodeLookup::new(client(), seen());
        let timeout = self.options.node_loss_timeout;
        let patience = Patience::new((!timeout.is_zero()).then_some(timeout));
        let release = ReleaseReconciler::new(client(), seen(), lookup.clone());
        let migrations = self.metrics.migrations.clone();
        let nic = NicReconciler::new(
            client(),
            seen(),
            lookup.clone(),
            patience,
            events.clone(),
            migrations,
        );
        let vm = MachineReconciler::<VirtualMachine>::new(client(), seen(), events.clone());
        let vmi = MachineReconciler::<VirtualMachineInstance>::new(client(), seen(), events.clone());
        let binding =
            kubevirt.map(|settings| BindingReconciler::new(client(), settings.clone(), events.clone()));
        let elsewhere = ElsewhereReconciler::new(seen(), events.clone());
        let counted = || self.metrics.saves.clone();
        let save = FileReconciler::<QemuSave>::new(client(), seen(), deadlines, events.clone(), counted());
        let restore =
            FileReconciler::<QemuRestore>::new(client(), seen(), deadlines, events.clone(), counted());
        let told = Told {
            events,
            metrics: self.metrics.migrations.clone(),
            traces: self.traces.clone(),
        };
        let migration = MigrationReconciler::new(
            client(),
            seen(),
            lookup,
            deadlines,
            self.options.migration_tls,
            told,
        );

        let mut set = JoinSet::new();
        self.spawn(&mut set, node, &world.hybrid_nodes, &queues.hybrid_nodes);
        self.spawn(&mut set, network, &world.networks, &queues.networks);
        self.spawn(&mut set, nic, &world.nics, &queues.nics);
        self.spawn(&mut set, release, &world.attachments, &queues.attachments);
        self.spawn(&mut set, migration, &world.migrations, &queues.migrations);
        self.spawn(&mut set, save, &world.saves, &queues.saves);
        self.spawn(&mut set, restore, &world.restores, &queues.restores);
        if let Some(binding) = binding {
            self.spawn(&mut set, binding, &world.kubevirts, &queues.kubevirts);
            self.spawn(&mut set, vm, &world.vms, &queues.vms);
            self.spawn(&mut set, vmi, &world.vmis, &queues.vmis);
            self.spawn(&mut set, elsewhere, &world.vmi_migrations, &queues.vmi_migrations);
        }
        set
    }

    fn spawn<R: Reconciler>(
        &self,
        set: &mut JoinSet<()>,
        reconciler: R,
        cache: &Cache<R::Kind>,
        queue: &Queue<R::Kind>,
    ) {
        let (work, stop) = (self.metrics.reconciles.clone(), self.stop.clone());
        let (cache, requests) = (cache.clone(), queue.requests());
        set.spawn(controller::run(reconciler, cache, requests, work, stop));
    }
}

/// Host name and a random part: two processes on one host are two candidates.
fn identity() -> anyhow::Result<String> {
    let read = |path: &str| {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
        anyhow::Ok(text.trim().to_owned())
    };
    let host = read("/proc/sys/kernel/hostname")?;
    Ok(format!("{host}_{}", read("/proc/sys/kernel/random/uuid")?))
}
