//! The names of a NIC's devices in QEMU, and of its macvtap.

use aws_lc_rs::digest::{SHA256, digest};
use hybridnic_api::v1alpha1::{NicAttachmentSpec, Placement};

/// The standby. KubeVirt's has the alias of its interface, as libvirt makes it.
pub fn standby(spec: &NicAttachmentSpec) -> String {
    match &spec.placement {
        Some(Placement::Interface(interface)) => format!("ua-{interface}"),
        Some(Placement::RootPorts(_)) | None => format!("sb-{}", spec.nic.name),
    }
}

/// The interface of KubeVirt's VM that a NIC is.
pub fn interface(spec: &NicAttachmentSpec) -> Option<&str> {
    match &spec.placement {
        Some(Placement::Interface(interface)) => Some(interface),
        Some(Placement::RootPorts(_)) | None => None,
    }
}

/// The name of the NIC's link in the VM's pod, where it has one: as KubeVirt makes it (`HashedPodInterfaceName` in its
/// pkg/network/namescheme).
pub fn ifname(spec: &NicAttachmentSpec) -> Option<String> {
    let hash = digest(&SHA256, interface(spec)?.as_bytes());
    // 11 digits of them.
    let first: [u8; 8] = hash.as_ref().get(..8)?.try_into().ok()?;
    Some(format!("pod{:011x}", u64::from_be_bytes(first) >> 20))
}

/// The root port that the sidecar has given the VF of an interface of KubeVirt.
pub fn vf_port(interface: &str) -> String {
    format!("hybridnic-{interface}")
}

/// The standby's netdev.
pub fn netdev(nic: &str) -> String {
    format!("hn-{nic}")
}

/// The VF at its `plug`-th plug: QEMU may still remember an id that it has seen.
pub fn vf(nic: &str, plug: u32) -> String {
    format!("vf-{nic}-g{plug}")
}

/// Whether an id is that of the NIC's VF, at any plug.
pub fn is_vf(id: &str, nic: &str) -> bool {
    id.strip_prefix("vf-")
        .and_then(|rest| rest.strip_prefix(nic))
        .and_then(|rest| rest.strip_prefix("-g"))
        .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// The macvtap: at most 15 octets, the same each time it is made for an attachment.
pub fn macvtap(attachment_uid: &str) -> String {
    let short: String = attachment_uid
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(11)
        .collect();
    format!("hn{short}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn one_nic_is_not_taken_for_another() {
        assert!(super::is_vf(&super::vf("a", 3), "a"));
        assert!(!super::is_vf(&super::vf("a-g1", 3), "a"));
        assert!(!super::is_vf("vf-a-g", "a"));
        assert!(super::macvtap("0b2e7c1d-90aa-4f6e-8d2f-000000000001").len() <= 15);
    }
}
