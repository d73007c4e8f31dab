//! `ctl top`: networks, the host and its NICs, as `kubectl hybridnic top` shows them, and what goes through each NIC.
//!
//! Files say all but the last, which the kernel counts: for a standby its macvtap, for a VF its PF's driver, where that counts at all.

use std::{collections::BTreeMap, fs, path::Path, process::ExitCode, time::Duration};

use anyhow::Context as _;
use hybridnic_api::v1alpha1::{
    HybridNetwork, HybridNetworkSpec, HybridNetworkStatus, Path as Traffic, VmHybridNic, VmHybridNicSpec,
    WantedPath,
};
use hybridnic_console::{
    print,
    screen::{Act, Screen},
    top::{self, Place, Rates, Tables},
};
use hybridnic_net::netlink::{Counters, Netlink};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use super::{
    ctl::watch,
    dir::{Change, names},
    file::{self, Asked},
    show::{host, said, status_in},
};

/// Between two readings of the counters.
const PERIOD: Duration = Duration::from_secs(1);
/// Changes that come close together are drawn at once.
const GATHER: Duration = Duration::from_millis(100);
/// The most VFs of a PF of which the kernel is asked for the counters: those of many more do not fit into its answer.
const COUNTED: usize = 64;

/// Shows the tables, once or until the user has seen enough.
pub async fn run(dir: &Path, once: bool) -> anyhow::Result<ExitCode> {
    // Before the terminal changes its screen, on which no error is seen for long.
    let watched = watch(dir)?;
    let netlink = Netlink::open().context("the kernel's counters")?;
    let mut shown = Shown::default();
    shown.read(dir);
    shown.measure(&netlink).await;
    if once || !print::is_terminal() {
        if !shown.nics.is_empty() {
            sleep(PERIOD).await;
            shown.measure(&netlink).await;
        }
        print::text(&top::draw(&shown.tables(), Place::Host, print::width()))?;
        let well = shown.errors.is_empty();
        return Ok(if well {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    let mut screen = Screen::open()?;
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut draw_at = Some(Instant::now());
    let mut is_stale = false;
    loop {
        let drawing = async {
            match draw_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            change = watched.changed() => {
                anyhow::ensure!(change != Change::Lost, "the directory {} has gone", dir.display());
                is_stale = true;
                draw_at.get_or_insert_with(|| Instant::now() + GATHER);
            }
            _ = ticks.tick() => {
                shown.measure(&netlink).await;
                draw_at.get_or_insert_with(Instant::now);
            }
            act = screen.act() => match act? {
                Act::Leave => return Ok(ExitCode::SUCCESS),
                Act::Resize => draw_at = Some(Instant::now()),
            },
            () = drawing => {
                draw_at = None;
                if std::mem::take(&mut is_stale) {
                    shown.read(dir);
                }
                screen.paint(&top::draw(&shown.tables(), Place::Host, print::width()))?;
            }
        }
    }
}

/// What counts a NIC's traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Counter {
    /// An interface.
    Link(String),
    /// A VF: its PF's name, and its index.
    Vf(String, u16),
}

/// What was counted at a time, by NIC.
type Sample = BTreeMap<String, (Counter, Counters)>;

/// What is shown.
#[derive(Debug, Default)]
struct Shown {
    networks: Vec<HybridNetwork>,
    nodes: Vec<hybridnic_api::v1alpha1::HybridNode>,
    nics: Vec<VmHybridNic>,
    errors: Vec<String>,
    sample: Option<(Instant, Sample)>,
    rates: BTreeMap<String, Rates>,
}

impl Shown {
    /// Reads the files.
    fn read(&mut self, dir: &Path) {
        self.errors.clear();
        match objects(dir) {
            Ok((networks, nics)) => (self.networks, self.nics) = (networks, nics),
            Err(error) => self.errors.push(format!("{}: {error:#}", top::NICS)),
        }
        match host(dir) {
            Ok(node) => self.nodes = node.into_iter().collect(),
            Err(error) => self.errors.push(format!("{}: {error:#}", top::NODES)),
        }
    }

    /// Reads the counters. Where the kernel does not say them, no rate is known.
    async fn measure(&mut self, netlink: &Netlink) {
        let wanted = self
            .nics
            .iter()
            .filter_map(|nic| Some((nic.metadata.name.clone()?, counter(nic)?)));
        let wanted: BTreeMap<String, Counter> = wanted.collect();
        let now = Instant::now();
        let sample = sample(netlink, &wanted, &self.crowded()).await;
        self.rates = match &self.sample {
            Some((at, before)) => rates(before, &sample, now - *at),
            None => BTreeMap::new(),
        };
        self.sample = Some((now, sample));
    }

    /// The PFs that have too many VFs to ask for their counters.
    fn crowded(&self) -> Vec<String> {
        let pfs = self
            .nodes
            .iter()
            .flat_map(|node| &node.status)
            .flat_map(|status| &status.pfs);
        pfs.filter(|pf| pf.vfs.len() > COUNTED)
            .map(|pf| pf.name.clone())
            .collect()
    }

    fn tables(&self) -> Tables {
        let mut tables = Tables::new(
            &Ok(self.networks.clone()),
            &Ok(self.nodes.clone()),
            &Ok(self.nics.clone()),
        );
        tables.errors.clone_from(&self.errors);
        for (name, rates) in &self.rates {
            tables.measured(name, Some(*rates));
        }
        tables
    }
}

/// Networks and NICs that are asked for, or of which something is said.
fn objects(dir: &Path) -> anyhow::Result<(Vec<HybridNetwork>, Vec<VmHybridNic>)> {
    let (asked, told) = names(dir).with_context(|| format!("the directory {}", dir.display()))?;
    let (mut networks, mut nics) = (Vec::new(), Vec::new());
    for name in asked.union(&told).filter(|name| *name != file::NODE) {
        let text = fs::read_to_string(dir.join(file::asking(name))).unwrap_or_default();
        let asked = file::parse(name, &text, None).ok();
        let said = said(dir, name)?;
        let was_network = said.as_ref().is_some_and(|said| said["kind"] == "HybridNetwork");
        match asked {
            Some(Asked::Network(spec)) => networks.push(network(name, Some(*spec), said)?),
            None if was_network => networks.push(network(name, None, said)?),
            Some(Asked::Nic(asked)) => nics.push(nic(name, asked.spec, said)?),
            None => nics.push(nic(name, as_it_is(said.as_ref())?, said)?),
        }
    }
    for network in &mut networks {
        count(network, &nics);
    }
    Ok((networks, nics))
}

fn network(
    name: &str,
    spec: Option<HybridNetworkSpec>,
    said: Option<Value>,
) -> anyhow::Result<HybridNetwork> {
    let spec = match spec {
        Some(spec) => spec,
        None => serde_json::from_value(json!({ "uplinks": [] }))?,
    };
    let mut network = HybridNetwork::new(name, spec);
    network.status = status_in(name, said)?;
    Ok(network)
}

fn nic(name: &str, spec: VmHybridNicSpec, said: Option<Value>) -> anyhow::Result<VmHybridNic> {
    let mut nic = VmHybridNic::new(name, spec);
    nic.status = status_in(name, said)?;
    Ok(nic)
}

/// The spec of a NIC whose file is gone, or is not understood: of what is here still.
fn as_it_is(said: Option<&Value>) -> anyhow::Result<VmHybridNicSpec> {
    let at = |pointer| said.and_then(|said| said.pointer(pointer));
    let network = at("/attached/spec/network").and_then(Value::as_str);
    let vm = at("/attached/spec/vm").filter(|vm| vm.is_object());
    let vm = vm.cloned().unwrap_or_else(|| json!({}));
    let spec = json!({ "network": network.unwrap_or_default(), "vm": vm });
    Ok(serde_json::from_value(spec)?)
}

/// Counts a network's NICs, which no agent does.
fn count(network: &mut HybridNetwork, nics: &[VmHybridNic]) {
    let name = network.metadata.name.clone().unwrap_or_default();
    let status = network.status.get_or_insert_with(HybridNetworkStatus::default);
    for nic in nics.iter().filter(|nic| nic.spec.network == name) {
        status.nics += 1;
        match nic.status.as_ref().map(|status| status.path).unwrap_or_default() {
            Traffic::FastPath => status.on_fast_path += 1,
            Traffic::Standby => {
                status.on_standby += 1;
                status.told_standby += i32::from(nic.spec.path == WantedPath::Standby);
            }
            Traffic::None => {}
        }
    }
}

/// What counts the traffic of a NIC as it is.
fn counter(nic: &VmHybridNic) -> Option<Counter> {
    let status = nic.status.as_ref()?;
    match status.path {
        Traffic::FastPath => {
            let vf = status.vf.as_ref()?;
            Some(Counter::Vf(vf.pf.clone(), vf.index.try_into().ok()?))
        }
        Traffic::Standby => Some(Counter::Link(status.standby.as_ref()?.macvtap.clone())),
        Traffic::None => None,
    }
}

/// Reads what is counted. What the kernel does not say is left out.
async fn sample(netlink: &Netlink, wanted: &BTreeMap<String, Counter>, crowded: &[String]) -> Sample {
    let Ok(links) = netlink.links().await else {
        return Sample::new();
    };
    let mut vfs: BTreeMap<&str, BTreeMap<u16, Counters>> = BTreeMap::new();
    let mut sample = Sample::new();
    for (nic, counter) in wanted {
        let counters = match counter {
            Counter::Link(name) => links
                .iter()
                .find(|link| link.name == *name)
                .map(|link| link.counters),
            Counter::Vf(pf, _) if crowded.contains(pf) => None,
            Counter::Vf(pf, index) => {
                if !vfs.contains_key(pf.as_str())
                    && let Some(link) = links.iter().find(|link| link.name == *pf)
                {
                    vfs.insert(pf, netlink.vf_counters(link.index).await.unwrap_or_default());
                }
                vfs.get(pf.as_str())
                    .and_then(|counted| counted.get(index))
                    .copied()
            }
        };
        if let Some(counters) = counters {
            sample.insert(nic.clone(), (counter.clone(), counters));
        }
    }
    sample
}

/// What went through each NIC between two readings of the same counter.
fn rates(before: &Sample, now: &Sample, elapsed: Duration) -> BTreeMap<String, Rates> {
    let seconds = elapsed.as_secs_f64();
    let rate = |before: u64, now: u64| {
        // One that was made again begins at zero, and says nothing of the time before.
        let octets = now.checked_sub(before)?;
        #[allow(clippy::cast_precision_loss, reason = "it is shown with two digits")]
        let bits = octets as f64 * 8.0;
        (seconds > 0.0).then(|| bits / seconds)
    };
    let of = |(nic, (counter, now)): (&String, &(Counter, Counters))| {
        let (_, before) = before.get(nic).filter(|(same, _)| same == counter)?;
        let rates = Rates {
            rx: rate(before.rx_bytes, now.rx_bytes)?,
            tx: rate(before.tx_bytes, now.tx_bytes)?,
        };
        Some((nic.clone(), rates))
    };
    now.iter().filter_map(of).collect()
}

#[cfg(test)]
#[path = "top_tests.rs"]
mod tests;
