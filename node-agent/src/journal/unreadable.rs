//! Files of the journal that cannot be read or understood.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use hybridnic_net::PciAddress;
use serde_json::Value;

/// A file that cannot be read or understood, with what is known about it nevertheless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The file.
    pub path: PathBuf,
    /// The attachment's uid.
    pub uid: String,
    /// Why it cannot be read.
    pub why: String,
    /// `namespace/nic`.
    pub nic: Option<String>,
    /// The VF that it holds.
    pub vf: Option<PciAddress>,
    /// Its standby's macvtap.
    pub macvtap: Option<String>,
}

impl Unreadable {
    pub(super) fn new(path: &Path, why: String, text: &[u8]) -> Self {
        let value: Value = serde_json::from_slice(text).unwrap_or_default();
        let at = |pointer: &str| value.pointer(pointer)?.as_str().map(ToOwned::to_owned);
        let text = String::from_utf8_lossy(text);
        Self {
            path: path.to_owned(),
            uid: path
                .file_stem()
                .map(|stem| stem.to_string_lossy().into_owned())
                .unwrap_or_default(),
            why,
            nic: at("/namespace")
                .zip(at("/spec/nic/name"))
                .map(|(namespace, nic)| format!("{namespace}/{nic}")),
            vf: at("/vf/address")
                .or_else(|| string_after(&text, "\"address\""))
                .and_then(|address| address.parse().ok()),
            macvtap: at("/standby/macvtap").or_else(|| string_after(&text, "\"macvtap\"")),
        }
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path, why, nic, vf, ..
        } = self;
        let nic = nic.as_deref().unwrap_or("an unknown NIC");
        write!(f, "the record {} of {nic} cannot be read: {why}", path.display())?;
        match vf {
            Some(vf) => write!(f, "; its VF {vf} is given to nobody"),
            None => f.write_str("; no VF can be read from it"),
        }
    }
}

/// The string that follows a key, in text that is not complete JSON.
fn string_after(text: &str, key: &str) -> Option<String> {
    let rest = text
        .split_once(key)?
        .1
        .trim_start()
        .strip_prefix(':')?
        .trim_start();
    Some(rest.strip_prefix('"')?.split_once('"')?.0.to_owned())
}
