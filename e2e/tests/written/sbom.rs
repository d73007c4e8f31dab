//! What the programs say is compiled into them, against Cargo.lock.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use hybridnic_e2e::docs;
use serde_json::Value;

#[test]
fn it_lists_what_is_compiled_in_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let script = docs::root().join("deploy/images/sbom.py");
    let status = Command::new(script).arg(dir.path()).status().unwrap();
    assert!(status.success());
    let lock = fs::read_to_string(docs::root().join("Cargo.lock")).unwrap();
    for (program, most, has, has_not) in [
        (
            "operator",
            400,
            ["kube", "hybridnic-api"],
            ["rtnetlink", "hybridnic-agent"],
        ),
        (
            "agent",
            400,
            ["rtnetlink", "hybridnic-qmp"],
            ["hybridnic-operator", "hybridnic-e2e"],
        ),
        // It stands in every VM's pod.
        (
            "sidecar",
            100,
            ["roxmltree", "hybridnic-text"],
            ["kube", "rustls"],
        ),
    ] {
        let text = fs::read_to_string(dir.path().join(program).with_extension("cdx.json")).unwrap();
        let sbom: Value = serde_json::from_str(&text).unwrap();
        let components = sbom["components"].as_array().unwrap();
        let mut names = BTreeSet::new();
        for component in components {
            let word = |field: &str| component[field].as_str().unwrap();
            let (name, version) = (word("name"), word("version"));
            let entry = format!("name = \"{name}\"\nversion = \"{version}\"\n");
            let (_, rest) = lock
                .split_once(&entry)
                .unwrap_or_else(|| panic!("{name} {version} is not in Cargo.lock"));
            let rest = rest.split("[[package]]").next().unwrap_or_default();
            let ours = name.starts_with("hybridnic-");
            let sum = component["hashes"][0]["content"].as_str();
            assert!(
                sum.map_or(ours, |sum| rest.contains(sum)),
                "{name} has another checksum"
            );
            assert!(
                component["licenses"][0]["expression"].is_string(),
                "{name} has no licence"
            );
            names.insert(name);
        }
        assert!((50..most).contains(&components.len()), "{}", components.len());
        // Macros, build dependencies, and what only tests need are in none.
        let never = ["serde_derive", "cc", "proptest", "tower-test"];
        assert!(has.iter().all(|name| names.contains(name)), "{names:?}");
        assert!(
            !has_not.iter().chain(&never).any(|name| names.contains(name)),
            "{names:?}"
        );
    }
}
