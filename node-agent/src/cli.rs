//! The command line, and what it starts.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use hybridnic_api::names;
use hybridnic_net::{dev::DevNodes, multicast::Multicast, netlink::Netlink, sysfs::Sysfs};
use hybridnic_process::{
    api,
    http::{self, Guard, HttpOptions, Pages},
    log_level::LogLevel,
    probes::{self, Probes},
    shutdown,
    telemetry::{self, LogOptions},
    tls,
    traces::{self, TraceOptions},
};
use tokio::sync::{Mutex, watch};
use tracing::{info, warn};

use crate::{
    attachments::{Attachments, Progress},
    audit,
    broker::{self, Process, Started},
    calls::{self, Caller},
    cni::{self, Sandboxes},
    devices::{Deadlines, Devices, Places},
    handouts::Handouts,
    host::{Discovered, Host, Settings},
    inventory::{self, Output},
    journal::Journal,
    lanes::Lanes,
    links::Links,
    machine::qemu::tls::Keys as TlsKeys,
    machine::socket,
    metrics::metrics,
    nic::macs::Macs,
    node::{ledger::Ledger, publish},
    offer::{self, Offers},
    privileges,
    sockets::Sockets,
    troubles::Troubles,
    wants::cluster::Cluster,
};

/// The agent's own program, also where another one has taken its place meanwhile.
const PROGRAM: &str = "/proc/self/exe";

/// The node agent of hybridnic.
#[derive(Debug, Parser)]
#[command(name = "hybridnic-agent", version)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the node's PFs and VFs as the agent would publish them. Needs no cluster.
    Inventory {
        /// How to print.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        /// Where sysfs is.
        #[arg(long, default_value = "/sys")]
        sysfs: PathBuf,
    },
    /// What the agent starts itself as, for what it gives up the powers to do.
    #[command(hide = true)]
    Broker,
    /// What the agent starts itself as, to ask a device what may never return.
    #[command(hide = true)]
    Call {
        /// What to ask, as JSON.
        call: String,
        /// Where sysfs is.
        sysfs: PathBuf,
        /// Where the device nodes are.
        dev: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Name of the node that this agent is on.
    #[arg(long, env = "NODE_NAME")]
    node_name: Option<String>,
    /// Where this node's kubelet has the directories of its pods. In them are the VMs' QMP sockets:
    /// DIRECTORY/UID/volumes/kubernetes.io~empty-dir/hybridnic/qmp.sock.
    #[arg(long, default_value = names::PODS_DIR)]
    pods_dir: PathBuf,
    /// This node's kubelet: pods are offered the node's VFs by its sockets DIRECTORY/device-plugins/kubelet.sock and
    /// DIRECTORY/pod-resources/kubelet.sock. Without it none are.
    #[arg(long)]
    kubelet_dir: Option<PathBuf>,
    /// The uid of the pod that the agent runs in, if it runs in one: the kubelet's directory is known by it.
    #[arg(long, env = "POD_UID")]
    pod_uid: Option<String>,
    /// The namespace of that pod. With its name it tells whether the kubelet knows its pods yet.
    #[arg(long, env = "POD_NAMESPACE")]
    pod_namespace: Option<String>,
    /// The name of that pod.
    #[arg(long, env = "POD_NAME")]
    pod_name: Option<String>,
    /// Where the agent keeps its journal; it must outlast a reboot of the agent, not of the node.
    #[arg(long, default_value = "/var/lib/hybridnic/journal")]
    journal: PathBuf,
    /// Where certificates of migrations lie until QEMU has them: in memory (tmpfs), and outlasting the agent's own pod.
    #[arg(long, default_value = "/run/hybridnic-agent/tls")]
    tls: PathBuf,
    /// Where it is known which devices a driver has not returned from: in memory (tmpfs), and outlasting the agent's own pod.
    #[arg(long, default_value = "/run/hybridnic-agent/calls")]
    calls: PathBuf,
    /// The node's directory of CNI plugins. The agent puts its own there, and serves it. Without it no pod gets an interface by CNI, which
    /// KubeVirt's VMs need.
    #[arg(long)]
    cni_bin_dir: Option<PathBuf>,
    /// Where the agent listens for its CNI plugin.
    #[arg(long, default_value = hybridnic_cni::wire::SOCKET)]
    cni_socket: PathBuf,
    /// Seconds that a guest may take to let go of a device.
    #[arg(long, default_value_t = 30)]
    unplug_deadline: u64,
    /// Seconds that a guest may take to use a VF that was plugged.
    #[arg(long, default_value_t = 30)]
    plug_deadline: u64,
    /// The most bytes per second of a migration; 0 is no limit.
    #[arg(long, default_value_t = 0)]
    migration_bandwidth: u64,
    /// The VM's pause that QEMU aims at in a migration, in milliseconds.
    #[arg(long, default_value_t = 300)]
    migration_downtime: u64,
    #[command(flatten)]
    http: HttpOptions,
    /// Serve metrics over TLS, and to those only whom the API server lets get /metrics. Needs --metrics-address.
    #[arg(long, env = "HYBRIDNIC_METRICS_AUTH", requires = "metrics_address")]
    metrics_auth: bool,
    /// Take only tokens that are for this audience, which are good for nothing else. Without it a token is one for the API server.
    #[arg(long, env = "HYBRIDNIC_METRICS_AUDIENCE", requires = "metrics_auth")]
    metrics_audience: Option<String>,
    #[command(flatten)]
    log: LogOptions,
    #[command(flatten)]
    traces: TraceOptions,
}

impl Args {
    /// Does what the command line says.
    pub fn execute(self) -> anyhow::Result<()> {
        match self.command {
            Some(Command::Inventory { output, sysfs }) => {
                print!("{}", inventory::render(&Sysfs::new(sysfs), output)?);
                Ok(())
            }
            Some(Command::Broker) => broker::serve(),
            Some(Command::Call { call, sysfs, dev }) => calls::serve(&call, sysfs, dev),
            None => {
                let logs = telemetry::init(&self.run.log)?;
                // All before there is a second thread: capabilities belong to threads.
                load_modules();
                let broker = Started::new(PROGRAM.as_ref()).context("cannot start the broker")?;
                give_up_privileges()?;
                // One thread is enough for what a node has to do, and keeps the agent small.
                tokio::runtime::Builder::new_current_thread()
                    .max_blocking_threads(8)
                    .enable_all()
                    .build()?
                    .block_on(run(self.run, logs, broker))
            }
        }
    }
}

async fn run(args: RunArgs, logs: LogLevel, broker: Started) -> anyhow::Result<()> {
    tls::install_provider();
    let node_name = args
        .node_name
        .clone()
        .context("say which node this is: --node-name, or NODE_NAME")?;
    let stop = shutdown::on_signal()?;
    let options = settings(&args, node_name.clone());
    let journal = Journal::open(&args.journal)?;
    let contents = journal.load()?;
    check_pods_dir(&args.pods_dir, args.pod_uid.as_deref())?;
    let (registry, metrics) = metrics();
    let requests = metrics.requests.clone();
    let counted = metrics.clone();
    let (traces, exports) =
        traces::start(&args.traces, "hybridnic-agent", &node_name).context("cannot send traces")?;
    let troubles = Arc::new(Troubles::new(metrics.clone()));
    let hardware = watch::Sender::new(0);
    let keys = TlsKeys::new(&args.tls);
    keys.sweep();
    let netlink = Netlink::open()?.on_error(move |operation, error| counted.netlink_error(operation, error));
    let broker = Arc::new(broker.run()?);
    let lanes = Lanes::new(Arc::clone(&troubles), hardware.clone());
    let offers = Arc::new(offers(&args));
    let devices = devices(lanes, args.calls).await?;
    let sandboxes = Sandboxes::default();
    let host = Arc::new(Host {
        sysfs: devices.sysfs.clone(),
        dev: devices.dev.clone(),
        macvtaps: Arc::new(Links {
            host: netlink.clone(),
            sandboxes: sandboxes.clone(),
            sysfs: devices.sysfs.clone(),
        }),
        netlink,
        multicast: Multicast::open()?,
        journal,
        keys,
        sandboxes,
        broker: Arc::<Process>::clone(&broker),
        pools: Ledger::default(),
        offers,
        handouts: Handouts::new(devices.dev.clone(), Path::new("/proc"), hardware.clone()),
        devices,
        proc: "/proc".into(),
        discovered: Discovered::default(),
        troubles,
        metrics,
        macs: Macs::default(),
        vlan_devices: Mutex::default(),
        traces,
        options,
        hardware,
    });
    let sockets = Sockets::new(args.pods_dir, Arc::clone(&host.troubles));
    host.load_parked();
    info!(
        node = node_name,
        version = env!("CARGO_PKG_VERSION"),
        held = contents.records.len(),
        "hybridnic agent"
    );
    let client = api::client(requests).await.context("no way to the API server")?;
    let guard = args
        .metrics_auth
        .then(|| metrics_guard(client.clone(), &node_name, args.metrics_audience))
        .transpose()?;
    let (probes, mut heart) = probes::probes();
    let pages = Pages {
        probes: probes.clone(),
        metrics: Arc::new(registry),
        logs,
    };
    let (generation_tx, generation_rx) = watch::channel(None);
    let (progress, published) = (Progress::default(), watch::Sender::new(false));
    let attachments = Attachments::new(
        Cluster::new(client.clone(), &node_name),
        Arc::clone(&host),
        sockets.clone(),
        progress.clone(),
    );
    tokio::select! {
        () = stop.cancelled() => info!(node = node_name, "stopped; VMs keep their NICs"),
        result = publish::watch_hardware(Arc::clone(&host)) => result?,
        () = publish::watch_pools(client.clone(), Arc::clone(&host), generation_tx) => anyhow::bail!("the watch of the HybridNode has ended"),
        () = publish::publish(client, Arc::clone(&host), generation_rx, published.clone()) => anyhow::bail!("publishing has ended"),
        () = attachments.run(contents) => anyhow::bail!("the watch of attachments has ended"),
        never = sockets.run() => match never {},
        result = host.handouts.run() => match result.context("the watch of VFs' descriptors")? {},
        never = serve_cni(&host, args.cni_bin_dir, args.cni_socket) => match never {},
        never = offer_devices(&host, args.kubelet_dir.as_deref()) => match never {},
        () = audit::run(Arc::clone(&host)) => {}
        result = http::serve(&args.http, pages, guard) => result.context("probes and metrics")?,
        () = get_ready(probes, progress, published) => {}
        () = broker.ended() => anyhow::bail!("the broker has ended"),
        never = heart.beat() => match never {},
    }
    exports.finish().await;
    Ok(())
}

fn settings(args: &RunArgs, node_name: String) -> Settings {
    Settings {
        node_name,
        unplug_deadline: Duration::from_secs(args.unplug_deadline),
        plug_deadline: Duration::from_secs(args.plug_deadline),
        migration_bandwidth: args.migration_bandwidth,
        migration_downtime_ms: args.migration_downtime,
    }
}

/// With another directory no VM would ever be found, and nothing would say why.
fn check_pods_dir(dir: &Path, pod_uid: Option<&str>) -> anyhow::Result<()> {
    if let Some(uid) = pod_uid {
        anyhow::ensure!(
            socket::is_kubelets(dir, uid),
            "{} is not where the kubelet has its pods: it has no directory of this one, {uid}. Which it is, the chart's value \
             agent.kubeletDir says",
            dir.display()
        );
    }
    Ok(())
}

/// Serves the CNI plugin, if it has a place on the node. Its program is beside the agent's.
async fn serve_cni(host: &Host, directory: Option<PathBuf>, socket: PathBuf) -> Infallible {
    let Some(directory) = directory else {
        return std::future::pending().await;
    };
    let program = std::env::current_exe().unwrap_or_default();
    let place = cni::Place {
        program: program.with_file_name("hybridnic-cni"),
        directory,
        socket,
    };
    cni::run(host, host.offers.clone(), &place).await
}

/// What is known of devices by this node's kubelet, if there is one.
fn offers(args: &RunArgs) -> Offers {
    let own = args.pod_namespace.clone().zip(args.pod_name.clone());
    let kubelet = args.kubelet_dir.as_deref();
    kubelet.map_or_else(Offers::default, |dir| {
        Offers::new(&dir.join("pod-resources"), own)
    })
}

/// Offers the node's devices to the kubelet, if there is one.
async fn offer_devices(host: &Arc<Host>, kubelet: Option<&Path>) -> Infallible {
    match kubelet {
        Some(kubelet) => offer::run(Arc::clone(host), &kubelet.join("device-plugins")).await,
        None => std::future::pending().await,
    }
}

/// Decides which clients may read the metrics, with a certificate that lasts as long as the agent runs.
fn metrics_guard(client: kube::Client, node: &str, audience: Option<String>) -> anyhow::Result<Guard> {
    let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(vec![node.to_owned()])
        .context("cannot make a certificate for metrics")?;
    Guard::new(client, cert.der().to_vec(), signing_key.serialize_der(), audience).context("metrics")
}

/// The node's devices, also those that an earlier agent waits for.
async fn devices(lanes: Lanes, locks: PathBuf) -> anyhow::Result<Devices> {
    let devices = Devices {
        sysfs: Sysfs::default(),
        dev: DevNodes::default(),
        lanes,
        caller: Caller::Processes {
            program: PROGRAM.into(),
            locks,
        },
        deadlines: Deadlines::default(),
        places: Places::default(),
    };
    let taken_over = devices.take_over().await;
    taken_over.context("what an earlier agent has asked of devices cannot be read")?;
    Ok(devices)
}

/// The agent has started when it looks after all that the journal holds. It is ready when, besides, it knows what the API
/// server wants of the node and has published what there is. Should the API server go away later, it stays ready.
async fn get_ready(probes: Probes, progress: Progress, published: watch::Sender<bool>) {
    for (step, done) in [progress.resumed, progress.listed, published]
        .into_iter()
        .enumerate()
    {
        // A sender of our own keeps each channel open.
        let _ = done.subscribe().wait_for(|done| *done).await;
        if step == 0 {
            probes.set_started();
        }
    }
    probes.set_ready(true);
    std::future::pending::<()>().await;
}

/// What VFs, standbys and their guards need. Kernels that have these as modules load not all of them by themselves.
const MODULES: [&str; 8] = [
    "vfio-pci",
    "macvtap",
    "vhost_net",
    "8021q",
    "sch_ingress",
    "cls_flower",
    "act_gact",
    "act_police",
];

fn load_modules() {
    for module in MODULES {
        let loaded = std::process::Command::new("modprobe")
            .arg("-q")
            .arg(module)
            .status();
        if !loaded.is_ok_and(|s| s.success()) {
            // Built in, or not to be had: what needs it will say so.
            tracing::debug!(module, "not loaded by modprobe");
        }
    }
}

/// Drops the capabilities that the agent does not need, and says what is left.
fn give_up_privileges() -> anyhow::Result<()> {
    let left = privileges::drop_unneeded().context("cannot give up what is not needed of root's powers")?;
    if left.missing.is_empty() {
        info!(capabilities = %left, "all others are given up");
    } else {
        warn!(capabilities = %left, "capabilities are missing: what needs them will fail");
    }
    Ok(())
}
