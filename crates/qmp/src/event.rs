//! Events: what QEMU reports by itself.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, timeout_at};

use crate::commands::MigrationStatus;
use crate::error::CloseReason;

/// QEMU's clock at an event: the host's wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Timestamp {
    /// Seconds since the epoch; -1 if QEMU could not read its clock.
    pub seconds: i64,
    /// Microseconds within the second.
    pub microseconds: i64,
}

/// One event, known or not.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The event's name, for example `DEVICE_DELETED`.
    pub name: String,
    /// Its data, `Value::Null` if it has none.
    pub data: Value,
    /// When QEMU emitted it.
    pub timestamp: Option<Timestamp>,
}

impl Event {
    fn field(&self, name: &str) -> Option<&str> {
        self.data.get(name)?.as_str()
    }

    /// `DEVICE_DELETED` of the device with this id. A virtio device's backend sends one too, without an id.
    pub fn is_device_deleted(&self, id: &str) -> bool {
        self.name == "DEVICE_DELETED" && self.field("device") == Some(id)
    }

    /// `DEVICE_UNPLUG_GUEST_ERROR` of the device with this id: the guest refused to let go. QEMU 10 never sends it
    /// for PCI devices on x86; a deadline is needed nevertheless.
    pub fn is_unplug_refused(&self, id: &str) -> bool {
        self.name == "DEVICE_UNPLUG_GUEST_ERROR" && self.field("device") == Some(id)
    }

    /// `FAILOVER_NEGOTIATED`: the guest's driver of the virtio-net device with this id took `VIRTIO_NET_F_STANDBY`.
    /// It comes at each guest reset, and at the destination while the stream is loaded.
    pub fn is_failover_negotiated(&self, id: &str) -> bool {
        self.name == "FAILOVER_NEGOTIATED" && self.field("device-id") == Some(id)
    }

    /// `RESUME`: the vCPUs run, at a migration's destination for the first time.
    pub fn is_resume(&self) -> bool {
        self.name == "RESUME"
    }

    /// `NIC_RX_FILTER_CHANGED`: the id of the NIC whose guest asks it to receive something else than before.
    pub fn rx_filter_changed(&self) -> Option<&str> {
        (self.name == "NIC_RX_FILTER_CHANGED").then(|| self.field("name"))?
    }

    /// The new status of a `MIGRATION` event. Needs the capability `events`.
    pub fn migration_status(&self) -> Option<MigrationStatus> {
        (self.name == "MIGRATION").then(|| self.field("status").map(MigrationStatus::from))?
    }
}

/// Why there is no next event.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EventError {
    /// The receiver was too slow and this many events are lost to it: read the state again, then go on.
    #[error("{0} events were lost")]
    Lagged(u64),
    /// The session is over.
    #[error("the QMP session is closed")]
    Closed(#[source] CloseReason),
    /// The deadline of [`wait_event`] passed.
    #[error("the event did not come in time")]
    Timeout,
}

/// Receives all events from the moment of [`Client::subscribe`](crate::Client::subscribe) on.
#[derive(Debug)]
pub struct Events {
    pub(crate) events: broadcast::Receiver<Arc<Event>>,
    pub(crate) closed: watch::Receiver<Option<CloseReason>>,
}

impl Events {
    /// The next event. Events that came before the end of the session are delivered first. Cancel safe.
    pub async fn recv(&mut self) -> Result<Arc<Event>, EventError> {
        self.events.recv().await.map_err(|e| match e {
            broadcast::error::RecvError::Lagged(lost) => EventError::Lagged(lost),
            broadcast::error::RecvError::Closed => {
                EventError::Closed(self.closed.borrow().clone().unwrap_or(CloseReason::Local))
            }
        })
    }
}

/// Waits for the first event that `predicate` accepts and drops the ones before it. Cancel safe.
///
/// Subscribe first, then send the command, then wait: an event can come before its command's reply.
pub async fn wait_event(
    events: &mut Events,
    deadline: Instant,
    mut predicate: impl FnMut(&Event) -> bool,
) -> Result<Arc<Event>, EventError> {
    let wanted = async {
        loop {
            let event = events.recv().await?;
            if predicate(&event) {
                return Ok(event);
            }
        }
    };
    timeout_at(deadline, wanted)
        .await
        .unwrap_or(Err(EventError::Timeout))
}
