use hybridnic_api::v1alpha1::{MacPolicy, MacRange};

use super::{
    super::file::tests::{network, nic},
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
    let mut made = 0;
    state.decide(&host(), |_| {
        made += 1;
        format!("uid-{made}")
    })
}

fn asks(asked: AskedNic) -> Reading {
    Reading::Asks(Asked::Nic(Box::new(asked)), 1)
}

fn asks_network() -> Reading {
    Reading::Asks(Asked::Network(Box::new(network())), 1)
}

fn with_mac(mac: &str) -> AskedNic {
    let mut nic = nic();
    nic.spec.mac = Some(mac.into());
    nic
}

/// With a network and a NIC on it.
fn attached() -> (State, Want) {
    let mut state = State::default();
    state.read("fast", asks_network());
    state.read("eth0", asks(nic()));
    let outcome = decide(&mut state);
    let [want] = <[Want; 1]>::try_from(outcome.wants).unwrap();
    (state, want)
}

fn reason(outcome: &Outcome, name: &str) -> Option<&'static str> {
    outcome.said[name].refusal.as_ref().map(|(reason, _)| *reason)
}

#[test]
fn a_nic_is_wanted_once_its_network_is_known() {
    let mut state = State::default();
    state.read("eth0", asks(nic()));
    let outcome = decide(&mut state);
    assert_eq!(outcome.wants, []);
    assert_eq!(reason(&outcome, "eth0"), Some(reasons::NETWORK_NOT_FOUND));

    state.read("fast", asks_network());
    let outcome = decide(&mut state);
    assert_eq!((reason(&outcome, "eth0"), reason(&outcome, "fast")), (None, None));
    let want = &outcome.wants[0];
    assert_eq!(
        (want.id.uid.as_str(), want.spec.goal, want.deleting, want.created),
        ("uid-1", Goal::FastPath, false, 7)
    );
    assert_eq!(want.socket.as_deref(), Some(Path::new("/run/vms/vm1.qmp")));
    assert_eq!(want.spec.l2, network::l2(&network()));
    assert_eq!(state.pools(), [network::pool("fast", &network())]);
    // Nothing new: nothing is said to the NIC.
    assert_eq!(decide(&mut state).wants, []);
}

#[test]
fn two_nics_of_a_socket_have_one_vm_and_two_addresses() {
    let (mut state, first) = attached();
    state.read("eth1", asks(nic()));
    let second = decide(&mut state).wants.remove(0);
    assert_eq!(first.spec.pod, second.spec.pod);
    assert_ne!(first.spec.mac, second.spec.mac);
    assert_ne!(
        vm(Path::new("/run/vms/vm1.qmp")).uid,
        vm(Path::new("/run/vms/vm2.qmp")).uid
    );
}

#[test]
fn what_is_not_understood_changes_nothing() {
    let (mut state, want) = attached();
    for reading in [
        Reading::Unknown(Some(2), "no YAML".into()),
        Reading::Missing,
        Reading::Unproven,
    ] {
        state.read("eth0", reading.clone());
        let outcome = decide(&mut state);
        assert_eq!(
            (outcome.wants, outcome.forgotten),
            (vec![], vec![]),
            "{reading:?}"
        );
        assert_eq!(state.nics["eth0"].want, want);
    }
    state.read("eth0", Reading::Unknown(Some(2), "no YAML".into()));
    let outcome = decide(&mut state);
    assert_eq!(reason(&outcome, "eth0"), Some(reasons::FILE_UNKNOWN));
    let (_, why) = outcome.said["eth0"].refusal.as_ref().unwrap();
    assert!(
        why.contains("no YAML") && why.contains("stays as it was"),
        "{why}"
    );
    // The same of its network.
    state.read("eth0", asks(nic()));
    state.read("fast", Reading::Unknown(Some(2), "no YAML".into()));
    let outcome = decide(&mut state);
    assert_eq!((outcome.wants, state.pools().len()), (vec![], 1));
}

#[test]
fn a_file_that_was_removed_is_the_end_of_its_nic_and_the_next_one_waits_for_it() {
    let (mut state, want) = attached();
    state.read("eth0", Reading::Removed);
    let outcome = decide(&mut state);
    assert!(outcome.wants[0].deleting);
    assert_eq!(outcome.wants[0].id, want.id);
    assert_eq!(outcome.forgotten, Vec::<String>::new(), "it is here yet");

    // Written again, with another address: it is another NIC.
    state.read("eth0", asks(with_mac("02:00:00:00:00:01")));
    let outcome = decide(&mut state);
    assert_eq!(outcome.wants, []);
    assert_eq!(reason(&outcome, "eth0"), Some(reasons::WAITING_FOR_DETACH));
    assert_eq!(state.left(&want.id.uid).as_deref(), Some("eth0"));
    let mut any = network();
    any.macs = MacPolicy::Any;
    state.read("fast", Reading::Asks(Asked::Network(Box::new(any)), 2));
    let want = state.decide(&host(), |_| "another".into()).wants.remove(0);
    assert_eq!(
        (want.id.uid.as_str(), want.spec.mac.as_str()),
        ("another", "02:00:00:00:00:01")
    );

    state.read("eth0", Reading::Removed);
    decide(&mut state);
    state.left("another");
    assert_eq!(decide(&mut state).forgotten, ["eth0"]);
}

#[test]
fn a_network_stays_while_nics_are_attached_to_it() {
    let (mut state, want) = attached();
    state.read("fast", Reading::Removed);
    let outcome = decide(&mut state);
    assert_eq!(reason(&outcome, "fast"), Some(reasons::NETWORK_IN_USE));
    assert_eq!((outcome.wants, state.pools().len()), (vec![], 1));
    state.read("eth0", Reading::Removed);
    decide(&mut state);
    state.left(&want.id.uid);
    assert_eq!(decide(&mut state).forgotten.len(), 2);
    assert_eq!(state.pools(), []);
}

/// The agent was started again, and knows the NIC from its journal.
#[test]
fn what_cannot_change_is_compared_with_what_is_held() {
    let (_, want) = attached();
    let again = |asked: AskedNic| {
        let mut state = State::default();
        state.nics.insert("eth0".into(), Nic { want: want.clone() });
        state.read("fast", asks_network());
        state.read("eth0", asks(asked));
        decide(&mut state)
    };
    let outcome = again(nic());
    assert_eq!((outcome.wants.len(), reason(&outcome, "eth0")), (0, None));
    let mut other = nic();
    other.socket = "/run/vms/vm2.qmp".into();
    let mut moved = nic();
    moved.spec.network = "slow".into();
    let mut bonded = nic();
    bonded.spec.pairing = hybridnic_api::v1alpha1::Pairing::Bond;
    for asked in [other, moved, bonded, with_mac("02:00:00:00:00:01")] {
        let outcome = again(asked);
        assert_eq!(
            (outcome.wants.len(), reason(&outcome, "eth0")),
            (0, Some(reasons::FILE_UNKNOWN))
        );
    }
    let mut changed = nic();
    changed.spec.no_free_vf = hybridnic_api::v1alpha1::NoFreeVf::Wait;
    assert_eq!(again(changed).wants.len(), 1);
}

#[test]
fn what_may_change_is_wanted_so() {
    let (mut state, want) = attached();
    assert_eq!(want.spec.aside, None);
    let mut told = nic();
    told.spec.path = hybridnic_api::v1alpha1::WantedPath::Standby;
    state.read("eth0", Reading::Asks(Asked::Nic(Box::new(told)), 2));
    let told = decide(&mut state).wants.remove(0);
    let aside = hybridnic_api::v1alpha1::Aside::GiveVfBack;
    assert_eq!(
        (told.spec.aside, told.spec.goal, told.id),
        (Some(aside), Goal::FastPath, want.id)
    );
}

#[test]
fn an_address_has_one_nic_and_is_nobody_elses() {
    let (mut state, first) = attached();
    let mut open = network();
    open.macs = MacPolicy::Any;
    open.mac_range = Some(MacRange {
        from: "52:54:00:00:00:00".into(),
        to: "52:54:00:00:00:ff".into(),
    });
    state.read("fast", Reading::Asks(Asked::Network(Box::new(open)), 2));
    for (mac, why) in [
        (first.spec.mac.as_str(), reasons::MAC_CONFLICT),
        ("52:54:00:00:00:ff", reasons::MAC_NOT_ALLOWED),
    ] {
        state.read("eth1", asks(with_mac(mac)));
        assert_eq!(reason(&decide(&mut state), "eth1"), Some(why), "{mac}");
    }
    // Also of a NIC whose file is not understood any more.
    state.understood.clear();
    state.read("eth0", Reading::Unknown(None, "no YAML".into()));
    state.read("eth1", asks(with_mac(&first.spec.mac)));
    assert_eq!(reason(&decide(&mut state), "eth1"), Some(reasons::MAC_CONFLICT));
    state.read("eth1", asks(with_mac("52:54:00:00:00:01")));
    assert_eq!(decide(&mut state).wants[0].spec.mac, "52:54:00:00:00:01");
    // Where the PFs cannot be read, none of their addresses is known.
    state.read("eth2", asks(nic()));
    let blind = Host {
        cards: None,
        ..host()
    };
    let outcome = state.decide(&blind, |_| "uid".into());
    assert_eq!(reason(&outcome, "eth2"), Some(reasons::VF_UNKNOWN));
}

#[test]
fn what_was_never_understood_is_forgotten_with_its_file() {
    let mut state = State::default();
    state.read("eth0", Reading::Unknown(Some(1), "no YAML".into()));
    let outcome = decide(&mut state);
    assert_eq!(outcome.said["eth0"].kind, Kind::Unknown);
    state.read("eth0", Reading::Removed);
    let outcome = decide(&mut state);
    assert_eq!(
        (outcome.forgotten.as_slice(), outcome.said.len()),
        (["eth0".to_owned()].as_slice(), 0)
    );
    assert_eq!(state.readings.len(), 0);
}
