//! Tells when a VM's QMP socket may be there, for VMs without a session yet.
//!
//! The kernel watches the directory that was opened, by its descriptor, and nothing below it: one watch for a pod, and none while there
//! is a session. If a pod makes other files there, it loses its watch until the agent looks again. If there is no directory, or the
//! kernel provides no watch, the VM's task looks from time to time.

use std::{
    collections::HashMap,
    ffi::OsString,
    io,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hybridnic_api::conditions::reasons;
use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
};
use tracing::warn;

use crate::{
    machine::{
        home::Home,
        socket::{Closed, Directory},
    },
    troubles::Troubles,
};

/// How many other events may happen in a directory between two looks at it.
const NOISE: u32 = 64;

/// The kernel's queue of events.
#[derive(Debug)]
struct Queue(Inotify);

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[derive(Debug)]
struct Watched {
    socket: OsString,
    told: Arc<Notify>,
    noise: u32,
}

#[derive(Debug, Default)]
struct State {
    /// Made with the first watch.
    queue: Option<Arc<AsyncFd<Queue>>>,
    watched: HashMap<WatchDescriptor, Watched>,
}

#[derive(Debug)]
struct Inner {
    pods: PathBuf,
    troubles: Arc<Troubles>,
    state: Mutex<State>,
    /// There is a queue.
    begun: Notify,
}

/// The directories of the node's pods. Clones share them.
#[derive(Clone, Debug)]
pub struct Sockets(Arc<Inner>);

/// The directory of a VM's QMP socket, for as long as somebody wants to talk to QEMU there.
#[derive(Debug)]
pub struct Followed {
    sockets: Sockets,
    home: Home,
    /// Of what it is said that it is not watched.
    what: String,
    told: Arc<Notify>,
    watch: Option<WatchDescriptor>,
}

impl Sockets {
    /// Beneath the kubelet's directory of pods. Nothing is watched yet.
    pub fn new(pods: impl Into<PathBuf>, troubles: Arc<Troubles>) -> Self {
        Self(Arc::new(Inner {
            pods: pods.into(),
            troubles,
            state: Mutex::default(),
            begun: Notify::new(),
        }))
    }

    /// Looks after a VM there.
    pub fn follow(&self, home: Home, namespace: &str, pod: &str, pod_uid: &str) -> Followed {
        let what = match &home {
            Home::Pod { .. } => format!("the QMP socket of the pod {namespace}/{pod} ({pod_uid})"),
            Home::Host { socket } => format!("the QMP socket {}", socket.display()),
        };
        Followed {
            sockets: self.clone(),
            home,
            what,
            told: Arc::default(),
            watch: None,
        }
    }

    /// Passes on what the kernel tells, for as long as it is polled.
    pub async fn run(self) -> std::convert::Infallible {
        loop {
            let queue = self.state().queue.clone();
            let Some(queue) = queue else {
                self.0.begun.notified().await;
                continue;
            };
            match queue
                .async_io(Interest::READABLE, |queue| Ok(queue.0.read_events()?))
                .await
            {
                Ok(events) => {
                    let mut state = self.state();
                    for event in &events {
                        state.on_event(event);
                    }
                }
                Err(error) => {
                    warn!(%error, "what happens in the pods' directories cannot be read; they are watched again");
                    self.state().give_up();
                }
            }
        }
    }

    /// The same directory has the same watch.
    fn watch(&self, dir: &Directory, told: &Arc<Notify>) -> io::Result<WatchDescriptor> {
        let mut state = self.state();
        let queue = if let Some(queue) = &state.queue {
            Arc::clone(queue)
        } else {
            let queue = Queue(Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?);
            // SAFETY: the instance owns its descriptor until it is dropped, and `AsyncFd` owns it.
            let queue = unsafe { AsyncFd::register_with_interest(queue, Interest::READABLE) };
            let queue = Arc::new(queue.map_err(io::Error::from)?);
            state.queue = Some(Arc::clone(&queue));
            self.0.begun.notify_one();
            queue
        };
        let mask = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let watch = queue.get_ref().0.add_watch(dir.path().as_str(), mask)?;
        let told = Arc::clone(told);
        let socket = dir.socket().to_owned();
        state.watched.insert(
            watch,
            Watched {
                socket,
                told,
                noise: 0,
            },
        );
        Ok(watch)
    }

    fn unwatch(&self, watch: WatchDescriptor) {
        self.state().unwatch(watch);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn on_event(&mut self, event: &InotifyEvent) {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            // Anything may have been among what was lost.
            self.watched
                .values()
                .for_each(|watched| watched.told.notify_one());
            return;
        }
        let Some(watched) = self.watched.get_mut(&event.wd) else {
            return;
        };
        match &event.name {
            // The directory itself has gone, or has moved.
            None => {
                watched.told.notify_one();
                self.unwatch(event.wd);
            }
            Some(name) if *name == watched.socket => watched.told.notify_one(),
            Some(_) => {
                watched.noise += 1;
                if watched.noise > NOISE {
                    self.unwatch(event.wd);
                }
            }
        }
    }

    fn unwatch(&mut self, watch: WatchDescriptor) {
        if self.watched.remove(&watch).is_some()
            && let Some(queue) = &self.queue
            // With its directory the watch has gone by itself.
            && let Err(error) = queue.get_ref().0.rm_watch(watch)
            && error != Errno::EINVAL
        {
            warn!(%error, "a directory is still watched");
        }
    }

    fn give_up(&mut self) {
        self.queue = None;
        for watched in std::mem::take(&mut self.watched).into_values() {
            watched.told.notify_one();
        }
    }
}

impl Followed {
    /// Opens the socket's directory, and has it watched from before what is then seen in it.
    pub fn open(&mut self) -> Result<Directory, Closed> {
        let dir = self.home.open(&self.sockets.0.pods);
        let watched = dir.as_ref().ok().map(|dir| self.sockets.watch(dir, &self.told));
        let troubles = &self.sockets.0.troubles;
        let watch = match watched {
            None => None,
            Some(Ok(watch)) => {
                troubles.end(&self.what);
                Some(watch)
            }
            Some(Err(error)) => {
                let what = &self.what;
                let message = format!(
                    "the kernel does not watch {what}, so it is looked for from time to time: {error}"
                );
                troubles.begin(what, reasons::SOCKETS_NOT_WATCHED, message);
                None
            }
        };
        let before = std::mem::replace(&mut self.watch, watch);
        if let Some(before) = before
            && Some(before) != watch
        {
            self.sockets.unwatch(before);
        }
        dir
    }

    /// There is a session with QEMU: its end shows by itself, and nothing else in the directory matters.
    pub fn rest(&mut self) {
        if let Some(watch) = self.watch.take() {
            self.sockets.unwatch(watch);
        }
    }

    /// Resolves when something may have changed since the last look; never where nothing is watched.
    pub async fn changed(&self) {
        self.told.notified().await;
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.rest();
        self.sockets.0.troubles.end(&self.what);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::net::UnixListener, path::Path, time::Duration};

    use hybridnic_api::{names::QMP_SOCKET, v1alpha1::Runtime};
    use tokio::time::timeout;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;
    use crate::{
        machine::socket::tests::{UID, volume},
        metrics::metrics,
    };

    struct Watching {
        dir: tempfile::TempDir,
        volume: PathBuf,
        followed: Followed,
        _run: AbortOnDropHandle<std::convert::Infallible>,
    }

    impl Watching {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let troubles = Arc::new(Troubles::new(metrics().1));
            let sockets = Sockets::new(dir.path(), troubles);
            Self {
                volume: volume(dir.path(), UID),
                dir,
                followed: sockets.follow(Home::pod(Runtime::Qemu, UID), "ns", "pod", UID),
                _run: AbortOnDropHandle::new(tokio::spawn(sockets.run())),
            }
        }

        async fn told(&self) {
            let changed = self.followed.changed();
            timeout(Duration::from_secs(10), changed).await.expect("not told");
        }

        async fn is_not_told(&self) {
            let changed = self.followed.changed();
            assert!(
                timeout(Duration::from_millis(200), changed).await.is_err(),
                "nothing has changed"
            );
        }

        /// How many directories the kernel watches for us.
        fn watches(&self) -> usize {
            let Some(queue) = self.followed.sockets.state().queue.clone() else {
                return 0;
            };
            let path = format!("/proc/self/fdinfo/{}", queue.get_ref().as_raw_fd());
            let text = fs::read_to_string(path).unwrap();
            text.lines()
                .filter(|line| line.starts_with("inotify wd:"))
                .count()
        }
    }

    fn socket(volume: &Path) -> UnixListener {
        UnixListener::bind(volume.join(QMP_SOCKET)).unwrap()
    }

    #[tokio::test]
    async fn a_socket_is_told_of_each_time_it_is_made() {
        let mut w = Watching::new();
        for _ in 0..2 {
            w.followed.open().unwrap();
            w.is_not_told().await;
            let _listener = socket(&w.volume);
            w.told().await;
            fs::rename(w.volume.join(QMP_SOCKET), w.volume.join("x")).unwrap();
            w.is_not_told().await;
            fs::rename(w.volume.join("x"), w.volume.join(QMP_SOCKET)).unwrap();
            w.told().await;
            fs::remove_file(w.volume.join(QMP_SOCKET)).unwrap();
        }
    }

    #[tokio::test]
    async fn a_directory_that_goes_is_told_of_and_one_in_its_place_is_another() {
        let mut w = Watching::new();
        w.followed.open().unwrap();
        // Moved with all that is above it: that of the volume itself stays as it is.
        fs::remove_dir_all(w.dir.path().join(UID)).unwrap();
        w.told().await;
        assert!(matches!(w.followed.open(), Err(Closed::Absent)));
        assert_eq!(w.watches(), 0);
        volume(w.dir.path(), UID);
        w.followed.open().unwrap();
        fs::rename(&w.volume, w.dir.path().join("old")).unwrap();
        w.told().await;
        volume(w.dir.path(), UID);
        w.followed.open().unwrap();
        let _listener = socket(&w.volume);
        w.told().await;
        assert_eq!(w.watches(), 1);
    }

    /// Thousands of entries, and a tree that never ends.
    #[tokio::test]
    async fn what_a_pod_makes_in_its_directory_costs_one_watch_at_most() {
        let mut w = Watching::new();
        w.followed.open().unwrap();
        assert_eq!(w.watches(), 1);
        std::os::unix::fs::symlink("/sys", w.volume.join("x")).unwrap();
        for n in 0..2000 {
            fs::create_dir_all(w.volume.join(format!("{n}/deeper"))).unwrap();
            if n % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        w.is_not_told().await;
        assert_eq!(w.watches(), 0, "it is left alone");
        // Until it is looked at again.
        w.followed.open().unwrap();
        w.followed.open().unwrap();
        assert_eq!(w.watches(), 1);
        let _listener = socket(&w.volume);
        w.told().await;
    }

    #[tokio::test]
    async fn a_session_needs_no_watch() {
        let mut w = Watching::new();
        w.followed.open().unwrap();
        w.followed.rest();
        assert_eq!(w.watches(), 0);
        w.followed.open().unwrap();
        let sockets = w.followed.sockets.clone();
        drop(w.followed);
        assert!(sockets.state().watched.is_empty());
    }

    /// As in a user namespace without a watch left, or on a node.
    #[tokio::test]
    async fn where_the_kernel_gives_no_watch_it_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let troubles = Arc::new(Troubles::new(metrics().1));
        let sockets = Sockets::new(dir.path(), Arc::clone(&troubles));
        let volume = volume(dir.path(), UID);
        // An instance that is none.
        let no_queue = std::os::fd::OwnedFd::from(UnixListener::bind(dir.path().join("none")).unwrap());
        // SAFETY: the call fails, which is what the test needs.
        let no_queue = Queue(unsafe { Inotify::from_owned_fd(no_queue) });
        // SAFETY: it owns its descriptor.
        let no_queue = unsafe { AsyncFd::register(no_queue) }.unwrap();
        sockets.state().queue = Some(Arc::new(no_queue));
        let mut followed = sockets.follow(Home::pod(Runtime::Qemu, UID), "ns", "pod", UID);
        let _listener = socket(&volume);
        followed.open().unwrap().connect().unwrap();
        let trouble = troubles.condition();
        assert_eq!(trouble.reason, reasons::SOCKETS_NOT_WATCHED);
        assert!(trouble.message.contains("ns/pod"), "{}", trouble.message);
        // It can again.
        sockets.state().queue = None;
        followed.open().unwrap();
        assert_eq!(troubles.condition().status, Some(false));
    }
}
