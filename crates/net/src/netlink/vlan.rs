use rtnetlink::packet_route::link::VlanProtocol as WireVlanProtocol;
use rtnetlink::{LinkVlan, QosMapping};

use super::{Link, Netlink, NetlinkError};
use crate::types::VlanProtocol;

/// Socket priorities that are mapped to the tag's priority; a tap's frames have 0.
const PRIORITIES: std::ops::Range<u32> = 0..8;

/// A VLAN device to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VlanSpec {
    /// Its name, at most 15 octets.
    pub name: String,
    /// Index of the link it is stacked on: the PF.
    pub lower: u32,
    /// VLAN id, 1 to 4094.
    pub id: u16,
    /// Tag protocol.
    pub protocol: VlanProtocol,
    /// Priority (PCP, 0 to 7) of all that it sends.
    pub qos: u8,
}

impl Netlink {
    /// Makes a VLAN device, administratively down. A name, or a VLAN of that protocol on that link, that exists is
    /// refused with `EEXIST`; a kernel without the module 8021q says `EOPNOTSUPP`.
    pub async fn create_vlan(&self, spec: &VlanSpec) -> Result<Link, NetlinkError> {
        let VlanSpec {
            name,
            lower,
            id,
            protocol,
            qos,
        } = spec;
        let wire_protocol = match protocol {
            VlanProtocol::Dot1q => WireVlanProtocol::Ieee8021Q,
            VlanProtocol::Dot1ad => WireVlanProtocol::Ieee8021Ad,
        };
        let mut link = LinkVlan::new(name, *lower, *id).protocol(wire_protocol).down();
        if *qos != 0 {
            link = link.qos(
                [],
                PRIORITIES.map(|from| QosMapping {
                    from,
                    to: (*qos).into(),
                }),
            );
        }
        let operation = format!("create VLAN device {name} with id {id} ({protocol}) on link {lower}");
        self.answer(
            "create_vlan",
            &*operation,
            self.handle.link().add(link.build()).execute(),
        )
        .await?;
        let link = self.link(name).await?;
        link.ok_or_else(|| NetlinkError::Unexpected {
            operation,
            detail: "it does not exist".into(),
        })
    }

    /// The device of that VLAN on a lower link, no matter what made it.
    pub async fn vlan_on(
        &self,
        lower: u32,
        id: u16,
        protocol: VlanProtocol,
    ) -> Result<Option<Link>, NetlinkError> {
        Ok(self
            .links()
            .await?
            .into_iter()
            .find(|link| link.is_vlan_on(lower, id, protocol)))
    }
}
