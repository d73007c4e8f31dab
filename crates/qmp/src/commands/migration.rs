//! Live migration (QEMU `qapi/migration.json`).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{machine::RunState, string_enum};
use crate::error::{DESC, excerpt};
use crate::{Client, QmpError};

string_enum! {
    /// A migration's state (`MigrationStatus`).
    MigrationStatus {
        /// None was ever started.
        None = "none",
        /// Being set up; at a destination: loading, or waiting for the source.
        Setup = "setup",
        /// Waits for a primary with `failover_pair_id` to be unplugged.
        WaitUnplug = "wait-unplug",
        /// Memory is being sent.
        Active = "active",
        /// Post-copy runs.
        PostcopyActive = "postcopy-active",
        /// Post-copy lost its connection.
        PostcopyPaused = "postcopy-paused",
        /// Post-copy comes back after a pause.
        PostcopyRecover = "postcopy-recover",
        /// The source is stopped and waits for `migrate-continue` (capability `pause-before-switchover`).
        PreSwitchover = "pre-switchover",
        /// The device state is being sent.
        Device = "device",
        /// `migrate_cancel` is under way.
        Cancelling = "cancelling",
        /// Cancelled; the source runs on.
        Cancelled = "cancelled",
        /// Done, as far as this side knows.
        Completed = "completed",
        /// Failed.
        Failed = "failed",
        /// Checkpointing (COLO).
        Colo = "colo",
    }
}

impl MigrationStatus {
    /// Whether no migration is under way: none yet, or the last one has ended.
    pub fn is_idle(&self) -> bool {
        matches!(
            self,
            Self::None | Self::Cancelled | Self::Completed | Self::Failed
        )
    }
}

/// Migration capabilities (`MigrationCapability`), the ones we set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationCapability {
    /// Send `MIGRATION` events.
    Events,
    /// The destination tells the source whether it could load. To be set on both sides.
    ReturnPath,
    /// Stop at `pre-switchover` until `migrate-continue`. Matters on the source.
    PauseBeforeSwitchover,
    /// Each page has its place in the file (QEMU 9.0 and later). To be set where a file is loaded as where it was written.
    MappedRam,
    /// Several threads send the memory, or write it to a file, or load it from there.
    Multifd,
}

impl MigrationCapability {
    /// QEMU's name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::ReturnPath => "return-path",
            Self::PauseBeforeSwitchover => "pause-before-switchover",
            Self::MappedRam => "mapped-ram",
            Self::Multifd => "multifd",
        }
    }
}

/// What `migrate-set-parameters` sets; `None` leaves a parameter as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrationParameters {
    /// The most bytes per second; 0 is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bandwidth: Option<u64>,
    /// The downtime to aim at, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime_limit: Option<u64>,
    /// The id of the [`tls-creds-x509`](Client::object_add_tls_creds) by which the stream is encrypted; empty: it is plain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_creds: Option<String>,
    /// On the source: the name that the target's certificate has; empty: that of the URI.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_hostname: Option<String>,
}

/// Memory's progress (`MigrationStats`), in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct RamStats {
    /// Sent so far, repetitions counted.
    pub transferred: u64,
    /// Left to send.
    pub remaining: u64,
    /// Of the guest.
    pub total: u64,
}

/// A TCP address a destination listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InetAddress {
    /// An address or a host name.
    pub host: String,
    /// A TCP port.
    pub port: u16,
}

/// What `query-migrate` answers (`MigrationInfo`).
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrationInfo {
    /// `None` if there was no migration in this QEMU.
    pub status: Option<MigrationStatus>,
    /// Milliseconds from the start to now, or to the end.
    pub total_time: Option<u64>,
    /// How long the guest was paused, in milliseconds, once completed.
    pub downtime: Option<u64>,
    /// Milliseconds of downtime to expect, while active.
    pub expected_downtime: Option<u64>,
    /// Milliseconds of setting up.
    pub setup_time: Option<u64>,
    /// Memory's progress, on the source.
    pub ram: Option<RamStats>,
    /// Why a migration would be refused; empty if it would not. (QEMU omits it then.)
    #[serde(default)]
    pub blocked_reasons: Vec<String>,
    /// Why it failed, as far as a status takes it.
    #[serde(default, deserialize_with = "bounded")]
    pub error_desc: Option<String>,
    #[serde(default)]
    socket_address: Vec<SocketAddress>,
}

fn bounded<'de, D: serde::Deserializer<'de>>(text: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(text)?;
    Ok(text.map(|text| excerpt(&text, DESC)))
}

/// `SocketAddress`: flat, told apart by `type`, ports are strings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct SocketAddress {
    #[serde(rename = "type")]
    kind: String,
    host: Option<String>,
    port: Option<String>,
}

impl MigrationInfo {
    /// The status, `MigrationStatus::None` if there was no migration.
    pub fn status_or_none(&self) -> MigrationStatus {
        self.status.clone().unwrap_or(MigrationStatus::None)
    }

    /// The TCP addresses a destination listens on (`socket-address`): after `migrate_incoming("tcp:HOST:0")` they
    /// hold the port that the kernel chose.
    pub fn listening(&self) -> Vec<InetAddress> {
        self.socket_address
            .iter()
            .filter(|address| address.kind == "inet")
            .filter_map(|address| {
                let port = address.port.as_ref()?.parse().ok()?;
                Some(InetAddress {
                    host: address.host.clone()?,
                    port,
                })
            })
            .collect()
    }
}

impl Client {
    /// `query-migrate`.
    pub async fn query_migrate(&self) -> Result<MigrationInfo, QmpError> {
        self.execute("query-migrate", &json!({})).await
    }

    /// `migrate-set-capabilities`. The ones not named stay as they are.
    pub async fn migrate_set_capabilities(
        &self,
        capabilities: &[(MigrationCapability, bool)],
    ) -> Result<(), QmpError> {
        let list: Vec<_> = capabilities
            .iter()
            .map(|(capability, state)| json!({ "capability": capability, "state": state }))
            .collect();
        self.run("migrate-set-capabilities", &json!({ "capabilities": list }))
            .await
    }

    /// `query-migrate-capabilities`: those of these that this QEMU has.
    pub async fn has_migration_capabilities(
        &self,
        wanted: &[MigrationCapability],
    ) -> Result<Vec<MigrationCapability>, QmpError> {
        #[derive(Deserialize)]
        struct Has {
            capability: String,
        }
        let all: Vec<Has> = self.execute("query-migrate-capabilities", &json!({})).await?;
        let has = |wanted: &&MigrationCapability| all.iter().any(|has| has.capability == wanted.as_str());
        Ok(wanted.iter().filter(has).copied().collect())
    }

    /// `migrate-set-parameters`.
    pub async fn migrate_set_parameters(&self, parameters: &MigrationParameters) -> Result<(), QmpError> {
        self.run("migrate-set-parameters", parameters).await
    }

    /// `migrate`: starts sending to `uri`, for example `tcp:10.0.0.2:4446`. Returns when it has begun.
    pub async fn migrate(&self, uri: &str) -> Result<(), QmpError> {
        self.run("migrate", &json!({ "uri": uri })).await
    }

    /// `migrate-incoming`: listens at `uri`, for a QEMU started with `-incoming defer`. It works once: after a failed
    /// load QEMU exits.
    pub async fn migrate_incoming(&self, uri: &str) -> Result<(), QmpError> {
        self.run("migrate-incoming", &json!({ "uri": uri })).await
    }

    /// `migrate_cancel`, on the source. Without a migration it does nothing. Wait for `cancelled` or `failed`.
    pub async fn migrate_cancel(&self) -> Result<(), QmpError> {
        self.run("migrate_cancel", &json!({})).await
    }

    /// Waits while the run state is `finish-migrate`. QEMU says that a migration is completed a moment before its run state
    /// follows, and sends no event for that (`migration_iteration_finish` in `migration/migration.c`). If the VM runs by
    /// then, QEMU aborts; and it may crash when told to quit meanwhile. It may take as long as a command may, and is
    /// [`QmpError::Timeout`] then.
    pub async fn until_migration_settled(&self) -> Result<(), QmpError> {
        let settled = async {
            while self.query_status().await?.status == RunState::FinishMigrate {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        };
        let after = self.timeout();
        let late = |_| QmpError::Timeout {
            command: "query-status",
            after,
        };
        tokio::time::timeout(after, settled).await.map_err(late)?
    }

    /// `migrate-continue` from `state`, which is [`MigrationStatus::PreSwitchover`].
    pub async fn migrate_continue(&self, state: &MigrationStatus) -> Result<(), QmpError> {
        self.run("migrate-continue", &json!({ "state": state.as_str() }))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_an_answer_of_each_kind() {
        let never: MigrationInfo = serde_json::from_str("{}").unwrap();
        assert_eq!(
            (never.status_or_none(), never.blocked_reasons.len()),
            (MigrationStatus::None, 0)
        );
        assert!(never.status_or_none().is_idle());

        let blocked = r#"{"blocked-reasons":["0000:5e:02.1: VFIO migration is not supported in kernel"]}"#;
        let blocked: MigrationInfo = serde_json::from_str(blocked).unwrap();
        assert_eq!(blocked.blocked_reasons.len(), 1);

        let incoming = r#"{"status":"setup","socket-address":[
            {"type":"inet","host":"127.0.0.1","port":"34567"},{"type":"unix","path":"/x"}]}"#;
        let incoming: MigrationInfo = serde_json::from_str(incoming).unwrap();
        assert_eq!(
            incoming.listening(),
            [InetAddress {
                host: "127.0.0.1".to_owned(),
                port: 34567
            }]
        );

        let failed = format!(r#"{{"status":"failed","error-desc":"{}"}}"#, "x".repeat(1 << 20));
        let failed: MigrationInfo = serde_json::from_str(&failed).unwrap();
        assert_eq!(failed.error_desc.unwrap().len(), DESC);
        let strange = format!(r#"{{"status":"{}"}}"#, "x".repeat(1 << 20));
        let strange: MigrationInfo = serde_json::from_str(&strange).unwrap();
        assert_eq!(strange.status_or_none().as_str().len(), crate::error::WORD);

        let future: MigrationInfo = serde_json::from_str(r#"{"status":"teleporting"}"#).unwrap();
        assert_eq!(
            future.status_or_none(),
            MigrationStatus::Other("teleporting".to_owned())
        );
        assert!(!future.status_or_none().is_idle());
    }

    #[test]
    fn parameters_left_out_are_not_sent() {
        let parameters = MigrationParameters {
            downtime_limit: Some(300),
            ..Default::default()
        };
        assert_eq!(
            serde_json::to_value(parameters).unwrap(),
            json!({ "downtime-limit": 300 })
        );
    }
}
