//! What a guest makes of a second standby. It says why a standby cannot be exchanged for one on another PF (decision 39).

use std::sync::Arc;

use hybridnic_e2e::lab::NetView;
use hybridnic_e2e::world::{NicSpec, VmSpec, World};
use libtest_mimic::Trial;
use serde_json::json;

use crate::common::{SOON, fast};
use crate::suite::Suite;

pub fn tests(suite: &Arc<Suite>) -> Vec<Trial> {
    vec![suite.test("a_second_standby_is_no_way_to_another_pf", async |w| {
        Box::pin(second(w)).await
    })]
}

async fn second(world: &mut World) {
    // The second NIC is there for its root ports.
    let spec = VmSpec::new("second", &[NicSpec::new(0, 66), NicSpec::new(1, 66)]);
    let vm = world.start_vm(&spec, "second-a", 1, false).await.unwrap();
    let guest = &vm.guest;
    world.apply(&spec.nic_yaml(0, "fast")).await.unwrap();
    fast(world, &spec.nic_name(0)).await.unwrap();
    let mac = &spec.nics[0].mac;
    let before = guest.net().await.unwrap();
    let first = before.failover(mac).unwrap();
    let vf = first.primary.expect("a VF").name.clone();

    // Its tap does not matter.
    let netdev = json!({ "type": "hubport", "id": "second", "hubid": 7 });
    guest.qmp("netdev_add", netdev).await.unwrap();
    let device = json!({
        "driver": "virtio-net-pci", "id": "second", "netdev": "second", "mac": mac, "failover": true, "romfile": "", "bus": "rp3",
    });
    guest.qmp("device_add", device).await.unwrap();
    let (view, there) = guest
        .net_when(SOON, |v| v.with_mac(mac).count() == 5)
        .await
        .unwrap();
    assert!(there, "the guest does not have both: {view:#?}");
    // It has made an interface of the second one, too, but leaves all devices where they are, and the second one alone.
    let of_first: Vec<_> = in_it(&view, &first.master.name).collect();
    assert_eq!(of_first, [&first.standby.name, &vf], "{view:#?}");
    let in_none = view.with_mac(mac).filter(|n| n.ifindex > first.master.ifindex);
    let in_none = in_none.filter(|n| n.master.is_none() && n.phys_port_name.as_deref() == Some("sby"));
    assert_eq!(in_none.count(), 1, "{view:#?}");

    let standby = format!("sb-{}", spec.nic_name(0));
    guest.qmp("device_del", json!({ "id": standby })).await.unwrap();
    let (view, gone) = guest
        .net_when(SOON, |v| v.0.iter().all(|n| n.ifindex != first.master.ifindex))
        .await
        .unwrap();
    assert!(gone, "the guest keeps the first one's interface: {view:#?}");
    // With it went all that the guest had set up on it, and nothing takes its place: VF and second standby are in no interface.
    let left: Vec<_> = view.with_mac(mac).collect();
    assert!(
        left.len() == 3 && left.iter().all(|n| n.master.is_none()),
        "{view:#?}"
    );
}

/// Names of the devices in an interface that `net_failover` has made.
fn in_it<'a>(view: &'a NetView, master: &'a str) -> impl Iterator<Item = &'a String> {
    let all = view.0.iter().filter(move |n| n.master.as_deref() == Some(master));
    all.map(|n| &n.name)
}
