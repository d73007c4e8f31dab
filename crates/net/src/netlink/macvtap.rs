use std::os::fd::{AsFd, AsRawFd};

use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, MacVtapMode as WireMode,
};
use rtnetlink::{LinkMacVtap, LinkMessageBuilder, LinkUnspec};

use super::{Link, Netlink, NetlinkError};
use crate::netns::NetNs;
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
    /// What switches between it and the others on the lower link.
    pub mode: MacvtapMode,
    /// A text to recognise it by, for people who look at the node.
    pub alias: Option<String>,
}

/// What switches between the macvtaps on one link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MacvtapMode {
    /// The kernel.
    #[default]
    Bridge,
    /// The switch outside: what a macvtap sends leaves by the lower link in any case.
    Vepa,
}

/// Where a macvtap for a pod is made.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The pod's network namespace.
    pub netns: &'a NetNs,
    /// A connection in it.
    pub inside: &'a Netlink,
    /// The index that it gets. Its device is `/dev/tapINDEX`, of which a machine has one, whatever namespace the macvtap is in: so no
    /// other macvtap of the machine may have that index.
    pub index: u32,
    /// Queues to send by; one where `None`.
    pub queues: Option<u32>,
}

impl Netlink {
    /// Makes a macvtap in a pod's network namespace, on a link of this connection's; otherwise as [`Self::create_macvtap`] does.
    ///
    /// A name that exists in the namespace is refused with `EEXIST`, an index that does with `EBUSY` or `EEXIST`, by the kernel's age.
    pub async fn create_macvtap_in(
        &self,
        place: &Place<'_>,
        spec: &MacvtapSpec,
    ) -> Result<Link, NetlinkError> {
        let MacvtapSpec { name, lower, mac, .. } = spec;
        let index = place.index;
        let netns = LinkAttribute::NetNsFd(place.netns.as_fd().as_raw_fd());
        let mut link = builder(spec).index(index).append_extra_attribute(netns);
        if let Some(queues) = place.queues {
            link = link.append_extra_attribute(LinkAttribute::NumTxQueues(queues));
        }
        let operation = format!(
            "create macvtap {name} with MAC {mac} and index {index} on link {lower}, in network namespace {}",
            place.netns.inode()
        );
        self.answer(
            "create_macvtap",
            &*operation,
            self.handle.link().add(link.build()).execute(),
        )
        .await?;
        place.inside.made(operation, spec).await
    }

    /// Makes a macvtap, administratively down: its MAC is in the lower link's filter only while it is
    /// up. The host gives it no IPv6 address and so sends nothing of its own under the guest's MAC.
    ///
    /// A name that exists is refused with `EEXIST`. On any other error the macvtap is taken away again.
    pub async fn create_macvtap(&self, spec: &MacvtapSpec) -> Result<Link, NetlinkError> {
        let MacvtapSpec { name, lower, mac, .. } = spec;
        let operation = format!("create macvtap {name} with MAC {mac} on link {lower}");
        self.answer(
            "create_macvtap",
            &*operation,
            self.handle.link().add(builder(spec).build()).execute(),
        )
        .await?;
        self.made(operation, spec).await
    }

    /// What is left to do of a macvtap that the kernel has made.
    async fn made(&self, operation: String, spec: &MacvtapSpec) -> Result<Link, NetlinkError> {
        let MacvtapSpec { name, alias, .. } = spec;
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

fn builder(spec: &MacvtapSpec) -> LinkMessageBuilder<LinkMacVtap> {
    let mode = match spec.mode {
        MacvtapMode::Bridge => WireMode::Bridge,
        MacvtapMode::Vepa => WireMode::Vepa,
    };
    let link = LinkMacVtap::new(&spec.name, spec.lower, mode)
        .address(spec.mac.octets().to_vec())
        .down();
    match spec.mtu {
        Some(mtu) => link.mtu(mtu),
        None => link,
    }
}
