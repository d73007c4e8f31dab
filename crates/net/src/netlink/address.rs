use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};

use super::{Netlink, NetlinkError};

/// The table of the kernel's own routes to local addresses (`RT_TABLE_LOCAL`).
const LOCAL_TABLE: u8 = 255;

impl Netlink {
    /// The addresses of all links, by the link's index. Link-local ones are left out: the kernel gives them to whatever is
    /// up.
    pub async fn addresses(&self) -> Result<Vec<(u32, IpAddr)>, NetlinkError> {
        let request = self.handle.address().get().execute();
        let found = request.try_fold(Vec::new(), |mut found, message| async move {
            found.extend(address(&message).map(|address| (message.header.index, address)));
            Ok(found)
        });
        self.answer("list_addresses", "list the addresses", found).await
    }

    /// The indexes of the links that a route leads out of, in any table but the kernel's own. Routes to link-local
    /// destinations are left out.
    pub async fn routed(&self) -> Result<BTreeSet<u32>, NetlinkError> {
        let mut links = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let request = self.handle.route().get(message).execute();
            let found = request.try_fold(BTreeSet::new(), |mut found, message| async move {
                found.extend(ways_out(&message));
                Ok(found)
            });
            links.extend(self.answer("list_routes", "list the routes", found).await?);
        }
        Ok(links)
    }
}

/// An address message's address, unless it is link-local.
pub(super) fn address(message: &AddressMessage) -> Option<IpAddr> {
    let of = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Local(address) | AddressAttribute::Address(address) => Some(*address),
        _ => None,
    };
    message
        .attributes
        .iter()
        .find_map(of)
        .filter(|address| !is_link_local(*address))
}

/// The links that a route leads out of; none of one that does not count.
pub(super) fn ways_out(message: &RouteMessage) -> Vec<u32> {
    let mut table = u32::from(message.header.table);
    let (mut links, mut local) = (Vec::new(), false);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Oif(index) => links.push(*index),
            RouteAttribute::MultiPath(hops) => links.extend(hops.iter().map(|hop| hop.interface_index)),
            RouteAttribute::Destination(RouteAddress::Inet(to)) => local = is_link_local(IpAddr::V4(*to)),
            RouteAttribute::Destination(RouteAddress::Inet6(to)) => {
                local = is_link_local(IpAddr::V6(*to)) || to.is_multicast();
            }
            _ => {}
        }
    }
    if local || table == u32::from(LOCAL_TABLE) || message.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    links
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => Ipv4Addr::is_link_local(&address),
        IpAddr::V6(address) => Ipv6Addr::is_unicast_link_local(&address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(table: u8, to: Option<&str>) -> Vec<u32> {
        let mut message = RouteMessage::default();
        message.header.table = table;
        message.header.kind = RouteType::Unicast;
        let to = to.map(|to| match to.parse().unwrap() {
            IpAddr::V4(to) => RouteAddress::Inet(to),
            IpAddr::V6(to) => RouteAddress::Inet6(to),
        });
        message.attributes = to.map(RouteAttribute::Destination).into_iter().collect();
        message.attributes.push(RouteAttribute::Oif(7));
        ways_out(&message)
    }

    #[test]
    fn what_the_kernel_makes_for_whatever_is_up_does_not_count() {
        assert_eq!(route(254, None), [7], "the default route");
        assert_eq!(route(42, Some("10.0.0.0")), [7]);
        assert_eq!(route(254, Some("fd00::")), [7]);
        for (table, to) in [
            (254, "fe80::"),
            (255, "ff00::"),
            (254, "169.254.0.0"),
            (255, "10.0.0.1"),
        ] {
            assert_eq!(route(table, Some(to)), [] as [u32; 0], "{to}");
        }
    }
}
