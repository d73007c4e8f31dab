//! Drives a migration: looks at both ends, decides, keeps what it has decided, and only then tells the ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use hybridnic_api::{
    conditions::{self, reasons, types},
    v1alpha1::{MigrationPhase, QemuMigrationStatus},
};
use hybridnic_flight::migration::{
    phases::Phases,
    worth::{self, Worth},
};
use hybridnic_process::backoff::Backoff;
use jiff::Timestamp;
use tokio_util::task::AbortOnDropHandle;

use super::{
    super::{
        ctl::LATE,
        dir::{Change, Dir},
    },
    far::{Far, Way},
    hand::{Command, Hand, Seen},
    has_begun, keep,
    plan::{Both, Flight, Rules, Side},
    reach::AWAY,
    serve::Line,
};

/// After this a driver looks again though nothing has told it to.
const LOOK_AGAIN: Duration = Duration::from_secs(15);
/// The pause after a host could not be reached.
const BACKOFF: Duration = Duration::from_secs(1);
/// See [`BACKOFF`].
const BACKOFF_CAP: Duration = Duration::from_secs(15);
/// How long a host that does not answer is waited for when all is over, and only its files are left to be put in order.
const FAREWELL: Duration = Duration::from_secs(30);

/// All that a driver needs.
#[derive(Debug)]
pub struct Driver<'a> {
    /// The directory here.
    pub dir: &'a Path,
    /// How to go about it.
    pub rules: Rules,
    /// How long the other host may be silent.
    pub patience: Duration,
    /// This end.
    pub here: Hand,
    /// The other end.
    pub there: There,
}

/// The other end, and the connection to it, if there is one.
#[derive(Debug)]
pub struct There {
    way: Way,
    dir: PathBuf,
    nics: BTreeSet<String>,
    /// The host's name, by its agent.
    node: String,
    far: Option<Far>,
    connecting: Option<AbortOnDropHandle<anyhow::Result<(Far, Seen)>>>,
    backoff: Backoff,
    /// Since when each try to reach it has failed.
    failing: Option<Instant>,
    /// Why the last one has.
    why: String,
    /// Another host that has answered in its place.
    stranger: Option<String>,
    /// What was seen last.
    seen: Option<Seen>,
    /// What it would not do, by the NIC.
    refused: BTreeMap<String, String>,
    /// When anything was heard last, or when it was first waited for.
    heard: Instant,
}

impl There {
    /// With a connection, if there is one already.
    pub fn new(way: Way, flight: &Flight, connected: Option<(Far, Seen)>) -> Self {
        let (far, seen) = connected.unzip();
        Self {
            way,
            dir: flight.dir.clone(),
            nics: flight.nics.keys().cloned().collect(),
            node: flight.target.node.clone(),
            far,
            connecting: None,
            backoff: Backoff::new(BACKOFF, BACKOFF_CAP),
            failing: None,
            why: String::new(),
            stranger: None,
            seen,
            refused: BTreeMap::new(),
            heard: Instant::now(),
        }
    }

    /// What is seen there, and what it would not do.
    fn seen(&self) -> Option<Seen> {
        let mut seen = self.seen.clone()?;
        for (name, why) in &self.refused {
            if let Some(nic) = seen.nics.get_mut(name) {
                nic.refusal.get_or_insert_with(|| why.clone());
            }
        }
        Some(seen)
    }

    /// For how long it has not answered; nothing while it is there.
    fn silent_for(&self) -> Option<Duration> {
        self.far.is_none().then(|| self.heard.elapsed())
    }

    /// For how long each try to reach it has failed; nothing while it is there, or none has failed yet.
    fn failing_for(&self) -> Option<Duration> {
        self.failing.map(|since| since.elapsed())
    }

    /// A name may lead to another host by now, and what that says is not the target's word.
    fn see(&mut self, seen: Seen) {
        if seen.node == self.node {
            (self.seen, self.heard) = (Some(seen), Instant::now());
        } else {
            (self.stranger, self.far) = (Some(seen.node), None);
        }
    }

    fn lose(&mut self, why: &str) {
        eprintln!("the connection is lost ({why}); tried again");
        (self.far, self.heard) = (None, Instant::now());
    }

    /// Has a command done there; whether something has changed there since.
    async fn tell(&mut self, command: &Command) -> bool {
        let Some(far) = &mut self.far else {
            return false;
        };
        match far.tell(command).await {
            Ok((done, seen)) => {
                self.heard = Instant::now();
                let news = seen.is_some();
                if let Some(seen) = seen {
                    self.see(seen);
                }
                let nic = match command {
                    Command::Order { nic, .. } => nic.as_str(),
                    Command::Look | Command::File { .. } | Command::Forget { .. } => "",
                };
                self.refused.remove(nic);
                if let Err(why) = done {
                    eprintln!("the target refuses: {why}");
                    self.refused.insert(nic.to_owned(), why);
                }
                news
            }
            Err(error) => {
                self.lose(&format!("{error:#}"));
                false
            }
        }
    }

    /// Resolves when something was heard, or the connection is there or gone. May be dropped before.
    async fn changed(&mut self) {
        if let Some(far) = &mut self.far {
            match far.next().await {
                Ok(Line::Seen(seen)) => self.see(*seen),
                Ok(Line::Done(_)) => {}
                Err(why) => self.lose(&why),
            }
            return;
        }
        let connecting = self.connecting.get_or_insert_with(|| {
            let (way, dir, nics) = (self.way.clone(), self.dir.clone(), self.nics.clone());
            let pause = self.failing.map(|_| self.backoff.next_pause());
            AbortOnDropHandle::new(tokio::spawn(async move {
                tokio::time::sleep(pause.unwrap_or_default()).await;
                Far::connect(&way, &dir, &nics).await
            }))
        });
        let connected = connecting.await;
        self.connecting = None;
        match connected {
            Ok(Ok((far, seen))) => {
                (self.far, self.failing) = (Some(far), None);
                self.why.clear();
                self.backoff.reset();
                self.see(seen);
            }
            Ok(Err(error)) => {
                self.failing.get_or_insert_with(Instant::now);
                let why = format!("the target does not answer: {error:#}; tried again");
                if why != self.why {
                    eprintln!("{why}");
                    self.why = why;
                }
            }
            // It was dropped.
            Err(_) => {}
        }
    }
}

impl Driver<'_> {
    /// Until it is over.
    pub async fn run(mut self, mut flight: Flight) -> anyhow::Result<ExitCode> {
        let watched = Dir::open(self.dir).with_context(|| format!("the directory {}", self.dir.display()))?;
        let name = flight.name();
        let phases = Phases::default();
        let mut said = String::new();
        let mut over = None;
        let mut lags = None;
        let mut blind = None;
        loop {
            if self.is_misled(&flight) {
                return Ok(ExitCode::from(LATE));
            }
            let source = match self.here.look() {
                Ok(seen) => {
                    blind = None;
                    seen
                }
                Err(error) => {
                    let blind_for = blind.get_or_insert_with(Instant::now).elapsed();
                    if self.is_blind(&flight, &error, blind_for) {
                        return Ok(ExitCode::from(LATE));
                    }
                    self.rest(&watched, LOOK_AGAIN).await?;
                    continue;
                }
            };
            let target = self.there.seen();
            let both = Both {
                source: &source,
                target: target.as_ref(),
                failing_for: self.there.failing_for(),
            };
            if !flight.may_go_on(both) {
                if self.is_late(&flight) {
                    return Ok(ExitCode::from(LATE));
                }
                let asks = format!("{name}: {} is asked first what it knows", flight.target.node);
                if asks != said {
                    eprintln!("{asks}");
                    said = asks;
                }
                let left = both.failing_for.map(|failing| AWAY.saturating_sub(failing));
                self.rest(&watched, left.unwrap_or(LOOK_AGAIN)).await?;
                continue;
            }
            let silent = flight.ends(both).is_some_and(|(_, ends)| ends.is_silent());
            let waits = phases.waits(&flight.migration(), silent, Instant::now());
            let decide = format!("{} --decision ResumeSource", flight.command(self.dir));
            let next = flight.step(both, waits, self.rules, Timestamp::now(), decide);
            let rest = match worth::write(Some(&flight.status), &next.status, waits.in_phase_for) {
                Worth::Now => {
                    flight.status = next.status;
                    if flight.ends(both).is_some() {
                        // Before anybody is told.
                        keep(self.dir, Some(&flight), &name)?;
                    }
                    None
                }
                Worth::In(rest) => Some(rest),
                Worth::Nothing => None,
            };
            let line = line(&name, &flight.status);
            if line != said {
                eprintln!("{line}");
                said = line;
            }
            if flight.status.phase == MigrationPhase::Pending {
                self.may_begin(&flight.status, waits.in_phase_for)?;
            }
            if self.tell(&flight.changes(both)).await? {
                continue;
            }
            if flight.status.phase.is_final() {
                let over_for = over.get_or_insert_with(Instant::now).elapsed();
                if let Some(end) = self.end(&flight, both, over_for)? {
                    return Ok(end);
                }
            } else if self.is_late(&flight) {
                return Ok(ExitCode::from(LATE));
            } else if flight.source_lags(both) {
                let lags_for = lags.get_or_insert_with(Instant::now).elapsed();
                if lags_for >= self.patience {
                    eprintln!(
                        "the agent of {} has not taken in for {} s what it was told. {}",
                        flight.source.node,
                        lags_for.as_secs(),
                        self.once_more(&flight)
                    );
                    return Ok(ExitCode::from(LATE));
                }
            } else {
                lags = None;
            }
            let pause = [next.again, rest]
                .into_iter()
                .flatten()
                .fold(LOOK_AGAIN, Duration::min);
            self.rest(&watched, pause).await?;
        }
    }

    /// Until something has happened at an end; not for longer than this.
    async fn rest(&mut self, watched: &Dir, pause: Duration) -> anyhow::Result<()> {
        tokio::select! {
            change = watched.changed() => {
                ensure!(change != Change::Lost, "the directory {} has gone", self.dir.display());
            }
            () = self.there.changed() => {}
            () = tokio::time::sleep(pause) => {
                if self.there.heard.elapsed() >= LOOK_AGAIN {
                    self.there.tell(&Command::Look).await;
                }
            }
        }
        Ok(())
    }

    /// Tells both ends; whether anything has changed there since.
    async fn tell(&mut self, changes: &[(Side, Command)]) -> anyhow::Result<bool> {
        let mut news = false;
        for (side, command) in changes {
            news |= match side {
                Side::Source => {
                    let told = self.here.apply(command);
                    told.with_context(|| format!("the directory {}", self.dir.display()))?;
                    true
                }
                Side::Target => self.there.tell(command).await,
            };
        }
        Ok(news)
    }

    /// What is to be done when this command ends before the migration does.
    fn once_more(&self, flight: &Flight) -> String {
        if !has_begun(self.dir, &flight.name()) {
            return "Nothing has begun".to_owned();
        }
        format!(
            "What has begun stays as it is; to go on, say: {}",
            flight.command(self.dir)
        )
    }

    /// What does not pass by itself is an error: nothing has begun.
    fn may_begin(&self, status: &QemuMigrationStatus, waited: Duration) -> anyhow::Result<()> {
        let Some(why) = conditions::find(&status.conditions, types::SUCCEEDED) else {
            return Ok(());
        };
        let passes = [reasons::AGENT_PENDING, reasons::PROGRESSING].contains(&why.reason.as_str());
        if passes && waited < self.rules.deadlines.prepare {
            return Ok(());
        }
        bail!("{}: {}. Nothing has begun", why.reason, why.message)
    }

    /// What the command ends with; `None` while something is left to be put in order.
    fn end(&self, flight: &Flight, both: Both<'_>, over_for: Duration) -> anyhow::Result<Option<ExitCode>> {
        let name = flight.name();
        let code = match flight.status.phase {
            MigrationPhase::Succeeded => ExitCode::SUCCESS,
            MigrationPhase::Cancelled if flight.cancelled => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        };
        let left = |side| flight.is_left(both, side) != Some(false);
        let begun = flight.ends(both).is_some();
        if !begun || !left(Side::Source) && !left(Side::Target) {
            keep(self.dir, None, &name)?;
            return Ok(Some(code));
        }
        let silent = self.there.silent_for().is_some_and(|silent| silent >= FAREWELL);
        let waits = !silent || left(Side::Source);
        if waits && over_for < self.patience {
            return Ok(None);
        }
        let end = if left(Side::Source) {
            &flight.source
        } else {
            &flight.target
        };
        eprintln!(
            "the agent of {} does not answer; what is left of {name} there is put in order when you say: {}",
            end.node,
            flight.command(self.dir)
        );
        let late = left(Side::Source) || flight.status.phase == MigrationPhase::Succeeded;
        Ok(Some(if late { ExitCode::from(LATE) } else { code }))
    }

    /// Whether another host answers in the target's place.
    fn is_misled(&self, flight: &Flight) -> bool {
        let Some(stranger) = &self.there.stranger else {
            return false;
        };
        eprintln!(
            "{} answers as {stranger}, and the migration goes to {}: nothing is told to it. {}",
            flight.host,
            flight.target.node,
            self.once_more(flight)
        );
        true
    }

    /// Whether this end could not be looked at for too long.
    fn is_blind(&self, flight: &Flight, error: &io::Error, blind_for: Duration) -> bool {
        let dir = self.dir.display();
        let blind = blind_for >= self.patience;
        if blind {
            let seconds = blind_for.as_secs();
            eprintln!("{dir}: {error}, for {seconds} s. {}", self.once_more(flight));
        } else {
            eprintln!("{dir}: {error}; looked at again");
        }
        blind
    }

    /// Whether the other host has been silent for too long, while the migration is not over.
    fn is_late(&self, flight: &Flight) -> bool {
        let silent = self.there.silent_for().unwrap_or_default();
        let late = silent >= self.patience;
        if late {
            eprintln!(
                "{} has not answered for {} s. {}",
                flight.target.node,
                silent.as_secs(),
                self.once_more(flight)
            );
        }
        late
    }
}

/// How a migration is, in a line.
fn line(name: &str, status: &QemuMigrationStatus) -> String {
    let phase: &str = status.phase.into();
    let why = conditions::find(&status.conditions, types::SUCCEEDED);
    let why = why.map_or_else(String::new, |why| format!(": {}: {}", why.reason, why.message));
    let ms = |word: &str, ms: Option<i64>| ms.map_or_else(String::new, |ms| format!("; {word} {ms} ms"));
    let times = if status.phase.is_final() {
        ms("in all", status.total_ms) + &ms("the VM's pause", status.downtime_ms)
    } else {
        String::new()
    };
    format!("{name}: {phase}{why}{times}")
}
