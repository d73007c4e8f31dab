use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::testing::nic;

fn nic_at(name: &str, second: i64, requested: Option<&str>, has: Option<&str>) -> VmHybridNic {
    let mut nic = nic(name, "vm", "net", second);
    nic.spec.mac = requested.map(ToOwned::to_owned);
    nic.status.get_or_insert_default().mac = has.map(ToOwned::to_owned);
    nic
}

/// What the operator's cache would answer.
fn holders(nics: &[VmHybridNic]) -> impl Fn(Mac) -> Vec<Arc<VmHybridNic>> {
    move |mac| {
        let has = |nic: &&VmHybridNic| {
            in_status(nic) == Some(mac)
                || nic.spec.mac.as_deref().and_then(|mac| mac.parse().ok()) == Some(mac)
        };
        nics.iter().filter(has).cloned().map(Arc::new).collect()
    }
}

fn range() -> Range {
    Range::of_network("cluster", "net")
}

const A: &str = "02:00:00:00:00:0a";

#[test]
fn addresses_parse_and_print() {
    assert_eq!(
        "0A:bC:00:ff:10:01".parse::<Mac>().unwrap().to_string(),
        "0a:bc:00:ff:10:01"
    );
    for bad in [
        "",
        "02",
        "02:00:00:00:00",
        "02:00:00:00:00:00:00",
        "02:00:00:00:00:0g",
        "2:00:00:00:00:00",
        "+2:00:00:00:00:00",
    ] {
        assert!(bad.parse::<Mac>().is_err(), "{bad}");
    }
}

#[test]
fn a_requested_address_is_given_in_lower_case() {
    let me = nic_at("me", 5, Some("02:00:00:00:00:0A"), None);
    let mac = assign(
        &me,
        range(),
        holders(std::slice::from_ref(&me)),
        &mut HandedOut::default(),
    )
    .unwrap();
    assert_eq!(mac.to_string(), A);
}

#[test]
fn conflicts() {
    // Name, age, asks for, has; then whether "me", of second 5, which asks for A, gets it.
    let cases = [
        ("older that asks", nic_at("o", 4, Some(A), None), false),
        (
            "older that asks in upper case",
            nic_at("o", 4, Some("02:00:00:00:00:0A"), None),
            false,
        ),
        ("older that has", nic_at("o", 4, Some(A), Some(A)), false),
        ("younger that asks", nic_at("o", 6, Some(A), None), true),
        (
            "younger that had it generated",
            nic_at("o", 6, None, Some(A)),
            false,
        ),
        ("older of the same second", nic_at("a", 5, Some(A), None), false),
        ("younger of the same second", nic_at("z", 5, Some(A), None), true),
    ];
    for (case, other, mine) in cases {
        let me = nic_at("me", 5, Some(A), None);
        let got = assign(
            &me,
            range(),
            holders(&[other.clone(), me.clone()]),
            &mut HandedOut::default(),
        );
        assert_eq!(got.is_ok(), mine, "{case}: {got:?}");
        if let Err(error) = got {
            assert_eq!(
                error,
                Error::Conflict {
                    mac: A.parse().unwrap(),
                    owner: format!("ns/{}", other.name_any())
                }
            );
        }
    }
}

#[test]
fn another_network_may_use_the_same_address() {
    let me = nic_at("me", 5, Some(A), None);
    let mut other = nic_at("o", 4, Some(A), Some(A));
    other.spec.network = "other".to_owned();
    assert!(
        assign(
            &me,
            range(),
            holders(&[other, me.clone()]),
            &mut HandedOut::default()
        )
        .is_ok()
    );
}

#[test]
fn what_was_handed_out_is_taken_though_the_cache_does_not_show_it() {
    let (first, me) = (nic_at("first", 9, Some(A), None), nic_at("me", 5, Some(A), None));
    let mut handed_out = HandedOut::default();
    assign(
        &first,
        range(),
        holders(std::slice::from_ref(&first)),
        &mut handed_out,
    )
    .unwrap();
    // The older one comes to be known only now; the address is live already.
    let got = assign(
        &me,
        range(),
        holders(&[first.clone(), me.clone()]),
        &mut handed_out,
    );
    assert!(matches!(got, Err(Error::Conflict { .. })));
    handed_out.settle(&first);
    assert!(assign(&me, range(), holders(&[first, me.clone()]), &mut handed_out).is_ok());
}

#[test]
fn a_generated_address_stays_and_comes_again() {
    let me = nic_at("me", 5, None, None);
    let mut handed_out = HandedOut::default();
    let mac = assign(&me, range(), holders(&[]), &mut handed_out).unwrap();
    assert_eq!(
        assign(&me, range(), holders(&[]), &mut handed_out).unwrap(),
        mac,
        "before the status shows it"
    );
    let shown = nic_at("me", 5, None, Some(&mac.to_string()));
    assert_eq!(
        assign(
            &shown,
            range(),
            holders(std::slice::from_ref(&shown)),
            &mut handed_out
        )
        .unwrap(),
        mac
    );
    assert!(handed_out.0.is_empty());
    assert_eq!(
        assign(&me, range(), holders(&[]), &mut HandedOut::default()).unwrap(),
        mac,
        "after the status was lost"
    );
}

#[test]
fn a_full_range_is_said_to_be_full() {
    let range = Range::parse(&MacRange {
        from: "02:00:00:00:00:00".into(),
        to: "02:00:00:00:00:02".into(),
    })
    .unwrap();
    let mut handed_out = HandedOut::default();
    let mut got = HashSet::new();
    for n in 0..3 {
        got.insert(
            assign(
                &nic_at(&format!("n{n}"), n, None, None),
                range,
                holders(&[]),
                &mut handed_out,
            )
            .unwrap(),
        );
    }
    assert_eq!(got.len(), 3);
    let last = assign(&nic_at("n3", 3, None, None), range, holders(&[]), &mut handed_out);
    assert_eq!(last, Err(Error::Exhausted));
}

#[test]
fn default_ranges_are_local_unicast_and_of_the_network() {
    let (a, b) = (
        Range::of_network("cluster", "a"),
        Range::of_network("cluster", "b"),
    );
    assert_ne!(a, b);
    assert_ne!(a, Range::of_network("other", "a"));
    for end in [a.first, a.last] {
        assert!(Mac(end).to_string().starts_with("02:"), "{}", Mac(end));
    }
    assert_eq!(a.last - a.first, 0xff_ffff);
}

proptest! {
    #[test]
    fn text_and_address_agree(value in 0_u64..1 << 48) {
        prop_assert_eq!(Mac(value).to_string().parse::<Mac>(), Ok(Mac(value)));
    }

    #[test]
    fn a_pick_is_free_unicast_and_in_the_range(
        first in 1_u64..1 << 48, length in 0_u64..1 << 44, seed in ".{0,8}", refused in 0_usize..50,
    ) {
        let range = Range { first, last: (first + length).min((1 << 48) - 1) };
        let asked = RefCell::new(Vec::new());
        let picked = range.pick(&seed, |mac| {
            asked.borrow_mut().push(mac);
            asked.borrow().len() <= refused
        });
        let asked = asked.into_inner();
        prop_assert_eq!(asked.iter().collect::<HashSet<_>>().len(), asked.len(), "asked twice");
        for mac in &asked {
            prop_assert!(mac.0 >= range.first && mac.0 <= range.last && mac.0 & GROUP == 0);
        }
        match picked {
            Some(mac) => prop_assert_eq!(asked.last(), Some(&mac)),
            None => prop_assert!(asked.len() <= refused),
        }
    }

    #[test]
    fn all_of_a_small_range_are_found(first in 1_u64..0xff_ffff_ffff, length in 1_u64..60, seed in ".{0,8}") {
        let range = Range { first, last: first + length - 1 };
        let unicast = (range.first..=range.last).filter(|mac| mac & GROUP == 0).count();
        let taken = RefCell::new(HashSet::new());
        while let Some(mac) = range.pick(&seed, |mac| taken.borrow().contains(&mac)) {
            taken.borrow_mut().insert(mac);
        }
        prop_assert_eq!(taken.into_inner().len(), unicast);
    }

    #[test]
    fn no_two_nics_of_a_network_own_one_address(
        asks in proptest::collection::vec((0_i64..4, proptest::option::of(0_u64..3), proptest::option::of(0_u64..3)), 1..7),
    ) {
        let mac = |n: Option<u64>| n.map(|n| Mac(0x0200_0000_0000 | n).to_string());
        let nics: Vec<_> = asks.iter().enumerate()
            .map(|(n, (second, asks, has))| {
                // A status holds what the spec asks for, or a generated address.
                let has = if asks.is_some() { has.and(*asks) } else { *has };
                nic_at(&format!("n{n}"), *second, mac(*asks).as_deref(), mac(has).as_deref())
            })
            .collect();
        let mut handed_out = HandedOut::default();
        let mut owners = HashSet::new();
        for nic in &nics {
            if let Ok(mac) = assign(nic, range(), holders(&nics), &mut handed_out) {
                prop_assert!(owners.insert(mac), "{mac} twice");
            }
        }
    }
}
