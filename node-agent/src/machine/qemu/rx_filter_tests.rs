use proptest::prelude::*;

use super::*;

const ALL_NODES: &str = "33:33:00:00:00:01";
const SOLICITED: &str = "33:33:ff:12:34:56";
const MDNS: &str = "01:00:5e:00:00:fb";

fn filter(groups: &[&str]) -> RxFilter {
    RxFilter {
        name: "sb-a".to_owned(),
        promiscuous: false,
        main_mac: "52:54:00:00:00:01".to_owned(),
        unicast_table: Vec::new(),
        multicast_table: groups.iter().map(|g| (*g).to_owned()).collect(),
        multicast: RxState::Normal,
        multicast_overflow: false,
        unicast_overflow: false,
        vlan: RxState::Normal,
        vlan_table: vec![0],
    }
}

fn macs(list: &[&str]) -> BTreeSet<MacAddr> {
    list.iter().map(|mac| mac.parse().unwrap()).collect()
}

fn received(added: &[&str], all: bool) -> Received {
    Received {
        added: macs(added),
        all,
    }
}

#[test]
fn exactly_the_difference() {
    let change = change(
        &filter(&[ALL_NODES, SOLICITED]),
        &received(&[ALL_NODES, MDNS], false),
    );
    assert_eq!(
        (change.add, change.remove, change.all),
        (macs(&[SOLICITED]), macs(&[MDNS]), None)
    );
    let filter = filter(&[ALL_NODES]);
    assert_eq!(
        super::change(&filter, &received(&[ALL_NODES], false)),
        Change::default()
    );
}

#[test]
fn only_groups_are_taken() {
    let odd = [
        "52:54:00:00:00:02",
        "ff:ff:ff:ff:ff:ff",
        "00:00:00:00:00:00",
        "33:33:00:00:00",
        "33:33:00:00:00:01:02",
        "",
        "not a MAC",
    ];
    assert_eq!(change(&filter(&odd), &Received::default()), Change::default());
}

/// QEMU's table is empty in an overflow. What the macvtap has stays, because a PF may not do better.
#[test]
fn an_overflow_takes_all_and_loses_nothing() {
    let mut full = filter(&[]);
    full.multicast_overflow = true;
    let changed = change(&full, &received(&[ALL_NODES, SOLICITED], false));
    assert_eq!((changed.remove, changed.all), (BTreeSet::new(), Some(true)));
    assert_eq!(change(&full, &received(&[SOLICITED], true)), Change::default());
    // And back.
    let changed = change(&filter(&[MDNS]), &received(&[ALL_NODES, SOLICITED], true));
    assert_eq!((changed.add, changed.all), (macs(&[MDNS]), Some(false)));
    assert_eq!(changed.remove, macs(&[ALL_NODES, SOLICITED]));
}

#[test]
fn nothing_is_taken_off_a_standby_that_rests_as_long_as_there_is_room() {
    let now = received(&[ALL_NODES, SOLICITED], true);
    let kept = change(&filter(&[MDNS]), &now).without_loss(&now);
    assert_eq!(
        (kept.add, kept.remove, kept.all),
        (macs(&[MDNS]), BTreeSet::new(), None)
    );
    let group = |n: usize| format!("33:33:00:00:{:02x}:{:02x}", n / 256, n % 256);
    let groups: Vec<String> = (0..MOST).map(group).collect();
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    let now = received(&groups, false);
    let kept = change(&filter(&[MDNS, SOLICITED]), &now).without_loss(&now);
    assert_eq!(
        (kept.add.len(), kept.remove.len()),
        (2, 2),
        "one goes for each that comes"
    );
}

#[test]
fn the_guest_may_ask_for_all_or_none() {
    let mut all = filter(&[MDNS]);
    all.multicast = RxState::All;
    let changed = change(&all, &received(&[SOLICITED], false));
    assert_eq!((changed.remove, changed.all), (BTreeSet::new(), Some(true)));
    let mut none = filter(&[MDNS]);
    none.multicast = RxState::None;
    none.multicast_overflow = true;
    let changed = change(&none, &received(&[SOLICITED], true));
    assert_eq!((changed.remove, changed.all), (macs(&[SOLICITED]), Some(false)));
}

#[test]
fn what_a_macvtap_cannot_do_is_told() {
    assert_eq!(beyond(&filter(&[MDNS])), Beyond::default());
    let mut asked = filter(&[MDNS]);
    asked.vlan_table = vec![0, 10, 4094];
    assert_eq!(beyond(&asked).vlans, [10, 4094].into());
    asked.unicast_table = vec!["00:00:5e:00:01:0a".to_owned()];
    assert!(beyond(&asked).macs);
    // A table that was full from the start, and has lost what the guest has given up.
    let mut full = asked.clone();
    full.vlan_table = (0..4096).filter(|id| *id != 10).collect();
    assert_eq!(beyond(&full).vlans, BTreeSet::new());
    // Nothing is known about a guest that does not filter VLANs.
    asked.vlan = RxState::All;
    assert_eq!(beyond(&asked).vlans, BTreeSet::new());
    let mut promiscuous = filter(&[MDNS]);
    promiscuous.promiscuous = true;
    assert!(beyond(&promiscuous).macs);
    // A NIC without a driver.
    promiscuous.multicast_table.clear();
    assert!(!beyond(&promiscuous).macs);
}

proptest! {
    /// No matter what the guest asks, in any order: the list stays bounded and holds groups only, and a second look changes
    /// nothing.
    #[test]
    fn bounded_and_at_rest_after_one_change(
        rounds in prop::collection::vec((prop::collection::vec((0u8..4, 0u16..400), 0..300), any::<bool>()), 1..5)
    ) {
        let mut now = Received::default();
        for (groups, overflow) in rounds {
            let table: Vec<String> = groups
                .iter()
                .map(|(first, last)| format!("{first:02x}:33:00:00:{:02x}:{:02x}", last >> 8, last & 0xff))
                .collect();
            let mut asked = filter(&table.iter().map(String::as_str).collect::<Vec<_>>());
            asked.multicast_overflow = overflow;
            let step = change(&asked, &now);
            prop_assert!(step.add.is_disjoint(&now.added) && step.remove.is_subset(&now.added));
            now.added.extend(step.add);
            now.added.retain(|mac| !step.remove.contains(mac));
            now.all = step.all.unwrap_or(now.all);
            prop_assert!(now.added.len() <= MOST && now.added.iter().all(|mac| mac.is_multicast()));
            prop_assert_eq!(change(&asked, &now), Change::default());
            if overflow {
                prop_assert!(now.all);
            }
        }
    }
}
