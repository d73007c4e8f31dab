//! The file that a VM is written to or loaded from, as its pod has it. The agent opens it, and hands QEMU the descriptor.
//!
//! The path is the pod's: it is resolved beneath the root directory of QEMU's process, no link leads out of there, and no
//! file of `/proc` is followed. The agent reads and writes nothing there that QEMU's own user may not.
//!
//! | name | is |
//! |---|---|
//! | `.FILE.UID.part` | what QEMU writes. `UID` is the `QemuSave`'s |
//! | `.FILE.UID.json` | the manifest, before it has its name |
//! | `FILE.hybridnic.json` | the [`Manifest`] |
//! | `FILE` | the VM: whole, and on disk. It gets this name last |
//!
//! A name is given with a link, which replaces nothing, also on NFS; then the old name goes. Where there are no links, it is given with a
//! rename that replaces nothing.

mod manifest;

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat, fchown, fstat, fstatfs, linkat,
        openat, openat2, renameat_with, statat, unlinkat,
    },
    io::Errno,
    process::{Gid, Uid},
};

pub use manifest::{Manifest, SavedMachine, SavedNic};

use crate::durable::FILE_MODE;

/// `CAP_DAC_OVERRIDE`, as a bit of the sets of capabilities.
const DAC_OVERRIDE: u64 = 1 << 1;

/// File systems that keep nothing: tmpfs (and devtmpfs), ramfs, proc, sysfs, cgroup2, devpts.
const IN_MEMORY: [u64; 6] = [0x0102_1994, 0x8584_58f6, 0x9fa0, 0x6265_6572, 0x6367_7270, 0x1cd1];

/// The longest manifest that is read.
const LONGEST: u64 = 1 << 20;

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Its directory cannot be opened.
    #[error("the directory {path} cannot be opened in the VM's pod")]
    NoDirectory {
        /// Its path there.
        path: String,
        /// Why.
        #[source]
        source: Errno,
    },
    /// It would go with its container.
    #[error(
        "the directory {0} is on no volume of the VM's pod: what is written there goes with the container"
    )]
    NoVolume(String),
    /// It would go with the pod, or with the node's memory.
    #[error("the directory {0} is in memory: what is written there goes with the container or the pod")]
    InMemory(String),
    /// QEMU itself could not.
    #[error("QEMU's user, {uid}, may not {what}")]
    NotAllowed {
        /// QEMU's user.
        uid: u32,
        /// What it may not.
        what: String,
    },
    /// There is a file of its name.
    #[error("there is a file {0} already")]
    Exists(String),
    /// There is none, or what there is is none.
    #[error("{0} is no file in the VM's pod")]
    NoFile(String),
    /// What stands beside it cannot be read.
    #[error("{name}, which says whose the file is, cannot be read: {why}")]
    Manifest {
        /// Its name.
        name: String,
        /// Why.
        why: String,
    },
    /// The file that QEMU was given is not there any more.
    #[error("something has replaced the file that QEMU was writing")]
    Replaced,
    /// The kernel refuses.
    #[error("cannot {step}")]
    Kernel {
        /// What was tried.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn cannot<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> FileError {
    move |error| FileError::Kernel {
        step,
        source: error.into(),
    }
}

/// What a process may do with files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    /// Whether it needs no permission: root without the capability needs one.
    overrides: bool,
}

impl Who {
    /// The process of this pid.
    pub fn of(pid: i32) -> io::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        Self::parse(&status)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a /proc/PID/status"))
    }

    /// What `/proc/PID/status` says: the last of the four ids is the one by which files are judged.
    fn parse(status: &str) -> Option<Self> {
        let numbers = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace()
                .map(|number| number.parse().ok())
                .collect::<Option<Vec<u32>>>()
        };
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
        Some(Self {
            overrides: effective & DAC_OVERRIDE != 0,
            uid: *numbers("Uid:")?.last()?,
            gid: *numbers("Gid:")?.last()?,
            groups: numbers("Groups:")?,
        })
    }

    /// Whether it may do with a file what the bits of a mode, in their place for others, say.
    fn may(&self, stat: &Stat, bits: u32) -> bool {
        let shift = if self.uid == stat.st_uid {
            6
        } else if self.gid == stat.st_gid || self.groups.contains(&stat.st_gid) {
            3
        } else {
            0
        };
        self.uid == 0 && self.overrides || stat.st_mode >> shift & bits == bits
    }

    fn check(&self, stat: &Stat, bits: u32, what: impl FnOnce() -> String) -> Result<(), FileError> {
        if self.may(stat, bits) {
            return Ok(());
        }
        Err(FileError::NotAllowed {
            uid: self.uid,
            what: what(),
        })
    }
}

/// The place of a file in a pod.
#[derive(Debug)]
pub struct Place {
    dir: OwnedFd,
    path: String,
    name: String,
    who: Who,
}

/// A file as QEMU gets it.
#[derive(Debug)]
pub struct Made {
    /// Opened to write.
    pub file: OwnedFd,
    /// Its number on its file system.
    pub inode: u64,
}

impl Place {
    /// The place of `path` beneath the root directory of QEMU's process, which may do there what `who` may.
    pub fn open(root: BorrowedFd<'_>, path: &str, who: Who) -> Result<Self, FileError> {
        let (dir, name) = path.rsplit_once('/').unwrap_or_default();
        let dir = if dir.is_empty() { "/" } else { dir };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let opened =
            openat2(root, dir, flags, Mode::empty(), resolve).map_err(|source| FileError::NoDirectory {
                path: dir.to_owned(),
                source,
            })?;
        let stat = |fd| fstat(fd).map_err(cannot("look at the directory"));
        if stat(opened.as_fd())?.st_dev == stat(root)?.st_dev {
            return Err(FileError::NoVolume(dir.to_owned()));
        }
        Ok(Self {
            dir: opened,
            path: path.to_owned(),
            name: name.to_owned(),
            who,
        })
    }

    /// Refuses a directory that is in memory: the file of a VM that is ended for it would go with the VM's container.
    pub fn lasts(&self) -> Result<(), FileError> {
        let kind = fstatfs(&self.dir)
            .map_err(cannot("look at the file system"))?
            .f_type;
        if u64::try_from(kind).is_ok_and(|kind| IN_MEMORY.contains(&kind)) {
            let dir = self.path.rsplit_once('/').unwrap_or_default().0;
            return Err(FileError::InMemory(dir.to_owned()));
        }
        Ok(())
    }

    fn part(&self, save: &str) -> String {
        format!(".{}.{save}.part", self.name)
    }

    fn manifest_part(&self, save: &str) -> String {
        format!(".{}.{save}.json", self.name)
    }

    fn manifest_name(&self) -> String {
        format!("{}.hybridnic.json", self.name)
    }

    fn stat(&self, name: &str) -> Result<Option<Stat>, FileError> {
        match statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(cannot("look at the file")(error)),
        }
    }

    fn remove(&self, name: &str) -> Result<(), FileError> {
        match unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(cannot("remove what was written")(error)),
        }
    }

    fn sync(&self) -> Result<(), FileError> {
        rustix::fs::fsync(&self.dir).map_err(cannot("put the directory on disk"))
    }

    fn create(&self, name: &str) -> Result<OwnedFd, FileError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || openat(&self.dir, name, flags, Mode::from_raw_mode(FILE_MODE));
        let made = match open() {
            // An agent that died has left it.
            Err(Errno::EXIST) => {
                self.remove(name)?;
                open()
            }
            made => made,
        };
        let made = made.map_err(cannot("make the file"))?;
        let owner = (
            Some(Uid::from_raw(self.who.uid)),
            Some(Gid::from_raw(self.who.gid)),
        );
        // The pod's own user reads it again, and may remove it.
        fchown(&made, owner.0, owner.1).map_err(cannot("give the file to QEMU's user"))?;
        Ok(made)
    }

    /// Makes the file that QEMU writes. No file may have the name that it will have, nor the name of what comes beside it.
    pub fn make(&self, save: &str) -> Result<Made, FileError> {
        if self.stat(&self.name)?.is_some() {
            return Err(FileError::Exists(self.path.clone()));
        }
        if self.stat(&self.manifest_name())?.is_some() {
            return Err(self.beside());
        }
        let dir = fstat(&self.dir).map_err(cannot("look at the directory"))?;
        self.who.check(&dir, 3, || {
            format!("make files in the directory of {}", self.path)
        })?;
        let file = self.create(&self.part(save))?;
        let inode = fstat(&file).map_err(cannot("look at the file"))?.st_ino;
        Ok(Made { file, inode })
    }

    /// Whether the file can be made: nothing is left of it.
    pub fn try_out(&self, save: &str) -> Result<(), FileError> {
        let made = self.make(save);
        let removed = self.remove(&self.part(save));
        // Of a read-only volume nothing can be removed either, not even what is not there: why it cannot be made comes first.
        made.and(removed)
    }

    /// Puts what QEMU has written on disk, and gives it its name; gives its length. Doing it again is right.
    pub fn seal(
        &self,
        save: &str,
        inode: u64,
        manifest: impl FnOnce(u64) -> Manifest,
    ) -> Result<u64, FileError> {
        if let Some(named) = self.stat(&self.name)? {
            if named.st_ino != inode {
                return Err(FileError::Exists(self.path.clone()));
            }
            // An agent died between the two.
            self.remove(&self.part(save))?;
            self.sync()?;
            return Ok(u64::try_from(named.st_size).unwrap_or_default());
        }
        let part = self.part(save);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let written =
            openat(&self.dir, &part, flags, Mode::empty()).map_err(cannot("open what QEMU has written"))?;
        let stat = fstat(&written).map_err(cannot("look at what QEMU has written"))?;
        if stat.st_ino != inode {
            return Err(FileError::Replaced);
        }
        rustix::fs::fsync(&written).map_err(cannot("put the file on disk"))?;
        let length = fstat(&written)
            .map_err(cannot("look at what QEMU has written"))?
            .st_size;
        let length = u64::try_from(length).unwrap_or_default();

        let text = serde_json::to_vec_pretty(&manifest(length))
            .map_err(|error| cannot("write the manifest")(io::Error::from(error)))?;
        let temporary = self.manifest_part(save);
        let mut file = File::from(self.create(&temporary)?);
        file.write_all(&text).map_err(cannot("write the manifest"))?;
        file.sync_all().map_err(cannot("put the manifest on disk"))?;
        // An agent that died may have named it before.
        if !self.give_name(&temporary, &self.manifest_name())?
            && !self.manifest().is_ok_and(|manifest| manifest.save == save)
        {
            return Err(self.beside());
        }
        self.remove(&temporary)?;
        if !self.give_name(&part, &self.name)? {
            return Err(FileError::Exists(self.path.clone()));
        }
        self.sync()?;
        Ok(length)
    }

    /// What stands where the manifest is to be.
    fn beside(&self) -> FileError {
        FileError::Exists(format!("{}.hybridnic.json", self.path))
    }

    /// Gives what is here another name, if nothing else has that; whether it has it.
    fn give_name(&self, from: &str, to: &str) -> Result<bool, FileError> {
        let inode = || match self.stat(from)? {
            Some(stat) => Ok(stat.st_ino),
            None => Err(FileError::Replaced),
        };
        match linkat(&self.dir, from, &self.dir, to, AtFlags::empty()) {
            Ok(()) => {}
            // A server that was asked twice has made it the first time.
            Err(Errno::EXIST) if self.stat(to)?.map(|stat| stat.st_ino) == Some(inode()?) => {}
            Err(Errno::EXIST) => return Ok(false),
            // File systems without links.
            Err(Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP | Errno::MLINK) => {
                return match renameat_with(&self.dir, from, &self.dir, to, RenameFlags::NOREPLACE) {
                    Ok(()) => Ok(true),
                    Err(Errno::EXIST) => Ok(false),
                    Err(error) => Err(cannot("give the file its name")(error)),
                };
            }
            Err(error) => return Err(cannot("give the file its name")(error)),
        }
        self.remove(from)?;
        Ok(true)
    }

    /// Removes all that a save has left. `inode` is that of the file that it has made: if that has its name already, it goes too, with
    /// its manifest.
    pub fn discard(&self, save: &str, inode: Option<u64>) -> Result<(), FileError> {
        self.remove(&self.part(save))?;
        self.remove(&self.manifest_part(save))?;
        if self.manifest().is_ok_and(|manifest| manifest.save == save) {
            let named = self.stat(&self.name)?.map(|stat| stat.st_ino);
            let ours = named.is_some() && named == inode;
            if ours {
                self.remove(&self.name)?;
            }
            // It may have been named a moment before the file was to be.
            if ours || named.is_none() {
                self.remove(&self.manifest_name())?;
            }
        }
        self.sync()
    }

    /// A plain file, opened to read. Anything else is not opened at all, because opening a device may do something.
    fn read(&self, name: &str) -> Result<(File, Stat), FileError> {
        let shown = || format!("{}/{name}", self.path.rsplit_once('/').unwrap_or_default().0);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = match openat(&self.dir, name, flags, Mode::empty()) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Err(FileError::NoFile(shown())),
            Err(error) => return Err(cannot("open the file")(error)),
        };
        let stat = fstat(&found).map_err(cannot("look at the file"))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(FileError::NoFile(shown()));
        }
        self.who.check(&stat, 4, || format!("read {}", shown()))?;
        let own = Path::new("/proc/self/fd").join(found.as_raw_fd().to_string());
        Ok((File::open(own).map_err(cannot("open the file"))?, stat))
    }

    /// What stands beside the file.
    pub fn manifest(&self) -> Result<Manifest, FileError> {
        let name = self.manifest_name();
        let (file, _) = self.read(&name)?;
        let mut text = Vec::new();
        file.take(LONGEST)
            .read_to_end(&mut text)
            .map_err(cannot("read the manifest"))?;
        Manifest::read(&text).map_err(|why| FileError::Manifest { name, why })
    }

    /// The file, opened to read, and its length.
    pub fn load(&self) -> Result<(OwnedFd, u64), FileError> {
        let (file, stat) = self.read(&self.name)?;
        Ok((file.into(), u64::try_from(stat.st_size).unwrap_or_default()))
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
