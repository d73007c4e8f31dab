//! What the agent has taken of its node, on disk: written and synced before each act, so that whatever the agent
//! was doing when it died can be gone on with or taken back.
//!
//! One JSON file for each attachment, named by its uid. The journal is the only memory of a VF's original
//! settings; all else can be observed.
//!
//! One thread writes, in the order that it was asked: a disk that is slow or hangs delays who waits for it, and nobody else.
//!
//! A file that cannot be read is left where it is and costs its own NIC only: nobody takes its VF, nobody writes over it,
//! and the rest of the node goes on. A newer agent, or a person, may still understand it.

use std::{
    collections::BTreeSet,
    fmt,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use hybridnic_api::v1alpha1::{GuestPorts, NicAttachmentSpec};
use hybridnic_net::{MacAddr, PciAddress, VlanProtocol, netlink::VfConfig, sysfs::DriverState};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{sync::oneshot, time::timeout};
use tracing::warn;

/// The version of the records that are written here. It grows when an older agent would misread one: a field that older
/// agents may ignore needs no new version.
pub const VERSION: u32 = 1;

/// Records had no version at first.
const fn first_version() -> u32 {
    1
}

use crate::vm::process::ProcessId;

/// The file with the VFs that were given back with their parking MAC.
const PARKED: &str = "parked";

/// What is held for one attachment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The version of the agent's records that this one was written by.
    #[serde(default = "first_version")]
    pub version: u32,
    /// Namespace of the attachment.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// When it was made, in seconds since the epoch.
    pub created: i64,
    /// Its spec as last seen, so that the agent can go on while the API server is away.
    pub spec: NicAttachmentSpec,
    /// The VF.
    pub vf: Option<VfRecord>,
    /// The standby.
    pub standby: Option<StandbyRecord>,
    /// The guest's ports.
    pub ports: Option<GuestPorts>,
    /// How often a VF was plugged: each plug has a device id of its own.
    pub plugs: u32,
}

impl Record {
    /// `namespace/nic`, for people.
    pub fn nic(&self) -> String {
        format!("{}/{}", self.namespace, self.spec.nic.name)
    }
}

/// A VF that is held, and how it was before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VfRecord {
    /// Its PCI address.
    pub address: PciAddress,
    /// Its index on the PF.
    pub index: u16,
    /// The PF's PCI address.
    pub pf: PciAddress,
    /// The PF's interface name.
    pub pf_name: String,
    /// The PF's driver, for its quirks.
    pub pf_driver: String,
    /// Its IOMMU group.
    pub iommu_group: u32,
    /// The MAC that it has while nobody uses it, unique to it.
    pub parking_mac: MacAddr,
    /// Its settings before we touched it.
    pub saved: VfConfig,
    /// Its driver before we touched it.
    pub saved_driver: DriverState,
    /// Whether we have set its rate, so that it has to be given back.
    #[serde(default)]
    pub rate_set: bool,
}

/// A macvtap that is ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StandbyRecord {
    /// Its interface name.
    pub macvtap: String,
    /// The PF that it is on.
    pub pf: PciAddress,
    /// The PF's interface name.
    pub pf_name: String,
    /// The VLAN device between the two.
    pub vlan: Option<VlanRecord>,
}

/// A VLAN device on a PF.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VlanRecord {
    /// VLAN id.
    pub id: u16,
    /// Tag protocol.
    pub protocol: VlanProtocol,
    /// Priority of what it sends.
    pub qos: u8,
}

/// What is remembered of a pod's VM: what decides where it may run must outlast the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmRecord {
    /// The QEMU that was talked to last.
    pub process: Option<ProcessId>,
    /// The migration that was begun last.
    pub begun: Option<Begun>,
}

/// A migration that was begun at this end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Begun {
    /// Uid of the `QemuMigration`.
    pub migration: String,
    /// The QEMU in which it was begun; `None` where the kernel did not say.
    pub process: Option<ProcessId>,
    /// Target: how far the VM's arrival is; `None` proves that the VM never ran here.
    #[serde(default)]
    pub arrival: Option<Arrival>,
    /// Source: where the VM is.
    #[serde(default)]
    pub custody: Custody,
}

/// Where a VM is that was to be sent from here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Custody {
    /// An earlier agent has not noted it.
    #[default]
    Unknown,
    /// The hand-over has not been allowed.
    Here,
    /// The hand-over was allowed: the VM may have left.
    Left,
}

/// How far a VM's arrival is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Arrival {
    /// It is loaded and about to be started: it may have run.
    Starting,
    /// It was started.
    Started,
}

/// The journal could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("journal {}: cannot {what}", path.display())]
pub struct JournalError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
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

/// A file that cannot be read or understood, with what can be told of it all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The file.
    pub path: PathBuf,
    /// The attachment's uid.
    pub uid: String,
    /// Why it cannot be read.
    pub why: String,
    /// `namespace/nic`.
    pub nic: Option<String>,
    /// The VF that it holds.
    pub vf: Option<PciAddress>,
    /// Its standby's macvtap.
    pub macvtap: Option<String>,
}

impl Unreadable {
    fn new(path: &Path, why: String, text: &[u8]) -> Self {
        let value: Value = serde_json::from_slice(text).unwrap_or_default();
        let at = |pointer: &str| value.pointer(pointer)?.as_str().map(ToOwned::to_owned);
        let text = String::from_utf8_lossy(text);
        Self {
            path: path.to_owned(),
            uid: path
                .file_stem()
                .map(|stem| stem.to_string_lossy().into_owned())
                .unwrap_or_default(),
            why,
            nic: at("/namespace")
                .zip(at("/spec/nic/name"))
                .map(|(namespace, nic)| format!("{namespace}/{nic}")),
            vf: at("/vf/address")
                .or_else(|| string_after(&text, "\"address\""))
                .and_then(|address| address.parse().ok()),
            macvtap: at("/standby/macvtap").or_else(|| string_after(&text, "\"macvtap\"")),
        }
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path, why, nic, vf, ..
        } = self;
        let nic = nic.as_deref().unwrap_or("an unknown NIC");
        write!(f, "the record {} of {nic} cannot be read: {why}", path.display())?;
        match vf {
            Some(vf) => write!(f, "; its VF {vf} is given to nobody"),
            None => f.write_str("; no VF can be read from it"),
        }
    }
}

/// The string that follows a key, in text that is no whole JSON.
fn string_after(text: &str, key: &str) -> Option<String> {
    let rest = text
        .split_once(key)?
        .1
        .trim_start()
        .strip_prefix(':')?
        .trim_start();
    Some(rest.strip_prefix('"')?.split_once('"')?.0.to_owned())
}

/// Reads a NIC's record, of this version or an older one.
fn parse(text: &[u8]) -> Result<Record, String> {
    let record = understand(text)?;
    Ok(Record {
        version: VERSION,
        ..record
    })
}

/// Reads what this agent or an older one has written.
fn understand<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Versioned {
        #[serde(default = "first_version")]
        version: u32,
    }
    // First, and alone: what else a newer record holds is unknown.
    let Versioned { version } = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    if version > VERSION {
        return Err(format!(
            "a newer agent wrote it: its version is {version}, and this agent knows {VERSION}"
        ));
    }
    serde_json::from_slice(text).map_err(|e| e.to_string())
}

/// What is remembered of a VM, as it is written.
#[derive(Serialize)]
struct Stamped<'a> {
    version: u32,
    #[serde(flatten)]
    record: &'a VmRecord,
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
    /// Opens, and makes where it is not there, the directory.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, JournalError> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(|source| JournalError {
            what: "make it",
            path: dir.clone(),
            source,
        })?;
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
            // The file that it would have replaced still holds.
            if path.extension().is_some_and(|e| e == "tmp")
                && let Err(error) = fs::remove_file(&path)
            {
                warn!(path = %path.display(), %error, "cannot remove what a write that was cut short has left");
            }
        }
        self.read()
    }

    /// All records, as they are after all writes that were asked for before. An error says that it is not known what there is.
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

    /// Makes this the content of a file, or removes it. Its turn is taken at once. A write that failed, or that nobody waits for
    /// any more, is undone: what the caller was not told has not happened.
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

    /// Runs work on the journal's thread, in its turn. `undo` gets what nobody waits for any more.
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

    fn path(&self, uid: &str) -> PathBuf {
        // Uids come from the API server; still no path may be made of one.
        let safe: String = uid
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
            .collect();
        self.dir.join(format!("{safe}.json"))
    }
}

/// What is there, if anything is.
fn found<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Replaces a file of the directory or removes it, and returns once that is on disk.
fn set(dir: &Path, path: &Path, content: Option<&[u8]>) -> io::Result<()> {
    let Some(content) = content else {
        return match found(fs::remove_file(path))? {
            None => Ok(()),
            Some(()) => File::open(dir)?.sync_all(),
        };
    };
    let temporary = path.with_added_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
pub(crate) mod tests {
    use hybridnic_api::v1alpha1::{Goal, L2Settings, NoFreeVf, ObjectRef};

    use super::*;

    pub(crate) fn record(uid: &str) -> Record {
        let object = |name: &str| ObjectRef {
            name: name.into(),
            uid: format!("{name}-uid"),
        };
        Record {
            version: VERSION,
            namespace: "ns".into(),
            name: format!("nic-{uid}"),
            uid: uid.into(),
            created: 1,
            spec: NicAttachmentSpec {
                node_name: "n1".into(),
                nic: object("nic"),
                vm: "vm".into(),
                pod: object("pod"),
                network: "net".into(),
                mac: "02:00:00:00:00:01".into(),
                goal: Goal::FastPath,
                no_free_vf: NoFreeVf::Standby,
                l2: L2Settings::default(),
                ports: None,
                migration: None,
            },
            vf: None,
            standby: None,
            ports: None,
            plugs: 0,
        }
    }

    pub(crate) fn vf_record(address: &str) -> VfRecord {
        VfRecord {
            address: address.parse().unwrap(),
            index: 0,
            pf: PciAddress::new(0, 1, 0, 0).unwrap(),
            pf_name: "ens0".into(),
            pf_driver: "igb".into(),
            iommu_group: 7,
            parking_mac: MacAddr::new([6; 6]),
            saved: VfConfig::default(),
            saved_driver: DriverState::default(),
            rate_set: false,
        }
    }

    fn records(journal: &Journal) -> Vec<Record> {
        let contents = journal.load().unwrap();
        assert_eq!(contents.unreadable, []);
        contents.records
    }

    /// A VF of the tests' node that is held, as it was and as it is to be given back.
    pub(crate) fn held_vf(pf: u8, index: u8) -> VfRecord {
        VfRecord {
            address: hybridnic_net::testing::vf_address(pf, index),
            index: index.into(),
            pf: hybridnic_net::testing::pf_address(pf),
            pf_name: format!("ens{pf}"),
            pf_driver: "igb".into(),
            iommu_group: 1,
            parking_mac: MacAddr::new([6, 0, 0, 0, pf, index]),
            saved: VfConfig {
                index: index.into(),
                mac: Some(MacAddr::ZERO),
                ..VfConfig::default()
            },
            saved_driver: DriverState::default(),
            rate_set: false,
        }
    }

    #[tokio::test]
    async fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path().join("j")).unwrap();
        assert_eq!(records(&journal), []);
        let mut a = record("a");
        journal.write(&a).await.unwrap();
        a.plugs = 3;
        journal.write(&a).await.unwrap();
        assert_eq!(records(&journal), [a]);
        journal.remove("a").await.unwrap();
        journal.remove("a").await.unwrap();
        assert_eq!(records(&journal), []);
    }

    #[tokio::test]
    async fn a_write_that_was_cut_short_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        journal.write(&record("a")).await.unwrap();
        fs::write(dir.path().join("a.json.tmp"), "{\"namesp").unwrap();
        assert_eq!(journal.contents().await.unwrap().records, [record("a")]);
        assert!(dir.path().join("a.json.tmp").exists(), "reading removes nothing");
        assert_eq!(records(&journal), [record("a")]);
        assert!(!dir.path().join("a.json.tmp").exists());
    }

    #[test]
    fn a_record_of_before_there_were_versions_is_read() {
        let mut value = serde_json::to_value(record("a")).unwrap();
        value.as_object_mut().unwrap().remove("version").unwrap();
        assert_eq!(parse(value.to_string().as_bytes()), Ok(record("a")));
    }

    /// After a downgrade. What the newer agent wrote besides its version is anything.
    #[tokio::test]
    async fn a_newer_agents_record_is_kept_and_its_vf_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        journal.write(&record("a")).await.unwrap();
        let newer = r#"{"version":2,"namespace":"ns","spec":{"nic":{"name":"eth1","kind":7}},"vf":{"address":"0000:01:10.2"},
            "standby":{"macvtap":"hnx"}}"#;
        fs::write(dir.path().join("b.json"), newer).unwrap();
        let contents = journal.load().unwrap();
        assert_eq!(contents.records, [record("a")], "the rest of the node goes on");
        let [unreadable] = contents.unreadable.as_slice() else {
            panic!("{contents:?}");
        };
        assert_eq!(
            (unreadable.uid.as_str(), unreadable.nic.as_deref()),
            ("b", Some("ns/eth1"))
        );
        assert_eq!(unreadable.vf, Some("0000:01:10.2".parse().unwrap()));
        assert_eq!(unreadable.macvtap.as_deref(), Some("hnx"));
        assert!(unreadable.why.contains("newer"), "{unreadable}");
        assert_eq!(fs::read_to_string(dir.path().join("b.json")).unwrap(), newer);
    }

    #[tokio::test]
    async fn a_spoilt_file_costs_its_own_nic_only() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let mut held = record("a");
        held.vf = Some(vf_record("0000:01:10.4"));
        let text = serde_json::to_string_pretty(&held).unwrap();
        fs::write(dir.path().join("cut.json"), &text[..text.len() - 9]).unwrap();
        fs::write(dir.path().join("garbage.json"), "garbage").unwrap();
        fs::create_dir(dir.path().join("unread.json")).unwrap();
        journal.write(&record("b")).await.unwrap();
        let mut contents = journal.load().unwrap();
        contents.unreadable.sort_by(|a, b| a.uid.cmp(&b.uid));
        let vfs: Vec<_> = contents
            .unreadable
            .iter()
            .map(|u| (u.uid.as_str(), u.vf.map(|vf| vf.to_string())))
            .collect();
        let cut = Some("0000:01:10.4".to_owned());
        assert_eq!(vfs, [("cut", cut), ("garbage", None), ("unread", None)]);
        assert_eq!(contents.records, [record("b")]);
    }

    #[tokio::test]
    async fn what_is_remembered_of_a_vm_is_there_again_and_an_error_is_not_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.vm("pod").await.unwrap(), None);
        let process = ProcessId {
            boot: "b".into(),
            pid: 7,
            start: 9,
        };
        let mut vm = VmRecord {
            process: Some(process.clone()),
            begun: Some(Begun {
                custody: Custody::Left,
                migration: "m".into(),
                process: Some(process),
                arrival: None,
            }),
        };
        journal.write_vm("pod", &vm).await.unwrap();
        assert_eq!(journal.vm("pod").await.unwrap().as_ref(), Some(&vm));
        vm.begun.as_mut().unwrap().arrival = Some(Arrival::Starting);
        journal.write_vm("pod", &vm).await.unwrap();
        assert_eq!(journal.vm("pod").await.unwrap().as_ref(), Some(&vm));
        assert_eq!(
            journal.contents().await.unwrap().records,
            [],
            "it is no record of a NIC"
        );
        assert_eq!(journal.contents().await.unwrap().vms, ["pod".to_owned()].into());
        journal.remove_vm("pod").await.unwrap();
        assert_eq!(journal.vm("pod").await.unwrap(), None);
        fs::write(dir.path().join("pod.vm"), "{").unwrap();
        journal.vm("pod").await.unwrap_err();
        // After a downgrade: what reads the same may mean something else.
        fs::write(
            dir.path().join("pod.vm"),
            r#"{"version":2,"process":null,"begun":null}"#,
        )
        .unwrap();
        let newer = crate::error::chain(&journal.vm("pod").await.unwrap_err());
        assert!(
            newer.contains("pod.vm") && newer.contains("a newer agent wrote it"),
            "{newer}"
        );
        // Before there were versions.
        fs::write(dir.path().join("pod.vm"), r#"{"process":null,"begun":null}"#).unwrap();
        assert_eq!(journal.vm("pod").await.unwrap(), Some(VmRecord::default()));
        fs::remove_file(dir.path().join("pod.vm")).unwrap();
        fs::create_dir(dir.path().join("pod.vm")).unwrap();
        journal.vm("pod").await.unwrap_err();
    }

    /// As on a full disk, and on one that hangs: a FIFO without a reader waits for ever.
    #[tokio::test]
    async fn a_write_that_failed_or_came_too_late_has_not_happened() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.deadline = Duration::from_millis(50);
        journal.write(&record("a")).await.unwrap();
        let changed = Record {
            plugs: 7,
            ..record("a")
        };
        let temporary = dir.path().join("a.json.tmp");
        fs::create_dir(&temporary).unwrap();
        journal.write(&changed).await.unwrap_err();
        fs::remove_dir(&temporary).unwrap();
        assert_eq!(records(&journal), [record("a")]);

        nix::unistd::mkfifo(&temporary, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let late = journal.write(&changed).await.unwrap_err();
        assert_eq!(late.source.kind(), io::ErrorKind::TimedOut, "{late}");
        // Another waits behind it, and is not begun once its caller has gone.
        journal.write(&record("b")).await.unwrap_err();
        // The disk is back. What was to be synced is no file, so that too is an error, and what it did is undone.
        let mut reader = File::open(&temporary).unwrap();
        io::copy(&mut reader, &mut io::sink()).unwrap();
        let _ = fs::remove_file(&temporary);
        journal.write(&record("c")).await.unwrap();
        let mut names: Vec<_> = records(&journal).into_iter().map(|r| (r.uid, r.plugs)).collect();
        names.sort();
        assert_eq!(names, [("a".to_owned(), 0), ("c".to_owned(), 0)]);
    }

    /// Nobody may count on it, so it is taken back, before anything that was asked for later.
    #[tokio::test]
    async fn a_write_whose_caller_went_away_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        journal.write(&record("a")).await.unwrap();
        let (go, wait) = mpsc::channel::<()>();
        let (sent, begun) = mpsc::channel::<()>();
        let set_and_wait = {
            let (dir, path) = (dir.path().to_owned(), journal.path("a"));
            move || {
                let before = found(fs::read(&path))?;
                set(&dir, &path, None)?;
                sent.send(()).unwrap();
                wait.recv().unwrap();
                Ok(before)
            }
        };
        let (path, undone) = (journal.path("a"), dir.path().to_owned());
        let write = journal.run(
            "remove",
            path.clone(),
            set_and_wait,
            move |before: Option<Vec<u8>>| {
                set(&undone, &path, before.as_deref()).unwrap();
            },
        );
        begun.recv().unwrap();
        drop(write);
        go.send(()).unwrap();
        assert_eq!(journal.contents().await.unwrap().records, [record("a")]);
    }

    #[tokio::test]
    async fn what_is_parked_for_good_outlives_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let parked: BTreeSet<PciAddress> = ["0000:01:10.0", "0000:81:1f.7"]
            .map(|a| a.parse().unwrap())
            .into();
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.parked().unwrap(), BTreeSet::new());
        journal.set_parked(&parked).await.unwrap();
        assert_eq!(journal.load().unwrap(), Contents::default(), "it is no record");
        assert_eq!(Journal::open(dir.path()).unwrap().parked().unwrap(), parked);
        fs::write(dir.path().join(PARKED), "?\n").unwrap();
        assert!(journal.parked().is_err());
    }

    #[test]
    fn no_uid_leads_out_of_the_directory() {
        let mut journal = Journal::open(tempfile::tempdir().unwrap().path()).unwrap();
        journal.dir = "/j".into();
        assert_eq!(journal.path("../../etc/x"), Path::new("/j/etcx.json"));
    }
}
