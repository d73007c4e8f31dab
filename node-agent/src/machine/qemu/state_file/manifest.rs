//! What is written beside the file of a VM: whose it is, and what a QEMU must be to load it. Pure.

use hybridnic_api::v1alpha1::{GuestPorts, Pairing, StandbyKind};
use serde::{Deserialize, Serialize};

/// The version of manifests that is written here. It grows when an older agent would misread one.
const VERSION: u32 = 1;

/// What is written beside a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// The version of manifests that this one was written by.
    pub version: u32,
    /// Uid of the `QemuSave`.
    pub save: String,
    /// When the file got its name.
    pub saved_at: String,
    /// The file's length in octets.
    pub length: u64,
    /// Whether each page has its place in it (`mapped-ram`).
    pub mapped_ram: bool,
    /// The VM, and its machine.
    #[serde(flatten)]
    pub machine: SavedMachine,
}

/// A VM and its machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SavedMachine {
    /// The VM's namespace.
    pub namespace: String,
    /// Its name.
    pub vm: String,
    /// The machine's type, as in `pc-q35-10.0`.
    pub machine_type: String,
    /// Its memory in octets.
    pub memory: u64,
    /// QEMU's version.
    pub qemu: String,
    /// The VM's hybrid NICs.
    pub nics: Vec<SavedNic>,
}

/// A hybrid NIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SavedNic {
    /// Its name.
    pub name: String,
    /// Its MAC address.
    pub mac: String,
    /// How the guest pairs VF and standby.
    pub pairing: Pairing,
    /// What it has besides its VF.
    #[serde(default)]
    pub standby: StandbyKind,
    /// Its ports in the guest; none before it has any.
    pub ports: Option<GuestPorts>,
}

impl Manifest {
    /// Of a file that has just become whole.
    pub fn new(save: &str, machine: SavedMachine, mapped_ram: bool, length: u64, saved_at: String) -> Self {
        Self {
            version: VERSION,
            save: save.to_owned(),
            saved_at,
            length,
            mapped_ram,
            machine,
        }
    }

    /// Reads one; or why it cannot be read.
    pub fn read(text: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let unread = |error: serde_json::Error| format!("it is not what an agent writes: {error}");
        let Versioned { version } = serde_json::from_slice(text).map_err(unread)?;
        if version > VERSION {
            return Err(format!(
                "a newer agent has written it: its version is {version}, and this agent knows {VERSION}"
            ));
        }
        serde_json::from_slice(text).map_err(unread)
    }

    /// The ports that a NIC has in it.
    pub fn ports_of(&self, nic: &str) -> Option<&GuestPorts> {
        let mut nics = self.machine.nics.iter();
        nics.find(|saved| saved.name == nic)?.ports.as_ref()
    }

    /// Why a QEMU with this machine, in which nothing runs yet, cannot be given a file that is so long.
    pub fn refusal(&self, here: &SavedMachine, length: u64) -> Option<String> {
        let saved = &self.machine;
        if (&saved.namespace, &saved.vm) != (&here.namespace, &here.vm) {
            return Some(format!(
                "the file is of the VM {}/{}, and this is {}/{}",
                saved.namespace, saved.vm, here.namespace, here.vm
            ));
        }
        if length != self.length {
            return Some(format!(
                "the file is not whole: it has {length} octets, and had {} when it was saved",
                self.length
            ));
        }
        if saved.machine_type != here.machine_type {
            return Some(format!(
                "the VM was saved on a machine of type {}, and this QEMU has {}: start it with -machine {}",
                saved.machine_type, here.machine_type, saved.machine_type
            ));
        }
        if saved.memory != here.memory {
            return Some(format!(
                "the VM was saved with {} octets of memory, and this QEMU has {}",
                saved.memory, here.memory
            ));
        }
        let names = |nics: &[SavedNic]| {
            let mut names: Vec<_> = nics.iter().map(|nic| nic.name.clone()).collect();
            names.sort();
            names
        };
        let (then, now) = (names(&saved.nics), names(&here.nics));
        if then != now {
            return Some(format!(
                "the VM was saved with the NICs {}, and has {} now",
                then.join(", "),
                now.join(", ")
            ));
        }
        saved.nics.iter().find_map(|then| {
            let now = here.nics.iter().find(|now| now.name == then.name)?;
            other_nic(then, now)
        })
    }
}

fn other_nic(then: &SavedNic, now: &SavedNic) -> Option<String> {
    let name = &then.name;
    if then.mac != now.mac {
        return Some(format!(
            "the NIC {name} had the MAC {} when the VM was saved, and has {} now: set spec.mac of the NIC",
            then.mac, now.mac
        ));
    }
    if then.pairing != now.pairing {
        return Some(format!(
            "the NIC {name} had pairing: {} when the VM was saved, and has {} now",
            then.pairing, now.pairing
        ));
    }
    if then.standby != now.standby {
        return Some(format!(
            "the NIC {name} had standby: {} when the VM was saved, and has {} now",
            then.standby, now.standby
        ));
    }
    // One that has none yet gets those of the file.
    let moved = now.ports.is_some() && then.ports != now.ports;
    moved.then(|| {
        format!(
            "the NIC {name} is at other root ports of the machine than when the VM was saved: end the pod, and start it again once \
             the QemuRestore is there"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> SavedMachine {
        let ports = |n: u8| GuestPorts {
            standby: Some(format!("rp{n}")),
            vf: format!("rp{}", n + 1),
        };
        let nic = |name: &str, n| SavedNic {
            name: name.to_owned(),
            mac: format!("02:00:00:00:00:0{n}"),
            pairing: Pairing::NetFailover,
            standby: StandbyKind::Macvtap,
            ports: Some(ports(n)),
        };
        SavedMachine {
            namespace: "ns".to_owned(),
            vm: "vm".to_owned(),
            machine_type: "pc-q35-10.0".to_owned(),
            memory: 1 << 30,
            qemu: "10.0.2".to_owned(),
            nics: vec![nic("eth0", 1), nic("eth1", 3)],
        }
    }

    fn manifest() -> Manifest {
        Manifest::new("s", machine(), true, 4096, "2026-01-01T00:00:00Z".to_owned())
    }

    #[test]
    fn what_is_written_is_read_and_what_is_newer_or_spoilt_is_not() {
        let text = serde_json::to_vec(&manifest()).unwrap();
        assert_eq!(Manifest::read(&text).unwrap(), manifest());
        assert!(
            Manifest::read(&text[..text.len() / 2])
                .unwrap_err()
                .contains("not what")
        );
        let newer = serde_json::json!({"version": 2, "whatever": true}).to_string();
        assert!(
            Manifest::read(newer.as_bytes())
                .unwrap_err()
                .contains("newer agent")
        );
    }

    #[test]
    fn a_file_is_loaded_only_where_all_is_as_it_was() {
        let manifest = manifest();
        assert_eq!(manifest.refusal(&machine(), 4096), None);
        let because = |change: fn(&mut SavedMachine)| {
            let mut here = machine();
            change(&mut here);
            manifest.refusal(&here, 4096).unwrap_or_default()
        };
        assert!(manifest.refusal(&machine(), 4095).unwrap().contains("not whole"));
        assert!(because(|m| m.vm = "other".to_owned()).contains("of the VM ns/vm"));
        assert!(because(|m| m.namespace = "other".to_owned()).contains("of the VM ns/vm"));
        assert!(because(|m| m.machine_type = "pc-q35-9.2".to_owned()).contains("-machine pc-q35-10.0"));
        assert!(because(|m| m.memory += 1).contains("octets of memory"));
        assert!(because(|m| m.nics.truncate(1)).contains("eth0, eth1"));
        assert!(because(|m| m.nics[1].mac = "02:00:00:00:00:09".to_owned()).contains("spec.mac"));
        assert!(because(|m| m.nics[0].pairing = Pairing::Bond).contains("pairing"));
        assert!(because(|m| m.nics[0].standby = StandbyKind::None).contains("standby: Macvtap"));
        assert!(
            because(|m| m.nics.swap(0, 1)).is_empty(),
            "their order says nothing"
        );
        assert!(because(|m| m.qemu = "10.1.0".to_owned()).is_empty());
    }

    #[test]
    fn a_nic_without_ports_gets_those_of_the_file() {
        let mut here = machine();
        here.nics[0].ports = None;
        assert_eq!(manifest().refusal(&here, 4096), None);
        assert_eq!(
            manifest().ports_of("eth0").unwrap().standby.as_deref(),
            Some("rp1")
        );
        assert_eq!(manifest().ports_of("eth9"), None);
        here.nics[0].ports = Some(GuestPorts::default());
        assert!(manifest().refusal(&here, 4096).unwrap().contains("root ports"));
    }
}
