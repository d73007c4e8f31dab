//! The device node of a macvtap in a pod's network namespace. This process's sysfs does not have the link, but the numbers of all
//! devices are in `/sys/dev/char`, and the node is in the one `/dev` of the machine, by the macvtap's index.
//!
//! The kernel makes the node with the macvtap, owned by root, unless there is a file of that name. If two macvtaps have one index, only the first has a node, and
//! the node is removed with either of them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use nix::fcntl::AtFlags;
use nix::unistd::{Gid, Uid, fchownat};

use crate::dev::DevNodes;
use crate::sysfs::Sysfs;
use crate::tap::parse_device_number;

/// Who a node is given to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// A macvtap's node cannot be given to anybody.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Sysfs cannot be read.
    #[error("cannot read which devices there are")]
    List(#[source] io::Error),
    /// There is no such macvtap.
    #[error("no macvtap has the index {0}")]
    NoMacvtap(u32),
    /// The index is not one macvtap's own.
    #[error("{count} macvtaps have the index {index}, each in another network namespace")]
    Several {
        /// The index.
        index: u32,
        /// How many have it.
        count: usize,
    },
    /// There is no node, or it is another device's.
    #[error("{} is not the device of the macvtap with that index", path.display())]
    Foreign {
        /// Where it should be.
        path: PathBuf,
        /// What the kernel said, where it said something.
        #[source]
        source: Option<io::Error>,
    },
    /// There is a macvtap with that index, in whatever network namespace.
    #[error("a macvtap with the index {0} is still in another network namespace")]
    Taken(u32),
    /// What is in the node's place cannot be removed.
    #[error("cannot remove {}, which is in the way of the macvtap's device", path.display())]
    InTheWay {
        /// The node's place.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// Its owner or mode cannot be set.
    #[error("cannot give {} to user {uid}", path.display())]
    Give {
        /// The node.
        path: PathBuf,
        /// The user.
        uid: u32,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

/// Where the node of the macvtap with this index is.
pub fn path(dev: &DevNodes, index: u32) -> PathBuf {
    dev.root().join(format!("tap{index}"))
}

/// The numbers of the devices of all macvtaps with this index, in whatever network namespace they are.
pub fn numbers(sysfs: &Sysfs, index: u32) -> io::Result<Vec<libc::dev_t>> {
    let name = format!("tap{index}");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(sysfs.root().join("dev/char"))? {
        let entry = entry?;
        // It leads to `../../devices/virtual/net/LINK/macvtap/tapINDEX`, or would, in another namespace.
        let Ok(device) = std::fs::read_link(entry.path()) else {
            // It has gone since.
            continue;
        };
        if device.ends_with(&name)
            && device.components().any(|part| part.as_os_str() == "net")
            && let Some(number) = entry.file_name().to_str().and_then(parse_device_number)
        {
            found.push(number);
        }
    }
    Ok(found)
}

/// Makes room for a macvtap with this index, which no other may have: removes what is in its node's place, which is not in use then.
///
/// Blocks, as access to files does.
pub fn make_room(sysfs: &Sysfs, dev: &DevNodes, index: u32) -> Result<(), NodeError> {
    if !numbers(sysfs, index).map_err(NodeError::List)?.is_empty() {
        return Err(NodeError::Taken(index));
    }
    let path = path(dev, index);
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(NodeError::InTheWay { path, source }),
        _ => Ok(()),
    }
}

/// Gives the node of the only macvtap with this index to a user: then only that user and root may read and write it.
///
/// Needs `CAP_CHOWN`. Blocks, as access to files does.
pub fn give(sysfs: &Sysfs, dev: &DevNodes, index: u32, owner: Owner) -> Result<PathBuf, NodeError> {
    let path = path(dev, index);
    let number = match numbers(sysfs, index).map_err(NodeError::List)?[..] {
        [number] => number,
        [] => return Err(NodeError::NoMacvtap(index)),
        ref all => {
            return Err(NodeError::Several {
                index,
                count: all.len(),
            });
        }
    };
    let foreign = |source| NodeError::Foreign {
        path: path.clone(),
        source,
    };
    // Not the device itself: opening that makes a queue of it.
    let node = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(&path)
        .map_err(|e| foreign(Some(e)))?;
    let meta = node.metadata().map_err(|e| foreign(Some(e)))?;
    if !meta.file_type().is_char_device() || meta.rdev() != number {
        return Err(foreign(None));
    }
    if (meta.uid(), meta.gid(), meta.mode() & 0o7777) != (owner.uid, owner.gid, MODE) {
        change(&node, owner).map_err(|source| NodeError::Give {
            path: path.clone(),
            uid: owner.uid,
            source,
        })?;
    }
    Ok(path)
}

const MODE: u32 = 0o600;

/// The mode first: only its owner may set it.
fn change(node: &File, owner: Owner) -> io::Result<()> {
    let by_descriptor = format!("/proc/self/fd/{}", node.as_raw_fd());
    if node.metadata()?.mode() & 0o7777 != MODE {
        std::fs::set_permissions(by_descriptor, std::fs::Permissions::from_mode(MODE))?;
    }
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    fchownat(node, "", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::sys::stat::makedev;

    use super::*;

    #[test]
    fn a_macvtap_is_found_by_its_index_whatever_it_is_called() {
        let dir = tempfile::tempdir().unwrap();
        let char = dir.path().join("dev/char");
        std::fs::create_dir_all(&char).unwrap();
        for (number, device) in [
            ("246:1", "../../devices/virtual/net/pod1/macvtap/tap7"),
            ("246:2", "../../devices/virtual/net/pod1/macvtap/tap77"),
            ("246:3", "../../devices/virtual/net/tap7/macvtap/tap8"),
            ("246:4", "../../devices/virtual/net/pod1/tap9"),
            ("246:5", "../../devices/virtual/net/pod2/macvtap/tap9"),
            ("10:200", "../../devices/virtual/misc/tap7"),
            ("garbage", "../../devices/virtual/net/pod3/macvtap/tap7"),
        ] {
            symlink(device, char.join(number)).unwrap();
        }
        let sysfs = Sysfs::new(dir.path());
        assert_eq!(numbers(&sysfs, 7).unwrap(), [makedev(246, 1)]);
        assert!(numbers(&sysfs, 10).unwrap().is_empty());
        let (dev, owner) = (DevNodes::new(dir.path()), Owner { uid: 107, gid: 107 });
        let error = |index| give(&sysfs, &dev, index, owner).unwrap_err();
        assert!(matches!(error(10), NodeError::NoMacvtap(10)));
        assert!(matches!(error(9), NodeError::Several { count: 2, .. }));
        assert!(matches!(error(7), NodeError::Foreign { .. }));
        assert!(matches!(make_room(&sysfs, &dev, 7), Err(NodeError::Taken(7))));
        std::fs::create_dir(dir.path().join("tap6")).unwrap();
        assert!(matches!(
            make_room(&sysfs, &dev, 6),
            Err(NodeError::InTheWay { .. })
        ));
        symlink("/dev/null", dir.path().join("tap5")).unwrap();
        for _ in 0..2 {
            make_room(&sysfs, &dev, 5).unwrap();
            assert!(dir.path().join("tap5").symlink_metadata().is_err());
        }
        symlink("/dev/null", dir.path().join("tap7")).unwrap();
        assert!(
            matches!(error(7), NodeError::Foreign { .. }),
            "no link is followed"
        );
    }
}
