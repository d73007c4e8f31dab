//! Plugging by hand, for tests of the lab itself: what the product does in the product's tests.

use std::time::{Duration, Instant};

use hybridnic_e2e::lab::{Guest, Node};

/// Longer than any step takes on a machine that compiles besides.
pub(crate) const SHORT: Duration = Duration::from_mins(1);

/// All VFs of both cards; gives the first card's netdev.
pub(crate) async fn provision(node: &Node) -> String {
    for pf in 0..2 {
        let pci = Node::pf_address(pf);
        let netdev = node
            .netdev_of(&pci)
            .await
            .unwrap()
            .expect("the card has a driver");
        node.run(
            &format!("ip link set {netdev} up && echo 7 >/sys/bus/pci/devices/{pci}/sriov_numvfs"),
            SHORT,
        )
        .await
        .unwrap();
    }
    node.netdev_of(&Node::pf_address(0))
        .await
        .unwrap()
        .expect("the card has a driver")
}

/// A macvtap on the PF, handed to QEMU by descriptor, and the virtio device on it.
pub(crate) async fn standby(guest: &Guest, pf: &str, mac: &str) {
    let script = format!(
        r#"set -e
        ip link show mvt0 >/dev/null 2>&1 && ip link del mvt0
        ip link add link {pf} name mvt0 address {mac} type macvtap mode bridge
        ip link set mvt0 up
        rm -f /run/tap0
        mknod /run/tap0 c $(cat /sys/class/net/mvt0/tap*/dev | tr : ' ')
        /host/lab-exec qmp {} tap0=/run/tap0 \
            '{{"execute":"netdev_add","arguments":{{"type":"tap","id":"hn0","fds":"tap0"}}}}' \
            '{{"execute":"device_add","arguments":{{"driver":"virtio-net-pci","id":"sb0","netdev":"hn0","mac":"{mac}",
               "bus":"rp0","failover":true,"romfile":""}}}}'"#,
        guest.qmp_socket()
    );
    guest.node().run(&script, SHORT).await.unwrap();
    let (view, made) = guest
        .net_when(SHORT, |net| net.failover(mac).is_some_and(|f| f.master.up))
        .await
        .unwrap();
    assert!(made, "no standby in the guest: {view:#?}");
}

/// VF 0 with the guest's MAC, bound to vfio-pci and plugged; gives its PCI address.
pub(crate) async fn vf(guest: &Guest, pf: &str, mac: &str) -> String {
    let script = format!(
        r#"set -e
        ip link set {pf} vf 0 mac {mac}
        vf=$(basename $(readlink /sys/class/net/{pf}/device/virtfn0))
        modprobe vfio-pci 2>/dev/null || true
        if ! [ -e /sys/bus/pci/drivers/vfio-pci/$vf ]; then
            echo vfio-pci >/sys/bus/pci/devices/$vf/driver_override
            [ -e /sys/bus/pci/devices/$vf/driver ] && echo $vf >/sys/bus/pci/devices/$vf/driver/unbind
            echo $vf >/sys/bus/pci/drivers_probe
        fi
        /host/lab-exec qmp {} '{{"execute":"device_add","arguments":{{"driver":"vfio-pci","id":"vf0",
            "host":"'$vf'","bus":"rp1"}}}}' >&2
        echo $vf"#,
        guest.qmp_socket()
    );
    guest.node().run(&script, SHORT).await.unwrap().trim().to_owned()
}

/// Asks the guest to let go of the VF and waits for it; says whether it did.
pub(crate) async fn unplug_vf(guest: &Guest, deadline: Duration) -> bool {
    let command = format!(
        r#"/host/lab-exec qmp {} '{{"execute":"device_del","arguments":{{"id":"vf0"}}}}'"#,
        guest.qmp_socket()
    );
    guest.node().run(&command, SHORT).await.unwrap();
    let end = Instant::now() + deadline;
    // The harness's own monitor would have to be held open for the event; this is no measurement.
    while devices(guest).await.iter().any(|id| id == "vf0") {
        if Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    true
}

/// The ids of the devices that were plugged.
async fn devices(guest: &Guest) -> Vec<String> {
    let listed = guest
        .qmp("qom-list", serde_json::json!({"path": "/machine/peripheral"}))
        .await
        .unwrap();
    let name = |item: &serde_json::Value| item["name"].as_str().map(str::to_owned);
    listed.as_array().unwrap().iter().filter_map(name).collect()
}
