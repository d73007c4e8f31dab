//! The client against real QEMU processes: that the names and shapes are QEMU's, and that QEMU behaves as the rest of
//! the project believes. Needs `qemu-system-x86_64` and the right to make a tap interface.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "others need the rest")]
#[path = "../common/qemu.rs"]
mod common;
mod qemu;

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use hybridnic_qmp::commands::{
    Announce, MigrationCapability, MigrationParameters, MigrationStatus, Queues, RunState, RxState,
    TapNetdev, VfioPci, VfioSource, Vhost, VirtioNet,
};
use hybridnic_qmp::{Client, CloseReason, Event, Events, Options, QmpError, wait_event};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use common::{Qemu, SOON};
use qemu::tap;

const MAC: &str = "52:54:00:aa:bb:01";

async fn expect(events: &mut Events, mut predicate: impl FnMut(&Event) -> bool) -> Arc<Event> {
    let mut seen = Vec::new();
    let wanted = |event: &Event| {
        seen.push(format!("{} {}", event.name, event.data));
        predicate(event)
    };
    let found = wait_event(events, Instant::now() + SOON, wanted).await;
    found.unwrap_or_else(|error| panic!("{error:?} after {seen:?}"))
}

async fn expect_status(events: &mut Events, status: MigrationStatus) -> Arc<Event> {
    expect(events, |e| e.migration_status().as_ref() == Some(&status)).await
}

/// Steps of a standby's hot-plug, on one tap queue.
async fn plug_standby(client: &Client) {
    client.getfd("tap0", tap().as_fd()).await.unwrap();
    let netdev = TapNetdev {
        id: "hn".to_owned(),
        fds: vec!["tap0".to_owned()],
        vhost: Vhost::Off,
    };
    client.netdev_add_tap(&netdev).await.unwrap();
    client.device_add_virtio_net(&standby()).await.unwrap();
}

fn standby() -> VirtioNet {
    VirtioNet {
        id: "sb".to_owned(),
        netdev: "hn".to_owned(),
        mac: MAC.to_owned(),
        bus: "rpa".to_owned(),
        failover: true,
        queues: Queues::MIN,
        mtu: Some(1500),
    }
}

#[tokio::test]
async fn version_and_status() {
    let mut qemu = Qemu::start(&["-S"]);
    let client = qemu.connect().await;
    assert_eq!(client.query_version().await.unwrap(), *client.version());
    assert!(client.version().at_least(7, 2), "{}", client.version());

    let status = client.query_status().await.unwrap();
    assert_eq!((status.status, status.running), (RunState::Prelaunch, false));
    let migration = client.query_migrate().await.unwrap();
    assert_eq!(
        (migration.status_or_none(), migration.blocked_reasons.len()),
        (MigrationStatus::None, 0)
    );

    let mut events = client.subscribe();
    client.cont().await.unwrap();
    expect(&mut events, Event::is_resume).await;
    client.stop().await.unwrap();
    expect(&mut events, |e| e.name == "STOP").await;
    assert_eq!(client.query_status().await.unwrap().status, RunState::Paused);
    let unknown = client.run("no-such-command", &json!({})).await.unwrap_err();
    assert!(unknown.is_command_not_found());
}

#[tokio::test]
async fn many_callers_at_once() {
    let mut qemu = Qemu::start(&["-S"]);
    let client = qemu.connect().await;
    let calls = (0..200).map(|n| {
        let client = client.clone();
        async move {
            if n % 2 == 0 {
                client.peripheral().await.unwrap().contains_key("rpa")
            } else {
                client
                    .qom_get::<String>("/machine/peripheral/rpb", "type")
                    .await
                    .unwrap()
                    == "pcie-root-port"
            }
        }
    });
    assert!(
        futures::future::join_all(calls)
            .await
            .into_iter()
            .all(|right| right)
    );
}

/// The longest answers, of a VM with 48 NICs, each with a port for its VF and one for its standby. Asked for all filters at once
/// QEMU 10.0 answers with 1.1 MB, because until a guest's driver says otherwise each NIC has all 4096 VLANs.
#[tokio::test]
async fn answers_about_48_nics_are_within_the_bound() {
    const NICS: usize = 48;
    let bound = Options::default().max_line;
    let mut arguments = vec!["-S".to_owned()];
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    for port in 0..2 * NICS {
        let (slot, function) = (8 + port / 8, port % 8);
        let place = format!("chassis={},addr={slot:#x}.{function},multifunction=on", 10 + port);
        add("-device", format!("pcie-root-port,id=rp{port},{place}"));
    }
    for nic in 0..NICS {
        add("-netdev", format!("hubport,hubid={nic},id=hn-eth{nic}"));
        let ids = format!("id=sb-eth{nic},netdev=hn-eth{nic},bus=rp{}", 2 * nic);
        add("-device", format!("virtio-net-pci,{ids},failover=on"));
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut qemu = Qemu::start(&arguments);
    let client = qemu.connect().await;
    for (command, arguments) in [
        ("query-pci", json!({})),
        ("qom-list", json!({"path": "/machine/peripheral"})),
        ("query-rx-filter", json!({"name": "sb-eth7"})),
    ] {
        let answer: Box<RawValue> = client.execute(command, &arguments).await.unwrap();
        let bytes = answer.get().len();
        println!("{command}: {bytes} bytes");
        assert!(10 * bytes < bound, "{command}: {bytes} of {bound} bytes");
    }
    assert_eq!(client.free_root_ports().await.unwrap().len(), NICS + 2);
    for nic in 0..NICS {
        let name = format!("sb-eth{nic}");
        let filter = client.query_rx_filter(&name).await.unwrap().unwrap();
        assert_eq!(filter.name, name);
    }
    // A question that is too large costs the answer, and not the session.
    match client.execute::<_, Value>("query-rx-filter", &json!({})).await {
        Ok(all) => assert_eq!(all.as_array().map(Vec::len), Some(NICS)),
        Err(error) => assert!(matches!(error, QmpError::TooLong { .. }), "{error:?}"),
    }
    assert_eq!(client.query_status().await.unwrap().status, RunState::Prelaunch);
}

#[tokio::test]
async fn standby_is_plugged_and_unplugged() {
    let mut qemu = Qemu::start(&["-S"]);
    let client = qemu.connect().await;
    assert_eq!(client.free_root_ports().await.unwrap(), ["rpa", "rpb"]);
    plug_standby(&client).await;
    assert_eq!(client.free_root_ports().await.unwrap(), ["rpb"]);
    for (port, free) in [("rpa", false), ("rpb", true), ("rpc", false)] {
        assert_eq!(client.is_free_root_port(port).await.unwrap(), free, "{port}");
    }
    assert_eq!(client.root_ports().await.unwrap(), ["rpa", "rpb", "rpc"]);
    let devices = client.peripheral().await.unwrap();
    assert_eq!(devices.get("sb").map(String::as_str), Some("virtio-net-pci"));
    assert_eq!(devices.get("rpa").map(String::as_str), Some("pcie-root-port"));
    assert!(!devices.contains_key("type"), "a property is not a device");
    assert!(
        client
            .device_add_virtio_net(&standby())
            .await
            .unwrap_err()
            .is_duplicate_id()
    );

    assert_eq!(client.query_rx_filter("absent").await.unwrap(), None);
    let filter = client.query_rx_filter("sb").await.unwrap().unwrap();
    assert_eq!((filter.name.as_str(), filter.main_mac.as_str()), ("sb", MAC));
    // Until a driver says what it wants.
    assert!(filter.promiscuous && !filter.multicast_overflow && !filter.unicast_overflow);
    assert_eq!(
        (&filter.multicast, &filter.vlan),
        (&RxState::Normal, &RxState::All)
    );
    assert!(filter.multicast_table.is_empty() && filter.unicast_table.is_empty());
    assert_eq!(client.standby_negotiated("sb").await.unwrap(), None);
    client.set_link("sb", false).await.unwrap();
    client.set_link("sb", true).await.unwrap();
    assert!(
        client
            .set_link("absent", true)
            .await
            .unwrap_err()
            .is_device_not_found()
    );
    client.announce_self(&["sb"], Announce::default()).await.unwrap();

    // No guest answers, so the unplug stays pending until a reset completes it.
    let mut events = client.subscribe();
    client.device_del("sb").await.unwrap();
    assert!(client.device_del("sb").await.unwrap_err().is_unplug_pending());
    client.run("system_reset", &json!({})).await.unwrap();
    expect(&mut events, |e| e.is_device_deleted("sb")).await;
    assert!(client.device_del("sb").await.unwrap_err().is_device_not_found());
    client.netdev_del("hn").await.unwrap();
    assert!(client.netdev_del("hn").await.unwrap_err().is_device_not_found());
    assert_eq!(client.free_root_ports().await.unwrap(), ["rpa", "rpb"]);

    let mut fixed = standby();
    fixed.bus = "rpc".to_owned();
    plug_netdev_only(&client).await;
    let refused = client.device_add_virtio_net(&fixed).await.unwrap_err();
    assert!(refused.is_not_hotpluggable(), "{refused}");
}

/// No guest speaks here; so the event's shape is taken from QEMU's own description of it.
#[tokio::test]
async fn a_changed_filter_is_told_with_the_nics_id() {
    let mut qemu = Qemu::start(&["-S"]);
    let client = qemu.connect().await;
    let schema: Vec<Value> = client.execute("query-qmp-schema", &json!({})).await.unwrap();
    let named = |name: &str| schema.iter().find(|entry| entry["name"] == name).unwrap();
    let event = named("NIC_RX_FILTER_CHANGED");
    assert_eq!(event["meta-type"], "event");
    let members = named(event["arg-type"].as_str().unwrap())["members"]
        .as_array()
        .unwrap();
    assert!(
        members.iter().any(|m| m["name"] == "name" && m["type"] == "str"),
        "{members:?}"
    );
}

async fn plug_netdev_only(client: &Client) {
    client.getfd("tap0", tap().as_fd()).await.unwrap();
    let netdev = TapNetdev {
        id: "hn".to_owned(),
        fds: vec!["tap0".to_owned()],
        vhost: Vhost::Off,
    };
    client.netdev_add_tap(&netdev).await.unwrap();
    assert!(
        client.netdev_add_tap(&netdev).await.is_err(),
        "a descriptor's name is good once"
    );
}

#[tokio::test]
async fn guest_address_is_known_once_the_firmware_has_numbered_the_buses() {
    let mut qemu = Qemu::start(&["-S"]);
    let client = qemu.connect().await;
    plug_standby(&client).await;
    assert_eq!(
        client
            .guest_pci_address("rpa")
            .await
            .unwrap()
            .unwrap()
            .to_string(),
        "0000:00:01.0"
    );
    assert_eq!(client.guest_pci_address("sb").await.unwrap(), None);
    client.cont().await.unwrap();
    let numbered = async {
        loop {
            if let Some(address) = client.guest_pci_address("sb").await.unwrap() {
                return address;
            }
            // The firmware sends no event.
            sleep(Duration::from_millis(50)).await;
        }
    };
    let address = timeout(SOON, numbered)
        .await
        .expect("the firmware numbers the buses")
        .to_string();
    assert_eq!(address, "0000:01:00.0");
    assert_eq!(client.guest_pci_address("absent").await.unwrap(), None);
}

#[tokio::test]
async fn descriptors_for_vfio() {
    let mut qemu = Qemu::start(&["-S"]);
    let client = qemu.connect().await;
    // Any descriptor will do for these: the test shows that it arrives and that the members have QEMU's names.
    let null = File::open("/dev/null").unwrap();
    client.getfd("iommu0", null.as_fd()).await.unwrap();
    client.object_add_iommufd("iommufd0", "iommu0").await.unwrap();
    client.getfd("iommu0", null.as_fd()).await.unwrap();
    assert!(
        client
            .object_add_iommufd("iommufd0", "iommu0")
            .await
            .unwrap_err()
            .is_duplicate_id()
    );
    client.getfd("vfd", null.as_fd()).await.unwrap();
    client.closefd("vfd").await.unwrap();
    client.getfd("vfd", null.as_fd()).await.unwrap();
    // With the property QEMU knows the VF as one that it never migrates.
    let properties: Vec<Value> = client
        .execute("device-list-properties", &json!({"typename": "vfio-pci"}))
        .await
        .unwrap();
    let kind = |name: &str| properties.iter().find(|p| p["name"] == name).map(|p| &p["type"]);
    let is_known = kind("enable-migration") == Some(&json!("OnOffAuto"));
    assert_eq!(is_known, client.version().at_least(8, 1), "{properties:?}");
    let source = VfioSource::Fd {
        fd: "vfd".to_owned(),
        iommufd: "iommufd0".to_owned(),
    };
    let vf = VfioPci {
        id: "vf-g1".to_owned(),
        bus: "rpb".to_owned(),
        source,
    };
    let refused = client.device_add_vfio(&vf).await.unwrap_err().to_string();
    assert!(refused.contains("Inappropriate ioctl"), "{refused}");
    let source = VfioSource::Host("0000:ff:1f.7".to_owned());
    let refused = client
        .device_add_vfio(&VfioPci { source, ..vf })
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("no such host device"), "{refused}");
    assert_eq!(client.free_root_ports().await.unwrap(), ["rpa", "rpb"]);
    client.object_del("iommufd0").await.unwrap();
    assert!(
        client
            .object_del("iommufd0")
            .await
            .unwrap_err()
            .is_object_not_found()
    );
}

#[tokio::test]
async fn one_client_at_a_time() {
    let mut qemu = Qemu::start(&["-S"]);
    let first = qemu.connect().await;
    let brief = Options {
        greeting_timeout: Duration::from_millis(300),
        ..Options::default()
    };
    let busy = Client::connect(qemu.socket(), &brief).await.unwrap_err();
    assert!(
        matches!(busy, QmpError::GreetingTimeout { .. }) && busy.is_busy_socket(),
        "{busy:?}"
    );
    // The first did not notice, and its end makes room.
    assert_eq!(first.query_status().await.unwrap().status, RunState::Prelaunch);
    first.close();
    assert_eq!(first.closed().await, CloseReason::Local);
    qemu.connect().await.query_status().await.unwrap();
}

#[tokio::test]
async fn end_of_the_process_ends_the_session() {
    let mut qemu = Qemu::start(&["-S"]);
    let client = qemu.connect().await;
    qemu.child.kill().await.unwrap();
    assert_eq!(timeout(SOON, client.closed()).await.unwrap(), CloseReason::Eof);
    assert!(client.query_status().await.unwrap_err().is_closed());

    let mut qemu = Qemu::start(&["-S"]);
    let client = qemu.connect().await;
    let quit = client.quit().await;
    assert!(quit.as_ref().err().is_none_or(QmpError::is_closed), "{quit:?}");
    assert_eq!(timeout(SOON, client.closed()).await.unwrap(), CloseReason::Eof);
    assert!(timeout(SOON, qemu.child.wait()).await.unwrap().unwrap().success());
}

/// A running source, and a destination that listens, each with its events.
async fn pair() -> ([Qemu; 2], [Client; 2], [Events; 2], String) {
    let mut qemus = [Qemu::start(&["-S"]), Qemu::start(&["-incoming", "defer"])];
    let source = qemus[0].connect().await;
    let target = qemus[1].connect().await;
    let events = [source.subscribe(), target.subscribe()];
    for client in [&source, &target] {
        use MigrationCapability::{Events, PauseBeforeSwitchover, ReturnPath};
        let capabilities = [(Events, true), (ReturnPath, true), (PauseBeforeSwitchover, true)];
        client.migrate_set_capabilities(&capabilities).await.unwrap();
        let parameters = MigrationParameters {
            max_bandwidth: Some(1_000_000_000),
            downtime_limit: Some(300),
            ..MigrationParameters::default()
        };
        client.migrate_set_parameters(&parameters).await.unwrap();
        plug_standby(client).await;
    }
    source.cont().await.unwrap();
    assert_eq!(target.query_status().await.unwrap().status, RunState::InMigrate);
    target.migrate_incoming("tcp:127.0.0.1:0").await.unwrap();
    let listening = target.query_migrate().await.unwrap().listening();
    let uri = format!("tcp:{}:{}", listening[0].host, listening[0].port);
    (qemus, [source, target], events, uri)
}

#[tokio::test]
async fn migration() {
    let (_qemus, [source, target], [mut at_source, mut at_target], uri) = pair().await;
    source.migrate(&uri).await.unwrap();
    expect_status(&mut at_source, MigrationStatus::PreSwitchover).await;
    let refused = source.device_del("sb").await.unwrap_err();
    assert!(refused.is_migrating(), "{refused}");
    assert!(!source.query_status().await.unwrap().running);
    source
        .migrate_continue(&MigrationStatus::PreSwitchover)
        .await
        .unwrap();

    // The destination runs before it says so.
    expect(&mut at_target, Event::is_resume).await;
    expect_status(&mut at_target, MigrationStatus::Completed).await;
    expect_status(&mut at_source, MigrationStatus::Completed).await;
    let info = source.query_migrate().await.unwrap();
    assert_eq!(info.status_or_none(), MigrationStatus::Completed);
    assert!(
        info.downtime.is_some() && info.total_time.is_some() && info.setup_time.is_some(),
        "{info:?}"
    );
    let ram = info.ram.unwrap();
    assert!(ram.transferred > 0 && ram.total >= 64 << 20, "{ram:?}");
    timeout(SOON, source.until_migration_settled())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(source.query_status().await.unwrap().status, RunState::PostMigrate);
    assert_eq!(target.query_status().await.unwrap().status, RunState::Running);
    assert!(target.peripheral().await.unwrap().contains_key("sb"));
}

#[tokio::test]
async fn migration_cancelled() {
    let (_qemus, [source, target], [mut at_source, _], uri) = pair().await;
    source.migrate_cancel().await.unwrap();
    source.migrate(&uri).await.unwrap();
    expect_status(&mut at_source, MigrationStatus::PreSwitchover).await;
    source.migrate_cancel().await.unwrap();
    // As above: it runs before it says so.
    expect(&mut at_source, Event::is_resume).await;
    expect_status(&mut at_source, MigrationStatus::Cancelled).await;
    assert!(source.query_status().await.unwrap().running);
    assert!(source.query_migrate().await.unwrap().status_or_none().is_idle());
    // The destination has lost its stream and ends.
    assert_eq!(timeout(SOON, target.closed()).await.unwrap(), CloseReason::Eof);
}

/// Left to itself, the destination starts the VM before the source knows that everything has arrived. So a source that says
/// `completed` proves that the VM ran at the destination.
#[tokio::test]
async fn the_destination_runs_before_the_source_is_completed() {
    let (_qemus, [source, _target], [mut at_source, mut at_target], uri) = pair().await;
    source.migrate(&uri).await.unwrap();
    expect_status(&mut at_source, MigrationStatus::PreSwitchover).await;
    source
        .migrate_continue(&MigrationStatus::PreSwitchover)
        .await
        .unwrap();
    let resumed = expect(&mut at_target, Event::is_resume).await.timestamp.unwrap();
    let completed = expect_status(&mut at_source, MigrationStatus::Completed)
        .await
        .timestamp
        .unwrap();
    // Both QEMUs stamp their events with this machine's clock.
    assert!(resumed <= completed, "{resumed:?} {completed:?}");
}

/// What the agent relies on: `stop` before the VM comes leaves it paused when it has come, and the source still completes.
/// Then only the agent starts it.
#[tokio::test]
async fn a_destination_that_was_told_to_stop_loads_the_vm_and_does_not_run_it() {
    let (_qemus, [source, target], [mut at_source, mut at_target], uri) = pair().await;
    target.stop().await.unwrap();
    assert_eq!(target.query_status().await.unwrap().status, RunState::InMigrate);
    source.migrate(&uri).await.unwrap();
    expect_status(&mut at_source, MigrationStatus::PreSwitchover).await;
    source
        .migrate_continue(&MigrationStatus::PreSwitchover)
        .await
        .unwrap();
    expect_status(&mut at_target, MigrationStatus::Completed).await;
    expect_status(&mut at_source, MigrationStatus::Completed).await;
    let status = target.query_status().await.unwrap();
    assert_eq!((status.status, status.running), (RunState::Paused, false));
    target.cont().await.unwrap();
    expect(&mut at_target, Event::is_resume).await;
    assert!(target.query_status().await.unwrap().running);
}

/// A destination that ends before it has all: the source runs the VM again by itself, no matter what it was told before. The agent
/// pauses it then, until it is known that the VM does not run elsewhere.
#[tokio::test]
async fn a_source_whose_migration_fails_after_the_hand_over_runs_again_and_can_be_paused() {
    let (mut qemus, [source, target], [mut at_source, _], uri) = pair().await;
    source.migrate(&uri).await.unwrap();
    expect_status(&mut at_source, MigrationStatus::PreSwitchover).await;
    qemus[1].child.kill().await.unwrap();
    drop(target);
    // It may have noticed already.
    let _ = source.migrate_continue(&MigrationStatus::PreSwitchover).await;
    expect(&mut at_source, Event::is_resume).await;
    source.stop().await.unwrap();
    assert_eq!(
        source.query_migrate().await.unwrap().status_or_none(),
        MigrationStatus::Failed
    );
    assert_eq!(source.query_status().await.unwrap().status, RunState::Paused);
    source.cont().await.unwrap();
    assert!(source.query_status().await.unwrap().running);
}
