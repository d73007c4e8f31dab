//! A VM of KubeVirt stands still and runs again: what the agent does between QEMU's event and the standby. The session, the broker, and the
//! macvtap in the network namespace of a pod are real; QEMU is scripted. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test fails so"
)]

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::{net::UnixListener, process::CommandExt as _},
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, future::BoxFuture};
use hybridnic_agent::{
    broker::{self, Broker, Process, Started},
    calls::Caller,
    cni::Sandboxes,
    devices::{Deadlines, Devices, Places},
    handouts::Handouts,
    host::{Discovered, Host, Settings},
    journal::Journal,
    lanes::Lanes,
    links::{LinkAt, Links, PodLink},
    machine::{
        Vm,
        home::Home,
        process::ProcessId,
        qemu::{session, tls::Keys},
    },
    metrics::metrics,
    nic::macs::Macs,
    node::ledger::Ledger,
    sockets::Sockets,
    troubles::Troubles,
};
use hybridnic_api::{
    names::{LAUNCHER_SOCKET, LAUNCHER_VOLUME},
    v1alpha1::{Goal, Runtime},
};
use hybridnic_net::{
    DeviceId,
    dev::DevNodes,
    multicast::Multicast,
    netlink::{LinkEvent, LinkEvents, Netlink},
    netns::NetNs,
    sysfs::Sysfs,
};
use hybridnic_process::traces::Traces;
use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket as new_socket},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

#[path = "common/group.rs"]
mod group;

use group::Group;

const SOON: Duration = Duration::from_secs(20);
const ROUNDS: u32 = 5;
const LINK: &str = "podfast";
const NIC: &str = "nic-uid";

/// The launcher's process, in a network and a control group of its own. For the kernel it is what listens on the monitor's socket; the
/// test decides what is sent there.
struct Launcher {
    pods: tempfile::TempDir,
    uid: String,
    process: Child,
    monitor: UnixListener,
    // After the process.
    _group: Group,
}

impl Launcher {
    /// With a macvtap of this index, which is down.
    fn new(index: u32) -> Self {
        let uid = format!("0b2e7c1d-90aa-4f6e-9a05-{:012}", std::process::id());
        let (pods, group) = (tempfile::tempdir().unwrap(), Group::of(&uid));
        let volumes = pods.path().join(&uid).join("volumes/kubernetes.io~empty-dir");
        fs::create_dir_all(volumes.join(LAUNCHER_VOLUME)).unwrap();
        let monitor = new_socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        // The path itself may be too long for an address.
        let volume = File::open(volumes.join(LAUNCHER_VOLUME)).unwrap();
        let path = format!("/proc/self/fd/{}/{LAUNCHER_SOCKET}", volume.as_raw_fd());
        bind(monitor.as_raw_fd(), &UnixAddr::new(path.as_str()).unwrap()).unwrap();

        let script = format!(
            "ip link add pf type veth peer name wire && ip link set pf up && \
             ip link add link pf name {LINK} index {index} type macvtap mode bridge && echo up && exec cat"
        );
        let theirs = monitor.try_clone().unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["--net", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let prepare = move || -> io::Result<()> {
            listen(&theirs, Backlog::new(8)?)?;
            Ok(())
        };
        // SAFETY: these are system calls and nothing else.
        unsafe { command.pre_exec(prepare) };
        let mut process = command.spawn().unwrap();
        group.join(&process);
        let mut up = [0; 3];
        io::Read::read_exact(process.stdout.as_mut().unwrap(), &mut up).expect("it has no macvtap");
        let monitor = UnixListener::from(monitor);
        monitor.set_nonblocking(true).unwrap();
        Self {
            pods,
            uid,
            process,
            monitor,
            _group: group,
        }
    }

    fn netns(&self) -> NetNs {
        NetNs::open(format!("/proc/{}/ns/net", self.process.id()).as_ref()).unwrap()
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The agent's own broker, and how often it was asked.
#[derive(Debug)]
struct Counted {
    broker: Process,
    asked: AtomicUsize,
}

impl Counted {
    fn ask(&self) -> &Process {
        self.asked.fetch_add(1, Ordering::SeqCst);
        &self.broker
    }
}

impl Broker for Counted {
    fn socket<'a>(&'a self, of: &'a ProcessId, ipv6: bool) -> BoxFuture<'a, io::Result<OwnedFd>> {
        self.ask().socket(of, ipv6)
    }

    fn netlink<'a>(&'a self, of: broker::Pod<'a>) -> BoxFuture<'a, io::Result<OwnedFd>> {
        self.ask().netlink(of)
    }

    fn groups<'a>(&'a self, of: broker::Pod<'a>) -> BoxFuture<'a, io::Result<OwnedFd>> {
        self.ask().groups(of)
    }

    fn memory(&self) -> BoxFuture<'_, io::Result<OwnedFd>> {
        self.ask().memory()
    }

    fn root<'a>(&'a self, of: &'a ProcessId) -> BoxFuture<'a, io::Result<OwnedFd>> {
        self.ask().root(of)
    }
}

/// The agent's node: links and devices are this machine's. It has no client of an API server, so what is done here needs none.
fn host(dir: &Path, broker: Arc<Counted>) -> Host {
    let (_, metrics) = metrics();
    let troubles = Arc::new(Troubles::new(metrics.clone()));
    let hardware = watch::Sender::new(0);
    let (netlink, sandboxes) = (Netlink::open().unwrap(), Sandboxes::default());
    let (sysfs, dev) = (Sysfs::default(), DevNodes::default());
    Host {
        sysfs: sysfs.clone(),
        dev: dev.clone(),
        handouts: Handouts::new(dev.clone(), Path::new("/proc"), hardware.clone()),
        macvtaps: Arc::new(Links {
            host: netlink.clone(),
            sandboxes: sandboxes.clone(),
            sysfs: sysfs.clone(),
        }),
        netlink,
        multicast: Multicast::open().unwrap(),
        journal: Journal::open(dir.join("journal")).unwrap(),
        keys: Keys::new(dir.join("tls")),
        sandboxes,
        broker,
        pools: Ledger::default(),
        offers: Arc::default(),
        metrics,
        macs: Macs::default(),
        vlan_devices: tokio::sync::Mutex::default(),
        devices: Devices {
            sysfs,
            dev,
            lanes: Lanes::new(Arc::clone(&troubles), hardware.clone()),
            caller: Caller::Here,
            deadlines: Deadlines::default(),
            places: Places::default(),
        },
        troubles,
        traces: Traces::default(),
        options: Settings {
            node_name: "n1".into(),
            unplug_deadline: SOON,
            plug_deadline: SOON,
            home_after: SOON,
            migration_bandwidth: 0,
            migration_downtime_ms: 100,
        },
        hardware,
        proc: "/proc".into(),
        discovered: Discovered::default(),
    }
}

/// The pod's VM with one NIC, which is on its standby.
fn vm(launcher: &Launcher, device: DeviceId) -> Vm {
    let vm = Vm::new(Runtime::Kubevirt, "ns", "launcher", &launcher.uid);
    vm.update_nic(NIC, |nic| {
        nic.nic = "fast".into();
        nic.macvtap = Some(LinkAt {
            name: LINK.into(),
            pod: Some(PodLink {
                pod_uid: launcher.uid.clone(),
                container: "c1".into(),
                device,
            }),
        });
        nic.standby_device = "ua-fast".into();
        nic.goal = Goal::Standby;
        nic.heard = true;
    });
    vm
}

/// Each change of the pod's macvtap: when it was reported, and whether it is up.
fn changes(netns: &NetNs, index: u32) -> mpsc::UnboundedReceiver<(Instant, bool)> {
    let (tell, told) = mpsc::unbounded_channel();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let netns = netns.clone();
    thread::spawn(move || {
        setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        drop(netns);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut events = LinkEvents::open().unwrap();
            ready.send(()).unwrap();
            while let Some(event) = events.next().await {
                let over = match event {
                    LinkEvent::Changed(link) if link.index == index => {
                        tell.send((Instant::now(), link.up)).is_err()
                    }
                    LinkEvent::Removed { index: gone, .. } => gone == index,
                    _ => false,
                };
                if over {
                    return;
                }
            }
        });
    });
    is_ready.recv().expect("the links are not watched");
    told
}

/// When the macvtap is reported as up, or as down.
async fn until_set(up: bool, changes: &mut mpsc::UnboundedReceiver<(Instant, bool)>) -> Instant {
    let set = async {
        loop {
            match changes.recv().await.expect("it is gone") {
                (at, is_up) if is_up == up => return at,
                _ => {}
            }
        }
    };
    timeout(SOON, set).await.expect("the macvtap stays as it was")
}

/// What the kernel alone takes to set the macvtap down. It reports that only once no processor can be handling a frame of it any more
/// (`synchronize_net` in `dev_deactivate_many`, net/sched/sch_generic.c).
async fn by_itself(
    inside: &Netlink,
    index: u32,
    changes: &mut mpsc::UnboundedReceiver<(Instant, bool)>,
) -> Duration {
    inside.set_up(index, true).await.unwrap();
    until_set(true, changes).await;
    let now = Instant::now();
    inside.set_up(index, false).await.unwrap();
    until_set(false, changes).await.saturating_duration_since(now)
}

/// A command that QEMU was given, and whether the macvtap was up at that moment.
type Asked = (String, bool);

/// QEMU's side of the monitor.
struct Monitor {
    events: mpsc::UnboundedSender<(&'static str, oneshot::Sender<Instant>)>,
    asked: mpsc::UnboundedReceiver<Asked>,
    _task: AbortOnDropHandle<()>,
}

impl Monitor {
    /// Greets the agent. From then on it answers what it is asked, and says what it is told to.
    async fn accept(listener: &UnixListener, inside: Netlink, index: u32) -> Self {
        let listener = tokio::net::UnixListener::from_std(listener.try_clone().unwrap()).unwrap();
        let accepted = timeout(SOON, listener.accept()).await;
        let (stream, _) = accepted.expect("nobody connects").unwrap();
        let (events, told) = mpsc::unbounded_channel();
        let (tell, asked) = mpsc::unbounded_channel();
        let task = tokio::spawn(speak(stream, told, async move |command: &str| {
            let link = inside.link_by_index(index).await.unwrap();
            // The test may be over.
            let _ = tell.send((command.to_owned(), link.is_some_and(|link| link.up)));
        }));
        Self {
            events,
            asked,
            _task: AbortOnDropHandle::new(task),
        }
    }

    async fn next(&mut self) -> Asked {
        let next = timeout(SOON, self.asked.recv()).await;
        next.expect("nothing is asked").unwrap()
    }

    async fn until(&mut self, command: &str) {
        while self.next().await.0 != command {}
    }

    /// Says that the VM stands still or runs again, and gives the time from there to the macvtap that is `up` or not. The first command after
    /// it, which is this one, comes when that is done.
    async fn event(
        &mut self,
        event: &'static str,
        up: bool,
        changes: &mut mpsc::UnboundedReceiver<(Instant, bool)>,
        first: &str,
    ) -> Duration {
        let (say, said) = oneshot::channel();
        self.events.send((event, say)).unwrap();
        let said = said.await.unwrap();
        let set = until_set(up, changes).await;
        assert_eq!(self.next().await, (first.to_owned(), up), "after {event}");
        set.saturating_duration_since(said)
    }
}

async fn speak(
    stream: UnixStream,
    mut events: mpsc::UnboundedReceiver<(&'static str, oneshot::Sender<Instant>)>,
    note: impl AsyncFn(&str),
) {
    let mut stream = BufReader::new(stream);
    let version = json!({"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": ""});
    say(
        &mut stream,
        &json!({"QMP": {"version": version, "capabilities": []}}),
    )
    .await;
    let (mut line, mut running) = (Vec::new(), true);
    loop {
        tokio::select! {
            read = stream.read_until(b'\n', &mut line) => {
                if read.unwrap() == 0 {
                    return;
                }
                let asked: Value = serde_json::from_slice(&line).unwrap();
                line.clear();
                let command = asked["execute"].as_str().unwrap();
                // What the guest receives is looked at beside all else.
                if command != "query-rx-filter" {
                    note(command).await;
                }
                let status = if running { "running" } else { "paused" };
                let answer = match command {
                    "qom-get" => json!("auto"),
                    "query-status" => json!({"status": status, "running": running}),
                    "query-rx-filter" => json!([]),
                    _ => json!({}),
                };
                say(&mut stream, &json!({"return": answer, "id": asked["id"]})).await;
            }
            Some((event, said)) = events.recv() => {
                running = event == "RESUME";
                let now = Instant::now();
                say(&mut stream, &json!({"event": event, "data": {}, "timestamp": {"seconds": 1, "microseconds": 2}})).await;
                // The test may be over.
                let _ = said.send(now);
            }
        }
    }
}

async fn say(stream: &mut BufReader<UnixStream>, value: &Value) {
    stream.write_all(format!("{value}\r\n").as_bytes()).await.unwrap();
}

/// What other processes have done for this one.
#[derive(Debug, PartialEq, Eq)]
struct Others {
    /// Questions to the broker.
    broker: usize,
    /// This process's children.
    children: BTreeSet<String>,
    /// Page faults of children that have ended: each has some (`proc_pid_stat(5)`, `cminflt`).
    faults: String,
}

impl Others {
    fn now(broker: &Counted) -> Self {
        let me = std::process::id().to_string();
        // What is behind the name, which may have blanks in it: the state, the parent ...
        let stat = |pid: &str| {
            let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let fields = text.rsplit_once(')')?.1.split_whitespace();
            Some(fields.map(str::to_owned).collect::<Vec<_>>())
        };
        let pids = fs::read_dir("/proc").unwrap();
        let pids = pids.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        Self {
            broker: broker.asked.load(Ordering::SeqCst),
            children: pids
                .filter(|pid| stat(pid).is_some_and(|fields| fields[1] == me))
                .collect(),
            faults: stat(&me).unwrap()[8].clone(),
        }
    }
}

/// The longest of some times, and the one in their middle.
fn figures(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    (times[times.len() - 1], times[times.len() / 2])
}

#[tokio::test]
async fn between_qemus_event_and_the_standby_nothing_else_is_asked() {
    let device: DeviceId = "0003:fe:1d.5-77".parse().unwrap();
    let index = device.ifindex();
    let launcher = Launcher::new(index);
    let netns = launcher.netns();
    let program = Path::new(env!("CARGO_BIN_EXE_hybridnic-agent"));
    let broker = Arc::new(Counted {
        broker: Started::new(program).unwrap().run().unwrap(),
        asked: AtomicUsize::new(0),
    });
    let inside = broker.broker.netlink(broker::Pod::NetNs(&netns)).await.unwrap();
    let inside = Netlink::from_socket(inside).unwrap();
    let mut changes = changes(&netns, index);
    let mut kernel = Vec::new();
    for _ in 0..ROUNDS {
        kernel.push(by_itself(&inside, index, &mut changes).await);
    }

    let dir = tempfile::tempdir().unwrap();
    let host = Arc::new(host(dir.path(), Arc::clone(&broker)));
    let vm = Arc::new(vm(&launcher, device));
    let sockets = Sockets::new(launcher.pods.path(), Arc::clone(&host.troubles));
    let home = Home::pod(Runtime::Kubevirt, &launcher.uid);
    let followed = sockets.follow(home, "ns", "launcher", &launcher.uid);
    let agent = session::run(Arc::clone(&vm), Arc::clone(&host), followed);
    let _agent = AbortOnDropHandle::new(tokio::spawn(agent));
    let mut monitor = Monitor::accept(&launcher.monitor, inside, index).await;
    // It has found the pod's network, and seen the VM.
    monitor.until("query-status").await;
    assert!(host.sandboxes.of(&launcher.uid, LINK).is_some());

    let before = Others::now(&broker);
    assert!(before.broker > 0 && before.children.len() == 2, "{before:?}");
    let (mut down, mut up) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        if round > 0 {
            down.push(monitor.event("STOP", false, &mut changes, "query-migrate").await);
            monitor.until("query-status").await;
        }
        up.push(monitor.event("RESUME", true, &mut changes, "announce-self").await);
        monitor.until("query-status").await;
    }
    assert_eq!(Others::now(&broker), before);
    for (what, times) in [
        ("STOP to down", down),
        ("a macvtap set down by the kernel alone", kernel),
        ("RESUME to up", up),
    ] {
        let (longest, middle) = figures(times);
        println!("{what}: {middle:?}, {longest:?} at most");
        assert!(longest < Duration::from_secs(1), "{what}: {longest:?}");
    }
}
