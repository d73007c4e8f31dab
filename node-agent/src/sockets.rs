//! Tells when something happens where the VMs' sockets are, or are to be.
//!
//! The root and, of the pods that are looked after, the namespace's directory and the pod's own are watched: three for a pod at
//! most, however many directories others make there, and nothing below them. Where the kernel gives no watch, it is looked
//! from time to time instead.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hybridnic_api::{conditions::reasons, names::QMP_SOCKET};
use notify::{
    ErrorKind, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _, event::ModifyKind,
};
use tokio::sync::{Notify, watch};

use crate::troubles::Troubles;

/// As `/tmp`: each removes only what is its own.
const MODE: u32 = 0o1777;
/// How often is looked, and a watch asked for again, where the kernel gives none.
const POLL: Duration = Duration::from_secs(5);
/// What has the trouble where there is no watch.
const TROUBLE: &str = "sockets";

/// A namespace and a pod.
type Pod = (String, String);

#[derive(Debug, Default)]
struct State {
    /// The pods that are looked after, by how many look.
    followed: BTreeMap<Pod, usize>,
    /// Directories that were removed, or replaced, since the watches were last looked at.
    gone: BTreeSet<PathBuf>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    state: Mutex<State>,
    /// The watches may not be those that are wanted.
    stale: Notify,
    changed: watch::Sender<u64>,
}

/// The directories of the VMs' sockets. Clones share them.
#[derive(Clone, Debug)]
pub struct Sockets(Arc<Inner>);

/// A pod that is looked after until this is dropped.
#[derive(Debug)]
pub struct Followed {
    sockets: Sockets,
    pod: Pod,
}

impl Sockets {
    /// Makes the directory where it is not there.
    ///
    /// A kubelet gives what it makes in it for a pod (`subPathExpr`) the same mode, and QEMU is not to be root: so all may
    /// write there. A pod sees nothing but what was made for it.
    pub fn new(root: &Path) -> std::io::Result<Self> {
        std::fs::create_dir_all(root)?;
        std::fs::set_permissions(root, Permissions::from_mode(MODE))?;
        Ok(Self(Arc::new(Inner {
            root: root.canonicalize()?,
            state: Mutex::default(),
            stale: Notify::new(),
            changed: watch::Sender::default(),
        })))
    }

    /// Resolves when the socket of a pod that is looked after, or a directory on the way to it, was made or removed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Looks after a pod.
    pub fn follow(&self, namespace: &str, pod: &str) -> Followed {
        let pod = (namespace.to_owned(), pod.to_owned());
        *self.state().followed.entry(pod.clone()).or_default() += 1;
        self.0.stale.notify_one();
        Followed {
            sockets: self.clone(),
            pod,
        }
    }

    /// Watches, for as long as it is polled.
    pub async fn run(self, troubles: Arc<Troubles>) {
        loop {
            let Err(error) = self.watch(&troubles).await;
            let message = format!(
                "the kernel does not tell the agent of the VMs' sockets, so it looks every {} s: {error}",
                POLL.as_secs()
            );
            troubles.begin(TROUBLE, reasons::SOCKETS_NOT_WATCHED, message);
            tokio::time::sleep(POLL).await;
            self.changed();
        }
    }

    /// Ends with the kernel's refusal only.
    async fn watch(&self, troubles: &Troubles) -> notify::Result<std::convert::Infallible> {
        let sockets = self.clone();
        let mut watcher = notify::recommended_watcher(move |event| sockets.on_event(event))?;
        let mut dirs = BTreeSet::new();
        loop {
            self.refresh(&mut watcher, &mut dirs)?;
            troubles.end(TROUBLE);
            self.0.stale.notified().await;
        }
    }

    /// Makes the watches those that are wanted.
    fn refresh(&self, watcher: &mut RecommendedWatcher, dirs: &mut BTreeSet<PathBuf>) -> notify::Result<()> {
        let (wanted, gone) = {
            let mut state = self.state();
            (self.wanted(&state), std::mem::take(&mut state.gone))
        };
        // A directory made again is another, by the same name.
        let (keep, drop): (BTreeSet<_>, BTreeSet<_>) = std::mem::take(dirs)
            .into_iter()
            .partition(|dir| wanted.contains(dir) && !gone.iter().any(|gone| dir.starts_with(gone)));
        *dirs = keep;
        for dir in drop {
            // With the directory its watch has gone.
            let _ = watcher.unwatch(&dir);
        }
        let mut new = false;
        for dir in wanted {
            if dirs.contains(&dir) {
                continue;
            }
            match watcher.watch(&dir, RecursiveMode::NonRecursive) {
                Ok(()) => new |= dirs.insert(dir),
                // The directory above it is watched.
                Err(e) if matches!(e.kind, ErrorKind::PathNotFound) && dir != self.0.root => {}
                Err(e) => return Err(e),
            }
        }
        if new {
            // What was made before the watch was.
            self.changed();
        }
        Ok(())
    }

    fn wanted(&self, state: &State) -> BTreeSet<PathBuf> {
        let root = &self.0.root;
        let dirs = state.followed.keys().flat_map(|(namespace, pod)| {
            let namespace = root.join(namespace);
            let pod = namespace.join(pod);
            [namespace, pod]
        });
        dirs.chain([root.clone()]).collect()
    }

    /// On a thread of the watcher's, so that the watches cannot be changed here.
    fn on_event(&self, event: notify::Result<Event>) {
        let root = &self.0.root;
        let event = match event {
            Ok(event) if !event.need_rescan() => event,
            // Events were lost.
            _ => {
                self.state().gone.insert(root.clone());
                self.0.stale.notify_one();
                return self.changed();
            }
        };
        let moved = matches!(event.kind, EventKind::Modify(ModifyKind::Name(_)));
        if !(event.kind.is_create() || event.kind.is_remove() || moved) {
            return;
        }
        let mut state = self.state();
        let mut ours = false;
        for path in &event.paths {
            let Ok(below) = path.strip_prefix(root) else {
                continue;
            };
            let parts: Vec<_> = below.iter().map(|part| part.to_string_lossy()).collect();
            let followed = |namespace: &str, pod: Option<&str>| {
                let mut pods = state.followed.keys();
                pods.any(|(n, p)| n == namespace && pod.is_none_or(|pod| p == pod))
            };
            let (is_ours, is_dir) = match parts.as_slice() {
                [] => (true, true),
                [namespace] => (followed(namespace, None), true),
                [namespace, pod] => (followed(namespace, Some(pod)), true),
                [namespace, pod, socket] => (socket == QMP_SOCKET && followed(namespace, Some(pod)), false),
                _ => (false, false),
            };
            ours |= is_ours;
            if is_ours && is_dir {
                if !event.kind.is_create() {
                    state.gone.insert(path.clone());
                }
                self.0.stale.notify_one();
            }
        }
        drop(state);
        if ours {
            self.changed();
        }
    }

    fn changed(&self) {
        self.0.changed.send_modify(|n| *n += 1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let mut state = self.sockets.state();
        if let Some(count) = state.followed.get_mut(&self.pod) {
            *count -= 1;
            if *count == 0 {
                state.followed.remove(&self.pod);
            }
        }
        drop(state);
        self.sockets.0.stale.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::net::UnixListener, time::Instant};

    use tokio::time::timeout;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;
    use crate::metrics::metrics;

    struct Watched {
        dir: tempfile::TempDir,
        sockets: Sockets,
        _run: AbortOnDropHandle<()>,
    }

    impl Watched {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let sockets = Sockets::new(dir.path()).unwrap();
            let troubles = Arc::new(Troubles::new(metrics().1));
            let run = AbortOnDropHandle::new(tokio::spawn(sockets.clone().run(troubles)));
            Self {
                dir,
                sockets,
                _run: run,
            }
        }

        /// Waits until what was changed last has led to no more.
        async fn settle(&self) {
            let mut changes = self.sockets.changes();
            while timeout(Duration::from_millis(200), changes.changed())
                .await
                .is_ok()
            {}
        }
    }

    async fn told(changes: &mut watch::Receiver<u64>) {
        timeout(Duration::from_secs(10), changes.changed())
            .await
            .expect("not told")
            .unwrap();
    }

    #[tokio::test]
    async fn a_socket_is_told_of_however_its_directories_come_and_go() {
        let w = Watched::new();
        let _followed = w.sockets.follow("ns", "pod");
        let pod = w.dir.path().join("ns/pod");
        for _ in 0..2 {
            w.settle().await;
            let mut changes = w.sockets.changes();
            fs::create_dir_all(&pod).unwrap();
            told(&mut changes).await;
            w.settle().await;
            changes.mark_unchanged();
            let listener = UnixListener::bind(pod.join(QMP_SOCKET)).unwrap();
            told(&mut changes).await;
            w.settle().await;
            changes.mark_unchanged();
            drop(listener);
            fs::remove_dir_all(w.dir.path().join("ns")).unwrap();
            told(&mut changes).await;
        }
    }

    #[tokio::test]
    async fn what_a_tenant_makes_costs_nothing() {
        let w = Watched::new();
        let pod = w.dir.path().join("ns/pod");
        fs::create_dir_all(&pod).unwrap();
        let followed = w.sockets.follow("ns", "pod");
        w.settle().await;
        let changes = w.sockets.changes();
        for n in 0..1000 {
            fs::create_dir_all(pod.join(format!("{n}/deeper"))).unwrap();
            fs::create_dir_all(w.dir.path().join(format!("ns/other{n}"))).unwrap();
        }
        w.settle().await;
        assert!(!changes.has_changed().unwrap(), "nobody is woken");
        assert_eq!(w.sockets.wanted(&w.sockets.state()).len(), 3);
        drop(followed);
        assert_eq!(w.sockets.wanted(&w.sockets.state()).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_watch_it_is_looked_from_time_to_time() {
        let dir = tempfile::tempdir().unwrap();
        let sockets = Sockets::new(&dir.path().join("vms")).unwrap();
        let troubles = Arc::new(Troubles::new(metrics().1));
        // What the kernel refuses to watch, whoever asks and whatever its limits are.
        fs::remove_dir(dir.path().join("vms")).unwrap();
        std::os::unix::fs::symlink("vms", dir.path().join("vms")).unwrap();
        let mut changes = sockets.changes();
        let began = Instant::now();
        let _run = AbortOnDropHandle::new(tokio::spawn(sockets.clone().run(Arc::clone(&troubles))));
        told(&mut changes).await;
        told(&mut changes).await;
        assert!(began.elapsed() < Duration::from_secs(5), "the clock is not real");
        assert_eq!(troubles.condition().reason, reasons::SOCKETS_NOT_WATCHED);
        // It can again.
        fs::remove_file(dir.path().join("vms")).unwrap();
        fs::create_dir(dir.path().join("vms")).unwrap();
        let mut seen = troubles.subscribe();
        seen.wait_for(BTreeMap::is_empty).await.unwrap();
    }
}
