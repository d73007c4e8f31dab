//! Opens a VM's QMP socket: a pod's beneath the kubelet's directory of pods, or one of the host itself. The pod decides what is in its
//! volume, so nothing in it is trusted: no link is followed, and nothing outside of the volume is reached. On the host nobody but root
//! and the directory's owner may be able to put another socket there.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::{fs::FileTypeExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
};

use hybridnic_api::{
    names::{LAUNCHER_SOCKET, LAUNCHER_VOLUME, QMP_SOCKET, QMP_VOLUME},
    v1alpha1::Runtime,
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, UnixAddr},
        stat::{Mode, fstat},
        statfs::{TMPFS_MAGIC, fstatfs},
    },
};

/// Where a pod has its QMP socket.
#[derive(Clone, Debug)]
pub struct Place {
    /// The pod's volumes of one kind, beneath the kubelet's directory of pods.
    volumes: PathBuf,
    /// The volume's name, which is that of its directory.
    volume: &'static str,
    /// The socket's name in the volume.
    pub socket: &'static str,
}

/// The place of a pod of this runtime; `None` if this is not a uid.
pub fn place_of(runtime: Runtime, pod_uid: &str) -> Option<Place> {
    let (volume, socket) = match runtime {
        Runtime::Qemu => (QMP_VOLUME, QMP_SOCKET),
        Runtime::Kubevirt => (LAUNCHER_VOLUME, LAUNCHER_SOCKET),
    };
    let is_uid = |c: char| c.is_ascii_alphanumeric() || c == '-';
    (!pod_uid.is_empty() && pod_uid.chars().all(is_uid)).then(|| Place {
        volumes: Path::new(pod_uid).join("volumes/kubernetes.io~empty-dir"),
        volume,
        socket,
    })
}

/// What is in the place of a VM's QMP socket and is not a socket that the agent talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offence {
    /// A link, in place of the socket or of a directory.
    Link,
    /// Something else than a socket.
    NotASocket,
    /// Another file system than a kubelet gives an `emptyDir`.
    OtherFileSystem,
    /// A socket on which no process of the pod listens.
    Foreign,
    /// A socket whose listener has ended, and which another process has inherited.
    Inherited,
    /// On the host: a directory in which others could have put a socket.
    Exposed,
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Link => "in the place of the VM's QMP socket is a link, and links are not followed",
            Self::NotASocket => "in the place of the VM's QMP socket is something that is not a socket",
            Self::OtherFileSystem => {
                "the volume of the pod's QMP socket is on another file system than an emptyDir's"
            }
            Self::Foreign => {
                "the process that listens on the pod's QMP socket is not in the pod's control group"
            }
            Self::Inherited => {
                "the process that listened on the VM's QMP socket has ended, and another holds the socket"
            }
            Self::Exposed => {
                "users other than root and its owner can write to the directory of the VM's QMP socket, or to one above it"
            }
        })
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Closed {
    /// There is no such directory or socket, or no process listens.
    #[error("nobody listens on the VM's QMP socket")]
    Absent,
    /// The listener's queue is full, as QEMU's is behind one client.
    #[error("the VM's QMP socket is busy")]
    Busy,
    /// What is there is not talked to.
    #[error("{0}")]
    Untrusted(Offence),
    /// Nothing can be told.
    #[error(transparent)]
    Failed(#[from] io::Error),
}

impl From<Errno> for Closed {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::ENOENT | Errno::ECONNREFUSED => Self::Absent,
            Errno::EAGAIN => Self::Busy,
            Errno::ELOOP => Self::Untrusted(Offence::Link),
            Errno::EXDEV => Self::Untrusted(Offence::OtherFileSystem),
            other => Self::Failed(other.into()),
        }
    }
}

/// The directory of a VM's QMP socket, as it was when it was opened.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    socket: OsString,
}

/// Whether the directory is that in which this node's kubelet keeps its pods, by one of them that is sure to be there.
pub fn is_kubelets(pods: &Path, pod_uid: &str) -> bool {
    let dir = place_of(Runtime::Qemu, pod_uid).map(|_| pods.join(pod_uid));
    dir.is_some_and(|dir| dir.is_dir())
}

/// Opens the directory of a pod's volume, beneath the kubelet's directory of pods.
pub fn open(pods: &Path, runtime: Runtime, pod_uid: &str) -> Result<Directory, Closed> {
    let place = place_of(runtime, pod_uid)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not the uid of a pod"))?;
    // If that cannot be opened, nothing is known about any pod.
    let pods = File::open(pods)?;
    let dir = OFlag::O_DIRECTORY;
    let volumes = beneath(&pods, &place.volumes, dir, ResolveFlag::RESOLVE_NO_XDEV)?;
    let volume = Path::new(place.volume);
    let fd = match beneath(&volumes, volume, dir, ResolveFlag::RESOLVE_NO_XDEV) {
        // An emptyDir of medium `Memory` is a tmpfs of its own.
        Err(Errno::EXDEV) => {
            let mounted = beneath(&volumes, volume, dir, ResolveFlag::empty())?;
            if fstatfs(&mounted)?.filesystem_type() != TMPFS_MAGIC {
                return Err(Closed::Untrusted(Offence::OtherFileSystem));
            }
            mounted
        }
        opened => opened?,
    };
    let socket = place.socket.into();
    Ok(Directory { fd, socket })
}

/// Opens the directory of a socket of the host. Links that lead to it are root's own; the socket itself may be none.
pub fn open_on_host(socket: &Path) -> Result<Directory, Closed> {
    let (Some(dir), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the path of a socket").into());
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let fd = nix::fcntl::open(dir, flags, Mode::empty())?;
    if is_exposed(&fd)? {
        return Err(Closed::Untrusted(Offence::Exposed));
    }
    Ok(Directory {
        fd,
        socket: name.to_owned(),
    })
}

/// Whether users other than root and the directory's owner can make entries in it, or put another directory in its place.
fn is_exposed(dir: &OwnedFd) -> Result<bool, Errno> {
    const OTHERS: u32 = 0o022;
    const STICKY: u32 = 0o1000;
    let of = fstat(dir)?;
    if of.st_mode & OTHERS != 0 {
        return Ok(true);
    }
    let (mut below, mut at) = (of, dir.try_clone().map_err(|_| Errno::EMFILE)?);
    loop {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        at = nix::fcntl::openat(&at, "..", flags, Mode::empty())?;
        let above = fstat(&at)?;
        // The root's is itself.
        if (above.st_dev, above.st_ino) == (below.st_dev, below.st_ino) {
            return Ok(false);
        }
        // In a sticky directory such as /tmp, nobody can rename what belongs to another.
        let may_others = above.st_mode & OTHERS != 0 && above.st_mode & STICKY == 0;
        if may_others || (above.st_uid != 0 && above.st_uid != of.st_uid) {
            return Ok(true);
        }
        below = above;
    }
}

fn beneath(dir: impl AsFd, path: &Path, flags: OFlag, more: ResolveFlag) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | flags)
        .mode(Mode::empty())
        .resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_MAGICLINKS
                | more,
        );
    openat2(dir, path, how)
}

impl Directory {
    /// The socket's name in it.
    pub fn socket(&self) -> &OsStr {
        &self.socket
    }

    /// A path to it for calls that take no descriptor, for as long as it is open.
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }

    /// Connects to the socket in it, without waiting.
    pub fn connect(&self) -> Result<UnixStream, Closed> {
        let socket = beneath(
            &self.fd,
            Path::new(&self.socket),
            OFlag::empty(),
            ResolveFlag::RESOLVE_NO_XDEV,
        )?;
        // It takes no descriptor either.
        let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
        if !std::fs::metadata(&path)?.file_type().is_socket() {
            return Err(Closed::Untrusted(Offence::NotASocket));
        }
        let stream = nix::sys::socket::socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        nix::sys::socket::connect(stream.as_raw_fd(), &UnixAddr::new(path.as_str())?)?;
        Ok(UnixStream::from(stream))
    }
}

#[cfg(test)]
#[path = "socket_tests.rs"]
pub(crate) mod tests;
