//! What else uses the machine meanwhile: without it, figures are worth little.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hybridnic_e2e::controlplane::ControlPlane;
use hybridnic_e2e::usage::Usage;

/// A program that uses this little of a processor for so long is at rest.
const LOOK: Duration = Duration::from_secs(5);
/// For servers to come to rest.
const REST_AT_LAST: Duration = Duration::from_mins(4);

/// Whose processor time is told apart.
pub struct Share {
    servers: Vec<u32>,
}

/// The processor times of a moment: the operator's, the servers', our own, all of the machine.
pub struct Begun<'a> {
    of: &'a Share,
    at: Instant,
    used: [Duration; 4],
}

impl Share {
    /// Of this control plane.
    pub fn new(control_plane: &ControlPlane) -> Self {
        Self {
            servers: control_plane.pids(),
        }
    }

    /// From now on.
    pub fn begin(&self, operator: Usage) -> Result<Begun<'_>> {
        Ok(Begun {
            of: self,
            at: Instant::now(),
            used: self.used(operator)?,
        })
    }

    /// Waits until API server and etcd have come to rest, except for what they always do: no event shows when they have read what
    /// was put into etcd.
    pub async fn until_servers_rest(&self) -> Result<()> {
        let end = Instant::now() + REST_AT_LAST;
        let mut before = self.servers()?;
        while Instant::now() < end {
            tokio::time::sleep(LOOK).await;
            let now = self.servers()?;
            if now.saturating_sub(before) < LOOK / 4 {
                return Ok(());
            }
            before = now;
        }
        bail!("API server and etcd do not come to rest");
    }

    fn servers(&self) -> Result<Duration> {
        let all = self.servers.iter().map(|pid| Ok(Usage::of_process(*pid)?.cpu));
        all.sum()
    }

    fn used(&self, operator: Usage) -> Result<[Duration; 4]> {
        let servers = self.servers()?;
        let own = Usage::of_process(std::process::id())?.cpu;
        Ok([operator.cpu, servers, own, busy()?])
    }
}

impl Begun<'_> {
    /// Until now, in processors.
    pub fn end(self, operator: Usage) -> Result<String> {
        let (now, seconds) = (self.of.used(operator)?, self.at.elapsed().as_secs_f64());
        let [operator, servers, own, all] =
            std::array::from_fn(|n| now[n].saturating_sub(self.used[n]).as_secs_f64() / seconds);
        let others = (all - operator - servers - own).max(0.0);
        let have = std::thread::available_parallelism()?;
        Ok(format!(
            "{operator:.2}, {servers:.2}, {own:.2}, {others:.2} of {have}"
        ))
    }
}

/// What all processors of the machine have done so far, and what the host has kept from them: proc(5), in 10 ms.
fn busy() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let all = stat
        .lines()
        .next()
        .context("no processors")?
        .split_whitespace()
        .skip(1);
    let all: Vec<u64> = all.map(str::parse).collect::<Result<_, _>>()?;
    // user nice system idle iowait irq softirq steal; guests are in the first two.
    let ticks = all.iter().take(8).sum::<u64>() - all.iter().skip(3).take(2).sum::<u64>();
    Ok(Duration::from_millis(ticks * 10))
}

/// Processors, memory and kernel, and how busy the machine is.
pub fn describe() -> Result<String> {
    let read = |path: &str| std::fs::read_to_string(path).with_context(|| path.to_owned());
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let model = field(&read("/proc/cpuinfo")?, "model name").unwrap_or_default();
    let memory = field(&read("/proc/meminfo")?, "MemTotal").unwrap_or_default();
    let kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or_default();
    let load = read("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease")?;
    let have = std::thread::available_parallelism()?;
    let (gib, kernel) = ((kib + (1 << 19)) >> 20, kernel.trim());
    Ok(format!(
        "{have} × {model}, {gib} GiB, Linux {kernel}; load {load} before"
    ))
}
