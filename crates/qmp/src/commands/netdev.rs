//! The network's host side (QEMU `qapi/net.json`).

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::string_enum;
use crate::{Client, QmpError};

/// What handles the packets of a tap netdev.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vhost {
    /// QEMU itself.
    Off,
    /// The kernel; QEMU opens `/dev/vhost-net` by itself.
    On,
    /// The kernel, by these open `/dev/vhost-net` descriptors, named by `getfd`: as many as the tap has queues.
    Fds(Vec<String>),
}

/// `netdev_add` of type `tap`, on descriptors passed before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapNetdev {
    /// The netdev's id.
    pub id: String,
    /// The tap's (or macvtap's) queues: descriptors named by [`Client::getfd`]. Names hold no `:`.
    pub fds: Vec<String>,
    /// What handles the packets.
    pub vhost: Vhost,
}

impl TapNetdev {
    fn arguments(&self) -> Value {
        let mut arguments = Map::from_iter([
            ("type".to_owned(), "tap".into()),
            ("id".to_owned(), self.id.as_str().into()),
        ]);
        // QEMU has one member for a single descriptor and another for a list.
        let mut put = |one: &str, many: &str, names: &[String]| match names {
            [name] => arguments.insert(one.to_owned(), name.as_str().into()),
            names => arguments.insert(many.to_owned(), names.join(":").into()),
        };
        put("fd", "fds", &self.fds);
        if let Vhost::Fds(names) = &self.vhost {
            put("vhostfd", "vhostfds", names);
        }
        arguments.insert("vhost".to_owned(), (self.vhost != Vhost::Off).into());
        Value::Object(arguments)
    }
}

string_enum! {
    /// Which frames of a kind a NIC takes (`RxState`).
    RxState {
        /// Those of its table.
        Normal = "normal",
        /// None.
        None = "none",
        /// All.
        All = "all",
    }
}

/// What `query-rx-filter` answers of one NIC (`RxFilterInfo`): what the guest asked its virtio NIC to receive.
///
/// At a reset it is promiscuous with empty tables, until the guest's driver says what it wants.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RxFilter {
    /// The NIC's id.
    pub name: String,
    /// Whether it takes every frame.
    pub promiscuous: bool,
    /// The address the guest has set.
    pub main_mac: String,
    /// Further unicast addresses.
    #[serde(default)]
    pub unicast_table: Vec<String>,
    /// Multicast addresses.
    #[serde(default)]
    pub multicast_table: Vec<String>,
    /// Which multicasts it takes.
    pub multicast: RxState,
    /// Whether the guest has more multicast addresses than QEMU keeps. The table is empty then.
    #[serde(default)]
    pub multicast_overflow: bool,
    /// Likewise of further unicast addresses.
    #[serde(default)]
    pub unicast_overflow: bool,
    /// Which VLANs it takes: all, of a guest whose driver does not filter them.
    pub vlan: RxState,
    /// VLAN ids.
    #[serde(default)]
    pub vlan_table: Vec<u16>,
}

/// When the packets of [`Client::announce_self`] are sent (`AnnounceParameters`): after `initial`, then after growing
/// pauses: each longer by `step`, none longer than `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announce {
    /// Before the first.
    pub initial: Duration,
    /// The longest pause.
    pub max: Duration,
    /// How many packets.
    pub rounds: u32,
    /// By how much each pause is longer than the one before.
    pub step: Duration,
}

impl Default for Announce {
    /// QEMU's own values after a migration.
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self {
            initial: ms(50),
            max: ms(550),
            rounds: 5,
            step: ms(100),
        }
    }
}

impl Client {
    /// `closefd`: closes a descriptor that no command consumed.
    pub async fn closefd(&self, name: &str) -> Result<(), QmpError> {
        self.run("closefd", &json!({ "fdname": name })).await
    }

    /// `netdev_add` of a tap.
    pub async fn netdev_add_tap(&self, tap: &TapNetdev) -> Result<(), QmpError> {
        self.run("netdev_add", &tap.arguments()).await
    }

    /// `netdev_del`. QEMU takes it also while a NIC still uses the netdev, which then loses its link.
    pub async fn netdev_del(&self, id: &str) -> Result<(), QmpError> {
        self.run("netdev_del", &json!({ "id": id })).await
    }

    /// `set_link` of a NIC's or netdev's id: the carrier that the guest sees.
    pub async fn set_link(&self, name: &str, up: bool) -> Result<(), QmpError> {
        self.run("set_link", &json!({ "name": name, "up": up })).await
    }

    /// `announce-self` on the NICs with these ids: gratuitous packets that teach switches where the MAC is. Returns
    /// at once. QEMU ignores names it does not know.
    pub async fn announce_self(&self, interfaces: &[&str], announce: Announce) -> Result<(), QmpError> {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let arguments = json!({
            "initial": ms(announce.initial),
            "max": ms(announce.max),
            "rounds": announce.rounds,
            "step": ms(announce.step),
            "interfaces": interfaces,
        });
        self.run("announce-self", &arguments).await
    }

    /// `query-rx-filter` of one NIC; none where there is no such NIC. QEMU sends `NIC_RX_FILTER_CHANGED` of a NIC once, and again
    /// only after this. For all NICs at once the answer would have no bound: a guest may have 4096 VLANs on each.
    pub async fn query_rx_filter(&self, device: &str) -> Result<Option<RxFilter>, QmpError> {
        match self
            .execute::<_, Vec<RxFilter>>("query-rx-filter", &json!({ "name": device }))
            .await
        {
            Ok(filters) => Ok(filters.into_iter().next()),
            // It is not there yet, or not any more.
            Err(error) if error.is_no_such_net_client() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tap(fds: &[&str], vhost: Vhost) -> Value {
        let fds = fds.iter().map(ToString::to_string).collect();
        TapNetdev {
            id: "hn".to_owned(),
            fds,
            vhost,
        }
        .arguments()
    }

    #[test]
    fn one_queue_and_several() {
        let plain = json!({"type":"tap","id":"hn","fd":"t0","vhost":false});
        assert_eq!(tap(&["t0"], Vhost::Off), plain);
        let one = json!({"type":"tap","id":"hn","fd":"t0","vhost":true,"vhostfd":"v0"});
        assert_eq!(tap(&["t0"], Vhost::Fds(vec!["v0".to_owned()])), one);
        let two = json!({"type":"tap","id":"hn","fds":"t0:t1","vhost":true,"vhostfds":"v0:v1"});
        assert_eq!(
            tap(&["t0", "t1"], Vhost::Fds(vec!["v0".to_owned(), "v1".to_owned()])),
            two
        );
    }
}
