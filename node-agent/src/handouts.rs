//! The descriptors of VFs that QEMUs were given, for as long as anybody holds them.
//!
//! While anybody has a VF's own vfio node open, its driver does not let go of the VF: the write to `unbind` waits, deaf to signals, until
//! the last holder has closed it (`vfio_unregister_group_dev` in drivers/vfio/vfio_main.c), also if the descriptor was never bound to an
//! iommufd. The kernel does not show this beforehand: the VF's group opens as if the VF were free, because only bound descriptors count
//! there (`vfio_group_fops_open` in drivers/vfio/group.c, `vfio_device_fops_cdev_open` in drivers/vfio/device_cdev.c).
//!
//! What QEMU says proves nothing if a guest has taken it over. What processes have open proves nothing either, nor does the end of all
//! processes of a pod: a descriptor can lie in a socket, where no `/proc` shows it, and reach another pod by a volume that both have. So
//! each descriptor is opened at a device node of its own, which is made for it and which nobody else opens. inotify watches that node: it
//! reports a close when the last reference to what was opened is gone, no matter who held it (`__fput` in fs/file_table.c). That comes
//! before QEMU's `DEVICE_DELETED`, so an honest QEMU waits for nothing.
//!
//! The nodes are what the next agent knows: a node exists before its descriptor does, it is removed when the descriptor is closed, and a
//! boot removes it together with the process that held it. So the journal says nothing about them. Whether a descriptor was closed while
//! no agent ran is shown by a lock: what is opened is locked with `fcntl(F_OFD_SETLK)`, and the kernel lists that lock in `/proc/locks`
//! until the last reference is gone (fs/locks.c). A process that holds the descriptor can also drop the lock. No honest QEMU does. If
//! another one does, the VF's driver waits for it, in a process that may hang ([`crate::calls`]).

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use hybridnic_net::{PciAddress, dev::DevNodes};
use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
        stat::{self, Mode, SFlag, mknod},
    },
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};
use tracing::{info, warn};

/// In the directory of device nodes: other file systems are often mounted `nodev`.
const DIR: &str = "hybridnic";
/// The ending of a mark's name. A mark is not a node: nodes are counted from 1.
const MARK: &str = "0";

/// A descriptor that was handed out, by its node.
#[derive(Debug)]
struct Handout {
    /// `None` where nothing reports its end.
    watch: Option<WatchDescriptor>,
    node: PathBuf,
    held: Held,
}

/// Whether somebody holds one, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// A process holds it.
    Open,
    /// Nothing reports its end: it is not watched, its lock cannot be read, or its holder has opened its node once more by `/proc/PID/fd`,
    /// which needs root in a container whose device cgroup allows it. A close proves nothing then.
    Untold,
}

/// Those of all VFs.
#[derive(Debug)]
pub struct Handouts {
    dev: DevNodes,
    dir: PathBuf,
    /// The kernel's list of locks.
    locks: PathBuf,
    /// `None` if the kernel has no more of them.
    inotify: Option<Inotify>,
    out: Mutex<BTreeMap<PciAddress, Vec<Handout>>>,
    /// Told when one is closed.
    hardware: watch::Sender<u64>,
}

impl Handouts {
    /// None yet. Locks are read below `proc`; `hardware` is told when one is closed.
    pub fn new(dev: DevNodes, proc: &Path, hardware: watch::Sender<u64>) -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC);
        Self {
            dir: dev.root().join(DIR),
            locks: proc.join("locks"),
            dev,
            inotify: inotify
                .inspect_err(
                    |error| warn!(%error, "it will not be known which processes have descriptors of VFs"),
                )
                .ok(),
            out: Mutex::default(),
            hardware,
        }
    }

    /// Opens a VF's own vfio node, named as in [`hybridnic_net::sysfs::Vf::vfio_cdev`], to be handed out.
    pub fn open(&self, vf: PciAddress, name: &str) -> io::Result<OwnedFd> {
        let number = fs::metadata(self.dev.vfio_cdev(name))?.rdev();
        self.open_made(vf, |node| {
            Ok(mknod(
                node,
                SFlag::S_IFCHR,
                Mode::S_IRUSR | Mode::S_IWUSR,
                number,
            )?)
        })
    }

    /// The same for what `make` makes there; it must not replace anything.
    pub fn open_made(&self, vf: PciAddress, make: impl Fn(&Path) -> io::Result<()>) -> io::Result<OwnedFd> {
        let mut out = self.out();
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let mut nodes = (1..).map(|n| self.dir.join(format!("{vf}.{n}")));
        let node = loop {
            // It has no end.
            let node = nodes.next().unwrap_or_default();
            match make(&node) {
                Ok(()) => break node,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        };
        // It cannot be closed before it is watched, because we have it.
        let opened = open(&node).and_then(|file| {
            lock(&file)?;
            Ok((self.watch(&node)?, file))
        });
        match opened {
            Ok((watch, file)) => {
                let (watch, held) = (Some(watch), Held::Open);
                out.entry(vf).or_default().push(Handout { watch, node, held });
                Ok(file.into())
            }
            Err(error) => {
                remove(&node);
                Err(error)
            }
        }
    }

    /// Notes that a descriptor of this VF is handed out that was opened elsewhere, because [`Handouts::open`] has failed: a process
    /// that uses up the kernel's watches must not make a VF look unused. The next agent finds a mark.
    pub fn note_unwatched(&self, vf: PciAddress) {
        let node = self.dir.join(format!("{vf}.{MARK}"));
        let marked = DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        if let Err(error) = marked.and_then(|()| File::create(&node)) {
            warn!(%vf, %error, "the next agent will not know that somebody may have a descriptor of the VF");
        }
        let (watch, held) = (None, Held::Untold);
        self.out()
            .entry(vf)
            .or_default()
            .push(Handout { watch, node, held });
    }

    /// Whether somebody is known to have a descriptor of this VF.
    pub fn is_out(&self, vf: PciAddress) -> bool {
        self.read_events();
        let out = self.out();
        out.get(&vf)
            .is_some_and(|all| all.iter().any(|one| one.held == Held::Open))
    }

    /// Whether it is unknown for some whether they are open. That is known once the VF's driver has let go of it.
    pub fn is_unsure(&self, vf: PciAddress) -> bool {
        self.read_events();
        let out = self.out();
        out.get(&vf)
            .is_some_and(|all| all.iter().any(|one| one.held == Held::Untold))
    }

    /// Watches what an earlier agent has handed out of this VF, and forgets what was closed since.
    pub fn take_over(&self, vf: PciAddress) -> io::Result<()> {
        let mut out = self.out();
        let all = out.entry(vf).or_default();
        for node in self.nodes_of(vf)? {
            if all.iter().any(|one| one.node == node) {
                continue;
            }
            let is_mark = node.extension().is_some_and(|end| end == MARK);
            let watched = if is_mark { None } else { self.watch(&node).ok() };
            // What is closed from here on, the watch tells.
            let (watch, held) = match (watched, self.is_locked(&node)) {
                (Some(_), Ok(false)) => {
                    info!(node = %node.display(), "a descriptor of a VF was closed while no agent was there");
                    remove(&node);
                    continue;
                }
                (Some(watch), Ok(true)) => (Some(watch), Held::Open),
                (watch, Ok(_)) => (watch, Held::Untold),
                (watch, Err(error)) => {
                    warn!(%vf, %error, "it is not known whether a descriptor of the VF was closed");
                    (watch, Held::Untold)
                }
            };
            all.push(Handout { watch, node, held });
        }
        Ok(())
    }

    /// Whether what was opened at a node is still open, and nobody who has it has dropped its lock.
    fn is_locked(&self, node: &Path) -> io::Result<bool> {
        let file = fs::symlink_metadata(node)?;
        let (major, minor) = (stat::major(file.dev()), stat::minor(file.dev()));
        let file = format!("{major:02x}:{minor:02x}:{}", file.ino());
        // `1: OFDLCK ADVISORY  WRITE -1 00:06:4711 0 EOF`: proc_locks(5).
        let locks = fs::read_to_string(&self.locks)?;
        Ok(locks
            .lines()
            .any(|line| line.split_whitespace().nth(5) == Some(&*file)))
    }

    /// No process has a descriptor of this VF: its driver has let go of it, or it is gone.
    pub fn forget(&self, vf: PciAddress) {
        for one in self.out().remove(&vf).unwrap_or_default() {
            // The kernel does it where the node is the last of its file.
            let _ = self
                .inotify
                .as_ref()
                .zip(one.watch)
                .map(|(inotify, watch)| inotify.rm_watch(watch));
        }
        match self.nodes_of(vf) {
            Ok(nodes) => nodes.iter().for_each(|node| remove(node)),
            Err(error) => warn!(%vf, %error, "nodes of a VF that was given back may stay in /dev"),
        }
    }

    /// Tells of each that is closed.
    pub async fn run(&self) -> io::Result<std::convert::Infallible> {
        let Some(inotify) = &self.inotify else {
            return std::future::pending().await;
        };
        let inotify = inotify.as_fd().try_clone_to_owned()?;
        // SAFETY: an `OwnedFd` stays open until it is dropped, and `AsyncFd` owns it.
        let inotify = unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) };
        let inotify = inotify.map_err(io::Error::from)?;
        loop {
            let mut ready = inotify.readable().await?;
            self.read_events();
            ready.clear_ready();
        }
    }

    /// Reads what the kernel has told.
    fn read_events(&self) {
        let Some(inotify) = &self.inotify else {
            return;
        };
        let mut news = false;
        let mut out = self.out();
        // At last it says that there is no more.
        while let Ok(events) = inotify.read_events() {
            for event in events {
                let all = out.values_mut().flatten();
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    warn!("the kernel did not report every descriptor that was closed");
                    all.for_each(|one| one.held = Held::Untold);
                    news = true;
                } else if event.mask.contains(AddWatchFlags::IN_OPEN) {
                    all.filter(|one| one.watch == Some(event.wd)).for_each(|one| {
                        warn!(node = %one.node.display(), "the holder of a VF's descriptor has opened it once more");
                        one.held = Held::Untold;
                    });
                } else if event.mask.intersects(AddWatchFlags::IN_CLOSE) {
                    let closed = |one: &mut Handout| one.watch == Some(event.wd) && one.held != Held::Untold;
                    for one in out.values_mut().flat_map(|all| all.extract_if(.., closed)) {
                        info!(node = %one.node.display(), "a descriptor of a VF is closed");
                        remove(&one.node);
                        news = true;
                    }
                }
            }
        }
        if news {
            self.hardware.send_modify(|n| *n += 1);
        }
    }

    fn watch(&self, node: &Path) -> io::Result<WatchDescriptor> {
        let inotify = self.inotify.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        Ok(inotify.add_watch(node, AddWatchFlags::IN_OPEN | AddWatchFlags::IN_CLOSE)?)
    }

    /// The nodes of a VF's descriptors.
    fn nodes_of(&self, vf: PciAddress) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut nodes = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path.file_stem().is_some_and(|stem| *stem == *vf.to_string()) {
                nodes.push(path);
            }
        }
        Ok(nodes)
    }

    fn out(&self) -> MutexGuard<'_, BTreeMap<PciAddress, Vec<Handout>>> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(node: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(node)
}

/// For as long as anybody has it open: the lock is of what was opened, not of a process.
fn lock(file: &File) -> io::Result<()> {
    let short = |word| libc::c_short::try_from(word).map_err(io::Error::other);
    let whole = libc::flock {
        l_type: short(libc::F_WRLCK)?,
        l_whence: short(libc::SEEK_SET)?,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole))?;
    Ok(())
}

fn remove(node: &Path) {
    if let Err(error) = fs::remove_file(node)
        && error.kind() != io::ErrorKind::NotFound
    {
        warn!(node = %node.display(), %error, "a node of a VF that nobody has open stays");
    }
}

#[cfg(test)]
#[path = "handouts_tests.rs"]
mod tests;
