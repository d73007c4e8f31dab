//! Two nodes with SR-IOV cards, vfio and virtual machines, without any hardware.
//!
//! Each node is a QEMU with two emulated igb cards of seven VFs each; guests run inside it on kvm_amd, which runs
//! on emulated SVM. The cards' ports meet on a bridge in a network namespace of the run's own; a second network
//! leads to the host, where the API server listens.
//!
//! ```text
//! lab namespace: br0, 10.77.0.1 (the peer)      host: hnlab0, 10.78.0.1; a second lab has hnlab1, 10.78.1.1
//!    │n1p0 │n1p1        │n2p0 │n2p1                  │ (bridge adm)
//!  ┌─┴─────┴─────┐    ┌─┴─────┴─────┐          10.78.0.11, 10.78.0.12
//!  │ n1: 2 × igb │    │ n2: 2 × igb │
//!  │  ┌───────┐  │    │  ┌───────┐  │
//!  │  │ guest │  │    │  │ guest │  │
//! ```

mod accel;
pub mod capture;
pub mod dhcp;
pub mod exec;
pub mod fate;
pub mod guest;
pub mod hardware;
mod image;
pub mod inside;
mod launch;
pub mod managed;
pub mod net;
pub mod node;
pub mod pinger;
pub(crate) mod qmp;
pub mod site;
pub mod ssh;
pub mod traffic;
mod tsc;
pub mod unplug;
pub mod view;
pub mod wire;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::time::SystemTime;

use futures::future::{FutureExt as _, select_all, try_join_all};
use site::Held;

pub use accel::Accel;
pub use capture::{Capture, Frame};
pub use dhcp::Dhcp;
pub use exec::{Output, Process};
pub use fate::{Fate, died_in_svm};
pub use guest::{Guest, GuestNic, GuestSpec};
pub use hardware::{COMMON, NodeOptions};
pub use image::Kernel;
pub use inside::Inside;
pub use managed::Manager;
pub use net::Net;
pub use node::Node;
pub use pinger::Pinger;
pub use site::Site;
pub use traffic::{Report, Stream};
pub use unplug::deaf;
pub use view::{Failover, Macvtap, NetView, Netdev, Vf};

/// Directories of runs past that are kept for their logs.
const RUNS_KEPT: usize = 16;

/// The lab could not be set up.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("prepare the run's directory {path}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("get a lab of the machine's")]
    Site(#[from] site::Error),
    #[error("build the images")]
    Image(#[from] image::Error),
    #[error("set up the networks")]
    Net(#[from] net::Error),
    #[error("try this machine's KVM")]
    Accel(#[source] io::Error),
    #[error("boot the nodes")]
    Node(#[from] node::Error),
}

/// What a lab is to be like.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// Names the run's directory, `target/lab/NAME-PID`.
    pub name: String,
    /// Kernel of nodes and guests.
    pub kernel: Kernel,
    /// How many nodes, at most 9.
    pub nodes: u8,
    /// What each is like.
    pub node: NodeOptions,
    /// Whether no other lab may run on the machine meanwhile.
    pub alone: bool,
}

impl LabOptions {
    /// Two nodes with the small kernel.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            kernel: Kernel::Small,
            nodes: 2,
            node: NodeOptions::default(),
            alone: false,
        }
    }
}

/// A running lab. Dropping it ends its machines and removes its networks; if this process is killed, the machines
/// die with it and the next run at its site removes the networks.
#[derive(Debug)]
pub struct Lab {
    // Fields drop in this order: machines before networks, the site last.
    nodes: Vec<Node>,
    kernel: Kernel,
    accel: Accel,
    net: Net,
    dir: PathBuf,
    held: Held,
}

impl Lab {
    /// Builds what is missing, which takes minutes the first time, and says on standard error how far it is.
    pub async fn prepare(kernel: Kernel) -> Result<(), Error> {
        image::build(kernel).await?;
        Ok(())
    }

    /// The kernel and the initramfs of its guests, built if they are missing.
    pub async fn guest(kernel: Kernel) -> Result<[PathBuf; 2], Error> {
        let images = image::build(kernel).await?;
        Ok([images.guest_kernel, images.guest_initrd])
    }

    /// Builds what is missing, as [`Lab::prepare`] does, then boots all nodes at once: 6 seconds.
    pub async fn start(options: LabOptions) -> Result<Self, Error> {
        let root = target_dir().join("lab");
        let directory = |source| Error::Directory {
            path: root.clone(),
            source,
        };
        fs::create_dir_all(&root).map_err(directory)?;
        // First: it may take longer than others wait for a site.
        let images = image::build(options.kernel).await?;
        let held = Held::take(options.alone).await?;
        let site = held.site;
        forget_old_runs(&root).map_err(directory)?;
        let dir = root.join(format!("{}-{}", options.name, process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).map_err(directory)?;

        let net = Net::create(site, options.nodes).await?;
        let accel = Accel::probe(&images, net.file()).map_err(Error::Accel)?;
        let boot = |number| Node::boot(number, site, &options.node, &images, accel, &net, &dir);
        let nodes = try_join_all((1..=options.nodes).map(boot)).await?;
        Ok(Self {
            nodes,
            kernel: options.kernel,
            accel,
            net,
            dir,
            held,
        })
    }

    /// Its place on the machine.
    pub fn site(&self) -> Site {
        self.held.site
    }

    /// All nodes, `n1` first.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Waits until any node is gone, and says which and what it said last: see [`Node::ended`].
    pub fn node_ended(&self) -> impl Future<Output = String> + use<> {
        select_all(self.nodes.iter().map(|node| Box::pin(node.ended()))).map(|(said, ..)| said)
    }

    /// What the nodes run on.
    pub fn accel(&self) -> Accel {
        self.accel
    }

    /// The networks between and around the nodes.
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// Where this run's logs are: `n1/console.log`, `n1/share/` and so on.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Cargo's target directory of this workspace.
fn target_dir() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(default, PathBuf::from)
}

/// Removes the oldest directories of runs that are over.
fn forget_old_runs(root: &Path) -> io::Result<()> {
    let mut runs = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        // Another run may be about to remove it.
        let Ok(of) = entry.metadata() else { continue };
        if of.is_dir() && !is_anothers(&entry.path()) {
            runs.push((of.modified().unwrap_or(SystemTime::UNIX_EPOCH), entry.path()));
        }
    }
    runs.sort();
    let surplus = runs.len().saturating_sub(RUNS_KEPT);
    for (_, path) in runs.into_iter().take(surplus) {
        let _ = fs::remove_dir_all(path);
    }
    Ok(())
}

/// Whether a run's directory, `NAME-PID`, is another process's that is there.
fn is_anothers(dir: &Path) -> bool {
    let pid = dir.to_str().and_then(|dir| dir.rsplit('-').next()?.parse().ok());
    pid.is_some_and(|pid: u32| pid != process::id() && Path::new("/proc").join(pid.to_string()).exists())
}
