//! Writes of our programs that reached the API server, by its audit log. Those of the leader's lease are left out: they come
//! at fixed times, no matter what happens.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, bail};
use hybridnic_e2e::{
    chart::{AGENT_USER, OPERATOR_USER},
    controlplane::audit::Write,
    world::World,
};
use tokio::time::Instant;

/// After so long without a write no more will come: it is longer than any back-off except those after a failure.
const QUIET: Duration = Duration::from_secs(10);
/// For all to come to rest.
const SETTLE: Duration = Duration::from_mins(3);
/// Last writes that an error tells.
const TOLD: usize = 10;

/// Writes of our programs since a moment.
#[derive(Debug, Clone, Default)]
pub struct Writes(Vec<Write>);

impl Writes {
    /// All so far.
    pub fn all(world: &World) -> Result<Self> {
        Ok(Self(
            world.control_plane.writes()?.into_iter().filter(counts).collect(),
        ))
    }

    /// Those after an earlier moment.
    pub fn since(world: &World, earlier: &Self) -> Result<Self> {
        let Self(mut writes) = Self::all(world)?;
        writes.drain(..earlier.0.len());
        Ok(Self(writes))
    }

    /// How many the operator did.
    pub fn of_operator(&self) -> usize {
        self.of("operator")
    }

    /// How many a node's agent did.
    pub fn of_agent(&self, node: &str) -> usize {
        self.of(&format!("agent of {node}"))
    }

    fn of(&self, program: &str) -> usize {
        self.0
            .iter()
            .filter(|w| who(w).as_deref() == Some(program))
            .count()
    }

    /// Who did what to what, and how often, a line each.
    pub fn told(&self) -> String {
        let mut counts: BTreeMap<(String, &str, &str), usize> = BTreeMap::new();
        for write in &self.0 {
            let who = who(write).unwrap_or_default();
            *counts.entry((who, &write.verb, &write.resource)).or_default() += 1;
        }
        let lines = counts
            .iter()
            .map(|((who, verb, resource), n)| format!("\n  {n:>3} × {who} {verb} {resource}"));
        lines.collect::<Vec<_>>().concat()
    }
}

fn counts(write: &Write) -> bool {
    who(write).is_some() && write.resource != "leases"
}

/// Which of our programs wrote; all agents are one user, whose token names the node.
fn who(write: &Write) -> Option<String> {
    match write.user.as_str() {
        OPERATOR_USER => Some("operator".to_owned()),
        AGENT_USER => Some(format!("agent of {}", write.node.as_deref()?)),
        _ => None,
    }
}

/// Waits until our programs have written nothing for a while.
pub async fn until_quiet(world: &World) -> Result<()> {
    let end = Instant::now() + SETTLE;
    let (mut seen, mut since) = (Writes::all(world)?, Instant::now());
    while since.elapsed() < QUIET {
        if Instant::now() >= end {
            let last = &seen.0[seen.0.len().saturating_sub(TOLD)..];
            bail!("there is no rest after {SETTLE:?}; the last writes are {last:#?}");
        }
        // That nothing happens is no event.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = Writes::all(world)?;
        if now.0.len() != seen.0.len() {
            (seen, since) = (now, Instant::now());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(user: &str, node: Option<&str>, resource: &str) -> Write {
        Write {
            user: user.into(),
            node: node.map(Into::into),
            verb: "patch".into(),
            resource: resource.into(),
            namespace: String::new(),
            name: "x".into(),
            at: String::new(),
        }
    }

    #[test]
    fn counts_ours_by_who_wrote_and_no_lease() {
        let all = [
            write("admin", None, "qemumigrations"),
            write(OPERATOR_USER, None, "leases"),
            write(OPERATOR_USER, None, "nicattachments"),
            write(AGENT_USER, Some("n1"), "nicattachments/status"),
            write(AGENT_USER, Some("n1"), "nicattachments/status"),
            write(AGENT_USER, Some("n10"), "hybridnodes/status"),
        ];
        let writes = Writes(all.into_iter().filter(counts).collect());
        assert_eq!(
            (writes.of_operator(), writes.of_agent("n1"), writes.of_agent("n2")),
            (1, 2, 0)
        );
        assert!(
            writes
                .told()
                .contains("2 × agent of n1 patch nicattachments/status"),
            "{}",
            writes.told()
        );
    }
}
