//! The metrics that the programs have are those that the documentation, the alerts and the dashboard speak of. No cluster is
//! needed.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use hybridnic_process::metrics::{Described, Registry};
use serde_json::Value;

const DOC: &str = "docs/metrics-and-alerts.md";
const ALERTS: &str = "deploy/chart/files/alerts.yaml";
const DASHBOARD: &str = "deploy/chart/files/dashboard.json";

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn programs() -> [(&'static str, Registry); 2] {
    [
        ("operator", hybridnic_operator::metrics().0),
        ("agent", hybridnic_agent::metrics::metrics().0),
    ]
}

/// All that can be queried by name; for a histogram its three series.
fn series() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (_, registry) in programs() {
        for Described { name, kind, .. } in registry.described() {
            if *kind == "histogram" {
                names.extend(["bucket", "sum", "count"].map(|part| format!("{name}_{part}")));
            } else {
                names.insert(name.clone());
            }
        }
    }
    names
}

/// The names of our metrics in a text.
fn named(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("hybridnic_"))
        .map(str::to_owned)
        .collect()
}

fn table(registry: &Registry) -> String {
    let mut table = "| metric | type | labels | says |\n|---|---|---|---|\n".to_owned();
    for metric in registry.described() {
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = if labels.is_empty() {
            "–".to_owned()
        } else {
            labels.join(", ")
        };
        writeln!(
            table,
            "| `{}` | {} | {labels} | {} |",
            metric.name, metric.kind, metric.help
        )
        .unwrap();
    }
    table
}

#[test]
fn the_documentation_has_every_metric() {
    let doc = read(DOC);
    for (program, registry) in programs() {
        let (begin, end) = (format!("<!-- metrics of the {program} -->\n"), "<!-- end -->");
        let written = doc.split_once(&begin).and_then(|(_, rest)| rest.split_once(end));
        let written = written
            .unwrap_or_else(|| panic!("{DOC} has no table after {begin}"))
            .0;
        let right = table(&registry);
        assert_eq!(
            written, right,
            "the table of the {program} in {DOC} should be:\n\n{right}"
        );
    }
}

#[test]
fn metrics_have_names_and_labels_as_prometheus_wants_them() {
    // Words that would grow with the users' objects.
    let unbounded = ["nic", "vm", "pod", "namespace", "mac", "uid", "migration", "name"];
    for (program, registry) in programs() {
        let mut seen = BTreeSet::new();
        for metric in registry.described() {
            let Described {
                name, kind, labels, ..
            } = metric;
            assert!(seen.insert(name), "{program} has {name} twice");
            assert_eq!(*kind == "counter", name.ends_with("_total"), "{name}");
            assert!(*kind != "histogram" || name.ends_with("_seconds"), "{name}");
            for label in labels {
                assert!(!unbounded.contains(label), "{name} by {label} has no bound");
            }
        }
    }
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_exist() {
    let known = series();
    for path in [ALERTS, DASHBOARD, "e2e/monitoring/alerts_test.yaml"] {
        let unknown: Vec<_> = named(&read(path)).difference(&known).cloned().collect();
        assert_eq!(unknown, [] as [&str; 0], "{path}");
    }
    let shown = named(&read(DASHBOARD));
    for (_, registry) in programs() {
        for Described { name, .. } in registry.described() {
            assert!(
                shown.iter().any(|s| s.starts_with(name.as_str())),
                "{DASHBOARD} does not show {name}"
            );
        }
    }
}

#[test]
fn every_alert_has_words_a_runbook_and_a_test() {
    let alerts: Value = serde_saphyr::from_str(&read(ALERTS)).unwrap();
    let (doc, tests) = (read(DOC), read("e2e/monitoring/alerts_test.yaml"));
    let headings: BTreeSet<_> = doc.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let mut names = BTreeSet::new();
    for group in alerts["groups"].as_array().unwrap() {
        for rule in group["rules"].as_array().unwrap() {
            let name = rule["alert"].as_str().unwrap();
            assert!(names.insert(name.to_owned()), "{name} is there twice");
            for part in ["summary", "description"] {
                assert!(
                    rule["annotations"][part].as_str().is_some_and(|s| s.len() > 10),
                    "{name}: {part}"
                );
            }
            let runbook = format!("{DOC}#{}", name.to_lowercase());
            assert_eq!(rule["annotations"]["runbook_url"], runbook.as_str(), "{name}");
            assert!(headings.contains(name), "{DOC} has no section {name}");
            let severity = rule["labels"]["severity"].as_str().unwrap_or_default();
            assert!(
                ["critical", "warning", "info"].contains(&severity),
                "{name}: {severity:?}"
            );
            let fires = format!("alertname: {name}\n        exp_alerts:\n          - exp_labels:");
            assert!(tests.contains(&fires), "no test lets {name} fire");
        }
    }
    let sections = headings.iter().filter(|heading| heading.starts_with("Hybridnic"));
    assert_eq!(
        sections.count(),
        names.len(),
        "{DOC} has sections of alerts that do not exist"
    );
}

/// What Grafana needs of a dashboard (its schema version 39) to show it: there is no package of Grafana to try.
#[test]
fn the_dashboard_is_one_that_grafana_shows() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let text = |value: &Value, what: &str| {
        let text = value
            .as_str()
            .unwrap_or_else(|| panic!("{what} is no text: {value}"));
        assert!(!text.is_empty(), "{what} is empty");
        text.to_owned()
    };
    for key in ["title", "uid", "description", "refresh"] {
        text(&dashboard[key], key);
    }
    assert!(dashboard["schemaVersion"].as_i64().is_some_and(|v| v >= 36));
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables
        .iter()
        .map(|v| text(&v["name"], "a variable's name"))
        .collect();
    assert_eq!(names, ["datasource", "network"]);
    assert_eq!(variables[0]["type"], "datasource");
    assert_eq!(variables[0]["query"], "prometheus");
    assert_eq!(variables[1]["datasource"]["uid"], "${datasource}");

    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = text(&panel["title"], "a panel's title");
        assert!(
            ids.insert(panel["id"].as_i64().unwrap()),
            "{title}: its id is another's too"
        );
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_i64().unwrap());
        assert!(
            x >= 0 && w > 0 && h > 0 && x + w <= 24,
            "{title} is outside the grid"
        );
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(cells.insert(cell), "{title} lies over another panel");
        }
        let kind = text(&panel["type"], &title);
        if kind == "row" {
            assert_eq!(panel["panels"], serde_json::json!([]), "{title}");
            continue;
        }
        assert!(
            ["stat", "timeseries", "bargauge", "heatmap"].contains(&kind.as_str()),
            "{title}: {kind}"
        );
        text(&panel["description"], &title);
        text(&panel["fieldConfig"]["defaults"]["unit"], &title);
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        let mut refs = BTreeSet::new();
        for target in panel["targets"].as_array().unwrap() {
            assert!(
                refs.insert(text(&target["refId"], &title)),
                "{title}: a refId is there twice"
            );
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            let expr = text(&target["expr"], &title);
            assert!(
                !named(&expr).is_empty(),
                "{title} asks for nothing of ours: {expr}"
            );
            for used in expr.split('$').skip(1) {
                assert!(
                    used.starts_with("network\""),
                    "{title} uses an unknown variable: {expr}"
                );
            }
        }
        assert!(!refs.is_empty(), "{title} asks for nothing");
    }
}
