//! The inside of a virtual machine: commands in it, and its network devices. It does not matter what runs its QEMU.

use std::time::Duration;

use super::exec::{self, Output, Target};
use super::guest::Error;
use super::node::Node;
use super::view::{NetView, Netdev};

const LOOK_DEADLINE: Duration = Duration::from_secs(30);
/// A working guest sleeps 0.2 s in 0.3 s, a busy one in 2 s.
const FROZEN_AFTER: Duration = Duration::from_secs(12);

/// A guest as seen by its vsock.
#[derive(Debug, Clone)]
pub struct Inside {
    node: Node,
    cid: u32,
}

impl Inside {
    /// The guest with this vsock context id on a node. It need not run yet.
    pub fn new(node: &Node, cid: u32) -> Self {
        Self {
            node: node.clone(),
            cid,
        }
    }

    fn target(&self) -> Target {
        Target {
            guest: Some(self.cid),
            ..self.node.target()
        }
    }

    /// Runs a shell command in the guest to its end, whatever that is.
    pub async fn exec(&self, script: &str, deadline: Duration) -> Result<Output, Error> {
        Ok(self.target().shell(script, deadline).await?)
    }

    /// Runs a shell command in the guest that must succeed, and gives its stdout.
    pub async fn run(&self, script: &str, deadline: Duration) -> Result<String, Error> {
        let target = self.target();
        Ok(target.shell(script, deadline).await?.success(target, script)?)
    }

    /// The guest's network devices.
    pub async fn net(&self) -> Result<NetView, Error> {
        let text = self.run("lab-exec netview", LOOK_DEADLINE).await?;
        let netdevs: Vec<Netdev> = serde_json::from_str(&text).map_err(|source| exec::Error::Parse {
            what: "lab-exec netview".into(),
            text,
            source,
        })?;
        Ok(NetView(netdevs))
    }

    /// Waits until the guest's network devices are as `reached` says; gives the last view, and whether they were.
    pub async fn net_when(
        &self,
        deadline: Duration,
        reached: impl Fn(&NetView) -> bool,
    ) -> Result<(NetView, bool), Error> {
        let end = tokio::time::Instant::now() + deadline;
        loop {
            let view = self.net().await?;
            let done = reached(&view);
            if done || tokio::time::Instant::now() >= end {
                return Ok((view, done));
            }
            // The guest reports no change by itself, and a look costs it 10 ms.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Whether the guest's timers have stopped, as they did in nodes with a mistaken clock (see `e2e/lab/README.md`).
    /// Such a guest answers, but whatever waits for time to pass waits for ever.
    pub async fn is_frozen(&self) -> bool {
        self.exec("sleep 0.2", FROZEN_AFTER).await.is_err()
    }
}
