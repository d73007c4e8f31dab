//! A virtual machine in a node, as a user's pod would run it: QEMU without any NIC, a QMP socket for the product.

use std::fmt::Write as _;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hybridnic_api::names::{PODS_DIR, QMP_SOCKET, QMP_VOLUME};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::exec::{self, Process};
use super::fate::{self, Fate, Said};
use super::inside::Inside;
use super::node::{self, Node};
use super::qmp;
use super::wire::{self, UP};

/// A guest boots in 9 to 13 s on an idle machine, Debian's kernel in 90 s beside two compilers.
const BOOT_DEADLINE: Duration = Duration::from_mins(3);
const LOOK_DEADLINE: Duration = Duration::from_secs(30);

/// Something about a guest went wrong.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("run a command")]
    Exec(#[from] exec::Error),
    #[error("prepare the node")]
    Node(#[from] node::Error),
    #[error("ask QEMU")]
    Qmp(#[from] qmp::Error),
    #[error("QEMU of guest {name} ended with {status:?}: {log}")]
    Ended {
        name: String,
        status: Option<i32>,
        log: String,
    },
}

/// A NIC that the guest will have: whenever a device with this MAC appears, it gets this address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestNic {
    /// MAC address, lower case with colons.
    pub mac: String,
    /// Address and prefix: 10.77.N.x/24, another N for each NIC of a guest.
    pub cidr: String,
}

/// What a guest is to be like.
#[derive(Debug, Clone)]
pub struct GuestSpec {
    /// Name of the machine.
    pub name: String,
    /// Namespace and name of the pod that runs it.
    pub namespace: String,
    /// See `namespace`.
    pub pod: String,
    /// The pod's UID: it makes the path of its QMP socket, and of the control group that QEMU runs in.
    pub pod_uid: String,
    /// Whether QEMU runs in the pod's control group, like everything that a kubelet starts.
    pub grouped: bool,
    /// In MiB.
    pub memory: u32,
    /// Wait for a migration instead of booting (`-incoming defer`).
    pub incoming: bool,
    /// Its NICs, none of which it has at first.
    pub nics: Vec<GuestNic>,
    /// PCIe root ports `rp0`, `rp1` ... to plug devices into; two for each NIC unless said otherwise.
    pub root_ports: Option<u8>,
    /// Whether it lets go of devices. If not, it has no hot-plug driver: it finds new devices by looking each second,
    /// and never answers `device_del`.
    pub hotplug: bool,
    /// Name of its initramfs below `/host/guest`.
    pub initrd: String,
    /// More of the guest kernel's command line.
    pub kernel_args: String,
    /// More of QEMU's command line.
    pub qemu_args: Vec<String>,
    /// QEMU's command as somebody has written it for a shell, in place of ours: machine, memory, root ports and the product's socket are as
    /// it says. What the harness itself needs follows: a kernel, a console, its monitors, and its way into the guest.
    pub command: Option<String>,
}

impl GuestSpec {
    /// A machine of 192 MiB in pod `default/NAME`.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            namespace: "default".into(),
            pod: name.into(),
            pod_uid: format!("uid-{name}"),
            grouped: true,
            memory: 192,
            incoming: false,
            nics: Vec::new(),
            root_ports: None,
            hotplug: true,
            initrd: "initrd".into(),
            kernel_args: String::new(),
            qemu_args: Vec::new(),
            command: None,
        }
    }

    /// With one more NIC.
    #[must_use]
    pub fn nic(mut self, mac: &str, cidr: &str) -> Self {
        self.nics.push(GuestNic {
            mac: mac.to_lowercase(),
            cidr: cidr.into(),
        });
        self
    }

    /// The directory of the pod's volume for it, as a kubelet makes it: QEMU's working directory, because a socket's path may not
    /// be as long as this.
    fn volume(&self) -> String {
        format!(
            "{PODS_DIR}/{}/volumes/kubernetes.io~empty-dir/{QMP_VOLUME}",
            self.pod_uid
        )
    }

    /// The pod's control group, as a kubelet makes it.
    fn group(&self) -> String {
        format!("/sys/fs/cgroup/kubepods/besteffort/pod{}", self.pod_uid)
    }

    /// The socket the product is to use, in the node.
    pub fn qmp_socket(&self) -> String {
        format!("{}/{QMP_SOCKET}", self.volume())
    }

    /// The harness's own monitor, in the node.
    fn monitor(&self) -> String {
        format!("/run/lab/{}.{}.sock", self.namespace, self.pod)
    }

    /// The monitor that reports its end: a monitor serves one client at a time, and this one is always there.
    fn events(&self) -> String {
        format!("/run/lab/{}.{}.events.sock", self.namespace, self.pod)
    }

    /// Program, machine, memory and the product's socket.
    fn machine(&self) -> Vec<String> {
        let mut argv: Vec<String> = Vec::new();
        let mut add = |more: &[&str]| argv.extend(more.iter().map(|&arg| arg.to_owned()));
        add(&[
            "qemu-system-x86_64",
            "-name",
            &self.name,
            "-nodefaults",
            "-nographic",
            "-no-reboot",
        ]);
        // All at once: a VF pins all memory while the guest waits, and pages that a migration found to be zero would then
        // be copied one by one.
        add(&[
            "-object",
            &format!("memory-backend-ram,id=memory,size={}M,prealloc=on", self.memory),
        ]);
        add(&[
            "-M",
            "q35,memory-backend=memory",
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-smp",
            "1",
            "-m",
            &self.memory.to_string(),
        ]);
        add(&["-qmp", &format!("unix:{QMP_SOCKET},server=on,wait=off")]);
        argv
    }

    fn argv(&self, cid: u32) -> Vec<String> {
        let mut argv = match &self.command {
            Some(_) => Vec::new(),
            None => self.machine(),
        };
        let mut add = |more: &[&str]| argv.extend(more.iter().map(|&arg| arg.to_owned()));
        add(&["-kernel", "/host/guest/vmlinux"]);
        add(&["-initrd", &format!("/host/guest/{}", self.initrd)]);
        add(&[
            "-chardev",
            "stdio,id=console,signal=off",
            "-serial",
            "chardev:console",
        ]);
        add(&["-qmp", &format!("unix:{},server=on,wait=off", self.monitor())]);
        add(&["-qmp", &format!("unix:{},server=on,wait=off", self.events())]);
        add(&["-device", &format!("vhost-vsock-pci,id=lab,guest-cid={cid}")]);
        let ports = self
            .root_ports
            .unwrap_or_else(|| u8::try_from(2 * self.nics.len()).unwrap_or(u8::MAX));
        let ports = if self.command.is_some() { 0 } else { ports };
        for port in 0..ports {
            add(&[
                "-device",
                &format!("pcie-root-port,id=rp{port},chassis={}", u16::from(port) + 1),
            ]);
        }
        if self.incoming {
            add(&["-incoming", "defer"]);
        }
        // Bonds are for the guest to make: Debian's module would make one when it is loaded.
        let mut append = String::from(
            "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check bonding.max_bonds=0",
        );
        if !self.hotplug {
            append.push_str(" acpiphp.disable=1 lab.rescan=1");
        }
        for nic in &self.nics {
            let _ = write!(append, " lab.nic={}={}", nic.mac, nic.cidr);
        }
        add(&["-append", &format!("{append} {}", self.kernel_args)]);
        argv.extend(self.qemu_args.iter().cloned());
        argv
    }

    /// The shell script that makes what a kubelet has made before QEMU starts, and makes way for its sockets: those of an earlier
    /// guest of this name are still there, and dead.
    fn make_way(&self) -> String {
        let (qmp, monitor, events) = (self.qmp_socket(), self.monitor(), self.events());
        let (volume, group) = (self.volume(), self.group());
        format!("mkdir -p {volume} {group}/qemu /run/lab && rm -f {qmp} {monitor} {events}")
    }

    /// The shell script that becomes QEMU.
    fn script(&self) -> String {
        let mut script = format!("cd {} && ", self.volume());
        if self.grouped {
            let _ = write!(script, "{} && ", self.join("$$"));
        }
        let command = self.command.as_deref().unwrap_or_default();
        let _ = write!(script, r#"exec {command} "$@""#);
        script
    }

    /// The shell script that puts a process into the pod's control group.
    fn join(&self, pid: &str) -> String {
        format!("echo {pid} >{}/qemu/cgroup.procs", self.group())
    }
}

/// A running guest. Dropping it kills its QEMU.
#[derive(Debug)]
pub struct Guest {
    spec: GuestSpec,
    node: Node,
    inside: Inside,
    qemu: Process,
    said: watch::Receiver<Said>,
    /// By the harness.
    killed: AtomicBool,
    _listener: AbortOnDropHandle<()>,
}

impl Deref for Guest {
    type Target = Inside;

    fn deref(&self) -> &Inside {
        &self.inside
    }
}

impl Guest {
    /// Starts QEMU; returns once the guest is up or, if it waits for a migration, once its monitor answers.
    pub(crate) async fn start(node: &Node, spec: GuestSpec) -> Result<Self, Error> {
        node.run(&spec.make_way(), LOOK_DEADLINE).await?;
        let cid = node.next_cid();
        let mut argv = vec!["sh".into(), "-c".into(), spec.script(), "sh".into()];
        argv.extend(spec.argv(cid));
        let log = node.dir().join(format!("guest-{}.log", spec.name));
        let qemu = node
            .target()
            .spawn(
                wire::Command {
                    argv,
                    env: Vec::new(),
                },
                log,
                UP,
            )
            .await?;
        let (sender, said) = watch::channel(Said::default());
        let listener = tokio::spawn(listen(spec.clone(), node.clone(), sender));
        let guest = Self {
            spec,
            node: node.clone(),
            inside: Inside::new(node, cid),
            qemu,
            said,
            killed: AtomicBool::new(false),
            _listener: AbortOnDropHandle::new(listener),
        };
        if guest.spec.incoming {
            guest.await_monitor().await?;
        } else if !guest.qemu.marked(BOOT_DEADLINE).await? {
            return Err(guest.ended());
        }
        Ok(guest)
    }

    /// QEMU makes its sockets early and answers on them once the machine is made.
    async fn await_monitor(&self) -> Result<(), Error> {
        self.node
            .run(&until_socket(&self.spec.monitor()), LOOK_DEADLINE)
            .await?;
        self.qmp("query-status", Value::Object(serde_json::Map::new()))
            .await
            .map(|_| ())
    }

    fn ended(&self) -> Error {
        let log = self.qemu.read_log().unwrap_or_default();
        Error::Ended {
            name: self.spec.name.clone(),
            status: None,
            log,
        }
    }

    /// What it was started as.
    pub fn spec(&self) -> &GuestSpec {
        &self.spec
    }

    /// The node it is on.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Its QEMU: process id, log with the guest's console, end.
    pub fn qemu(&self) -> &Process {
        &self.qemu
    }

    /// The socket the product is to use, in the node.
    pub fn qmp_socket(&self) -> String {
        self.spec.qmp_socket()
    }

    /// Puts QEMU into its pod's control group, where it was not started there.
    pub async fn join_group(&self) -> Result<(), Error> {
        let script = self.spec.join(&self.qemu.pid().to_string());
        Ok(self.node.run(&script, LOOK_DEADLINE).await.map(drop)?)
    }

    /// Removes what a kubelet removes when it has ended a pod.
    pub async fn remove_pod(&self) -> Result<(), Error> {
        let (uid, group) = (&self.spec.pod_uid, self.spec.group());
        // A process that was killed may leave its group a moment later.
        let script = format!(
            "rm -rf {PODS_DIR}/{uid}; until rmdir {group}/qemu {group} 2>/dev/null || [ ! -e {group} ]; do sleep 0.05; done"
        );
        Ok(self.node.run(&script, LOOK_DEADLINE).await.map(drop)?)
    }

    /// Asks QEMU by the harness's own monitor; the product's is left alone.
    pub async fn qmp(&self, command: &str, arguments: Value) -> Result<Value, Error> {
        let stream = self.node.target().unix(&self.spec.monitor()).await?;
        Ok(qmp::call(stream, command, arguments, LOOK_DEADLINE).await?)
    }

    /// QEMU's state: `running`, `inmigrate`, `postmigrate` ...
    pub async fn status(&self) -> Result<String, Error> {
        let status = self.qmp("query-status", serde_json::json!({})).await?;
        Ok(status["status"].as_str().unwrap_or_default().to_owned())
    }

    /// A line of QEMU's human monitor, such as `info pci`.
    pub async fn hmp(&self, line: &str) -> Result<String, Error> {
        let text = self
            .qmp("human-monitor-command", serde_json::json!({"command-line": line}))
            .await?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }

    /// Waits until the guest or its QEMU comes to an end that nobody asked for; for ever if there is none.
    pub async fn fate(&self) -> Fate {
        fate::fate(self.said.clone(), &self.qemu, || {
            self.killed.load(Ordering::Relaxed)
        })
        .await
    }

    /// The last that its console and its QEMU said.
    pub fn last_words(&self) -> String {
        fate::last_words(&self.qemu.read_log().unwrap_or_default())
    }

    /// Kills QEMU and waits for its end.
    pub async fn kill(&self) -> Result<(), Error> {
        self.killed.store(true, Ordering::Relaxed);
        Ok(self.qemu.kill(LOOK_DEADLINE).await?)
    }
}

/// A script that waits for a Unix socket, because the node does not report one.
fn until_socket(path: &str) -> String {
    format!("until [ -S {path} ]; do sleep 0.1; done")
}

/// Hears QEMU's events from its start to its end.
async fn listen(spec: GuestSpec, node: Node, said: watch::Sender<Said>) {
    let path = spec.events();
    if node.run(&until_socket(&path), LOOK_DEADLINE).await.is_ok()
        && let Ok(stream) = node.target().unix(&path).await
    {
        let log = node.dir().join(format!("guest-{}.events", spec.name));
        fate::listen(stream, log, said).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nic_has_two_root_ports_and_an_address_to_come() {
        let spec = GuestSpec::new("vm").nic("52:54:00:AA:BB:01", "10.77.0.50/24");
        let argv = spec.argv(3).join(" ");
        assert!(argv.contains("id=rp0") && argv.contains("id=rp1") && !argv.contains("id=rp2"));
        assert!(argv.contains("lab.nic=52:54:00:aa:bb:01=10.77.0.50/24"));
        assert_eq!(
            spec.qmp_socket(),
            "/var/lib/kubelet/pods/uid-vm/volumes/kubernetes.io~empty-dir/hybridnic/qmp.sock"
        );
    }
}
