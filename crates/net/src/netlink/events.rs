use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::channel::mpsc::UnboundedReceiver;
use futures::{Stream, StreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::{AsyncSocket, SocketAddr};
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio_util::task::AbortOnDropHandle;

use super::{Link, NetlinkError};

/// Room for some thousand events while the reader is busy; the kernel doubles it for its own book-keeping.
const RECEIVE_BUFFER: usize = 1 << 20;

/// What happened to a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// It appeared, or something about it changed: flags, carrier, address, MTU, master, a VF's settings.
    Changed(Box<Link>),
    /// It is gone, or moved to another namespace.
    Removed {
        /// The index it had.
        index: u32,
        /// The name it had.
        name: String,
    },
    /// A link got an IP address, or lost one.
    Address {
        /// The link's index.
        index: u32,
    },
    /// Events were lost. Read the links again.
    Resync,
}

/// Events of links and their addresses, of a network namespace, from the moment it is opened; ends only with the connection.
#[derive(Debug)]
pub struct LinkEvents {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    _connection: AbortOnDropHandle<()>,
}

impl LinkEvents {
    /// Subscribes in the calling thread's network namespace. Must be called within a tokio runtime. Events that are not
    /// taken are kept in memory, so keep reading.
    pub fn open() -> Result<Self, NetlinkError> {
        let (mut connection, _, messages) = new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ])
        .map_err(NetlinkError::Open)?;
        let socket = connection.socket_mut().socket_mut();
        socket.set_rx_buf_sz(RECEIVE_BUFFER).map_err(NetlinkError::Open)?;
        Ok(Self {
            messages,
            _connection: AbortOnDropHandle::new(tokio::spawn(connection)),
        })
    }
}

impl Stream for LinkEvents {
    type Item = LinkEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<LinkEvent>> {
        loop {
            match ready!(self.messages.poll_next_unpin(cx)) {
                None => return Poll::Ready(None),
                Some((message, _)) => {
                    if let Some(event) = event(message.payload) {
                        return Poll::Ready(Some(event));
                    }
                }
            }
        }
    }
}

pub(super) fn event(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<LinkEvent> {
    match payload {
        NetlinkPayload::Overrun(_) => Some(LinkEvent::Resync),
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message)) if is_of_link(&message) => {
            Some(LinkEvent::Changed(Box::new(Link::from_message(&message))))
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(message)) if is_of_link(&message) => {
            let Link { index, name, .. } = Link::from_message(&message);
            Some(LinkEvent::Removed { index, name })
        }
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewAddress(message) | RouteNetlinkMessage::DelAddress(message),
        ) => Some(LinkEvent::Address {
            index: message.header.index,
        }),
        _ => None,
    }
}

/// A bridge sends its ports' state to the same group: with that family, `RTM_DELLINK` says that a link has left the
/// bridge, not that it is gone.
fn is_of_link(message: &LinkMessage) -> bool {
    message.header.interface_family == AddressFamily::Unspec
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(family: AddressFamily) -> Option<LinkEvent> {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.interface_family = family;
        event(NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(
            message,
        )))
    }

    #[test]
    fn leaving_a_bridge_is_not_the_end() {
        assert_eq!(removed(AddressFamily::Bridge), None);
        assert_eq!(
            removed(AddressFamily::Unspec),
            Some(LinkEvent::Removed {
                index: 7,
                name: String::new()
            })
        );
    }

    #[test]
    fn lost_events_ask_for_a_resync() {
        assert_eq!(
            event(NetlinkPayload::Overrun(Vec::new())),
            Some(LinkEvent::Resync)
        );
    }
}
