//! What the agent needs, and as it is once it has given up its powers, cannot make:
//!
//! - a TCP socket in the network of a VM's pod, see [`crate::machine::qemu::dial`]: `setns(2)` asks for `CAP_SYS_ADMIN` and `CAP_SYS_PTRACE`;
//! - a directory in memory that is a file system of its own, see [`crate::machine::qemu::tls`]: `fsopen(2)` asks for `CAP_SYS_ADMIN`. Whoever gets any other
//!   directory open may walk up from it, by `..`, as far as he is let: a QEMU that is root, to the agent's own files.
//!
//! - a socket of rtnetlink in the network of a pod, by which a macvtap there goes up and down from outside: `setns(2)`, as above.
//!
//! So a small process of the same program keeps these powers. It can do these three things, for the agent alone, and reads nothing that a
//! VM or a user has written.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use hybridnic_net::netns::NetNs;
use nix::{
    cmsg_space,
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sched::{CloneFlags, setns},
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType,
        recvmsg, sendmsg, socket, socketpair,
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

use crate::{machine::process::ProcessId, privileges};

/// What the process keeps of its powers. By a socket of rtnetlink the kernel lets nobody do what its opener may not
/// (`netlink_ns_capable`), hence the last.
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
    /// An empty directory in memory. It is a file system of its own, and goes with the last that has it open.
    fn memory(&self) -> BoxFuture<'_, io::Result<OwnedFd>>;
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
    /// With the number of the last question: an answer that came too late, or that nobody waited for, is to another one.
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
        async move {
            match of {
                Pod::Process(process) => self.ask(NETLINK, Some(process.open()?.as_fd())).await,
                Pod::NetNs(netns) => self.ask(NETLINK, Some(netns.as_fd())).await,
            }
        }
        .boxed()
    }

    fn memory(&self) -> BoxFuture<'_, io::Result<OwnedFd>> {
        self.ask(MEMORY, None).boxed()
    }
}

const IPV4: u8 = b'4';
const IPV6: u8 = b'6';
const NETLINK: u8 = b'n';
const MEMORY: u8 = b'm';

impl Process {
    /// Resolves when the process has ended, without which no VM is sent encrypted.
    pub async fn ended(&self) {
        // Where there is none, it had ended before it was looked for.
        if let Some(id) = &self.id {
            id.ended().await;
        }
    }

    async fn ask(&self, what: u8, network: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
        let mut locked = self.socket.lock().await;
        let (socket, last) = &mut *locked;
        *last = last.wrapping_add(1);
        let number = *last;
        let exchange = async {
            ready(socket, true, |fd| send(fd, &[what, number], network)).await?;
            loop {
                let (answer, made) = ready(socket, false, receive).await?;
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

async fn ready<T>(
    socket: &AsyncFd<OwnedFd>,
    writable: bool,
    act: impl Fn(RawFd) -> io::Result<T>,
) -> io::Result<T> {
    loop {
        let mut guard = if writable {
            socket.writable().await?
        } else {
            socket.readable().await?
        };
        if let Ok(done) = guard.try_io(|socket| act(socket.get_ref().as_raw_fd())) {
            return done;
        }
    }
}

fn send(to: RawFd, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let fds: Vec<RawFd> = fd.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<()>(to, &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// What was sent, and the descriptor with it. Nothing: the other end has gone.
fn receive(from: RawFd) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut bytes = [0_u8; 8];
    let mut space = cmsg_space!(RawFd);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(from, &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let length = message.bytes;
    let mut passed = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel has just made it for us, and nobody else has it.
                passed = Some(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    Ok((bytes.get(..length).unwrap_or_default().to_vec(), passed))
}

/// The process: its other end is its standard input.
pub fn serve() -> anyhow::Result<()> {
    privileges::drop_all_but(NEEDED)?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let stdin = io::stdin();
    let ours = File::open("/proc/self/ns/net")?;
    let from = stdin.as_fd().as_raw_fd();
    loop {
        let (what, network) = receive(from)?;
        let made = match (what.first(), network) {
            (Some(&MEMORY), _) => memory(),
            // A descriptor of a process or of a namespace: setns takes either.
            (Some(&what), Some(network)) => {
                let made = setns(&network, CloneFlags::CLONE_NEWNET).and_then(|()| unconnected(what));
                // Whoever cannot come back ends.
                setns(&ours, CloneFlags::CLONE_NEWNET)?;
                made.map_err(io::Error::from)
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
        send(from, &answer, made.as_ref().map(AsFd::as_fd))?;
    }
}

fn unconnected(what: u8) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    match what {
        IPV4 => socket(AddressFamily::Inet, SockType::Stream, flags, None),
        IPV6 => socket(AddressFamily::Inet6, SockType::Stream, flags, None),
        NETLINK => {
            let route = SockProtocol::NetlinkRoute;
            socket(AddressFamily::Netlink, SockType::Raw, flags, route)
        }
        _ => Err(Errno::EINVAL),
    }
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
