//! What the agent needs and cannot make once it has dropped its capabilities:
//!
//! - a TCP socket in the network of a VM's pod, see [`crate::machine::qemu::dial`]: `setns(2)` needs `CAP_SYS_ADMIN` and `CAP_SYS_PTRACE`;
//! - a directory in memory that is a file system of its own, see [`crate::machine::qemu::tls`]: `fsopen(2)` needs `CAP_SYS_ADMIN`. A process that gets
//!   any other directory open can walk up from it by `..` as far as permissions allow: a QEMU that is root gets to the agent's own files;
//! - an rtnetlink socket in the network of a pod, with which a macvtap there is set up and down from outside, and the list of what the pod's
//!   links receive: `setns(2)`, as above.
//! - the root directory of a VM's pod, see [`crate::machine::qemu::state_file`]: `/proc/PID/root` needs `CAP_SYS_PTRACE`.
//!
//! So a small process of the same program keeps these capabilities. It can do these four things, for the agent alone, and reads nothing
//! that a VM or a user has written.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use hybridnic_net::{multicast::LISTING, netns::NetNs};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl, open},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns},
    sys::{
        socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket, socketpair},
        stat::Mode,
    },
};
use rustix::{
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    },
    process::{Signal, set_parent_process_death_signal},
    thread::CapabilitySet,
};
use tokio::{io::unix::AsyncFd, sync::Mutex};

use crate::{machine::process::ProcessId, packets, privileges};

/// The capabilities that the process keeps. The last one is needed because through an rtnetlink socket the kernel allows only what the
/// opener of the socket may do (`netlink_ns_capable`).
pub const NEEDED: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::NET_ADMIN);

/// How long it may take; it waits for nothing.
const DEADLINE: Duration = Duration::from_secs(5);

/// Makes what the agent cannot.
pub trait Broker: std::fmt::Debug + Send + Sync {
    /// A TCP socket that is not connected, of IPv6 or IPv4, in the network of a process.
    fn socket<'a>(&'a self, of: &'a ProcessId, ipv6: bool) -> BoxFuture<'a, io::Result<OwnedFd>>;
    /// A socket of rtnetlink in the network of a pod.
    fn netlink<'a>(&'a self, of: Pod<'a>) -> BoxFuture<'a, io::Result<OwnedFd>>;
    /// The multicast lists of a pod's links, [`LISTING`].
    fn groups<'a>(&'a self, of: Pod<'a>) -> BoxFuture<'a, io::Result<OwnedFd>>;
    /// An empty directory in memory. It is a file system of its own, and goes when nobody has it open any more.
    fn memory(&self) -> BoxFuture<'_, io::Result<OwnedFd>>;
    /// The root directory of a process. Only a path below it can be read or written with this.
    fn root<'a>(&'a self, of: &'a ProcessId) -> BoxFuture<'a, io::Result<OwnedFd>>;
}

/// By what the network of a pod is found.
#[derive(Clone, Copy, Debug)]
pub enum Pod<'a> {
    /// A process of it.
    Process(&'a ProcessId),
    /// A descriptor of it.
    NetNs(&'a NetNs),
}

/// The agent's end.
#[derive(Debug)]
pub struct Process {
    /// With the number of the last question: an answer that came too late, or that nobody waited for, belongs to another.
    socket: Mutex<(AsyncFd<OwnedFd>, u8)>,
    id: Option<ProcessId>,
}

/// The agent's end before there is a runtime.
#[derive(Debug)]
pub struct Started {
    socket: OwnedFd,
    id: Option<ProcessId>,
}

impl Started {
    /// Starts the process, which is `program` with the argument `broker`. Before the agent gives up its powers.
    pub fn new(program: &Path) -> io::Result<Self> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        // The process waits at its own end.
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // It ends when our end of the socket does.
        let child = Command::new(program)
            .arg0("hybridnic-broker")
            .arg("broker")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .env_clear()
            .spawn()?;
        let id = ProcessId::of(child.id().cast_signed())?;
        Ok(Self { socket: ours, id })
    }

    /// For use within the runtime.
    pub fn run(self) -> io::Result<Process> {
        // SAFETY: an `OwnedFd` stays open until it is dropped, and `AsyncFd` owns it.
        let socket = unsafe { AsyncFd::register(self.socket) };
        Ok(Process {
            socket: Mutex::new((socket.map_err(io::Error::from)?, 0)),
            id: self.id,
        })
    }
}

impl Broker for Process {
    fn socket<'a>(&'a self, of: &'a ProcessId, ipv6: bool) -> BoxFuture<'a, io::Result<OwnedFd>> {
        let what = if ipv6 { IPV6 } else { IPV4 };
        async move { self.ask(what, Some(of.open()?.as_fd())).await }.boxed()
    }

    fn netlink<'a>(&'a self, of: Pod<'a>) -> BoxFuture<'a, io::Result<OwnedFd>> {
        self.ask_of(NETLINK, of).boxed()
    }

    fn groups<'a>(&'a self, of: Pod<'a>) -> BoxFuture<'a, io::Result<OwnedFd>> {
        self.ask_of(GROUPS, of).boxed()
    }

    fn memory(&self) -> BoxFuture<'_, io::Result<OwnedFd>> {
        self.ask(MEMORY, None).boxed()
    }

    fn root<'a>(&'a self, of: &'a ProcessId) -> BoxFuture<'a, io::Result<OwnedFd>> {
        async move { self.ask(ROOT, Some(of.open()?.as_fd())).await }.boxed()
    }
}

const IPV4: u8 = b'4';
const IPV6: u8 = b'6';
const NETLINK: u8 = b'n';
const GROUPS: u8 = b'g';
const MEMORY: u8 = b'm';
const ROOT: u8 = b'r';
/// The longest packet, in octets.
const LONGEST: usize = 8;

impl Process {
    /// Resolves when the process has ended, without which no VM is sent encrypted.
    pub async fn ended(&self) {
        // If there is none, it ended before it was looked for.
        if let Some(id) = &self.id {
            id.ended().await;
        }
    }

    async fn ask_of(&self, what: u8, pod: Pod<'_>) -> io::Result<OwnedFd> {
        match pod {
            Pod::Process(process) => self.ask(what, Some(process.open()?.as_fd())).await,
            Pod::NetNs(netns) => self.ask(what, Some(netns.as_fd())).await,
        }
    }

    async fn ask(&self, what: u8, network: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
        let mut locked = self.socket.lock().await;
        let (socket, last) = &mut *locked;
        *last = last.wrapping_add(1);
        let number = *last;
        let exchange = async {
            packets::ready(socket, true, |fd| packets::send(fd, &[what, number], network)).await?;
            loop {
                let (answer, made) =
                    packets::ready(socket, false, |fd| packets::receive(fd, LONGEST)).await?;
                if answer.last().is_none_or(|of| *of == number) {
                    return io::Result::Ok((answer, made));
                }
            }
        };
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the broker does not answer");
        let (answer, made) = tokio::time::timeout(DEADLINE, exchange).await.map_err(late)??;
        let errno = answer.first_chunk().map_or(0, |errno| i32::from_ne_bytes(*errno));
        match made {
            Some(made) => Ok(made),
            None if errno != 0 => Err(io::Error::from_raw_os_error(errno)),
            None => Err(io::Error::other("the broker has ended")),
        }
    }
}

/// The process: its other end is its standard input.
pub fn serve() -> anyhow::Result<()> {
    privileges::drop_all_but(NEEDED)?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let stdin = io::stdin();
    let ours = File::open("/proc/self/ns/net")?;
    let from = stdin.as_fd().as_raw_fd();
    loop {
        let (what, network) = packets::receive(from, LONGEST)?;
        let made = match (what.first(), network) {
            (Some(&MEMORY), _) => memory(),
            (Some(&ROOT), Some(process)) => root(process.as_fd()),
            // A descriptor of a process or of a namespace: setns takes either.
            (Some(&what), Some(network)) => {
                let made = setns(&network, CloneFlags::CLONE_NEWNET)
                    .map_err(io::Error::from)
                    .and_then(|()| within(what));
                // A process that cannot come back ends.
                setns(&ours, CloneFlags::CLONE_NEWNET)?;
                made
            }
            // The agent has ended.
            (None, _) => return Ok(()),
            (Some(_), None) => Err(io::ErrorKind::InvalidInput.into()),
        };
        let (errno, made) = match made {
            Ok(made) => (0, Some(made)),
            Err(error) => (error.raw_os_error().unwrap_or(Errno::EINVAL as i32), None),
        };
        let mut answer = errno.to_ne_bytes().to_vec();
        answer.extend(what.get(1));
        packets::send(from, &answer, made.as_ref().map(AsFd::as_fd))?;
    }
}

fn within(what: u8) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    match what {
        IPV4 => Ok(socket(AddressFamily::Inet, SockType::Stream, flags, None)?),
        IPV6 => Ok(socket(AddressFamily::Inet6, SockType::Stream, flags, None)?),
        NETLINK => {
            let route = SockProtocol::NetlinkRoute;
            Ok(socket(AddressFamily::Netlink, SockType::Raw, flags, route)?)
        }
        GROUPS => Ok(File::open(LISTING)?.into()),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// The root directory of the process that a descriptor belongs to.
fn root(process: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd()))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    let pid: u32 = pid.and_then(|pid| pid.trim().parse().ok()).ok_or(Errno::ESRCH)?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(format!("/proc/{pid}/root").as_str(), flags, Mode::empty())?;
    // Asked after it was opened: it belongs to this process, or to one that has its pid now.
    let mut polled = [PollFd::new(process, PollFlags::POLLIN)];
    if poll(&mut polled, PollTimeout::ZERO)? != 0 {
        return Err(Errno::ESRCH.into());
    }
    Ok(root)
}

/// A tmpfs that is mounted nowhere, large enough for certificates.
fn memory() -> io::Result<OwnedFd> {
    let made = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("size", "64k"), ("nr_inodes", "16"), ("mode", "0755")] {
        fsconfig_set_string(made.as_fd(), key, value)?;
    }
    fsconfig_create(made.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(made.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}
