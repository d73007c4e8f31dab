//! The plugin's own program, the agent's server, and macvtaps in network namespaces of pods. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test fails so"
)]

use std::{
    fs::File,
    io::{self, Read as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use hybridnic_agent::{
    broker::{self, Broker},
    cni::{
        Inside, Made, Sandbox, Sandboxes,
        server::{Kubelet, Server},
    },
    machine::process::ProcessId,
};
use hybridnic_cni::wire::{Attachment, LIMIT, Pod};
use hybridnic_net::{
    DeviceId, MacAddr,
    dev::DevNodes,
    netlink::{MacvtapSpec, Netlink, Place},
    netns::NetNs,
    sysfs::Sysfs,
    tap_node::{self, Owner},
};
use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, UnixAddr, connect, recv, send, socket,
    },
};
use serde_json::{Value, json};
use tokio::{
    process::{Child, Command},
    task::JoinHandle,
    time::timeout,
};

const MAC: MacAddr = MacAddr::new([0x52, 0x54, 0, 0, 0, 1]);
const SOON: Duration = Duration::from_secs(30);

/// Gets into network namespaces by a thread.
#[derive(Debug)]
struct Here;

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
}

/// A kubelet that has given each pod what it says, but for one.
#[derive(Debug)]
struct Honest;

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
struct Netns(std::process::Child);

impl Netns {
    fn new() -> Self {
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

    fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.0.id()).into()
    }

    /// What is in it, for the length of a call.
    fn look(&self) -> Netlink {
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

    async fn has(&self, ifname: &str) -> bool {
        self.look().link(ifname).await.unwrap().is_some()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A node with a PF, an agent's server, and a pod's device.
struct Node {
    dir: tempfile::TempDir,
    netlink: Netlink,
    lower: u32,
    device: DeviceId,
    sandboxes: Sandboxes,
    server: JoinHandle<()>,
}

const UID: &str = "0b9f3f3c-7a0e-4c89-a3a5-5f1b8d0c2e4f";

impl Node {
    async fn new() -> Self {
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

    fn socket(&self) -> PathBuf {
        self.dir.path().join("cni/cni.sock")
    }

    /// The agent starts, in place of another one.
    fn start(&mut self, patience: Duration) {
        self.server.abort();
        self.sandboxes = Sandboxes::default();
        let mut server = Server::new(self.sandboxes.clone(), Arc::new(Here), Arc::new(Honest));
        server.patience = patience;
        let listener = Server::open(&self.socket()).unwrap();
        self.server = tokio::spawn(async move { panic!("{}", Arc::new(server).serve(listener).await) });
    }

    fn plugin(&self, command: &str, container: &str, netns: Option<&Path>, more: &Value) -> Child {
        self.run(command, container, "vm-1", netns, more)
    }

    fn run(&self, command: &str, container: &str, pod: &str, netns: Option<&Path>, more: &Value) -> Child {
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

    /// What the plugin says, once the pod's NIC has done its part where there is one to do.
    async fn does(&self, command: &str, container: &str, netns: Option<&Path>) -> Result<Value, Value> {
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
    async fn gone(&self) {
        let sysfs = Sysfs::default();
        while !tap_node::numbers(&sysfs, self.device.ifindex())
            .unwrap()
            .is_empty()
        {
            tokio::task::yield_now().await;
        }
    }

    async fn until(&self, holds: impl Fn(Option<Sandbox>) -> bool) {
        let mut changes = self.sandboxes.subscribe();
        while !holds(self.sandboxes.of(UID, "pod1")) {
            changes.changed().await.unwrap();
        }
    }
}

async fn output(plugin: Child) -> Output {
    timeout(SOON, plugin.wait_with_output()).await.unwrap().unwrap()
}

/// What it has printed, by whether it says that all is well.
async fn result(plugin: Child) -> Result<Value, Value> {
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
fn on_a_node<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
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

#[test]
fn a_pod_gets_its_interface_and_gives_it_back() {
    on_a_node(|| async {
        let (node, netns) = (Node::new().await, Netns::new());
        let path = netns.path();
        assert_eq!(node.does("STATUS", "", None).await, Ok(Value::Null));
        let made = node.does("ADD", "c1", Some(&path)).await.unwrap();
        let interface = json!({"name": "pod1", "mac": "52:54:00:00:00:01", "mtu": 1400, "sandbox": path});
        let expected = json!({"cniVersion": "1.1.0", "interfaces": [interface], "ips": [], "dns": {}});
        assert_eq!(made, expected);
        let link = netns.look().link("pod1").await.unwrap().unwrap();
        assert_eq!((link.index, link.up), (node.device.ifindex(), false));
        let device = tap_node::path(&DevNodes::default(), link.index);
        assert_eq!(std::fs::metadata(device).unwrap().uid(), 107);
        assert!(
            node.sandboxes
                .of(UID, "pod1")
                .is_some_and(|sandbox| !sandbox.waits)
        );

        let check = async |mac: &str| {
            let made = json!({"prevResult": {"interfaces": [{"name": "pod1", "mac": mac}]}});
            result(node.plugin("CHECK", "c1", Some(&path), &made)).await
        };
        assert_eq!(check("52:54:00:00:00:01").await, Ok(Value::Null));
        let other = check("52:54:00:00:00:02").await.unwrap_err();
        assert_eq!(other["code"], 100, "{other}");

        for _ in 0..2 {
            assert_eq!(node.does("DEL", "c1", Some(&path)).await, Ok(Value::Null));
            assert!(!netns.has("pod1").await);
            assert_eq!(
                node.does("DEL", "c1", None).await,
                Ok(Value::Null),
                "without its namespace"
            );
        }
        assert!(node.sandboxes.of(UID, "pod1").is_none());
        let gone = check("52:54:00:00:00:01").await.unwrap_err();
        assert_eq!(gone["code"], 100, "{gone}");
        node.gone().await;
    });
}

#[test]
fn the_latest_sandbox_of_a_pod_has_the_interface() {
    on_a_node(|| async {
        let node = Node::new().await;
        let (first, second) = (Netns::new(), Netns::new());
        node.does("ADD", "c1", Some(&first.path())).await.unwrap();
        // The kubelet has begun once more; the first sandbox is still there.
        node.does("ADD", "c2", Some(&second.path())).await.unwrap();
        assert!(!first.has("pod1").await && second.has("pod1").await);
        node.does("DEL", "c1", Some(&first.path())).await.unwrap();
        assert!(second.has("pod1").await);
        // The runtime asks again for the same.
        node.does("ADD", "c2", Some(&second.path())).await.unwrap();
        assert!(second.has("pod1").await);
        // The pod's network goes without a word, and nothing of ours holds it once the NIC has.
        drop(second);
        node.sandboxes.forget(UID, "pod1");
        node.gone().await;
    });
}

#[test]
fn each_caller_gets_an_answer_or_has_gone() {
    on_a_node(|| async {
        let (mut node, netns) = (Node::new().await, Netns::new());
        let path = netns.path();
        let waits = |sandbox: Option<Sandbox>| sandbox.is_some_and(|sandbox| sandbox.waits);

        // The plugin is killed. Then nothing waits, and nothing keeps the pod's network.
        let mut killed = node.plugin("ADD", "c1", Some(&path), &json!({}));
        node.until(waits).await;
        killed.kill().await.unwrap();
        node.until(|sandbox| sandbox.is_none()).await;
        let made = Made { mac: MAC, mtu: 1500 };
        assert!(!node.sandboxes.answer(UID, "pod1", "c1", made), "too late");

        // It is taken away while it waits.
        let waiting = node.plugin("ADD", "c2", Some(&path), &json!({}));
        node.until(waits).await;
        assert!(
            !node.sandboxes.answer(UID, "pod1", "c1", made),
            "of another sandbox"
        );
        result(node.plugin("DEL", "c2", None, &json!({}))).await.unwrap();
        let error = result(waiting).await.unwrap_err();
        assert_eq!(error["msg"], "the runtime has taken the sandbox away");

        // Its NIC says no.
        let waiting = node.plugin("ADD", "c3", Some(&path), &json!({}));
        node.until(waits).await;
        assert!(
            node.sandboxes
                .refuse(UID, "pod1", "c3", "the PF has no interface")
        );
        let error = result(waiting).await.unwrap_err();
        assert_eq!(
            (&error["code"], &error["msg"]),
            (&json!(11), &json!("the PF has no interface"))
        );

        // The agent ends, and another one starts.
        let waiting = node.plugin("ADD", "c4", Some(&path), &json!({}));
        node.until(waits).await;
        node.start(Duration::from_millis(300));
        let error = result(waiting).await.unwrap_err();
        assert_eq!(error["msg"], "hybridnic's agent has not answered: it has ended");

        // It takes too long.
        let waiting = node.plugin("ADD", "c5", Some(&path), &json!({}));
        node.until(waits).await;
        node.sandboxes
            .hold(UID, "pod1", "the source is not on its standby yet");
        let error = result(waiting).await.unwrap_err();
        assert_eq!(error["msg"], "the source is not on its standby yet");
        drop(netns);
        node.gone().await;
    });
}

#[test]
fn an_agent_that_starts_again_goes_on_with_what_there_is() {
    on_a_node(|| async {
        let (mut node, netns) = (Node::new().await, Netns::new());
        let path = netns.path();
        node.does("ADD", "c1", Some(&path)).await.unwrap();
        node.start(SOON);
        assert!(netns.has("pod1").await);
        let made = json!({"prevResult": {"interfaces": [{"name": "pod1", "mac": "52:54:00:00:00:01"}]}});
        let check = node.plugin("CHECK", "c1", Some(&path), &made);
        assert_eq!(result(check).await, Ok(Value::Null));

        let adopt = async || {
            let pod = Pod {
                namespace: "tenant".into(),
                name: "vm-1".into(),
                uid: UID.into(),
            };
            let attachment = Attachment {
                container_id: "c1".into(),
                ifname: "pod1".into(),
            };
            let namespace = NetNs::open(&path).unwrap();
            let inside = Inside::of(&Here, broker::Pod::NetNs(&namespace)).await.unwrap();
            node.sandboxes.adopt(&pod, attachment, node.device, inside)
        };
        assert!(adopt().await);
        assert!(
            node.sandboxes
                .of(UID, "pod1")
                .is_some_and(|sandbox| !sandbox.waits)
        );
        assert!(!adopt().await);
        node.does("DEL", "c1", Some(&path)).await.unwrap();
        assert!(!netns.has("pod1").await);

        // One that nobody has told the new agent of.
        node.does("ADD", "c2", Some(&path)).await.unwrap();
        node.start(SOON);
        node.does("DEL", "c2", Some(&path)).await.unwrap();
        assert!(!netns.has("pod1").await);
        node.gone().await;
    });
}

#[test]
fn who_may_not_or_makes_no_sense_is_refused() {
    on_a_node(|| async {
        let (node, netns) = (Node::new().await, Netns::new());
        let path = netns.path();
        let thief = node.run("ADD", "c1", "thief", Some(&path), &json!({}));
        let error = result(thief).await.unwrap_err();
        let expected = format!("{} of fast is another pod's", node.device);
        assert_eq!((&error["code"], &error["msg"]), (&json!(11), &json!(expected)));

        // The node's own network, and what is no network.
        for (bad, named) in [
            ("/proc/thread-self/ns/net", "hostNetwork"),
            ("/proc/self/ns/mnt", "no network namespace"),
            ("/dev/null", "no network namespace"),
        ] {
            let error = node.does("ADD", "c1", Some(Path::new(bad))).await.unwrap_err();
            assert!(error["msg"].as_str().unwrap().contains(named), "{error}");
            assert_eq!(error["code"], 7, "{error}");
        }
        let error = result(node.plugin(
            "ADD",
            "c1",
            Some(&path),
            &json!({"deviceID": "eth0", "pciBusID": "eth0"}),
        ));
        assert_eq!(error.await.unwrap_err()["code"], 7);
        assert!(node.sandboxes.of(UID, "pod1").is_none());

        // Only root gets to the socket.
        let meta = std::fs::metadata(node.socket()).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o777), (0, 0o600));
        let directory = std::fs::metadata(node.socket().parent().unwrap()).unwrap();
        assert_eq!(directory.mode() & 0o777, 0o700);

        // No question, one that is too long, and one that nobody knows.
        for (said, answer) in [
            (vec![b'x'; LIMIT + 1], None),
            (b"{}".to_vec(), Some("does not understand")),
        ] {
            let socket = socket(
                AddressFamily::Unix,
                SockType::SeqPacket,
                SockFlag::SOCK_CLOEXEC,
                None,
            )
            .unwrap();
            connect(socket.as_raw_fd(), &UnixAddr::new(&node.socket()).unwrap()).unwrap();
            send(socket.as_raw_fd(), &said, MsgFlags::empty()).unwrap();
            let heard = tokio::task::spawn_blocking(move || {
                let mut text = vec![0; LIMIT];
                let length = recv(socket.as_fd().as_raw_fd(), &mut text, MsgFlags::empty()).unwrap_or(0);
                text.truncate(length);
                String::from_utf8(text).unwrap()
            });
            let heard = timeout(SOON, heard).await.unwrap().unwrap();
            match answer {
                None => assert_eq!(heard, ""),
                Some(answer) => assert!(heard.contains(answer), "{heard}"),
            }
        }
    });
}
