//! Which capabilities the agent drops, seen from outside in what the kernel says about each of its threads, and from inside
//! in what it still can do. Needs root.
//!
//! It has no harness: capabilities belong to threads, and a harness has threads of its own. The program starts itself as
//! the process that drops them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test fails so"
)]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::{
        fs::{PermissionsExt as _, chown},
        net::{UnixListener, UnixStream},
        process::CommandExt as _,
    },
    path::Path,
    process::{Child, Command, Stdio},
};

use hybridnic_agent::privileges::{NEEDED, drop_unneeded};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, socket},
        stat::{Mode, SFlag, makedev, mknod},
    },
};
use rustix::{
    process::{Pid, Resource, Rlimit, prlimit},
    thread::{CapabilitySet, capabilities, set_capabilities},
};

/// Nobody, who runs QEMU here.
const OTHER: u32 = 65534;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["child", socket, pid] => child(Path::new(socket), pid.parse().unwrap()),
        // Whatever cargo passes to harnesses.
        _ => parent(),
    }
}

/// Ends a process when it goes out of scope.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn parent() {
    let needed: CapabilitySet = NEEDED.iter().map(|(capability, _)| *capability).collect();
    let have = capabilities(None).unwrap().permitted;
    // Some machines, containers among them, keep this one from root.
    let needed = if have.contains(CapabilitySet::SYS_RESOURCE) {
        needed
    } else {
        println!("NOT TRIED: SYS_RESOURCE, which this machine does not give");
        needed - CapabilitySet::SYS_RESOURCE
    };
    assert!(
        have.contains(needed | CapabilitySet::SYS_ADMIN | CapabilitySet::SETPCAP),
        "needs root with its capabilities, has {have:?}"
    );

    // A QEMU of another user: its socket, in a directory that is closed to others, and its process.
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let pod = dir.path().join("pod");
    fs::create_dir(&pod).unwrap();
    let path = pod.join("qmp.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    for closed in [&path, &pod] {
        fs::set_permissions(closed, fs::Permissions::from_mode(0o700)).unwrap();
        chown(closed, Some(OTHER), Some(OTHER)).unwrap();
    }
    let mut qemu = Command::new("sleep");
    qemu.arg("60").uid(OTHER).gid(OTHER);
    let qemu = Killed(qemu.spawn().unwrap());

    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .arg("child")
        .arg(&path)
        .arg(qemu.0.id().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = Killed(child.spawn().unwrap());
    let mut said = String::new();
    BufReader::new(child.0.stdout.as_mut().unwrap())
        .read_line(&mut said)
        .unwrap();
    let expected = if needed.contains(CapabilitySet::SYS_RESOURCE) {
        "CHOWN DAC_OVERRIDE NET_ADMIN NET_RAW SYS_RESOURCE MKNOD"
    } else {
        "CHOWN DAC_OVERRIDE NET_ADMIN NET_RAW MKNOD, without SYS_RESOURCE"
    };
    assert_eq!(said.trim_end(), expected, "the child failed, see above");

    let tasks: Vec<_> = fs::read_dir(format!("/proc/{}/task", child.0.id()))
        .unwrap()
        .map(|task| task.unwrap().path())
        .collect();
    assert_eq!(tasks.len(), 2, "the first thread and one that was made later");
    for task in tasks {
        let status = status_fields(&fs::read_to_string(task.join("status")).unwrap());
        let expected = [
            ("CapInh", CapabilitySet::empty()),
            ("CapPrm", needed),
            ("CapEff", needed),
            ("CapBnd", needed),
            ("CapAmb", CapabilitySet::empty()),
        ];
        for (set, capabilities) in expected {
            assert_eq!(status[set], format!("{:016x}", capabilities.bits()), "{set}");
        }
        assert_eq!(status["NoNewPrivs"], "1");
    }
    // It waits for the end of its input.
    drop(child.0.stdin.take());
    assert!(child.0.wait().unwrap().success());
    println!(
        "all threads of the agent have {} and nothing else",
        said.trim_end()
    );
}

/// Drops them, and tries in a new thread what it should be able to do and what not; then waits to be looked at.
fn child(socket_path: &Path, qemu: i32) {
    let left = drop_unneeded().unwrap();
    let path = socket_path.to_owned();
    let thread = std::thread::spawn(move || {
        // Kept.
        UnixStream::connect(&path).expect("DAC_OVERRIDE");
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None).expect("NET_RAW");
        let dir = tempfile::tempdir().unwrap();
        let node = dir.path().join("null");
        mknod(&node, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 3)).expect("MKNOD");
        chown(&node, Some(OTHER), Some(OTHER)).expect("CHOWN");
        let unlimited = Rlimit {
            current: None,
            maximum: None,
        };
        let raised = prlimit(Pid::from_raw(qemu), Resource::Memlock, unlimited);
        let may_raise = left.kept.contains(CapabilitySet::SYS_RESOURCE);
        assert_eq!(raised.is_ok(), may_raise, "SYS_RESOURCE: {raised:?}");

        // Given up, and not to be had back.
        let mounted = mount(
            None::<&str>,
            dir.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        );
        assert_eq!(mounted, Err(Errno::EPERM), "SYS_ADMIN");
        let mut all = capabilities(None).unwrap();
        all.permitted = CapabilitySet::all();
        assert!(set_capabilities(None, all).is_err(), "all of them back");
        let cat = Command::new("cat").arg("/proc/self/status").output().unwrap();
        let status = status_fields(&String::from_utf8(cat.stdout).unwrap());
        let kept = format!("{:016x}", left.kept.bits());
        assert_eq!(status["CapEff"], kept, "a program that it starts as root");
        println!("{left}");
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    });
    thread.join().unwrap();
}

/// The fields of `/proc/PID/status`.
fn status_fields(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}
