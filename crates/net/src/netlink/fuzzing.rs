//! A message of rtnetlink, read as each kind of message that we read.

use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;

use super::{LinkEvent, NetlinkError, VfConfig, VfPort, address, error, events, guard, port, socket, vf};

/// What is read of one message.
#[derive(Debug, Default)]
pub struct Read {
    /// What happened to a link.
    pub event: Option<LinkEvent>,
    /// The VFs of a link.
    pub vfs: Vec<VfConfig>,
    /// The VFs' ports at the switch.
    pub ports: Vec<(u32, VfPort)>,
    /// What the kernel says of an error.
    pub refused: Option<String>,
}

/// Reads a message; `None` where the crates below cannot.
pub fn read(message: &[u8]) -> Option<Read> {
    let mut message = message.to_vec();
    socket::fill_empty_ports(&mut message);
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&message).ok()?;
    let mut read = Read::default();
    match &message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
            (read.vfs, read.ports) = (vf::table(link), port::ports(link));
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(message)) => {
            let _ = address::address(message);
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
            let _ = address::ways_out(route);
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewTrafficFilter(filter)) => {
            for way in guard::Way::ALL {
                let _ = guard::Key::of(way, filter);
            }
        }
        NetlinkPayload::Error(refusal) => {
            read.refused = error::extended_ack(refusal);
            let refusal = rtnetlink::Error::NetlinkError(refusal.clone());
            let _ = NetlinkError::of("ask".to_owned(), refusal).to_string();
        }
        _ => {}
    }
    read.event = events::event(message.payload);
    Some(read)
}
