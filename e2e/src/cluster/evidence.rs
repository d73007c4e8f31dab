//! Keeps what shows why a test on a cluster has failed: the cluster is gone after the test.

use std::time::Duration;

use crate::lab::Node;
use crate::world::Fault;

use super::{Cluster, SYSTEM};

/// For one look at a node, which may be dead.
const LOOK: Duration = Duration::from_secs(20);
/// Lines of each program that are shown; its file has more.
const SHOWN: usize = 30;

/// What is written down; KubeVirt's kinds are not in every cluster.
const KINDS: [&str; 11] = [
    "events",
    "pods",
    "vm",
    "vmi",
    "vmim",
    "hybridnodes",
    "qemumigrations",
    "qemusaves",
    "qemurestores",
    "vmhybridnics",
    "nicattachments",
];

/// All containers of ours that a node has had lately, each line with its file's name.
const LOGS: &str =
    "cd /var/log/pods && for log in $(ls -tr */*/*.log); do echo \"==> $log\"; tail -n 3000 \"$log\"; done";

impl Cluster {
    /// Writes our objects and the programs' logs beside the nodes' own logs, and prints the end of them.
    pub async fn keep_evidence(&self) {
        for kind in KINDS {
            let Ok(objects) = self.kubectl(&["get", kind, "-A", "-o", "yaml"]).await else {
                continue;
            };
            self.keep(&format!("{kind}.yaml"), &objects);
            let short = self.kubectl(&["get", kind, "-A", "-o", "wide"]).await;
            eprintln!("{}", short.unwrap_or_else(|error| format!("{error:#}")));
        }
        for node in self.lab.nodes() {
            let logs = logs(node).await;
            self.keep(&format!("{}/pods.log", node.name()), &logs);
            for (program, lines) in programs(&logs) {
                eprintln!("==> {}: {program}", node.name());
                for line in &lines[lines.len().saturating_sub(SHOWN)..] {
                    eprintln!("{line}");
                }
            }
        }
        eprintln!("the rest is in {}", self.lab.dir().display());
    }

    /// A guest that the emulation has reset, if there is one: what its VM has lost since is not our fault.
    pub fn find_reset(&self) -> Option<Fault> {
        let node = self.lab.nodes().iter().find(|node| node.has_reset_a_guest())?;
        Some(Fault::Reset(format!(
            "a guest on {} came to a triple fault",
            node.name()
        )))
    }

    fn keep(&self, name: &str, text: &str) {
        let file = self.lab.dir().join(name);
        if let Err(error) = std::fs::write(&file, text) {
            eprintln!("{}: {error}", file.display());
        }
    }
}

async fn logs(node: &Node) -> String {
    node.run(LOGS, LOOK)
        .await
        .unwrap_or_else(|error| error.to_string())
}

/// The lines of each of our programs.
fn programs(logs: &str) -> Vec<(&str, Vec<&str>)> {
    let mut all: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in logs.lines() {
        match line.strip_prefix("==> ") {
            Some(file) => all.push((file, Vec::new())),
            None => all.last_mut().into_iter().for_each(|(_, lines)| lines.push(line)),
        }
    }
    all.retain(|(file, _)| file.starts_with(SYSTEM));
    all
}
