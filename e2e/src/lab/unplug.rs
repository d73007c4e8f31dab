//! How long a guest cannot receive at the unplug of its VF, whatever its node does.
//!
//! Its driver stops the VF's queue first, and `net_failover` takes the standby's packets when the VF's netdev is gone. Both log it in the
//! kernel's log; the driver only in the lab's own kernel (`e2e/lab/kernel-vf-down.patch`).

use std::time::Duration;

/// The driver's word, of the patch.
const STOPPED: &str = "receives nothing more";
/// That of `net_failover_slave_unregister()` in `drivers/net/net_failover.c`.
const LET_IN: [&str; 2] = ["failover primary slave:", " unregistered"];

/// From the VF's last packet to the standby's first, at the log's last unplug. `None` if the log does not show it.
pub fn deaf(log: &str) -> Option<Duration> {
    let mut lines = log.lines().rev();
    let let_in = lines.find(|line| LET_IN.iter().all(|word| line.contains(word)))?;
    let stopped = lines.find(|line| line.contains(STOPPED))?;
    at(let_in)?.checked_sub(at(stopped)?)
}

/// When a line was logged: `[   12.345678] …`, seconds since the boot.
fn at(line: &str) -> Option<Duration> {
    let (seconds, _) = line.trim_start().strip_prefix('[')?.split_once(']')?;
    Duration::try_from_secs_f64(seconds.trim().parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
[    3.100000] igbvf 0000:02:00.0: eth1: receives nothing more
[    3.200000] virtio_net virtio0 eth0: failover primary slave:eth1 unregistered
[    9.000000] igbvf 0000:02:00.0: eth1: receives nothing more
[    9.081000] virtio_net virtio0 eth0: failover primary slave:eth1 unregistered
[   14.000000] virtio_net virtio0 eth0: failover primary slave:eth2 registered
";

    #[test]
    fn the_last_unplug_counts() {
        assert_eq!(deaf(LOG), Some(Duration::from_millis(81)));
    }

    #[test]
    fn a_log_without_the_drivers_word_tells_nothing() {
        assert_eq!(deaf(&LOG.replace(STOPPED, "")), None);
        assert_eq!(deaf(""), None);
    }
}
