//! The guest's root ports, where another QEMU has taken the place of the one for which they were chosen.

use std::convert::Infallible;

use hybridnic_api::v1alpha1::{GuestPorts, Placement, StandbyKind};

use super::*;

/// A root port, and the id of the device in it.
type Port = (&'static str, Option<&'static str>);

/// A QEMU with these root ports.
async fn qemu(mut peer: Peer, ports: &[Port]) -> Infallible {
    let occupant = |id: &str| {
        ports
            .iter()
            .find(|(port, _)| *port == id)
            .and_then(|(_, has)| *has)
    };
    loop {
        let asked = peer.any().await;
        let arguments = &asked["arguments"];
        let path = arguments["path"].as_str().unwrap_or_default();
        let answer = match asked["execute"].as_str().unwrap() {
            "qom-list" if path == "/machine/peripheral" => {
                let child = |id: &str, kind: &str| json!({"name": id, "type": format!("child<{kind}>")});
                let devices = ports.iter().filter_map(|(_, has)| *has);
                let ports = ports.iter().map(|(port, _)| child(port, "pcie-root-port"));
                json!(
                    ports
                        .chain(devices.map(|id| child(id, "e1000e")))
                        .collect::<Vec<_>>()
                )
            }
            "qom-list" => match occupant(path.rsplit('/').next().unwrap()) {
                Some(_) => json!([{"name": "child[0]", "type": "link<e1000e>"}]),
                None => json!([]),
            },
            "qom-get" => json!(true),
            "query-status" => json!({"status": "running", "running": true}),
            "device_add" => {
                let bus = arguments["bus"].as_str().unwrap();
                assert_eq!(occupant(bus), None, "QEMU would keep the VF's descriptor");
                json!({})
            }
            "query-migrate" => json!({}),
            "x-query-virtio-status" => {
                peer.deny(&asked).await;
                continue;
            }
            other => panic!("{other}"),
        };
        peer.reply(&asked, answer).await;
    }
}

fn of(standby: Option<&str>, vf: &str) -> GuestPorts {
    GuestPorts {
        standby: standby.map(str::to_owned),
        vf: vf.to_owned(),
    }
}

/// The ports that a NIC then has which had `rp1` for its standby, where it has one, and `rp2` for its VF.
async fn settled(standby: StandbyKind, ports: &[Port]) -> Result<GuestPorts, GuestError> {
    let dir = tempfile::tempdir().unwrap();
    let mut cx = context(&host(dir.path(), 1, 2));
    cx.record.spec.standby = standby;
    cx.record.ports = Some(of((standby == StandbyKind::Macvtap).then_some("rp1"), "rp2"));
    let (client, peer) = Peer::connect().await;
    let machine = Machine::Qemu(Qemu::new(client));
    let settled = tokio::select! {
        settled = guest::settle_ports(&mut cx, &machine) => settled?,
        never = qemu(peer, ports) => match never {},
    };
    assert_eq!(cx.record.ports.as_ref(), Some(&settled));
    Ok(settled)
}

#[tokio::test]
async fn a_port_is_kept_unless_it_is_missing_or_something_else_is_in_it() {
    const FREE: Option<&str> = None;
    let other = Some("theirs");
    for (ports, standby, vf) in [
        (vec![("rp1", FREE), ("rp2", FREE), ("rp3", FREE)], "rp1", "rp2"),
        (vec![("rp1", FREE), ("rp2", other), ("rp3", FREE)], "rp1", "rp3"),
        (vec![("rp1", other), ("rp2", FREE), ("rp3", FREE)], "rp3", "rp2"),
        (
            vec![("rp1", other), ("rp2", other), ("rp3", FREE), ("rp4", FREE)],
            "rp3",
            "rp4",
        ),
        (vec![("rp3", FREE), ("rp4", FREE)], "rp3", "rp4"),
        (vec![("rp2", FREE), ("rp3", FREE)], "rp3", "rp2"),
        // Its own are in them.
        (
            vec![("rp1", Some("sb-nic")), ("rp2", Some("vf-nic-g1"))],
            "rp1",
            "rp2",
        ),
        (
            vec![("rp1", Some("sb-nic")), ("rp2", other), ("rp3", FREE)],
            "rp1",
            "rp3",
        ),
    ] {
        let settled = settled(StandbyKind::Macvtap, &ports).await.unwrap();
        assert_eq!(settled, of(Some(standby), vf), "{ports:?}");
    }
    let alone = settled(StandbyKind::None, &[("rp1", FREE), ("rp2", other)]).await;
    assert_eq!(alone.unwrap(), of(None, "rp1"));
    let none = settled(StandbyKind::Macvtap, &[("rp1", FREE), ("rp2", other)]).await;
    assert_eq!(none.unwrap_err().reason(), reasons::NO_GUEST_PORT);
}

/// As where somebody has plugged a device of his own while the VF was out.
#[tokio::test]
async fn a_vf_whose_port_something_else_has_goes_to_another() {
    let taken = [("rp1", Some("sb-nic")), ("rp2", Some("theirs"))];
    let more = [taken.as_slice(), &[("rp3", None)]].concat();
    // KubeVirt's sidecar has given it this one.
    let theirs = [("hybridnic-fast", Some("theirs")), ("rp3", None)];
    let arrived = Placement::RootPorts(of(Some("rp1"), "rp2"));
    for (ports, placement, port) in [
        (&more[..], None, Some("rp3")),
        (&more[..], Some(arrived), Some("rp3")),
        (&taken[..], None, None),
        (&theirs[..], Some(Placement::Interface("fast".into())), None),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut cx = context(&host(dir.path(), 1, 2));
        cx.record.spec.placement = placement.clone();
        cx.record.ports = Some(of(Some("rp1"), "rp2"));
        let (client, peer) = Peer::connect().await;
        let machine = Machine::Qemu(Qemu::new(client));
        let plugged = tokio::select! {
            plugged = guest::plug_vf(&mut cx, &machine) => plugged,
            never = qemu(peer, ports) => match never {},
        };
        let why = plugged.err().map(|error| error.reason());
        let refused = port.is_none().then_some(reasons::NO_GUEST_PORT);
        assert_eq!((why, cx.learnt.vf_failed), (refused, refused), "{placement:?}");
        assert_eq!(cx.learnt.vf_failures, 0, "the VF is not at fault");
        let vf = port.unwrap_or("rp2");
        assert_eq!(cx.record.ports, Some(of(Some("rp1"), vf)), "{placement:?}");
    }
}
