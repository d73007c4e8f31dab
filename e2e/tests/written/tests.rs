//! The tests that the pages name as their proof: each is there.

use std::{fs, path::Path};

use hybridnic_e2e::docs;

/// Pages that say which test shows what.
const PAGES: [&str; 3] = ["docs/comparison.md", "docs/security.md", "docs/testing.md"];

/// The text of all Rust sources below a directory.
fn sources(dir: &Path, all: &mut String) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let hidden = path.file_name().unwrap().to_string_lossy().starts_with('.');
        if path.is_dir() && !hidden && !path.ends_with("target") {
            sources(&path, all);
        } else if path.extension().is_some_and(|end| end == "rs") {
            all.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

/// Whether the text in backticks is the name of a test: a sentence whose end may be left out.
fn is_sentence(word: &str) -> bool {
    let only = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '…';
    word.matches('_').count() >= 3 && word.chars().all(only)
}

#[test]
fn every_test_that_a_page_names_is_there() {
    let mut all = String::new();
    sources(&docs::root(), &mut all);
    let mut named = 0;
    for page in PAGES {
        let text = fs::read_to_string(docs::root().join(page)).unwrap();
        for word in text
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|word| is_sentence(word))
        {
            named += 1;
            let name = word.trim_end_matches('…').trim_end_matches('_');
            let is_test = [format!("fn {name}"), format!("\"{name}")];
            assert!(
                is_test.iter().any(|test| all.contains(test)),
                "{page} names {word}, which is no test"
            );
        }
    }
    assert!(named > 50, "only {named} are named");
}
