//! Kernels and initramfs, made by the scripts in `e2e/lab` and cached by their inputs' contents.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// Building a kernel takes 10 minutes on two idle cores.
const BUILD_DEADLINE: Duration = Duration::from_mins(40);

/// Which kernel the lab runs, in nodes and guests alike, and what nodes are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Our own, without modules: has iommufd and vfio cdev; boots in 4 seconds.
    Small,
    /// Debian's 6.12: drivers are modules, vfio has groups only.
    Debian,
    /// The small one, in nodes that run pods: they have containerd, and no QEMU of their own.
    Kube,
    /// Debian's, in such nodes.
    KubeDebian,
}

/// No images.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("find lab-exec beside the test: run it by `cargo test -p hybridnic-e2e`")]
    NoLabExec,
    #[error("run build-images.sh")]
    Run(#[source] io::Error),
    #[error("build-images.sh took more than {BUILD_DEADLINE:?}")]
    Deadline,
    #[error("build-images.sh failed ({0}); its messages are on standard error")]
    Failed(ExitStatus),
    #[error("build-images.sh did not name {0}")]
    Unnamed(&'static str),
}

/// Where the images are.
#[derive(Debug, Clone)]
pub(crate) struct Images {
    pub(crate) node_qemu: PathBuf,
    pub(crate) node_kernel: PathBuf,
    pub(crate) node_initrd: PathBuf,
    pub(crate) guest_kernel: PathBuf,
    pub(crate) guest_initrd: PathBuf,
    pub(crate) lab_exec: PathBuf,
}

/// Builds what is missing, with progress on standard error.
pub(crate) async fn build(kernel: Kernel) -> Result<Images, Error> {
    let named = script(kernel, &[]).await?;
    let path = |name: &'static str| path(&named, name);
    Ok(Images {
        node_qemu: path("NODE_QEMU")?,
        node_kernel: path("NODE_KERNEL")?,
        node_initrd: path("NODE_INITRD")?,
        guest_kernel: path("GUEST_KERNEL")?,
        guest_initrd: path("GUEST_INITRD")?,
        lab_exec: path("LAB_EXEC")?,
    })
}

/// The initramfs of guests with Debian's own systemd, built if it is missing.
pub(crate) async fn managed(kernel: Kernel) -> Result<PathBuf, Error> {
    path(&script(kernel, &["managed"]).await?, "MANAGED_INITRD")
}

/// An archive with OpenSSH for nodes, made if it is missing.
pub(crate) async fn ssh(kernel: Kernel) -> Result<PathBuf, Error> {
    path(&script(kernel, &["ssh"]).await?, "SSH_FILES")
}

fn path(named: &HashMap<String, PathBuf>, name: &'static str) -> Result<PathBuf, Error> {
    named.get(name).cloned().ok_or(Error::Unnamed(name))
}

/// What build-images.sh says, by name.
async fn script(kernel: Kernel, more: &[&str]) -> Result<HashMap<String, PathBuf>, Error> {
    let lab_exec = lab_exec()?;
    let flavour = match kernel {
        Kernel::Small => "small",
        Kernel::Debian => "debian",
        Kernel::Kube => "kube",
        Kernel::KubeDebian => "kube-debian",
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("lab/build-images.sh");
    // Not `output`, which would take its progress too.
    let running = Command::new(script)
        .arg(flavour)
        .arg(&lab_exec)
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(Error::Run)?;
    let output = timeout(BUILD_DEADLINE, running.wait_with_output())
        .await
        .map_err(|_| Error::Deadline)?
        .map_err(Error::Run)?;
    if !output.status.success() {
        return Err(Error::Failed(output.status));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, path)| (name.into(), path.into()))
        .collect())
}

/// `lab-exec` as Cargo built it for this test: tests are in `target/PROFILE/deps`, programs one up.
fn lab_exec() -> Result<PathBuf, Error> {
    let test = std::env::current_exe().map_err(|_| Error::NoLabExec)?;
    test.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("lab-exec"))
        .find(|path| path.is_file())
        .ok_or(Error::NoLabExec)
}
