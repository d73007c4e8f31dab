use hybridnic_api::v1alpha1::{PoolTags, Uplink};
use hybridnic_net::testing;

use super::*;

const WISH: Wish<'_> = Wish {
    network: "n",
    pick: Pick::Any,
    standby_pf: None,
};

fn beside(standby_pf: impl Into<Option<PciAddress>>) -> Wish<'static> {
    Wish {
        standby_pf: standby_pf.into(),
        ..WISH
    }
}

fn of(pick: Pick) -> Wish<'static> {
    Wish { pick, ..WISH }
}

fn setup(vfs: u8) -> (Inventory, Ledger) {
    let dir = tempfile::tempdir().unwrap();
    let mut inventory = testing::make_sysfs(dir.path(), 2, vfs)
        .unwrap()
        .discover()
        .unwrap();
    for pf in &mut inventory.pfs {
        pf.carrier = Some(true);
    }
    let ledger = Ledger::default();
    let uplinks = vec![Uplink {
        pf_names: vec!["*".into()],
        ..Uplink::default()
    }];
    ledger.set_pools(&[NodePool {
        network: "n".into(),
        uplinks,
        tags: PoolTags::None,
        standby_slots: 0,
        l2: None,
    }]);
    (inventory, ledger)
}

#[test]
fn who_gets_no_pf_is_told_that_another_network_is_in_the_way_and_not_which() {
    let (inventory, ledger) = setup(1);
    assert_eq!(ledger.barred(&inventory, "n"), None);
    let pool = |network: &str, pf: &str, tags| NodePool {
        network: network.into(),
        uplinks: vec![Uplink {
            pf_names: vec![pf.into()],
            ..Uplink::default()
        }],
        tags,
        standby_slots: 0,
        l2: None,
    };
    ledger.set_pools(&[
        pool("n", "*", PoolTags::None),
        pool("blue", "ens1", PoolTags::Vlan),
        pool("other", "ens0", PoolTags::None),
    ]);
    let why = ledger.barred(&inventory, "n").unwrap();
    assert!(
        why.contains("PF ens1 also carries another network") && !why.contains("ens0"),
        "{why}"
    );
    assert!(!why.contains("blue"), "a tenant does not see networks: {why}");
    assert_eq!(ledger.barred(&inventory, "other"), None);
    assert_eq!(ledger.barred(&inventory, "nobody's"), None);
}

fn claimant(n: i64) -> Claimant {
    Claimant {
        created: n,
        nic: format!("ns/nic{n}"),
        uid: format!("uid{n}"),
    }
}

#[test]
fn fourteen_nics_get_fourteen_vfs_over_both_pfs_and_the_fifteenth_waits() {
    let (inventory, ledger) = setup(7);
    let mut seen = BTreeSet::new();
    for n in 0..14 {
        let choice = ledger.take(&inventory, &claimant(n), &WISH).unwrap();
        assert!(seen.insert(choice.vf.address));
        assert_eq!(
            choice.pf.address,
            inventory.pfs[usize::try_from(n % 2).unwrap()].address
        );
    }
    assert_eq!(ledger.take(&inventory, &claimant(14), &WISH), None);
    let freed = *seen.iter().next().unwrap();
    ledger.release(freed);
    assert_eq!(
        ledger.take(&inventory, &claimant(14), &WISH).unwrap().vf.address,
        freed
    );
}

#[test]
fn who_is_told_to_do_without_a_vf_is_known_until_it_leaves() {
    let (inventory, ledger) = setup(1);
    let nic = Nic {
        namespace: "ns".into(),
        pod: "vm".into(),
        pod_uid: "pod".into(),
        network: "n".into(),
    };
    let told = |ledger: &Ledger| ledger.seats(&inventory)["uid0"].gives_back;
    ledger.enter("uid0", nic.clone());
    assert!(!told(&ledger));
    let mut changes = ledger.subscribe();
    ledger.set_gives_back("uid0", true);
    assert!(told(&ledger) && changes.has_changed().unwrap());
    changes.mark_unchanged();
    ledger.set_gives_back("uid0", true);
    assert!(!changes.has_changed().unwrap(), "it is no news");
    ledger.set_gives_back("uid0", false);
    assert!(!told(&ledger));
    ledger.set_gives_back("uid0", true);
    ledger.leave("uid0");
    ledger.enter("uid0", nic);
    assert!(!told(&ledger), "another of its name");
}

#[test]
fn the_oldest_waiter_goes_first() {
    let (inventory, ledger) = setup(1);
    let taken: Vec<_> = (0..2)
        .map(|n| ledger.take(&inventory, &claimant(n), &WISH).unwrap().vf.address)
        .collect();
    assert!(!ledger.offers(&inventory, &claimant(3), &WISH));
    assert!(!ledger.offers(&inventory, &claimant(2), &WISH));
    ledger.release(taken[0]);
    assert!(
        !ledger.offers(&inventory, &claimant(3), &WISH),
        "the older one has it coming"
    );
    assert!(ledger.take(&inventory, &claimant(2), &WISH).is_some());
    ledger.release(taken[1]);
    assert!(ledger.take(&inventory, &claimant(3), &WISH).is_some());
}

#[test]
fn a_better_vf_has_not_failed_and_is_on_a_pf_with_a_link() {
    let (mut inventory, ledger) = setup(1);
    let (one, two) = (inventory.pfs[0].address, inventory.pfs[1].address);
    let nic = claimant(1);
    let mine = ledger.take(&inventory, &nic, &beside(one)).unwrap();
    assert_eq!(mine.pf.address, one);
    let better = |inventory: &Inventory, dark| ledger.offers_better(inventory, &nic, &WISH, dark);
    assert!(better(&inventory, Some(one)) && better(&inventory, None));
    assert!(!better(&inventory, Some(two)), "both are dark");
    inventory.pfs[1].carrier = None;
    assert!(!better(&inventory, Some(one)), "nor has this one a link");
    assert!(better(&inventory, None), "but it has not failed");
    let (vf, uid) = (inventory.pfs[1].vfs[0].address, nic.uid.as_str());
    ledger.avoid(uid, vf);
    assert!(!better(&inventory, None));
    assert!(
        ledger.offers(&inventory, &claimant(2), &WISH),
        "for others it is as good as any"
    );
    ledger.stop_waiting(&claimant(2));
    ledger.forgive(uid);
    assert!(better(&inventory, None));
    // A NIC that takes one gets one with a link first, then one that has not failed.
    ledger.release(mine.vf.address);
    ledger.avoid(uid, mine.vf.address);
    let other = ledger.take(&inventory, &nic, &beside(one)).unwrap();
    assert_eq!(other.pf.address, two);
    ledger.release(other.vf.address);
    ledger.forgive(uid);
    let linked = ledger.take(&inventory, &nic, &beside(two)).unwrap();
    assert_eq!(linked.pf.address, one);
}

#[test]
fn a_standby_draws_its_vf_to_its_own_pf() {
    let (inventory, ledger) = setup(2);
    let second = inventory.pfs[1].address;
    let choice = ledger.take(&inventory, &claimant(1), &beside(second)).unwrap();
    assert_eq!(choice.pf.address, second);
    assert_eq!(
        ledger.take(
            &inventory,
            &claimant(2),
            &Wish {
                network: "other",
                ..WISH
            }
        ),
        None
    );
}

#[test]
fn a_nic_that_cannot_take_a_vf_keeps_none_from_younger_ones() {
    let (inventory, ledger) = setup(1);
    ledger.take(&inventory, &claimant(0), &WISH).unwrap();
    // The older one could take the last VF, and is to have it.
    assert!(ledger.offers(&inventory, &claimant(1), &WISH));
    assert!(!ledger.offers(&inventory, &claimant(2), &WISH));
    let mut changes = ledger.subscribe();
    changes.mark_unchanged();
    // Its QEMU has ended, or it has left: a NIC that waits looks again, and gets the VF.
    ledger.stop_waiting(&claimant(1));
    assert!(changes.has_changed().unwrap());
    assert!(ledger.offers(&inventory, &claimant(2), &WISH));
    assert!(ledger.take(&inventory, &claimant(2), &WISH).is_some());
    changes.mark_unchanged();
    ledger.stop_waiting(&claimant(1));
    assert!(!changes.has_changed().unwrap(), "there is nothing new");
}

#[test]
fn a_port_without_link_comes_last() {
    let (mut inventory, ledger) = setup(2);
    inventory.pfs[0].carrier = None;
    let [dark, lit] = [0, 1].map(|pf: usize| inventory.pfs[pf].address);
    let next = |nic, standby| {
        ledger
            .take(&inventory, &claimant(nic), &beside(standby))
            .unwrap()
            .pf
            .address
    };
    assert_eq!(next(1, None), lit);
    assert_eq!(
        next(2, Some(dark)),
        lit,
        "its standby carries nothing where it is"
    );
    assert_eq!(next(3, None), dark, "it may yet get a link when it is up");
    let (mut inventory, ledger) = setup(2);
    inventory.pfs[0].carrier = Some(false);
    assert_eq!(
        ledger.take(&inventory, &claimant(1), &WISH).unwrap().pf.address,
        lit
    );
    assert!(ledger.take(&inventory, &claimant(2), &WISH).is_some());
    assert_eq!(ledger.take(&inventory, &claimant(3), &WISH), None);
}

#[test]
fn a_nic_gets_a_vf_of_the_pf_that_it_names_or_the_very_vf() {
    let (inventory, ledger) = setup(2);
    let [one, two] = [0, 1].map(|pf: usize| &inventory.pfs[pf]);
    let take = |n, pick| {
        ledger
            .take(&inventory, &claimant(n), &of(pick))
            .map(|c| c.vf.address)
    };
    assert_eq!(
        take(1, Pick::Exactly(two.vfs[1].address)),
        Some(two.vfs[1].address)
    );
    assert_eq!(
        take(2, Pick::Exactly(two.vfs[1].address)),
        None,
        "somebody has it"
    );
    assert_eq!(take(2, Pick::OnPf(two.address)), Some(two.vfs[0].address));
    assert_eq!(
        take(3, Pick::OnPf(two.address)),
        None,
        "that there are others helps nobody"
    );
    assert!(one.vfs.iter().any(|vf| take(3, Pick::Any) == Some(vf.address)));
    let standby = |pick| ledger.standby_pf(&inventory, "n", pick).map(|pf| pf.address);
    assert_eq!(standby(Pick::OnPf(two.address)), Some(two.address));
    assert_eq!(standby(Pick::Exactly(two.vfs[0].address)), Some(two.address));
    assert_eq!(standby(Pick::OnPf(two.vfs[0].address)), None, "it is no PF");
    ledger.note_standby("u", one.address);
    assert_eq!(standby(Pick::Any), Some(two.address));
}

#[test]
fn who_waits_for_one_pf_keeps_none_of_another_from_younger_ones() {
    let (inventory, ledger) = setup(2);
    let [one, two] = [0, 1].map(|pf: usize| inventory.pfs[pf].address);
    let exactly = inventory.pfs[1].vfs[0].address;
    // The first PF has one VF left and the second two.
    assert!(
        ledger
            .take(&inventory, &claimant(0), &of(Pick::OnPf(one)))
            .is_some()
    );
    assert!(ledger.offers(&inventory, &claimant(1), &of(Pick::OnPf(one))));
    assert!(
        !ledger.offers(&inventory, &claimant(9), &of(Pick::OnPf(one))),
        "the older one has it coming"
    );
    ledger.stop_waiting(&claimant(9));
    assert!(ledger.offers(&inventory, &claimant(2), &of(Pick::Exactly(exactly))));
    let third = ledger.take(&inventory, &claimant(3), &WISH).unwrap();
    assert_eq!(
        third.vf.address, inventory.pfs[1].vfs[1].address,
        "the one that nobody older waits for"
    );
    assert_eq!(ledger.take(&inventory, &claimant(4), &WISH), None);
    assert_eq!(ledger.take(&inventory, &claimant(4), &of(Pick::OnPf(two))), None);
    // A NIC that takes any VF may leave none for a younger one that does not.
    ledger.release(third.vf.address);
    assert!(ledger.offers(&inventory, &claimant(5), &WISH));
    assert!(!ledger.offers(&inventory, &claimant(6), &of(Pick::OnPf(two))));
}

fn nic(n: i64) -> Nic {
    Nic {
        namespace: "ns".into(),
        pod: format!("pod{n}"),
        pod_uid: format!("pod uid{n}"),
        network: "n".into(),
    }
}

#[test]
fn what_was_promised_to_a_pod_goes_to_no_pod_that_has_asked_for_nothing() {
    let (inventory, ledger) = setup(2);
    let [one, two] = [0, 1].map(|pf: usize| inventory.pfs[pf].address);
    ledger.set_owed([(Pick::OnPf(one), 1), (Pick::OnPf(two), 2)].into());
    let id = DeviceId::new(two, 0).unwrap();
    for n in [1, 2] {
        ledger.enter(&claimant(n).uid, nic(n));
    }
    ledger.set_ticket(&claimant(1).uid, Ticket::Device { id, tied: false });
    let got = ledger.take(&inventory, &claimant(2), &WISH).unwrap();
    assert_eq!(got.pf.address, one, "the only one that nobody is owed");
    assert_eq!(ledger.take(&inventory, &claimant(3), &WISH), None);
    // The one that is owed waits, which keeps nobody twice, and takes it.
    assert!(ledger.offers(&inventory, &claimant(1), &of(Pick::OnPf(two))));
    assert!(!ledger.offers(&inventory, &claimant(3), &WISH));
    assert!(
        ledger
            .take(&inventory, &claimant(1), &of(Pick::OnPf(two)))
            .is_some()
    );
    ledger.set_owed([(Pick::OnPf(two), 1)].into());
    assert!(ledger.offers(&inventory, &claimant(3), &WISH));
    let seats = ledger.seats(&inventory);
    assert_eq!(seats[&claimant(1).uid].device(), Some(id));
    assert_eq!(seats[&claimant(1).uid].vf_pf, Some(two));
    assert_eq!(
        (seats[&claimant(2).uid].device(), seats[&claimant(2).uid].ticket),
        (None, None)
    );
}

#[test]
fn an_index_is_one_nics_at_a_time() {
    let (inventory, ledger) = setup(1);
    let id = DeviceId::new(inventory.pfs[0].address, 0).unwrap();
    for n in [1, 2] {
        ledger.enter(&claimant(n).uid, nic(n));
    }
    let mut changes = ledger.subscribe();
    assert_eq!(ledger.tie(&claimant(1).uid, id), Ok(()));
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    assert_eq!(
        ledger.tie(&claimant(1).uid, id),
        Ok(()),
        "again, in a new sandbox"
    );
    assert_eq!(ledger.tie(&claimant(2).uid, id), Err(nic(1)));
    assert!(!changes.has_changed().unwrap(), "it is asked for at each look");
    ledger.leave(&claimant(1).uid);
    assert!(changes.has_changed().unwrap());
    assert_eq!(ledger.tie(&claimant(2).uid, id), Ok(()));
}

fn drained(pfs: &[PciAddress], networks: &[&str]) -> Drain {
    Drain {
        all: false,
        pfs: pfs.iter().map(ToString::to_string).collect(),
        networks: networks.iter().map(|name| (*name).to_owned()).collect(),
    }
}

#[test]
fn what_is_drained_is_nobodys_and_who_lacks_it_is_told_why() {
    let (inventory, ledger) = setup(1);
    let [first, second] = [inventory.pfs[0].address, inventory.pfs[1].address];
    let mut changes = ledger.subscribe();
    assert!(ledger.set_drain(&drained(&[first], &[])) && changes.has_changed().unwrap());
    changes.mark_unchanged();
    assert!(!ledger.set_drain(&drained(&[first], &[])) && !changes.has_changed().unwrap());
    assert!(ledger.is_drained("n", first) && !ledger.is_drained("n", second));
    assert_eq!(
        ledger.standby_pf(&inventory, "n", Pick::Any).unwrap().address,
        second
    );
    assert_eq!(
        ledger
            .standby_pf(&inventory, "n", Pick::OnPf(first))
            .unwrap()
            .address,
        first
    );
    let taken = ledger.take(&inventory, &claimant(0), &beside(first)).unwrap();
    assert_eq!(taken.pf.address, second);
    // The next one has none, because of the drain, and says of which PF.
    assert_eq!(ledger.take(&inventory, &claimant(1), &WISH), None);
    let why = ledger.kept_free(&inventory, &claimant(1), &WISH).unwrap();
    assert!(
        why.contains("ens0 (0000:01:00.0)") && !why.contains("ens1"),
        "{why}"
    );
    // All VFs are held: that is the reason then.
    ledger.set_drain(&Drain::default());
    ledger.take(&inventory, &claimant(1), &WISH).unwrap();
    ledger.set_drain(&drained(&[first], &[]));
    assert_eq!(ledger.kept_free(&inventory, &claimant(2), &WISH), None);
    ledger.set_drain(&Drain::default());
    ledger.release(taken.vf.address);
    // Of one network only, and of all.
    ledger.set_drain(&drained(&[], &["n"]));
    assert_eq!(ledger.take(&inventory, &claimant(2), &WISH), None);
    ledger.set_drain(&drained(&[], &["other"]));
    assert!(ledger.take(&inventory, &claimant(2), &WISH).is_some());
    ledger.release(taken.vf.address);
    ledger.set_drain(&Drain {
        all: true,
        ..Drain::default()
    });
    assert_eq!(ledger.take(&inventory, &claimant(3), &WISH), None);
}

#[test]
fn one_nic_at_a_time_leaves_for_a_vf_and_none_that_is_waited_for() {
    let (inventory, ledger) = setup(1);
    let home = inventory.pfs[0].address;
    let goes = |n| ledger.offers_home(&inventory, &claimant(n), "n", home);
    // The younger one was first; it is asked again at each of its steps.
    assert!(goes(2) && goes(2));
    assert!(!goes(1), "it is promised");
    ledger.stop_waiting(&claimant(2));
    assert!(goes(1));
    ledger.stop_waiting(&claimant(1));
    // One that has no VF at all comes first, however young it is.
    let other = ledger.take(&inventory, &claimant(1), &beside(inventory.pfs[1].address));
    assert_eq!(other.unwrap().pf.address, inventory.pfs[1].address);
    assert!(ledger.offers(&inventory, &claimant(3), &WISH));
    assert!(!goes(1));
    ledger.stop_waiting(&claimant(3));
    ledger.set_drain(&drained(&[home], &[]));
    assert!(!goes(1));
    ledger.set_drain(&Drain::default());
    assert!(goes(1));
    assert_eq!(
        ledger
            .take(&inventory, &claimant(1), &beside(home))
            .unwrap()
            .pf
            .address,
        home
    );
}

#[test]
fn of_two_nics_that_have_nothing_but_their_vfs_one_leaves_for_another() {
    let (inventory, ledger) = setup(2);
    let [one, two] = [0, 1].map(|pf: usize| inventory.pfs[pf].address);
    for n in [1, 2] {
        assert!(
            ledger
                .take(&inventory, &claimant(n), &of(Pick::OnPf(one)))
                .is_some()
        );
    }
    assert!(
        ledger
            .take(&inventory, &claimant(3), &of(Pick::OnPf(two)))
            .is_some()
    );
    ledger.set_drain(&drained(&[one], &[]));
    let better = |n| ledger.offers_better(&inventory, &claimant(n), &WISH, None);
    let sole = |n| ledger.offers_sole(&inventory, &claimant(n), &WISH, None);
    assert!(better(1) && better(2), "those with a standby may try");
    assert!(sole(2) && sole(2));
    assert!(!sole(1), "it is promised");
    let taken = ledger.take(&inventory, &claimant(2), &WISH).unwrap();
    assert_eq!(taken.pf.address, two);
    assert!(!sole(1), "there is no other");
    ledger.release(taken.vf.address);
    // One that has no VF at all comes first.
    assert!(ledger.offers(&inventory, &claimant(9), &WISH));
    assert!(!sole(1));
    ledger.stop_waiting(&claimant(9));
    assert!(sole(1));
    // A PF without link is no gain.
    let mut inventory = inventory.clone();
    inventory.pfs[1].carrier = Some(false);
    ledger.stop_waiting(&claimant(1));
    assert!(!ledger.offers_sole(&inventory, &claimant(1), &WISH, Some(one)));
}
