//! What a PF's driver asks the switch for a VF's port: port profiles (IEEE 802.1Qbh), by `IFLA_VF_PORTS`.
//!
//! The kernel passes a request on to the driver and returns. The result is read afterwards, and no event reports when it changes.

use std::fmt;

use rtnetlink::LinkUnspec;
use rtnetlink::packet_core::{DefaultNla, Nla};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, LinkVfPort, VfPort as WirePort};

use super::{Netlink, NetlinkError};
use crate::types::Uuid;

// include/uapi/linux/if_link.h
const IFLA_PORT_VF: u16 = 1;
const IFLA_PORT_PROFILE: u16 = 2;
const IFLA_PORT_INSTANCE_UUID: u16 = 4;
const IFLA_PORT_HOST_UUID: u16 = 5;
const IFLA_PORT_REQUEST: u16 = 6;
const IFLA_PORT_RESPONSE: u16 = 7;
/// Octets of a profile's name, with the zero at its end.
const PORT_PROFILE_MAX: usize = 40;

/// What is asked of the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortRequest {
    /// To keep what the profile needs, for a VM that is yet to come (`PREASSOCIATE_RR`).
    Preassociate,
    /// To give the port its profile, and to let traffic through.
    Associate,
    /// To take the profile away.
    Disassociate,
}

impl PortRequest {
    const fn to_wire(self) -> u8 {
        match self {
            Self::Preassociate => 1,
            Self::Associate => 2,
            Self::Disassociate => 3,
        }
    }

    const fn from_wire(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Preassociate),
            2 => Some(Self::Associate),
            3 => Some(Self::Disassociate),
            _ => None,
        }
    }
}

impl fmt::Display for PortRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preassociate => "PREASSOCIATE_RR",
            Self::Associate => "ASSOCIATE",
            Self::Disassociate => "DISASSOCIATE",
        })
    }
}

/// What the switch has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortResponse {
    /// It is done.
    Success,
    /// Not yet.
    InProgress,
    /// The switch does not know the profile, or does not allow it here.
    Invalid,
    /// The port is in no state for that.
    BadState,
    /// The switch has not enough left for it.
    InsufficientResources,
    /// It failed.
    Error,
    /// A number that `if_link.h` does not have.
    Other(u16),
}

impl PortResponse {
    const fn from_wire(number: u16) -> Self {
        match number {
            0x100 => Self::Success,
            0x101 => Self::InProgress,
            0x102 => Self::Invalid,
            0x103 => Self::BadState,
            0x104 => Self::InsufficientResources,
            0x105 => Self::Error,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for PortResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("SUCCESS"),
            Self::InProgress => f.write_str("INPROGRESS"),
            Self::Invalid => f.write_str("INVALID"),
            Self::BadState => f.write_str("BADSTATE"),
            Self::InsufficientResources => f.write_str("INSUFFICIENT_RESOURCES"),
            Self::Error => f.write_str("ERROR"),
            Self::Other(number) => write!(f, "an unknown answer, {number:#x}"),
        }
    }
}

/// A profile, and the instance that asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortProfile {
    /// Its name at the switch, at most 39 octets.
    pub name: String,
    /// The NIC, as the switch knows it.
    pub instance: Uuid,
    /// The host, as the switch knows it.
    pub host: Uuid,
}

/// What was asked last of a VF's port, and how that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VfPort {
    /// What was asked; `None` for something that we never ask for.
    pub request: Option<PortRequest>,
    /// What the switch has answered; `None` where the driver does not say.
    pub response: Option<PortResponse>,
    /// The profile's name.
    pub profile: Option<String>,
    /// The NIC.
    pub instance: Option<Uuid>,
}

impl VfPort {
    /// The VF's index, and its port.
    fn from_wire(port: &LinkVfPort) -> Option<(u32, Self)> {
        let value = |kind: u16| {
            let found = port.0.iter().find(|nla| nla.kind() == kind)?;
            let mut value = vec![0; found.value_len()];
            found.emit_value(&mut value);
            Some(value)
        };
        let index = value(IFLA_PORT_VF)?.try_into().map(u32::from_ne_bytes).ok()?;
        // It is asked with 8 bits, and enic answers with 16.
        let request = match value(IFLA_PORT_REQUEST).as_deref() {
            Some([number]) => Some(u16::from(*number)),
            Some(&[a, b]) => Some(u16::from_ne_bytes([a, b])),
            _ => None,
        };
        let response = value(IFLA_PORT_RESPONSE).and_then(|value| value.try_into().ok());
        let name = |value: Vec<u8>| {
            let text = value.split(|octet| *octet == 0).next().unwrap_or_default();
            String::from_utf8_lossy(text).into_owned()
        };
        let port = Self {
            request: request
                .and_then(|number| u8::try_from(number).ok())
                .and_then(PortRequest::from_wire),
            response: response.map(u16::from_ne_bytes).map(PortResponse::from_wire),
            profile: value(IFLA_PORT_PROFILE).map(name),
            instance: value(IFLA_PORT_INSTANCE_UUID)
                .and_then(|value| value.try_into().ok())
                .map(Uuid::new),
        };
        Some((index, port))
    }
}

impl Netlink {
    /// What was asked last of the port of a PF's VF. `None` if nothing was, if the driver cannot do it, or if there is no such link.
    pub async fn vf_port(&self, pf: u32, vf: u16) -> Result<Option<VfPort>, NetlinkError> {
        let message = self.link_with_vfs(pf).await?;
        Ok(message.and_then(|message| {
            let mut ports = ports(&message).into_iter();
            ports
                .find(|(index, _)| *index == u32::from(vf))
                .map(|(_, port)| port)
        }))
    }

    /// Asks the switch for something for the port of a VF, through the PF with this link index, as libvirt does
    /// (`virNetDevVPortProfileOpSetLink`). The kernel's answer says that the driver has accepted the request; [`Self::vf_port`] shows the
    /// result.
    ///
    /// Only [`PortRequest::Disassociate`] goes without a profile. A driver that has no port profiles refuses with `EOPNOTSUPP`.
    pub async fn ask_port(
        &self,
        pf: u32,
        vf: u16,
        request: PortRequest,
        profile: Option<&PortProfile>,
    ) -> Result<(), NetlinkError> {
        let ports = LinkAttribute::VfPorts(vec![to_wire(vf, request, profile)]);
        let message = LinkUnspec::new_with_index(pf)
            .append_extra_attribute(ports)
            .build();
        let of = profile.map_or_else(String::new, |profile| {
            format!(" with port profile {}", profile.name)
        });
        let operation = format!("ask {request} for VF {vf} of link {pf}{of}");
        self.set("ask_port", operation, message).await
    }
}

fn to_wire(vf: u16, request: PortRequest, profile: Option<&PortProfile>) -> LinkVfPort {
    let mut port = Vec::new();
    let mut put = |kind, value| port.push(WirePort::Other(DefaultNla::new(kind, value)));
    if let Some(profile) = profile {
        // libvirt ends it after the name. Since Linux 6.10 enic takes it only at its full length, and older versions read that much.
        let mut name = profile.name.as_bytes().to_vec();
        name.truncate(PORT_PROFILE_MAX - 1);
        name.resize(PORT_PROFILE_MAX, 0);
        put(IFLA_PORT_PROFILE, name);
        put(IFLA_PORT_INSTANCE_UUID, profile.instance.octets().to_vec());
        put(IFLA_PORT_HOST_UUID, profile.host.octets().to_vec());
    }
    put(IFLA_PORT_VF, u32::from(vf).to_ne_bytes().to_vec());
    put(IFLA_PORT_REQUEST, vec![request.to_wire()]);
    LinkVfPort(port)
}

/// The ports of a PF's message, by the VF's index.
pub(super) fn ports(message: &LinkMessage) -> Vec<(u32, VfPort)> {
    let lists = message.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::VfPorts(list) => Some(list),
        _ => None,
    });
    lists.flatten().filter_map(VfPort::from_wire).collect()
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::{Emitable, Parseable};

    use super::*;

    fn profile() -> PortProfile {
        PortProfile {
            name: "gold".to_owned(),
            instance: Uuid::new([0x11; 16]),
            host: Uuid::new([0x22; 16]),
        }
    }

    /// A message of the kernel's: header and attributes.
    fn message(attributes: &[u8]) -> LinkMessage {
        let mut bytes = vec![0; 16];
        bytes.extend(attributes);
        LinkMessage::parse(&bytes).unwrap()
    }

    /// An attribute, as the kernel aligns it.
    fn nla(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// `IFLA_VF_PORTS` with these ports.
    fn list(ports: &[Vec<u8>]) -> Vec<u8> {
        let ports: Vec<u8> = ports.iter().flat_map(|port| nla(1, port)).collect();
        nla(24, &ports)
    }

    #[test]
    fn a_request_is_as_libvirt_writes_it() {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::VfPorts(vec![to_wire(
            3,
            PortRequest::Associate,
            Some(&profile()),
        )])];
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let mut name = b"gold".to_vec();
        name.resize(40, 0);
        let expected = list(&[[
            nla(IFLA_PORT_PROFILE, &name),
            nla(IFLA_PORT_INSTANCE_UUID, &[0x11; 16]),
            nla(IFLA_PORT_HOST_UUID, &[0x22; 16]),
            nla(IFLA_PORT_VF, &3u32.to_ne_bytes()),
            nla(IFLA_PORT_REQUEST, &[2]),
        ]
        .concat()]);
        assert_eq!(bytes[16..], expected);
        // A request to leave says only which VF it is about.
        let leaves = to_wire(3, PortRequest::Disassociate, None);
        let mut bytes = vec![0; leaves.value_len()];
        leaves.emit_value(&mut bytes);
        let expected = [
            nla(IFLA_PORT_VF, &3u32.to_ne_bytes()),
            nla(IFLA_PORT_REQUEST, &[3]),
        ];
        assert_eq!(bytes, expected.concat());
    }

    #[test]
    fn a_long_name_ends_where_the_kernel_ends_it() {
        let long = PortProfile {
            name: "x".repeat(60),
            ..profile()
        };
        let port = to_wire(0, PortRequest::Associate, Some(&long));
        let mut value = vec![1; port.0[0].value_len()];
        port.0[0].emit_value(&mut value);
        assert_eq!((value.len(), value[38], value[39]), (40, b'x', 0));
    }

    /// As enic answers: request and response with 16 bits, the name at its full length.
    #[test]
    fn an_answer_is_read() {
        let mut name = b"gold".to_vec();
        name.resize(40, 0);
        let port = |vf: u32, request: u16, response: u16| {
            [
                nla(IFLA_PORT_VF, &vf.to_ne_bytes()),
                nla(IFLA_PORT_REQUEST, &request.to_ne_bytes()),
                nla(IFLA_PORT_RESPONSE, &response.to_ne_bytes()),
                nla(IFLA_PORT_PROFILE, &name),
                nla(IFLA_PORT_INSTANCE_UUID, &[0x11; 16]),
            ]
            .concat()
        };
        let read = ports(&message(&list(&[
            port(0, 2, 0x101),
            port(5, 1, 0x102),
            port(6, 9, 7),
        ])));
        let expected = |request, response| VfPort {
            request,
            response: Some(response),
            profile: Some("gold".to_owned()),
            instance: Some(Uuid::new([0x11; 16])),
        };
        assert_eq!(
            read,
            [
                (
                    0,
                    expected(Some(PortRequest::Associate), PortResponse::InProgress)
                ),
                (
                    5,
                    expected(Some(PortRequest::Preassociate), PortResponse::Invalid)
                ),
                (6, expected(None, PortResponse::Other(7))),
            ]
        );
    }

    #[test]
    fn what_is_left_out_is_not_known() {
        let short = nla(IFLA_PORT_VF, &1u32.to_ne_bytes());
        let nobody = nla(IFLA_PORT_REQUEST, &[2]);
        let unknown = VfPort {
            request: None,
            response: None,
            profile: None,
            instance: None,
        };
        assert_eq!(ports(&message(&list(&[short, nobody]))), [(1, unknown)]);
        assert_eq!(ports(&message(&[])), []);
    }
}
