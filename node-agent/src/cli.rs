//! The command line, and what it starts.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use hybridnic_api::names;
use hybridnic_net::{dev::DevNodes, netlink::Netlink, sysfs::Sysfs};
use hybridnic_runtime::{
    health::{self, Health},
    shutdown,
    telemetry::{self, LogOptions},
    tls,
};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    attachments::Attachments,
    host::{Host, Settings},
    inventory::{self, Output},
    journal::{Journal, Record},
    node::{pool::Pools, publish},
    privileges,
    sockets::Sockets,
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
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Name of the node that this agent is on.
    #[arg(long, env = "NODE_NAME")]
    node_name: Option<String>,
    /// Where the VMs' QMP sockets are: DIRECTORY/NAMESPACE/POD/qmp.sock.
    #[arg(long, default_value = names::VM_SOCKET_ROOT)]
    vm_root: PathBuf,
    /// Where the agent keeps its journal; it must outlast a reboot of the agent, not of the node.
    #[arg(long, default_value = "/var/lib/hybridnic/journal")]
    journal: PathBuf,
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
    /// Where to answer /livez and /readyz.
    #[arg(long)]
    http_address: Option<SocketAddr>,
    #[command(flatten)]
    log: LogOptions,
}

impl Args {
    /// Does what the command line says.
    pub fn execute(self) -> anyhow::Result<()> {
        match self.command {
            Some(Command::Inventory { output, sysfs }) => {
                print!("{}", inventory::render(&Sysfs::new(sysfs), output)?);
                Ok(())
            }
            None => {
                telemetry::init(&self.run.log)?;
                // Both before there is a second thread: capabilities belong to threads.
                load_modules();
                give_up_privileges()?;
                // One thread is enough for what a node has to do, and keeps the agent small.
                tokio::runtime::Builder::new_current_thread()
                    .max_blocking_threads(8)
                    .enable_all()
                    .build()?
                    .block_on(run(self.run))
            }
        }
    }
}

async fn run(args: RunArgs) -> anyhow::Result<()> {
    tls::install_provider();
    let node_name = args
        .node_name
        .context("say which node this is: --node-name, or NODE_NAME")?;
    let stop = shutdown::on_signal()?;
    let journal = Journal::open(&args.journal)?;
    let records = journal.load()?;
    let sockets = Sockets::watch(&args.vm_root).context("cannot watch the VMs' socket directories")?;
    let host = Arc::new(Host {
        sysfs: Sysfs::default(),
        dev: DevNodes::default(),
        netlink: Netlink::open()?,
        journal,
        pools: Pools::default(),
        options: Settings {
            node_name: node_name.clone(),
            vm_root: args.vm_root,
            unplug_deadline: Duration::from_secs(args.unplug_deadline),
            plug_deadline: Duration::from_secs(args.plug_deadline),
            migration_bandwidth: args.migration_bandwidth,
            migration_downtime_ms: args.migration_downtime,
        },
        hardware: watch::Sender::new(0),
    });
    audit(&host, &records).await;
    info!(
        node = node_name,
        version = env!("CARGO_PKG_VERSION"),
        held = records.len(),
        "hybridnic agent"
    );
    let client = kube::Client::try_default()
        .await
        .context("no way to the API server")?;
    let health = Health::new();
    health.set_ready(true);
    let (generation_tx, generation_rx) = watch::channel(None);
    let probes = async {
        match args.http_address {
            Some(address) => health::serve(address, health)
                .await
                .context("cannot answer probes"),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = stop.cancelled() => info!("stopped; VMs keep their NICs"),
        result = publish::watch_hardware(Arc::clone(&host)) => result?,
        () = publish::watch_pools(client.clone(), Arc::clone(&host), generation_tx) => anyhow::bail!("the watch of the HybridNode has ended"),
        () = publish::publish(client.clone(), Arc::clone(&host), generation_rx) => anyhow::bail!("publishing has ended"),
        () = Attachments::new(client, Arc::clone(&host), sockets.changes()).run(records) => anyhow::bail!("the watch of attachments has ended"),
        result = probes => result?,
    }
    Ok(())
}

/// Kernels that have these as modules load none of them by themselves.
fn load_modules() {
    for module in ["vfio-pci", "macvtap", "vhost_net", "8021q"] {
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

/// Reports what looks like ours and is not in the journal. It is not touched: a VM may run on it.
async fn audit(host: &Host, records: &[Record]) {
    let links = match host.netlink.links().await {
        Ok(links) => links,
        Err(error) => return warn!(%error, "cannot look for leftovers"),
    };
    for link in links {
        let ours = link.alias.as_deref().is_some_and(|a| a.starts_with("hybridnic "));
        let known = records
            .iter()
            .any(|r| r.standby.as_ref().is_some_and(|s| s.macvtap == link.name));
        if ours && !known {
            warn!(
                macvtap = link.name,
                alias = link.alias,
                "this macvtap looks like ours and is not in the journal"
            );
        }
    }
}
