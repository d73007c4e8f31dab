//! A host without a cluster: no API server, no operator, no pod. The agent goes by files, and a VM is a QEMU that somebody has started.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use hybridnic_api::{
    conditions::{self, reasons, types},
    v1alpha1::{HybridNodeStatus, NicPhase, VmHybridNic, VmHybridNicStatus},
};
use hybridnic_e2e::{
    lab::{Guest, GuestSpec, Lab, Node, Pinger, Process},
    world::{Fault, NETWORK, NETWORK_YAML, footprint, stripped},
};
use libtest_mimic::Trial;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::{
    common::{LATER, SOON, check_nic, check_vf, watch, watched, watched_with, whole},
    readme,
    suite::{Suite, give_macs},
};

/// The directory of the files.
pub const DIR: &str = "/run/nics";
/// The QMP socket of the VM's QEMU.
const SOCKET: &str = "/run/vms/vm1.qmp";
pub const NIC: &str = "eth0";
pub const MAC: &str = "52:54:00:77:00:50";
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 50);
/// The most packets of twenty milliseconds that four switches at a word, a card that loses its link, and the way back from the other
/// card may cost together: half a second for a switch, five for a move between cards, and three until a link counts as lost (see `drain`).
const CARDS: u64 = 4 * 25 + 2 * 250 + 150;
/// How much longer IPv6 and multicast may be away than IPv4 when a NIC goes to another card.
const BESIDE: Duration = Duration::from_secs(3);
/// How long a program may take to die.
pub const DEATH: Duration = Duration::from_secs(20);

pub fn tests(suite: &Arc<Suite>) -> Vec<Trial> {
    vec![suite.bare("a_host_without_a_cluster_goes_by_files", async |lab| {
        Box::pin(alone(lab)).await;
    })]
}

/// The agent's program on a node, and the agent while it runs.
pub struct Host<'a> {
    pub node: &'a Node,
    pub program: String,
    agent: Option<Process>,
}

impl<'a> Host<'a> {
    async fn new(lab: &'a Lab) -> Self {
        Self::of(lab, 1).await
    }

    /// On the node of this number.
    pub async fn of(lab: &'a Lab, number: usize) -> Self {
        let node = &lab.nodes()[number - 1];
        let program = stripped("hybridnic-agent", &lab.dir().join("bin")).unwrap();
        let make = format!("mkdir -p {DIR} /run/vms && chmod 755 {DIR} /run/vms");
        node.run(&make, SOON).await.unwrap();
        let program = node.install(&program).unwrap();
        let agent = None;
        Self { node, program, agent }
    }

    pub async fn start(&mut self) {
        let argv = [
            self.program.as_str(),
            "local",
            "--dir",
            DIR,
            "--journal",
            "/run/hybridnic/journal",
            "--unplug-deadline",
            "10",
            "--plug-deadline",
            "40",
        ];
        let env = [("HYBRIDNIC_LOG", "info,hybridnic_agent=debug")];
        let agent = self.node.spawn(&argv, &env, "agent").await.unwrap();
        self.agent = Some(agent);
    }

    /// kill -9.
    async fn kill(&mut self) {
        let agent = self.agent.take().expect("it runs");
        agent.kill(DEATH).await.unwrap();
    }

    /// kill -9, and the next one. Returns once that one has said how the host is: how long nobody did anything.
    pub async fn replace(&mut self) -> Duration {
        let begin = Instant::now();
        self.kill().await;
        let forget = format!("rm {DIR}/node.status.yaml");
        self.node.run(&forget, SOON).await.unwrap();
        self.start().await;
        self.until("node", "said by the next agent", |said| !said.is_null())
            .await;
        begin.elapsed()
    }

    pub async fn write(&self, name: &str, text: &str) {
        let path = format!("{DIR}/{name}.yaml");
        self.node.put(&path, text.as_bytes(), 0o600).await.unwrap();
    }

    /// What the agent says of an object; nothing where it says nothing.
    async fn said(&self, name: &str) -> Value {
        let read = format!("cat {DIR}/{name}.status.yaml");
        let read = self.node.exec(&read, SOON).await.unwrap();
        if read.status == 0 {
            serde_saphyr::from_str(&read.stdout).unwrap()
        } else {
            Value::Null
        }
    }

    /// Waits until what is said of an object is so.
    pub async fn until(&self, name: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + LATER;
        loop {
            let said = self.said(name).await;
            if is(&said) {
                return said;
            }
            assert!(Instant::now() < end, "{name} is not {what}: {said:#}");
            // A node tells this host of none of its files; to look costs some milliseconds.
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// The NIC, once its status is so.
    pub async fn until_nic(&self, what: &str, is: impl Fn(&VmHybridNicStatus) -> bool) -> VmHybridNic {
        let said = self.until(NIC, what, |said| status(said).is_some_and(|status| is(&status)));
        let said = said.await;
        let spec = serde_json::json!({ "network": NETWORK, "vm": {} });
        let mut nic = VmHybridNic::new(NIC, serde_json::from_value(spec).unwrap());
        nic.status = status(&said);
        nic
    }

    /// The NIC on its VF, in the guest as well.
    pub async fn fast(&self, guest: &Guest) -> VmHybridNic {
        let nic = self.until_nic("on its VF", |status| status.phase == NicPhase::FastPath);
        let nic = nic.await;
        check_nic(self.node, guest, &nic).await.unwrap();
        nic
    }

    /// Waits until the node is as it was.
    pub async fn until_clean(&self, clean: &str) {
        let end = Instant::now() + SOON;
        loop {
            let now = footprint(self.node).await.unwrap();
            if now == clean {
                return;
            }
            assert!(
                Instant::now() < end,
                "the host is not as it was:\n{now}\ninstead of\n{clean}"
            );
            sleep(Duration::from_millis(300)).await;
        }
    }

    /// Runs `ctl`; its exit code, and what it has said.
    pub async fn ctl(&self, args: &str) -> (i32, String) {
        let command = format!("{} ctl --dir {DIR} {args}", self.program);
        // Longer than it waits itself.
        let output = self.node.exec(&command, LATER + SOON).await.unwrap();
        (output.status, format!("{}{}", output.stdout, output.stderr))
    }

    pub async fn attach(&self, more: &str) -> (i32, String) {
        let what = format!("attach {NIC} --network {NETWORK} --socket {SOCKET} --mac {MAC} {more}");
        self.ctl(&what).await
    }

    pub async fn start_guest(&self) -> Guest {
        self.start_qemu(false).await
    }

    /// A VM that nobody but its QEMU's user has started.
    pub fn guest() -> GuestSpec {
        let mut spec = GuestSpec::new("vm1").nic(MAC, &format!("{ADDRESS}/24"));
        spec.grouped = false;
        spec
    }

    /// A QEMU that boots a guest, or waits for one.
    pub async fn start_qemu(&self, incoming: bool) -> Guest {
        let mut spec = Self::guest();
        spec.incoming = incoming;
        let qmp = format!("unix:{SOCKET},server=on,wait=off");
        spec.qemu_args = vec!["-qmp".into(), qmp];
        self.node.start_guest(spec).await.unwrap()
    }
}

fn status(said: &Value) -> Option<VmHybridNicStatus> {
    serde_json::from_value(said.get("status")?.clone()).ok()
}

fn reason(status: &VmHybridNicStatus, type_: &str) -> String {
    conditions::find(&status.conditions, type_).map_or_else(String::new, |condition| condition.reason.clone())
}

async fn no_devices(guest: &Guest) {
    let gone = guest.net_when(SOON, |view| view.with_mac(MAC).next().is_none());
    let (view, gone) = gone.await.unwrap();
    assert!(gone, "the devices are still in the guest: {view:#?}");
}

async fn alone(lab: &Lab) {
    let mut host = Host::new(lab).await;
    let guest = readme::typed(&host).await;
    host.start().await;
    host.write(NETWORK, NETWORK_YAML).await;
    host.until("node", "with 14 free VFs", all_free).await;
    give_macs(host.node).await.unwrap();
    let clean = footprint(host.node).await.unwrap();
    let (code, node) = host.ctl("node").await;
    assert!(code == 0 && node.contains(NETWORK), "{node}");

    let flight = Box::pin(flight(lab, &mut host, &guest, &clean));
    whole(flight, Fault::of_guest(&guest)).await;

    // QEMU ends, and another one takes its place at the socket: the same NIC, with the same address.
    let before = host.fast(&guest).await;
    guest.kill().await.unwrap();
    host.until_nic("without its VM", |status| status.phase != NicPhase::FastPath)
        .await;
    drop(guest);
    let guest = host.start_guest().await;
    whole(
        second_life(&host, &guest, &before, &clean),
        Fault::of_guest(&guest),
    )
    .await;
}

/// The whole of what a VM's NIC lives through on a host without a cluster.
async fn flight(lab: &Lab, host: &mut Host<'_>, guest: &Guest, clean: &str) {
    // By a command: with progress, and done when it is.
    let (code, said) = host.attach("").await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("Attaching") && said.contains("FastPath"), "{said}");
    let nic = host.fast(guest).await;
    assert_eq!(nic.status.as_ref().unwrap().mac.as_deref(), Some(MAC));
    let pinger = watch(lab, ADDRESS, 50).await;

    // It steps aside at a word, and comes back.
    let (code, said) = host.ctl(&format!("standby {NIC}")).await;
    assert_eq!(code, 0, "{said}");
    host.until("node", "with all of its VFs free", all_free).await;
    assert!(pinger.answered(50, SOON).await, "no answer by the standby");
    counts(host).await;
    let (code, said) = host.ctl(&format!("fast {NIC}")).await;
    assert_eq!(code, 0, "{said}");
    let nic = host.fast(guest).await;
    let (code, said) = host.ctl(&format!("standby {NIC} --keep-vf")).await;
    assert_eq!(code, 0, "{said}");
    assert!(pinger.answered(50, SOON).await, "no answer by the standby");
    kept(host, &nic).await;
    let (code, said) = host.ctl(&format!("fast {NIC}")).await;
    assert_eq!(code, 0, "{said}");
    let same = host.fast(guest).await;
    assert_eq!(vf(&same), vf(&nic), "it was kept for it");
    cards(host, guest, &pinger).await;
    let nic = host.fast(guest).await;
    let report = watched_with(pinger, BESIDE).await;
    for gap in &report.round_trip.gaps {
        eprintln!("gap of {:?}, {} lost", gap.length, gap.lost);
    }
    assert!(report.round_trip.lost() <= CARDS, "{:#?}", report.round_trip.gaps);
    let pinger = watch(lab, ADDRESS, 50).await;

    // What the file says is not understood any more: that is said, and nothing else happens.
    let good = host
        .node
        .run(&format!("cat {DIR}/{NIC}.yaml"), SOON)
        .await
        .unwrap();
    host.write(NIC, "spec: {").await;
    let refused = |status: &VmHybridNicStatus| reason(status, "Accepted") == "FileUnknown";
    host.until_nic("refused", refused).await;
    let same = host.fast(guest).await;
    assert_eq!(vf(&same), vf(&nic), "it was plugged again");

    // Nor is it when the agent is started again meanwhile.
    host.kill().await;
    let forget = format!("rm {DIR}/{NIC}.status.yaml {DIR}/node.status.yaml");
    host.node.run(&forget, SOON).await.unwrap();
    host.start().await;
    host.until("node", "said by the new agent", holds_one).await;
    host.until_nic("refused by the new agent", refused).await;
    host.write(NIC, &good).await;
    let accepted = |status: &VmHybridNicStatus| reason(status, "Accepted") == "Accepted";
    host.until_nic("accepted again", accepted).await;
    let same = host.fast(guest).await;
    assert_eq!(vf(&same), vf(&nic), "it was plugged again");
    assert!(pinger.answered(50, SOON).await, "no answer after all");
    let report = watched(pinger).await;
    // Nothing was switched; the emulation loses some by itself.
    assert!(report.round_trip.lost() <= 10, "{:#?}", report.round_trip.gaps);

    // The file is deleted while no agent runs. Until there is one nothing happens.
    host.kill().await;
    host.node
        .run(&format!("rm {DIR}/{NIC}.yaml"), SOON)
        .await
        .unwrap();
    check_nic(host.node, guest, &same).await.unwrap();
    host.start().await;
    host.until(NIC, "gone", Value::is_null).await;
    host.until_clean(clean).await;
    no_devices(guest).await;

    // The agent dies at any moment, and the next one goes on.
    let (code, said) = host.attach("--timeout 0").await;
    assert_eq!(code, 0, "{said}");
    for delay in [100, 400, 1500] {
        sleep(Duration::from_millis(delay)).await;
        host.kill().await;
        host.start().await;
    }
    host.fast(guest).await;
    let pinger = lab.pinger(ADDRESS, 50).unwrap();
    assert!(pinger.answered(50, SOON).await, "no answer");
    pinger.stop().await;
}

/// What goes through the NIC, which is on its standby, is shown beside the rest.
async fn counts(host: &Host<'_>) {
    let (code, said) = host.ctl("top --once").await;
    assert_eq!(code, 0, "{said}");
    let row = said.lines().find(|line| line.starts_with(NIC)).expect(&said);
    let cells: Vec<&str> = row.split_whitespace().collect();
    let ["vm1", NETWORK, "Standby", "Standby", "-", rates @ ..] = &cells[1..] else {
        panic!("{said}");
    };
    for rate in &rates[..2] {
        assert!(!["-", "0"].contains(rate), "{said}");
    }
    assert!(said.contains(host.node.name()), "{said}");
}

/// It is on its standby, and its VF is nobody else's.
async fn kept(host: &Host<'_>, before: &VmHybridNic) {
    let told = |status: &VmHybridNicStatus| {
        status.phase == NicPhase::Standby && reason(status, types::FAST_PATH) == reasons::STANDBY_REQUESTED
    };
    let nic = host.until_nic("on its standby, as it was told", told).await;
    assert_eq!(vf(&nic), vf(before));
    host.until("node", "with one VF held", holds_one).await;
    let (code, said) = host.ctl("nic").await;
    assert_eq!(code, 0, "{said}");
    let row = said.lines().find(|line| line.starts_with(NIC)).expect(&said);
    for words in ["Standby", SOCKET, MAC, vf(&nic).unwrap()] {
        assert!(row.contains(words), "{words}: {said}");
    }
}

/// Its card loses its link, and it goes to the other one by itself; that is drained, and it comes back. An agent that dies on the way does
/// not matter.
async fn cards(host: &mut Host<'_>, guest: &Guest, pinger: &Pinger) {
    let nic = host.fast(guest).await;
    let home = pf(&nic).unwrap().to_owned();
    let is_first = host.node.netdev_of(&Node::pf_address(0)).await.unwrap() == Some(home.clone());
    let card = u8::from(!is_first);
    host.node.set_cable(card, false).await.unwrap();
    let on_other = |status: &VmHybridNicStatus| {
        let vf = status.vf.as_ref();
        status.phase == NicPhase::FastPath
            && reason(status, types::FAST_PATH) == reasons::VF_ACTIVE
            && vf.is_some_and(|vf| vf.pf != home)
    };
    let nic = host.until_nic("on the other card", on_other).await;
    check_vf(host.node, guest, &nic).await.unwrap();
    assert!(pinger.answered(50, SOON).await, "no answer by the other card");
    host.node.set_cable(card, true).await.unwrap();
    host.until("node", "with a link on both cards", |said| {
        let pfs = said.pointer("/status/pfs").and_then(Value::as_array);
        free(said) == Some(13) && pfs.is_some_and(|pfs| pfs.iter().all(|pf| pf["linkUp"] == true))
    })
    .await;

    let other = pf(&nic).unwrap();
    let (code, said) = host.ctl("drain-pf nosuch").await;
    assert!(
        code == 1 && said.contains(other) && said.contains(&home),
        "{said}"
    );
    let (code, said) = host.ctl(&format!("drain-pf {other} --timeout 0")).await;
    assert_eq!(code, 0, "{said}");
    let begun = |said: &Value| {
        let pfs = said.pointer("/status/pfs").and_then(Value::as_array);
        pfs.is_some_and(|pfs| {
            pfs.iter()
                .any(|pf| pf["name"] == other && pf["drain"].is_string())
        })
    };
    host.until("node", "draining", begun).await;
    host.kill().await;
    host.start().await;
    let (code, said) = host.ctl(&format!("drain-pf {other} -w")).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("no NIC holds a VF of it"), "{said}");
    let back = |status: &VmHybridNicStatus| {
        let vf = status.vf.as_ref();
        status.phase == NicPhase::FastPath && vf.is_some_and(|vf| vf.pf == home)
    };
    host.until_nic("back on its own card", back).await;
    host.fast(guest).await;
    assert!(pinger.answered(50, SOON).await, "no answer by its own card");

    // What is not understood changes nothing, and is said.
    let file = format!("cat {DIR}/node.yaml");
    let good = host.node.run(&file, SOON).await.unwrap();
    host.write("node", "spec: {").await;
    let degraded = |said: &Value| {
        let status: Option<HybridNodeStatus> = serde_json::from_value(said["status"].clone()).ok();
        status.is_some_and(|status| {
            let degraded = conditions::find(&status.conditions, types::DEGRADED);
            degraded.is_some_and(|degraded| degraded.reason == reasons::FILE_UNKNOWN)
        })
    };
    let said = host
        .until("node", "with a file that is not understood", degraded)
        .await;
    assert!(begun(&said), "{said:#}");
    let (code, said) = host.ctl(&format!("undrain-pf {other}")).await;
    assert!(code == 1 && said.contains("node.yaml"), "{said}");
    host.write("node", &good).await;
    let (code, said) = host.ctl(&format!("undrain-pf {other}")).await;
    assert_eq!(code, 0, "{said}");
    host.until("node", "undrained", |said| free(said) == Some(13))
        .await;
}

/// The NIC at the next QEMU of its socket, to its end.
async fn second_life(host: &Host<'_>, guest: &Guest, before: &VmHybridNic, clean: &str) {
    let after = host.fast(guest).await;
    let mac = |nic: &VmHybridNic| nic.status.as_ref().and_then(|status| status.mac.clone());
    assert_eq!(mac(before), mac(&after));

    let (code, said) = host.ctl(&format!("detach {NIC}")).await;
    assert_eq!(code, 0, "{said}");
    no_devices(guest).await;
    host.until_clean(clean).await;
    let (code, _) = host.ctl(&format!("detach {NIC}")).await;
    assert_eq!(code, 1, "there is none any more");
}

/// Whether all VFs of the host are there, and free.
pub fn all_free(said: &Value) -> bool {
    let status: Option<HybridNodeStatus> = said
        .get("status")
        .and_then(|status| serde_json::from_value(status.clone()).ok());
    status.is_some_and(|status| (status.vfs.free, status.vfs.total) == (14, 14))
}

/// How many VFs of the host are free.
fn free(said: &Value) -> Option<i64> {
    said.pointer("/status/vfs/free")?.as_i64()
}

/// Whether one VF of the host is held.
fn holds_one(said: &Value) -> bool {
    said.pointer("/status/vfs/held") == Some(&Value::from(1))
}

fn pf(nic: &VmHybridNic) -> Option<&str> {
    let status = nic.status.as_ref()?;
    Some(status.vf.as_ref()?.pf.as_str())
}

fn vf(nic: &VmHybridNic) -> Option<&str> {
    let status = nic.status.as_ref()?;
    Some(status.vf.as_ref()?.pci_address.as_str())
}
