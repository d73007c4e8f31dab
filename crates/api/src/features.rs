//! What agents can do that earlier ones cannot, as they say it in their `HybridNode`. An agent does not see a field that it does not
//! know, and would make another NIC than was asked for. One that names nothing may know it nevertheless, and is asked for nothing new. Fields of a NIC only: no
//! agent of a release lacks one of a network's.

use strum::{Display, VariantArray};

use crate::v1alpha1::{HybridNode, Pairing, StandbyKind, VmHybridNicSpec};

/// Something that a NIC may ask of its node's agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, VariantArray)]
pub enum AgentFeature {
    /// A standby that the guest bonds with the VF.
    BondPairing,
    /// A VF without a standby.
    NoStandby,
}

impl AgentFeature {
    /// The words for all that an agent of this version can do. They are no type of the API, because another version has others.
    pub fn words() -> Vec<String> {
        Self::VARIANTS.iter().map(ToString::to_string).collect()
    }

    /// The first that a NIC asks for and the agent of a node does not name.
    pub fn missing(nic: &VmHybridNicSpec, node: &HybridNode) -> Option<Self> {
        let named = node.status.as_ref().map(|status| status.features.as_slice());
        let named = named.unwrap_or_default();
        let mut asked = Self::VARIANTS.iter().filter(|feature| feature.is_asked(nic));
        asked
            .find(|feature| !named.contains(&feature.to_string()))
            .copied()
    }

    /// What a NIC's spec says that asks for it.
    pub fn field(self) -> &'static str {
        match self {
            Self::BondPairing => "pairing: Bond",
            Self::NoStandby => "standby: None",
        }
    }

    fn is_asked(self, nic: &VmHybridNicSpec) -> bool {
        match self {
            Self::BondPairing => nic.pairing == Pairing::Bond,
            Self::NoStandby => nic.standby == StandbyKind::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn missing(nic: &serde_json::Value, named: &[&str]) -> Option<AgentFeature> {
        let mut spec = json!({ "network": "net", "vm": { "qemu": { "name": "vm" } } });
        spec.as_object_mut()
            .unwrap()
            .extend(nic.as_object().unwrap().clone());
        let status = json!({ "pfCount": 0, "features": named, "vfs": {"total": 0, "free": 0, "held": 0, "unhealthy": 0} });
        let node = json!({ "metadata": {"name": "n1"}, "spec": {}, "status": status });
        let node = serde_json::from_value(node).unwrap();
        AgentFeature::missing(&serde_json::from_value(spec).unwrap(), &node)
    }

    #[test]
    fn a_nic_misses_what_it_asks_for_and_an_agent_does_not_name() {
        let (alone, bond) = (json!({ "standby": "None" }), json!({ "pairing": "Bond" }));
        assert_eq!(missing(&json!({}), &[]), None, "every agent can do that");
        assert_eq!(missing(&alone, &[]), Some(AgentFeature::NoStandby));
        assert_eq!(missing(&alone, &["BondPairing"]), Some(AgentFeature::NoStandby));
        assert_eq!(missing(&bond, &[]), Some(AgentFeature::BondPairing));
        let words = AgentFeature::words();
        let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
        // A later agent can do more.
        words.push("Other");
        assert_eq!((missing(&alone, &words), missing(&bond, &words)), (None, None));
    }

    #[test]
    fn a_status_without_a_list_names_nothing() {
        let node = HybridNode::new("n1", crate::v1alpha1::HybridNodeSpec::default());
        let nic = json!({ "network": "net", "vm": { "qemu": { "name": "vm" } }, "standby": "None" });
        let nic: VmHybridNicSpec = serde_json::from_value(nic).unwrap();
        assert_eq!(AgentFeature::missing(&nic, &node), Some(AgentFeature::NoStandby));
    }
}
