//! The virtual machine as a whole (QEMU `qapi/control.json`, `run-state.json`, `machine.json`, `qom.json`).

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::string_enum;
use crate::{Client, QmpError};

/// QEMU's version (`VersionInfo`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct QemuVersion {
    /// The release.
    pub qemu: Release,
    /// The package it came in, empty if unknown.
    #[serde(default)]
    pub package: String,
}

/// Three numbers, ordered as releases are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Release {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number.
    pub micro: u32,
}

impl QemuVersion {
    /// Whether it is this release or a later one.
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        (self.qemu.major, self.qemu.minor) >= (major, minor)
    }
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Release { major, minor, micro } = self.qemu;
        write!(f, "{major}.{minor}.{micro}")
    }
}

string_enum! {
    /// The VM's state (`RunState`).
    RunState {
        /// vCPUs run.
        Running = "running",
        /// Stopped by `stop`.
        Paused = "paused",
        /// Started with `-S` and never run.
        Prelaunch = "prelaunch",
        /// Waits for an incoming migration, or loads it.
        InMigrate = "inmigrate",
        /// Source of a migration that completed, as far as the source knows.
        PostMigrate = "postmigrate",
        /// Stopped to finish a migration.
        FinishMigrate = "finish-migrate",
        /// Stopped, the snapshot is being restored.
        RestoreVm = "restore-vm",
        /// Stopped, the snapshot is being saved.
        SaveVm = "save-vm",
        /// Stopped by the guest's shutdown under `-no-shutdown`.
        Shutdown = "shutdown",
        /// Suspended by the guest (ACPI S3).
        Suspended = "suspended",
        /// The guest panicked.
        GuestPanicked = "guest-panicked",
        /// The watchdog fired.
        Watchdog = "watchdog",
        /// An I/O error stopped it.
        IoError = "io-error",
        /// An error inside QEMU stopped it.
        InternalError = "internal-error",
        /// A debugger stopped it.
        Debug = "debug",
    }
}

/// What `query-status` answers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct StatusInfo {
    /// Whether the vCPUs run.
    pub running: bool,
    /// The state's name.
    pub status: RunState,
}

#[derive(Deserialize)]
struct Property {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

impl Client {
    /// `query-version`. [`version`](Self::version) knows it without a round trip.
    pub async fn query_version(&self) -> Result<QemuVersion, QmpError> {
        self.execute("query-version", &json!({})).await
    }

    /// `query-status`.
    pub async fn query_status(&self) -> Result<StatusInfo, QmpError> {
        self.execute("query-status", &json!({})).await
    }

    /// `cont`: runs the vCPUs. At a destination that still waits for its stream: as soon as it is loaded.
    pub async fn cont(&self) -> Result<(), QmpError> {
        self.run("cont", &json!({})).await
    }

    /// `stop`: pauses the vCPUs.
    pub async fn stop(&self) -> Result<(), QmpError> {
        self.run("stop", &json!({})).await
    }

    /// `quit`: ends QEMU at once. The reply may be lost with the process: [`QmpError::Closed`] is success here, and
    /// [`closed`](Self::closed) tells when it is gone.
    pub async fn quit(&self) -> Result<(), QmpError> {
        self.run("quit", &json!({})).await
    }

    /// The machine's type without its suffix, `pc-q35-10.0`: an alias such as `q35` is resolved.
    pub async fn machine_type(&self) -> Result<String, QmpError> {
        let kind: String = self.qom_get("/machine", "type").await?;
        Ok(kind
            .strip_suffix("-machine")
            .map(ToOwned::to_owned)
            .unwrap_or(kind))
    }

    /// `query-memory-size-summary`: the octets of memory that the machine has, those that were plugged included.
    pub async fn memory_size(&self) -> Result<u64, QmpError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Summary {
            base_memory: u64,
            #[serde(default)]
            plugged_memory: u64,
        }
        let summary: Summary = self.execute("query-memory-size-summary", &json!({})).await?;
        Ok(summary.base_memory + summary.plugged_memory)
    }

    /// `qom-list`: the properties of the object at `path`, name to type.
    pub async fn qom_list(&self, path: &str) -> Result<BTreeMap<String, String>, QmpError> {
        let list: Vec<Property> = self.execute("qom-list", &json!({ "path": path })).await?;
        Ok(list.into_iter().map(|p| (p.name, p.kind)).collect())
    }

    /// `qom-get`: one property of the object at `path`.
    pub async fn qom_get<T: DeserializeOwned>(&self, path: &str, property: &str) -> Result<T, QmpError> {
        self.execute("qom-get", &json!({ "path": path, "property": property }))
            .await
    }

    /// The devices that have an id, id to QOM type (`/machine/peripheral`). A device whose unplug the guest has not
    /// acknowledged is still in it; one hidden behind a `failover_pair_id` is not.
    pub async fn peripheral(&self) -> Result<BTreeMap<String, String>, QmpError> {
        let mut list = self.qom_list("/machine/peripheral").await?;
        list.retain(|_, kind| kind.starts_with("child<"));
        for kind in list.values_mut() {
            *kind = kind.trim_start_matches("child<").trim_end_matches('>').to_owned();
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_unknown_states() {
        let known: StatusInfo = serde_json::from_str(r#"{"running":false,"status":"inmigrate"}"#).unwrap();
        assert_eq!(known.status, RunState::InMigrate);
        let future: StatusInfo = serde_json::from_str(r#"{"running":true,"status":"dreaming"}"#).unwrap();
        assert_eq!((future.status.as_str(), future.running), ("dreaming", true));
    }

    #[test]
    fn versions_compare_as_numbers() {
        let qemu = Release {
            major: 10,
            minor: 0,
            micro: 2,
        };
        let version = QemuVersion {
            qemu,
            package: String::new(),
        };
        assert!(version.at_least(9, 2) && version.at_least(10, 0) && !version.at_least(10, 1));
        assert_eq!(version.to_string(), "10.0.2");
    }
}
