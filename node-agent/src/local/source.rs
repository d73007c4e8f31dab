//! What should be here, from files: reads them as they change, decides, and says what has become of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hybridnic_api::{conditions::reasons, v1alpha1::NodePool};
use hybridnic_process::backoff::Backoff;
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tracing::{error, info, warn};

use super::{
    board::Board,
    decide::{self, NAMESPACE, Nic, Reading, State, held},
    dir::{Change, Content, Dir},
    file,
    host_file::HostFile,
    line::Line,
    order,
};
use crate::{
    error::chain,
    host::Host,
    journal::Contents,
    node::publish::SeenNode,
    wants::{Heard, WantId, Wants},
};

/// How long a file may be away before that counts: editors move one away before they put another in its place.
const GRACE: Duration = Duration::from_secs(2);
/// When what could not be read or written is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// How soon a directory that has gone is looked for, doubled up to the cap: nobody tells of it.
const LOST: Duration = Duration::from_secs(1);
/// See [`LOST`].
const LOST_CAP: Duration = Duration::from_secs(15);
/// How many wants wait to be heard.
const HEARD: usize = 64;

/// Reads the files, and keeps their status.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    dir: Dir,
    host: Arc<Host>,
    board: Arc<Board>,
    /// What is asked of the host itself.
    host_file: HostFile,
    /// What tells the host's MAC addresses from those of others.
    seed: String,
    state: State,
    pools: Vec<NodePool>,
    /// Uids that NICs have had, by their name.
    uids: BTreeMap<String, String>,
    /// The files that were seen in this directory, or whose status was there when it was opened.
    proven: BTreeSet<String>,
    /// The NICs and networks of which it is not known whether their file is there.
    unseen: BTreeSet<String>,
    /// When to read a file once more that is away.
    due: BTreeMap<String, Instant>,
    /// When to try once more what has failed.
    again: Option<Instant>,
    begun: bool,
    heard: mpsc::Sender<Heard>,
    left: mpsc::UnboundedReceiver<String>,
}

/// What files ask for, as the attachments hear it.
#[derive(Debug)]
pub struct Files {
    heard: mpsc::Receiver<Heard>,
    board: Arc<Board>,
    left: mpsc::UnboundedSender<String>,
}

/// The files of this directory, on a host of which the journal has this. `versions` is told which version of the host's own file was seen.
pub fn open(
    path: &Path,
    host: &Arc<Host>,
    board: &Arc<Board>,
    seed: String,
    journal: &Contents,
    versions: watch::Sender<Option<SeenNode>>,
) -> io::Result<(Source, Files)> {
    let (heard, hearing) = mpsc::channel(HEARD);
    let (leaving, left) = mpsc::unbounded_channel();
    let mut source = Source {
        path: path.to_owned(),
        dir: Dir::open(path)?,
        host: Arc::clone(host),
        board: Arc::clone(board),
        host_file: HostFile::new(versions),
        seed,
        state: State::default(),
        pools: Vec::new(),
        uids: BTreeMap::new(),
        proven: BTreeSet::new(),
        unseen: BTreeSet::new(),
        due: BTreeMap::new(),
        again: None,
        begun: false,
        heard,
        left,
    };
    for record in journal.records.iter().filter(|record| record.socket.is_some()) {
        let want = held(record);
        source.state.nics.insert(want.id.name.clone(), Nic { want });
    }
    for unreadable in &journal.unreadable {
        let name = unreadable
            .nic
            .as_deref()
            .and_then(|nic| nic.strip_prefix(NAMESPACE)?.strip_prefix('/'));
        if let Some(name) = name {
            source.uids.insert(name.to_owned(), unreadable.uid.clone());
        }
    }
    source.enter();
    source.read_all()?;
    let files = Files {
        heard: hearing,
        board: Arc::clone(board),
        left: leaving,
    };
    Ok((source, files))
}

impl Source {
    /// Follows the files.
    pub async fn run(mut self) -> Infallible {
        loop {
            self.act().await;
            while !self.follow().await {
                self.act().await;
            }
            self.find_again().await;
        }
    }

    /// Waits until something has happened, and takes it in; whether that is the end of the directory.
    async fn follow(&mut self) -> bool {
        let next = self.due.values().copied().chain(self.again).min();
        let rest = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            change = self.dir.changed() => match change {
                Change::Files(names) => {
                    for name in names {
                        self.read(&name);
                        let told = self.board.again(&name).await;
                        self.try_again(told);
                    }
                }
                Change::Any => self.look_at_all().await,
                Change::Lost => return true,
            },
            Some(uid) = self.left.recv() => self.on_left(&uid).await,
            () = rest => self.on_time().await,
        }
        false
    }

    /// What is asked for is not known, and stays as it was, until there is such a directory again.
    async fn find_again(&mut self) {
        let what = format!("the directory {}", self.path.display());
        let mut backoff = Backoff::new(LOST, LOST_CAP);
        loop {
            self.board.hide().await;
            self.host_file.hide();
            match Dir::open(&self.path) {
                Ok(dir) => {
                    self.dir = dir;
                    self.proven.clear();
                    self.due.clear();
                    self.enter();
                    match self.read_all() {
                        Ok(()) => break,
                        Err(error) => warn!(%error, "{what} cannot be read"),
                    }
                }
                Err(error) => {
                    let why = format!(
                        "{what} is gone, or others can write to it: {error}. All NICs stay as they are; make it again, with their files"
                    );
                    warn!("{why}");
                    self.host.troubles.begin(&what, reasons::FILE_UNKNOWN, why);
                }
            }
            backoff.pause().await;
        }
        info!("{what} is read again");
        self.host.troubles.end(&what);
    }

    /// Says all in this directory from now on. Before anything is said, what is there tells what an earlier agent has seen.
    fn enter(&mut self) {
        if let Some(version) = self.board.seen_of_host(self.dir.place()) {
            self.host_file.prove(version);
        }
        self.board.enter(self.dir.place());
    }

    fn read_all(&mut self) -> io::Result<()> {
        let (asked, told) = self.dir.names()?;
        self.proven.extend(told.iter().cloned());
        for name in &told {
            if let Some(uid) = self.board.uid(name)
                && !self.is_taken(name, &uid)
            {
                self.uids.entry(name.clone()).or_insert(uid);
            }
        }
        self.read_host();
        let known = self.state.nics.keys().chain(self.state.readings.keys()).cloned();
        let ordered = self.dir.ordered()?;
        let known = known.chain(self.state.orders.keys().cloned());
        let all: BTreeSet<String> = known.chain(asked).chain(told).chain(ordered).collect();
        for name in all.iter().filter(|name| *name != file::NODE) {
            self.read(name);
        }
        Ok(())
    }

    /// Reads all, and says once more what was taken away.
    async fn look_at_all(&mut self) {
        let read = self.read_all();
        self.try_again(read);
        let told = self.board.all_again().await;
        self.try_again(told);
    }

    fn read_host(&mut self) {
        let name = file::NODE.to_owned();
        let content = self.dir.read(&name);
        if matches!(content, Content::Unknown(_)) {
            self.look_again();
        }
        if self.host_file.read(content, &self.host.pools.drain()) {
            self.due.entry(name).or_insert_with(|| Instant::now() + GRACE);
        } else {
            self.due.remove(&name);
        }
    }

    /// Whether another NIC has this uid.
    fn is_taken(&self, name: &str, uid: &str) -> bool {
        let here = self.state.nics.iter().map(|(name, nic)| (name, &nic.want.id.uid));
        here.chain(&self.uids)
            .any(|(other, has)| other != name && has == uid)
    }

    /// Reads what is ordered of a NIC. That the order was here proves the directory.
    fn read_order(&mut self, name: &str) {
        let reading = match self.dir.read_order(name) {
            Content::Text(text) => order::parse(&text),
            Content::Unreadable(why) => order::Reading::Unknown(why),
            Content::Unknown(why) => {
                self.unseen(name);
                order::Reading::Unknown(why)
            }
            Content::Absent => {
                self.state.orders.remove(name);
                return;
            }
        };
        if matches!(reading, order::Reading::Says(..)) {
            self.proven.insert(name.to_owned());
        }
        self.state.orders.insert(name.to_owned(), reading);
    }

    fn read(&mut self, name: &str) {
        if name == file::NODE {
            return self.read_host();
        }
        self.unseen.remove(name);
        self.read_order(name);
        let reading = match self.dir.read(name) {
            Content::Text(text) => {
                let generation = file::generation(&text);
                match file::parse(name, &text, self.state.before(name).as_ref()) {
                    Ok(asked) => Reading::Asks(asked, generation),
                    Err(why) => Reading::Unknown(Some(generation), why),
                }
            }
            Content::Unreadable(why) => Reading::Unknown(None, why),
            Content::Unknown(why) => {
                self.unseen(name);
                self.due.remove(name);
                return self.state.read(name, Reading::Unknown(None, why));
            }
            Content::Absent => {
                let is_known = self.state.nics.contains_key(name)
                    || self.state.readings.contains_key(name)
                    || self.proven.contains(name);
                let is_gone = matches!(
                    self.state.readings.get(name),
                    Some(Reading::Removed | Reading::Unproven)
                );
                if is_known && !is_gone {
                    self.due
                        .entry(name.to_owned())
                        .or_insert_with(|| Instant::now() + GRACE);
                    self.state.read(name, Reading::Missing);
                }
                return;
            }
        };
        self.due.remove(name);
        self.proven.insert(name.to_owned());
        self.state.read(name, reading);
    }

    /// What was away is away for good, or is back; what has failed is tried again with all else.
    async fn on_time(&mut self) {
        let now = Instant::now();
        if self.again.take_if(|again| *again <= now).is_some() {
            self.look_at_all().await;
        }
        let due = self.due.iter().filter(|(_, at)| **at <= now);
        let due: Vec<String> = due.map(|(name, _)| name.clone()).collect();
        for name in due {
            self.read(&name);
            // It is away still.
            if self.due.remove(&name).is_some() {
                if name == file::NODE {
                    self.host_file.gone();
                    continue;
                }
                let proven = self.proven.contains(&name);
                let reading = if proven {
                    Reading::Removed
                } else {
                    Reading::Unproven
                };
                self.state.read(&name, reading);
            }
        }
    }

    /// Nothing of a NIC is here any more. A file of its name may ask for another one.
    async fn on_left(&mut self, uid: &str) {
        if let Some(name) = self.state.left(uid) {
            info!(nic = name, "it has left");
            self.uids.remove(&name);
            let forgotten = self.board.forget(&name).await;
            self.try_again(forgotten);
            self.hear(Heard::Gone(uid.to_owned())).await;
        }
    }

    /// Decides on what is known now, and has it done.
    async fn act(&mut self) {
        // Before the pools: no NIC is to get what is drained.
        self.host_file.act(&self.host).await;
        let cards = if self.state.has_new() {
            self.cards().await
        } else {
            None
        };
        let host = decide::Host {
            node: self.host.options.node_name.clone(),
            seed: self.seed.clone(),
            cards,
            now: Timestamp::now().as_second(),
        };
        let uids = &mut self.uids;
        let outcome = self.state.decide(&host, |name| {
            uids.entry(name.to_owned()).or_insert_with(new_uid).clone()
        });
        for (name, verdict) in &outcome.said {
            let what = format!("the file {}", file::asking(name));
            let is_unseen = self.state.readings.get(name) == Some(&Reading::Unproven)
                || self.unseen.contains(name) && !self.proven.contains(name);
            if is_unseen {
                // Nothing is written for it: that would prove what is not proven.
                let why = verdict.refusal.as_ref().map(|(_, why)| format!("{name}: {why}"));
                let why = why.unwrap_or_default();
                self.host.troubles.begin(&what, reasons::FILE_UNKNOWN, why);
                continue;
            }
            self.host.troubles.end(&what);
            let want = self.state.nics.get(name).map(|nic| &nic.want);
            let said = self.board.say(name, verdict, want).await;
            self.try_again(said);
        }
        for name in &outcome.forgotten {
            self.uids.remove(name);
            self.proven.remove(name);
            self.host
                .troubles
                .end(&format!("the file {}", file::asking(name)));
            let forgotten = self.board.forget(name).await;
            self.try_again(forgotten);
        }
        let pools = self.state.pools();
        if self.pools != pools {
            self.host.pools.set_pools(&pools);
            self.pools = pools;
        }
        let wants = if self.begun {
            outcome.wants
        } else {
            self.hear(Heard::Begins).await;
            self.state.nics.values().map(|nic| nic.want.clone()).collect()
        };
        for want in wants {
            self.hear(Heard::Wanted(Box::new(want))).await;
        }
        if !self.begun {
            self.begun = true;
            self.hear(Heard::Ends).await;
        }
    }

    /// The addresses of the host's PFs; `None` where they are not known now.
    async fn cards(&mut self) -> Option<BTreeSet<String>> {
        match self.host.inventory().await {
            Ok(inventory) => Some(
                inventory
                    .pfs
                    .iter()
                    .filter_map(|pf| pf.mac)
                    .map(|mac| mac.to_string())
                    .collect(),
            ),
            Err(error) => {
                warn!(error = chain(&error), "the host's PFs cannot be read");
                self.look_again();
                None
            }
        }
    }

    fn try_again(&mut self, done: io::Result<()>) {
        if let Err(error) = done {
            warn!(dir = %self.path.display(), %error, "the directory cannot be read or written; tried again");
            self.look_again();
        }
    }

    fn unseen(&mut self, name: &str) {
        self.unseen.insert(name.to_owned());
        self.look_again();
    }

    /// Nobody tells when what could not be read can be.
    fn look_again(&mut self) {
        self.again = Some(Instant::now() + AGAIN);
    }

    async fn hear(&self, mut heard: Heard) {
        if let Heard::Wanted(want) = &mut heard {
            // What was said of a migration stands.
            want.status = self.board.attached(&want.id.name, &want.id.uid);
        }
        if self.heard.send(heard).await.is_err() {
            error!("nobody hears what files ask for");
        }
    }
}

impl Wants for Files {
    type Teller = Line;

    async fn next(&mut self) -> Option<Heard> {
        self.heard.recv().await
    }

    fn teller(&self, of: &WantId) -> Line {
        Line {
            board: Arc::clone(&self.board),
            name: of.name.clone(),
            uid: of.uid.clone(),
            left: self.left.clone(),
        }
    }
}

/// A uid that none has had.
pub(super) fn new_uid() -> String {
    let uid = fs::read_to_string("/proc/sys/kernel/random/uuid");
    let by_time = |_| format!("{:032x}", Timestamp::now().as_nanosecond());
    uid.map_or_else(by_time, |uid| uid.trim().to_owned())
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
