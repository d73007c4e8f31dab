//! Links and VF settings over rtnetlink.
//!
//! The kernel works on a request inside the sender's `sendmsg`, under a lock that other requests and drivers can hold
//! for seconds. [`Netlink`] therefore has its socket on a thread of its own: callers wait on a channel, and their
//! deadline holds even while the kernel does not answer.

mod address;
mod error;
mod events;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod guard;
mod link;
mod macvtap;
mod port;
mod socket;
mod vf;
mod vlan;

use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{LinkExtentMask, LinkMessage};
use rtnetlink::sys::AsyncSocket;
use rtnetlink::{Handle, LinkUnspec};

pub use error::NetlinkError;
pub use events::{LinkEvent, LinkEvents};
pub use guard::Guard;
pub use link::{Counters, Link, LinkKind};
pub use macvtap::{MacvtapMode, MacvtapSpec, Place};
pub use port::{PortProfile, PortRequest, PortResponse, VfPort};
pub use vf::{VfConfig, VfLinkState, VfSetting};
pub use vlan::VlanSpec;

use socket::ReadableSocket;

/// How long a request may take unless [`Netlink::with_deadline`] says otherwise.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

/// A connection to the kernel's rtnetlink, in the network namespace of the thread that opened it. Clones share it;
/// requests are answered one after the other.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: Handle,
    deadline: Duration,
    on_error: OnError,
}

type Told = dyn Fn(&'static str, &NetlinkError) + Send + Sync;

/// Called for requests that failed.
#[derive(Clone, Default)]
struct OnError(Option<Arc<Told>>);

impl fmt::Debug for OnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "OnError(set)"
        } else {
            "OnError"
        })
    }
}

impl Netlink {
    /// Opens a connection in the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::connect(None)
    }

    /// A connection through an rtnetlink socket that another process has opened, in any network namespace. It keeps that
    /// namespace, see [`crate::netns`].
    ///
    /// The kernel grants what both may do: the process that opened the socket, and this one (`netlink_ns_capable`).
    pub fn from_socket(socket: OwnedFd) -> Result<Self, NetlinkError> {
        Self::connect(Some(socket))
    }

    fn connect(given: Option<OwnedFd>) -> Result<Self, NetlinkError> {
        let (report, opened) = mpsc::sync_channel(1);
        std::thread::Builder::new()
            .name("netlink".into())
            .spawn(move || serve(given, &report))
            .map_err(NetlinkError::Open)?;
        let gone = || io::Error::other("the connection's thread ended");
        let handle = opened
            .recv()
            .map_err(|_| gone())
            .flatten()
            .map_err(NetlinkError::Open)?;
        Ok(Self {
            handle,
            deadline: DEFAULT_DEADLINE,
            on_error: OnError::default(),
        })
    }

    /// The same connection, which calls `told` with each request that failed: its kind, one of a few words such as `set_vf`,
    /// and the error. A link that is not there is no failure.
    #[must_use]
    pub fn on_error(&self, told: impl Fn(&'static str, &NetlinkError) + Send + Sync + 'static) -> Self {
        Self {
            on_error: OnError(Some(Arc::new(told))),
            ..self.clone()
        }
    }

    /// The same connection, with another deadline for each request.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self {
            deadline,
            ..self.clone()
        }
    }

    /// All links of the namespace.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let request = self.handle.link().get().execute();
        let messages: Vec<LinkMessage> = self
            .answer("list_links", "list the links", request.try_collect())
            .await?;
        Ok(messages.iter().map(Link::from_message).collect())
    }

    /// A link by its name; `None` where there is none.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let request = self.handle.link().get().match_name(name).execute();
        self.found("read_link", format!("read link {name}"), request.try_collect())
            .await
    }

    /// A link by its index; `None` where there is none.
    pub async fn link_by_index(&self, index: u32) -> Result<Option<Link>, NetlinkError> {
        let request = self.handle.link().get().match_index(index).execute();
        self.found("read_link", format!("read link {index}"), request.try_collect())
            .await
    }

    /// Sets a link administratively up or down.
    pub async fn set_up(&self, index: u32, up: bool) -> Result<(), NetlinkError> {
        let link = LinkUnspec::new_with_index(index);
        let link = if up { link.up() } else { link.down() };
        let state = if up { "up" } else { "down" };
        self.set(
            "set_link_up_or_down",
            format!("set link {index} {state}"),
            link.build(),
        )
        .await
    }

    /// Makes a link take every multicast, or only those of its list.
    pub async fn set_all_multicast(&self, index: u32, all: bool) -> Result<(), NetlinkError> {
        let link = LinkUnspec::new_with_index(index).allmulticast(all).build();
        let state = if all { "on" } else { "off" };
        self.set(
            "set_all_multicast",
            format!("set allmulticast of link {index} {state}"),
            link,
        )
        .await
    }

    /// Sets a link's MTU, in octets.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        let link = LinkUnspec::new_with_index(index).mtu(mtu).build();
        self.set("set_mtu", format!("set the MTU of link {index} to {mtu}"), link)
            .await
    }

    /// Deletes a link; `false` where it was gone already.
    pub async fn delete_link(&self, index: u32) -> Result<bool, NetlinkError> {
        match self
            .answer(
                "delete_link",
                format!("delete link {index}"),
                self.handle.link().del(index).execute(),
            )
            .await
        {
            Ok(()) => Ok(true),
            Err(e) if e.is_no_device() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Link with VF table. `SkipStats` leaves out the VFs' counters, or those of 127 VFs would not fit the 64 KiB that
    /// one attribute may have.
    async fn link_with_vfs(&self, index: u32) -> Result<Option<LinkMessage>, NetlinkError> {
        let mask = vec![LinkExtentMask::Vf, LinkExtentMask::SkipStats];
        let what = format!("read the VFs of link {index}");
        self.link_with(index, mask, "read_vfs", what).await
    }

    /// The same with the VFs' counters.
    async fn link_with_counters(&self, index: u32) -> Result<Option<LinkMessage>, NetlinkError> {
        let what = format!("read the counters of the VFs of link {index}");
        self.link_with(index, vec![LinkExtentMask::Vf], "read_vf_counters", what)
            .await
    }

    async fn link_with(
        &self,
        index: u32,
        mask: Vec<LinkExtentMask>,
        kind: &'static str,
        what: String,
    ) -> Result<Option<LinkMessage>, NetlinkError> {
        let request = self
            .handle
            .link()
            .get()
            .set_filter_mask(AddressFamily::Unspec, mask)
            .match_index(index)
            .execute();
        self.first(kind, what, request.try_collect()).await
    }

    async fn set(
        &self,
        kind: &'static str,
        operation: impl Into<String>,
        message: LinkMessage,
    ) -> Result<(), NetlinkError> {
        self.answer(kind, operation, self.handle.link().set(message).execute())
            .await
    }

    async fn found(
        &self,
        kind: &'static str,
        operation: String,
        request: impl Future<Output = Result<Vec<LinkMessage>, rtnetlink::Error>>,
    ) -> Result<Option<Link>, NetlinkError> {
        Ok(self
            .first(kind, operation, request)
            .await?
            .as_ref()
            .map(Link::from_message))
    }

    async fn first(
        &self,
        kind: &'static str,
        operation: String,
        request: impl Future<Output = Result<Vec<LinkMessage>, rtnetlink::Error>>,
    ) -> Result<Option<LinkMessage>, NetlinkError> {
        match self.answer(kind, operation, request).await {
            Ok(messages) => Ok(messages.into_iter().next()),
            Err(e) if e.is_no_device() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Waits for an answer, up to the deadline. `kind` is a word for `operation`, without what is in it. The kernel may still act on a request whose answer came too late.
    async fn answer<T>(
        &self,
        kind: &'static str,
        operation: impl Into<String>,
        request: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, NetlinkError> {
        let result = match tokio::time::timeout(self.deadline, request).await {
            Ok(result) => result.map_err(|error| NetlinkError::of(operation.into(), error)),
            Err(_) => Err(NetlinkError::Timeout {
                operation: operation.into(),
                after: self.deadline,
            }),
        };
        if let (Err(error), Some(told)) = (&result, &self.on_error.0)
            && !error.is_no_device()
        {
            told(kind, error);
        }
        result
    }
}

/// Runs a connection until its last handle is gone.
fn serve(given: Option<OwnedFd>, report: &mpsc::SyncSender<io::Result<Handle>>) {
    let connect = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        let guard = runtime.enter();
        let (mut connection, handle, _) = rtnetlink::new_connection_with_socket::<ReadableSocket>()?;
        if let Some(given) = given {
            // SAFETY: nobody else has it, and it is open.
            *connection.socket_mut() = unsafe { ReadableSocket::from_raw_fd(given.into_raw_fd()) };
        }
        let socket = connection.socket_mut().socket_mut();
        socket.set_ext_ack(true)?;
        // Without the request in front, the text of an extended ack has one place to be.
        socket.set_cap_ack(true)?;
        drop(guard);
        Ok((runtime, connection, handle))
    };
    match connect() {
        Ok((runtime, connection, handle)) => {
            // If this fails the caller has gone, and then the connection ends by itself.
            let _ = report.send(Ok(handle));
            runtime.block_on(connection);
        }
        Err(error) => {
            let _ = report.send(Err(error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request that the kernel never answers, as when another holds its lock.
    #[tokio::test]
    async fn no_answer_in_time_is_an_error() {
        let netlink = Netlink::open().unwrap();
        let (sender, told) = mpsc::channel();
        let impatient = netlink
            .with_deadline(Duration::from_millis(1))
            .on_error(move |kind, error| sender.send((kind, error.to_string())).unwrap());
        let error = impatient
            .answer(
                "set_link_up_or_down",
                "set link 3 up",
                std::future::pending::<Result<(), _>>(),
            )
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "no answer from the kernel within 1ms: set link 3 up"
        );
        assert_eq!(told.recv().unwrap(), ("set_link_up_or_down", error.to_string()));
    }

    #[tokio::test]
    async fn links_can_be_read_by_anybody() {
        let netlink = Netlink::open().unwrap();
        let links = netlink.links().await.unwrap();
        let lo = links.iter().find(|link| link.name == "lo").unwrap();
        assert_eq!(
            netlink.link("lo").await.unwrap().map(|link| link.index),
            Some(lo.index)
        );
        assert_eq!(netlink.link("no-such-link").await.unwrap(), None);
    }
}
