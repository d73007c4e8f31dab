//! Looks, at start and every ten minutes, for what is not as it should be on the node and what no journal explains. It is
//! reported, and never touched, because a VM may use it. A timer is right here, because no event reports what other programs do.
//!
//! | finding | is |
//! |---|---|
//! | `leaked_macvtap` | a macvtap with our alias that no record of the journal has |
//! | `leaked_vf` | a VF with its parking MAC that no record of the journal holds |
//! | `mac_two_owners` | a NIC's MAC that is live on two PFs: in a VF's filter, or in a macvtap that is up |
//!
//! The agent does not see everything at one moment, so a finding counts only if a second look, a little later, has it too.
//!
//! | module | is | touches |
//! |---|---|---|
//! | [`finding`] | what may be found | nothing |
//! | [`look`] | what is seen of the node | reads only |
//! | [`mod@judge`] | what follows from it | nothing |

pub mod finding;
pub mod judge;
pub mod look;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{info, warn};

use crate::host::Host;
pub use finding::Finding;
use judge::judge;
use look::see_node;

/// How often is looked.
const EVERY: Duration = Duration::from_mins(10);
/// How soon to look again at what was found: longer than a step that was under way.
const AGAIN: Duration = Duration::from_secs(5);

/// Audits the node, again and again.
pub async fn run(host: Arc<Host>) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = BTreeSet::new();
    loop {
        ticks.tick().await;
        match look_twice(&host).await {
            Ok(findings) => {
                host.metrics.audited(true);
                host.metrics.show_findings(&findings);
                tell(&host.options.node_name, &known, &findings);
                known = findings;
            }
            Err(error) => {
                host.metrics.audited(false);
                warn!(node = host.options.node_name, error, "the audit could not look");
            }
        }
    }
}

fn tell(node: &str, known: &BTreeSet<Finding>, now: &BTreeSet<Finding>) {
    for finding in now.difference(known) {
        warn!(node, kind = finding.kind(), "audit: {finding}; it is left alone");
    }
    for finding in known.difference(now) {
        info!(node, kind = finding.kind(), "audit: no longer: {finding}");
    }
}

async fn look_twice(host: &Arc<Host>) -> Result<BTreeSet<Finding>, String> {
    let node = &host.options.node_name;
    let first = judge(node, &see_node(host).await?);
    if first.is_empty() {
        return Ok(first);
    }
    sleep(AGAIN).await;
    let second = judge(node, &see_node(host).await?);
    Ok(first.intersection(&second).cloned().collect())
}
