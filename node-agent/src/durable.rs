//! Files that are replaced as a whole, and are on disk when the call returns.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg, OFlag, open},
    sys::stat::Mode,
};

/// Only root may read them: they name VMs of all tenants, and their MACs.
pub const FILE_MODE: u32 = 0o600;

/// The file of a directory that a writer locks.
const LOCK: &str = ".lock";
/// How long another writer may take.
const WRITE: Duration = Duration::from_secs(10);

/// Keeps all others who lock the directory from writing into it until the lock is dropped. An error: another holds it for too long.
///
/// The lock is on a file that only its owner can open. Everybody who can read the directory itself could lock that, and never let go.
pub fn lock(dir: &Path) -> io::Result<Flock<File>> {
    // Not opened for writing: closing it is then no news for those that watch the directory.
    let flags = OFlag::O_RDONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let path = dir.join(LOCK);
    let opened = open(&path, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|errno| {
        let why = io::Error::from(errno);
        io::Error::new(why.kind(), format!("{}: {why}", path.display()))
    });
    let mut file = File::from(opened?);
    let end = Instant::now() + WRITE;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EAGAIN)) if Instant::now() < end => file,
            Err((_, Errno::EAGAIN)) => {
                let why = format!(
                    "another command has been writing into {} for too long",
                    dir.display()
                );
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            Err((_, errno)) => return Err(errno.into()),
        };
        // The kernel wakes only those that wait without a deadline.
        thread::sleep(Duration::from_millis(20));
    }
}

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
