//! `doctor`: checks a cluster, and says how to fix what is wrong.
//!
//! First everything is fetched that any check needs ([`facts`]); what may not be fetched is a fact too. Then each check
//! judges by the facts alone.

mod checks;
mod facts;
mod finding;
mod foreign;
mod kubevirt;
mod rights;
#[cfg(test)]
mod testing;
mod view;

use std::process::ExitCode;

use serde::Serialize;

use crate::{cli::Format, connect::Cluster, print};
use facts::Facts;
use finding::{Finding, Level};

/// What the doctor says.
#[derive(Debug, Serialize)]
struct Report {
    /// Version of the plugin, which the cluster is compared with.
    version: &'static str,
    /// Version of the API server, where it says.
    kubernetes: Option<String>,
    /// What was found, check by check.
    findings: Vec<Finding>,
    /// How many of the findings are well.
    ok: usize,
    /// How many are worth a look.
    warnings: usize,
    /// How many are wrong.
    failures: usize,
}

/// Checks the cluster. The exit code is 1 where something is wrong.
pub async fn run(cluster: &Cluster, output: Format) -> anyhow::Result<ExitCode> {
    let facts = Box::pin(Facts::fetch(cluster)).await?;
    let report = Report::new(&facts);
    print::value(output, &report, |report| view::draw(report, print::width()))?;
    Ok(if report.failures == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Report {
    fn new(facts: &Facts) -> Self {
        let findings: Vec<Finding> = checks::ALL.iter().flat_map(|check| check(facts)).collect();
        let count = |level| findings.iter().filter(|finding| finding.level == level).count();
        Self {
            version: facts::VERSION,
            kubernetes: facts.kubernetes.clone(),
            ok: count(Level::Ok),
            warnings: count(Level::Warn),
            failures: count(Level::Fail),
            findings,
        }
    }
}
