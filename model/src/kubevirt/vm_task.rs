//! The VM's task in a pod of KubeVirt, which watches. What it says is the agent's own decision.

use std::collections::BTreeMap;

use hybridnic_agent::journal::{self, VmRecord};
use hybridnic_agent::machine::NicEntry;
use hybridnic_agent::machine::kubevirt::watch::{self, LauncherSeen, Missed};
use hybridnic_agent::machine::process::ProcessId;
use hybridnic_agent::machine::qemu::migration::{VmSeen, agreed};
use hybridnic_qmp::commands::{MigrationInfo, RunState};

use super::operator::MIGRATION;
use super::state::{Place, Run, State, Transfer, Vm, Watched};
use super::world::World;
use crate::objects::{NIC, Objects, uid};
use crate::state::{NICS, Shown, Task};
use crate::vm_task::state_of;

/// All that the VM's task goes by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VmSight {
    shown: [Option<Shown>; NICS],
    qemu: Option<(Run, Transfer)>,
    alive: bool,
    vm: Vm,
}

/// What the VM's task comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    vm: Vm,
    silence: bool,
}

/// All macvtaps of the VM, up or down.
pub(super) fn set_all(place: &mut Place, up: bool) {
    for (nic, vf) in place.nics.iter_mut().zip(place.qemu.vf) {
        let shown = nic.shown.is_some_and(|shown| shown.macvtap);
        if shown && nic.macvtap.is_some() && !(up && vf.is_some()) {
            nic.macvtap = Some(up);
        }
    }
}

/// The VM's task looks, and says what it sees.
pub(super) fn drive(world: &World, state: &mut State, pod: usize) {
    let place = &mut state.places[pod];
    let here = place.nics.iter().any(|nic| nic.task == Task::Runs);
    if !here {
        // What is remembered of the VM goes with the last attachment to its pod.
        if place.attachments.iter().all(Option::is_none) {
            place.vm = Vm::NEW;
        }
        return;
    }
    place.vm.tried = true;
    if place.qemu.answers() {
        if !place.vm.process {
            (place.vm.incoming, place.vm.ran) = (false, false);
        }
        (place.vm.met, place.vm.process) = (true, true);
    }
    let sight = VmSight {
        shown: place.nics.map(|nic| nic.shown),
        qemu: place
            .qemu
            .answers()
            .then_some((place.qemu.run, place.qemu.migration)),
        alive: place.qemu.alive,
        vm: place.vm,
    };
    let verdict = world.verdicts.get(&sight, || sight.decide(&world.objects));
    place.vm = verdict.vm;
    if verdict.silence {
        set_all(place, false);
    }
}

fn process() -> ProcessId {
    ProcessId {
        boot: String::new(),
        pid: 1,
        start: 1,
    }
}

impl Vm {
    fn record(&self) -> VmRecord {
        VmRecord {
            process: self.process.then(process),
            begun: None,
            incoming: self.incoming,
            ran: self.ran,
            watched: self.watched.map(|watched| journal::Watched {
                migration: uid(MIGRATION[usize::from(watched.migration)]),
                process: watched.process.then(process),
                role: watched.role,
                begun: watched.begun,
                arrived: watched.arrived,
            }),
        }
    }
}

fn watched(of: &journal::Watched) -> Watched {
    let migration = MIGRATION.iter().position(|name| uid(name) == of.migration);
    Watched {
        migration: migration.and_then(|k| u8::try_from(k).ok()).unwrap_or_default(),
        process: of.process.is_some(),
        role: of.role,
        begun: of.begun,
        arrived: of.arrived,
    }
}

/// What QEMU says of itself.
pub(super) fn seen(run: Run, migration: Transfer) -> VmSeen {
    let status = match migration {
        Transfer::None => "none",
        Transfer::Active => "active",
        Transfer::PreSwitchover => "pre-switchover",
        Transfer::Completed => "completed",
        Transfer::Failed => "failed",
        Transfer::Cancelled => "cancelled",
    };
    let info = serde_json::json!({ "status": status });
    VmSeen {
        run: match run {
            Run::Incoming => RunState::InMigrate,
            Run::Paused => RunState::Paused,
            Run::Running => RunState::Running,
            Run::Finishing => RunState::FinishMigrate,
            Run::HandedOver => RunState::PostMigrate,
        },
        info: serde_json::from_value::<MigrationInfo>(info).unwrap_or_default(),
    }
}

impl VmSight {
    fn nics(&self, objects: &Objects) -> BTreeMap<String, NicEntry> {
        let entry = |(n, shown): (usize, &Option<Shown>)| {
            let shown = shown.as_ref()?;
            let spec = objects.spec(n, shown.spec);
            let entry = NicEntry {
                nic: NIC[n].to_owned(),
                macvtap: shown.macvtap.then(|| "".into()),
                state: state_of(shown.state),
                goal: spec.as_ref().map(|spec| spec.goal).unwrap_or_default(),
                order: spec.and_then(|spec| spec.migration),
                heard: shown.heard,
                ..NicEntry::default()
            };
            Some((NIC[n].to_owned(), entry))
        };
        self.shown.iter().enumerate().filter_map(entry).collect()
    }

    fn decide(&self, objects: &Objects) -> Verdict {
        let (mut vm, mut record) = (self.vm, self.vm.record());
        let seen = self.qemu.map(|(run, migration)| seen(run, migration));
        let missed = seen.as_ref().and_then(|seen| watch::missed(seen, &record));
        match missed {
            Some(Missed::Run) => record.ran = true,
            Some(Missed::Incoming) => record.incoming = true,
            Some(Missed::Silence) | None => {}
        }
        (vm.ran, vm.incoming) = (record.ran, record.incoming);
        let nics = self.nics(objects);
        if let Some(order) = agreed(&nics)
            && let Some(is_off) = watch::is_off(order.step)
        {
            let peer = vm.met.then(process);
            let launcher = LauncherSeen {
                seen: seen.as_ref(),
                peer: peer.as_ref(),
                gone: !self.alive,
            };
            let told = watch::told(order.step, nics.values().map(|nic| nic.goal));
            if let Some(new) = watch::note(&record, &order.migration.uid, launcher, told) {
                vm.watched = Some(watched(&new));
                let end = watch::end_seen(&new, launcher, |_| !self.alive);
                let said = objects.reports.get(vm.report);
                if let Some(report) = watch::report(&new, is_off, end, said) {
                    vm.report = objects.report_id(Some(report));
                }
            }
        }
        Verdict {
            vm,
            silence: missed == Some(Missed::Silence),
        }
    }
}

/// What is in memory goes; what is in the journal stays.
pub(super) fn forget(vm: &mut Vm) {
    (vm.tried, vm.met, vm.report) = (false, false, 0);
}
