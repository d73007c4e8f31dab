//! What the agent has taken from its node, on disk: written and synced before each act, so that whatever the agent
//! was doing when it died can be continued or undone.
//!
//! One JSON file for each attachment, named by its uid. Only the journal has a VF's original
//! settings; everything else can be observed.
//!
//! One thread writes, in the order of the requests: a disk that is slow or hangs delays only tasks that wait for it.
//!
//! A file that cannot be read stays where it is, and only its own NIC suffers: no other NIC takes its VF, nothing overwrites it,
//! and the rest of the node goes on. A newer agent, or a person, may still understand it.

mod loan;
mod record;
mod unreadable;

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use hybridnic_api::{conditions::reasons, v1alpha1::Drain};
use hybridnic_net::PciAddress;
use tokio::{sync::oneshot, time::timeout};
use tracing::warn;

use crate::{
    durable::{FILE_MODE, found, set},
    error::HasReason,
};
pub use loan::{Lent, Loan};
pub use record::{
    Arrival, Begun, Custody, Record, Role, SandboxRecord, SaveStage, Saving, Seized, StandbyRecord, VERSION,
    VfRecord, VlanRecord, VmRecord, Watched,
};
use record::{Stamped, parse, understand};
pub use unreadable::Unreadable;

/// Only root may read it: it names VMs of all tenants, and their MACs.
const DIR_MODE: u32 = 0o700;
/// The file with the VFs that were given back with their parking MAC.
const PARKED: &str = "parked";
/// See [`Journal::drain`].
const DRAIN: &str = "drain";

/// The journal could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("journal {}: cannot {what}", path.display())]
pub struct JournalError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl HasReason for JournalError {
    fn reason(&self) -> &'static str {
        reasons::JOURNAL_FAILED
    }
}

/// All that the journal has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    /// What was understood.
    pub records: Vec<Record>,
    /// What was not.
    pub unreadable: Vec<Unreadable>,
    /// Uids of the pods of whose VMs something is remembered.
    pub vms: BTreeSet<String>,
}

/// How long a write may take.
const DEADLINE: Duration = Duration::from_secs(30);

type Job = Box<dyn FnOnce() + Send>;

/// The journal's directory, and the thread that writes there. Clones share both.
#[derive(Clone, Debug)]
pub struct Journal {
    dir: PathBuf,
    thread: mpsc::Sender<Job>,
    deadline: Duration,
}

impl Journal {
    /// Opens the directory, and makes it if it is not there.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, JournalError> {
        let dir = dir.into();
        let made = DirBuilder::new().recursive(true).mode(DIR_MODE).create(&dir);
        made.map_err(|source| JournalError {
            what: "make it",
            path: dir.clone(),
            source,
        })?;
        close_to_others(&dir, DIR_MODE);
        let (sender, jobs) = mpsc::channel::<Job>();
        thread::Builder::new()
            .name("journal".into())
            .spawn(move || jobs.into_iter().for_each(|job| job()))
            .map_err(|source| JournalError {
                what: "start its thread",
                path: dir.clone(),
                source,
            })?;
        Ok(Self {
            dir,
            thread: sender,
            deadline: DEADLINE,
        })
    }

    /// All records, at start: what a write that was cut short has left is removed.
    pub fn load(&self) -> Result<Contents, JournalError> {
        for path in self.list()? {
            close_to_others(&path, FILE_MODE);
            // The file that it would have replaced still holds.
            if path.extension().is_some_and(|e| e == "tmp")
                && let Err(error) = fs::remove_file(&path)
            {
                warn!(path = %path.display(), %error, "cannot remove what a write that was cut short has left");
            }
        }
        self.read()
    }

    /// All records, as they are after all writes requested before. An error means that the records are not known.
    pub async fn contents(&self) -> Result<Contents, JournalError> {
        let journal = self.clone();
        let read = move || Ok(journal.read());
        self.run("list", self.dir.clone(), read, |_| ()).await?
    }

    fn read(&self) -> Result<Contents, JournalError> {
        let mut contents = Contents::default();
        for path in self.list()? {
            match path.extension() {
                Some(e) if e == "json" => {}
                Some(e) if e == "vm" => {
                    let pod = path.file_stem().map(|pod| pod.to_string_lossy().into_owned());
                    contents.vms.extend(pod);
                    continue;
                }
                _ => continue,
            }
            match fs::read(&path) {
                Ok(text) => match parse(&text) {
                    Ok(record) => contents.records.push(record),
                    Err(why) => contents.unreadable.push(Unreadable::new(&path, why, &text)),
                },
                // Its attachment has left meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => contents
                    .unreadable
                    .push(Unreadable::new(&path, e.to_string(), &[])),
            }
        }
        Ok(contents)
    }

    fn list(&self) -> Result<Vec<PathBuf>, JournalError> {
        let list = || {
            fs::read_dir(&self.dir)?
                .map(|entry| Ok(entry?.path()))
                .collect::<io::Result<_>>()
        };
        list().map_err(|source| JournalError {
            what: "list",
            path: self.dir.clone(),
            source,
        })
    }

    /// Writes a record and returns once it is on disk. After an error the file is as it was.
    pub fn write(&self, record: &Record) -> impl Future<Output = Result<(), JournalError>> + use<> {
        let path = self.path(&record.uid);
        let text = serde_json::to_vec_pretty(record)
            .map(|mut text| {
                text.push(b'\n');
                text
            })
            .map_err(io::Error::from);
        self.put("write", path, text.map(Some))
    }

    /// Removes a record; nothing to do where there is none.
    pub fn remove(&self, uid: &str) -> impl Future<Output = Result<(), JournalError>> + use<> {
        self.put("remove", self.path(uid), Ok(None))
    }

    /// What is remembered of a pod's VM; `None` where nothing was written. A file that cannot be read or understood is an
    /// error, and not "nothing".
    pub fn vm(&self, pod_uid: &str) -> impl Future<Output = Result<Option<VmRecord>, JournalError>> + use<> {
        let path = self.vm_path(pod_uid);
        let file = path.clone();
        let read = move || {
            let text = found(fs::read(&file))?;
            let understood = text.map(|text| understand(&text)).transpose();
            understood.map_err(io::Error::other)
        };
        self.run("read", path, read, |_| ())
    }

    /// Writes what is remembered of a pod's VM and returns once it is on disk.
    pub fn write_vm(
        &self,
        pod_uid: &str,
        record: &VmRecord,
    ) -> impl Future<Output = Result<(), JournalError>> + use<> {
        let version = VERSION;
        let text = serde_json::to_vec(&Stamped { version, record }).map_err(io::Error::from);
        self.put("write", self.vm_path(pod_uid), text.map(Some))
    }

    /// Forgets a pod's VM once the pod has no NIC left here.
    pub fn remove_vm(&self, pod_uid: &str) -> impl Future<Output = Result<(), JournalError>> + use<> {
        self.put("remove", self.vm_path(pod_uid), Ok(None))
    }

    /// Makes this the content of a file, or removes it. Takes its turn at once. A write that failed, or that nobody waits for
    /// any more, is undone: what the caller does not know has not happened.
    fn put(
        &self,
        what: &'static str,
        path: PathBuf,
        content: io::Result<Option<Vec<u8>>>,
    ) -> impl Future<Output = Result<(), JournalError>> + use<> {
        let (dir, file) = (self.dir.clone(), path.clone());
        let put = move || {
            let content = content?;
            let before = found(fs::read(&file))?;
            let done = set(&dir, &file, content.as_deref());
            if done.is_err() {
                // It cannot be helped if that fails too.
                let _ = set(&dir, &file, before.as_deref());
            }
            done.map(|()| before)
        };
        let (dir, file) = (self.dir.clone(), path.clone());
        let undo = move |before: Option<Vec<u8>>| {
            let path = file.display();
            match set(&dir, &file, before.as_deref()) {
                Ok(()) => warn!(%path, "a write of the journal came too late, and was undone"),
                Err(error) => warn!(%path, %error, "a write of the journal came too late, and is not undone"),
            }
        };
        let run = self.run(what, path, put, undo);
        async { run.await.map(|_| ()) }
    }

    /// Runs work on the journal's thread, in its turn. `undo` gets the result if the caller has stopped waiting.
    fn run<T, W, U>(
        &self,
        what: &'static str,
        path: PathBuf,
        work: W,
        undo: U,
    ) -> impl Future<Output = Result<T, JournalError>> + use<T, W, U>
    where
        T: Send + 'static,
        W: FnOnce() -> io::Result<T> + Send + 'static,
        U: FnOnce(T) + Send + 'static,
    {
        let (sender, mut answer) = oneshot::channel();
        let job = move || {
            if sender.is_closed() {
                return;
            }
            if let Err(Ok(done)) = sender.send(work()) {
                undo(done);
            }
        };
        let sent = self.thread.send(Box::new(job));
        let deadline = self.deadline;
        async move {
            let fail = |source| JournalError { what, path, source };
            if sent.is_err() {
                return Err(fail(io::Error::other("its thread has ended")));
            }
            let late = || io::Error::new(io::ErrorKind::TimedOut, format!("not done within {deadline:?}"));
            let result = if let Ok(result) = timeout(deadline, &mut answer).await {
                result.map_err(io::Error::other)
            } else {
                // It may be done in this very moment; from now on it is undone.
                answer.close();
                answer.try_recv().map_err(|_| late())
            };
            result.flatten().map_err(fail)
        }
    }

    fn vm_path(&self, pod_uid: &str) -> PathBuf {
        self.path(pod_uid).with_extension("vm")
    }

    /// The VFs that were given back with their parking MAC.
    pub fn parked(&self) -> Result<BTreeSet<PciAddress>, JournalError> {
        let path = self.dir.join(PARKED);
        let read = || match fs::read_to_string(&path) {
            Ok(text) => text
                .lines()
                .map(|line| line.parse().map_err(io::Error::other))
                .collect(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(e) => Err(e),
        };
        read().map_err(|source| JournalError {
            what: "read",
            path: path.clone(),
            source,
        })
    }

    /// Notes which VFs were given back with their parking MAC.
    pub fn set_parked(
        &self,
        vfs: &BTreeSet<PciAddress>,
    ) -> impl Future<Output = Result<(), JournalError>> + use<> {
        let lines: Vec<_> = vfs.iter().map(ToString::to_string).collect();
        let text = lines.join("\n").into_bytes();
        self.put("write", self.dir.join(PARKED), Ok(Some(text)))
    }

    /// The drain of the node, as last heard.
    pub fn drain(&self) -> Result<Drain, JournalError> {
        let path = self.dir.join(DRAIN);
        let read = || match found(fs::read(&path))? {
            Some(content) => serde_json::from_slice(&content).map_err(io::Error::other),
            None => Ok(Drain::default()),
        };
        read().map_err(|source| JournalError {
            what: "read",
            path: path.clone(),
            source,
        })
    }

    /// Notes what the node is to be drained of.
    pub fn set_drain(&self, drain: &Drain) -> impl Future<Output = Result<(), JournalError>> + use<> {
        let content = serde_json::to_vec(drain).map_err(io::Error::other);
        self.put("write", self.dir.join(DRAIN), content.map(Some))
    }

    fn path(&self, uid: &str) -> PathBuf {
        // Uids come from the API server; still, a uid must not become a path.
        let safe: String = uid
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
            .collect();
        self.dir.join(format!("{safe}.json"))
    }
}

/// For files that were made with more permissions. A file system without permissions works as well.
fn close_to_others(path: &Path, mode: u32) {
    if let Err(error) = fs::set_permissions(path, Permissions::from_mode(mode)) {
        warn!(path = %path.display(), %error, "the journal stays open to others");
    }
}

#[cfg(test)]
pub(crate) mod tests;
