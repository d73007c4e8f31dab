//! What is to be drained, and how that changes what a node's object says. Pure.

use hybridnic_api::v1alpha1::{Drain, HybridNode, PfStatus};
use kube::ResourceExt as _;

use super::Which;

/// What of a node is drained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// All PFs.
    All,
    /// One, by its PCI address.
    Pf(String),
    /// All PFs, for the NICs of a network.
    Network(String),
}

/// What is meant on this node. A PF is found by its name or its PCI address.
pub fn target(which: &Which, node: &HybridNode) -> Result<Target, String> {
    if which.all {
        return Ok(Target::All);
    }
    let name = node.name_any();
    if let Some(network) = &which.network {
        let drained = node.spec.drain.networks.contains(network);
        let here = node.spec.pools.iter().any(|pool| pool.network == *network);
        return if here || drained {
            Ok(Target::Network(network.clone()))
        } else {
            Err(format!("the network {network} has no pool on {name}"))
        };
    }
    let asked = which.pf.as_deref().unwrap_or_default();
    let status = node.status.clone().unwrap_or_default();
    let is = |pf: &&PfStatus| pf.pci_address == asked || !pf.name.is_empty() && pf.name == asked;
    // A PF that has gone can still be undrained.
    let known = node.spec.drain.pfs.iter().find(|pf| *pf == asked).cloned();
    let here = status.pfs.iter().find(is).map(|pf| pf.pci_address.clone());
    here.or(known).map(Target::Pf).ok_or_else(|| {
        let names = status
            .pfs
            .iter()
            .map(|pf| format!("{} ({})", pf.name, pf.pci_address));
        let names = names.collect::<Vec<_>>().join(", ");
        if names.is_empty() {
            format!("{name} has no PF {asked}; its agent has reported none")
        } else {
            format!("{name} has no PF {asked}; it has {names}")
        }
    })
}

/// What the node says once this is drained, or no longer.
pub fn changed(drain: &Drain, target: &Target, drained: bool) -> Drain {
    let mut drain = drain.clone();
    let set = |list: &mut Vec<String>, name: &String| {
        list.retain(|other| other != name);
        if drained {
            list.push(name.clone());
        }
    };
    match target {
        Target::All => drain.all = drained,
        Target::Pf(address) => set(&mut drain.pfs, address),
        Target::Network(name) => set(&mut drain.networks, name),
    }
    drain
}

/// Whether it is drained by what a node says, no matter by which of its fields.
pub fn covers(drain: &Drain, target: &Target) -> bool {
    match target {
        Target::All => drain.all,
        Target::Pf(address) => drain.covers_pf(address),
        Target::Network(name) => drain.covers_network(name),
    }
}

/// The arguments that undrain what stays drained.
pub fn left(drain: &Drain) -> Vec<String> {
    let all = drain.all.then(|| Target::All.arguments());
    let pfs = drain.pfs.iter().cloned().map(Target::Pf);
    let networks = drain.networks.iter().cloned().map(Target::Network);
    all.into_iter()
        .chain(pfs.chain(networks).map(|target| target.arguments()))
        .collect()
}

impl Target {
    /// How the command line says it.
    pub fn arguments(&self) -> String {
        match self {
            Self::All => "--all".to_owned(),
            Self::Pf(address) => address.clone(),
            Self::Network(network) => format!("--network {network}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn node(drain: &serde_json::Value) -> HybridNode {
        let pf = |name: &str, address: &str| json!({"name": name, "pciAddress": address, "vendor": "8086", "device": "10c9", "linkUp": true, "totalVfs": 7});
        from_value(json!({
            "metadata": {"name": "n1"},
            "spec": {"pools": [{"network": "fast", "uplinks": []}], "drain": drain},
            "status": {"pfs": [pf("ens1", "0000:01:00.0"), pf("", "0000:02:00.0")]},
        }))
        .unwrap()
    }

    fn which(pf: Option<&str>, network: Option<&str>) -> Which {
        Which {
            pf: pf.map(str::to_owned),
            all: pf.is_none() && network.is_none(),
            network: network.map(str::to_owned),
        }
    }

    #[test]
    fn a_pf_is_found_by_name_and_address_and_else_those_there_are_are_named() {
        let node = node(&json!({"pfs": ["0000:03:00.0"], "networks": ["gone"]}));
        let pf = |name| target(&which(Some(name), None), &node);
        assert_eq!(pf("ens1"), Ok(Target::Pf("0000:01:00.0".into())));
        assert_eq!(pf("0000:02:00.0"), Ok(Target::Pf("0000:02:00.0".into())));
        assert_eq!(
            pf("0000:03:00.0"),
            Ok(Target::Pf("0000:03:00.0".into())),
            "it has gone"
        );
        assert!(pf("ens9").unwrap_err().contains("ens1 (0000:01:00.0)"));
        assert!(pf("").is_err(), "a PF without a name has no empty one");
        let network = |name| target(&which(None, Some(name)), &node);
        assert_eq!(network("fast"), Ok(Target::Network("fast".into())));
        assert_eq!(network("gone"), Ok(Target::Network("gone".into())));
        assert!(network("slow").unwrap_err().contains("no pool on n1"));
        assert_eq!(target(&which(None, None), &node), Ok(Target::All));
    }

    #[test]
    fn what_others_have_said_stays() {
        let before = node(&json!({"pfs": ["0000:02:00.0"]})).spec.drain;
        let pf = Target::Pf("0000:01:00.0".into());
        let both = changed(&before, &pf, true);
        assert_eq!(both.pfs, ["0000:02:00.0", "0000:01:00.0"]);
        assert_eq!(changed(&both, &pf, true).pfs.len(), 2, "once");
        assert_eq!(changed(&both, &pf, false), before);
        let all = changed(&before, &Target::All, true);
        assert!(covers(&all, &pf) && !covers(&before, &pf));
        assert!(covers(&all, &Target::Network("fast".into())));
        assert_eq!(left(&all), ["--all", "0000:02:00.0"]);
        assert_eq!(left(&changed(&all, &Target::All, false)), ["0000:02:00.0"]);
        let one = changed(&before, &Target::Network("fast".into()), true);
        assert_eq!(left(&one), ["0000:02:00.0", "--network fast"]);
        assert!(covers(&one, &Target::Network("fast".into())) && !covers(&one, &pf));
        assert!(changed(&changed(&Drain::default(), &pf, true), &pf, false).is_empty());
    }
}
