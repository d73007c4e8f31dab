//! KubeVirt's node half: virt-handler and virt-launcher of both nodes as processes, with libvirt, QEMU and our sidecar. The guest is
//! its firmware: what is looked at is what QEMU is given, on the source and on the target.

use super::*;
use hybridnic_e2e::kubevirt::{Handler, Launcher, root};
use network::{Network, STATUS};

/// For a VM's start or move, software emulated on a machine that may be busy.
const LONG: Duration = Duration::from_mins(3);
const NICS: [&str; 2] = ["fast", "other"];

struct Nodes {
    network: Network,
    handlers: [Handler; 2],
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_of_ours_starts_and_moves() {
    let began = Instant::now();
    let say = |what: &str| eprintln!("--- {:5.1} s  {what}", began.elapsed().as_secs_f64());
    let dir = TempDir::new().unwrap();
    let root = root().await.unwrap();
    let stage = Stage::start(&dir, say).await;
    stage.definition_by_hand(&dir).await;
    let nodes = Nodes {
        network: Network::start(stage.cluster.dir(), stage.cluster.port(), &["n1", "n2"])
            .await
            .unwrap(),
        handlers: [
            Handler::start(&stage.cluster, &root, "n1", 1).await.unwrap(),
            Handler::start(&stage.cluster, &root, "n2", 2).await.unwrap(),
        ],
    };
    configure(stage.client.clone(), launcher::configuration())
        .await
        .unwrap();
    stage.vm().await;
    let pod = launcher_with(&stage.client, "kubevirt.io=virt-launcher", SOON)
        .await
        .unwrap();
    say("the VM has its pod");
    stage.n1.take(&pod.name_any()).await.unwrap();
    let source = stage.launch(&nodes, 0, &pod).await;
    say("its launcher listens");
    until(stage.vmis(), VM, LONG, "running", |vmi| {
        at(vmi, "/status/phase") == "Running"
    })
    .await
    .unwrap();
    say("it runs");
    looks_right(&source).await;
    let domain = source.domain().await.unwrap();
    assert_eq!(
        domain.matches("<teaming type='persistent'/>").count(),
        NICS.len(),
        "{domain}"
    );
    let edits = std::fs::read_to_string(source.dir().join("sidecar.log")).unwrap();
    eprintln!("{edits}");
    assert!(
        edits.matches("of them ours").count() >= 2,
        "KubeVirt asks twice: {edits}"
    );
    say("QEMU has what its NICs need");
    if let Some(kib) = source.sidecar_kib() {
        eprintln!("figure: the sidecar's memory: {kib} KiB");
    }
    for handler in &nodes.handlers {
        eprintln!(
            "figure: virt-handler's memory: {} MiB",
            handler.resident_kib().await.unwrap_or_default() / 1024
        );
    }

    let migration = stage.migrate("moves").await;
    let target = stage.target(&migration, &pod).await;
    say("the migration has its target pod");
    let target = stage.launch(&nodes, 1, &target).await;
    say("its launcher listens");
    until(stage.migrations(), "moves", LONG, "over", |m| {
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
    looks_right(&target).await;
    say("QEMU has the same there");
}

impl Stage {
    /// What the kubelet does for a launcher's pod of a node.
    async fn launch(&self, nodes: &Nodes, node: usize, pod: &Pod) -> Launcher {
        let (name, stand_in) = [("n1", &self.n1), ("n2", &self.n2)][node];
        let sandbox = nodes.handlers[node].sandbox(pod).await.unwrap();
        let first = u32::try_from(node).unwrap();
        let (devices, status) = nodes.network.attach(name, first, pod, &sandbox).unwrap();
        let patch = json!({ "metadata": { "annotations": { STATUS: status } } });
        self.pods()
            .patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
        let launcher = sandbox.run(pod, &devices).await.unwrap();
        stand_in.run(pod, &[]).await.unwrap();
        launcher
    }
}

/// Its VM runs; its NICs can be paired, and have ports for VFs; QEMU has opened their macvtaps.
async fn looks_right(launcher: &Launcher) {
    let status = launcher.qmp("query-status", json!({})).await.unwrap();
    assert_eq!(status["status"], "running");
    for (n, nic) in NICS.iter().enumerate() {
        let get = |device: String, property: &'static str| async move {
            let arguments = json!({ "path": device, "property": property });
            launcher.qmp("qom-get", arguments).await.unwrap()
        };
        let standby = format!("/machine/peripheral/ua-{nic}");
        assert_eq!(get(standby, "failover").await, true);
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
