//! A node's half of KubeVirt: its virt-handler, and launcher pods as the kubelet and a container runtime would run them, with
//! our sidecar. CNI is the test's.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt as _;
use serde_json::Value;
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::{NAMESPACE, address};
use crate::controlplane::ControlPlane;
use crate::controlplane::process::{Daemon, resident_kib};
use crate::lab::qmp;
use crate::world::binary;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kubevirt/root.sh");
const HANDLER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kubevirt/handler.sh");
const LAUNCHER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kubevirt/launcher.sh");
/// Where a virt-handler is told what its users ask of a VM.
pub(super) const HANDLER_PORT: u16 = 8444;
/// QEMU's user and group.
const QEMU: u32 = 107;
/// For what a process does at its start, of a machine that may be busy.
const SOON: Duration = Duration::from_secs(30);
/// Nothing tells of what a process has done to itself.
const POLL: Duration = Duration::from_millis(20);

/// The root that both run in, made where it is missing.
pub async fn root() -> Result<PathBuf> {
    made_by(ROOT, &[]).await
}

/// Where a script says that what it makes is.
pub(super) async fn made_by(script: &str, of: &[&Path]) -> Result<PathBuf> {
    let child = Command::new(script)
        .args(of)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .with_context(|| script.to_owned())?;
    let output = child.wait_with_output().await?;
    ensure!(output.status.success(), "{script}: {}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim_end().into())
}

/// What a virt-handler is given.
pub(super) struct Given {
    /// Below `/var/lib/kubevirt`.
    pub files: Vec<(String, String)>,
    pub flags: Vec<String>,
}

impl Given {
    /// For the one of a node, which the others reach at this address; it finds the API server at another one than this host's own
    /// where there is one.
    pub(super) async fn new(
        cluster: &ControlPlane,
        node: &str,
        address: IpAddr,
        api: Option<IpAddr>,
    ) -> Result<Self> {
        let mut login = cluster
            .login_service_account(NAMESPACE, "kubevirt-handler", Some(("Node", node)))
            .await?;
        if let Some(api) = api {
            login = login.at(api);
        }
        let mut files = vec![("kubeconfig".to_owned(), login.kubeconfig())];
        let mut flags = vec![
            "--kubeconfig=/var/lib/kubevirt/kubeconfig".to_owned(),
            format!("--hostname-override={node}"),
            format!("--pod-ip-address={address}"),
            format!("--listen={address}"),
            "--port=8443".to_owned(),
            format!("--console-server-port={HANDLER_PORT}"),
            "--enable-node-labeller=false".to_owned(),
            "-v=3".to_owned(),
        ];
        // Each by the name that the others look for.
        let server = cluster.server_certificate("kubevirt.io:system:node:virt-handler", address)?;
        let client = cluster.client_certificate("kubevirt.io:system:client:virt-handler")?;
        let migration = cluster.client_certificate("kubevirt.io:system:client:migration")?;
        for (pair, name, of) in [
            (server, "tls", &["tls"][..]),
            (client, "client", &["client", "vsock-client"]),
            (migration, "migration", &["migration-client"]),
        ] {
            // In a directory of their own: it is watched.
            files.push((format!("{name}/tls.crt"), pair.certificate));
            files.push((format!("{name}/tls.key"), pair.key));
            for flag in of {
                flags.push(format!("--{flag}-cert-file=/var/lib/kubevirt/{name}/tls.crt"));
                flags.push(format!("--{flag}-key-file=/var/lib/kubevirt/{name}/tls.key"));
            }
        }
        Ok(Self { files, flags })
    }
}

/// A virt-handler, running, in a namespace of processes that is its node's. Dropping it ends it, and all launchers of that node.
pub struct Handler {
    daemon: Daemon,
    _node: Daemon,
    /// The first process of the node.
    first: u32,
    dir: PathBuf,
    root: PathBuf,
}

impl Handler {
    /// Starts the one of a node, the `number`th of its cluster, counted from one.
    pub async fn start(cluster: &ControlPlane, root: &Path, node: &str, number: u8) -> Result<Self> {
        let dir = cluster.dir().join(node);
        let (kubelet, private) = (dir.join("kubelet"), dir.join("kubevirt"));
        fs::create_dir_all(&private)?;
        let address = address(cluster.port(), 10 + number);
        let given = Given::new(cluster, node, address.into(), None).await?;
        for (name, text) in given.files {
            let path = private.join(name);
            fs::create_dir_all(path.parent().unwrap_or(&private))?;
            fs::write(path, text)?;
        }
        let args = ["--pid", "--fork", "--kill-child", "sleep", "infinity"];
        let mut node_daemon = Daemon::new(
            "node",
            Path::new("/usr/bin/unshare"),
            args.map(Into::into).into(),
            &dir,
        );
        node_daemon.start()?;
        let first = child(node_daemon.pid().context("it has ended")?).await?;
        let paths = [root, &kubelet, &private].map(|path| path.display().to_string());
        let mut args = vec![first.to_string()];
        args.extend(paths);
        args.extend([format!("NODE_NAME={node}"), "--".into()]);
        args.extend(given.flags);
        let mut daemon = Daemon::new("virt-handler", Path::new(HANDLER), args, &dir);
        daemon.start()?;
        Ok(Self {
            daemon,
            _node: node_daemon,
            first,
            dir,
            root: root.to_owned(),
        })
    }

    /// Its resident memory, in KiB.
    pub async fn resident_kib(&self) -> Option<u64> {
        // What has been started waits for it, outside of the node.
        let pid = child(self.daemon.pid()?).await.ok()?;
        resident_kib(pid)
    }

    /// Fails if it has ended.
    pub fn check(&mut self) -> Result<()> {
        Ok(self.daemon.check()?)
    }

    /// A pod's network namespace and volumes, before any of its containers runs: CNI's turn.
    pub async fn sandbox(&self, pod: &Pod) -> Result<Sandbox> {
        let uid = pod.uid().context("a pod without a uid")?;
        let dir = self.dir.join(pod.name_any());
        fs::create_dir_all(&dir)?;
        let args = ["--net", "sleep", "infinity"].map(Into::into).into();
        let mut holder = Daemon::new("sandbox", Path::new("/usr/bin/unshare"), args, &dir);
        holder.start()?;
        let pid = holder.pid().context("it has ended")?;
        let [ours, its] =
            ["self".to_owned(), pid.to_string()].map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net")));
        let deadline = Instant::now() + SOON;
        while fs::read_link(&ours)? == fs::read_link(&its)? {
            ensure!(Instant::now() < deadline, "no network namespace after {SOON:?}");
            sleep(POLL).await;
        }
        let volumes = self
            .dir
            .join(format!("kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir"));
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            if volume.empty_dir.is_some() {
                writable(&volumes.join(&volume.name))?;
            }
        }
        Ok(Sandbox {
            holder,
            dir,
            volumes,
            first: self.first,
            root: self.root.clone(),
        })
    }
}

/// The one process that another has started.
async fn child(parent: u32) -> Result<u32> {
    let deadline = Instant::now() + SOON;
    loop {
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
        if let Some(child) = children.split_whitespace().next() {
            return Ok(child.parse()?);
        }
        ensure!(
            Instant::now() < deadline,
            "process {parent} has no child after {SOON:?}"
        );
        sleep(POLL).await;
    }
}

/// A directory that everybody may write to, and that is QEMU's, as of a pod with its group.
fn writable(path: &Path) -> Result<()> {
    fs::create_dir_all(path)?;
    chown(path, Some(QEMU), Some(QEMU))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
    Ok(())
}

/// A device that the container gets, by its node on this host.
#[derive(Debug, Clone)]
pub struct Device(pub PathBuf);

/// A pod without containers.
pub struct Sandbox {
    holder: Daemon,
    dir: PathBuf,
    volumes: PathBuf,
    /// The first process of its node.
    first: u32,
    root: PathBuf,
}

impl Sandbox {
    /// A process in its network namespace.
    pub fn pid(&self) -> u32 {
        self.holder.pid().unwrap_or_default()
    }

    /// Starts its containers, and waits until the launcher can be spoken to.
    pub async fn run(self, pod: &Pod, devices: &[Device]) -> Result<Launcher> {
        let containers = &pod.spec.as_ref().context("no spec")?.containers;
        let (mut sidecars, mut compute) = (Vec::new(), None);
        for container in containers {
            if container.name.starts_with("hook-sidecar-") {
                sidecars.push(self.sidecar(container)?);
            } else if container.name == "compute" {
                compute = Some(self.compute(pod, container, devices)?);
            }
        }
        let mut compute = compute.context("no container compute")?;
        let socket = self.volumes.join("sockets/launcher-sock");
        let deadline = Instant::now() + SOON;
        while !socket.exists() {
            compute.check()?;
            ensure!(
                Instant::now() < deadline,
                "{} is not there after {SOON:?}",
                socket.display()
            );
            sleep(POLL).await;
        }
        Ok(Launcher {
            sandbox: self,
            sidecars,
            compute,
        })
    }

    /// Our program for its image, which has nothing else in it.
    fn sidecar(&self, container: &Container) -> Result<Daemon> {
        let directory = self
            .mounts(container)
            .find(|(_, target)| target == "/var/run/kubevirt-hooks")
            .context("the sidecar has no directory")?
            .0;
        writable(&directory)?;
        // From within: the whole path is longer than a socket's address may be.
        let run = "cd \"$0\" && exec setpriv --reuid=107 --regid=107 --clear-groups --bounding-set=-all --no-new-privs \"$1\" .";
        let paths = [directory, binary("hybridnic-sidecar")?].map(|path| path.display().to_string());
        let mut args = vec!["-c".to_owned(), run.to_owned()];
        args.extend(paths);
        let mut sidecar = Daemon::new("sidecar", Path::new("/bin/sh"), args, &self.dir);
        sidecar.start()?;
        Ok(sidecar)
    }

    fn compute(&self, pod: &Pod, container: &Container, devices: &[Device]) -> Result<Daemon> {
        let mut mounts: Vec<_> = self.mounts(container).collect();
        mounts.sort_by(|a, b| a.1.cmp(&b.1));
        let mut table = String::new();
        for (source, target) in mounts
            .iter()
            .filter(|(_, target)| target.starts_with("/var/run/"))
        {
            let _ = writeln!(table, "{}\t{target}", source.display());
        }
        let file = |name: &str, text: String| {
            let path = self.dir.join(name);
            fs::write(&path, text).map(|()| path.display().to_string())
        };
        let table = file("mounts", table)?;
        let mut nodes = String::new();
        for Device(path) in devices {
            let device = fs::metadata(path)
                .with_context(|| path.display().to_string())?
                .rdev();
            let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
            let _ = writeln!(nodes, "{}\t{major}\t{minor}", path.display());
        }
        let mut args = vec![
            self.first.to_string(),
            self.root.display().to_string(),
            self.pid().to_string(),
            table,
            file("devices", nodes)?,
        ];
        for variable in container.env.iter().flatten() {
            let field = variable
                .value_from
                .as_ref()
                .and_then(|from| from.field_ref.as_ref());
            let value = match field.map(|field| field.field_path.as_str()) {
                Some("metadata.name") => Some(pod.name_any()),
                Some(_) => None,
                None => variable.value.clone(),
            };
            args.extend(value.map(|value| format!("{}={value}", variable.name)));
        }
        args.extend(container.command.iter().chain(&container.args).flatten().cloned());
        let mut compute = Daemon::new("compute", Path::new(LAUNCHER), args, &self.dir);
        compute.start()?;
        Ok(compute)
    }

    /// The volumes of a container that are directories of the node: where, and where it sees them.
    fn mounts<'a>(&'a self, container: &'a Container) -> impl Iterator<Item = (PathBuf, String)> + 'a {
        let mounts = container.volume_mounts.iter().flatten();
        mounts
            .map(|mount| {
                let part = mount.sub_path.as_deref().unwrap_or_default();
                (self.volumes.join(&mount.name), part, mount.mount_path.clone())
            })
            .filter(|(volume, ..)| volume.is_dir())
            .map(|(volume, part, target)| (volume.join(part), target))
    }
}

/// A launcher pod, running. Dropping it ends it, and its VM.
pub struct Launcher {
    sandbox: Sandbox,
    sidecars: Vec<Daemon>,
    compute: Daemon,
}

impl Launcher {
    /// Where its logs are: `compute.log`, `sidecar.log`.
    pub fn dir(&self) -> &Path {
        &self.sandbox.dir
    }

    /// Fails if the launcher has ended.
    pub fn check(&mut self) -> Result<()> {
        Ok(self.compute.check()?)
    }

    /// The resident memory of its sidecar, in KiB.
    pub fn sidecar_kib(&self) -> Option<u64> {
        self.sidecars.first()?.resident_kib()
    }

    /// Whether its sidecar has ended.
    pub fn sidecar_has_ended(&mut self) -> bool {
        self.sidecars.iter_mut().all(|sidecar| sidecar.check().is_err())
    }

    /// Its QEMU's process, and what it was started with.
    pub fn qemu(&self) -> Result<Option<(u32, Vec<String>)>> {
        let ours = fs::read_link(format!("/proc/{}/ns/net", self.sandbox.pid()))?;
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let is_there =
                fs::read_link(entry.path().join("ns/net")).is_ok_and(|namespace| namespace == ours);
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<_> = line
                .split(|byte| *byte == 0)
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect();
            if is_there
                && words[0].ends_with("qemu-system-x86_64")
                && words.iter().any(|word| word == "-name")
            {
                return Ok(Some((pid, words)));
            }
        }
        Ok(None)
    }

    /// Says one thing to its QEMU, by the monitor that is ours.
    pub async fn qmp(&self, command: &str, arguments: Value) -> Result<Value> {
        // Its whole path is longer than a socket's address may be.
        let directory = fs::File::open(self.sandbox.volumes.join("private"))?;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&directory);
        let path = format!("/proc/self/fd/{fd}/hybridnic-qmp.sock");
        let deadline = Instant::now() + SOON;
        let stream = loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => break stream,
                Err(e) if Instant::now() >= deadline => bail!("the second monitor: {e}"),
                Err(_) => sleep(POLL).await,
            }
        };
        Ok(qmp::call(BufReader::new(stream), command, arguments, SOON).await?)
    }

    /// The domain as libvirt has it.
    pub async fn domain(&self) -> Result<String> {
        let (pid, _) = self.qemu()?.context("no QEMU")?;
        let uri = "qemu+unix:///session?socket=/var/run/libvirt/virtqemud-sock";
        let virsh = format!("virsh -c '{uri}' dumpxml $(virsh -c '{uri}' list --name)");
        let output = Command::new("/usr/bin/nsenter")
            .arg(format!("--target={pid}"))
            .args([
                "--mount",
                "--root",
                "--wd=/",
                "--setuid=107",
                "--setgid=107",
                "/usr/bin/bash",
                "-c",
                &virsh,
            ])
            .env("XDG_RUNTIME_DIR", "/var/run")
            .output()
            .await?;
        ensure!(
            output.status.success(),
            "virsh: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }
}
