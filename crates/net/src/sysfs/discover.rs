//! Finding PFs and VFs.

use std::io;
use std::path::{Path, PathBuf};

use super::Sysfs;
use super::attr::{self, Reader};
use super::model::{Inventory, LinkLayer, Master, MasterKind, Pf, Vf, VfNetdev};
use crate::types::{PciAddress, PciId};

/// Class code of a network controller, as the `class` attribute begins.
const NETWORK_CLASS: &str = "0x02";
/// Class code of an InfiniBand controller.
const INFINIBAND_CLASS: &str = "0x0207";
/// Class code of a PCI bridge.
const BRIDGE_CLASS: &str = "0x0604";
/// `ARPHRD_ETHER` and `ARPHRD_INFINIBAND`, as an interface's `type` has them.
const ETHERNET: u32 = 1;
const INFINIBAND: u32 = 32;
/// `IFF_UP` in an interface's `flags`.
const IFF_UP: u32 = 1;

/// Discovery failed as a whole.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// The list of PCI functions cannot be read.
    #[error("cannot list the PCI functions in {path}")]
    ListDevices {
        /// The directory.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The link to a VF's physical function cannot be read.
    #[error("cannot read the physical function of {vf}")]
    Physfn {
        /// The VF.
        vf: PciAddress,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

impl Sysfs {
    /// Finds all physical functions with their VFs. What cannot be read is in [`Inventory::problems`]; the rest
    /// is still there. A machine without PCI has none. It reads no file that takes a device's lock.
    pub fn discover(&self) -> Result<Inventory, DiscoverError> {
        let devices = self.root().join("bus/pci/devices");
        let entries = match std::fs::read_dir(&devices) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Inventory::default()),
            Err(source) => {
                return Err(DiscoverError::ListDevices {
                    path: devices,
                    source,
                });
            }
        };
        let mut reader = Reader::default();
        let mut pfs = Vec::new();
        for entry in entries {
            let Some(entry) = reader.note(&devices, entry) else {
                continue;
            };
            let Some(address) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            pfs.extend(self.read_pf(&mut reader, address, &devices.join(entry.file_name())));
        }
        pfs.sort_unstable_by_key(|pf| pf.address);
        Ok(Inventory {
            pfs,
            problems: reader.problems,
        })
    }

    /// The physical function of a VF; `None` where the function is not a VF, or is gone.
    pub fn physfn(&self, vf: PciAddress) -> Result<Option<PciAddress>, DiscoverError> {
        let link = attr::link_name(&self.pci_device(vf).join("physfn"))
            .map_err(|source| DiscoverError::Physfn { vf, source })?;
        Ok(link.and_then(|name| name.parse().ok()))
    }

    /// One VF by its PCI address; `None` where there is none. Cheaper than [`Sysfs::discover`] for a look at one.
    pub fn vf(&self, vf: PciAddress) -> Result<Option<Vf>, DiscoverError> {
        let Some(pf) = self.physfn(vf)? else {
            return Ok(None);
        };
        let pf = self.pci_device(pf);
        let mut reader = Reader::default();
        let index = virtual_functions(&mut reader, &pf)
            .into_iter()
            .find(|(_, address)| *address == vf);
        Ok(index.map(|(index, address)| self.read_vf(&mut reader, index, address)))
    }

    /// Reads a function if it is a PF. Most functions have no `sriov_totalvfs`, so one failed open rules them out.
    fn read_pf(&self, reader: &mut Reader, address: PciAddress, dir: &Path) -> Option<Pf> {
        let total_vfs = reader
            .value(&dir.join("sriov_totalvfs"))
            .filter(|total| *total > 0)?;
        let class = reader
            .text(&dir.join("class"))
            .filter(|class| class.starts_with(NETWORK_CLASS))?;
        let vendor = reader.hex16(&dir.join("vendor"));
        let device = reader.hex16(&dir.join("device"));
        let (representors, own): (Vec<_>, Vec<_>) = reader
            .names(&dir.join("net"))
            .into_iter()
            .partition(|name| is_representor(&dir.join("net").join(name)));
        let mut pf = Pf {
            address,
            name: own.into_iter().next(),
            ifindex: None,
            id: vendor
                .zip(device)
                .map(|(vendor, device)| PciId { vendor, device }),
            driver: reader.link_name(&dir.join("driver")),
            // The kernel writes -1 where it does not know.
            numa_node: reader
                .value::<i32>(&dir.join("numa_node"))
                .and_then(|node| node.try_into().ok()),
            mac: None,
            mtu: None,
            carrier: None,
            operstate: None,
            master: None,
            link_layer: if class.starts_with(INFINIBAND_CLASS) {
                LinkLayer::InfiniBand
            } else {
                LinkLayer::Ethernet
            },
            representors,
            total_vfs,
            num_vfs: 0,
            vfs: Vec::new(),
            hung: None,
        };
        if let Some(name) = &pf.name {
            let net = dir.join("net").join(name);
            pf.ifindex = reader.value(&net.join("ifindex"));
            // The interface knows better than the class: one card can carry either.
            match reader.value(&net.join("type")) {
                Some(ETHERNET) => pf.link_layer = LinkLayer::Ethernet,
                Some(INFINIBAND) => pf.link_layer = LinkLayer::InfiniBand,
                Some(other) => pf.link_layer = LinkLayer::Other(other),
                None => {}
            }
            // Not for a longer address, such as InfiniBand's: there it is not a problem.
            if pf.link_layer == LinkLayer::Ethernet {
                pf.mac = reader.value(&net.join("address"));
            }
            pf.mtu = reader.value(&net.join("mtu"));
            pf.operstate = reader.text(&net.join("operstate"));
            pf.carrier = read_carrier(reader, &net.join("carrier"));
            pf.master = reader
                .link_name(&net.join("master"))
                .map(|master| self.read_master(reader, master));
        }
        pf.vfs = virtual_functions(reader, dir)
            .into_iter()
            .map(|(index, vf)| self.read_vf(reader, index, vf))
            .collect();
        pf.num_vfs = pf.vfs.len().try_into().unwrap_or(u16::MAX);
        Some(pf)
    }

    fn read_vf(&self, reader: &mut Reader, index: u16, address: PciAddress) -> Vf {
        let dir = self.pci_device(address);
        let group = dir.join("iommu_group");
        let iommu_group = reader.link_name(&group).and_then(|name| {
            let parsed = name
                .parse()
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, name));
            reader.note(&group, parsed)
        });
        Vf {
            index,
            address,
            driver: reader.link_name(&dir.join("driver")),
            iommu_group,
            vfio_cdev: reader.names(&dir.join("vfio-dev")).into_iter().next(),
            group_peers: self.group_peers(reader, address, &group),
            netdev: reader
                .names(&dir.join("net"))
                .into_iter()
                .next()
                .map(|name| read_vf_netdev(reader, &dir.join("net").join(&name), name)),
            hung: None,
        }
    }

    /// The other functions of a function's group, which vfio would need too.
    fn group_peers(&self, reader: &mut Reader, address: PciAddress, group: &Path) -> Vec<PciAddress> {
        let members = reader.names(&group.join("devices"));
        let mut peers: Vec<PciAddress> = members.iter().filter_map(|name| name.parse().ok()).collect();
        peers.retain(|peer| {
            let class = reader.text(&self.pci_device(*peer).join("class"));
            *peer != address && !class.is_some_and(|class| class.starts_with(BRIDGE_CLASS))
        });
        peers
    }

    fn read_master(&self, reader: &mut Reader, name: String) -> Master {
        let dir = self.net_device(&name);
        // The mode reads `802.3ad 4`.
        let mode = reader.text(&dir.join("bonding/mode"));
        let kind = match mode.as_deref().and_then(|mode| mode.split_whitespace().next()) {
            Some(mode) => MasterKind::Bond(mode.to_owned()),
            None if dir.join("bridge").is_dir() => MasterKind::Bridge,
            None => MasterKind::Other,
        };
        Master { name, kind }
    }
}

/// Whether an interface stands for a port of an embedded switch other than the uplink: its `phys_port_name` is `pf0vf3`,
/// `pf0sf88`, `c1pf0vf3` or, for the host as a SmartNIC sees it, `pf0` or `pf0hpf`
/// (`Documentation/networking/devlink/devlink-port.rst`). An uplink's is `p0`, `p0s1`, or not there.
pub(super) fn is_representor(interface: &Path) -> bool {
    // Most drivers know no such name, and reading it is an error then (`EOPNOTSUPP`).
    let Ok(Some(name)) = attr::read_text(&interface.join("phys_port_name")) else {
        return false;
    };
    let digits = |text: &str| text.trim_start_matches(|c: char| c.is_ascii_digit()).len() < text.len();
    let of_controller = name
        .strip_prefix('c')
        .map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
    of_controller
        .unwrap_or(&name)
        .strip_prefix("pf")
        .is_some_and(digits)
}

fn read_vf_netdev(reader: &mut Reader, dir: &Path, name: String) -> VfNetdev {
    VfNetdev {
        name,
        ifindex: reader.value(&dir.join("ifindex")),
        up: reader
            .hex32(&dir.join("flags"))
            .is_some_and(|flags| flags & IFF_UP != 0),
        uppers: reader
            .names(dir)
            .iter()
            .filter_map(|entry| entry.strip_prefix("upper_").map(str::to_owned))
            .collect(),
        addresses: Vec::new(),
        routed: false,
    }
}

/// The `virtfnN` links of a PF, by index.
fn virtual_functions(reader: &mut Reader, pf: &Path) -> Vec<(u16, PciAddress)> {
    let mut vfs = Vec::new();
    for name in reader.names(pf) {
        let Some(index) = name.strip_prefix("virtfn").and_then(|index| index.parse().ok()) else {
            continue;
        };
        let path = pf.join(&name);
        let Some(target) = reader.link_name(&path) else {
            continue;
        };
        let address = target
            .parse()
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e));
        vfs.extend(reader.note(&path, address).map(|address| (index, address)));
    }
    vfs.sort_unstable();
    vfs
}

/// The kernel refuses to say (`EINVAL`) while the interface is administratively down.
fn read_carrier(reader: &mut Reader, path: &Path) -> Option<bool> {
    match attr::read_text(path) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => None,
        read => reader.note(path, read).flatten().map(|text| text == "1"),
    }
}
