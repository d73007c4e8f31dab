//! Where programs of other projects are: scripts such as `e2e/controlplane/build.sh` know, and build what is missing.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::Command;

/// A build from nothing on two cores takes a quarter of an hour.
const BUILD_DEADLINE: Duration = Duration::from_mins(45);

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/controlplane/build.sh");

/// Why there are no binaries.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("cannot run {script}")]
    Run { script: &'static str, source: io::Error },
    #[error("{0} was not done after {BUILD_DEADLINE:?}")]
    Deadline(&'static str),
    #[error("{script} failed ({status}); its messages are on standard error")]
    Failed {
        script: &'static str,
        status: ExitStatus,
    },
    #[error("{script} did not say where {name} is")]
    Missing {
        script: &'static str,
        name: &'static str,
    },
}

/// The binaries of one Kubernetes release.
#[derive(Debug, Clone)]
pub struct Tools {
    /// etcd.
    pub etcd: PathBuf,
    /// kube-apiserver.
    pub apiserver: PathBuf,
    /// kube-controller-manager.
    pub controller_manager: PathBuf,
    /// kubectl.
    pub kubectl: PathBuf,
    /// helm.
    pub helm: PathBuf,
    /// What makes machines nodes; none unless asked for.
    pub nodes: Option<NodeTools>,
}

/// The binaries with which a machine is a node.
#[derive(Debug, Clone)]
pub struct NodeTools {
    /// kube-scheduler.
    pub scheduler: PathBuf,
    /// kubelet.
    pub kubelet: PathBuf,
    /// kube-proxy.
    pub proxy: PathBuf,
    /// The stand-in for a cluster's device plugin.
    pub device_plugin: PathBuf,
}

const CONTROL: [&str; 5] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kubectl",
    "helm",
];
const NODES: [&str; 4] = ["kube-scheduler", "kubelet", "kube-proxy", "deviceplugin"];

impl Tools {
    /// Finds the binaries, those of nodes only where asked for; builds what is missing, with progress on standard error.
    ///
    /// Taken from `$KUBEBUILDER_ASSETS` where set and there, else from the cache that the script describes.
    pub async fn ready(nodes: bool) -> Result<Self, Error> {
        let nodes_too = if nodes { &NODES[..] } else { &[] };
        let mut tools = Built::by(SCRIPT, &[&CONTROL[..], nodes_too].concat()).await?;
        let mut take = |name| tools.take(name);
        Ok(Self {
            etcd: take("etcd")?,
            apiserver: take("kube-apiserver")?,
            controller_manager: take("kube-controller-manager")?,
            kubectl: take("kubectl")?,
            helm: take("helm")?,
            nodes: if nodes {
                Some(NodeTools {
                    scheduler: take("kube-scheduler")?,
                    kubelet: take("kubelet")?,
                    proxy: take("kube-proxy")?,
                    device_plugin: take("deviceplugin")?,
                })
            } else {
                None
            },
        })
    }
}

/// What others take of us, by their own schemas.
#[derive(Debug, Clone)]
pub struct Schemas {
    /// kubeconform.
    pub kubeconform: PathBuf,
    /// A directory with the CRDs of the Prometheus operator, a file each, `GROUP_PLURAL.yaml`.
    pub monitoring_kinds: PathBuf,
}

impl Schemas {
    /// As [`Tools::ready`].
    pub async fn ready() -> Result<Self, Error> {
        let mut tools = Built::by(SCRIPT, &["--schemas"]).await?;
        let mut take = |name| tools.take(name);
        Ok(Self {
            kubeconform: take("kubeconform")?,
            monitoring_kinds: take("monitoring-kinds")?,
        })
    }
}

/// Where a script says that things are, by their names.
pub(crate) struct Built {
    script: &'static str,
    paths: BTreeMap<String, PathBuf>,
}

impl Built {
    /// Runs a script, which prints `NAME<tab>PATH` for each thing.
    pub(crate) async fn by(script: &'static str, args: &[&str]) -> Result<Self, Error> {
        let run = |source| Error::Run { script, source };
        // Not `output`, which would take its progress too.
        let child = Command::new(script)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(run)?;
        let output = tokio::time::timeout(BUILD_DEADLINE, child.wait_with_output()).await;
        let output = output.map_err(|_| Error::Deadline(script))?.map_err(run)?;
        if !output.status.success() {
            let status = output.status;
            return Err(Error::Failed { script, status });
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let lines = text.lines().filter_map(|line| line.split_once('\t'));
        let paths = lines.map(|(name, path)| (name.to_owned(), path.into())).collect();
        Ok(Self { script, paths })
    }

    /// Where one of them is.
    pub(crate) fn take(&mut self, name: &'static str) -> Result<PathBuf, Error> {
        let script = self.script;
        self.paths.remove(name).ok_or(Error::Missing { script, name })
    }
}
