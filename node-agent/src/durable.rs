//! Files that are replaced as a whole, and are on disk when the call returns.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// Only root may read them: they name VMs of all tenants, and their MACs.
pub const FILE_MODE: u32 = 0o600;

/// What is there, if anything is.
pub fn found<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Replaces a file of the directory or removes it, and returns once that is on disk.
pub fn set(dir: &Path, path: &Path, content: Option<&[u8]>) -> io::Result<()> {
    let Some(content) = content else {
        return match found(fs::remove_file(path))? {
            None => Ok(()),
            Some(()) => File::open(dir)?.sync_all(),
        };
    };
    let temporary = path.with_added_extension("tmp");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(FILE_MODE)
        // Never writes through a link that somebody has put there.
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}
