//! A device node for a device that a container was promised and that does not exist yet.
//!
//! A container is not created if the node of one of its devices is missing. The macvtap of a KubeVirt VM's NIC exists by then, because the
//! pod's network is made first, and the kernel makes its node. A plain QEMU pod needs none: its QEMU gets its devices as descriptors. It
//! is not known which of the two asks, so there is a node that leads nowhere (`/dev/null`) until a macvtap takes its place. The
//! kernel makes no node if there is one already, so this one is removed before the macvtap is made.

use std::{io, path::Path};

use hybridnic_net::DeviceId;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat, stat};

/// What `/dev/null` is.
const NULL: (u32, u32) = (1, 3);

/// Makes one where there is no node.
pub(super) fn make(dev: &Path, id: DeviceId) -> io::Result<()> {
    let made = mknodat(
        CWD,
        path(dev, id),
        FileType::CharacterDevice,
        Mode::RUSR | Mode::WUSR,
        makedev(NULL.0, NULL.1),
    );
    match made {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes those of devices that no pod has. A macvtap's node belongs to the kernel, and stays.
pub(super) fn sweep(dev: &Path, is_used: impl Fn(DeviceId) -> bool) -> io::Result<()> {
    for entry in std::fs::read_dir(dev)? {
        let name = entry?.file_name();
        let index = name.to_str().and_then(|name| name.strip_prefix("tap"));
        let id = index
            .and_then(|index| index.parse().ok())
            .and_then(DeviceId::of_ifindex);
        let Some(id) = id else {
            continue;
        };
        let ours = stat(path(dev, id)).is_ok_and(|node| node.st_rdev == makedev(NULL.0, NULL.1));
        if ours && !is_used(id) {
            std::fs::remove_file(path(dev, id))?;
        }
    }
    Ok(())
}

fn path(dev: &Path, id: DeviceId) -> std::path::PathBuf {
    dev.join(format!("tap{}", id.ifindex()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_node_that_is_there_stays_and_ours_goes_when_nobody_has_the_device() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two, real]: [DeviceId; 3] =
            ["0000:01:00.0-1", "0000:01:00.0-2", "0000:01:00.0-3"].map(|id| id.parse().unwrap());
        fs::write(path(dir.path(), real), "a macvtap's").unwrap();
        fs::write(dir.path().join("tap7"), "").unwrap();
        for id in [one, one, two, real] {
            make(dir.path(), id).unwrap();
        }
        assert_eq!(fs::read_to_string(path(dir.path(), real)).unwrap(), "a macvtap's");
        assert_eq!(fs::read(path(dir.path(), one)).unwrap(), b"", "it leads nowhere");
        sweep(dir.path(), |id| id == two).unwrap();
        let left: Vec<bool> = [one, two, real].map(|id| path(dir.path(), id).exists()).into();
        assert_eq!(left, [false, true, true]);
        assert!(dir.path().join("tap7").exists());
    }
}
