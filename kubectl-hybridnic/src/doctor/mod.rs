//! `doctor`: checks a cluster, and says how to fix what is wrong.
//!
//! First everything that any check needs is fetched ([`observed`]); a refusal is an observation too. Then
//! each check judges by [`Observed`] alone.

mod checks;
mod finding;
mod foreign;
mod kubevirt;
mod observed;
mod rights;
#[cfg(test)]
mod testing;
mod view;

use std::process::ExitCode;

use serde::Serialize;

use crate::{cli::Format, connect::Cluster, print};
use finding::{Finding, Level};
use observed::Observed;

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
    let observed = Box::pin(Observed::fetch(cluster)).await?;
    let report = Report::new(&observed);
    print::value(output, &report, |report| view::draw(report, print::width()))?;
    Ok(if report.failures == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Report {
    fn new(observed: &Observed) -> Self {
        let findings: Vec<Finding> = checks::ALL.iter().flat_map(|check| check(observed)).collect();
        let count = |level| findings.iter().filter(|finding| finding.level == level).count();
        Self {
            version: observed::VERSION,
            kubernetes: observed.kubernetes.clone(),
            ok: count(Level::Ok),
            warnings: count(Level::Warn),
            failures: count(Level::Fail),
            findings,
        }
    }
}
