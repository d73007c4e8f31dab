//! A sysfs made of plain files, for tests and benchmarks.
//!
//! It has the shape of the kernel's, with the same symbolic links, but does nothing: what is written stays written.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::sysfs::Sysfs;
use crate::types::{MacAddr, PciAddress, PciId};

/// The most PFs there is room for.
pub const MAX_PFS: u8 = 100;
/// The most VFs a PF has room for.
pub const MAX_VFS: u8 = 127;

const PF_ID: PciId = PciId {
    vendor: 0x8086,
    device: 0x10c9,
};
const VF_ID: PciId = PciId {
    vendor: 0x8086,
    device: 0x10ca,
};

/// Makes a sysfs in an empty directory, with `pfs` PFs named `ens0`, `ens1` and so on, of the driver igb, at
/// [`pf_address`], up and with a carrier, and `vfs` VFs on each, at [`vf_address`]. VFs with an even index are bound to
/// vfio-pci; those with an odd one to igbvf, and have an interface `ens0v1`. A bridge and a disk controller without
/// SR-IOV stand beside them.
///
/// # Errors
/// More than [`MAX_PFS`] or [`MAX_VFS`], or an error of the file system.
pub fn make_sysfs(root: &Path, pfs: u8, vfs: u8) -> io::Result<Sysfs> {
    if pfs > MAX_PFS || vfs > MAX_VFS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "no room for so many functions",
        ));
    }
    let maker = Maker {
        root: root.to_owned(),
    };
    for directory in ["bus/pci/devices", "class/net"] {
        fs::create_dir_all(root.join(directory))?;
    }
    for driver in ["igb", "igbvf", "vfio-pci"] {
        let driver = root.join("bus/pci/drivers").join(driver);
        fs::create_dir_all(&driver)?;
        fs::write(driver.join("bind"), "")?;
        fs::write(driver.join("unbind"), "")?;
    }
    maker.function(
        function(0, 0, 0),
        "0x060400",
        PciId {
            vendor: 0x8086,
            device: 0x3420,
        },
        None,
    )?;
    maker.function(
        function(0, 1, 0),
        "0x010601",
        PciId {
            vendor: 0x8086,
            device: 0x2922,
        },
        None,
    )?;
    for pf in 0..pfs {
        maker.pf(pf, vfs)?;
    }
    Ok(Sysfs::new(root))
}

/// Address of a made PF: `0000:01:00.0`, `0000:02:00.0`, ...
pub fn pf_address(pf: u8) -> PciAddress {
    function(bus(pf), 0, 0)
}

/// Address of a made VF: `0000:01:10.0`, `0000:01:10.1`, ...
pub fn vf_address(pf: u8, vf: u8) -> PciAddress {
    function(bus(pf), 0x10 + vf / 8, vf % 8)
}

fn bus(pf: u8) -> u8 {
    pf.saturating_add(1)
}

fn function(bus: u8, device: u8, function: u8) -> PciAddress {
    PciAddress::new(0, bus, device & 0x1f, function & 7).unwrap_or_else(|| unreachable!("both are masked"))
}

struct Maker {
    root: PathBuf,
}

impl Maker {
    fn pf(&self, pf: u8, vfs: u8) -> io::Result<()> {
        let address = pf_address(pf);
        let dir = self.function(address, "0x020000", PF_ID, Some("igb"))?;
        fs::write(dir.join("sriov_totalvfs"), format!("{MAX_VFS}\n"))?;
        fs::write(dir.join("sriov_numvfs"), format!("{vfs}\n"))?;
        let name = format!("ens{pf}");
        self.interface(
            &dir,
            &name,
            u32::from(pf) + 2,
            MacAddr::new([0x00, 0x1b, 0x21, pf, 0, 0]),
        )?;
        for vf in 0..vfs {
            let address = vf_address(pf, vf);
            let vfio = vf % 2 == 0;
            let vf_dir = self.function(
                address,
                "0x020000",
                VF_ID,
                Some(if vfio { "vfio-pci" } else { "igbvf" }),
            )?;
            symlink(format!("../{}", pf_address(pf)), vf_dir.join("physfn"))?;
            symlink(format!("../{address}"), dir.join(format!("virtfn{vf}")))?;
            let number = u32::from(pf) * u32::from(MAX_VFS) + u32::from(vf) + 1;
            let group = self.root.join("kernel/iommu_groups").join(number.to_string());
            fs::create_dir_all(group.join("devices"))?;
            symlink(&group, vf_dir.join("iommu_group"))?;
            symlink(&vf_dir, group.join("devices").join(address.to_string()))?;
            if vfio {
                fs::create_dir_all(vf_dir.join(format!("vfio-dev/vfio{number}")))?;
            } else {
                let mac = MacAddr::new([0x02, 0x1b, 0x21, pf, 1, vf]);
                self.interface(&vf_dir, &format!("{name}v{vf}"), number + 1000, mac)?;
            }
        }
        Ok(())
    }

    fn function(
        &self,
        address: PciAddress,
        class: &str,
        id: PciId,
        driver: Option<&str>,
    ) -> io::Result<PathBuf> {
        let path = format!("devices/pci0000:00/{address}");
        let dir = self.root.join(&path);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("class"), format!("{class}\n"))?;
        fs::write(dir.join("vendor"), format!("0x{:04x}\n", id.vendor))?;
        fs::write(dir.join("device"), format!("0x{:04x}\n", id.device))?;
        fs::write(dir.join("numa_node"), "-1\n")?;
        fs::write(dir.join("driver_override"), "(null)\n")?;
        if let Some(driver) = driver {
            symlink(self.root.join("bus/pci/drivers").join(driver), dir.join("driver"))?;
        }
        symlink(
            format!("../../../{path}"),
            self.root.join(format!("bus/pci/devices/{address}")),
        )?;
        Ok(dir)
    }

    fn interface(&self, function: &Path, name: &str, ifindex: u32, mac: MacAddr) -> io::Result<()> {
        let dir = function.join("net").join(name);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("ifindex"), format!("{ifindex}\n"))?;
        fs::write(dir.join("address"), format!("{mac}\n"))?;
        fs::write(dir.join("mtu"), "1500\n")?;
        fs::write(dir.join("carrier"), "1\n")?;
        fs::write(dir.join("operstate"), "up\n")?;
        fs::write(dir.join("type"), "1\n")?;
        fs::write(dir.join("flags"), "0x1003\n")?;
        symlink(&dir, self.root.join("class/net").join(name))
    }
}
