//! What the agent starts, with and without a cluster.

use std::{
    convert::Infallible,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use hybridnic_api::names;
use hybridnic_net::{dev::DevNodes, multicast::Multicast, netlink::Netlink, sysfs::Sysfs};
use hybridnic_process::{
    api,
    http::{self, Guard, HttpOptions, Pages},
    log_level::LogLevel,
    metrics::Registry,
    probes::{self, Heart, Probes},
    shutdown, tls,
    traces::{self, Exports},
};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    attachments::{Attachments, Progress},
    audit,
    broker::{Process, Started},
    calls::{Caller, only_agent},
    cli::{ClusterArgs, NodeArgs},
    cni::{self, Sandboxes},
    devices::{Deadlines, Devices, Places},
    handouts::Handouts,
    host::{Discovered, Host, Settings},
    journal::{Contents, Journal},
    lanes::Lanes,
    links::Links,
    local::{NodeFile, board::Board, source},
    machine::{qemu::tls::Keys as TlsKeys, socket},
    metrics::metrics,
    nic::macs::Macs,
    node::{
        ledger::Ledger,
        object::{self, NodeObject},
        publish::{self, Publisher, SeenNode},
    },
    offer::{self, Offers},
    sockets::Sockets,
    troubles::Troubles,
    wants::{Wants, cluster::Cluster},
};

/// The agent's own program, also where another one has taken its place meanwhile.
pub const PROGRAM: &str = "/proc/self/exe";

/// What runs with and without a cluster.
struct Agent {
    /// Says to other agents that this one lives.
    only: File,
    host: Arc<Host>,
    /// What the journal had.
    journal: Contents,
    sockets: Sockets,
    broker: Arc<Process>,
    stop: CancellationToken,
    exports: Exports,
    registry: Registry,
    logs: LogLevel,
    probes: Probes,
    heart: Heart,
}

impl Agent {
    /// On the node of this name. Pods' sockets are beneath `pods`.
    async fn new(
        args: &NodeArgs,
        node_name: String,
        pods: &Path,
        offers: Offers,
        logs: LogLevel,
        broker: Started,
    ) -> anyhow::Result<Self> {
        tls::install_provider();
        let stop = shutdown::on_signal()?;
        let options = settings(args, node_name.clone());
        let only = only_agent(&args.calls).with_context(|| format!("lock in {}", args.calls.display()))?;
        let only = only.context("another agent runs on this host, and two agents would give the same VFs to two NICs: end that one first")?;
        let journal = Journal::open(&args.journal)?;
        let contents = journal.load()?;
        let (registry, metrics) = metrics();
        let counted = metrics.clone();
        let (traces, exports) =
            traces::start(&args.traces, "hybridnic-agent", &node_name).context("cannot send traces")?;
        let troubles = Arc::new(Troubles::new(metrics.clone()));
        let hardware = watch::Sender::new(0);
        let keys = TlsKeys::new(&args.tls);
        keys.sweep();
        let netlink =
            Netlink::open()?.on_error(move |operation, error| counted.netlink_error(operation, error));
        let broker = Arc::new(broker.run()?);
        let lanes = Lanes::new(Arc::clone(&troubles), hardware.clone());
        let devices = devices(lanes, args.calls.clone()).await?;
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
            offers: Arc::new(offers),
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
        let sockets = Sockets::new(pods, Arc::clone(&host.troubles));
        host.load_parked();
        host.load_loans()?;
        host.offers.learn_nodes(&host.proc);
        info!(
            node = node_name,
            version = env!("CARGO_PKG_VERSION"),
            held = contents.records.len(),
            "hybridnic agent"
        );
        let (probes, heart) = probes::probes();
        Ok(Self {
            only,
            host,
            journal: contents,
            sockets,
            broker,
            stop,
            exports,
            registry,
            logs,
            probes,
            heart,
        })
    }

    /// Follows what is wanted, publishes what the node has, and does everything else that needs no cluster, until it is told to stop or
    /// `besides` has ended.
    async fn run<W: Wants>(
        self,
        wants: W,
        node: impl Publisher,
        seen: watch::Receiver<Option<SeenNode>>,
        http: (&HttpOptions, Option<Guard>),
        besides: impl Future<Output = anyhow::Result<Infallible>>,
    ) -> anyhow::Result<()> {
        let Self {
            only: _only,
            host,
            journal,
            sockets,
            broker,
            stop,
            exports,
            registry,
            logs,
            probes,
            mut heart,
        } = self;
        let (options, guard) = http;
        let pages = Pages {
            probes: probes.clone(),
            metrics: Arc::new(registry),
            logs,
        };
        let (progress, published) = (Progress::default(), watch::Sender::new(false));
        let attachments = Attachments::new(wants, Arc::clone(&host), sockets.clone(), progress.clone());
        tokio::select! {
            () = stop.cancelled() => info!(node = host.options.node_name, "stopped; VMs keep their NICs"),
            result = publish::watch_hardware(Arc::clone(&host)) => result?,
            () = publish::publish(node, Arc::clone(&host), seen, published.clone()) => anyhow::bail!("publishing has ended"),
            () = attachments.run(journal) => anyhow::bail!("the watch of attachments has ended"),
            never = sockets.run() => match never {},
            result = host.handouts.run() => match result.context("the watch of VFs' descriptors")? {},
            () = audit::run(Arc::clone(&host)) => {}
            result = http::serve(options, pages, guard) => result.context("probes and metrics")?,
            () = get_ready(probes, progress, published) => {}
            () = broker.ended() => anyhow::bail!("the broker has ended"),
            never = heart.beat() => match never {},
            result = besides => match result? {},
        }
        exports.finish().await;
        Ok(())
    }
}

/// An agent of a cluster.
pub async fn cluster(
    node: NodeArgs,
    args: ClusterArgs,
    logs: LogLevel,
    broker: Started,
) -> anyhow::Result<()> {
    let node_name = node
        .node_name
        .clone()
        .context("say which node this is: --node-name, or NODE_NAME")?;
    check_pods_dir(&args.pods_dir, args.pod_uid.as_deref())?;
    let offers = offers(&args);
    let agent = Agent::new(&node, node_name.clone(), &args.pods_dir, offers, logs, broker).await?;
    check_journal(&agent.journal, &node.journal, false)?;
    agent.host.load_drain();
    let host = Arc::clone(&agent.host);
    let client = api::client(host.metrics.requests.clone())
        .await
        .context("no way to the API server")?;
    let guard = args
        .metrics_auth
        .then(|| metrics_guard(client.clone(), &node_name, args.metrics_audience))
        .transpose()?;
    let (seen, of_node) = watch::channel(None);
    let wants = Cluster::new(client.clone(), &node_name);
    let publisher = NodeObject::new(client.clone(), &node_name);
    let (kubelet, cni_dir, cni_socket) = (args.kubelet_dir, args.cni_bin_dir, args.cni_socket);
    let besides = async {
        tokio::select! {
            () = object::watch_pools(client, Arc::clone(&host), seen) => anyhow::bail!("the watch of the HybridNode has ended"),
            never = serve_cni(&host, cni_dir, cni_socket) => Ok(never),
            never = offer_devices(&host, kubelet.as_deref()) => Ok(never),
        }
    };
    let run = agent.run(wants, publisher, of_node, (&node.http, guard), besides);
    Box::pin(run).await
}

/// An agent without a cluster, which follows the files of a directory.
pub async fn local(dir: &Path, node: NodeArgs, logs: LogLevel, broker: Started) -> anyhow::Result<()> {
    let node_name = match &node.node_name {
        Some(name) => name.clone(),
        None => read_line("/proc/sys/kernel/hostname").context("the host's name: say --node-name")?,
    };
    let pods = Path::new(names::PODS_DIR);
    let agent = Agent::new(&node, node_name.clone(), pods, Offers::default(), logs, broker).await?;
    check_journal(&agent.journal, &node.journal, true)?;
    // The file that asks for it may be away, or not be understood now.
    agent.host.load_drain();
    // Two hosts may have one name, and must not make the same addresses.
    let seed = read_line("/etc/machine-id").unwrap_or_else(|_| node_name.clone());
    let board = Arc::new(Board::new(&node_name));
    let (versions, of_node) = watch::channel(None);
    let opened = source::open(dir, &agent.host, &board, seed, &agent.journal, versions);
    let (source, files) = opened.with_context(|| format!("the directory {}", dir.display()))?;
    let publisher = NodeFile::new(&node_name, board, of_node.clone());
    let besides = async { Ok(source.run().await) };
    let run = agent.run(files, publisher, of_node, (&node.http, None), besides);
    Box::pin(run).await
}

/// A NIC that nobody asks for any more is detached: so an agent must not take over NICs that another source of wants decides about.
fn check_journal(journal: &Contents, path: &Path, local: bool) -> anyhow::Result<()> {
    let other = journal
        .records
        .iter()
        .find(|record| record.socket.is_some() != local);
    if let Some(record) = other {
        let (of, now) = if local {
            ("with", "without")
        } else {
            ("without", "with")
        };
        anyhow::bail!(
            "the journal {} has the NIC {} of an agent {of} a cluster, and this one runs {now} one: detach it there first, or name another \
             --journal",
            path.display(),
            record.nic()
        );
    }
    Ok(())
}

fn read_line(file: &str) -> std::io::Result<String> {
    Ok(std::fs::read_to_string(file)?.trim().to_owned())
}

fn settings(args: &NodeArgs, node_name: String) -> Settings {
    Settings {
        node_name,
        unplug_deadline: Duration::from_secs(args.unplug_deadline),
        plug_deadline: Duration::from_secs(args.plug_deadline),
        home_after: Duration::from_secs(args.home_after),
        migration_bandwidth: args.migration_bandwidth,
        migration_downtime_ms: args.migration_downtime,
    }
}

/// With another directory no VM would ever be found, and nothing would say why.
fn check_pods_dir(dir: &Path, pod_uid: Option<&str>) -> anyhow::Result<()> {
    if let Some(uid) = pod_uid {
        anyhow::ensure!(
            socket::is_kubelets(dir, uid),
            "{} is not where the kubelet has its pods: it has no directory of this one, {uid}. Set the chart's value agent.kubeletDir to \
             the kubelet's --root-dir",
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

/// What this node's kubelet says about devices, if there is one.
fn offers(args: &ClusterArgs) -> Offers {
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
