//! The `NetworkAttachmentDefinition`s of a network. Pure.
//!
//! There is one in the operator's own namespace, which VMs of all namespaces may name unless Multus isolates namespaces, and one in
//! each namespace that may use the network and has a VM that names it without a namespace. Each has the network's name. A definition
//! of that name that is not ours is left alone, and so is its VM.

use std::collections::BTreeSet;
use std::sync::Arc;

use hybridnic_api::foreign::multus::{
    NetworkAttachmentDefinition, NetworkAttachmentDefinitionSpec, RESOURCE_ANNOTATION, resource,
};
use hybridnic_api::names::{MADE_LABEL, NETWORK_LABEL, OPERATOR_MANAGER};
use hybridnic_api::v1alpha1::HybridNetwork;
use kube::{Resource, ResourceExt};
use serde_json::json;

/// What is to be done about a network's definitions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// To make, or to make as they should be. These have the version that was seen.
    pub apply: Vec<NetworkAttachmentDefinition>,
    /// To delete.
    pub delete: Vec<Arc<NetworkAttachmentDefinition>>,
    /// Namespaces in which an object of that name is not ours.
    pub taken: Vec<String>,
}

/// What is to be done, where `namespaces` are those that should have one, `may_use` says of others whether they may keep theirs,
/// `ours` are those that there are, and `named` gives that of a namespace with the network's name.
pub fn plan(
    network: &HybridNetwork,
    namespaces: &BTreeSet<String>,
    may_use: impl Fn(&str) -> bool,
    ours: &[Arc<NetworkAttachmentDefinition>],
    named: impl Fn(&str) -> Option<Arc<NetworkAttachmentDefinition>>,
) -> Plan {
    let mut plan = Plan::default();
    // Its own are deleted with it.
    if network.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    for namespace in namespaces {
        let mut wanted = definition(network, namespace);
        match named(namespace) {
            None => plan.apply.push(wanted),
            Some(found) if !found.is_ours(&network.name_any()) => plan.taken.push(namespace.clone()),
            Some(found) => {
                let annotation =
                    |of: &NetworkAttachmentDefinition| of.annotations().get(RESOURCE_ANNOTATION).cloned();
                if found.spec != wanted.spec || annotation(&found) != annotation(&wanted) {
                    wanted.metadata.resource_version = found.resource_version();
                    plan.apply.push(wanted);
                }
            }
        }
    }
    let name = network.name_any();
    let unwanted = ours.iter().filter(|nad| {
        let namespace = nad.namespace().unwrap_or_default();
        nad.is_ours(&name) && !namespaces.contains(&namespace) && !may_use(&namespace)
    });
    plan.delete.extend(unwanted.cloned());
    plan
}

fn definition(network: &HybridNetwork, namespace: &str) -> NetworkAttachmentDefinition {
    let name = network.name_any();
    let config = json!({"cniVersion": "1.0.0", "type": "hybridnic", "name": name, "network": name});
    let spec = NetworkAttachmentDefinitionSpec {
        config: config.to_string(),
    };
    let mut nad = NetworkAttachmentDefinition::new(&name, spec);
    nad.metadata.namespace = Some(namespace.to_owned());
    nad.metadata.labels = Some(
        [
            (NETWORK_LABEL.to_owned(), name.clone()),
            (MADE_LABEL.to_owned(), OPERATOR_MANAGER.to_owned()),
        ]
        .into(),
    );
    nad.metadata.annotations = Some([(RESOURCE_ANNOTATION.to_owned(), resource(&name))].into());
    nad.metadata.owner_references = network.owner_ref(&()).map(|owner| vec![owner]);
    nad
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::network;

    fn names(of: &[&str]) -> BTreeSet<String> {
        of.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_network_has_one_in_each_namespace_and_it_is_repaired() {
        let net = network("net");
        let first = plan(&net, &names(&["sys", "shop"]), |_| true, &[], |_| None);
        assert_eq!(first.apply.len(), 2);
        let made = &first.apply[0];
        assert_eq!(
            made.spec.config,
            r#"{"cniVersion":"1.0.0","name":"net","network":"net","type":"hybridnic"}"#
        );
        assert_eq!(made.annotations()[RESOURCE_ANNOTATION], "hybridnic.io/net");
        assert_eq!(made.owner_references()[0].kind, "HybridNetwork");
        let find = |namespace: &str| {
            let found = first
                .apply
                .iter()
                .find(|nad| nad.namespace().as_deref() == Some(namespace));
            found.cloned().map(Arc::new)
        };
        let all = names(&["sys", "shop"]);
        assert_eq!(plan(&net, &all, |_| true, &[], find), Plan::default());
        let changed = plan(
            &net,
            &all,
            |_| true,
            &[],
            |namespace| {
                let mut found = (*find(namespace)?).clone();
                found.metadata.resource_version = Some("7".to_owned());
                if namespace == "shop" {
                    found.spec.config = "{}".to_owned();
                }
                Some(Arc::new(found))
            },
        );
        assert_eq!(changed.apply.len(), 1);
        assert_eq!(changed.apply[0].resource_version().as_deref(), Some("7"));
    }

    #[test]
    fn what_is_somebody_elses_is_left_alone_and_said() {
        let net = network("net");
        let theirs = |_: &str| {
            let mut nad = definition(&net, "shop");
            nad.metadata.labels = None;
            Some(Arc::new(nad))
        };
        let all = plan(&net, &names(&["shop"]), |_| true, &[theirs("").unwrap()], theirs);
        assert_eq!((all.apply.len(), all.delete.len()), (0, 0));
        assert_eq!(all.taken, ["shop"]);
    }

    #[test]
    fn it_goes_where_the_network_may_not_be_used_any_more() {
        let net = network("net");
        let ours = [
            Arc::new(definition(&net, "shop")),
            Arc::new(definition(&net, "lab")),
        ];
        let left = plan(&net, &names(&[]), |namespace| namespace == "lab", &ours, |_| None);
        assert_eq!(left.delete.len(), 1);
        assert_eq!(left.delete[0].namespace().as_deref(), Some("shop"));
    }
}
