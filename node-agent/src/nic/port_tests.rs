use hybridnic_api::v1alpha1;

use super::*;

const UID: &str = "09b11c53-8b5c-4eeb-8f00-d84eaa0aaa4f";
const OTHER: &str = "19b11c53-8b5c-4eeb-8f00-d84eaa0aaa4f";

fn spec() -> NicAttachmentSpec {
    let mut spec = crate::journal::tests::record("a").spec;
    spec.nic.uid = UID.to_owned();
    spec.l2.port_profile = Some(v1alpha1::PortProfile {
        name: "gold".to_owned(),
    });
    spec
}

fn gold() -> PortProfile {
    profile(&spec(), Uuid::of(1)).unwrap()
}

fn port(request: PortRequest, response: PortResponse) -> VfPort {
    VfPort {
        request: Some(request),
        response: Some(response),
        profile: Some("gold".to_owned()),
        instance: UID.parse().ok(),
    }
}

#[test]
fn a_nic_is_known_by_its_id_or_else_by_its_uid() {
    assert_eq!(gold().instance.to_string(), UID);
    let named = NicAttachmentSpec {
        port_instance_id: Some(OTHER.to_owned()),
        ..spec()
    };
    assert_eq!(profile(&named, Uuid::of(1)).unwrap().instance.to_string(), OTHER);
    let mut plain = spec();
    plain.l2.port_profile = None;
    assert_eq!(profile(&plain, Uuid::of(1)), None);
    // What is no UUID has always the same.
    assert_eq!(uuid("").to_string(), "6c62272e-07bb-8142-a2b8-21756295c58d");
    assert_ne!(uuid("node-1"), uuid("node-2"));
}

#[test]
fn a_port_is_as_the_switch_has_said() {
    use PortRequest::{Associate, Disassociate, Preassociate};
    use PortResponse::{InProgress, Invalid, Success};
    let is = |port: &VfPort| seen(Some(port), &gold());
    assert_eq!(seen(None, &gold()), Port::Free);
    assert_eq!(is(&port(Preassociate, Success)), Port::Preassociated);
    assert_eq!(is(&port(Associate, Success)), Port::Associated);
    assert_eq!(is(&port(Disassociate, Success)), Port::Free);
    for request in [Preassociate, Associate, Disassociate] {
        for response in [InProgress, Invalid] {
            assert_eq!(is(&port(request, response)), Port::Unsettled);
        }
    }
    let anothers = VfPort {
        instance: OTHER.parse().ok(),
        ..port(Associate, Success)
    };
    let iron = VfPort {
        profile: Some("iron".to_owned()),
        ..port(Associate, Success)
    };
    let unknown = VfPort {
        request: None,
        ..port(Associate, Success)
    };
    for port in [anothers, iron, unknown] {
        assert_eq!(is(&port), Port::Unsettled, "{port:?}");
    }
}

#[test]
fn what_is_under_way_is_not_asked_again() {
    use PortRequest::{Associate, Disassociate, Preassociate};
    let waits = port(Associate, PortResponse::InProgress);
    assert!(is_under_way(&waits, Associate, Some(&gold())));
    assert!(!is_under_way(&waits, Preassociate, Some(&gold())));
    assert!(!is_under_way(
        &port(Associate, PortResponse::Success),
        Associate,
        Some(&gold())
    ));
    let other = PortProfile {
        name: "iron".to_owned(),
        ..gold()
    };
    assert!(!is_under_way(&waits, Associate, Some(&other)));
    assert!(is_under_way(
        &port(Disassociate, PortResponse::InProgress),
        Disassociate,
        None
    ));
}
