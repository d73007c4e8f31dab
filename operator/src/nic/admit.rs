//! Whether a NIC may be, and where. Pure.

use std::collections::BTreeMap;

use hybridnic_api::conditions::reasons;
use hybridnic_api::features::AgentFeature;
use hybridnic_api::v1alpha1::{HybridNetwork, HybridNode, VmHybridNic, VmHybridNicSpec};
use kube::ResourceExt;

use crate::select::selects;
use crate::version::{self, Support};

/// Why something is not done: a reason of the API and a sentence for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One of [`reasons`].
    pub reason: &'static str,
    /// What is wrong, and what to do about it.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

/// Whether `nic`, in a namespace with these labels, may use its network. A network that is to be deleted takes no more NICs than are
/// `attached`.
pub fn to_network<'a>(
    nic: &VmHybridNic,
    attached: bool,
    network: Option<&'a HybridNetwork>,
    namespace: &BTreeMap<String, String>,
) -> Result<&'a HybridNetwork, Refusal> {
    let name = &nic.spec.network;
    let Some(network) = network else {
        let message = format!("there is no HybridNetwork {name}; create it");
        return Err(Refusal::new(reasons::NETWORK_NOT_FOUND, message));
    };
    if network.metadata.deletion_timestamp.is_some() && !attached {
        let message =
            format!("the HybridNetwork {name} is about to be deleted; create it again when it is gone");
        return Err(Refusal::new(reasons::NETWORK_NOT_FOUND, message));
    }
    let refuse = |why: String| Refusal::new(reasons::NAMESPACE_NOT_ALLOWED, why);
    match selects(network.spec.namespace_selector.as_ref(), namespace) {
        Ok(true) => Ok(network),
        Ok(false) => {
            let namespace = nic.namespace().unwrap_or_default();
            Err(refuse(format!(
                "spec.namespaceSelector of the HybridNetwork {name} does not select the labels of namespace {namespace}: label the \
                 namespace, or change the selector"
            )))
        }
        Err(error) => Err(refuse(format!(
            "spec.namespaceSelector of the HybridNetwork {name} is not valid: {error}"
        ))),
    }
}

/// Whether a node can take a NIC: its agent is there, of a version that is supported, and can do what the NIC asks for, and the NIC's
/// network selects it. A NIC that is there already stays.
pub fn to_node(nic: &VmHybridNicSpec, node: &str, found: Option<&HybridNode>) -> Result<(), Refusal> {
    let network = &nic.network;
    let Some(found) = found else {
        let message = format!("no node agent reports for node {node}; see that the agent's pod runs there");
        return Err(Refusal::new(reasons::AGENT_NOT_FOUND, message));
    };
    match version::of_agent(found) {
        Support::Yes => {}
        Support::No(why) => {
            let message = format!("{why}; until then node {node} gets no NICs");
            return Err(Refusal::new(reasons::AGENT_VERSION_UNSUPPORTED, message));
        }
        Support::Unknown => {
            let message = format!("the agent of node {node} has not said its version yet");
            return Err(Refusal::new(reasons::AGENT_PENDING, message));
        }
    }
    if let Some(feature) = AgentFeature::missing(nic, found) {
        let message = format!(
            "the agent of node {node} does not say that it knows {}; one that does not know it makes another NIC. Upgrade the agent; until \
             then node {node} does not get this NIC",
            feature.field()
        );
        return Err(Refusal::new(reasons::AGENT_VERSION_UNSUPPORTED, message));
    }
    if found.spec.pools.iter().any(|pool| pool.network == *network) {
        return Ok(());
    }
    let message = format!("spec.nodeSelector of the HybridNetwork {network} does not select node {node}");
    Err(Refusal::new(reasons::NODE_NOT_IN_NETWORK, message))
}

#[cfg(test)]
mod tests {
    use hybridnic_api::v1alpha1::StandbyKind;

    use super::*;
    use crate::testing::{network, nic, node};

    #[test]
    fn networks_refuse_with_a_reason() {
        let nic = nic("a", "vm", "net", 1);
        let labels = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
        let of = |attached, network: Option<&HybridNetwork>| {
            to_network(&nic, attached, network, &labels)
                .map(|_| ())
                .map_err(|r| r.reason)
        };
        let reason = |network: Option<&HybridNetwork>| of(false, network);
        assert_eq!(reason(None), Err(reasons::NETWORK_NOT_FOUND));
        let mut leaving = network("net");
        leaving.metadata.deletion_timestamp = leaving.metadata.creation_timestamp.clone();
        assert_eq!(reason(Some(&leaving)), Err(reasons::NETWORK_NOT_FOUND));
        assert_eq!(of(true, Some(&leaving)), Ok(()), "it may still migrate");
        let mut net = network("net");
        assert_eq!(reason(Some(&net)), Ok(()));
        net.spec.namespace_selector =
            serde_json::from_value(serde_json::json!({"matchLabels": {"team": "a"}})).ok();
        assert_eq!(reason(Some(&net)), Ok(()));
        net.spec.namespace_selector =
            serde_json::from_value(serde_json::json!({"matchLabels": {"team": "b"}})).ok();
        assert_eq!(reason(Some(&net)), Err(reasons::NAMESPACE_NOT_ALLOWED));
        let odd = serde_json::json!({"matchExpressions": [{"key": "team", "operator": "Near"}]});
        net.spec.namespace_selector = serde_json::from_value(odd).ok();
        assert_eq!(reason(Some(&net)), Err(reasons::NAMESPACE_NOT_ALLOWED));
    }

    #[test]
    fn nodes_refuse_with_a_reason() {
        let spec = nic("a", "vm", "net", 1).spec;
        let reason = |node: Option<&HybridNode>| to_node(&spec, "n1", node).map_err(|refusal| refusal.reason);
        assert_eq!(reason(None), Err(reasons::AGENT_NOT_FOUND));
        assert_eq!(reason(Some(&node("n1", &[]))), Err(reasons::NODE_NOT_IN_NETWORK));
        assert_eq!(reason(Some(&node("n1", &["other", "net"]))), Ok(()));
        let mut other = node("n1", &["net"]);
        other.status.as_mut().unwrap().agent_version = Some("99.0.0".to_owned());
        assert_eq!(reason(Some(&other)), Err(reasons::AGENT_VERSION_UNSUPPORTED));
        other.status = None;
        assert_eq!(reason(Some(&other)), Err(reasons::AGENT_PENDING));
    }

    #[test]
    fn a_nic_goes_to_no_agent_that_does_not_know_its_fields() {
        let mut alone = nic("a", "vm", "net", 1).spec;
        let mut old = node("n1", &["net"]);
        assert_eq!(to_node(&alone, "n1", Some(&old)), Ok(()));
        old.status.as_mut().unwrap().features.clear();
        assert_eq!(
            to_node(&alone, "n1", Some(&old)),
            Ok(()),
            "it asks for nothing new"
        );
        alone.standby = StandbyKind::None;
        assert_eq!(to_node(&alone, "n1", Some(&node("n1", &["net"]))), Ok(()));
        let refused = to_node(&alone, "n1", Some(&old)).unwrap_err();
        assert_eq!(refused.reason, reasons::AGENT_VERSION_UNSUPPORTED);
        // It may know it, and not say so.
        let says = "does not say that it knows standby: None; one that does not know it makes another NIC";
        assert!(refused.message.contains(says), "{}", refused.message);
    }
}
