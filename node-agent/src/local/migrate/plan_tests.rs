//! Two hosts with their agents' own decisions on files, a VM that moves as its agents are told, and a driver that may die after any write.

use std::{collections::BTreeSet, fs, path::Path};

use clap::ValueEnum as _;
use hybridnic_api::{
    conditions::{self, NewCondition, reasons, types},
    v1alpha1::{
        AttachmentState, Goal, MigrationReport, MigrationState, MigrationStep, NicAttachmentStatus,
        Path as Way,
    },
};
use serde_json::json;

use super::{
    super::super::{
        board::{Board, put, tests::in_dir},
        decide::{self, Reading, State},
        file::{
            self,
            tests::{NETWORK, NIC},
        },
        order,
    },
    super::hand::Hand,
    *,
};
use crate::wants::Want;

/// Where the VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vm {
    Source,
    /// It was sent, and has not run anywhere since.
    Sent,
    Target,
}

struct Host {
    home: tempfile::TempDir,
    node: &'static str,
    board: Board,
    state: State,
    hand: Hand,
    /// Its QEMU waits for a VM.
    listens: bool,
    /// Its QEMU was ended.
    ended: bool,
}

impl Host {
    async fn new(node: &'static str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path();
        fs::write(dir.join("fast.yaml"), NETWORK).unwrap();
        let said = json!({ "metadata": { "name": node }, "status": {} });
        let board = in_dir(dir, node);
        let place = board.place().unwrap();
        put(&place, file::NODE, Some(&said)).await.unwrap();
        Self {
            board,
            hand: Hand::new(dir, &BTreeSet::from(["eth0".to_owned()])),
            node,
            home,
            state: State::default(),
            listens: true,
            ended: false,
        }
    }

    fn dir(&self) -> &Path {
        self.home.path()
    }

    /// What the agent makes of its files; gives what is wanted of the NIC.
    async fn decide(&mut self) -> Option<Want> {
        for name in ["fast", "eth0"] {
            let reading = match fs::read_to_string(self.dir().join(file::asking(name))) {
                Ok(text) => {
                    let generation = file::generation(&text);
                    Reading::Asks(file::parse(name, &text, None).unwrap(), generation)
                }
                Err(_) => Reading::Removed,
            };
            self.state.read(name, reading);
        }
        match fs::read_to_string(self.dir().join(order::file("eth0"))) {
            Ok(text) => self.state.orders.insert("eth0".into(), order::parse(&text)),
            Err(_) => self.state.orders.remove("eth0"),
        };
        let host = decide::Host {
            node: self.node.into(),
            seed: "seed".into(),
            cards: Some(BTreeSet::new()),
            now: 7,
        };
        let outcome = self.state.decide(&host, |_| "uid-1".into());
        for (name, verdict) in &outcome.said {
            let want = self.state.nics.get(name).map(|nic| nic.want.clone());
            self.board.say(name, verdict, want.as_ref()).await.unwrap();
        }
        for name in &outcome.forgotten {
            self.board.forget(name).await.unwrap();
        }
        self.state.nics.get("eth0").map(|nic| nic.want.clone())
    }

    async fn say(&mut self, want: &Want, state: AttachmentState, migration: Option<MigrationReport>) {
        if want.deleting {
            self.state.left(&want.id.uid);
            return self.board.forget("eth0").await.unwrap();
        }
        let mut status = NicAttachmentStatus {
            observed_generation: want.generation,
            state,
            path: match state {
                AttachmentState::FastPath => Way::FastPath,
                _ => Way::Standby,
            },
            migration,
            ..NicAttachmentStatus::default()
        };
        status.guest.standby_port = Some("rp1".into());
        status.guest.vf_port = Some("rp2".into());
        let ready = NewCondition::yes(types::READY, reasons::ATTACHED, "as it should be");
        conditions::set(
            &mut status.conditions,
            want.generation,
            Timestamp::UNIX_EPOCH,
            ready,
        );
        self.board.tell("eth0", Some(&status)).await.unwrap();
    }
}

struct Scene {
    source: Host,
    target: Host,
    vm: Vm,
    flight: Flight,
    /// Whether the driver reaches the target.
    reached: bool,
    /// What it saw there last.
    seen: Option<Seen>,
    waits: Waits,
    /// For how long the driver has tried in vain to reach the target.
    failing_for: Option<Duration>,
}

impl Scene {
    async fn new() -> Self {
        let mut source = Host::new("h1").await;
        let target = Host::new("h2").await;
        fs::write(source.dir().join("eth0.yaml"), NIC).unwrap();
        let want = source.decide().await.unwrap();
        source.say(&want, AttachmentState::FastPath, None).await;
        let mac = want.spec.mac.clone();
        let socket = want.socket.clone().unwrap();
        let end = |node: &str, address: Option<&str>| End {
            node: node.into(),
            socket: socket.clone(),
            address: address.map(str::to_owned),
        };
        let nic = Nic {
            spec: file::asked("eth0", NIC).unwrap().spec,
            there: NIC.replace("  network", &format!("  mac: '{mac}'\n  network")),
            uid: "uid-1".into(),
            mac,
        };
        let required = Encryption::Required.to_possible_value().unwrap();
        let flight = Flight {
            uid: "m-1".into(),
            vm: "vm1".into(),
            created: Timestamp::UNIX_EPOCH,
            session: 1,
            cancelled: false,
            decision: None,
            source: end("h1", None),
            target: end("h2", Some("10.0.0.2")),
            nics: BTreeMap::from([("eth0".to_owned(), nic)]),
            encryption: required.get_name().to_owned(),
            status: QemuMigrationStatus::default(),
            host: "h2".into(),
            connect: "ssh h2".into(),
            dir: "/etc/hybridnic".into(),
            agent: "hybridnic-agent".into(),
        };
        let mut scene = Self {
            source,
            target,
            vm: Vm::Source,
            flight,
            reached: true,
            seen: None,
            waits: Waits::default(),
            failing_for: None,
        };
        scene.agents().await;
        scene
    }

    /// Both agents do what they are told, and say how that goes.
    async fn agents(&mut self) {
        use MigrationState::{Active, Cancelled, Completed, Listening, Lost, Prepared};
        if let Some(want) = self.source.decide().await {
            let order = want.spec.migration.clone();
            let step = order.as_ref().map(|order| order.step);
            let report = |state| {
                let order = order.as_ref()?;
                let mut report = MigrationReport::new(&order.migration.uid, state);
                report.ca = order.tls.is_some().then(|| "CA of h1".to_owned());
                Some(report)
            };
            let sends = order.as_ref().is_some_and(|order| order.target_uri.is_some());
            if step == Some(MigrationStep::Transfer) && sends && self.vm == Vm::Source {
                assert_eq!(want.spec.goal, Goal::Standby, "it leaves from its standby");
                self.vm = Vm::Sent;
            }
            if step == Some(MigrationStep::Resume) {
                assert_eq!(self.vm, Vm::Sent, "it would run twice");
                self.vm = Vm::Source;
            }
            let report = match (step, self.vm) {
                (None, _) => None,
                (Some(MigrationStep::Prepare), _) => report(Prepared),
                (Some(_), Vm::Sent | Vm::Target) => report(Completed),
                (Some(MigrationStep::Transfer), Vm::Source) => report(Active),
                (Some(_), Vm::Source) => report(Cancelled),
            };
            let state = match want.spec.goal {
                _ if self.source.ended => AttachmentState::Pending,
                Goal::FastPath => AttachmentState::FastPath,
                Goal::Detached => {
                    assert_ne!(self.vm, Vm::Source, "a VM that runs here loses its NIC");
                    AttachmentState::Detached
                }
                _ => AttachmentState::Standby,
            };
            if state == AttachmentState::FastPath {
                assert_eq!(self.vm, Vm::Source, "its MAC would be live twice");
            }
            self.source.say(&want, state, report).await;
        }
        if let Some(want) = self.target.decide().await {
            let order = want.spec.migration.clone();
            let step = order.as_ref().map(|order| order.step);
            let listen = step == Some(MigrationStep::Listen);
            if listen && self.vm == Vm::Sent && !self.target.ended {
                self.vm = Vm::Target;
            }
            if step == Some(MigrationStep::GiveUp) && self.vm != Vm::Target {
                self.target.ended = true;
            }
            let state = match (want.spec.goal, self.vm) {
                (Goal::Detached, _) => AttachmentState::Detached,
                (_, Vm::Target) => AttachmentState::FastPath,
                _ if self.target.listens => AttachmentState::Reserved,
                _ => AttachmentState::Pending,
            };
            let says = match self.vm {
                Vm::Target => Some(Completed),
                _ if self.target.ended => Some(Lost),
                _ if listen && self.target.listens => Some(Listening),
                _ => None,
            };
            let report = order.zip(says).map(|(order, state)| {
                let mut report = MigrationReport::new(&order.migration.uid, state);
                report.port = (state == Listening).then_some(4444);
                report.ca = order.tls.is_some().then(|| "CA of h2".to_owned());
                report
            });
            self.target.say(&want, state, report).await;
        }
    }

    /// The driver looks once, and does as many of the changes as it lives to; whether it has done all.
    fn drive(&mut self, mut lives: usize) -> bool {
        let source = self.source.hand.look().unwrap();
        if self.reached {
            self.seen = Some(self.target.hand.look().unwrap());
        }
        let both = Both {
            source: &source,
            target: self.seen.as_ref(),
            failing_for: self.failing_for,
        };
        if !self.flight.may_go_on(both) {
            return true;
        }
        let rules = Rules {
            deadlines: Deadlines {
                prepare: Duration::from_mins(1),
                switch: Duration::from_mins(2),
            },
            encryption: Encryption::Required,
        };
        let next = self
            .flight
            .step(both, self.waits, rules, Timestamp::UNIX_EPOCH, "decide".into());
        if next.status != self.flight.status {
            if lives == 0 {
                return false;
            }
            lives -= 1;
            self.flight.status = next.status;
            // As its file keeps it.
            let text = serde_json::to_string(&self.flight).unwrap();
            assert_eq!(serde_json::from_str::<Flight>(&text).unwrap(), self.flight);
        }
        for (side, command) in self.flight.changes(both) {
            let hand = match side {
                Side::Source => &self.source.hand,
                Side::Target if self.reached => &self.target.hand,
                Side::Target => continue,
            };
            if lives == 0 {
                return false;
            }
            lives -= 1;
            hand.apply(&command).unwrap();
        }
        true
    }

    async fn settle(&mut self) {
        for _ in 0..12 {
            self.drive(usize::MAX);
            self.agents().await;
        }
    }

    fn phase(&self) -> MigrationPhase {
        self.flight.status.phase
    }

    fn why(&self) -> (String, String) {
        let said = conditions::find(&self.flight.status.conditions, types::SUCCEEDED).unwrap();
        (said.reason.clone(), said.message.clone())
    }

    fn files(&self) -> [Vec<String>; 2] {
        [&self.source, &self.target].map(|host| {
            let names = fs::read_dir(host.dir()).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<String> = names.filter(|name| name.starts_with("eth0")).collect();
            names.sort();
            names
        })
    }

    #[track_caller]
    fn is_at_the_target(&self) {
        assert_eq!(
            (self.phase(), self.vm),
            (MigrationPhase::Succeeded, Vm::Target),
            "{:?}",
            self.why()
        );
        let there = ["eth0.status.yaml", "eth0.yaml"].map(str::to_owned).to_vec();
        assert_eq!(self.files(), [Vec::new(), there]);
        let want = &self.target.state.nics["eth0"].want;
        let mac = &self.flight.nics["eth0"].mac;
        assert_eq!((&want.spec.mac, want.id.uid.as_str()), (mac, "uid-1"));
        assert_eq!(
            (want.spec.goal, want.spec.migration.as_ref()),
            (Goal::FastPath, None)
        );
    }

    #[track_caller]
    fn is_back_at_the_source(&self, phase: MigrationPhase) {
        assert_eq!((self.phase(), self.vm), (phase, Vm::Source), "{:?}", self.why());
        let here = ["eth0.status.yaml", "eth0.yaml"].map(str::to_owned).to_vec();
        assert_eq!(self.files(), [here, Vec::new()]);
        let want = &self.source.state.nics["eth0"].want;
        assert_eq!(
            (want.spec.goal, want.spec.migration.as_ref()),
            (Goal::FastPath, None)
        );
    }
}

#[tokio::test]
async fn a_vm_moves_with_its_nic_and_nothing_is_left_where_it_was() {
    let mut scene = Scene::new().await;
    scene.settle().await;
    scene.is_at_the_target();
    assert_eq!(scene.flight.status.encrypted, Some(true));
}

/// The driver dies after each of its writes, and another one begins again each time.
#[tokio::test]
async fn a_driver_that_dies_at_any_moment_leaves_nothing_undone() {
    // Each start writes its number into both orders first.
    for lives in 3..=6 {
        let mut scene = Scene::new().await;
        let mut starts = 0;
        while scene.phase() != MigrationPhase::Succeeded || scene.files()[0] != Vec::<String>::new() {
            assert!(starts < 100, "{:?}", scene.why());
            while scene.drive(lives) && starts < 100 {
                scene.agents().await;
                starts += 1;
            }
            starts += 1;
            scene.flight.session += 1;
            scene.agents().await;
        }
        scene.settle().await;
        scene.is_at_the_target();
    }
}

#[tokio::test]
async fn a_target_that_does_not_get_ready_costs_the_source_nothing() {
    let mut scene = Scene::new().await;
    scene.target.listens = false;
    scene.settle().await;
    assert_eq!(scene.phase(), MigrationPhase::PreparingTarget);
    assert_eq!(scene.source.state.nics["eth0"].want.spec.goal, Goal::FastPath);
    scene.waits.in_phase_for = Duration::from_mins(1);
    scene.settle().await;
    scene.is_back_at_the_source(MigrationPhase::Failed);
    let (reason, message) = scene.why();
    assert_eq!(reason, reasons::TARGET_NOT_READY);
    assert!(message.contains("h2 is not ready for eth0"), "{message}");
}

#[tokio::test]
async fn what_the_target_refuses_is_said() {
    let mut scene = Scene::new().await;
    fs::remove_file(scene.target.dir().join("fast.yaml")).unwrap();
    scene.settle().await;
    assert_eq!(scene.phase(), MigrationPhase::PreparingTarget);
    let (_, message) = scene.why();
    assert!(message.contains("NetworkNotFound"), "{message}");
    scene.flight.cancelled = true;
    scene.settle().await;
    scene.is_back_at_the_source(MigrationPhase::Cancelled);
}

/// The VM has left, and whether it has come nobody says: it is started nowhere, until a person decides or the target answers.
#[tokio::test]
async fn a_vm_of_which_nothing_is_known_runs_nowhere_new() {
    let mut scene = Scene::new().await;
    while scene.phase() != MigrationPhase::SwitchingToStandby {
        scene.drive(usize::MAX);
        scene.agents().await;
    }
    scene.reached = false;
    scene.settle().await;
    assert_eq!(
        (scene.phase(), scene.vm),
        (MigrationPhase::Transferring, Vm::Target)
    );
    scene.waits.silent_for = Duration::from_secs(31);
    scene.settle().await;
    assert_eq!(scene.why().0, reasons::TARGET_SILENT);
    // Called off too late: it stays so.
    scene.flight.cancelled = true;
    scene.settle().await;
    let source = &scene.source.state.nics["eth0"].want;
    assert_eq!(source.spec.goal, Goal::Standby);
    scene.reached = true;
    scene.settle().await;
    scene.is_at_the_target();
}

/// Both hosts may have a socket of the same path.
#[tokio::test]
async fn the_ends_are_told_apart() {
    let scene = Scene::new().await;
    let [source, target] = [Side::Source, Side::Target].map(|side| scene.flight.pod(side));
    assert_ne!(
        attachment_name("eth0", &source.uid),
        attachment_name("eth0", &target.uid)
    );
    assert_ne!(source.name, target.name);
}

#[path = "reach_tests.rs"]
mod reach;
