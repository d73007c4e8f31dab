//! What a process uses, by its kernel.

use std::{fs, time::Duration};

use crate::world::World;
use anyhow::{Context as _, Result};

/// For a look into a node.
const LOOK: Duration = Duration::from_secs(20);
/// Clock ticks of proc(5) in a second: `USER_HZ`, part of the kernel's ABI (include/asm-generic/param.h).
const USER_HZ: u64 = 100;

/// What a process uses at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory in KiB, `VmRSS` of proc(5): with the pages of the program's file.
    pub resident_kib: u64,
    /// What of it is the process's own, `RssAnon`.
    pub private_kib: u64,
    /// The most that was resident so far, `VmHWM`.
    pub peak_kib: u64,
    /// Processor time since its start, in the kernel and out of it, by 10 ms: `utime` and `stime` of proc(5).
    pub cpu: Duration,
}

impl Usage {
    /// Of the operator, on this host.
    pub fn of_operator(world: &World) -> Result<Self> {
        Self::of_process(world.operator_pid().context("the operator does not run")?)
    }

    /// Of any process on this host.
    pub fn of_process(pid: u32) -> Result<Self> {
        let [stat, status] = ["stat", "status"]
            .map(|file| fs::read_to_string(format!("/proc/{pid}/{file}")).context("the process is gone"));
        Self::parse(&format!("{}{}", stat?, status?))
    }

    /// Of the agent of node `number`, in the node.
    pub async fn of_agent(world: &World, number: usize) -> Result<Self> {
        let pid = world.agent_pid(number).context("the agent does not run")?;
        let node = world.node(number);
        let text = node
            .run(&format!("cat /proc/{pid}/stat /proc/{pid}/status"), LOOK)
            .await
            .context("the agent is gone")?;
        Self::parse(&text)
    }

    /// Resident memory, to read.
    pub fn memory(&self) -> String {
        let tenths = (self.resident_kib * 10 + 512) / 1024;
        format!("{}.{} MiB", tenths / 10, tenths % 10)
    }

    /// Reads `stat` and then `status`.
    fn parse(text: &str) -> Result<Self> {
        find(text).with_context(|| format!("not what proc(5) says: {text}"))
    }
}

fn find(text: &str) -> Option<Usage> {
    // A program's name may have blanks and parentheses; nothing behind it has.
    let (_, fields) = text.lines().next()?.rsplit_once(')')?;
    // Field 3 is the first here; utime and stime are 14 and 15.
    let mut times = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    let ticks = times.next()?.ok()? + times.next()?.ok()?;
    let kib = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        rest.trim().strip_suffix(" kB")?.parse().ok()
    };
    Some(Usage {
        resident_kib: kib("VmRSS:")?,
        private_kib: kib("RssAnon:")?,
        peak_kib: kib("VmHWM:")?,
        cpu: Duration::from_millis(ticks * 1000 / USER_HZ),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn reads_a_process() {
        let text = "42 (a b) (c) S 1 42 42 0 -1 4194560 900 0 3 0 250 31 0 0 20 0 9 0 700 1000 300 1\n\
                    Name:\ta b) (c\nVmHWM:\t   16000 kB\nVmRSS:\t   13773 kB\nRssAnon:\t   4000 kB\nThreads:\t9\n";
        let usage = Usage::parse(text).unwrap();
        assert_eq!(
            usage,
            Usage {
                resident_kib: 13773,
                private_kib: 4000,
                peak_kib: 16000,
                cpu: Duration::from_millis(2810)
            }
        );
        assert_eq!(usage.memory(), "13.5 MiB");
        assert!(Usage::parse("42 (gone) Z 1 42").is_err());
    }

    #[test]
    fn reads_this_process() {
        let now = || {
            let [stat, status] =
                ["stat", "status"].map(|f| fs::read_to_string(format!("/proc/self/{f}")).unwrap());
            Usage::parse(&format!("{stat}{status}")).unwrap()
        };
        let (before, start) = (now(), Instant::now());
        assert!(before.resident_kib > 100);
        // To read it takes processor time.
        while now().cpu < before.cpu + Duration::from_millis(20) {
            assert!(
                start.elapsed() < Duration::from_mins(1),
                "no processor time is counted"
            );
        }
    }
}
