//! Which of the kernel's events concern the agent. A busy node makes hundreds of links a second for its pods, and each
//! event that is passed on makes every NIC look at its VM.

use std::{collections::BTreeSet, time::Duration};

use futures::{Stream, StreamExt as _};
use hybridnic_net::{
    PciAddress,
    netlink::{Link, LinkEvent, LinkKind},
    uevent::{DeviceEvent, Subsystem},
};
use tokio::time::{Instant, sleep_until};

/// How the aliases of our macvtaps begin.
pub const ALIAS: &str = "hybridnic ";
/// The first event of a burst is passed on at once, and the rest as one event, this much later.
const JOIN: Duration = Duration::from_millis(100);

/// The links that concern the agent: those of PCI functions, so PFs and VFs, VLAN devices on them, and its own macvtaps.
#[derive(Clone, Debug, Default)]
pub struct Concern {
    links: BTreeSet<u32>,
    /// Links of VFs: on those an address matters too, as a VF that has one is the node's own.
    vfs: BTreeSet<u32>,
}

impl Concern {
    /// What concerns the agent of these links. `is_vf` tells whether a PCI function is a VF.
    pub fn of(links: &[Link], is_vf: &impl Fn(PciAddress) -> bool) -> Self {
        let mut concern = Self::default();
        // A VLAN device may come before what it is on.
        for _ in 0..2 {
            for link in links {
                concern.note(link, is_vf);
            }
        }
        concern
    }

    /// Whether an event concerns the agent.
    pub fn link(&mut self, event: &LinkEvent, is_vf: &impl Fn(PciAddress) -> bool) -> bool {
        match event {
            LinkEvent::Changed(link) => self.note(link, is_vf),
            LinkEvent::Removed { index, .. } => {
                self.vfs.remove(index);
                self.links.remove(index)
            }
            LinkEvent::Address { index } => self.vfs.contains(index),
            LinkEvent::Resync => true,
        }
    }

    fn note(&mut self, link: &Link, is_vf: &impl Fn(PciAddress) -> bool) -> bool {
        let function = link.parent.as_ref().and_then(|parent| parent.parse().ok());
        let concerns = match &link.kind {
            // If it has no parent, it is not known whether it is a PF.
            LinkKind::Device => function.is_some() || link.parent.is_none() && link.name != "lo",
            LinkKind::Vlan { .. } => link.lower.is_some_and(|lower| self.links.contains(&lower)),
            LinkKind::Macvtap { .. } => link
                .alias
                .as_deref()
                .is_some_and(|alias| alias.starts_with(ALIAS)),
            LinkKind::Other(_) => false,
        };
        if !concerns {
            return false;
        }
        self.links.insert(link.index);
        if function.is_some_and(is_vf) {
            self.vfs.insert(link.index);
        }
        true
    }
}

/// Whether an event of a device concerns the agent: of a PCI function, or of an interface of one.
pub fn device(event: &DeviceEvent) -> bool {
    match event {
        DeviceEvent::Device(event) => event.subsystem == Subsystem::Pci || event.address.is_some(),
        DeviceEvent::Resync => true,
    }
}

/// What has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Something of a link or a device.
    pub any: bool,
    /// A device came, went, or got another driver.
    pub devices: bool,
}

/// Passes on what concerns the agent of all events, joined; never returns unless a stream ends. `links` reads all links
/// again: after events were lost, it is not known what is there.
pub async fn follow(
    mut events: impl Stream<Item = LinkEvent> + Unpin,
    mut devices: impl Stream<Item = DeviceEvent> + Unpin,
    links: impl AsyncFn() -> Option<Vec<Link>>,
    is_vf: impl Fn(PciAddress) -> bool,
    mut changed: impl FnMut(Change),
) -> anyhow::Result<()> {
    let mut concern = Concern::of(&links().await.unwrap_or_default(), &is_vf);
    let mut change = Change::default();
    let mut next = Instant::now();
    loop {
        tokio::select! {
            event = events.next() => {
                let event = event.ok_or_else(|| anyhow::anyhow!("the kernel's link events have ended"))?;
                if event == LinkEvent::Resync
                    && let Some(links) = links().await
                {
                    concern = Concern::of(&links, &is_vf);
                }
                change.any |= concern.link(&event, &is_vf);
            }
            event = devices.next() => {
                let event = event.ok_or_else(|| anyhow::anyhow!("the kernel's device events have ended"))?;
                change.devices |= device(&event);
                change.any |= change.devices;
            }
            () = sleep_until(next), if change.any => {
                changed(std::mem::take(&mut change));
                next = Instant::now() + JOIN;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use hybridnic_net::{
        VlanProtocol,
        netlink::Counters,
        uevent::{Action, Uevent},
    };

    use super::*;

    const PF: &str = "0000:01:00.0";
    const VF: &str = "0000:01:10.0";

    fn link(index: u32, name: &str, kind: LinkKind, lower: Option<u32>, parent: Option<&str>) -> Link {
        Link {
            index,
            name: name.into(),
            mac: None,
            up: true,
            carrier: Some(true),
            mtu: 1500,
            kind,
            master: None,
            lower,
            alias: None,
            parent: parent.map(str::to_owned),
            counters: Counters::default(),
        }
    }

    fn pf() -> Link {
        link(2, "ens0", LinkKind::Device, None, Some(PF))
    }

    fn veth(index: u32) -> Link {
        link(index, "cali1", LinkKind::Other("veth".into()), None, None)
    }

    fn vlan(index: u32, lower: u32) -> Link {
        let kind = LinkKind::Vlan {
            id: 7,
            protocol: VlanProtocol::Dot1q,
        };
        link(index, "v", kind, Some(lower), None)
    }

    fn macvtap(index: u32, alias: Option<&str>) -> Link {
        Link {
            alias: alias.map(str::to_owned),
            ..link(index, "hn1", LinkKind::Macvtap { bridge: true }, Some(2), None)
        }
    }

    fn changed(link: Link) -> LinkEvent {
        LinkEvent::Changed(Box::new(link))
    }

    fn removed(index: u32) -> LinkEvent {
        LinkEvent::Removed {
            index,
            name: "x".into(),
        }
    }

    fn is_vf(address: PciAddress) -> bool {
        address.to_string() == VF
    }

    fn uevent(subsystem: Subsystem, address: Option<&str>) -> DeviceEvent {
        DeviceEvent::Device(Uevent {
            action: Action::Add,
            subsystem,
            devpath: String::new(),
            address: address.map(|a| a.parse().unwrap()),
            interface: None,
            driver: None,
        })
    }

    #[test]
    fn only_functions_their_vlans_and_our_macvtaps_concern_the_agent() {
        let mut concern = Concern::of(&[vlan(3, 2), pf(), veth(9)], &is_vf);
        let mut concerns = |event| concern.link(&event, &is_vf);
        assert!(concerns(changed(pf())));
        assert!(concerns(changed(vlan(3, 2))), "it was listed before its PF");
        assert!(!concerns(changed(vlan(4, 9))));
        assert!(!concerns(changed(veth(10))) && !concerns(removed(10)));
        assert!(!concerns(changed(link(1, "lo", LinkKind::Device, None, None))));
        let virtio = link(5, "eth0", LinkKind::Device, None, Some("virtio0"));
        assert!(!concerns(changed(virtio)));
        // Ours is known by its alias, which it gets a moment after it was made.
        assert!(!concerns(changed(macvtap(6, None))));
        assert!(concerns(changed(macvtap(6, Some("hybridnic ns/nic")))));
        assert!(concerns(removed(6)) && !concerns(removed(6)));
        assert!(!concerns(changed(macvtap(7, Some("libvirt")))));
        assert!(concerns(LinkEvent::Resync));
    }

    #[test]
    fn an_address_concerns_the_agent_on_a_vf_only() {
        let vf = link(8, "ens0v0", LinkKind::Device, None, Some(VF));
        let mut concern = Concern::of(&[pf(), vf], &is_vf);
        assert!(concern.link(&LinkEvent::Address { index: 8 }, &is_vf));
        assert!(!concern.link(&LinkEvent::Address { index: 2 }, &is_vf));
        assert!(concern.link(&removed(8), &is_vf));
        assert!(!concern.link(&LinkEvent::Address { index: 8 }, &is_vf));
    }

    #[test]
    fn a_virtual_device_does_not_concern_the_agent() {
        assert!(device(&uevent(Subsystem::Pci, Some(VF))));
        assert!(device(&uevent(Subsystem::Net, Some(VF))));
        assert!(!device(&uevent(Subsystem::Net, None)));
        assert!(device(&DeviceEvent::Resync));
    }

    /// What is passed on of events that come every `every`, for two seconds; with the time of each.
    async fn passed_on(event: impl Fn(u32) -> LinkEvent, every: Duration) -> Vec<(u128, Change)> {
        let began = Instant::now();
        let mut passed = Vec::new();
        let mut index = 100;
        let events = stream::poll_fn({
            let mut ticks = tokio::time::interval(every);
            move |cx| {
                std::task::ready!(ticks.poll_tick(cx));
                index += 1;
                std::task::Poll::Ready(Some(event(index)))
            }
        });
        let following = follow(
            events,
            stream::pending(),
            async || Some(vec![pf()]),
            is_vf,
            |change| passed.push((began.elapsed().as_millis(), change)),
        );
        let ended = tokio::time::timeout(Duration::from_secs(2), following).await;
        assert!(ended.is_err(), "nothing has ended");
        passed
    }

    #[tokio::test(start_paused = true)]
    async fn a_pods_links_wake_nobody() {
        let churn = |index: u32| match index % 2 {
            0 => changed(veth(index)),
            _ => removed(index - 1),
        };
        assert_eq!(passed_on(churn, Duration::from_millis(5)).await, []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_passed_on_at_once_and_then_joined() {
        let passed = passed_on(|_| changed(pf()), Duration::from_millis(1)).await;
        assert!(passed[0].0 <= 1 && passed[0].1.any, "{:?}", passed[0]);
        assert!(
            (19..=21).contains(&passed.len()),
            "{} in two seconds",
            passed.len()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_stream_is_an_error() {
        let ended = follow(stream::empty(), stream::pending(), async || None, is_vf, |_| {});
        assert!(ended.await.unwrap_err().to_string().contains("link events"));
    }
}
