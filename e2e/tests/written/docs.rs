//! The documentation against the repository: its links lead somewhere, its lists are whole, its commands have a test.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use hybridnic_api::v1alpha1::{MigrationPhase, NicPhase};
use hybridnic_e2e::docs::{self, Page};
use schemars::JsonSchema;

const SUMMARY: &str = "docs/SUMMARY.md";
const TROUBLESHOOTING: &str = "docs/troubleshooting.md";
/// Where the lists of reasons are.
const CONDITIONS: &str = include_str!("../../../crates/api/src/conditions.rs");
/// What a line that is meant to be typed begins with.
const COMMANDS: &[&str] = &[
    "kubectl ",
    "helm ",
    "make ",
    "cargo ",
    "hybridnic-",
    "ip ",
    "systemctl ",
    "modprobe ",
    "nmcli ",
    "networkctl ",
    "ethtool ",
    "qemu-system",
    "cat ",
    "ls ",
    "echo ",
    "sudo ",
    "fuser ",
];

/// All that is wrong, in one failure.
fn none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// A path below the repository without `..` in it; nothing when it leads out.
fn tidy(path: &Path) -> Option<PathBuf> {
    let mut tidy = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => tidy.pop().then_some(())?,
            Component::CurDir => {}
            part => tidy.push(part),
        }
    }
    Some(tidy)
}

/// The file that a link of `page` leads to, and the anchor in it. Nothing for other places than the repository.
fn target(page: &Page, to: &str) -> Option<(Option<PathBuf>, String)> {
    if to.contains("://") || to.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = to.split_once('#').unwrap_or((to, ""));
    let path = match file {
        "" => Some(page.path.clone()),
        file => tidy(&page.path.parent()?.join(file)),
    };
    Some((path, anchor.to_owned()))
}

#[test]
fn links_lead_somewhere() {
    let pages = docs::pages().unwrap();
    let anchors: BTreeMap<_, _> = pages.iter().map(|p| (p.path.clone(), &p.anchors)).collect();
    let mut wrong = Vec::new();
    for page in &pages {
        for link in &page.links {
            let at = format!("{}:{}: {}", page.path.display(), link.line, link.to);
            let Some((path, anchor)) = target(page, &link.to) else {
                continue;
            };
            let Some(path) = path.filter(|path| docs::root().join(path).exists()) else {
                wrong.push(format!("{at}: there is no such file"));
                continue;
            };
            // The book has nothing but docs/.
            if page.path.starts_with("docs") && !path.starts_with("docs") {
                wrong.push(format!("{at}: leads out of the book; name the file instead"));
            }
            if !anchor.is_empty() && !anchors.get(&path).is_some_and(|a| a.contains(&anchor)) {
                wrong.push(format!("{at}: no heading makes that anchor"));
            }
        }
    }
    none(&wrong);
}

#[test]
fn the_book_has_every_page() {
    let pages = docs::pages().unwrap();
    let summary = pages.iter().find(|p| p.path == Path::new(SUMMARY)).unwrap();
    let listed: Vec<_> = summary
        .links
        .iter()
        .filter_map(|link| target(summary, &link.to)?.0)
        .collect();
    let mut wrong = Vec::new();
    for page in pages
        .iter()
        .filter(|p| p.path.starts_with("docs") && p.path != summary.path)
    {
        let times = listed.iter().filter(|path| **path == page.path).count();
        if times != 1 {
            wrong.push(format!("{} is in {SUMMARY} {times} times", page.path.display()));
        }
    }
    none(&wrong);
}

#[test]
fn every_picture_is_shown() {
    let shown: BTreeSet<_> = docs::pages()
        .unwrap()
        .iter()
        .flat_map(|page| {
            page.links
                .iter()
                .filter(|l| l.picture)
                .map(move |l| target(page, &l.to))
        })
        .filter_map(|target| target?.0)
        .collect();
    let mut files = Vec::new();
    docs::below(&docs::root(), Path::new("docs/pictures"), &mut files).unwrap();
    let unused = files.iter().filter(|file| !shown.contains(*file));
    none(
        &unused
            .map(|file| format!("no page shows {}", file.display()))
            .collect::<Vec<_>>(),
    );
    for file in files {
        let text = fs::read_to_string(docs::root().join(&file)).unwrap();
        for part in ["<title", "viewBox=", "prefers-color-scheme: dark"] {
            assert!(text.contains(part), "{} has no {part}", file.display());
        }
    }
}

/// The first cells of the tables whose header begins with `header`.
fn entries(page: &Page, header: &str) -> Vec<String> {
    page.tables
        .iter()
        .filter(|table| table.rows[0][0] == header)
        .flat_map(|table| &table.rows[1..])
        .map(|row| row[0].clone())
        .collect()
}

/// Each word of `are`, and no other, is explained once.
fn explained(page: &Page, header: &str, are: &BTreeSet<String>) {
    let entries = entries(page, header);
    let mut wrong: Vec<_> = are
        .iter()
        .map(|word| (word, entries.iter().filter(|e| *e == word).count()))
        .filter(|(_, times)| *times != 1)
        .map(|(word, times)| format!("{word} has {times} entries in tables of {header:?}"))
        .collect();
    let unknown = entries.iter().filter(|e| !are.contains(*e));
    wrong.extend(unknown.map(|e| format!("{e} is explained as a {header}, and is none")));
    none(
        &wrong
            .iter()
            .map(|w| format!("{}: {w}", page.path.display()))
            .collect::<Vec<_>>(),
    );
}

fn page(path: &str) -> Page {
    let pages = docs::pages().unwrap();
    pages.into_iter().find(|p| p.path == Path::new(path)).unwrap()
}

fn reasons() -> BTreeSet<String> {
    let (_, module) = CONDITIONS.split_once("pub mod reasons {").unwrap();
    let (module, _) = module.split_once("\n}").unwrap();
    let names: BTreeSet<_> = module
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub const "))
        .map(|line| line.split('"').nth(1).unwrap().to_owned())
        .collect();
    assert!(names.contains("VfActive") && names.len() > 40, "{names:?}");
    names
}

/// The values of an enum of the API.
fn words<T: JsonSchema>() -> BTreeSet<String> {
    let schema = schemars::schema_for!(T);
    let values = schema.get("oneOf").and_then(|v| v.as_array()).unwrap();
    values
        .iter()
        .map(|v| v["const"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn every_reason_is_explained() {
    explained(&page(TROUBLESHOOTING), "reason", &reasons());
}

/// Events carry the reasons of conditions; those of a migration that goes on, the names of its phases.
#[test]
fn every_event_is_explained() {
    // A migration that waits or ends reports the reason of its condition, and what comes between is in the status.
    let quiet = [
        "Pending",
        "SwitchingToStandby",
        "Transferring",
        "Completing",
        "RollingBack",
        "Succeeded",
        "Failed",
        "Cancelled",
    ];
    let mut phases = words::<MigrationPhase>();
    for phase in quiet {
        assert!(phases.remove(phase), "{phase} is no phase");
    }
    explained(&page(TROUBLESHOOTING), "event", &phases);
}

#[test]
fn every_phase_is_explained() {
    explained(&page("docs/migrations.md"), "phase", &words::<MigrationPhase>());
    explained(&page("docs/concepts.md"), "phase", &words::<NicPhase>());
}

/// `sh run` is run by the cluster tier; `sh not-run: WHY` is not, for a reason that the reader may see.
#[test]
fn every_command_is_run_or_says_why_not() {
    let mut wrong = Vec::new();
    let mut run = 0;
    for page in docs::pages().unwrap() {
        for block in &page.blocks {
            let at = format!("{}:{}", page.path.display(), block.line);
            match (block.language(), block.words()) {
                ("sh", "run") => run += 1,
                ("sh", words)
                    if words
                        .strip_prefix("not-run:")
                        .is_some_and(|why| why.trim().len() > 8) => {}
                ("sh", words) => wrong.push(format!("{at}: neither `run` nor `not-run: WHY`: {words:?}")),
                ("" | "text" | "yaml" | "ini" | "json", _) => {
                    let typed = block
                        .text
                        .lines()
                        .find(|l| COMMANDS.iter().any(|c| l.starts_with(c)));
                    wrong.extend(typed.map(|l| format!("{at}: a command in a block that is not `sh`: {l}")));
                }
                (other, _) => wrong.push(format!(
                    "{at}: the language {other:?} is none that the tests know"
                )),
            }
        }
    }
    none(&wrong);
    assert!(run > 0, "no page has a block that is run");
}
