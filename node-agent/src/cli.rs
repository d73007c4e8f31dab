//! The command line.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use hybridnic_api::names;
use hybridnic_console::print;
use hybridnic_net::sysfs::Sysfs;
use hybridnic_process::{
    http::HttpOptions,
    log_level::LogLevel,
    telemetry::{self, LogOptions},
    traces::TraceOptions,
};
use tracing::{info, warn};

use crate::{
    broker::{self, Started},
    calls,
    inventory::{self, Output},
    local::ctl,
    privileges,
    run::{self, PROGRAM},
};

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
    /// Run without a cluster: read from the files of a directory what is wanted, and write its status beside them.
    Local(Box<LocalArgs>),
    /// Show and change what an agent without a cluster has, by its directory.
    Ctl(ctl::Args),
    /// What the agent starts itself as to keep privileges that it gives up.
    #[command(hide = true)]
    Broker,
    /// What the agent starts itself as for a call to a device that may never return.
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
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, clap::Args)]
struct LocalArgs {
    /// The directory of the files: a HybridNetwork or a VmHybridNic in each NAME.yaml. Only its owner may be able to write to it.
    #[arg(long, env = "HYBRIDNIC_DIR", default_value = ctl::DIR)]
    dir: PathBuf,
    #[command(flatten)]
    node: NodeArgs,
}

/// Options with and without a cluster.
#[derive(Debug, clap::Args)]
pub struct NodeArgs {
    /// Name of the node that this agent is on. Without a cluster the host's own is the default.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// Where the agent keeps its journal; it must outlast a reboot of the agent, not of the node.
    #[arg(long, default_value = "/var/lib/hybridnic/journal")]
    pub journal: PathBuf,
    /// Where certificates of migrations are kept until QEMU has them: in memory (tmpfs), and outlasting the agent's own pod.
    #[arg(long, default_value = "/run/hybridnic-agent/tls")]
    pub tls: PathBuf,
    /// Where the agent notes for which devices a driver's call has not returned: in memory (tmpfs), and outlasting the agent's own pod.
    #[arg(long, default_value = "/run/hybridnic-agent/calls")]
    pub calls: PathBuf,
    /// Seconds that a guest may take to let go of a device.
    #[arg(long, default_value_t = 30)]
    pub unplug_deadline: u64,
    /// Seconds that a guest may take to use a VF that was plugged.
    #[arg(long, default_value_t = 30)]
    pub plug_deadline: u64,
    /// Seconds for which the PF of a NIC's standby must have been fit to carry the NIC's VF before the VF returns to it from another PF.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub home_after: u64,
    /// The most bytes per second of a migration; 0 is no limit.
    #[arg(long, default_value_t = 0)]
    pub migration_bandwidth: u64,
    /// The VM's pause that QEMU aims at in a migration, in milliseconds.
    #[arg(long, default_value_t = 300)]
    pub migration_downtime: u64,
    /// Where probes, metrics and the log level are served.
    #[command(flatten)]
    pub http: HttpOptions,
    /// What is logged.
    #[command(flatten)]
    pub log: LogOptions,
    /// Where traces go.
    #[command(flatten)]
    pub traces: TraceOptions,
}

/// More options, for an agent of a cluster.
#[derive(Debug, clap::Args)]
pub struct ClusterArgs {
    /// Where this node's kubelet has the directories of its pods. In them are the VMs' QMP sockets:
    /// DIRECTORY/UID/volumes/kubernetes.io~empty-dir/hybridnic/qmp.sock.
    #[arg(long, default_value = names::PODS_DIR)]
    pub pods_dir: PathBuf,
    /// This node's kubelet: the agent offers the node's VFs to pods through its sockets DIRECTORY/device-plugins/kubelet.sock and
    /// DIRECTORY/pod-resources/kubelet.sock. Without it the agent offers none.
    #[arg(long)]
    pub kubelet_dir: Option<PathBuf>,
    /// The uid of the pod that the agent runs in, if it runs in one: by it the agent recognizes the kubelet's directory.
    #[arg(long, env = "POD_UID")]
    pub pod_uid: Option<String>,
    /// The namespace of that pod. With its name the agent can see whether the kubelet knows its pods yet.
    #[arg(long, env = "POD_NAMESPACE")]
    pub pod_namespace: Option<String>,
    /// The name of that pod.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: Option<String>,
    /// The node's directory of CNI plugins. The agent puts its own there, and serves it. Without it no pod gets an interface through CNI,
    /// which KubeVirt's VMs need.
    #[arg(long)]
    pub cni_bin_dir: Option<PathBuf>,
    /// Where the agent listens for its CNI plugin.
    #[arg(long, default_value = hybridnic_cni::wire::SOCKET)]
    pub cni_socket: PathBuf,
    /// Serve metrics over TLS, and only to users whom the API server lets get /metrics. Needs --metrics-address.
    #[arg(long, env = "HYBRIDNIC_METRICS_AUTH", requires = "metrics_address")]
    pub metrics_auth: bool,
    /// Accept only tokens for this audience, which are valid for nothing else. Without it, accept tokens for the API server.
    #[arg(long, env = "HYBRIDNIC_METRICS_AUDIENCE", requires = "metrics_auth")]
    pub metrics_audience: Option<String>,
}

impl Args {
    /// Does what the command line says.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Some(Command::Inventory { output, sysfs }) => {
                print::text(&inventory::render(&Sysfs::new(sysfs), output)?)?;
            }
            Some(Command::Broker) => broker::serve()?,
            Some(Command::Call { call, sysfs, dev }) => calls::serve(&call, sysfs, dev)?,
            Some(Command::Ctl(args)) => {
                let ended = runtime()?.block_on(ctl::run(args));
                return ended.or_else(|error| {
                    print::error(&format!("{error:#}"))?;
                    Ok(ExitCode::FAILURE)
                });
            }
            Some(Command::Local(args)) => {
                let LocalArgs { dir, node } = *args;
                let (logs, broker) = begin(&node.log)?;
                runtime()?.block_on(run::local(&dir, node, logs, broker))?;
            }
            None => {
                let RunArgs { node, cluster } = self.run;
                let (logs, broker) = begin(&node.log)?;
                runtime()?.block_on(run::cluster(node, cluster, logs, broker))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// All that comes before there is a second thread: capabilities belong to threads.
fn begin(log: &LogOptions) -> anyhow::Result<(LogLevel, Started)> {
    let logs = telemetry::init(log)?;
    load_modules();
    let broker = Started::new(PROGRAM.as_ref()).context("cannot start the broker")?;
    give_up_privileges()?;
    Ok((logs, broker))
}

/// One thread is enough for what a node has to do, and keeps the agent small.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    Ok(builder.max_blocking_threads(8).enable_all().build()?)
}

/// What VFs, standbys and their guards need. Kernels that have these as modules do not load all of them by themselves.
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
            // It is built in, or missing: then what needs it reports that.
            tracing::debug!(module, "not loaded by modprobe");
        }
    }
}

/// Drops the capabilities that the agent does not need, and says what is left.
fn give_up_privileges() -> anyhow::Result<()> {
    let left = privileges::drop_unneeded().context("cannot drop the capabilities that are not needed")?;
    if left.missing.is_empty() {
        info!(capabilities = %left, "all others are given up");
    } else {
        warn!(capabilities = %left, "capabilities are missing: what needs them will fail");
    }
    Ok(())
}
