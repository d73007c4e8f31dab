//! The network namespace of a pod, for as long as its sandbox counts.

use std::{fs::File, io, os::fd::AsFd as _, sync::Arc, time::Duration};

use hybridnic_cni::wire::{Attachment, Pod};
use hybridnic_net::{
    DeviceId,
    multicast::{Multicast, MulticastError},
    netlink::{LinkKind, Netlink, NetlinkError},
    netns::NetNs,
};
use tokio::{
    sync::{OwnedRwLockReadGuard, RwLock},
    time::timeout,
};
use tracing::{info, warn};

use super::registry::Key;
use crate::broker::{self, Broker};

/// How long work in a sandbox that ends may go on: as long as the kernel may take for a request, and some more.
const LEAVE: Duration = Duration::from_secs(15);

/// Why there is no way into the network namespace of a pod.
#[derive(Debug, thiserror::Error)]
pub enum NoWay {
    /// The broker makes no socket there.
    #[error("the broker cannot make a socket there")]
    Broker(#[source] io::Error),
    /// The namespace of a socket is not known.
    #[error("the kernel does not say which network namespace it is")]
    Unknown(#[source] io::Error),
    /// There is no connection.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// There are no lists.
    #[error(transparent)]
    Multicast(#[from] MulticastError),
}

/// A pod's network namespace, and the ways into it. A copy of any part keeps the namespace and the macvtap in it.
#[derive(Clone, Debug)]
pub struct Inside {
    /// The namespace.
    pub netns: NetNs,
    /// A connection in it.
    pub netlink: Netlink,
    /// What its links receive.
    pub multicast: Multicast,
}

impl Inside {
    /// The network namespace of a pod, by a descriptor or a process.
    pub async fn of(broker: &dyn Broker, pod: broker::Pod<'_>) -> Result<Self, NoWay> {
        let socket = broker.netlink(pod).await.map_err(NoWay::Broker)?;
        let netns = NetNs::of_socket(socket.as_fd()).map_err(NoWay::Unknown)?;
        let listing = broker.groups(broker::Pod::NetNs(&netns)).await;
        let lists = socket.try_clone().map_err(NoWay::Broker)?;
        Ok(Self {
            multicast: Multicast::of(lists, File::from(listing.map_err(NoWay::Broker)?))?,
            netlink: Netlink::from_socket(socket)?,
            netns,
        })
    }
}

/// A sandbox that a runtime has made for a pod, with one interface of ours.
#[derive(Debug)]
pub(super) struct Held {
    pub attachment: Attachment,
    /// As logs name it.
    pub pod: String,
    pub key: Key,
    pub device: DeviceId,
    inside: Arc<RwLock<Option<Inside>>>,
}

/// A sandbox that counts now. It does not end while this exists, so keep this only for the length of a request: a runtime that
/// takes the sandbox away waits.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// The runtime's id of it.
    pub container: String,
    /// The pod's network namespace.
    pub netns: NetNs,
    /// A connection in it.
    pub netlink: Netlink,
    /// What its links receive.
    pub multicast: Multicast,
    /// The device that the kubelet has given the pod.
    pub device: DeviceId,
    /// Whether the runtime waits for the interface.
    pub waits: bool,
    _held: Arc<OwnedRwLockReadGuard<Option<Inside>>>,
}

impl Held {
    pub fn new(attachment: Attachment, pod: &Pod, device: DeviceId, inside: Inside) -> Self {
        Self {
            key: Key {
                pod_uid: pod.uid.clone(),
                ifname: attachment.ifname.clone(),
            },
            attachment,
            pod: format!("{}/{}", pod.namespace, pod.name),
            device,
            inside: Arc::new(RwLock::new(Some(inside))),
        }
    }

    /// `None` once it ends.
    pub fn current(&self, waits: bool) -> Option<Sandbox> {
        let held = Arc::clone(&self.inside).try_read_owned().ok()?;
        let Inside {
            netns,
            netlink,
            multicast,
        } = held.clone()?;
        Some(Sandbox {
            container: self.attachment.container_id.clone(),
            netns,
            netlink,
            multicast,
            device: self.device,
            waits,
            _held: Arc::new(held),
        })
    }

    /// Removes its interface and releases its network namespace. May be done twice; if it fails it can be tried again.
    pub async fn end(&self) -> Result<(), NetlinkError> {
        // By then everything that works in it has ended, unless the kernel does not answer.
        let inside = timeout(LEAVE, self.inside.write()).await;
        let Ok(mut inside) = inside else {
            warn!(
                pod = self.pod,
                interface = self.attachment.ifname,
                "the pod's sandbox has been in use for too long"
            );
            return Err(NetlinkError::Timeout {
                operation: format!("remove {} from the pod's sandbox", self.attachment.ifname),
                after: LEAVE,
            });
        };
        if let Some(Inside { netlink, .. }) = &*inside {
            remove(netlink, &self.attachment.ifname).await?;
            *inside = None;
            info!(
                pod = self.pod,
                interface = self.attachment.ifname,
                sandbox = self.attachment.container_id,
                "the pod's sandbox is over"
            );
        }
        Ok(())
    }
}

/// Removes a macvtap of a namespace; anything else of that name is not ours.
pub(super) async fn remove(inside: &Netlink, ifname: &str) -> Result<(), NetlinkError> {
    if let Some(link) = inside.link(ifname).await?
        && matches!(link.kind, LinkKind::Macvtap { .. })
    {
        inside.delete_link(link.index).await?;
    }
    Ok(())
}
