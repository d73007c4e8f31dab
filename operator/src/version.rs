//! Which agents this operator works with. Pure.
//!
//! The same major version, and a minor version that is at most one older or newer: so either program can be upgraded first,
//! one minor version at a time. The patch does not matter.

use hybridnic_api::v1alpha1::HybridNode;
use semver::Version;

/// The version of this operator.
const OWN: &str = env!("CARGO_PKG_VERSION");

/// Whether an agent is one that this operator works with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// It is.
    Yes,
    /// It is not; says why, and what to do.
    No(String),
    /// It has not said its version yet.
    Unknown,
}

/// Whether the agent that reports for `node` is one that this operator works with.
pub fn of_agent(node: &HybridNode) -> Support {
    match node
        .status
        .as_ref()
        .and_then(|status| status.agent_version.as_deref())
    {
        Some(agent) => support(OWN, agent),
        None => Support::Unknown,
    }
}

fn support(operator: &str, agent: &str) -> Support {
    let why = match (Version::parse(operator), Version::parse(agent)) {
        (Ok(own), Ok(other)) if own.major == other.major && own.minor.abs_diff(other.minor) <= 1 => {
            return Support::Yes;
        }
        (_, Err(_)) => format!("the agent says that its version is {agent:?}, which is no version"),
        (Ok(own), Ok(other)) if other < own => {
            format!("the agent's version {agent} is too old for this operator, {operator}; upgrade the agent")
        }
        _ => format!(
            "the agent's version {agent} is too new for this operator, {operator}; upgrade the operator"
        ),
    };
    Support::No(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_minor_version_apart_is_supported_either_way() {
        for agent in ["0.3.0", "0.3.9", "0.2.7", "0.4.0", "0.4.0-rc.1"] {
            assert_eq!(support("0.3.1", agent), Support::Yes, "{agent}");
        }
        let why = |agent: &str| match support("0.3.1", agent) {
            Support::No(why) => why,
            other => panic!("{agent}: {other:?}"),
        };
        assert!(why("0.1.9").contains("upgrade the agent"));
        assert!(why("0.5.0").contains("upgrade the operator"));
        assert!(why("1.3.1").contains("upgrade the operator"));
        assert!(why("latest").contains("no version"));
        assert!(why("").contains("no version"));
        assert_eq!(support(OWN, OWN), Support::Yes);
    }
}
