use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

use hybridnic_api::v1alpha1::MacPolicy::{Any, Generated, InRange};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A NIC that was made at a second, with a uid that sorts as its name.
fn nic(name: &str, vm: &str, network: &str, second: i64) -> VmHybridNic {
    let spec = json!({ "network": network, "vm": { "qemu": { "name": vm } } });
    let spec = serde_json::from_value(spec).unwrap();
    let mut nic = VmHybridNic::new(name, spec);
    nic.metadata.namespace = Some("ns".to_owned());
    nic.metadata.uid = Some(format!("{name}-uid"));
    nic.metadata.creation_timestamp = Some(Time(Timestamp::from_second(second).unwrap()));
    nic
}

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

/// The network's own range: any address of it may be asked for.
fn rules() -> Rules {
    Rules {
        range: Range::of_network("cluster", "net"),
        macs: MacPolicy::Any,
        whose: hash(&["cluster"]),
    }
}

/// What a NIC that is not live gets, beside these NICs and no cards.
fn given(
    nic: &VmHybridNic,
    rules: Rules,
    nics: &[VmHybridNic],
    handed_out: &mut HandedOut,
) -> Result<Mac, Error> {
    let lookup = Lookup {
        holders: &holders(nics),
        is_card: &|_| false,
        is_unread: &|_| false,
    };
    let given = assign(nic, rules, false, &lookup, handed_out)?;
    assert_eq!(given.kept, None);
    Ok(given.mac)
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
    let mac = given(&me, rules(), std::slice::from_ref(&me), &mut HandedOut::default()).unwrap();
    assert_eq!(mac.to_string(), A);
}

fn refuse(nic: &mut VmHybridNic) {
    let no = conditions::NewCondition::no(types::ACCEPTED, "NamespaceNotAllowed", "");
    let conditions = &mut nic.status.get_or_insert_default().conditions;
    conditions::set(conditions, None, Timestamp::UNIX_EPOCH, no);
}

#[test]
fn conflicts() {
    let on = |network: &str, mut nic: VmHybridNic| {
        nic.spec.network = network.to_owned();
        nic
    };
    let refused = |mut nic: VmHybridNic| {
        refuse(&mut nic);
        nic
    };
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
        (
            "older that was refused",
            refused(nic_at("o", 4, Some(A), None)),
            true,
        ),
        (
            "older that was refused and has it",
            refused(nic_at("o", 4, Some(A), Some(A))),
            false,
        ),
        // Asking alone takes nothing from other networks' NICs; having it does.
        (
            "older of another network",
            on("other", nic_at("o", 4, Some(A), None)),
            true,
        ),
        (
            "one of another network",
            on("other", nic_at("o", 6, Some(A), Some(A))),
            false,
        ),
    ];
    for (case, other, mine) in cases {
        let me = nic_at("me", 5, Some(A), None);
        let got = given(
            &me,
            rules(),
            &[other.clone(), me.clone()],
            &mut HandedOut::default(),
        );
        assert_eq!(got.is_ok(), mine, "{case}: {got:?}");
        if let Err(error) = got {
            assert_eq!(
                error,
                Error::Conflict {
                    mac: A.parse().unwrap(),
                    owner: format!("the NIC {} of this namespace", other.name_any())
                }
            );
        }
    }
}

#[test]
fn of_another_namespace_nobody_is_told_who_is_in_it() {
    let me = nic_at("me", 5, Some(A), None);
    let mut other = nic_at("secret", 4, Some(A), Some(A));
    other.metadata.namespace = Some("secrets".to_owned());
    let refusal = given(&me, rules(), &[other, me.clone()], &mut HandedOut::default()).unwrap_err();
    let refusal = refusal.to_string();
    assert!(
        refusal.contains("a NIC of another namespace") && !refusal.contains("secret"),
        "{refusal}"
    );
}

#[test]
fn what_a_network_allows() {
    let range = Range::parse(&MacRange {
        from: "02:00:00:00:00:08".into(),
        to: "02:00:00:00:00:0f".into(),
    })
    .unwrap();
    let ask = |mac: &str, macs, card: bool| {
        let me = nic_at("me", 5, Some(mac), None);
        let lookup = Lookup {
            holders: &holders(&[]),
            is_card: &|_| card,
            is_unread: &|_| false,
        };
        let given = assign(
            &me,
            Rules {
                range,
                macs,
                whose: 1,
            },
            false,
            &lookup,
            &mut HandedOut::default(),
        );
        given.map(|_| ()).map_err(|error| error.to_string())
    };
    let outside = "02:00:00:00:00:10";
    for (mac, macs, card, refusal) in [
        (A, InRange, false, None),
        (A, Any, false, None),
        (A, Generated, false, Some("says macs: Generated")),
        (
            outside,
            InRange,
            false,
            Some("MAC range, 02:00:00:00:00:08 to 02:00:00:00:00:0f;"),
        ),
        (outside, Any, false, None),
        (A, InRange, true, Some("the address of a card of a node")),
        (A, Any, true, Some("the address of a card of a node")),
        // Never, though all may be asked for.
        (
            "06:00:00:00:00:01",
            Any,
            false,
            Some("in which free VFs are parked"),
        ),
        (
            "00:00:5e:00:01:01",
            Any,
            false,
            Some("a virtual router's (VRRP, CARP)"),
        ),
        (
            "00:00:5E:00:02:ff",
            Any,
            false,
            Some("a virtual router's (VRRP for IPv6)"),
        ),
        ("00:00:0c:07:ac:00", Any, false, Some("a virtual router's (HSRP)")),
        (
            "00:00:0c:9f:f1:23",
            Any,
            false,
            Some("a virtual router's (HSRP version 2)"),
        ),
        (
            "00:05:73:a0:0f:ff",
            Any,
            false,
            Some("a virtual router's (HSRP for IPv6)"),
        ),
        ("00:07:b4:00:01:02", Any, false, Some("a virtual router's (GLBP)")),
        ("01:00:5e:00:00:01", Any, false, Some("a group's")),
        ("ff:ff:ff:ff:ff:ff", Any, false, Some("a group's")),
        ("00:00:00:00:00:00", Any, false, Some("nobody's")),
        // Their neighbours are anybody's.
        ("00:00:5e:00:03:01", Any, false, None),
        ("00:00:5e:00:00:ff", Any, false, None),
        ("00:00:0c:07:ad:00", Any, false, None),
        ("00:00:0c:9f:ef:ff", Any, false, None),
        ("00:05:73:a0:10:00", Any, false, None),
        ("00:07:b4:01:00:00", Any, false, None),
        ("04:00:00:00:00:01", Any, false, None),
    ] {
        let got = ask(mac, macs, card);
        match refusal {
            None => assert_eq!(got, Ok(()), "{mac} {macs:?}"),
            Some(words) => assert!(
                got.as_ref().is_err_and(|said| said.contains(words)),
                "{mac} {macs:?}: {got:?}"
            ),
        }
    }
}

#[test]
fn a_live_nic_keeps_its_address_and_says_so() {
    let none = Rules {
        macs: MacPolicy::Generated,
        ..rules()
    };
    let me = nic_at("me", 5, Some(A), Some(A));
    let of = |live, nic: &VmHybridNic, rules, others: &[VmHybridNic]| {
        let lookup = Lookup {
            holders: &holders(others),
            is_card: &|_| false,
            is_unread: &|_| false,
        };
        assign(nic, rules, live, &lookup, &mut HandedOut::default())
    };
    let kept = of(true, &me, none, &[]).unwrap();
    assert_eq!(
        (kept.mac.to_string().as_str(), kept.kept),
        (A, Some(Error::NotGenerated))
    );
    assert_eq!(
        of(false, &me, none, &[]),
        Err(Error::NotGenerated),
        "its VM starts again"
    );
    let asks = nic_at("me", 5, Some(A), None);
    assert_eq!(
        of(true, &asks, none, &[]),
        Err(Error::NotGenerated),
        "another was live"
    );
    // So does a NIC whose namesake on another network once had it; on its own network that never was.
    let mut other = nic_at("o", 4, Some(A), Some(A));
    let within = of(true, &me, rules(), std::slice::from_ref(&other));
    assert!(matches!(within, Err(Error::Conflict { .. })), "{within:?}");
    other.spec.network = "other".to_owned();
    let kept = of(true, &me, rules(), std::slice::from_ref(&other)).unwrap();
    assert!(matches!(kept.kept, Some(Error::Conflict { .. })), "{kept:?}");
    assert!(of(false, &me, rules(), &[other]).is_err());
}

#[test]
fn what_was_handed_out_is_taken_though_the_cache_does_not_show_it() {
    let (first, me) = (nic_at("first", 9, Some(A), None), nic_at("me", 5, Some(A), None));
    let mut handed_out = HandedOut::default();
    given(&first, rules(), std::slice::from_ref(&first), &mut handed_out).unwrap();
    // The older one becomes known only now; the address is live already.
    let got = given(&me, rules(), &[first.clone(), me.clone()], &mut handed_out);
    assert!(matches!(got, Err(Error::Conflict { .. })));
    handed_out.settle(&first);
    assert!(given(&me, rules(), &[first, me.clone()], &mut handed_out).is_ok());
}

#[test]
fn a_generated_address_stays_and_comes_again() {
    let me = nic_at("me", 5, None, None);
    let mut handed_out = HandedOut::default();
    let mac = given(&me, rules(), &[], &mut handed_out).unwrap();
    let again = given(&me, rules(), &[], &mut handed_out).unwrap();
    assert_eq!(again, mac, "before the status shows it");
    let shown = nic_at("me", 5, None, Some(&mac.to_string()));
    let again = given(&shown, rules(), std::slice::from_ref(&shown), &mut handed_out).unwrap();
    assert_eq!(again, mac);
    assert!(handed_out.0.is_empty());
    let again = given(&me, rules(), &[], &mut HandedOut::default()).unwrap();
    assert_eq!(again, mac, "after the status was lost");
    // Not an address that another NIC has, or may ask for, or a card's.
    let asked = nic_at("o", 4, Some(&mac.to_string()), None);
    assert_ne!(
        given(
            &me,
            rules(),
            std::slice::from_ref(&asked),
            &mut HandedOut::default()
        ),
        Ok(mac)
    );
    let mut refused = asked;
    refuse(&mut refused);
    assert_eq!(
        given(
            &me,
            rules(),
            std::slice::from_ref(&refused),
            &mut HandedOut::default()
        ),
        Ok(mac)
    );
    let lookup = Lookup {
        holders: &holders(&[]),
        is_card: &|asked| asked == mac,
        is_unread: &|_| false,
    };
    let other = assign(&me, rules(), false, &lookup, &mut HandedOut::default()).unwrap();
    assert_ne!(other.mac, mac);
}

#[test]
fn a_full_range_is_said_to_be_full() {
    let range = Range::parse(&MacRange {
        from: "02:00:00:00:00:00".into(),
        to: "02:00:00:00:00:02".into(),
    })
    .unwrap();
    let rules = Rules { range, ..rules() };
    let mut handed_out = HandedOut::default();
    let mut got = HashSet::new();
    for n in 0..3 {
        got.insert(
            given(
                &nic_at(&format!("n{n}"), n, None, None),
                rules,
                &[],
                &mut handed_out,
            )
            .unwrap(),
        );
    }
    assert_eq!(got.len(), 3);
    let last = given(&nic_at("n3", 3, None, None), rules, &[], &mut handed_out);
    assert_eq!(last, Err(Error::Exhausted));
    // A range that belongs to parked VFs only is full at once, without counting through it.
    let parked = Range::parse(&MacRange {
        from: "06:00:00:00:00:00".into(),
        to: "07:ff:ff:ff:ff:ff".into(),
    });
    let rules = Rules {
        range: parked.unwrap(),
        ..rules
    };
    let none = given(&nic_at("n", 3, None, None), rules, &[], &mut HandedOut::default());
    assert_eq!(none, Err(Error::Exhausted));
}

#[test]
fn two_clusters_with_one_range_choose_different_addresses_for_nics_of_one_name() {
    let of = |cluster: &str| {
        let rules = Rules {
            whose: hash(&[cluster]),
            ..rules()
        };
        given(&nic_at("n", 3, None, None), rules, &[], &mut HandedOut::default()).unwrap()
    };
    assert_eq!(of("one"), of("one"));
    assert_ne!(of("one"), of("other"));
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
            prop_assert!(range.has(*mac) && reserved(*mac).is_none());
        }
        match picked {
            Some(mac) => prop_assert_eq!(asked.last(), Some(&mac)),
            None => prop_assert!(asked.len() <= refused),
        }
    }

    #[test]
    fn all_of_a_small_range_are_found(first in 1_u64..0xff_ffff_ffff, length in 1_u64..60, seed in ".{0,8}") {
        let range = Range { first, last: first + length - 1 };
        let unicast = (range.first..=range.last).filter(|mac| reserved(Mac(*mac)).is_none()).count();
        let taken = RefCell::new(HashSet::new());
        while let Some(mac) = range.pick(&seed, |mac| taken.borrow().contains(&mac)) {
            taken.borrow_mut().insert(mac);
        }
        prop_assert_eq!(taken.into_inner().len(), unicast);
    }

    #[test]
    fn no_two_nics_own_one_address(
        asks in proptest::collection::vec(
            (0_i64..4, proptest::option::of(0_u64..3), proptest::option::of(0_u64..3), any::<bool>()), 1..7,
        ),
    ) {
        let mac = |n: Option<u64>| n.map(|n| Mac(0x0200_0000_0000 | n).to_string());
        let nics: Vec<_> = asks.iter().enumerate()
            .map(|(n, (second, asks, has, other))| {
                // A status holds what the spec asks for, or a generated address.
                let has = if asks.is_some() { has.and(*asks) } else { *has };
                let mut nic = nic_at(&format!("n{n}"), *second, mac(*asks).as_deref(), mac(has).as_deref());
                if *other {
                    nic.spec.network = "other".to_owned();
                }
                nic
            })
            .collect();
        let mut handed_out = HandedOut::default();
        let mut owners = HashSet::new();
        for nic in &nics {
            if let Ok(mac) = given(nic, rules(), &nics, &mut handed_out) {
                prop_assert!(owners.insert(mac), "{mac} twice");
            }
        }
    }
}

#[test]
fn the_address_of_a_nic_that_cannot_be_read_is_nobody_elses() {
    let mut me = nic_at("me", 1, None, None);
    let assigned = |me: &VmHybridNic, unread: Option<Mac>| {
        let lookup = Lookup {
            holders: &holders(&[]),
            is_card: &|_| false,
            is_unread: &|mac| Some(mac) == unread,
        };
        assign(me, rules(), false, &lookup, &mut HandedOut::default()).map(|given| given.mac)
    };
    let generated = assigned(&me, None).unwrap();
    assert_ne!(assigned(&me, Some(generated)).unwrap(), generated);
    me.spec.mac = Some(generated.to_string());
    assert_eq!(assigned(&me, Some(generated)), Err(Error::Unread(generated)));
    // A NIC that has it already keeps it: the two cannot be told apart, and a live NIC does not lose its address.
    me.status.get_or_insert_default().mac = Some(generated.to_string());
    assert_eq!(assigned(&me, Some(generated)), Ok(generated));
}
