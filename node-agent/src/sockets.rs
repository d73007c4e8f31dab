//! Tells when something happens in the VMs' socket directories.

use std::{fs::Permissions, os::unix::fs::PermissionsExt as _, path::Path};

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::watch;

/// As `/tmp`: each removes only what is its own.
const MODE: u32 = 0o1777;

/// Watches a directory and all below it. Dropping it ends the watch.
pub struct Sockets {
    _watcher: RecommendedWatcher,
    changed: watch::Receiver<u64>,
}

impl Sockets {
    /// Starts to watch; makes the directory where it is not there.
    ///
    /// A kubelet gives what it makes in it for a pod (`subPathExpr`) the same mode, and QEMU is not to be root: so all may
    /// write there. A pod sees nothing but what was made for it.
    pub fn watch(root: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(root)?;
        std::fs::set_permissions(root, Permissions::from_mode(MODE))?;
        let (sender, changed) = watch::channel(0u64);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // Reads are our own; an error means that events were lost.
            if event.map_or(true, |e| e.kind.is_create() || e.kind.is_remove()) {
                sender.send_modify(|n| *n += 1);
            }
        })?;
        watcher.watch(root, RecursiveMode::Recursive)?;
        Ok(Self {
            _watcher: watcher,
            changed,
        })
    }

    /// Resolves when something was made or removed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }
}
