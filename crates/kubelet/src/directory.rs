//! The kubelet's directory of plugins: tells when a socket in it is made or removed. A kubelet that starts removes all
//! sockets there, and makes its own.

use std::{
    io,
    os::{
        fd::{AsFd as _, AsRawFd, RawFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};
use tracing::warn;

/// The kubelet's own socket.
pub const KUBELET: &str = "kubelet.sock";
/// How often to look if the kernel provides no watch.
const LOOK: Duration = Duration::from_secs(5);

/// Which file a name was when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    /// An inode's number is used again.
    changed: (i64, i64),
}

/// The directory. Clones share it.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    changes: watch::Sender<u64>,
}

struct Queue(Inotify);

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Directory {
    /// Nothing is watched yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            changes: watch::Sender::new(0),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A receiver of all later changes.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Which file is there by this name.
    pub(crate) fn identity(&self, name: &str) -> Option<Identity> {
        let metadata = std::fs::symlink_metadata(self.path.join(name)).ok()?;
        Some(Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// Tells of changes for as long as it is polled.
    pub async fn run(self) -> std::convert::Infallible {
        let mut said = false;
        loop {
            if let Err(error) = self.watch().await
                && !std::mem::replace(&mut said, true)
            {
                warn!(directory = %self.path.display(), %error, "the kernel does not watch the kubelet's sockets; they are looked at from time to time");
            }
            tokio::time::sleep(LOOK).await;
            self.tell();
        }
    }

    async fn watch(&self) -> io::Result<()> {
        let queue = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let mask = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        queue.add_watch(&self.path, mask)?;
        // SAFETY: the instance owns its descriptor until it is dropped, and `AsyncFd` owns it.
        let queue = unsafe { AsyncFd::register_with_interest(Queue(queue), Interest::READABLE) };
        let queue = queue.map_err(io::Error::from)?;
        // Something may have been made before it was watched.
        self.tell();
        loop {
            let events = queue
                .async_io(Interest::READABLE, |queue| Ok(queue.0.read_events()?))
                .await?;
            let matters = |name: &std::ffi::OsString| Path::new(name).extension() == Some("sock".as_ref());
            let gone = events.iter().any(|event| event.name.is_none());
            if gone || events.iter().filter_map(|event| event.name.as_ref()).any(matters) {
                self.tell();
            }
            if gone {
                return Err(io::Error::other("it has gone"));
            }
        }
    }

    fn tell(&self) {
        self.changes.send_modify(|n| *n += 1);
    }
}
