//! Makes each macvtap of a VM receive what the guest asks for ([`rx_filter`] decides).
//!
//! QEMU sends `NIC_RX_FILTER_CHANGED` for a NIC once, and not again until it is queried. A guest can change its filter as
//! often as it likes; we query and change at most once a second.

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use futures::future::join_all;
use hybridnic_api::v1alpha1::Pairing;
use hybridnic_net::{multicast::Multicast, netlink::Netlink};
use hybridnic_qmp::{Client, EventError, commands::RxFilter};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{
    super::{Filtered, Vm},
    rx_filter,
};
use crate::{
    error::chain,
    host::Host,
    links::{self, LinkAt},
};

/// A guest that joins one group often joins more.
const GATHER: Duration = Duration::from_millis(100);
/// The least time between two looks at a guest that never stops changing; from [`GATHER`] on it doubles up to this.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest that a look may hold up a VM that waits to be started.
const IN_PAUSE: Duration = Duration::from_millis(200);
/// When what failed is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// Where the guest's wishes are put.
pub trait Lists: Sync {
    /// Makes a macvtap receive what the guest asks for; where it `rests`, nothing is taken off it.
    fn put(
        &self,
        macvtap: &LinkAt,
        filter: &RxFilter,
        rests: bool,
    ) -> impl Future<Output = Result<(), String>> + Send;
}

impl Lists for Host {
    async fn put(&self, macvtap: &LinkAt, filter: &RxFilter, rests: bool) -> Result<(), String> {
        match &macvtap.pod {
            None => match self.netlink.link(&macvtap.name).await {
                Ok(Some(link)) => put(&self.netlink, &self.multicast, link.index, filter, rests).await,
                Ok(None) => Ok(()),
                Err(error) => Err(chain(&error)),
            },
            Some(pod) => match links::sandbox_of(&self.sandboxes, pod, &macvtap.name) {
                Some(sandbox) => {
                    let index = pod.device.ifindex();
                    put(&sandbox.netlink, &sandbox.multicast, index, filter, rests).await
                }
                None => Ok(()),
            },
        }
    }
}

async fn put(
    netlink: &Netlink,
    multicast: &Multicast,
    macvtap: u32,
    filter: &RxFilter,
    rests: bool,
) -> Result<(), String> {
    let now = match multicast.received(macvtap).await {
        Ok(now) => now,
        // Its NIC's task says so.
        Err(error) if error.is_no_device() => return Ok(()),
        Err(error) => return Err(chain(&error)),
    };
    let mut change = rx_filter::change(filter, &now);
    if rests {
        change = change.without_loss(&now);
    }
    let rx_filter::Change { add, remove, all } = change;
    if !(add.is_empty() && remove.is_empty()) {
        debug!(device = filter.name, ?add, ?remove, "multicast");
        match multicast.change(macvtap, add, remove).await {
            Err(error) if !error.is_no_device() => return Err(chain(&error)),
            _ => {}
        }
    }
    if let Some(all) = all {
        debug!(device = filter.name, all, "every multicast");
        match netlink.set_all_multicast(macvtap, all).await {
            Err(error) if !error.is_no_device() => return Err(chain(&error)),
            _ => {}
        }
    }
    Ok(())
}

/// One look at all NICs of the VM; whether all went well.
pub async fn follow_once(vm: &Vm, client: &Client, lists: &impl Lists) -> bool {
    let standbys = standbys(vm);
    if standbys.is_empty() {
        return true;
    }
    let each = standbys
        .iter()
        .map(|(device, standby)| look_at(vm, client, lists, device, standby));
    join_all(each).await.into_iter().all(|ok| ok)
}

async fn look_at(vm: &Vm, client: &Client, lists: &impl Lists, device: &str, standby: &Standby) -> bool {
    match client.query_rx_filter(device).await {
        Ok(Some(filter)) => set(vm, standby, &filter, lists).await,
        // Its NIC's task knows.
        Ok(None) => true,
        Err(error) => {
            warn!(
                device,
                error = chain(&error),
                "QEMU does not say what the guest receives"
            );
            false
        }
    }
}

async fn set(vm: &Vm, standby: &Standby, filter: &RxFilter, lists: &impl Lists) -> bool {
    let failed = lists.put(&standby.macvtap, filter, standby.rests).await.err();
    if let Some(error) = &failed {
        warn!(
            device = filter.name,
            error, "the standby does not receive what the guest asks for"
        );
    }
    let ok = failed.is_none();
    let beyond = rx_filter::beyond(filter);
    vm.show_filtered(&standby.uid, Filtered { beyond, failed });
    ok
}

/// A look before a VM that has arrived is started: QEMU sends no event for a filter that came with it. [`follow`] looks again
/// once it runs.
pub async fn look_in_pause(vm: &Vm, client: &Client, lists: &impl Lists) {
    // It has logged what it could not do, and the VM does not wait for the rest.
    let _ = tokio::time::timeout(IN_PAUSE, follow_once(vm, client, lists)).await;
}

/// Looks at first, when a standby appears, when the VM has been paused, and whenever the guest has asked for something else. Ends when it is dropped.
pub async fn follow(vm: &Vm, client: &Client, lists: &impl Lists) -> Infallible {
    let mut events = client.subscribe();
    let mut nics = vm.nics_changed.subscribe();
    let mut shown = standbys(vm);
    let mut pace = Pace::default();
    if !shown.is_empty() {
        pace.ask(Instant::now());
    }
    let mut paused = false;
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(event) => match event.name.as_str() {
                    // A guest that does not run asks for nothing, and in a migration's pause QEMU has other things to do.
                    "STOP" => paused = true,
                    "RESUME" => {
                        paused = false;
                        if !shown.is_empty() {
                            pace.ask(Instant::now());
                        }
                    }
                    _ if event.rx_filter_changed().is_some_and(|id| shown.contains_key(id)) => {
                        pace.ask(Instant::now());
                    }
                    _ => {}
                },
                Err(EventError::Closed(_)) => std::future::pending().await,
                Err(_) => {
                    paused = false;
                    pace.ask(Instant::now());
                }
            },
            Ok(()) = nics.changed() => {
                let now = standbys(vm);
                if now != shown {
                    shown = now;
                    pace.ask(Instant::now());
                }
            }
            () = until(pace.due), if !paused => {
                let ok = follow_once(vm, client, lists).await;
                pace.looked(Instant::now(), ok);
            }
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// A standby that is followed.
#[derive(Debug, PartialEq, Eq)]
struct Standby {
    /// Its attachment's uid.
    uid: String,
    macvtap: LinkAt,
    /// A bond takes its groups off a member that is not active, and gives them back when it has gone over to it. So that they are
    /// not missed until then, they stay while the guest has its VF.
    rests: bool,
}

/// Each standby, by its device.
fn standbys(vm: &Vm) -> BTreeMap<String, Standby> {
    vm.nics()
        .into_iter()
        .filter_map(|(uid, nic)| {
            let standby = Standby {
                uid,
                macvtap: nic.macvtap?,
                rests: nic.vf && nic.pairing == Pairing::Bond,
            };
            Some((nic.standby_device, standby))
        })
        .collect()
}

/// When the next look is due.
#[derive(Debug, Default)]
struct Pace {
    looked: Option<Instant>,
    pause: Duration,
    due: Option<Instant>,
}

impl Pace {
    fn ask(&mut self, now: Instant) {
        let earliest = self.looked.map_or(now, |at| at + self.pause);
        let at = earliest.max(now + GATHER);
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    fn looked(&mut self, now: Instant, ok: bool) {
        let restless = self.looked.is_some_and(|at| now < at + 2 * PAUSE);
        self.pause = if restless {
            (2 * self.pause).min(PAUSE)
        } else {
            GATHER
        };
        self.looked = Some(now);
        self.due = (!ok).then(|| now + AGAIN);
    }
}

#[cfg(test)]
#[path = "rx_follow_tests.rs"]
mod tests;
