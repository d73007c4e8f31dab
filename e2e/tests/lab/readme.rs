//! The lines that the README has for one host with an SR-IOV card and a QEMU, typed as they are there.

use std::path::Path;

use hybridnic_api::v1alpha1::{NicPhase, VmHybridNic, VmHybridNicStatus};
use hybridnic_e2e::{
    docs,
    lab::{Guest, GuestSpec, Node},
};

use crate::{
    common::{LATER, SOON, check_nic},
    local::{DEATH, Host, NIC},
};

/// The directory that the README names.
const DIR: &str = "/etc/hybridnic";
/// The disk that it names: a guest of the lab has its root in memory.
const DISK: &str = " -drive file=vm1.img,format=raw,if=virtio";
/// Its guest's memory: a node of the lab has not so much for one.
const MEMORY: [&str; 2] = ["2048", "192"];

/// The lines, for a card of this name.
fn lines(pf: &str) -> Vec<String> {
    let pages = docs::pages().unwrap();
    let page = pages.iter().find(|page| page.path == Path::new("README.md"));
    let mut blocks = page.unwrap().blocks.iter();
    let block = blocks
        .find(|block| block.text.contains("hybridnic-agent local"))
        .unwrap();
    let mut text = block.text.clone();
    for (there, here, times) in [("ens1f0", pf, 1), (DISK, "", 1), (MEMORY[0], MEMORY[1], 2)] {
        assert_eq!(
            text.matches(there).count(),
            times,
            "{there:?} in the README:\n{text}"
        );
        text = text.replace(there, here);
    }
    text.lines().map(str::to_owned).collect()
}

/// Types the lines, and sees that the NIC is what they promise. Leaves the VM, and nothing else.
pub async fn typed(host: &Host<'_>) -> Guest {
    let node = host.node;
    let link = format!("ln -sf {} /usr/bin/hybridnic-agent", host.program);
    node.run(&link, SOON).await.unwrap();
    let pf = node.netdev_of(&Node::pf_address(0)).await.unwrap().unwrap();
    let lines = lines(&pf);
    let [look, network, agent, qemu, attach] = lines.as_slice() else {
        panic!("five lines: {lines:#?}");
    };
    // What a shell does with a line that ends so.
    let behind = |line: &str| line.strip_suffix(" &").expect(line).to_owned();

    let seen = node.run(look, SOON).await.unwrap();
    assert!(seen.contains(&pf), "{seen}");
    node.run(network, SOON).await.unwrap();
    let agent = format!("exec {}", behind(agent));
    let agent = node.spawn(&["sh", "-c", &agent], &[], "readme").await.unwrap();
    let mut spec = Host::guest();
    spec.command = Some(behind(qemu));
    let attached = node.exec(attach, LATER + SOON);
    let (guest, attached) = tokio::join!(booted(node, spec), attached);
    let attached = attached.unwrap();
    assert_eq!(attached.status, 0, "{}{}", attached.stdout, attached.stderr);
    check_nic(node, &guest, &nic(node).await).await.unwrap();

    let detach = format!("hybridnic-agent ctl detach {NIC}");
    node.run(&detach, LATER + SOON).await.unwrap();
    // While it runs, its agent makes VFs again where there are none.
    agent.kill(DEATH).await.unwrap();
    let clear = format!("rm {DIR}/*.yaml && echo 0 >/sys/class/net/{pf}/device/sriov_numvfs");
    node.run(&clear, SOON).await.unwrap();
    guest
}

/// The guest, which takes the NIC into use as one that has a network manager does.
async fn booted(node: &Node, spec: GuestSpec) -> Guest {
    let guest = node.start_guest(spec).await.unwrap();
    // Nobody has said its address: the agent has made one.
    let told = format!("until grep -q '  mac: ' {DIR}/{NIC}.status.yaml; do sleep 0.2; done");
    node.run(&told, SOON).await.unwrap();
    let mac = status(node).await.mac.unwrap();
    let paired = guest.net_when(SOON, |view| view.failover(&mac).is_some());
    let (view, paired) = paired.await.unwrap();
    assert!(paired, "no failover device in the guest: {view:#?}");
    let up = format!("ip link set {} up", view.failover(&mac).unwrap().master.name);
    guest.run(&up, SOON).await.unwrap();
    guest
}

/// What is said of the NIC.
async fn status(node: &Node) -> VmHybridNicStatus {
    let read = format!("cat {DIR}/{NIC}.status.yaml");
    let text = node.run(&read, SOON).await.unwrap();
    let said: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    serde_json::from_value(said["status"].clone()).unwrap()
}

/// The NIC, which is on its VF.
async fn nic(node: &Node) -> VmHybridNic {
    let status = status(node).await;
    assert_eq!(status.phase, NicPhase::FastPath, "{status:#?}");
    let spec = serde_json::json!({ "network": "fast", "vm": {} });
    let mut nic = VmHybridNic::new(NIC, serde_json::from_value(spec).unwrap());
    nic.status = Some(status);
    nic
}
