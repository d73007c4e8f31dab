use hybridnic_api::v1alpha1::Runtime;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::timeout};

use super::*;
use crate::machine::qemu::peer::{Peer, SOON};

async fn changed(peer: &mut Peer, device: &str) {
    let data = json!({"name": device, "path": format!("/machine/peripheral/{device}/virtio-backend")});
    peer.event("NIC_RX_FILTER_CHANGED", data).await;
}

/// The next command asks for the filter of this device, which there is or not.
async fn asks(peer: &mut Peer, device: &str, groups: Option<&[&str]>) {
    let asked = peer.asked("query-rx-filter").await;
    assert_eq!(asked["arguments"]["name"], device);
    if let Some(groups) = groups {
        peer.reply(&asked, json!([filter(device, groups)])).await;
    } else {
        let desc = format!("invalid net client name: {device}");
        let error = json!({"class": "GenericError", "desc": desc});
        peer.say(json!({"error": error, "id": asked["id"]})).await;
    }
}

fn filter(device: &str, groups: &[&str]) -> Value {
    json!({
        "name": device, "promiscuous": false, "multicast": "normal", "unicast": "normal", "vlan": "normal",
        "broadcast-allowed": true, "multicast-overflow": false, "unicast-overflow": false,
        "main-mac": "52:54:00:00:00:01", "vlan-table": [0, 10], "unicast-table": [], "multicast-table": groups,
    })
}

/// Reports what would be put on a macvtap; that of b is refused.
struct Told(mpsc::UnboundedSender<(String, Vec<String>)>);

/// Tells whether a standby rests.
struct Rests(mpsc::UnboundedSender<bool>);

impl Lists for Rests {
    async fn put(&self, _: &LinkAt, _: &RxFilter, rests: bool) -> Result<(), String> {
        self.0.send(rests).unwrap();
        Ok(())
    }
}

impl Lists for Told {
    async fn put(&self, macvtap: &LinkAt, filter: &RxFilter, _: bool) -> Result<(), String> {
        self.0
            .send((macvtap.name.clone(), filter.multicast_table.clone()))
            .unwrap();
        if macvtap.name == "hnb" {
            Err("no".to_owned())
        } else {
            Ok(())
        }
    }
}

fn vm() -> Vm {
    let vm = Vm::new(Runtime::Qemu, "default", "vm", "uid");
    vm.update_nic("a", |nic| {
        nic.standby_device = "sb-a".to_owned();
        nic.macvtap = Some("hna".into());
    });
    vm
}

#[tokio::test]
async fn a_change_is_asked_for_once_and_put_on_its_macvtap() {
    let (client, mut peer) = Peer::connect().await;
    let (vm, (sent, mut put)) = (vm(), mpsc::unbounded_channel());
    let lists = Told(sent);
    let qemu = async {
        // At first, because there may have been events before the session.
        asks(&mut peer, "sb-a", Some(&[])).await;
        assert_eq!(put.recv().await, Some(("hna".to_owned(), vec![])));
        // A guest that toggles, somebody else's NIC, a VM in a pause: one look.
        peer.event("STOP", json!({})).await;
        for _ in 0..50 {
            changed(&mut peer, "sb-a").await;
            changed(&mut peer, "other").await;
        }
        peer.is_left_alone(2 * PAUSE).await;
        peer.event("RESUME", json!({})).await;
        asks(&mut peer, "sb-a", Some(&["33:33:ff:12:34:56"])).await;
        assert_eq!(
            put.recv().await,
            Some(("hna".to_owned(), vec!["33:33:ff:12:34:56".to_owned()]))
        );
        changed(&mut peer, "other").await;
        peer.is_left_alone(2 * PAUSE).await;
        assert!(put.try_recv().is_err());
    };
    tokio::select! {
        never = follow(&vm, &client, &lists) => match never {},
        () = qemu => {}
    }
    assert_eq!(vm.nics()["a"].filtered.beyond.vlans, [10].into());
}

/// A bond has taken its groups off it, and they are kept for when it comes back; then there is another look.
#[tokio::test]
async fn the_standby_of_a_bond_rests_while_the_guest_has_its_vf() {
    let (client, mut peer) = Peer::connect().await;
    let (vm, (sent, mut put)) = (vm(), mpsc::unbounded_channel());
    let lists = Rests(sent);
    let qemu = async {
        asks(&mut peer, "sb-a", Some(&[])).await;
        assert_eq!(put.recv().await, Some(false));
        for (pairing, vf, rests) in [(Pairing::Bond, true, true), (Pairing::Bond, false, false)] {
            vm.update_nic("a", |nic| (nic.pairing, nic.vf) = (pairing, vf));
            asks(&mut peer, "sb-a", Some(&[])).await;
            assert_eq!(put.recv().await, Some(rests));
        }
        // With net_failover both members have the guest's groups.
        vm.update_nic("a", |nic| (nic.pairing, nic.vf) = (Pairing::NetFailover, true));
        peer.is_left_alone(2 * PAUSE).await;
    };
    tokio::select! {
        never = follow(&vm, &client, &lists) => match never {},
        () = qemu => {}
    }
}

#[tokio::test]
async fn a_standby_that_appears_gets_its_list() {
    let (client, mut peer) = Peer::connect().await;
    let vm = vm();
    let (sent, mut put) = mpsc::unbounded_channel();
    let lists = Told(sent);
    let qemu = async {
        asks(&mut peer, "sb-a", None).await;
        vm.update_nic("b", |nic| {
            nic.standby_device = "sb-b".to_owned();
            nic.macvtap = Some("hnb".into());
        });
        asks(&mut peer, "sb-a", Some(&[])).await;
        asks(&mut peer, "sb-b", Some(&[])).await;
        let macvtap = |put: Option<(String, Vec<String>)>| put.unwrap().0;
        assert_eq!(macvtap(put.recv().await), "hna");
        assert_eq!(macvtap(put.recv().await), "hnb");
    };
    let mut pulse = vm.pulse();
    let told = async {
        pulse
            .wait_for(|_| {
                vm.nics()
                    .get("b")
                    .is_some_and(|nic| nic.filtered.failed.is_some())
            })
            .await
            .map(|_| ())
    };
    tokio::select! {
        never = follow(&vm, &client, &lists) => match never {},
        ((), told) = async { tokio::join!(qemu, timeout(SOON, told)) } => told.unwrap().unwrap(),
    }
    assert_eq!(vm.nics()["b"].filtered.failed.as_deref(), Some("no"));
    assert_eq!(vm.nics()["a"].filtered.failed, None);
}

#[test]
fn looks_are_gathered() {
    let start = Instant::now();
    let mut pace = Pace::default();
    pace.ask(start);
    assert_eq!(pace.due, Some(start + GATHER));
    pace.ask(start + GATHER / 2);
    assert_eq!(pace.due, Some(start + GATHER));
    pace.looked(start + GATHER, true);
    assert_eq!(pace.due, None);
    pace.looked(start + 5 * PAUSE, false);
    assert_eq!(pace.due, Some(start + 5 * PAUSE + AGAIN));
    // News do not wait for the failure's pause.
    pace.ask(start + 6 * PAUSE);
    assert_eq!(pace.due, Some(start + 6 * PAUSE + GATHER));
}

#[test]
fn a_guest_that_never_stops_is_looked_at_once_a_second() {
    let mut now = Instant::now();
    let mut pace = Pace::default();
    let mut pauses = Vec::new();
    for _ in 0..7 {
        pace.ask(now);
        let due = pace.due.unwrap();
        pauses.push((due - now).as_millis());
        now = due;
        pace.looked(now, true);
    }
    assert_eq!(pauses, [100, 100, 200, 400, 800, 1000, 1000]);
    // Quiet for a while, it is answered at once again.
    now += 2 * PAUSE;
    pace.ask(now);
    assert_eq!(pace.due, Some(now + GATHER));
    pace.looked(now + GATHER, true);
    assert_eq!(pace.pause, GATHER);
}
