//! The directory that was opened, in which alone is read and written: another that is mounted over it, or put in its place, says nothing
//! about files that were in this one, and what is written there would prove it.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::durable;

/// A directory.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    /// Its device and number.
    id: (u64, u64),
    lost: AtomicBool,
}

impl Place {
    /// The directory that was opened by this path.
    pub fn new(path: &Path, opened: &File) -> io::Result<Self> {
        let meta = opened.metadata()?;
        Ok(Self {
            path: path.to_owned(),
            id: (meta.dev(), meta.ino()),
            lost: AtomicBool::new(false),
        })
    }

    /// Opens it once more; an error where something else is in its place.
    pub fn open(&self) -> io::Result<File> {
        let opened = File::open(&self.path)?;
        let meta = opened.metadata()?;
        if (meta.dev(), meta.ino()) != self.id || self.lost.load(Ordering::Relaxed) {
            return Err(io::Error::other("another directory is in its place"));
        }
        Ok(opened)
    }

    /// It was told to be gone: from now on its number may be another's.
    pub fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    /// Whether it has this file.
    pub fn has(&self, file: &str) -> io::Result<bool> {
        let opened = self.open()?;
        in_proc(&opened).join(file).try_exists()
    }

    /// The text of one of its files.
    pub fn read(&self, file: &str) -> io::Result<String> {
        let opened = self.open()?;
        fs::read_to_string(in_proc(&opened).join(file))
    }

    /// Makes this the text of one of its files, or removes that; returns once that is on disk.
    pub async fn set(self: &Arc<Self>, file: &str, text: Option<String>) -> io::Result<()> {
        let (place, file) = (Arc::clone(self), file.to_owned());
        let set = move || {
            let opened = place.open()?;
            let dir = in_proc(&opened);
            durable::set(&dir, &dir.join(file), text.as_deref().map(str::as_bytes))
        };
        tokio::task::spawn_blocking(set).await.map_err(io::Error::other)?
    }
}

/// The path of an open directory, whatever is in its place.
pub fn in_proc(opened: &File) -> PathBuf {
    format!("/proc/self/fd/{}", opened.as_raw_fd()).into()
}
