//! Whose QMP socket it is: with the running kernel's control groups, pids and mounts. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test fails so"
)]

use std::{
    fs::{self, File},
    io::Write as _,
    os::{
        fd::AsRawFd as _,
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use hybridnic_agent::machine::{
    home::Home,
    listener::Listener,
    socket::{self, Closed, Offence},
};
use hybridnic_api::v1alpha1::Runtime;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, fcntl},
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, socket as new_socket,
        sockopt::PeerPidfd,
    },
};
use rustix::process::{Pid as RawPid, Resource, Rlimit, getrlimit, prlimit};

#[path = "common/group.rs"]
mod group;

use group::Group;

/// A pod as its kubelet has made it: the volume of its QMP socket, and its control group.
struct Pod {
    group: Group,
    pods: tempfile::TempDir,
    uid: String,
}

impl Pod {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let uid = format!("0b2e7c1d-90aa-4f6e-{number:04}-{:012}", std::process::id());
        let pod = Self {
            group: Group::of(&uid),
            pods: tempfile::tempdir().unwrap(),
            uid,
        };
        fs::create_dir_all(pod.volume()).unwrap();
        pod
    }

    fn volume(&self) -> PathBuf {
        let volumes = self.pods.path().join(&self.uid).join("volumes");
        volumes.join("kubernetes.io~empty-dir/hybridnic")
    }

    fn join(&self, process: &Child) {
        self.group.join(process);
    }

    /// A shell that has called `listen` on the pod's socket, and waits for a line before it does what it should. It may lock
    /// little memory.
    fn listener(&self, script: &str) -> Started {
        let close = SockFlag::SOCK_CLOEXEC;
        let socket = new_socket(AddressFamily::Unix, SockType::Stream, close, None).unwrap();
        // The path itself may be too long for an address.
        let volume = File::open(self.volume()).unwrap();
        let path = format!("/proc/self/fd/{}/qmp.sock", volume.as_raw_fd());
        bind(socket.as_raw_fd(), &UnixAddr::new(path.as_str()).unwrap()).unwrap();
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &format!("read -r line; {script}")])
            .stdin(Stdio::piped());
        let little = Rlimit {
            current: Some(LITTLE),
            ..getrlimit(Resource::Memlock)
        };
        let prepare = move || -> std::io::Result<()> {
            listen(&socket, Backlog::new(8)?)?;
            fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty()))?;
            rustix::process::setrlimit(Resource::Memlock, little)?;
            Ok(())
        };
        // SAFETY: these are system calls and nothing else.
        unsafe { shell.pre_exec(prepare) };
        Started(shell.spawn().unwrap())
    }

    fn connect(&self) -> Result<UnixStream, Closed> {
        socket::open(self.pods.path(), Runtime::Qemu, &self.uid)?.connect()
    }

    fn refused(&self, why: Offence) {
        let error = Listener::of(&self.connect().unwrap(), &Home::pod(Runtime::Qemu, &self.uid)).unwrap_err();
        assert!(
            matches!(error, Closed::Untrusted(offence) if offence == why),
            "{error}"
        );
    }
}

/// What a listener may lock, in bytes.
const LITTLE: u64 = 65536;

/// Ends a process when it goes out of scope.
struct Started(Child);

impl Started {
    fn go(&mut self) {
        self.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    }

    /// How much it may lock; `None` is as much as it likes.
    fn may_lock(&self) -> Option<u64> {
        let pid = RawPid::from_raw(self.0.id().cast_signed());
        let text = fs::read_to_string(format!("/proc/{}/limits", pid.unwrap())).unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("Max locked memory"))
            .unwrap();
        line.split_whitespace().nth(3).unwrap().parse().ok()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_of_the_pod_is_found_and_may_lock_memory() {
    let pod = Pod::new();
    let qemu = pod.listener("exit");
    pod.join(&qemu.0);
    let listener = Listener::of(&pod.connect().unwrap(), &Home::pod(Runtime::Qemu, &pod.uid)).unwrap();
    assert_eq!(listener.id().pid, qemu.0.id().cast_signed());
    assert_eq!(qemu.may_lock(), Some(LITTLE));
    match listener.unlimit_locked_memory() {
        Ok(()) => assert_eq!(qemu.may_lock(), None),
        // Some machines, containers among them, keep SYS_RESOURCE from root.
        Err(error) if error.raw_os_error() == Some(nix::libc::EPERM) => println!("NOT TRIED: {error}"),
        Err(error) => panic!("{error}"),
    }
    drop(qemu);
    let error = listener.unlimit_locked_memory().unwrap_err();
    assert_eq!(
        error.raw_os_error(),
        Some(nix::libc::ESRCH),
        "it has ended: {error}"
    );
}

#[test]
fn who_is_outside_of_the_pod_is_nobody() {
    let (pod, other) = (Pod::new(), Pod::new());
    let stranger = pod.listener("exit");
    pod.refused(Offence::Foreign);
    other.join(&stranger.0);
    pod.refused(Offence::Foreign);
    assert_eq!(stranger.may_lock(), Some(LITTLE));
    // As it would be seen if it were the other pod's.
    Listener::of(&pod.connect().unwrap(), &Home::pod(Runtime::Qemu, &other.uid)).unwrap();
}

/// A socket whose listener has left it to a child and ended: its pid is anybody's, and may come to be another's of the pod.
#[test]
fn a_pid_that_is_used_again_is_nobody() {
    let pod = Pod::new();
    let mut parent = pod.listener("sleep 600 & exit");
    pod.join(&parent.0);
    Listener::of(&pod.connect().unwrap(), &Home::pod(Runtime::Qemu, &pod.uid)).unwrap();
    let pid = parent.0.id();
    parent.go();
    parent.0.wait().unwrap();
    // The child has it still, so it can be connected to.
    pod.refused(Offence::Inherited);

    let again = (0..200).find_map(|_| {
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).ok()?;
        let process = Started(Command::new("sleep").arg("600").spawn().unwrap());
        (process.0.id() == pid).then_some(process)
    });
    let Some(again) = again else {
        return println!("NOT TRIED: no process could be made to have the pid {pid} again");
    };
    pod.join(&again.0);
    match getsockopt(&pod.connect().unwrap(), PeerPidfd) {
        Err(Errno::ENOPROTOOPT) => println!("NOT TRIED: a kernel without SO_PEERPIDFD"),
        _ => pod.refused(Offence::Inherited),
    }
    let limit = prlimit(
        RawPid::from_raw(pid.cast_signed()),
        Resource::Memlock,
        getrlimit(Resource::Memlock),
    );
    assert_eq!(limit.unwrap().current, getrlimit(Resource::Memlock).current);
}

/// As the agent's container has the kubelet's directory: read-only, with what is mounted in it later.
#[test]
fn a_volume_is_on_the_nodes_disk_or_in_memory() {
    let pod = Pod::new();
    let at = pod.volume();
    let _qemu = pod.listener("exit");
    // The mounts are a thread's of its own.
    let mounts = || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let pods = pod.pods.path();
        mount(Some(pods), pods, none, MsFlags::MS_BIND, none).unwrap();
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, pods, none, read_only, none).unwrap();
        assert!(fs::write(at.join("x"), "").is_err());
        pod.connect().expect("by a read-only way");

        let on = |file_system: &str| {
            mount(Some("volume"), &at, Some(file_system), MsFlags::empty(), none).unwrap();
            assert!(matches!(
                pod.connect(),
                Err(Closed::Absent | Closed::Untrusted(_))
            ));
        };
        on("tmpfs");
        let listener = listening(&at);
        pod.connect().expect("an emptyDir in memory");
        drop(listener);
        // Whatever it is, it may hang.
        on("ramfs");
        let _listener = listening(&at);
        let error = pod.connect().unwrap_err();
        assert!(
            matches!(error, Closed::Untrusted(Offence::OtherFileSystem)),
            "{error}"
        );
    };
    thread::scope(|scope| scope.spawn(mounts).join().unwrap());
}

fn listening(volume: &Path) -> std::os::unix::net::UnixListener {
    let dir = File::open(volume).unwrap();
    let path = format!("/proc/self/fd/{}/qmp.sock", dir.as_raw_fd());
    std::os::unix::net::UnixListener::bind(path).unwrap()
}
