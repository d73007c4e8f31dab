use rtnetlink::packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, MacVtapMode};
use rtnetlink::{LinkMacVtap, LinkUnspec};

use super::{Link, Netlink, NetlinkError};
use crate::types::MacAddr;

/// A macvtap to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MacvtapSpec {
    /// Its name, at most 15 octets.
    pub name: String,
    /// Index of the link it is stacked on: the PF, or a VLAN device on it.
    pub lower: u32,
    /// Its MAC, that of the guest's NIC.
    pub mac: MacAddr,
    /// MTU in octets, at most that of the lower link; the lower link's where `None`.
    pub mtu: Option<u32>,
    /// A text to know it by, for whoever looks at the node.
    pub alias: Option<String>,
}

impl Netlink {
    /// Makes a macvtap in bridge mode, administratively down: its MAC is in the lower link's filter only while it is
    /// up. The host gives it no IPv6 address and so sends nothing of its own under the guest's MAC.
    ///
    /// A name that exists is refused with `EEXIST`. On any other error the macvtap is taken away again.
    pub async fn create_macvtap(&self, spec: &MacvtapSpec) -> Result<Link, NetlinkError> {
        let MacvtapSpec {
            name,
            lower,
            mac,
            mtu,
            alias,
        } = spec;
        let mut link = LinkMacVtap::new(name, *lower, MacVtapMode::Bridge)
            .address(mac.octets().to_vec())
            .down();
        if let Some(mtu) = mtu {
            link = link.mtu(*mtu);
        }
        let operation = format!("create macvtap {name} with MAC {mac} on link {lower}");
        self.answer(
            "create_macvtap",
            &*operation,
            self.handle.link().add(link.build()).execute(),
        )
        .await?;
        let link = self.link(name).await?;
        let link = link.ok_or_else(|| NetlinkError::Unexpected {
            operation,
            detail: "it does not exist".into(),
        })?;
        match self.finish_macvtap(link.index, alias.as_deref()).await {
            Ok(()) => Ok(Link {
                alias: alias.clone(),
                ..link
            }),
            Err(error) => {
                if let Err(left) = self.delete_link(link.index).await {
                    tracing::warn!(macvtap = name, error = %left, "a half-made macvtap stays behind");
                }
                Err(error)
            }
        }
    }

    /// The macvtaps on a lower link, by name.
    pub async fn macvtaps_on(&self, lower: u32) -> Result<Vec<Link>, NetlinkError> {
        let mut links = self.links().await?;
        links.retain(|link| link.is_macvtap_on(lower));
        links.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(links)
    }

    /// What the kernel does not take at creation.
    async fn finish_macvtap(&self, index: u32, alias: Option<&str>) -> Result<(), NetlinkError> {
        let no_addresses = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let link = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![no_addresses]));
        match self
            .set(
                "set_macvtap",
                format!("keep IPv6 addresses off link {index}"),
                link.build(),
            )
            .await
        {
            // A host without IPv6 gives none anyway.
            Err(e) if e.errno() == Some(nix::errno::Errno::EAFNOSUPPORT) => {}
            result => result?,
        }
        if let Some(alias) = alias {
            let link = LinkUnspec::new_with_index(index).alias(alias);
            self.set(
                "set_macvtap",
                format!("set the alias of link {index}"),
                link.build(),
            )
            .await?;
        }
        Ok(())
    }
}
