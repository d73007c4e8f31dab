//! What the filters of a standby cost a frame that its guest sends.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hybridnic_api::v1alpha1::{NicPhase, Path};
use hybridnic_e2e::world::{NicSpec, Vm, VmSpec, World};

use crate::{PATIENCE, Row, say};

/// Without VFs, so that its NICs run on their standbys.
const NETWORK: &str = "
apiVersion: hybridnic.io/v1alpha1
kind: HybridNetwork
metadata: {name: slow}
spec:
  uplinks:
  - pciAddresses: [\"0000:01:00.0\"]
  macRange: {from: \"52:54:00:77:00:00\", to: \"52:54:00:77:ff:ff\"}
";
/// Frames of one measurement, and how often each is taken.
const FRAMES: u32 = 50;
const ROUNDS: usize = 101;
const NODE: usize = 1;
const BRIEF: Duration = Duration::from_mins(2);

/// Measures.
pub async fn measure(world: &World, vms: &mut Vec<Vm>) -> Result<Vec<Row>> {
    world.apply(NETWORK).await?;
    let spec = VmSpec::new("sender", &[NicSpec::new(0, 50)]);
    vms.push(world.start_vm(&spec, "sender-a", NODE, false).await?);
    world.apply(&spec.nic_yaml(0, "slow")).await?;
    let nic = world
        .until_nic(&spec.nic_name(0), PATIENCE, "on its standby", |nic| {
            nic.status
                .as_ref()
                .is_some_and(|s| s.phase == NicPhase::Standby && s.path == Path::Standby)
        })
        .await?;
    let status = nic.status.context("a NIC without a status")?;
    let macvtap = status.standby.context("a NIC without a standby")?.macvtap;
    let mac = status.mac.context("a NIC without a MAC")?;
    let node = world.node(NODE);
    let rules = node
        .run(&format!("tc filter show dev {macvtap} egress"), BRIEF)
        .await?;
    ensure!(rules.contains("flower"), "the standby has no filters:\n{rules}");

    let made = format!(
        "dev=$(cat /sys/class/net/{macvtap}/tap*/dev) && rm -f /tmp/flooded && mknod /tmp/flooded c ${{dev%:*}} ${{dev#*:}}"
    );
    node.run(&made, BRIEF).await?;
    say("sending with the filters");
    let filtered = median(world, &mac).await?;
    // The agent would put them back.
    let bare = format!("kill -STOP $(pidof hybridnic-agent) && tc qdisc del dev {macvtap} clsact");
    node.run(&bare, BRIEF).await?;
    say("sending without");
    let plain = median(world, &mac).await;
    node.run("kill -CONT $(pidof hybridnic-agent)", BRIEF).await?;
    let plain = plain?;
    let percent = (filtered * 100).checked_div(plain).context("no time at all")?;
    Ok(vec![(
        "a frame of 1,514 octets into a standby's macvtap, emulated: with its filters, without".into(),
        format!("{filtered} ns, {plain} ns: {percent} %"),
    )])
}

/// Nanoseconds for a frame.
async fn median(world: &World, mac: &str) -> Result<u64> {
    let mut taken = Vec::new();
    for _ in 0..ROUNDS {
        let flood = format!("/host/lab-exec flood /tmp/flooded {mac} 02:00:00:00:00:fe {FRAMES}");
        let nanoseconds = world.node(NODE).run(&flood, BRIEF).await?;
        taken.push(nanoseconds.trim().parse()?);
    }
    taken.sort_unstable();
    Ok(taken[ROUNDS / 2])
}
