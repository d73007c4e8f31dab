//! Tells the switches where the MAC is now.

use hybridnic_api::v1alpha1::L2Settings;
use hybridnic_net::announce::{self, Tag};
use tracing::warn;

use super::Context;
use crate::nic::{settings, vf::VfError};
use crate::{
    error::chain,
    machine::{Machine, MachineError},
    nic::ids,
};

/// From the standby, by the guest's own device.
pub(super) async fn from_standby(cx: &mut Context, machine: &Machine) -> Result<(), MachineError> {
    let device = ids::standby(&cx.record.spec);
    machine.announce(&[&device]).await?;
    cx.learnt.announce = false;
    Ok(())
}

/// On the VF's PF, when the standby was on another one.
pub(super) async fn on_pf(cx: &Context) -> Result<(), VfError> {
    let Some(vf) = &cx.record.vf else {
        return Ok(());
    };
    // The card tags the VF's frames for its VLAN, but not those of its PF.
    let tag = tag(&cx.record.spec.l2);
    if let Some(pf) = cx.host.pf_link(vf.pf).await?
        && let Err(error) = announce::send_rarp(pf.index, cx.mac, tag)
    {
        warn!(error = chain(&error), "cannot announce the VF");
    }
    Ok(())
}

/// The tag of the frames of a VF in the network's VLAN.
fn tag(l2: &L2Settings) -> Option<Tag> {
    let vlan = l2.vlan.as_ref().filter(|vlan| vlan.id != 0)?;
    Some(Tag {
        id: u16::try_from(vlan.id).ok()?,
        qos: u8::try_from(vlan.qos).ok()?,
        protocol: settings::protocol(vlan.protocol),
    })
}

#[cfg(test)]
mod tests {
    use hybridnic_api::v1alpha1::{Vlan, VlanProtocol};

    use super::*;

    #[test]
    fn a_vf_is_announced_in_the_vlan_of_its_network() {
        let l2 = |vlan| L2Settings {
            vlan,
            ..L2Settings::default()
        };
        let vlan = |id| Vlan {
            id,
            qos: 3,
            protocol: VlanProtocol::Dot1ad,
        };
        assert_eq!(tag(&l2(None)), None);
        assert_eq!(tag(&l2(Some(vlan(0)))), None, "untagged");
        let tagged = Tag {
            id: 7,
            qos: 3,
            protocol: hybridnic_net::VlanProtocol::Dot1ad,
        };
        assert_eq!(tag(&l2(Some(vlan(7)))), Some(tagged));
    }
}
