//! What a status says, for each thing that may be seen and decided.

use hybridnic_api::v1alpha1::NoFreeVf;
use hybridnic_net::{netlink::VfConfig, sysfs::DriverState};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{
    super::plan::{Step, Wait, tests::FRESH},
    super::seen::{Guest, Port, Run, VfMac, VfSeen, VfThere},
    *,
};
use crate::journal::{StandbyRecord, VfRecord, tests::record};

const GUEST: Guest = Guest {
    run: Run::Here,
    standby: true,
    vf: false,
    uses_vf: false,
    failover: Some(true),
    migrating: false,
    acpi: true,
};
const FAST: Guest = Guest {
    vf: true,
    uses_vf: true,
    ..GUEST
};

const VF: VfThere = VfThere {
    on_vfio: true,
    mac: VfMac::Nic,
    settings_ok: true,
    link: true,
    dark: false,
    other_pf: false,
    held: false,
    port: Port::NoProfile,
};

fn seen(guest: Guest, up: bool) -> Seen {
    Seen {
        recorded: true,
        vf_offered: false,
        standby_recorded: true,
        macvtap: Some(up),
        qemu: QemuSeen::Up(guest),
        ..FRESH
    }
}

fn held(goal: Goal) -> Record {
    let mut held = record("a");
    held.spec.goal = goal;
    held
}

fn inputs<'a>(record: &'a Record, seen: &'a Seen, decision: Option<&'a Decision>) -> Inputs<'a> {
    Inputs {
        record,
        generation: Some(3),
        seen: Some(seen),
        running: true,
        decision,
        error: None,
        guest: GuestDevices::default(),
        unplug_order: None,
        migration: None,
        filtered: Filtered::default(),
        timeline: Vec::new(),
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn condition<'a>(status: &'a NicAttachmentStatus, type_: &str) -> &'a Condition {
    conditions::find(&status.conditions, type_).unwrap()
}

#[track_caller]
fn says(status: &NicAttachmentStatus, type_: &str, expected: (&str, &str)) {
    let found = condition(status, type_);
    assert_eq!(
        (found.status.as_str(), found.reason.as_str()),
        expected,
        "{type_}: {}",
        found.message
    );
}

#[test]
fn the_path_is_the_device_that_carries_the_traffic() {
    use Path::{FastPath, None, Standby};
    let idle = Guest {
        uses_vf: false,
        ..FAST
    };
    let cases = [
        // On the way to the VF the standby goes on until it is set down; on the way back the VF, until it is unplugged.
        (Goal::FastPath, seen(GUEST, true), Standby),
        (Goal::FastPath, seen(idle, true), Standby),
        (Goal::FastPath, seen(FAST, true), Standby),
        (Goal::FastPath, seen(FAST, false), FastPath),
        (Goal::Standby, seen(FAST, false), FastPath),
        (Goal::Standby, seen(FAST, true), FastPath),
        (Goal::Standby, seen(idle, true), Standby),
        (Goal::Standby, seen(GUEST, true), Standby),
        (Goal::Detached, seen(FAST, false), FastPath),
        // A break before the make.
        (Goal::Standby, seen(GUEST, false), None),
        (Goal::FastPath, seen(idle, false), None),
        (
            Goal::FastPath,
            seen(
                Guest {
                    standby: false,
                    ..GUEST
                },
                true,
            ),
            None,
        ),
        (
            Goal::FastPath,
            Seen {
                macvtap: Option::None,
                ..seen(GUEST, true)
            },
            None,
        ),
        (
            Goal::FastPath,
            Seen {
                qemu: QemuSeen::Gone,
                ..seen(GUEST, true)
            },
            None,
        ),
        (
            Goal::FastPath,
            Seen {
                qemu: QemuSeen::Unreachable,
                ..seen(GUEST, true)
            },
            None,
        ),
    ];
    for (goal, seen, expected) in cases {
        let record = held(goal);
        assert_eq!(
            path(&inputs(&record, &seen, Option::None)),
            expected,
            "{goal:?} {seen:?}"
        );
        assert_eq!(
            path(&Inputs {
                running: false,
                ..inputs(&record, &seen, Option::None)
            }),
            None
        );
        assert_eq!(
            path(&Inputs {
                seen: Option::None,
                ..inputs(&record, &seen, Option::None)
            }),
            None
        );
    }
}

#[test]
fn a_nic_without_a_standby_says_that_it_carries_nothing() {
    let empty = Guest {
        standby: false,
        vf: false,
        uses_vf: false,
        failover: Option::None,
        ..GUEST
    };
    let without = Seen {
        macvtap: Option::None,
        standby_recorded: false,
        ..seen(empty, false)
    };
    let said = |aside, decision: Decision| {
        let mut record = held(Goal::Standby);
        (record.spec.standby, record.spec.aside) = (StandbyKind::None, aside);
        build(inputs(&record, &without, Some(&decision)), Option::None, at(1))
    };
    let out = said(Option::None, Decision::Done(AttachmentState::Aside));
    assert_eq!((out.state, out.path), (AttachmentState::Aside, Path::None));
    says(&out, types::READY, ("True", reasons::ATTACHED));
    says(&out, types::FAST_PATH, ("False", reasons::STEPPED_ASIDE));
    let told = said(Some(Aside::KeepVf), Decision::Done(AttachmentState::Aside));
    says(&told, types::FAST_PATH, ("False", reasons::STANDBY_REQUESTED));
    assert!(condition(&told, types::FAST_PATH).message.contains("no network"));
    // Between two steps, too.
    let steps = said(Option::None, Decision::Do(Step::Park));
    assert_eq!((steps.state, steps.path), (AttachmentState::Aside, Path::None));
}

/// The guest's driver has let go of it, and QEMU has it yet: with it no VM can be sent.
#[test]
fn a_nic_is_not_off_its_vf_before_qemu_has_removed_it() {
    let record = held(Goal::Standby);
    let said = |vf: bool, standby_up: bool| {
        let guest = Guest {
            vf,
            uses_vf: false,
            ..GUEST
        };
        let (seen, decision) = (seen(guest, standby_up), Decision::Do(Step::UnplugVf));
        build(inputs(&record, &seen, Some(&decision)), Option::None, at(1)).state
    };
    assert_eq!(said(true, true), AttachmentState::FastPath);
    assert_eq!(said(false, true), AttachmentState::Standby);
    // Nothing carries its traffic, as of a VM that stands still.
    assert_eq!(said(true, false), AttachmentState::Pending);
    assert_eq!(said(false, false), AttachmentState::Reserved);
}

#[test]
fn a_vf_is_out_when_it_is_seen_to_be_and_not_before() {
    let empty = Guest {
        standby: false,
        failover: Option::None,
        ..GUEST
    };
    let mut record = held(Goal::Standby);
    record.spec.standby = StandbyKind::None;
    let said = |vf: bool, there: Option<VfSeen>| {
        let seen = Seen {
            vf: there,
            ..seen(Guest { vf, ..empty }, false)
        };
        let decision = Decision::Do(Step::Park);
        build(inputs(&record, &seen, Some(&decision)), Option::None, at(1)).state
    };
    let with = |mac| Some(VfSeen::There(VfThere { mac, ..VF }));
    assert_eq!(said(false, with(VfMac::Parking)), AttachmentState::Aside);
    assert_eq!(said(false, Some(VfSeen::Gone)), AttachmentState::Aside);
    for (vf, there) in [
        (true, with(VfMac::Parking)),
        (true, Some(VfSeen::Gone)),
        (false, with(VfMac::Nic)),
        (false, Some(VfSeen::Unknown { other_pf: false })),
    ] {
        assert_eq!(said(vf, there), AttachmentState::Pending, "{vf} {there:?}");
    }
    let at_generation = |generation, state| NicAttachmentStatus {
        observed_generation: Some(generation),
        state,
        ..NicAttachmentStatus::default()
    };
    let guessed = |generation, state| {
        let mut status = at_generation(3, AttachmentState::Pending);
        as_before(&mut status, at_generation(generation, state));
        status.state
    };
    assert_eq!(guessed(3, AttachmentState::Aside), AttachmentState::Aside);
    assert_eq!(guessed(2, AttachmentState::Aside), AttachmentState::Pending);
    assert_eq!(guessed(2, AttachmentState::Standby), AttachmentState::Standby);
}

#[test]
fn a_nic_that_is_told_to_stay_on_its_standby_is_ready_there() {
    let said = |aside, goal, vf: bool| {
        let mut record = held(goal);
        record.spec.aside = Some(aside);
        record.vf = vf.then(|| crate::journal::tests::held_vf(0, 0));
        let seen = seen(GUEST, true);
        let decision = Decision::Done(AttachmentState::Standby);
        let status = build(inputs(&record, &seen, Some(&decision)), None, at(1));
        assert_eq!(
            (status.state, status.path),
            (AttachmentState::Standby, Path::Standby)
        );
        says(&status, types::READY, ("True", reasons::ATTACHED));
        says(&status, types::FAST_PATH, ("False", reasons::STANDBY_REQUESTED));
        condition(&status, types::FAST_PATH).message.clone()
    };
    for goal in [Goal::FastPath, Goal::Standby] {
        assert!(said(Aside::GiveVfBack, goal, false).contains("holds no VF"));
        assert!(said(Aside::GiveVfBack, goal, true).contains("when the migration is over"));
        assert!(said(Aside::KeepVf, goal, true).contains("stays reserved for it"));
        assert!(said(Aside::KeepVf, goal, false).contains("no VF of the network is free"));
    }
    // Until it is there, its VF carries the traffic, also while both are up.
    let mut record = held(Goal::FastPath);
    record.spec.aside = Some(Aside::GiveVfBack);
    let both = seen(FAST, true);
    assert_eq!(path(&inputs(&record, &both, None)), Path::FastPath);
    let keeps = Decision::Wait(Wait {
        state: AttachmentState::FastPath,
        reason: reasons::GUEST_KEEPS_VF,
        message: "it stays".to_owned(),
    });
    let status = build(inputs(&record, &seen(FAST, false), Some(&keeps)), None, at(1));
    says(&status, types::READY, ("False", reasons::GUEST_KEEPS_VF));
    says(&status, types::FAST_PATH, ("True", reasons::VF_ACTIVE));
}

#[test]
fn what_is_held_is_named() {
    let mut record = held(Goal::FastPath);
    record.spec.no_free_vf = NoFreeVf::Wait;
    let pf = "0000:03:00.0".parse().unwrap();
    let parking_mac = "06:00:00:00:00:01".parse().unwrap();
    record.vf = Some(VfRecord {
        address: "0000:03:10.2".parse().unwrap(),
        index: 1,
        pf,
        pf_name: "ens3".into(),
        pf_driver: "igb".into(),
        iommu_group: 7,
        parking_mac,
        saved: VfConfig::default(),
        saved_driver: DriverState {
            driver: None,
            driver_override: None,
        },
        rate_set: false,
        port_asked: false,
    });
    record.standby = Some(StandbyRecord {
        macvtap: "hn0".into(),
        pf,
        pf_name: "ens3".into(),
        vlan: None,
        seized: None,
        pod: None,
    });
    let seen = seen(FAST, false);
    let inputs = Inputs {
        unplug_order: Some(SwitchOrder::MakeBeforeBreak),
        ..inputs(&record, &seen, None)
    };
    let status = build(inputs, None, at(1));
    assert_eq!(
        status.vf,
        Some(VfRef {
            pci_address: "0000:03:10.2".into(),
            pf: "ens3".into(),
            index: 1
        })
    );
    assert_eq!(
        status.standby,
        Some(StandbyRef {
            macvtap: "hn0".into(),
            pf: "ens3".into()
        })
    );
    assert_eq!(status.observed_generation, Some(3));
    assert_eq!(status.unplug_order, Some(SwitchOrder::MakeBeforeBreak));
}

#[path = "report_ready_tests.rs"]
mod ready;
