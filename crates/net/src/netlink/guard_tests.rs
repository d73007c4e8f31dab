//! What the rules of a guard are, without a kernel.

use super::*;

const GUARD: Guard = Guard {
    mac: MacAddr::new([0x52, 0x54, 0, 0, 0, 1]),
    any_source: false,
    any_destination: false,
    tags: false,
    rate: None,
};

#[test]
fn what_differs_has_other_keys() {
    let all = [
        GUARD,
        Guard {
            mac: MacAddr::new([0x52, 0x54, 0, 0, 0, 2]),
            ..GUARD
        },
        Guard {
            any_source: true,
            ..GUARD
        },
        Guard {
            any_destination: true,
            ..GUARD
        },
        Guard { tags: true, ..GUARD },
        Guard {
            rate: Some(100),
            ..GUARD
        },
        Guard {
            rate: Some(200),
            ..GUARD
        },
    ];
    for (n, one) in all.iter().enumerate() {
        for other in &all[n + 1..] {
            assert_ne!(one.keys(PLACES[0]), other.keys(PLACES[0]), "{one:?} {other:?}");
        }
    }
}

#[test]
fn the_keys_stay_as_they_are() {
    let keys: Vec<_> = GUARD
        .keys(PLACES[0])
        .iter()
        .map(|key| (key.way, key.priority, key.protocol, key.handle))
        .collect();
    let drop = 1_987_465_430;
    let expected = [
        (Way::Out, 10, ALL, 1_723_241_127),
        (Way::Out, 11, DOT1Q, drop),
        (Way::Out, 12, DOT1AD, drop),
        (Way::Out, 13, QINQ, drop),
        (Way::Out, 14, ALL, 1_033_407_646),
        (Way::Out, 15, ALL, drop),
        (Way::In, 10, ALL, 957_845_331),
        (Way::In, 11, ALL, 360_065_604),
        (Way::In, 12, ALL, drop),
    ];
    assert_eq!(keys, expected);
}

#[test]
fn each_rule_has_a_priority_of_its_own_and_the_last_takes_the_rest() {
    let rules = GUARD.rules(PLACES[0]);
    for way in Way::ALL {
        let of_way: Vec<_> = rules.iter().filter(|rule| rule.way == way).collect();
        assert!(of_way.is_sorted_by(|a, b| a.priority < b.priority));
        let last = of_way.last().unwrap();
        assert_eq!((last.of, last.verdict), (Match::Everything, Verdict::Drop));
    }
}

#[test]
fn the_two_places_do_not_meet() {
    let [a, b] = PLACES.map(|place| GUARD.keys(place));
    assert!(a.is_disjoint(&b) && a.len() == b.len());
    assert!(a.iter().all(|key| key.priority < PLACES[1]));
}

#[test]
fn a_police_has_the_kernels_size() {
    let nlas = police(40_000);
    let size = |n: usize| rtnetlink::packet_core::Nla::value_len(&nlas[n]);
    assert_eq!([size(0), size(1), size(2)], [56, 1024, 8]);
}
