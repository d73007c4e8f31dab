//! What the agent has taken of its node, on disk: written and synced before each act, so that whatever the agent
//! was doing when it died can be gone on with or taken back.
//!
//! One JSON file for each attachment, named by its uid. The journal is the only memory of a VF's original
//! settings; all else can be observed.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use hybridnic_api::v1alpha1::{GuestPorts, NicAttachmentSpec};
use hybridnic_net::{MacAddr, PciAddress, VlanProtocol, netlink::VfConfig, sysfs::DriverState};
use serde::{Deserialize, Serialize};

/// What is held for one attachment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
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

/// The journal could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("journal {}: cannot {what}", path.display())]
pub struct JournalError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The journal's directory.
#[derive(Clone, Debug)]
pub struct Journal {
    dir: PathBuf,
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
        Ok(Self { dir })
    }

    /// All records, at start: what a write that was cut short has left is removed.
    pub fn load(&self) -> Result<Vec<Record>, JournalError> {
        let list = || fs::read_dir(&self.dir)?.collect::<io::Result<Vec<_>>>();
        let fail = |what, path: &Path| {
            let path = path.to_owned();
            move |source| JournalError { what, path, source }
        };
        for entry in list().map_err(fail("list", &self.dir))? {
            // The file that it would have replaced still holds.
            if entry.path().extension().is_some_and(|e| e == "tmp") {
                fs::remove_file(entry.path()).map_err(fail("clean", &entry.path()))?;
            }
        }
        self.records()
    }

    /// All records. A file that cannot be understood is an error: what it held would be lost.
    pub fn records(&self) -> Result<Vec<Record>, JournalError> {
        let fail = |what, path: &Path| {
            let path = path.to_owned();
            move |source| JournalError { what, path, source }
        };
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(fail("list", &self.dir))? {
            let path = entry.map_err(fail("list", &self.dir))?.path();
            if path.extension().is_some_and(|e| e == "json") {
                let text = fs::read(&path).map_err(fail("read", &path))?;
                let record = serde_json::from_slice(&text).map_err(io::Error::from);
                records.push(record.map_err(fail("understand", &path))?);
            }
        }
        Ok(records)
    }

    /// Writes a record and returns once it is on disk.
    pub fn write(&self, record: &Record) -> Result<(), JournalError> {
        let path = self.path(&record.uid);
        let mut text = serde_json::to_vec_pretty(record).map_err(|source| JournalError {
            what: "encode",
            path: path.clone(),
            source: source.into(),
        })?;
        text.push(b'\n');
        self.replace(&path, &text)
    }

    /// Removes a record; nothing to do where there is none.
    pub fn remove(&self, uid: &str) -> Result<(), JournalError> {
        self.unlink(&self.path(uid))
    }

    /// The migration that was begun for a pod's VM; none where none was.
    pub fn started(&self, pod_uid: &str) -> Option<String> {
        fs::read_to_string(self.path(pod_uid).with_extension("migration")).ok()
    }

    /// Notes that a migration is about to begin, so that it is not begun again after a restart.
    pub fn set_started(&self, pod_uid: &str, migration_uid: &str) -> Result<(), JournalError> {
        let path = self.path(pod_uid).with_extension("migration");
        self.replace(&path, migration_uid.as_bytes())
    }

    /// Forgets a pod's migration once the pod has no NIC left here.
    pub fn clear_started(&self, pod_uid: &str) -> Result<(), JournalError> {
        self.unlink(&self.path(pod_uid).with_extension("migration"))
    }

    fn replace(&self, path: &Path, content: &[u8]) -> Result<(), JournalError> {
        let temporary = path.with_added_extension("tmp");
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|source| JournalError {
            what: "write",
            path: path.to_owned(),
            source,
        })
    }

    fn unlink(&self, path: &Path) -> Result<(), JournalError> {
        let remove = || match fs::remove_file(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
            Ok(()) => File::open(&self.dir)?.sync_all(),
        };
        remove().map_err(|source| JournalError {
            what: "remove",
            path: path.to_owned(),
            source,
        })
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

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path().join("j")).unwrap();
        assert_eq!(journal.load().unwrap(), []);
        let mut a = record("a");
        journal.write(&a).unwrap();
        a.plugs = 3;
        journal.write(&a).unwrap();
        assert_eq!(journal.load().unwrap(), [a]);
        journal.remove("a").unwrap();
        journal.remove("a").unwrap();
        assert_eq!(journal.load().unwrap(), []);
    }

    #[test]
    fn a_write_that_was_cut_short_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        journal.write(&record("a")).unwrap();
        fs::write(dir.path().join("a.json.tmp"), "{\"namesp").unwrap();
        assert_eq!(journal.records().unwrap(), [record("a")]);
        assert!(dir.path().join("a.json.tmp").exists(), "reading removes nothing");
        assert_eq!(journal.load().unwrap(), [record("a")]);
        assert!(!dir.path().join("a.json.tmp").exists());
    }

    #[test]
    fn a_spoilt_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        fs::write(dir.path().join("b.json"), "garbage").unwrap();
        assert!(journal.load().unwrap_err().to_string().contains("b.json"));
    }

    #[test]
    fn no_uid_leads_out_of_the_directory() {
        let journal = Journal { dir: "/j".into() };
        assert_eq!(journal.path("../../etc/x"), Path::new("/j/etcx.json"));
    }
}
