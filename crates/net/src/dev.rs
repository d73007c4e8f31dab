//! Device nodes: vhost-net, iommufd and vfio.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// The device nodes of the machine, by the directory they are in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevNodes {
    root: PathBuf,
}

/// Whether somebody holds a function through vfio.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VfioUse {
    /// No process does.
    Free,
    /// Somebody does.
    InUse,
    /// The group has no node, so this is unknown: the kernel has no vfio groups, or the function is not with vfio.
    Unknown,
}

/// Which nodes of its own the kernel's vfio has for functions that are bound to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VfioNodes {
    /// One for each function (`CONFIG_VFIO_DEVICE_CDEV`, which needs iommufd): an open descriptor of it can be handed to QEMU.
    Functions,
    /// One for each IOMMU group and no other. QEMU opens it by its path.
    Groups,
}

impl VfioNodes {
    /// By the kernel's list of device numbers (`/proc/devices`); `None` where vfio is not loaded. vfio takes numbers for its groups as `vfio`
    /// (`vfio_group_init` in drivers/vfio/group.c), and for functions as `vfio-dev` (`vfio_cdev_init` in drivers/vfio/device_cdev.c).
    pub fn of(devices: &str) -> Option<Self> {
        let has = |name: &str| {
            let mut names = devices.lines().filter_map(|line| line.split_whitespace().nth(1));
            names.any(|other| other == name)
        };
        if has("vfio-dev") {
            Some(Self::Functions)
        } else {
            has("vfio").then_some(Self::Groups)
        }
    }
}

/// A device node exists and cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {path}")]
pub struct OpenError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl OpenError {
    /// The device node.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Default for DevNodes {
    /// Those in `/dev`.
    fn default() -> Self {
        Self::new("/dev")
    }
}

impl DevNodes {
    /// Those in `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Opens `/dev/vhost-net`; `None` where the kernel does not have it.
    pub fn open_vhost_net(&self) -> Result<Option<OwnedFd>, OpenError> {
        open(self.root.join("vhost-net"))
    }

    /// Opens `/dev/iommu` (iommufd); `None` where the kernel does not have it.
    pub fn open_iommu(&self) -> Result<Option<OwnedFd>, OpenError> {
        open(self.root.join("iommu"))
    }

    /// Opens a function's own vfio node, named as in [`crate::sysfs::Vf::vfio_cdev`]; `None` where there is none. Any
    /// number of openers get it; only one can bind it to an iommufd.
    pub fn open_vfio_cdev(&self, name: &str) -> Result<Option<OwnedFd>, OpenError> {
        open(self.vfio_cdev(name))
    }

    /// Path of a function's own vfio node.
    pub fn vfio_cdev(&self, name: &str) -> PathBuf {
        self.root.join("vfio/devices").join(name)
    }

    /// Path of an IOMMU group's vfio node.
    pub fn vfio_group(&self, group: u32) -> PathBuf {
        self.root.join("vfio").join(group.to_string())
    }

    /// Whether somebody holds a function of an IOMMU group, by the group or by its own node: the kernel then refuses to
    /// open the group (`EBUSY`, `vfio_group_fops_open`).
    ///
    /// While this looks, others are refused in the same way: do not ask while a VM that should get the function starts.
    pub fn vfio_use(&self, group: u32) -> io::Result<VfioUse> {
        match OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.vfio_group(group))
        {
            Ok(_) => Ok(VfioUse::Free),
            Err(e) => match e.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EBUSY) => Ok(VfioUse::InUse),
                // A group whose last function has left vfio.
                Some(Errno::ENODEV) => Ok(VfioUse::Free),
                Some(Errno::ENOENT) => Ok(VfioUse::Unknown),
                _ => Err(e),
            },
        }
    }
}

/// Opens a node for reading and writing. A node without a device behind it counts as none.
fn open(path: PathBuf) -> Result<Option<OwnedFd>, OpenError> {
    match OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)
    {
        Ok(file) => Ok(Some(file.into())),
        Err(e) => match e.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => Ok(None),
            _ => Err(OpenError { path, source: e }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let dev = DevNodes::new(dir.path());
        assert!(dev.open_vhost_net().unwrap().is_none());
        assert!(dev.open_iommu().unwrap().is_none());
        assert!(dev.open_vfio_cdev("vfio0").unwrap().is_none());
        assert_eq!(dev.vfio_use(7).unwrap(), VfioUse::Unknown);
    }

    #[test]
    fn the_kernel_says_which_nodes_vfio_has() {
        let list =
            |names: &str| format!("Character devices:\n  1 mem\n 10 misc\n{names}\nBlock devices:\n  8 sd\n");
        assert_eq!(VfioNodes::of(&list("")), None);
        assert_eq!(VfioNodes::of(&list("243 vfio")), Some(VfioNodes::Groups));
        assert_eq!(
            VfioNodes::of(&list("242 vfio-dev\n243 vfio")),
            Some(VfioNodes::Functions)
        );
        assert_eq!(
            VfioNodes::of(&list("242 vfio-dev")),
            Some(VfioNodes::Functions),
            "without CONFIG_VFIO_GROUP"
        );
        assert_eq!(VfioNodes::of(&list("243 vfio-other")), None);
    }

    #[test]
    fn other_errors_name_the_node() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("iommu")).unwrap();
        let error = DevNodes::new(dir.path()).open_iommu().unwrap_err();
        assert!(error.to_string().ends_with("/iommu"), "{error}");
    }
}
