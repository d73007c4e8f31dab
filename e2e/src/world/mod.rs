//! The whole system on the lab: control plane, operator, an agent on each node, and pods that run VMs.
//!
//! There is no kubelet: a pod is an API object, and [`Vm`] starts its QEMU on the node and keeps its status as a
//! kubelet would. Everything else is real.

mod fault;
mod look;
mod programs;
mod vm;

use std::{
    fs, mem,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Node as KubeNode, ServiceAccount};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::sync::watch;

use crate::{
    chart,
    collector::Collector,
    controlplane::{ControlPlane, Options, login::Login, tools::Tools},
    lab::{Guest, Kernel, Lab, LabOptions, Node, NodeOptions},
};

pub use fault::Fault;
pub use look::footprint;
pub use programs::{Program, binary, stripped};
pub use vm::{NicSpec, Vm, VmSpec};

/// The namespace that tests work in.
pub const NAMESPACE: &str = "default";
/// Name of the network of [`NETWORK_YAML`].
pub const NETWORK: &str = "fast";
/// All VFs of all cards of the lab, made if there are none.
pub const NETWORK_YAML: &str = "
apiVersion: hybridnic.io/v1alpha1
kind: HybridNetwork
metadata: {name: fast}
spec:
  uplinks:
  - drivers: [igb]
    numVfs: 7
  macRange: {from: \"52:54:00:77:00:00\", to: \"52:54:00:77:ff:ff\"}
";
/// How long the control plane and the programs may take to come up.
const START: Duration = Duration::from_mins(1);

/// What a world is to be like.
#[derive(Debug, Clone)]
pub struct WorldOptions {
    /// Names the run's directory.
    pub name: String,
    /// Kernel of nodes and guests.
    pub kernel: Kernel,
    /// How many nodes.
    pub nodes: u8,
    /// What each is like.
    pub node: NodeOptions,
    /// More arguments for the agents.
    pub agent_args: Vec<String>,
    /// More arguments for the operator.
    pub operator_args: Vec<String>,
    /// Whether operator and agents send traces.
    pub traces: bool,
    /// Whether no other lab may run on the machine meanwhile.
    pub alone: bool,
}

impl WorldOptions {
    /// Two nodes with the small kernel; guests have ten seconds to let go of a device, and a VF returns to its standby's PF after fifteen.
    pub fn new(name: &str) -> Self {
        let arg = |s: &str| s.to_owned();
        Self {
            name: name.into(),
            kernel: kernel_of_the_run(),
            nodes: 2,
            node: NodeOptions::default(),
            agent_args: vec![
                arg("--unplug-deadline"),
                arg("10"),
                arg("--plug-deadline"),
                arg("40"),
                arg("--home-after"),
                arg("15"),
            ],
            operator_args: Vec::new(),
            traces: false,
            alone: false,
        }
    }
}

/// `LAB_KERNEL=debian` runs a test on Debian's own kernel, which takes vfio by group.
pub fn kernel_of_the_run() -> Kernel {
    match std::env::var("LAB_KERNEL").as_deref() {
        Ok("debian") => Kernel::Debian,
        _ => Kernel::Small,
    }
}

/// A running world. Dropping it ends everything.
pub struct World {
    /// The operator; `None` while it is dead.
    operator: Option<Program>,
    agents: Vec<Option<Program>>,
    options: WorldOptions,
    client: Client,
    /// The operator's service account.
    operator_login: Login,
    /// Guests that were started, kept to tell a frozen one from a failure after the test has let go of it.
    guests: Mutex<Vec<Arc<Guest>>>,
    /// The first guest that came to an end that nobody asked for.
    lost: watch::Sender<Option<Fault>>,
    /// The control plane.
    pub control_plane: ControlPlane,
    /// What the programs send their traces to, where the options say so.
    pub collector: Option<Collector>,
    /// The nodes and their networks.
    pub lab: Lab,
}

impl World {
    /// Brings everything up. `say` gets what happens.
    pub async fn start(options: WorldOptions, say: impl Fn(&str)) -> Result<Self> {
        let lab_options = LabOptions {
            name: options.name.clone(),
            kernel: options.kernel,
            nodes: options.nodes,
            node: options.node.clone(),
            alone: options.alone,
        };
        say("getting ready: what is missing of control plane, kernel and images is built first");
        Tools::ready(false).await?;
        Lab::prepare(options.kernel).await.context("the lab")?;
        say("booting the nodes");
        // Before the control plane: a node measures its clock while it boots, and badly beside others that want the processors.
        let lab = Lab::start(lab_options).await.context("the lab")?;
        say("starting the control plane");
        let (control_plane, operator_login) =
            start_control_plane(lab.dir().join("control-plane"), lab.site().host().into()).await?;
        let client = control_plane.client_admin();
        let collector = if options.traces {
            Some(Collector::start(lab.site().host().into()).await?)
        } else {
            None
        };
        let agents = lab.nodes().iter().map(|_| None).collect();
        let mut world = Self {
            operator: None,
            agents,
            options,
            client,
            operator_login,
            guests: Mutex::default(),
            lost: watch::Sender::new(None),
            control_plane,
            collector,
            lab,
        };
        world.make_nodes().await?;
        say("starting operator and agents");
        world.start_operator()?;
        for number in 1..=world.lab.nodes().len() {
            world.start_agent(number).await?;
        }
        Ok(world)
    }

    /// Makes the node objects, which kubelets would.
    async fn make_nodes(&self) -> Result<()> {
        let nodes: Api<KubeNode> = Api::all(self.client());
        for node in self.lab.nodes() {
            let labels = [
                ("kubernetes.io/hostname", node.name()),
                ("kubernetes.io/os", "linux"),
            ];
            let object = KubeNode {
                metadata: ObjectMeta {
                    name: Some(node.name().into()),
                    labels: Some(labels.map(|(k, v)| (k.into(), v.into())).into()),
                    ..ObjectMeta::default()
                },
                ..KubeNode::default()
            };
            nodes.create(&PostParams::default(), &object).await?;
            // As their kubelets would say: one that never has is not ready.
            let ready = json!({"status": {"conditions": [{
                "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
                "lastHeartbeatTime": null, "lastTransitionTime": null,
            }]}});
            nodes
                .patch_status(node.name(), &PatchParams::default(), &Patch::Merge(&ready))
                .await?;
        }
        // Pods are refused before their namespace has its service account.
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), NAMESPACE);
        let there =
            kube::runtime::wait::await_condition(accounts, "default", |o: Option<&ServiceAccount>| {
                o.is_some()
            });
        tokio::time::timeout(START, there)
            .await
            .context("no default service account")??;
        Ok(())
    }

    /// A client with the administrator's rights.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Ends what a test has left: VMs, their pods and NICs, migrations, saves, and all networks but `kept`.
    pub async fn clear(&self, kept: &str) -> Result<()> {
        let guests = mem::take(&mut *self.guests.lock().unwrap_or_else(PoisonError::into_inner));
        for guest in guests {
            guest.kill().await?;
        }
        self.lost.send_replace(None);
        let ours = ["--all", "-n", NAMESPACE, "--timeout=60s"];
        // No kubelet says that it has ended a pod.
        let pods = [&["delete", "pods", "--force", "--grace-period=0"], &ours[..]].concat();
        self.kubectl(&pods).await?;
        self.kubectl(&[&["delete", "qmig,qsave,qrestore,vhn"], &ours[..]].concat())
            .await?;
        let kept = format!("metadata.name!={kept}");
        self.kubectl(&["delete", "hnet", "--field-selector", &kept, "--timeout=60s"])
            .await?;
        Ok(())
    }

    /// Node `number`, from 1.
    pub fn node(&self, number: usize) -> &Node {
        &self.lab.nodes()[number - 1]
    }

    /// Applies YAML with kubectl, as a user would.
    pub async fn apply(&self, yaml: &str) -> Result<String> {
        let file = self.lab.dir().join("apply.yaml");
        fs::write(&file, yaml)?;
        self.control_plane.apply(&file).await.map_err(Into::into)
    }

    /// Runs kubectl and gives what it printed; a failure is an error with its message.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        let output = self.control_plane.kubectl(args).await?;
        anyhow::ensure!(
            output.status.success(),
            "kubectl {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The control plane with kinds and rights of the chart, and the operator's login.
async fn start_control_plane(dir: PathBuf, address: IpAddr) -> Result<(ControlPlane, Login)> {
    let options = Options::new(dir).reachable_at(address).with_controllers();
    let control_plane = ControlPlane::start(options).await.context("the control plane")?;
    chart::install_without_pods(&control_plane)
        .await
        .context("the chart")?;
    let login = control_plane
        .login_service_account(chart::NAMESPACE, chart::OPERATOR, None)
        .await?;
    Ok((control_plane, login))
}

/// A path of this repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
