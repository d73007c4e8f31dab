//! The report on a terminal. Pure.

use super::{Report, finding::Level};
use crate::style::{Grid, Tone, cell};

/// A row for each finding, with what to do below it, and the sums.
pub fn draw(report: &Report, width: Option<usize>) -> String {
    let mut grid = Grid::new(&[], width);
    for finding in &report.findings {
        let level = match finding.level {
            Level::Ok => Tone::Good.cell("ok"),
            Level::Warn => Tone::Warn.cell("warn"),
            Level::Fail => Tone::Bad.cell("FAIL"),
        };
        let fix = finding
            .fix
            .as_ref()
            .map(|fix| format!("\n→ {fix}"))
            .unwrap_or_default();
        grid.row(vec![
            level,
            cell(finding.check),
            cell(format!("{}{fix}", finding.message)),
        ]);
    }
    let kubernetes = report.kubernetes.as_deref().unwrap_or("of an unknown version");
    let tone = match (report.failures, report.warnings) {
        (0, 0) => Tone::Good,
        (0, _) => Tone::Warn,
        _ => Tone::Bad,
    };
    let count = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    let sums = format!(
        "{} ok, {}, {}",
        report.ok,
        count(report.warnings, "warning"),
        count(report.failures, "failure")
    );
    format!(
        "hybridnic {} on Kubernetes {kubernetes}\n\n{}\n{}\n",
        report.version,
        grid.render(0),
        tone.paint(sums)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{doctor::finding::Finding, style::plain};

    fn report() -> Report {
        Report {
            version: "0.1.0",
            kubernetes: Some("v1.33.1".to_owned()),
            findings: vec![
                Finding::ok("crds", "5 kinds"),
                Finding::fail(
                    "iommu",
                    "n1: 7 VFs have no IOMMU group",
                    "switch the IOMMU on: intel_iommu=on",
                ),
            ],
            ok: 1,
            warnings: 0,
            failures: 1,
        }
    }

    #[test]
    fn a_report() {
        assert_eq!(
            plain(&draw(&report(), None)),
            "\
hybridnic 0.1.0 on Kubernetes v1.33.1

ok    crds   5 kinds
FAIL  iommu  n1: 7 VFs have no IOMMU group
             → switch the IOMMU on: intel_iommu=on

1 ok, 0 warnings, 1 failure
"
        );
    }

    #[test]
    fn a_narrow_report_is_wrapped() {
        let text = plain(&draw(&report(), Some(40)));
        assert!(text.lines().all(|line| line.chars().count() <= 40), "{text}");
    }
}
