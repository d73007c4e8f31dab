//! Guests that bond VF and standby by themselves, or should.

use super::*;

/// The guest bonds VF and standby: nothing is asked of its virtio-net driver, except that it has started.
#[test]
fn a_guest_that_bonds_gets_its_vf_without_the_standby_feature() {
    let bond = Ask {
        pairing: Pairing::Bond,
        ..TO_VF
    };
    let no = Learnt::default();
    let plain = Guest {
        failover: Some(false),
        ..GUEST
    };
    let boots = Guest {
        failover: None,
        ..GUEST
    };
    does(bond, seen(plain, true, PARKED), no, Step::ConfigureVf);
    does(bond, seen(plain, true, READY), no, Step::PlugVf);
    // A QEMU that does not know what its guest's driver has accepted.
    does(bond, seen(GUEST, true, READY), no, Step::PlugVf);
    does(bond, seen(boots, false, PARKED), no, Step::StandbyUp);
    waits(
        bond,
        seen(boots, true, PARKED),
        no,
        Standby,
        reasons::GUEST_NOT_BONDED,
    );
    // From there on it is as any other.
    let on_vf = Guest {
        failover: Some(false),
        ..FAST
    };
    does(bond, seen(on_vf, true, READY), no, Step::AwaitGuest);
    does(
        bond,
        seen(on_vf, true, READY),
        taught(|l| l.moved = true),
        Step::StandbyDown,
    );
    done(bond, seen(on_vf, false, READY), no, FastPath);
    // A guest that restarts has its standby, and as long as it needs.
    let restarts = Guest {
        uses_vf: false,
        failover: None,
        ..FAST
    };
    does(bond, seen(restarts, false, READY), no, Step::StandbyUp);
    waits(
        bond,
        seen(restarts, true, READY),
        no,
        Standby,
        reasons::GUEST_NOT_BONDED,
    );
    let started = Guest {
        failover: Some(false),
        ..restarts
    };
    does(bond, seen(started, true, READY), no, Step::AwaitGuest);
}

#[test]
fn a_guest_without_a_bond_is_told_what_it_was_seen_to_do() {
    let told = |pairing, sends| {
        let ask = Ask { pairing, ..TO_VF };
        let learnt = taught(|l| l.ignores_vf = Some(sends));
        // It has no network while the standby is down.
        let gone_without = Guest {
            uses_vf: false,
            ..FAST
        };
        does(ask, seen(gone_without, false, READY), learnt, Step::UnplugVf);
        does(ask, seen(FAST, true, READY), learnt, Step::UnplugVf);
        match next(&ask, &seen(GUEST, true, PARKED), &learnt) {
            Decision::Wait(wait) => (wait.reason, wait.message),
            other => panic!("{other:?}"),
        }
    };
    let ways = [Sends::BesideVf, Sends::ByStandby, Sends::ByNeither];
    let bonded = ways.map(|sends| told(Pairing::Bond, sends));
    assert_eq!(bonded[0].0, reasons::GUEST_NOT_BONDED);
    assert!(
        bonded[0].1.contains("two interfaces with one MAC"),
        "{}",
        bonded[0].1
    );
    for (reason, message) in &bonded {
        assert!(
            message.contains("bond") && message.contains("primary"),
            "{reason}: {message}"
        );
    }
    for (reason, message) in &bonded[1..] {
        assert_eq!(*reason, reasons::GUEST_IGNORES_VF, "{message}");
    }
    let messages: std::collections::BTreeSet<_> = bonded.iter().map(|(_, message)| message).collect();
    assert_eq!(messages.len(), ways.len(), "each says what was seen");
    for sends in ways {
        let (reason, message) = told(Pairing::NetFailover, sends);
        assert_eq!(reason, reasons::GUEST_IGNORES_VF);
        assert!(message.contains("net_failover"), "{message}");
    }
}

/// A guest without net_failover gets a hint to the alternative.
#[test]
fn a_guest_without_the_standby_feature_is_pointed_to_a_bond() {
    let deaf = Guest {
        failover: Some(false),
        ..GUEST
    };
    match next(&TO_VF, &seen(deaf, true, PARKED), &Learnt::default()) {
        Decision::Wait(wait) => assert!(wait.message.contains("pairing: Bond"), "{}", wait.message),
        other => panic!("{other:?}"),
    }
}
