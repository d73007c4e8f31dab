//! The checks: each a pure function of what is observed.

mod hardware;
mod install;
mod kubevirt;
mod objects;
mod others;
mod programs;
mod remedy;

use super::{finding::Finding, observed::Observed};

/// Looks at one thing.
pub type Check = fn(&Observed) -> Vec<Finding>;

/// All, in the order of the report: what others depend on comes first.
pub const ALL: &[Check] = &[
    install::crds,
    install::policy,
    programs::operator,
    programs::lease,
    programs::agents,
    programs::versions,
    install::rights,
    hardware::pfs,
    hardware::drivers,
    hardware::iommu,
    hardware::vfs,
    objects::nodes,
    objects::networks,
    objects::nics,
    objects::migrations,
    kubevirt::kubevirt,
    kubevirt::binding,
    kubevirt::definitions,
    kubevirt::resources,
    kubevirt::vms,
    kubevirt::migrations,
    others::sriov_operator,
    others::device_plugins,
    others::dra,
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use hybridnic_api::conditions::types;
    use serde_json::{Value, from_value, json};

    use super::*;
    use crate::doctor::{finding::Level, testing::healthy};

    /// The types of conditions that there are.
    fn all_types() -> BTreeSet<&'static str> {
        let source = include_str!("../../../../crates/api/src/conditions.rs");
        let (_, types) = source.split_once("pub mod types {").unwrap();
        let (types, _) = types.split_once("\n}").unwrap();
        let value = |line: &'static str| line.trim().strip_prefix("pub const")?.split('"').nth(1);
        types.lines().filter_map(value).collect()
    }

    /// Trouble by each condition of each kind, in a cluster that is well otherwise: the condition's type, and what doctor finds.
    fn troubles() -> Vec<(&'static str, Vec<Finding>)> {
        let condition = |type_: &str, status: &str, reason: &str| -> Value {
            json!({
                "type": type_, "status": status, "reason": reason, "message": "as is said",
                "lastTransitionTime": "2026-01-01T11:00:00Z",
            })
        };
        let mut all = Vec::new();
        let mut look = |type_, change: &dyn Fn(&mut Observed)| {
            let mut observed = healthy();
            change(&mut observed);
            all.push((
                type_,
                ALL.iter().flat_map(|check| check(&observed)).collect::<Vec<_>>(),
            ));
        };
        for (type_, status, reason) in [
            (types::READY, "False", "Failed"),
            (types::DEGRADED, "True", "DeviceHung"),
            (types::DEGRADED, "True", "JournalFailed"),
            (types::DEGRADED, "True", "SocketsNotWatched"),
            (types::DEGRADED, "True", "KubeletUnreachable"),
            (types::DEGRADED, "True", "NotOffered"),
            (types::DRAINED, "False", "Draining"),
            (types::DRAINED, "False", "NothingToDrain"),
        ] {
            look(type_, &|observed| {
                let node = &mut observed.hybrid_nodes.as_mut().unwrap()[0];
                node.status.as_mut().unwrap().conditions =
                    vec![from_value(condition(type_, status, reason)).unwrap()];
            });
        }
        for type_ in [types::ACCEPTED, types::READY] {
            look(type_, &|observed| {
                let network = &mut observed.networks.as_mut().unwrap()[0];
                network.status.as_mut().unwrap().conditions =
                    vec![from_value(condition(type_, "False", "Failed")).unwrap()];
            });
        }
        for type_ in [
            types::ACCEPTED,
            types::READY,
            types::FAST_PATH,
            types::STANDBY_FILTER,
        ] {
            look(type_, &|observed| {
                let nic = &mut observed.nics.as_mut().unwrap()[0];
                nic.status.as_mut().unwrap().conditions =
                    vec![from_value(condition(type_, "False", "Failed")).unwrap()];
            });
        }
        for (type_, status, reason) in [
            (types::SUCCEEDED, "Unknown", "NeedsDecision"),
            (types::ENCRYPTED, "False", "TlsUnavailable"),
        ] {
            look(type_, &|observed| {
                let migration = json!({
                    "metadata": {"name": "m", "namespace": "shop"}, "spec": {"vm": "web"},
                    "status": {"phase": "Transferring", "conditions": [condition(type_, status, reason)]},
                });
                observed.migrations = Ok(vec![from_value(migration).unwrap()]);
            });
        }
        all
    }

    #[test]
    fn every_condition_that_says_trouble_is_told() {
        let troubles = troubles();
        for (type_, findings) in &troubles {
            let told = |f: &Finding| {
                f.level > Level::Ok && f.message.contains(type_) && f.message.contains("as is said")
            };
            assert!(findings.iter().any(told), "{type_}: {findings:#?}");
        }
        // One more type of condition is one more row above.
        let tried: BTreeSet<_> = troubles.iter().map(|(type_, _)| *type_).collect();
        assert_eq!(tried, all_types());
    }
}
