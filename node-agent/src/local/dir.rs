//! The directory of files, and what happens in it.
//!
//! The kernel watches the directory that was opened, and files are read in that one alone, which is its [`Place`]. It is not kept open, or
//! the kernel would not report its end; the watch keeps its number from being another's.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _},
    os::fd::{AsFd as _, OwnedFd},
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify},
        stat::Mode,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    file, order,
    place::{Place, in_proc},
};

/// The most octets of a file that is read.
const LONGEST: u64 = 64 * 1024;
/// Who may write files may have root's agent talk to any socket.
const OTHERS: u32 = 0o022;

/// What is in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// This text.
    Text(String),
    /// It is there, and cannot be read; says why.
    Unreadable(String),
    /// Whether it is there is not known; says why.
    Unknown(String),
    /// It is not there.
    Absent,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// These files are others now, or gone.
    Files(BTreeSet<String>),
    /// The kernel has lost count: any file may be another.
    Any,
    /// The directory itself is gone, or elsewhere.
    Lost,
}

/// An open directory.
#[derive(Debug)]
pub struct Dir {
    place: Arc<Place>,
    events: AsyncFd<OwnedFd>,
    inotify: Inotify,
}

impl Dir {
    /// Opens it, and has it watched from before what is then read in it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let opened = File::open(path)?;
        let meta = opened.metadata()?;
        if !meta.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        // Who can write here has the agent, which is root, talk to any socket.
        if ![0, nix::unistd::geteuid().as_raw()].contains(&meta.uid()) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "it is not root's own",
            ));
        }
        if meta.mode() & OTHERS != 0 {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "others than its owner can write to it",
            ));
        }
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let mask = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(&in_proc(&opened), mask)?;
        let events = inotify.as_fd().try_clone_to_owned()?;
        // SAFETY: an `OwnedFd` stays open until it is dropped, and `AsyncFd` owns it.
        let events = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) };
        let events = events.map_err(io::Error::from)?;
        Ok(Self {
            place: Arc::new(Place::new(path, &opened)?),
            events,
            inotify,
        })
    }

    /// The directory itself.
    pub fn place(&self) -> &Arc<Place> {
        &self.place
    }

    /// The names of all that is asked for, and of all whose status is there.
    pub fn names(&self) -> io::Result<(BTreeSet<String>, BTreeSet<String>)> {
        let dir = self.place.open()?;
        names(&in_proc(&dir))
    }

    /// The NICs of which something is ordered.
    pub fn ordered(&self) -> io::Result<BTreeSet<String>> {
        let dir = self.place.open()?;
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(in_proc(&dir))? {
            let name = entry?.file_name();
            names.extend(name.to_str().and_then(order::object).map(str::to_owned));
        }
        Ok(names)
    }

    /// Reads what asks for an object.
    pub fn read(&self, name: &str) -> Content {
        self.read_file(&file::asking(name))
    }

    /// Reads what is ordered of a NIC.
    pub fn read_order(&self, name: &str) -> Content {
        self.read_file(&order::file(name))
    }

    fn read_file(&self, file: &str) -> Content {
        // Not what a link leads to, which changes without anybody being told.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let dir = match self.place.open() {
            Ok(dir) => dir,
            Err(error) => return Content::Unknown(format!("its directory is not there: {error}")),
        };
        let opened = match openat(&dir, file, flags, Mode::empty()) {
            Ok(opened) => File::from(opened),
            Err(Errno::ENOENT) => return Content::Absent,
            Err(Errno::ELOOP) => return Content::Unreadable("it is a link, and none is followed".to_owned()),
            // A socket is there, and cannot be opened.
            Err(Errno::ENXIO) => return Content::Unreadable("it is no regular file".to_owned()),
            Err(error) => return Content::Unknown(format!("it cannot be read: {}", error.desc())),
        };
        let mut text = String::new();
        let read = opened.metadata().and_then(|meta| {
            if !meta.is_file() {
                return Err(io::Error::other("it is no regular file"));
            }
            opened.take(LONGEST + 1).read_to_string(&mut text)
        });
        match read {
            Err(error) => Content::Unreadable(format!("it cannot be read: {error}")),
            Ok(_) if text.len() as u64 > LONGEST => {
                Content::Unreadable(format!("it has more than {LONGEST} octets"))
            }
            Ok(_) => Content::Text(text),
        }
    }

    fn lose(&self) -> Change {
        self.place.lose();
        Change::Lost
    }

    /// Resolves when something has happened. Files of other kinds are nobody's matter.
    pub async fn changed(&self) -> Change {
        loop {
            let read = self
                .events
                .async_io(Interest::READABLE, |_| Ok(self.inotify.read_events()?));
            let Ok(events) = read.await else {
                return self.lose();
            };
            let mut files = BTreeSet::new();
            let mut any = false;
            for event in events {
                any |= event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                match event.name.as_ref().map(|name| name.to_string_lossy()) {
                    Some(name) => files.extend(
                        file::object(&name)
                            .or_else(|| file::told(&name))
                            .or_else(|| order::object(&name))
                            .map(str::to_owned),
                    ),
                    None if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) => {}
                    None => return self.lose(),
                }
            }
            if any {
                return Change::Any;
            }
            if !files.is_empty() {
                return Change::Files(files);
            }
        }
    }
}

/// The names of all that is asked for in a directory, and of all whose status is there.
pub fn names(dir: &Path) -> io::Result<(BTreeSet<String>, BTreeSet<String>)> {
    let (mut asked, mut told) = (BTreeSet::new(), BTreeSet::new());
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(name) = file::object(name) {
            asked.insert(name.to_owned());
        } else if let Some(name) = file::told(name) {
            told.insert(name.to_owned());
        }
    }
    Ok((asked, told))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::Permissions,
        os::unix::{
            fs::{PermissionsExt as _, symlink},
            net::UnixListener,
        },
        time::Duration,
    };

    use nix::unistd::mkfifo;
    use tokio::time::timeout;

    use super::*;

    fn files(names: &[&str]) -> Change {
        Change::Files(names.iter().map(ToString::to_string).collect())
    }

    async fn changed(dir: &Dir) -> Change {
        timeout(Duration::from_secs(10), dir.changed())
            .await
            .expect("not told")
    }

    #[tokio::test]
    async fn a_file_is_told_of_when_it_is_whole() {
        let at = tempfile::tempdir().unwrap();
        let dir = Dir::open(at.path()).unwrap();
        let path = at.path().join("eth0.yaml");
        let mut file = File::create(&path).unwrap();
        io::Write::write_all(&mut file, b"half").unwrap();
        let early = timeout(Duration::from_millis(200), dir.changed()).await;
        assert!(early.is_err(), "{early:?}");
        drop(file);
        assert_eq!(changed(&dir).await, files(&["eth0"]));
        assert_eq!(dir.read("eth0"), Content::Text("half".into()));
        // As editors do.
        fs::write(at.path().join("4913"), "whole").unwrap();
        let other = timeout(Duration::from_millis(200), dir.changed()).await;
        assert!(other.is_err(), "{other:?}");
        fs::rename(at.path().join("4913"), &path).unwrap();
        assert_eq!(changed(&dir).await, files(&["eth0"]));
        assert_eq!(dir.read("eth0"), Content::Text("whole".into()));
        fs::remove_file(&path).unwrap();
        assert_eq!(changed(&dir).await, files(&["eth0"]));
        assert_eq!(dir.read("eth0"), Content::Absent);
    }

    #[tokio::test]
    async fn what_is_there_and_cannot_be_read_is_not_absent() {
        let at = tempfile::tempdir().unwrap();
        let dir = Dir::open(at.path()).unwrap();
        symlink("none", at.path().join("link.yaml")).unwrap();
        mkfifo(&at.path().join("fifo.yaml"), Mode::S_IRWXU).unwrap();
        let _socket = UnixListener::bind(at.path().join("socket.yaml")).unwrap();
        fs::create_dir(at.path().join("dir.yaml")).unwrap();
        fs::write(at.path().join("long.yaml"), "x".repeat(70_000)).unwrap();
        fs::write(at.path().join("bytes.yaml"), [0xff, 0xfe]).unwrap();
        let (asked, told) = dir.names().unwrap();
        assert_eq!((asked.len(), told.len()), (6, 0));
        for name in asked {
            let content = dir.read(&name);
            assert!(matches!(content, Content::Unreadable(_)), "{name}: {content:?}");
        }
    }

    /// Its files are gone with it, and not by a word of anybody.
    #[tokio::test]
    async fn a_directory_that_goes_says_nothing_of_its_files() {
        let at = tempfile::tempdir().unwrap();
        let path = at.path().join("nics");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("eth0.yaml"), "x").unwrap();
        let dir = Dir::open(&path).unwrap();
        fs::remove_dir_all(&path).unwrap();
        while changed(&dir).await != Change::Lost {}
        assert!(matches!(dir.read("eth0"), Content::Unknown(_)));
        fs::create_dir(&path).unwrap();
        assert!(
            matches!(dir.read("eth0"), Content::Unknown(_)),
            "that is another one"
        );
    }

    #[tokio::test]
    async fn a_directory_that_others_can_write_to_is_refused() {
        let at = tempfile::tempdir().unwrap();
        for (mode, fits) in [(0o755, true), (0o775, false), (0o757, false)] {
            fs::set_permissions(at.path(), Permissions::from_mode(mode)).unwrap();
            assert_eq!(Dir::open(at.path()).is_ok(), fits, "{mode:o}");
        }
        assert!(Dir::open(&at.path().join("none")).is_err());
    }
}
