//! Where standbys' macvtaps are: in the host's network namespace or, as the link of a pod, in the pod's.
//!
//! The pod's namespace is reached through what [`Sandboxes`] hold, only for the length of a request, because a namespace that is held
//! keeps its links. If no sandbox holds it, a macvtap is gone once the machine has no device with its index, in any namespace. If it is
//! not found elsewhere, or a namespace cannot be reached, that proves nothing.

use std::io;

use futures::future::BoxFuture;
use hybridnic_api::conditions::reasons;
use hybridnic_net::{
    DeviceId,
    netlink::{Link, Netlink, NetlinkError},
    sysfs::Sysfs,
    tap_node,
};

use crate::{
    cni::{Sandbox, Sandboxes},
    error::HasReason,
    host::Host,
    journal::{Record, StandbyRecord},
    machine::handover::Macvtaps,
};

/// A macvtap's place, and what it is known by there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkAt {
    /// Its name.
    pub name: String,
    /// The pod whose link it is; `None`: it is in the host's network namespace.
    pub pod: Option<PodLink>,
}

/// A pod's link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// The pod's uid.
    pub pod_uid: String,
    /// The runtime's id of the pod's sandbox.
    pub container: String,
    /// The device of the pod that it is made for, from which its index follows.
    pub device: DeviceId,
}

impl LinkAt {
    /// Where the macvtap of a record is.
    pub fn of(record: &Record) -> Option<Self> {
        let standby = record.standby.as_ref()?;
        Some(Self {
            name: standby.macvtap.clone(),
            pod: standby.pod.as_ref().map(|pod| PodLink {
                pod_uid: record.spec.pod.uid.clone(),
                container: pod.container.clone(),
                device: pod.device,
            }),
        })
    }
}

impl From<&str> for LinkAt {
    fn from(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            pod: None,
        }
    }
}

/// The links of the node.
#[derive(Clone, Debug)]
pub struct Links {
    /// The host's.
    pub host: Netlink,
    /// The pods'.
    pub sandboxes: Sandboxes,
    /// Which macvtaps there are, in whatever namespace.
    pub sysfs: Sysfs,
}

impl Macvtaps for Links {
    fn set<'a>(&'a self, macvtap: &'a LinkAt, up: bool) -> BoxFuture<'a, Result<bool, NetlinkError>> {
        Box::pin(async move {
            let done = match &macvtap.pod {
                None => {
                    let Some(link) = self.host.link(&macvtap.name).await? else {
                        return Ok(false);
                    };
                    self.host.set_up(link.index, up).await
                }
                // One request: its VM may stand still.
                Some(pod) => {
                    let index = pod.device.ifindex();
                    let Some(sandbox) = sandbox_of(&self.sandboxes, pod, &macvtap.name) else {
                        return match tap_node::numbers(&self.sysfs, index) {
                            Ok(numbers) if numbers.is_empty() => Ok(false),
                            Ok(_) => Err(out_of_reach(macvtap, "the pod's network is not reached")),
                            Err(error) => Err(out_of_reach(macvtap, &error.to_string())),
                        };
                    };
                    sandbox.netlink.set_up(index, up).await
                }
            };
            match done {
                Ok(()) => Ok(true),
                Err(error) if error.is_no_device() => Ok(false),
                Err(error) => Err(error),
            }
        })
    }
}

fn out_of_reach(macvtap: &LinkAt, why: &str) -> NetlinkError {
    NetlinkError::Unexpected {
        operation: format!("set link {} up or down", macvtap.name),
        detail: why.to_owned(),
    }
}

/// The sandbox that a pod's link was made in, while it counts.
pub fn sandbox_of(sandboxes: &Sandboxes, pod: &PodLink, name: &str) -> Option<Sandbox> {
    let sandbox = sandboxes.of(&pod.pod_uid, name);
    sandbox.filter(|sandbox| sandbox.container == pod.container)
}

/// There is no way to a standby's macvtap.
#[derive(Debug, thiserror::Error)]
pub enum WayError {
    /// It is not known whether there is such a macvtap.
    #[error(transparent)]
    Unread(io::Error),
    /// It is somewhere.
    #[error(
        "the standby {macvtap} is in a network namespace of the pod's that cannot be reached at the moment, on {pf_name}"
    )]
    OutOfReach {
        /// Its name.
        macvtap: String,
        /// The name of its PF.
        pf_name: String,
    },
    /// It is nowhere.
    #[error("the macvtap has gone away")]
    Gone,
}

impl HasReason for WayError {
    fn reason(&self) -> &'static str {
        reasons::STANDBY_FAILED
    }
}

/// The way to a standby's macvtap.
#[derive(Debug)]
pub enum Way {
    /// It is the host's.
    Host(Netlink),
    /// It is a pod's.
    Pod(Box<Sandbox>),
    /// It was not made yet, or has gone with its network namespace.
    None,
}

impl Way {
    /// The way to a standby. An error means that it is not known where that leads.
    pub fn to(host: &Host, record: &Record, standby: &StandbyRecord) -> Result<Self, WayError> {
        if crate::nic::ids::interface(&record.spec).is_none() {
            return Ok(Self::Host(host.netlink.clone()));
        }
        let at = LinkAt::of(record);
        let Some((pod, name)) = at.and_then(|at| Some((at.pod?, at.name))) else {
            return Ok(Self::None);
        };
        if let Some(sandbox) = sandbox_of(&host.sandboxes, &pod, &name) {
            return Ok(Self::Pod(Box::new(sandbox)));
        }
        let numbers = tap_node::numbers(&host.sysfs, pod.device.ifindex()).map_err(WayError::Unread)?;
        if numbers.is_empty() {
            return Ok(Self::None);
        }
        Err(WayError::OutOfReach {
            macvtap: standby.macvtap.clone(),
            pf_name: standby.pf_name.clone(),
        })
    }

    /// A connection to where it is.
    pub fn netlink(&self) -> Option<&Netlink> {
        match self {
            Self::Host(netlink) => Some(netlink),
            Self::Pod(sandbox) => Some(&sandbox.netlink),
            Self::None => None,
        }
    }

    /// The same, of a standby that must be there.
    pub fn must(&self) -> Result<&Netlink, WayError> {
        self.netlink().ok_or(WayError::Gone)
    }

    /// The macvtap.
    pub async fn find(&self, standby: &StandbyRecord) -> Result<Option<Link>, NetlinkError> {
        match (self.netlink(), &standby.pod) {
            (None, _) => Ok(None),
            (Some(netlink), None) => netlink.link(&standby.macvtap).await,
            (Some(netlink), Some(pod)) => netlink.link_by_index(pod.device.ifindex()).await,
        }
    }
}
