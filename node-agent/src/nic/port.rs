//! A NIC's port profile, and what the kernel says of its VF's port. Pure.

use hybridnic_api::v1alpha1::NicAttachmentSpec;
use hybridnic_net::{
    Uuid,
    netlink::{PortProfile, PortRequest, PortResponse, VfPort},
};

use super::seen::Port;

/// The profile that a NIC's VF is to have at the switch, where its network has one. `host` is the node, as the switch knows it.
pub fn profile(spec: &NicAttachmentSpec, host: Uuid) -> Option<PortProfile> {
    let profile = spec.l2.port_profile.as_ref()?;
    Some(PortProfile {
        name: profile.name.clone(),
        instance: uuid(spec.port_instance_id.as_deref().unwrap_or(&spec.nic.uid)),
        host,
    })
}

/// The UUID that a text is, or one that stands for it.
pub fn uuid(text: &str) -> Uuid {
    text.parse().unwrap_or_else(|_| Uuid::of(fnv1a(text)))
}

/// FNV-1a with 128 bits, so that every version of the agent has the same.
fn fnv1a(text: &str) -> u128 {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let begin = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    text.bytes()
        .fold(begin, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME))
}

/// What is seen of a port that is to have this profile.
pub fn seen(port: Option<&VfPort>, profile: &PortProfile) -> Port {
    let Some(port) = port else {
        return Port::Free;
    };
    match port
        .request
        .filter(|_| port.response == Some(PortResponse::Success))
    {
        Some(PortRequest::Disassociate) => Port::Free,
        Some(PortRequest::Preassociate) if is_of(port, profile) => Port::Preassociated,
        Some(PortRequest::Associate) if is_of(port, profile) => Port::Associated,
        Some(PortRequest::Preassociate | PortRequest::Associate) | None => Port::Unsettled,
    }
}

/// Whether this was asked for already, and the switch has not answered.
pub fn is_under_way(port: &VfPort, request: PortRequest, profile: Option<&PortProfile>) -> bool {
    let same = port.request == Some(request) && port.response == Some(PortResponse::InProgress);
    same && profile.is_none_or(|profile| is_of(port, profile))
}

fn is_of(port: &VfPort, profile: &PortProfile) -> bool {
    port.profile.as_ref() == Some(&profile.name) && port.instance == Some(profile.instance)
}

#[cfg(test)]
#[path = "port_tests.rs"]
mod tests;
