//! What the journal knows about an attachment and about a VM, and how it is read again.

use std::path::PathBuf;

use hybridnic_api::v1alpha1::{GuestPorts, NicAttachmentSpec};
use hybridnic_net::{DeviceId, MacAddr, PciAddress, VlanProtocol, netlink::VfConfig, sysfs::DriverState};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::machine::process::ProcessId;

/// The version of the records that are written here. It grows when an older agent would misread one: a field that older
/// agents may ignore needs no new version.
pub const VERSION: u32 = 1;

/// Records had no version at first.
const fn first_version() -> u32 {
    1
}

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
    /// The QMP socket of the VM's QEMU, where that runs on the host and not in a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
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

    /// The guest's ports that the NIC had, or must have.
    pub fn known_ports(&self) -> Option<&GuestPorts> {
        self.ports.as_ref().or_else(|| self.spec.root_ports())
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
    /// The MAC that it has while it is not in use, unique to it.
    pub parking_mac: MacAddr,
    /// Its settings before we touched it.
    pub saved: VfConfig,
    /// Its driver before we touched it.
    pub saved_driver: DriverState,
    /// Whether we have set its rate, so that it has to be given back.
    #[serde(default)]
    pub rate_set: bool,
    /// Whether we have asked the switch for something for its port, so that it has to be taken back.
    #[serde(default)]
    pub port_asked: bool,
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
    /// It was found with another MAC, which only a process with its descriptor can give it. It stays down as long as it exists.
    #[serde(default)]
    pub seized: Option<Seized>,
    /// Where it is the link of a pod: of which.
    #[serde(default)]
    pub pod: Option<SandboxRecord>,
}

/// The sandbox of a pod in which a macvtap is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxRecord {
    /// The runtime's id of it.
    pub container: String,
    /// The device of the pod, from which the macvtap's index follows.
    #[serde(with = "text")]
    pub device: DeviceId,
}

/// What is written as text.
mod text {
    use std::{fmt::Display, str::FromStr};

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// A macvtap that was shut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seized {
    /// The QEMU that had its descriptor; `None` where the kernel did not say.
    pub process: Option<ProcessId>,
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
    /// Whether that QEMU was seen to wait for a VM that is sent to it.
    #[serde(default)]
    pub incoming: bool,
    /// Whether the VM was seen to run in it.
    #[serde(default)]
    pub ran: bool,
    /// The last migration that the runtime drives.
    #[serde(default)]
    pub watched: Option<Watched>,
}

impl VmRecord {
    /// About this QEMU from now on: what was seen in another one is not true for it.
    pub fn is_of(&mut self, process: Option<ProcessId>) {
        if self.process != process {
            (self.incoming, self.ran) = (false, false);
        }
        self.process = process;
    }
}

/// An end of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// The VM is here before it.
    Source,
    /// The VM is here after it.
    Target,
}

/// A migration that the runtime drives, as this end has seen it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Watched {
    /// Uid of the migration's object.
    pub migration: String,
    /// The QEMU in which it was seen; `None` before there was one.
    pub process: Option<ProcessId>,
    /// Which end this is.
    pub role: Role,
    /// Source: whether QEMU was seen in it.
    pub begun: bool,
    /// Target: whether the VM was seen to run here.
    pub arrived: bool,
}

/// A migration that was begun at this end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Begun {
    /// Uid of the `QemuMigration`, the `QemuSave` or the `QemuRestore`.
    pub migration: String,
    /// The QEMU in which it was begun; `None` where the kernel did not say.
    pub process: Option<ProcessId>,
    /// Target: how far the VM's arrival is; `None` proves that the VM never ran here.
    #[serde(default)]
    pub arrival: Option<Arrival>,
    /// Source: where the VM is.
    #[serde(default)]
    pub custody: Custody,
    /// The VM goes to a file: how far that is.
    #[serde(default)]
    pub saving: Option<Saving>,
}

impl Begun {
    /// How far its file is, where the VM goes to one.
    pub fn save_stage(&self) -> Option<SaveStage> {
        self.saving.as_ref().map(|saving| saving.stage)
    }
}

/// How far a VM is on its way to a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Saving {
    /// The file's number on its file system, by which it is known again.
    pub inode: u64,
    /// Whether each page has its place in it (`mapped-ram`).
    pub mapped: bool,
    /// How far it is.
    pub stage: SaveStage,
}

/// How far a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SaveStage {
    /// QEMU is about to be told to write it, or writes.
    Writing,
    /// QEMU has written all of the VM. It may run on from here.
    Whole,
    /// It is on disk, is so many octets long, and has its name.
    Named(u64),
    /// It is given up, and is to be removed, with its name if it has that.
    Spoilt,
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

/// Reads a NIC's record, of this version or an older one.
pub(super) fn parse(text: &[u8]) -> Result<Record, String> {
    let record = understand(text)?;
    Ok(Record {
        version: VERSION,
        ..record
    })
}

/// Reads what this agent or an older one has written.
pub(super) fn understand<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Versioned {
        #[serde(default = "first_version")]
        version: u32,
    }
    // The version is read first, and alone: the rest of a newer record is unknown.
    let Versioned { version } = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    if version > VERSION {
        return Err(format!(
            "a newer agent wrote it: its version is {version}, and this agent knows {VERSION}"
        ));
    }
    serde_json::from_slice(text).map_err(|e| e.to_string())
}

/// What the journal has of a VM, as it is written.
#[derive(Serialize)]
pub(super) struct Stamped<'a> {
    /// The version of the agent's records that this one is written by.
    pub(super) version: u32,
    /// What is remembered.
    #[serde(flatten)]
    pub(super) record: &'a VmRecord,
}
