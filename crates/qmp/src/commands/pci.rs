//! The guest's PCI tree (QEMU `qapi/pci.json`).

use std::fmt;

use serde::Deserialize;
use serde_json::json;

use crate::error::WORD;
use crate::{Client, QmpError};

/// A PCI address in the guest. A q35 or virt machine has one PCI domain, 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// Bus number, as the guest's firmware or kernel set it.
    pub bus: u8,
    /// Slot (device) number, 0 to 31.
    pub slot: u8,
    /// Function number, 0 to 7.
    pub function: u8,
}

impl fmt::Display for PciAddress {
    /// As the guest's sysfs and `lspci -D` write it: `0000:05:00.0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0000:{:02x}:{:02x}.{:x}", self.bus, self.slot, self.function)
    }
}

/// A root bus and what is below it (`PciInfo`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PciBus {
    /// The root bus number.
    pub bus: u8,
    /// Its devices.
    pub devices: Vec<PciDevice>,
}

/// One function (`PciDeviceInfo`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PciDevice {
    bus: u8,
    slot: u8,
    function: u8,
    /// The device's id; empty if it has none.
    pub qdev_id: String,
    pci_bridge: Option<PciBridge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct PciBridge {
    // Left out by QEMU until the guest's firmware has given the bridge a bus number.
    #[serde(default)]
    devices: Vec<PciDevice>,
}

impl PciDevice {
    /// Where it is.
    pub fn address(&self) -> PciAddress {
        PciAddress {
            bus: self.bus,
            slot: self.slot,
            function: self.function,
        }
    }

    /// The devices behind it, if it is a bridge and has a bus number.
    pub fn children(&self) -> &[PciDevice] {
        self.pci_bridge.as_ref().map_or(&[], |bridge| &bridge.devices)
    }

    fn find(&self, id: &str) -> Option<&PciDevice> {
        if self.qdev_id == id {
            return Some(self);
        }
        self.children().iter().find_map(|child| child.find(id))
    }
}

impl Client {
    /// `query-pci`. Devices behind a bridge are missing until the guest's firmware has numbered the buses; so it does not
    /// tell which ports are free: [`free_root_ports`](Self::free_root_ports) does.
    pub async fn query_pci(&self) -> Result<Vec<PciBus>, QmpError> {
        self.execute("query-pci", &json!({})).await
    }

    /// The guest's address of the device with this id; `None` if there is no such device, or the guest has not yet
    /// numbered its bus.
    pub async fn guest_pci_address(&self, id: &str) -> Result<Option<PciAddress>, QmpError> {
        if id.is_empty() {
            return Ok(None);
        }
        let buses = self.query_pci().await?;
        let found = buses
            .iter()
            .flat_map(|bus| &bus.devices)
            .find_map(|device| device.find(id));
        Ok(found.map(PciDevice::address))
    }

    /// The ids of all `pcie-root-port`s that have one, whether something is behind them or not.
    pub async fn root_ports(&self) -> Result<Vec<String>, QmpError> {
        let devices = self.peripheral().await?;
        let ports = devices.into_iter().filter(|(_, kind)| kind == "pcie-root-port");
        Ok(ports.map(|(id, _)| id).collect())
    }

    /// The ids of the `pcie-root-port`s that can take a device: hot-pluggable, with an id, and nothing behind them. In
    /// the order of their ids. Read from the object tree, so it holds at any time, even before the guest's firmware ran. A port whose
    /// id is longer than a status takes, or not one that QEMU itself would take, is left out.
    pub async fn free_root_ports(&self) -> Result<Vec<String>, QmpError> {
        let mut free = Vec::new();
        for id in self.root_ports().await?.into_iter().filter(|id| is_id(id)) {
            if self.is_free_root_port(&id).await? {
                free.push(id);
            }
        }
        Ok(free)
    }

    /// The same of one `pcie-root-port`, which must be there.
    pub async fn is_free_root_port(&self, id: &str) -> Result<bool, QmpError> {
        let port = format!("/machine/peripheral/{id}");
        // The port's bus has the port's id as its name, and a link `child[N]` for each device.
        let bus = self.qom_list(&format!("{port}/{id}")).await?;
        let occupied = bus.keys().any(|name| name.starts_with("child["));
        Ok(!occupied && self.qom_get::<bool>(&port, "hotplug").await?)
    }
}

/// Whether QEMU takes it as an id of a user's (`id_wellformed` in QEMU's `util/id.c`), and it is short.
fn is_id(id: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    id.len() <= WORD && id.starts_with(|c: char| c.is_ascii_alphabetic()) && id.chars().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_be_an_id_is_one() {
        for id in ["rp1", "pci.5", "a-_.", &"x".repeat(WORD)] {
            assert!(is_id(id), "{id}");
        }
        for id in [
            "",
            "1a",
            "#block1",
            "a/b",
            "a\u{1b}[2J",
            "ä",
            &"x".repeat(WORD + 1),
        ] {
            assert!(!is_id(id), "{id}");
        }
    }

    #[test]
    fn finds_a_device_behind_a_port() {
        let answer = r#"[{"bus":0,"devices":[
            {"bus":0,"slot":0,"function":0,"qdev_id":"","irq_pin":0},
            {"bus":0,"slot":1,"function":0,"qdev_id":"rpa","pci_bridge":{"bus":{"number":0},"devices":[
                {"bus":5,"slot":0,"function":0,"qdev_id":"sb"}]}},
            {"bus":0,"slot":31,"function":2,"qdev_id":"rpb","pci_bridge":{"bus":{"number":0}}}]}]"#;
        let buses: Vec<PciBus> = serde_json::from_str(answer).unwrap();
        let find = |id: &str| {
            buses[0]
                .devices
                .iter()
                .find_map(|d| d.find(id))
                .map(|d| d.address().to_string())
        };
        assert_eq!(find("sb").as_deref(), Some("0000:05:00.0"));
        assert_eq!(find("rpb").as_deref(), Some("0000:00:1f.2"));
        assert_eq!(find("nobody"), None);
    }
}
