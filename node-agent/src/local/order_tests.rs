use std::collections::BTreeSet;

use hybridnic_api::v1alpha1::{Goal, MigrationOrder, MigrationStep, ObjectRef, StandbyKind};

use super::{
    super::{
        decide::{self, Outcome, Reading as Read},
        file::tests::{network, nic},
    },
    *,
};

fn host() -> Host {
    Host {
        node: "h1".into(),
        seed: "machine".into(),
        cards: Some(BTreeSet::from(["52:54:00:00:00:ff".to_owned()])),
        now: 7,
    }
}

fn decide(state: &mut State) -> Outcome {
    state.decide(&host(), |_| "uid-1".into())
}

fn asks() -> Read {
    Read::Asks(file::Asked::Nic(Box::new(nic())), 1)
}

/// With a network, and a NIC whose file asks for it.
fn attached() -> (State, Want) {
    let mut state = State::default();
    state.read("fast", Read::Asks(file::Asked::Network(Box::new(network())), 1));
    state.read("eth0", asks());
    decide(&mut state);
    let want = state.nics["eth0"].want.clone();
    (state, want)
}

/// The order that a NIC be so.
fn order(spec: NicAttachmentSpec, serial: u64) -> Reading {
    let order = Order {
        migration: "m-1".into(),
        session: 1,
        serial,
        says: Says::Be(Box::new(Be {
            socket: "/run/vms/vm1.qmp".into(),
            spec,
        })),
    };
    parse(&serde_json::to_string(&order).unwrap())
}

fn over() -> Reading {
    let order = Order {
        migration: "m-1".into(),
        session: 1,
        serial: 9,
        says: Says::Over,
    };
    parse(&serde_json::to_string(&order).unwrap())
}

fn on_standby(want: &Want) -> NicAttachmentSpec {
    NicAttachmentSpec {
        goal: Goal::Standby,
        migration: Some(MigrationOrder {
            file: None,
            migration: ObjectRef {
                name: "eth0".into(),
                uid: "m-1".into(),
            },
            nics: vec!["eth0".into()],
            step: MigrationStep::Transfer,
            target_uri: None,
            listen_address: None,
            tls: None,
        }),
        ..want.spec.clone()
    }
}

fn reason(outcome: &Outcome) -> Option<&'static str> {
    outcome.said["eth0"].refusal.as_ref().map(|(reason, _)| *reason)
}

#[test]
fn an_order_comes_before_the_file_until_it_says_that_it_is_over() {
    let (mut state, want) = attached();
    state.orders.insert("eth0".into(), order(on_standby(&want), 1));
    let outcome = decide(&mut state);
    assert_eq!(outcome.wants[0].spec.goal, Goal::Standby);
    assert_ne!(outcome.wants[0].generation, want.generation);
    // The user takes the NIC away, or changes it: that waits.
    state.read("eth0", Read::Removed);
    assert_eq!(decide(&mut state).wants, []);
    state.orders.insert("eth0".into(), over());
    assert!(decide(&mut state).wants[0].deleting);
}

#[test]
fn where_the_vm_stays_the_file_counts_again() {
    let (mut state, want) = attached();
    state.orders.insert("eth0".into(), order(on_standby(&want), 1));
    decide(&mut state);
    state.orders.insert("eth0".into(), over());
    let outcome = decide(&mut state);
    assert_eq!(outcome.wants, [want]);
    state.orders.clear();
    assert_eq!(decide(&mut state).wants, []);
}

/// It may have been removed by mistake, while the VM is on its way.
#[test]
fn an_order_that_is_gone_or_not_understood_changes_nothing() {
    let (mut state, want) = attached();
    state.orders.insert("eth0".into(), order(on_standby(&want), 1));
    decide(&mut state);
    state.orders.clear();
    for _ in 0..2 {
        let outcome = decide(&mut state);
        assert_eq!(outcome.wants, []);
        assert_eq!(reason(&outcome), Some(reasons::FILE_UNKNOWN));
        state.orders.insert("eth0".into(), parse("{"));
    }
    // Of another NIC of that name, or with other devices.
    let mut others = [(); 3].map(|()| on_standby(&want));
    others[0].nic.uid = "another".into();
    others[1].standby = StandbyKind::None;
    others[2].port_instance_id = Some("another".into());
    for other in others {
        state.orders.insert("eth0".into(), order(other, 2));
        let outcome = decide(&mut state);
        assert_eq!(
            (outcome.wants.len(), reason(&outcome)),
            (0, Some(reasons::FILE_UNKNOWN))
        );
    }
}

#[test]
fn two_orders_are_never_the_same_version() {
    let (_, want) = attached();
    let version = |reading: Reading| match reading {
        Reading::Says(_, version) => version,
        Reading::Unknown(why) => panic!("{why}"),
    };
    let [first, again] = [1, 2].map(|serial| version(order(on_standby(&want), serial)));
    assert_ne!(first, again);
}

/// A NIC that comes from another host.
#[test]
fn a_nic_comes_by_an_order_alone_if_it_can() {
    let (_, want) = attached();
    let arriving = |change: fn(&mut NicAttachmentSpec), state: &mut State| {
        let mut spec = on_standby(&want);
        spec.nic.uid = "uid-of-another-host".into();
        change(&mut spec);
        state.orders.insert("eth0".into(), order(spec, 1));
        decide(state)
    };
    let with_network = || {
        let mut state = State::default();
        state.read("fast", Read::Asks(file::Asked::Network(Box::new(network())), 1));
        state
    };
    let none = arriving(|_| {}, &mut State::default());
    assert_eq!(
        (none.wants.len(), reason(&none)),
        (0, Some(reasons::NETWORK_NOT_FOUND))
    );
    let card = arriving(|spec| spec.mac = "52:54:00:00:00:ff".into(), &mut with_network());
    assert_eq!(
        (card.wants.len(), reason(&card)),
        (0, Some(reasons::MAC_NOT_ALLOWED))
    );
    let mut busy = with_network();
    let mut other = nic();
    other.spec.mac = Some(want.spec.mac.clone());
    busy.read("eth7", Read::Asks(file::Asked::Nic(Box::new(other)), 3));
    decide(&mut busy);
    let taken = arriving(|_| {}, &mut busy);
    assert_eq!(
        (taken.wants.len(), reason(&taken)),
        (0, Some(reasons::MAC_CONFLICT))
    );

    let outcome = arriving(|_| {}, &mut with_network());
    let [arrived] = <[Want; 1]>::try_from(outcome.wants).unwrap();
    assert_eq!(
        (arrived.id.uid.as_str(), arrived.spec.mac),
        ("uid-of-another-host", want.spec.mac.clone())
    );
    assert_eq!(arrived.spec.pod, decide::vm(Path::new("/run/vms/vm1.qmp")));
}

/// The VM would be cut off there.
#[test]
fn a_network_that_has_only_the_name_is_refused() {
    use hybridnic_api::v1alpha1::MacvtapMode;
    let (_, want) = attached();
    let of = |change: fn(&mut NicAttachmentSpec)| {
        let mut state = State::default();
        state.read("fast", Read::Asks(file::Asked::Network(Box::new(network())), 1));
        let mut spec = on_standby(&want);
        change(&mut spec);
        state.orders.insert("eth0".into(), order(spec, 1));
        let outcome = decide(&mut state);
        outcome.said["eth0"].refusal.clone().map(|(_, why)| why)
    };
    assert_eq!(of(|_| {}), None);
    assert_eq!(
        of(|spec| spec.l2.spoof_check = false),
        None,
        "it may be another there"
    );
    let why = of(|spec| spec.l2.mtu = Some(9000)).unwrap();
    assert!(why.ends_with("another mtu"), "{why}");
    let why = of(|spec| (spec.l2.trust, spec.l2.macvtap_mode) = (true, MacvtapMode::Vepa)).unwrap();
    assert!(why.ends_with("another macvtapMode, another trust"), "{why}");
}
