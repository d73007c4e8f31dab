//! A node with a PF and an agent's server, and its pods' network namespaces.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use hybridnic_agent::{
    broker::{self, Broker},
    cni::{
        Made, Sandbox, Sandboxes,
        server::{Kubelet, Server},
    },
    machine::process::ProcessId,
};
use hybridnic_cni::wire::Pod;
use hybridnic_net::{
    DeviceId, MacAddr,
    dev::DevNodes,
    netlink::{MacvtapMode, MacvtapSpec, Netlink, Place},
    netns::NetNs,
    sysfs::Sysfs,
    tap_node::{self, Owner},
};
use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket},
};
use serde_json::{Value, json};
use tokio::{
    process::{Child, Command},
    task::JoinHandle,
    time::timeout,
};

pub const MAC: MacAddr = MacAddr::new([0x52, 0x54, 0, 0, 0, 1]);
pub const SOON: Duration = Duration::from_secs(30);

/// Gets into network namespaces by a thread.
#[derive(Debug)]
pub struct Here;

fn within<T: Send + 'static>(pod: broker::Pod<'_>, make: fn() -> io::Result<T>) -> io::Result<T> {
    let broker::Pod::NetNs(netns) = pod else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let netns = netns.clone();
    let thread = std::thread::spawn(move || {
        setns(&netns, CloneFlags::CLONE_NEWNET)?;
        make()
    });
    thread.join().unwrap()
}

impl Broker for Here {
    fn socket<'a>(&'a self, _: &'a ProcessId, _: bool) -> BoxFuture<'a, io::Result<OwnedFd>> {
        Box::pin(std::future::ready(Err(io::ErrorKind::Unsupported.into())))
    }

    fn netlink<'a>(&'a self, of: broker::Pod<'a>) -> BoxFuture<'a, io::Result<OwnedFd>> {
        let route = || {
            let flags = SockFlag::SOCK_CLOEXEC;
            Ok(socket(
                AddressFamily::Netlink,
                SockType::Raw,
                flags,
                SockProtocol::NetlinkRoute,
            )?)
        };
        Box::pin(std::future::ready(within(of, route)))
    }

    fn groups<'a>(&'a self, of: broker::Pod<'a>) -> BoxFuture<'a, io::Result<OwnedFd>> {
        let listing = || Ok(File::open("/proc/thread-self/net/dev_mcast")?.into());
        Box::pin(std::future::ready(within(of, listing)))
    }

    fn memory(&self) -> BoxFuture<'_, io::Result<OwnedFd>> {
        Box::pin(std::future::ready(Err(io::ErrorKind::Unsupported.into())))
    }

    fn root<'a>(&'a self, _: &'a ProcessId) -> BoxFuture<'a, io::Result<OwnedFd>> {
        Box::pin(std::future::ready(Err(io::ErrorKind::Unsupported.into())))
    }
}

/// A kubelet that has given each pod what it says, except for one.
#[derive(Debug)]
pub struct Honest;

impl Kubelet for Honest {
    fn has_given<'a>(
        &'a self,
        pod: &'a Pod,
        network: &'a str,
        device_id: &'a str,
    ) -> BoxFuture<'a, Result<(), String>> {
        let known = match &*pod.name {
            "thief" => Err(format!("{device_id} of {network} is another pod's")),
            _ => Ok(()),
        };
        Box::pin(std::future::ready(known))
    }
}

/// A network namespace that lasts as long as its process.
pub struct Netns(std::process::Child);

impl Netns {
    pub fn new() -> Self {
        let mut child = std::process::Command::new("unshare")
            .args(["--net", "sh", "-c", "echo up; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
        Self(child)
    }

    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.0.id()).into()
    }

    /// What is in it, for the length of a call.
    pub fn links_inside(&self) -> Netlink {
        let netns = NetNs::open(&self.path()).unwrap();
        let route = || {
            let flags = SockFlag::SOCK_CLOEXEC;
            Ok(socket(
                AddressFamily::Netlink,
                SockType::Raw,
                flags,
                SockProtocol::NetlinkRoute,
            )?)
        };
        Netlink::from_socket(within(broker::Pod::NetNs(&netns), route).unwrap()).unwrap()
    }

    pub async fn has(&self, ifname: &str) -> bool {
        self.links_inside().link(ifname).await.unwrap().is_some()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A node with a PF, an agent's server, and a pod's device.
pub struct Node {
    dir: tempfile::TempDir,
    netlink: Netlink,
    lower: u32,
    pub device: DeviceId,
    pub sandboxes: Sandboxes,
    server: JoinHandle<()>,
}

pub const UID: &str = "0b9f3f3c-7a0e-4c89-a3a5-5f1b8d0c2e4f";

impl Node {
    pub async fn new() -> Self {
        // Of a PF that no machine has, and of a slot that no other test has: `/dev` is the machine's.
        static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
        let slot = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let bus = std::process::id() & 0xff;
        let pf = format!("0003:{bus:02x}:1f.7").parse().unwrap();
        add_veth();
        let netlink = Netlink::open().unwrap();
        let lower = netlink.link("v0").await.unwrap().unwrap().index;
        let mut node = Self {
            dir: tempfile::tempdir().unwrap(),
            netlink,
            lower,
            device: DeviceId::new(pf, slot).unwrap(),
            sandboxes: Sandboxes::default(),
            server: tokio::spawn(async {}),
        };
        node.start(SOON);
        node
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("cni/cni.sock")
    }

    /// The agent starts, in place of another one.
    pub fn start(&mut self, patience: Duration) {
        self.server.abort();
        self.sandboxes = Sandboxes::default();
        let mut server = Server::new(self.sandboxes.clone(), Arc::new(Here), Arc::new(Honest));
        server.patience = patience;
        let listener = Server::open(&self.socket()).unwrap();
        self.server = tokio::spawn(async move { panic!("{}", Arc::new(server).serve(listener).await) });
    }

    pub fn plugin(&self, command: &str, container: &str, netns: Option<&Path>, more: &Value) -> Child {
        self.run(command, container, "vm-1", netns, more)
    }

    pub fn run(
        &self,
        command: &str,
        container: &str,
        pod: &str,
        netns: Option<&Path>,
        more: &Value,
    ) -> Child {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "fast", "type": "hybridnic", "network": "fast",
            "deviceID": self.device.to_string(), "pciBusID": self.device.to_string(),
        });
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        let input = self.dir.path().join(format!("{command}-{container}.json"));
        std::fs::write(&input, config.to_string()).unwrap();
        let args =
            format!("IgnoreUnknown=true;K8S_POD_NAMESPACE=tenant;K8S_POD_NAME={pod};K8S_POD_UID={UID}");
        Command::new(env!("CARGO_BIN_EXE_hybridnic-cni"))
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", netns.unwrap_or_else(|| Path::new("")))
            .env("CNI_IFNAME", "pod1")
            .env("CNI_ARGS", args)
            .env("HYBRIDNIC_CNI_SOCKET", self.socket())
            .stdin(File::open(input).unwrap())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    /// What the plugin says, once the pod's NIC has done its part, if it has one.
    pub async fn does(&self, command: &str, container: &str, netns: Option<&Path>) -> Result<Value, Value> {
        let plugin = self.plugin(command, container, netns, &json!({}));
        let said = result(plugin);
        tokio::select! {
            said = said => said,
            never = self.nic() => never,
        }
    }

    /// A NIC that makes its interface as soon as somebody waits for it.
    async fn nic(&self) -> ! {
        let mut changes = self.sandboxes.subscribe();
        loop {
            if let Some(sandbox) = self.sandboxes.of(UID, "pod1").filter(|sandbox| sandbox.waits) {
                let made = self.make(&sandbox).await;
                assert!(self.sandboxes.answer(UID, "pod1", &sandbox.container, made));
                assert!(
                    !self.sandboxes.answer(UID, "pod1", &sandbox.container, made),
                    "once"
                );
            }
            changes.changed().await.unwrap();
        }
    }

    async fn make(&self, sandbox: &Sandbox) -> Made {
        assert_eq!(sandbox.device, self.device);
        let (sysfs, dev, index) = (Sysfs::default(), DevNodes::default(), self.device.ifindex());
        tap_node::make_room(&sysfs, &dev, index).unwrap();
        let place = Place {
            netns: &sandbox.netns,
            inside: &sandbox.netlink,
            index,
            queues: None,
        };
        let spec = MacvtapSpec {
            name: "pod1".into(),
            lower: self.lower,
            mac: MAC,
            mtu: Some(1400),
            mode: MacvtapMode::Bridge,
            alias: None,
        };
        let link = self.netlink.create_macvtap_in(&place, &spec).await.unwrap();
        assert_eq!(sandbox.multicast.received(index).await.unwrap().added, [].into());
        tap_node::give(&sysfs, &dev, index, Owner { uid: 107, gid: 107 }).unwrap();
        Made {
            mac: MAC,
            mtu: link.mtu,
        }
    }

    /// Until the node has no such macvtap in any namespace.
    pub async fn gone(&self) {
        let sysfs = Sysfs::default();
        while !tap_node::numbers(&sysfs, self.device.ifindex())
            .unwrap()
            .is_empty()
        {
            tokio::task::yield_now().await;
        }
    }

    pub async fn until(&self, holds: impl Fn(Option<Sandbox>) -> bool) {
        let mut changes = self.sandboxes.subscribe();
        while !holds(self.sandboxes.of(UID, "pod1")) {
            changes.changed().await.unwrap();
        }
    }
}

async fn output(plugin: Child) -> Output {
    timeout(SOON, plugin.wait_with_output()).await.unwrap().unwrap()
}

/// What it has printed: a success or an error.
pub async fn result(plugin: Child) -> Result<Value, Value> {
    let Output { status, stdout, .. } = output(plugin).await;
    let said = if stdout.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&stdout).unwrap()
    };
    if status.success() { Ok(said) } else { Err(said) }
}

fn add_veth() {
    let made = std::process::Command::new("ip")
        .args(["link", "add", "v0", "type", "veth", "peer", "v1"])
        .status();
    assert!(made.unwrap().success());
}

/// Runs a test on a thread of its own, in a network namespace of its own.
pub fn on_a_node<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (are you root?)");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async { timeout(2 * SOON, test()).await.expect("the test in time") });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}
