//! Tells when something happens in the VMs' socket directories.

use std::path::Path;

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::watch;

/// Watches a directory and all below it. Dropping it ends the watch.
pub struct Sockets {
    _watcher: RecommendedWatcher,
    changed: watch::Receiver<u64>,
}

impl Sockets {
    /// Starts to watch; makes the directory where it is not there.
    pub fn watch(root: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(root)?;
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
