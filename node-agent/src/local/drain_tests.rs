use serde_json::{Value, json};

use super::*;

const PF: &str = "0000:01:00.0";

/// What an agent says of its host, which has seen this version of its file.
fn say(dir: &Path, generation: Option<i64>, drain: Option<&str>) {
    let document = json!({
        "kind": "HybridNode",
        "metadata": { "name": "h1" },
        "status": {
            "observedGeneration": generation,
            "pfs": [{
                "name": "ens1f0", "pciAddress": PF, "vendor": "8086", "device": "10c9", "linkUp": true, "totalVfs": 7,
                "drain": drain, "vfs": [{"index": 0, "pciAddress": "0000:01:10.0", "state": "Held"}],
            }],
            "pools": [{"network": "fast", "vfs": {"total": 1, "free": 0, "held": 1, "unhealthy": 0}, "drain": drain}],
        },
    });
    put(dir, "node", &document);
}

/// A NIC that has the PF's VF, and why it keeps it.
fn say_nic(dir: &Path, reason: &str) {
    let document = json!({
        "kind": "VmHybridNic",
        "metadata": { "name": "eth0", "uid": "u" },
        "attached": {
            "socket": "/run/vms/vm1.qmp",
            "spec": {
                "nodeName": "h1", "nic": {"name": "eth0", "uid": "u"}, "vm": {"qemu": {"name": "vm1"}},
                "pod": {"name": "vm1", "uid": "b"}, "network": "fast", "mac": "02:00:00:00:00:0a", "goal": "FastPath",
                "noFreeVf": "Standby", "l2": {"spoofCheck": true, "trust": false},
            },
            "status": {
                "state": "FastPath", "path": "FastPath", "vf": {"pciAddress": "0000:01:10.0", "pf": "ens1f0", "index": 0},
                "conditions": [{
                    "type": "Ready", "status": "False", "reason": reason, "message": "so it is",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }],
            },
        },
    });
    put(dir, "eth0", &document);
}

fn put(dir: &Path, name: &str, document: &Value) {
    let text = serde_saphyr::to_string(document).unwrap();
    durable::set(dir, &dir.join(file::status(name)), Some(text.as_bytes())).unwrap();
}

fn pf(name: &str) -> Which {
    Which {
        pf: Some(name.to_owned()),
        all: false,
        network: None,
    }
}

fn all() -> Which {
    Which {
        pf: None,
        all: true,
        network: None,
    }
}

fn network(name: &str) -> Which {
    Which {
        pf: None,
        all: false,
        network: Some(name.to_owned()),
    }
}

/// The code that it ends with, or its error.
async fn ended(dir: &Path, which: &Which, drained: bool, timeout: u64) -> Result<bool, String> {
    let ended = run(dir, which, drained, &Wait { timeout }).await;
    let is = |code: ExitCode, other: ExitCode| format!("{code:?}") == format!("{other:?}");
    ended
        .map(|code| is(code, ExitCode::SUCCESS))
        .map_err(|error| format!("{error:#}"))
}

/// The version of the host's file.
fn version(dir: &Path) -> Option<i64> {
    asked(dir).unwrap().map(|(_, version)| version)
}

#[tokio::test]
async fn it_is_done_when_the_agent_says_so_of_this_file() {
    let at = tempfile::tempdir().unwrap();
    let dir = at.path();
    // Of an earlier file.
    say(dir, Some(1), Some("Drained"));
    assert_eq!(
        ended(dir, &pf("ens1f0"), true, 1).await,
        Ok(false),
        "no agent runs"
    );
    let (drain, _) = asked(dir).unwrap().unwrap();
    assert_eq!(drain.pfs, [PF]);
    let agent = async {
        say(dir, version(dir), Some("Draining"));
        say_nic(dir, "GuestKeepsVf");
        tokio::time::sleep(Duration::from_millis(300)).await;
        say(dir, version(dir), Some("Drained"));
    };
    let which = pf(PF);
    let (done, ()) = tokio::join!(ended(dir, &which, true, 10), agent);
    assert_eq!(done, Ok(true), "a guest that has kept its VF for a while");

    // Back, one by one.
    assert_eq!(ended(dir, &network("fast"), true, 0).await, Ok(true));
    assert_eq!(ended(dir, &pf("ens1f0"), false, 0).await, Ok(true));
    let (drain, _) = asked(dir).unwrap().unwrap();
    assert_eq!((drain.pfs.len(), drain.networks.len()), (0, 1));
    let agent = async {
        while !asked(dir).unwrap().unwrap().0.is_empty() {
            tokio::task::yield_now().await;
        }
        say(dir, version(dir), None);
    };
    let which = network("fast");
    let (done, ()) = tokio::join!(ended(dir, &which, false, 10), agent);
    assert_eq!(done, Ok(true));
    assert!(dir.join("node.yaml").exists(), "nothing has to be proven");
}

#[tokio::test]
async fn what_cannot_be_meant_is_not_written() {
    let at = tempfile::tempdir().unwrap();
    let dir = at.path();
    let error = ended(dir, &pf("ens9"), true, 1).await.unwrap_err();
    assert!(error.contains("its agent has reported none"), "{error}");
    say(dir, None, None);
    let error = ended(dir, &pf("ens9"), true, 1).await.unwrap_err();
    assert!(error.contains("ens1f0 (0000:01:00.0)"), "{error}");
    let error = ended(dir, &network("slow"), true, 1).await.unwrap_err();
    assert!(error.contains("slow has no pool on h1"), "{error}");
    assert!(!dir.join("node.yaml").exists());
    fs::write(dir.join("node.yaml"), "spec: {").unwrap();
    let error = ended(dir, &pf("ens1f0"), true, 1).await.unwrap_err();
    assert!(error.contains("node.yaml: "), "{error}");
    assert_eq!(fs::read_to_string(dir.join("node.yaml")).unwrap(), "spec: {");
}

#[tokio::test]
async fn one_pf_stays_drained_while_all_are() {
    let at = tempfile::tempdir().unwrap();
    let dir = at.path();
    say(dir, None, None);
    assert_eq!(ended(dir, &all(), true, 0).await, Ok(true));
    let error = ended(dir, &pf("ens1f0"), false, 0).await.unwrap_err();
    assert!(error.contains("undrain-pf --all"), "{error}");
    assert_eq!(ended(dir, &all(), false, 0).await, Ok(true));
    assert!(asked(dir).unwrap().unwrap().0.is_empty());
}

/// Before the agent has seen that it was taken back and said again, NICs may have come back.
#[tokio::test]
async fn what_was_said_of_an_earlier_drain_is_not_said_of_this_one() {
    let at = tempfile::tempdir().unwrap();
    let dir = at.path();
    say(dir, None, None);
    assert_eq!(ended(dir, &pf(PF), true, 0).await, Ok(true));
    say(dir, version(dir), Some("Drained"));
    assert_eq!(ended(dir, &pf(PF), true, 1).await, Ok(true));
    assert_eq!(ended(dir, &pf(PF), false, 0).await, Ok(true));
    assert_eq!(
        ended(dir, &pf(PF), true, 1).await,
        Ok(false),
        "no agent has seen this one"
    );
}

#[tokio::test]
async fn what_two_commands_say_at_once_is_all_said() {
    let at = tempfile::tempdir().unwrap();
    let dir = at.path();
    say(dir, None, None);
    // As one of them has it between its look and its write.
    let lock = durable::lock(dir).unwrap();
    let other = {
        let dir = dir.to_owned();
        tokio::task::spawn_blocking(move || change(&dir, &pf(PF), true).map(|_| ()))
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!other.is_finished(), "it does not wait");
    let first = Drain {
        networks: vec!["fast".to_owned()],
        ..Drain::default()
    };
    fs::write(dir.join("node.yaml"), file::of_host(&first, "1").unwrap()).unwrap();
    drop(lock);
    other.await.unwrap().unwrap();
    let (drain, _) = asked(dir).unwrap().unwrap();
    assert_eq!((drain.pfs.len(), drain.networks.len()), (1, 1));
}
