//! The descriptor of a macvtap, which QEMU reads and writes frames through.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::dev::DevNodes;
use crate::sysfs::Sysfs;

/// Could not obtain a macvtap's file descriptor.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Sysfs does not have the number of the character device.
    #[error("cannot read the device number of macvtap {name}")]
    Number {
        /// The macvtap.
        name: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The character device cannot be opened.
    #[error("cannot open the character device of macvtap {name}")]
    Open {
        /// The macvtap.
        name: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The character device's node is missing and cannot be made.
    #[error("cannot make a node for the character device of macvtap {name}")]
    Node {
        /// The macvtap.
        name: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The frame format cannot be set.
    #[error("cannot set the virtio header on macvtap {name}")]
    VirtioHeader {
        /// The macvtap.
        name: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

/// Opens a macvtap for QEMU: read and write, non-blocking, frames with a virtio header (`IFF_VNET_HDR`), without which
/// QEMU gives the guest no offloads.
///
/// Every open descriptor of a macvtap is one of its queues, and the kernel spreads frames over all of them. So open it
/// once, and close it when QEMU has its own copy.
///
/// The node in `/dev` is taken only if it has the number that sysfs gives: nodes are named by link index, and those of
/// all network namespaces lie in one `/dev`.
pub fn open_tap(sysfs: &Sysfs, dev: &DevNodes, name: &str, ifindex: u32) -> Result<OwnedFd, TapError> {
    let number = device_number(sysfs, name, ifindex).map_err(|source| TapError::Number {
        name: name.to_owned(),
        source,
    })?;
    let open = |source| TapError::Open {
        name: name.to_owned(),
        source,
    };
    let node = dev.root().join(format!("tap{ifindex}"));
    let file = if is_device(&node, number) {
        open_node(&node, number).map_err(open)?
    } else {
        // In the directory of device nodes: other file systems are often mounted `nodev`.
        let make = |source| TapError::Node {
            name: name.to_owned(),
            source,
        };
        let private = tempfile::Builder::new()
            .prefix(".hybridnic-")
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir_in(dev.root())
            .map_err(make)?;
        let node = private.path().join("tap");
        mknod(&node, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, number).map_err(|e| make(e.into()))?;
        open_node(&node, number).map_err(open)?
    };
    let fd = OwnedFd::from(file);
    set_virtio_header(&fd).map_err(|source| TapError::VirtioHeader {
        name: name.to_owned(),
        source,
    })?;
    Ok(fd)
}

/// Whether frames on a macvtap's or tap's descriptor carry a virtio header.
pub fn has_virtio_header(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(flags(fd.as_raw_fd())? & VIRTIO_HEADER != 0)
}

/// The device number, `246:1` in sysfs.
fn device_number(sysfs: &Sysfs, name: &str, ifindex: u32) -> io::Result<libc::dev_t> {
    let device = sysfs.net_device(name);
    let text = std::fs::read_to_string(device.join(format!("tap{ifindex}/dev"))).or_else(|e| {
        // With a directory of the class in between, as the driver core makes it for namespaced classes.
        if e.kind() != io::ErrorKind::NotFound {
            return Err(e);
        }
        std::fs::read_to_string(device.join(format!("macvtap/tap{ifindex}/dev")))
    })?;
    parse_device_number(text.trim_end()).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{text:?} is not a device number"),
        )
    })
}

pub(crate) fn parse_device_number(text: &str) -> Option<libc::dev_t> {
    let (major, minor) = text.split_once(':')?;
    Some(makedev(
        major.parse::<u32>().ok()?.into(),
        minor.parse::<u32>().ok()?.into(),
    ))
}

fn is_device(path: &Path, number: libc::dev_t) -> bool {
    std::fs::symlink_metadata(path)
        .is_ok_and(|meta| meta.file_type().is_char_device() && meta.rdev() == number)
}

fn open_node(path: &Path, number: libc::dev_t) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)?;
    if file.metadata()?.rdev() == number {
        Ok(file)
    } else {
        Err(io::Error::other("the node changed while it was opened"))
    }
}

/// `IFF_VNET_HDR` as the field of `struct ifreq` has it.
#[expect(clippy::cast_possible_truncation, reason = "the flag is 0x4000")]
const VIRTIO_HEADER: libc::c_short = libc::IFF_VNET_HDR as libc::c_short;

/// As libvirt does it (`virNetDevMacVLanTapSetup`).
fn set_virtio_header(fd: &OwnedFd) -> io::Result<()> {
    let flags = flags(fd.as_raw_fd())?;
    if flags & VIRTIO_HEADER != 0 {
        return Ok(());
    }
    let mut request = empty_request();
    request.ifr_ifru.ifru_flags = flags | VIRTIO_HEADER;
    // SAFETY: the descriptor is open, and TUNSETIFF reads the ifreq it is given and nothing else.
    unsafe { ioctl::set_interface(fd.as_raw_fd(), &raw const request) }?;
    Ok(())
}

fn flags(fd: libc::c_int) -> io::Result<libc::c_short> {
    let mut request = empty_request();
    // SAFETY: TUNGETIFF fills the ifreq it is given and nothing else; on a descriptor of another kind it fails.
    unsafe { ioctl::get_interface(fd, &raw mut request) }?;
    // SAFETY: all bytes of the union are initialised, and any are a valid c_short.
    Ok(unsafe { request.ifr_ifru.ifru_flags })
}

fn empty_request() -> libc::ifreq {
    // SAFETY: an ifreq is integers, arrays of them, and one pointer, for all of which zero is a valid value.
    unsafe { std::mem::zeroed() }
}

/// Requests of include/uapi/linux/if_tun.h. Their numbers have the size of an `int`, their argument is an `ifreq`.
mod ioctl {
    nix::ioctl_read_bad!(get_interface, libc::TUNGETIFF, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, libc::ifreq);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_device_numbers() {
        assert_eq!(parse_device_number("246:1"), Some(makedev(246, 1)));
        for text in ["", "246", "246:", "a:1", "-1:1", "246:1:2"] {
            assert_eq!(parse_device_number(text), None, "{text}");
        }
    }

    #[test]
    fn a_node_of_another_device_is_not_taken() {
        assert!(is_device(Path::new("/dev/null"), makedev(1, 3)));
        assert!(!is_device(Path::new("/dev/null"), makedev(246, 1)));
        assert!(!is_device(Path::new("/dev"), makedev(1, 3)));
    }

    #[test]
    fn a_missing_macvtap_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = open_tap(&Sysfs::new(dir.path()), &DevNodes::default(), "hn0", 4).unwrap_err();
        assert!(matches!(error, TapError::Number { .. }), "{error:?}");
        assert!(error.to_string().contains("hn0"));
    }
}
