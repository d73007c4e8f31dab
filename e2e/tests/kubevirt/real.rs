//! KubeVirt's node half: virt-handler and virt-launcher of both nodes as processes, with libvirt, QEMU and our sidecar; thin Multus with our CNI
//! plugin; and our operator, which gives the NICs their addresses. The guest is its firmware: what is looked at is what QEMU is given, on the source
//! and on the target.

use std::process::Command;

use super::*;
use cni::Cni;
use hybridnic_e2e::kubevirt::{Handler, Launcher, root};
use hybridnic_net::MacAddr;
use network::Network;
use operator::Play;

/// For a VM's start or move, software emulated on a machine that may be busy.
const LONG: Duration = Duration::from_mins(3);
/// For a migration: it takes 4 s, or KubeVirt itself has lost its way.
const MOVE: Duration = Duration::from_mins(1);
/// Where KubeVirt looks for what came of a pod's networks.
const STATUS: &str = "k8s.v1.cni.cncf.io/network-status";
const NICS: [&str; 2] = ["fast", "other"];

/// A pod of a VM that runs.
struct Running {
    node: usize,
    pod: Pod,
    launcher: Launcher,
    /// A process in its network namespace.
    pid: u32,
}

struct Nodes {
    network: Network,
    cnis: [Cni; 2],
    handlers: [Handler; 2],
    /// Of the VM's NICs.
    macs: [MacAddr; 2],
}

/// Twice, because a virt-handler of KubeVirt 1.8 at times cleans up too early, or not, after a VM that has left it: docs/testing.md.
#[tokio::test(flavor = "multi_thread")]
async fn a_vm_of_ours_starts_moves_and_starts_again() {
    common::twice("a_vm_of_ours", async |_| {
        Box::pin(starts_moves_and_starts_again()).await;
    })
    .await;
}

async fn starts_moves_and_starts_again() {
    let began = Instant::now();
    let say = |what: &str| eprintln!("--- {:5.1} s  {what}", began.elapsed().as_secs_f64());
    let dir = TempDir::new().unwrap();
    let root = root().await.unwrap();
    let stage = Stage::start(&dir, say).await;
    let play = Play::serves(stage, dir).await;
    say("the operator has registered the binding");
    let stage = &play.stage;
    stage.vm().await;
    let mut nodes = Nodes {
        network: Network::start(stage.cluster.dir(), &["n1", "n2"]).await.unwrap(),
        cnis: [
            Cni::start(&stage.cluster, "n1", 0).await.unwrap(),
            Cni::start(&stage.cluster, "n2", 1).await.unwrap(),
        ],
        handlers: [
            Handler::start(&stage.cluster, &root, "n1", 1).await.unwrap(),
            Handler::start(&stage.cluster, &root, "n2", 2).await.unwrap(),
        ],
        macs: [play.mac("web-fast").await, play.mac("web-other").await],
    };
    let asked: MacAddr = "02:00:00:00:aa:01".parse().unwrap();
    assert_eq!(nodes.macs[0], asked);
    let pod = launcher_with(&stage.client, "kubevirt.io=virt-launcher", SOON)
        .await
        .unwrap();
    say("the VM has its pod");
    stage.n1.take(&pod.name_any()).await.unwrap();
    let source = stage.launch(&mut nodes, 0, pod).await;
    say("thin Multus and our plugin have given it its links; its launcher listens");
    stage.until_it_runs().await;
    say("it runs");
    looks_right(&source, &nodes.macs).await;
    let domain = source.launcher.domain().await.unwrap();
    assert_eq!(
        domain.matches("<teaming type='persistent'/>").count(),
        NICS.len(),
        "{domain}"
    );
    for mac in &nodes.macs {
        assert!(
            domain.contains(&format!("<mac address='{mac}'/>")),
            "{mac}: {domain}"
        );
    }
    let edits = std::fs::read_to_string(source.launcher.dir().join("sidecar.log")).unwrap();
    eprintln!("{edits}");
    assert!(
        edits.matches("of them ours").count() >= 2,
        "KubeVirt asks twice: {edits}"
    );
    say("QEMU has what its NICs need");
    if let Some(kib) = source.launcher.sidecar_kib() {
        eprintln!("figure: the sidecar's memory: {kib} KiB");
    }
    for handler in &nodes.handlers {
        eprintln!(
            "figure: virt-handler's memory: {} MiB",
            handler.resident_kib().await.unwrap_or_default() / 1024
        );
    }

    let migration = stage.migrate("moves").await;
    let target = stage.target(&migration, &source.pod).await;
    say("the migration has its target pod");
    let target = stage.launch(&mut nodes, 1, target).await;
    say("its launcher listens");
    until(stage.migrations(), "moves", MOVE, "over", |m| {
        ["Succeeded", "Failed"]
            .iter()
            .any(|phase| at(m, "/status/phase") == phase)
    })
    .await
    .unwrap();
    let moved = stage.migrations().get("moves").await.unwrap();
    assert_eq!(
        at(&moved, "/status/phase"),
        "Succeeded",
        "{:#}",
        moved.data["status"]
    );
    for when in at(&moved, "/status/phaseTransitionTimestamps")
        .as_array()
        .into_iter()
        .flatten()
    {
        eprintln!("  {when}");
    }
    assert_eq!(at(&stage.vmi().await, "/status/nodeName"), "n2");
    say("it has moved");
    // The hook's answer there is not used: the domain is the source's.
    looks_right(&target, &nodes.macs).await;
    say("QEMU has the same there");
    stage.ends(&nodes, source).await;

    let again = Box::pin(stage.crashes_and_starts_again(&mut nodes, target)).await;
    let macs = [play.mac("web-fast").await, play.mac("web-other").await];
    assert_eq!(macs, nodes.macs, "its NICs are the same");
    looks_right(&again, &macs).await;
    say("its QEMU was killed, and it runs again in another pod, with the addresses that it had");
}

impl Stage {
    /// What the kubelet does for a launcher's pod of a node.
    async fn launch(&self, nodes: &mut Nodes, node: usize, pod: Pod) -> Running {
        let sandbox = nodes.handlers[node].sandbox(&pod).await.unwrap();
        let pid = sandbox.pid();
        let devices = nodes.cnis[node].attach(&nodes.network, &pod, &nodes.macs, pid);
        let devices = devices.await.unwrap();
        // As Multus says it, and KubeVirt reads it.
        let now = self.pods().get(&pod.name_any()).await.unwrap();
        let status: Value = serde_json::from_str(&now.annotations()[STATUS]).unwrap();
        for (entry, mac) in status.as_array().unwrap().iter().zip(&nodes.macs) {
            assert_eq!(
                (&entry["name"], &entry["mac"]),
                (&json!("default/fast"), &json!(mac.to_string())),
                "{status:#}"
            );
        }
        let launcher = sandbox.run(&pod, &devices).await.unwrap();
        let stand_in = [&self.n1, &self.n2][node];
        stand_in.run(&pod, &[]).await.unwrap();
        Running {
            node,
            pod,
            launcher,
            pid,
        }
    }

    /// KubeVirt makes another pod, which runs on the first node.
    async fn crashes_and_starts_again(&self, nodes: &mut Nodes, running: Running) -> Running {
        let before = self.vmi().await.uid();
        let (qemu, _) = running.launcher.qemu().unwrap().expect("QEMU runs");
        let qemu = nix::unistd::Pid::from_raw(i32::try_from(qemu).unwrap());
        nix::sys::signal::kill(qemu, nix::sys::signal::Signal::SIGKILL).unwrap();
        let leaves = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
        until(self.pods(), &running.pod.name_any(), LONG, "deleted", leaves)
            .await
            .unwrap();
        self.ends(nodes, running).await;
        let another = |vmi: &DynamicObject| vmi.uid() != before;
        let vmi = until(self.vmis(), VM, LONG, "made again", another).await.unwrap();
        let label = format!("kubevirt.io/created-by={}", vmi.uid().unwrap());
        let pod = launcher_with(&self.client, &label, LONG).await.unwrap();
        self.n1.take(&pod.name_any()).await.unwrap();
        let running = self.launch(nodes, 0, pod).await;
        self.until_it_runs().await;
        running
    }

    async fn until_it_runs(&self) {
        let runs = |vmi: &DynamicObject| at(vmi, "/status/phase") == "Running";
        // KubeVirt 1.8 itself, at times, when a VM comes back to a node that it has left: it stays so for good.
        let lost = |vmi: &DynamicObject| vmi.data.to_string().contains("can not add ghost record");
        let either = |vmi: &DynamicObject| runs(vmi) || lost(vmi);
        let vmi = until(self.vmis(), VM, LONG, "running", either).await.unwrap();
        assert!(
            runs(&vmi),
            "KubeVirt itself has lost its way: a ghost record of the VM is in its node's handler"
        );
    }

    /// A pod's VM has left it, or ended: so do its containers, and the kubelet takes its network away.
    async fn ends(&self, nodes: &Nodes, of: Running) {
        let Running {
            node,
            pod,
            launcher,
            pid,
        } = of;
        nodes.cnis[node].detach(&pod, pid).await.unwrap();
        let links = Command::new("nsenter")
            .arg(format!("--net=/proc/{pid}/ns/net"))
            .args(["ip", "-brief", "link", "show", "type", "macvtap"])
            .output()
            .unwrap();
        assert!(links.status.success());
        assert_eq!(String::from_utf8_lossy(&links.stdout), "", "no link is left");
        drop(launcher);
        [&self.n1, &self.n2][node].end(&pod).await.unwrap();
    }
}

/// Its VM runs; its NICs have their addresses, can be paired, and have ports for VFs; QEMU has opened their macvtaps.
async fn looks_right(of: &Running, macs: &[MacAddr]) {
    let launcher = &of.launcher;
    let status = launcher.qmp("query-status", json!({})).await.unwrap();
    assert_eq!(status["status"], "running");
    for (n, nic) in NICS.iter().enumerate() {
        let get = |device: String, property: &'static str| async move {
            let arguments = json!({ "path": device, "property": property });
            launcher.qmp("qom-get", arguments).await.unwrap()
        };
        let standby = format!("/machine/peripheral/ua-{nic}");
        assert_eq!(get(standby.clone(), "failover").await, true);
        assert_eq!(get(standby, "mac").await, macs[n].to_string());
        let port = format!("/machine/peripheral/hybridnic-{nic}");
        assert_eq!(get(port.clone(), "type").await, "pcie-root-port");
        assert_eq!(get(port.clone(), "addr").await, 0x1e * 8 + n);
        assert_eq!(get(port, "slot").await, 200 + n);
    }
    let (pid, _) = launcher.qemu().unwrap().expect("QEMU runs");
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let taps = open
        .filter_map(|fd| std::fs::read_link(fd.path()).ok())
        .filter(|path| path.to_string_lossy().starts_with("/dev/tap"));
    assert!(taps.count() >= NICS.len());
}
