//! Reading and writing single attributes.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::str::FromStr;

use super::model::Problem;

/// Reads attributes and keeps a list of those that could not be read, so that one bad file hides nothing else.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pub(super) problems: Vec<Problem>,
}

impl Reader {
    /// An attribute's text without the newline; `None` where it does not exist or cannot be read.
    pub(super) fn text(&mut self, path: &Path) -> Option<String> {
        let read = read_text(path);
        self.note(path, read).flatten()
    }

    /// An attribute as a value of its type.
    pub(super) fn value<T: FromStr<Err: std::fmt::Display>>(&mut self, path: &Path) -> Option<T> {
        let text = self.text(path)?;
        let parsed = text
            .parse()
            .map_err(|e: T::Err| io::Error::new(ErrorKind::InvalidData, format!("{text:?}: {e}")));
        self.note(path, parsed)
    }

    /// An attribute of the form `0x8086`.
    pub(super) fn hex16(&mut self, path: &Path) -> Option<u16> {
        let value = self.hex32(path)?;
        let fits = u16::try_from(value).map_err(|e| io::Error::new(ErrorKind::InvalidData, e));
        self.note(path, fits)
    }

    /// An attribute of the form `0x1003`.
    pub(super) fn hex32(&mut self, path: &Path) -> Option<u32> {
        let text = self.text(path)?;
        let digits = text.strip_prefix("0x").unwrap_or(&text);
        let parsed = u32::from_str_radix(digits, 16)
            .map_err(|e| io::Error::new(ErrorKind::InvalidData, format!("{text:?}: {e}")));
        self.note(path, parsed)
    }

    /// The last part of a symbolic link's target: how sysfs names drivers, groups, masters and functions.
    pub(super) fn link_name(&mut self, path: &Path) -> Option<String> {
        let read = link_name(path);
        self.note(path, read).flatten()
    }

    /// The names in a directory, in order; empty where there is none.
    pub(super) fn names(&mut self, path: &Path) -> Vec<String> {
        let read = names(path);
        self.note(path, read).unwrap_or_default()
    }

    /// Keeps an error as a problem of that path.
    pub(super) fn note<T>(&mut self, path: &Path, result: io::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.problems.push(Problem {
                    path: path.to_owned(),
                    reason: error.to_string(),
                });
                None
            }
        }
    }
}

/// An attribute's text without the newline; `None` where it does not exist.
pub(super) fn read_text(path: &Path) -> io::Result<Option<String>> {
    Ok(found(fs::read_to_string(path))?.map(|mut text| {
        text.truncate(text.trim_end().len());
        text
    }))
}

/// The last part of a symbolic link's target; `None` where there is no link.
pub(super) fn link_name(path: &Path) -> io::Result<Option<String>> {
    let target = found(fs::read_link(path))?;
    Ok(target.and_then(|t| Some(t.file_name()?.to_string_lossy().into_owned())))
}

/// The names in a directory, in order; empty where there is none.
pub(super) fn names(path: &Path) -> io::Result<Vec<String>> {
    let Some(entries) = found(fs::read_dir(path))? else {
        return Ok(Vec::new());
    };
    let mut names: Vec<String> = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()?;
    names.sort_unstable();
    Ok(names)
}

/// What is not there is no error: devices come and go, and attributes differ between kernels. A device that goes away
/// while it is read gives `ENODEV`.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Writes an attribute that exists, in one write, as sysfs wants it.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(path)?
        .write_all(text.as_bytes())
}
