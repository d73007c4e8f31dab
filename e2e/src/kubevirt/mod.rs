//! KubeVirt's own programs, as processes beside a [`ControlPlane`]. virt-api and virt-controller, [`KubeVirt`]: what KubeVirt makes
//! of a virtual machine before any node has it. virt-handler and virt-launcher, [`Handler`] and [`Launcher`]: what a node makes of it,
//! with libvirt and QEMU. Built from its Go modules, see `e2e/kubevirt/build.sh`.
//!
//! Each has its own service account, as installed. It must: the webhook of virtual machine instances drops, without a word,
//! what anyone else writes to a status.

mod multus;
mod node;
mod nodes;
mod objects;
mod sriov;
mod virtctl;
mod vm;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::controlplane::ControlPlane;
use crate::controlplane::process::Daemon;
use crate::controlplane::tools::Built;

pub use multus::{MULTUS, thin_multus};
pub use node::{Device, Handler, Launcher, Sandbox, root};
pub use nodes::{OnNodes, images};
pub use objects::NAMESPACE;
pub use virtctl::Virtctl;
pub use vm::{Interface, Vm};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kubevirt/build.sh");
/// From start to the first answer: its caches must be filled, of a machine that may be busy.
const READY: Duration = Duration::from_mins(1);
/// As `e2e/kubevirt/go.mod` pins it.
const VERSION: &str = "v1.8.0";
/// Where each program listens, at an address of its own.
const PORT: u16 = 8443;

/// A program, as it is installed.
struct Program {
    name: &'static str,
    account: &'static str,
    /// Which certificates its flags ask for.
    certificates: &'static [&'static str],
    flags: &'static [&'static str],
}

const API: Program = Program {
    name: "virt-api",
    account: "kubevirt-apiserver",
    certificates: &["tls", "handler"],
    flags: &[],
};
const CONTROLLER: Program = Program {
    name: "virt-controller",
    account: "kubevirt-controller",
    certificates: &["prom"],
    flags: &["--launcher-image=localhost/virt-launcher:none"],
};

/// A kind of KubeVirt's core group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    KubeVirt,
    VirtualMachine,
    VirtualMachineInstance,
    VirtualMachineInstanceMigration,
}

impl Kind {
    /// Its objects in a namespace.
    pub fn api(self, client: Client, namespace: &str) -> Api<DynamicObject> {
        let kind = match self {
            Self::KubeVirt => "KubeVirt",
            Self::VirtualMachine => "VirtualMachine",
            Self::VirtualMachineInstance => "VirtualMachineInstance",
            Self::VirtualMachineInstanceMigration => "VirtualMachineInstanceMigration",
        };
        let kind = GroupVersionKind::gvk("kubevirt.io", "v1", kind);
        Api::namespaced_with(client, namespace, &ApiResource::from_gvk(&kind))
    }
}

/// KubeVirt's control half, running. Dropping it ends its programs.
pub struct KubeVirt {
    programs: [Daemon; 2],
    dir: PathBuf,
}

impl KubeVirt {
    /// Installs KubeVirt in a cluster with controllers, with this `spec.configuration`, and starts its programs; builds them
    /// where they are missing. They answer when this is done.
    pub async fn start(cluster: &ControlPlane, configuration: Value) -> Result<Self> {
        let mut built = Built::by(SCRIPT, &["virt-api", "virt-controller", "objects.json"]).await?;
        let dir = cluster.dir().join("kubevirt");
        fs::create_dir_all(&dir)?;
        let [api, controller] = addresses(cluster.port());
        install(cluster, &built.take("objects.json")?, api, &dir).await?;
        let kubevirt = json!({
            "apiVersion": "kubevirt.io/v1", "kind": "KubeVirt",
            "metadata": { "name": "kubevirt", "namespace": NAMESPACE },
            "spec": { "configuration": configuration },
        });
        let all = Kind::KubeVirt.api(cluster.client_admin(), NAMESPACE);
        all.create(&PostParams::default(), &serde_json::from_value(kubevirt)?)
            .await
            .context("the KubeVirt object")?;
        // What virt-operator would say of its work; the programs ask for it.
        let status = json!({ "status": {
            "phase": "Deployed", "defaultArchitecture": "amd64", "observedKubeVirtVersion": VERSION,
        }});
        all.patch_status("kubevirt", &PatchParams::default(), &Patch::Merge(status))
            .await
            .context("the KubeVirt object's status")?;

        let mut this = Self {
            programs: [
                API.daemon(cluster, &built.take(API.name)?, api, &dir).await?,
                CONTROLLER
                    .daemon(cluster, &built.take(CONTROLLER.name)?, controller, &dir)
                    .await?,
            ],
            dir,
        };
        for (program, address) in this.programs.iter_mut().zip([api, controller]) {
            program.start()?;
            answers(program, address).await?;
        }
        Ok(this)
    }

    /// Where their logs are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The resident memory of each program, in KiB.
    pub fn resident_kib(&self) -> Vec<(&'static str, u64)> {
        let programs = self.programs.iter();
        programs
            .filter_map(|program| Some((program.name(), program.resident_kib()?)))
            .collect()
    }
}

/// Merges into the KubeVirt object's configuration, as an administrator does who registers a binding.
pub async fn configure(client: Client, configuration: Value) -> Result<()> {
    let patch = json!({ "spec": { "configuration": configuration } });
    Kind::KubeVirt
        .api(client, NAMESPACE)
        .patch("kubevirt", &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}

/// A loopback address that no other cluster on this machine has: of the control plane's port, which is its alone. The programs
/// cannot be given a port that is held for them.
fn address(port: u16, last: u8) -> Ipv4Addr {
    let [high, low] = port.to_be_bytes();
    Ipv4Addr::new(127, high, low, last)
}

fn addresses(port: u16) -> [SocketAddr; 2] {
    [1, 2].map(|last| (address(port, last), PORT).into())
}

async fn install(cluster: &ControlPlane, objects: &Path, api: SocketAddr, dir: &Path) -> Result<()> {
    let mut list: Value = serde_json::from_slice(&fs::read(objects)?)?;
    objects::fit(&mut list, api, &cluster.authority());
    let path = dir.join("objects.json");
    fs::write(&path, serde_json::to_vec(&list)?)?;
    let path = path.to_str().context("a path in UTF-8")?;
    // Not `apply`: of its CRDs, some are too long for the annotation that it would keep.
    for args in [
        &["create", "-f", path][..],
        &[
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            "crd",
            "--all",
        ],
    ] {
        let output = cluster.kubectl(args).await?;
        ensure!(
            output.status.success(),
            "kubectl {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

impl Program {
    /// It, with a certificate, and the rights of its own service account.
    async fn daemon(
        &self,
        cluster: &ControlPlane,
        program: &Path,
        address: SocketAddr,
        dir: &Path,
    ) -> Result<Daemon> {
        let name = self.name;
        let login = cluster
            .login_service_account(NAMESPACE, self.account, None)
            .await?;
        // It watches its certificates' whole directory, and writes to its log what happens there.
        let certificates = dir.join(name);
        fs::create_dir_all(&certificates)?;
        let [certificate, key] = ["tls.crt", "tls.key"].map(|file| certificates.join(file));
        let kubeconfig = dir.join(format!("{name}.kubeconfig"));
        login.write(&kubeconfig)?;
        let pair = cluster.server_certificate(name, address.ip())?;
        fs::write(&certificate, pair.certificate)?;
        fs::write(&key, pair.key)?;
        let mut args = vec![
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--listen={}", address.ip()),
            format!("--port={}", address.port()),
            "-v=2".to_owned(),
        ];
        for which in self.certificates {
            args.push(format!("--{which}-cert-file={}", certificate.display()));
            args.push(format!("--{which}-key-file={}", key.display()));
        }
        args.extend(self.flags.iter().map(ToString::to_string));
        Ok(Daemon::new(name, program, args, dir))
    }
}

/// Waits until a program listens, which it does once its caches are filled.
async fn answers(program: &mut Daemon, address: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + READY;
    while TcpStream::connect(address).await.is_err() {
        program.check()?;
        if Instant::now() >= deadline {
            bail!(
                "{} does not listen after {READY:?}: {}",
                program.name(),
                program.log_path().display()
            );
        }
        // A port cannot be watched.
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
