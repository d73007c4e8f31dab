//! How long it takes to decide the next step, over the states that a NIC goes through.
#![allow(missing_docs, reason = "a program")]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use hybridnic_agent::nic::plan::{Ask, Learnt, next};
use hybridnic_agent::nic::seen::{Guest, Port, QemuSeen, Run, Seen, VfMac, VfSeen, VfThere};
use hybridnic_api::v1alpha1::{Goal, NoFreeVf, Pairing, StandbyKind, SwitchOrder};

const ROUNDS: usize = 101;
/// Times all states are gone through in a round: long enough for the clock.
const REPEATS: u32 = 200;

fn asks() -> Vec<Ask> {
    let goals = [Goal::Standby, Goal::FastPath, Goal::Detached];
    let orders = [SwitchOrder::MakeBeforeBreak, SwitchOrder::BreakBeforeMake];
    let ask = |goal, driver_order| Ask {
        goal,
        aside: None,
        ordered: false,
        standby: StandbyKind::Macvtap,
        no_free_vf: NoFreeVf::Standby,
        pairing: Pairing::NetFailover,
        driver_order,
        drained: false,
        expected: false,
        duties: hybridnic_agent::machine::Duties::QEMU,
    };
    goals
        .into_iter()
        .flat_map(|goal| orders.map(|driver_order| ask(goal, driver_order)))
        .collect()
}

fn vfs() -> Vec<Option<VfSeen>> {
    let found = VfThere {
        on_vfio: false,
        mac: VfMac::Other,
        settings_ok: false,
        link: true,
        dark: false,
        other_pf: false,
        held: false,
        port: Port::NoProfile,
    };
    let parked = VfThere {
        on_vfio: true,
        mac: VfMac::Parking,
        ..found
    };
    let ready = VfThere {
        mac: VfMac::Nic,
        settings_ok: true,
        ..parked
    };
    let held = [
        found,
        parked,
        ready,
        VfThere {
            link: false,
            ..parked
        },
        VfThere {
            other_pf: true,
            ..ready
        },
    ];
    let unknown = VfSeen::Unknown { other_pf: false };
    [None, Some(VfSeen::Gone), Some(unknown)]
        .into_iter()
        .chain(held.map(|vf| Some(VfSeen::There(vf))))
        .collect()
}

fn qemus() -> Vec<QemuSeen> {
    let bare = Guest {
        run: Run::Here,
        standby: false,
        vf: false,
        uses_vf: false,
        failover: None,
        migrating: false,
        acpi: true,
    };
    let standby = Guest {
        standby: true,
        failover: Some(true),
        ..bare
    };
    let plugged = Guest { vf: true, ..standby };
    let guests = [
        bare,
        standby,
        plugged,
        Guest {
            uses_vf: true,
            ..plugged
        },
        Guest {
            run: Run::Incoming,
            failover: None,
            ..standby
        },
        Guest {
            run: Run::HandingOver,
            failover: None,
            ..standby
        },
        Guest {
            failover: Some(false),
            ..standby
        },
    ];
    [QemuSeen::Gone, QemuSeen::Unreachable]
        .into_iter()
        .chain(guests.map(QemuSeen::Up))
        .collect()
}

fn states() -> Vec<(Ask, Seen)> {
    let mut states = Vec::new();
    for ask in asks() {
        for vf in vfs() {
            for macvtap in [None, Some(false), Some(true)] {
                for qemu in qemus() {
                    let standby_recorded = vf.is_some() || macvtap.is_some();
                    let seen = Seen {
                        sandbox_waits: false,
                        recorded: standby_recorded,
                        vf,
                        vf_offered: vf.is_none(),
                        other_vf: false,
                        home_vf: false,
                        uplink: true,
                        standby_recorded,
                        macvtap,
                        guarded: true,
                        foreign_mac: false,
                        seized: false,
                        seizer_ended: false,
                        mtu_ok: true,
                        standby_link: Some(true),
                        standby_pf_gone: false,
                        qemu,
                    };
                    states.push((ask, seen));
                }
            }
        }
    }
    states
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (states, learnt) = (states(), Learnt::default());
    let decisions = u32::try_from(states.len())? * REPEATS;
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..REPEATS {
            for (ask, seen) in &states {
                black_box(next(black_box(ask), black_box(seen), black_box(&learnt)));
            }
        }
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let ns = |time: Duration| time.as_secs_f64() * 1e9 / f64::from(decisions);
    println!(
        "next step of a NIC, over {} states: median {:.1} ns, best {:.1} ns, worst {:.1} ns of {ROUNDS}",
        states.len(),
        ns(times[ROUNDS / 2]),
        ns(times[0]),
        ns(times[ROUNDS - 1])
    );
    Ok(())
}
