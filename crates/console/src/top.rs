//! Networks, nodes and NICs: from objects to rows, and from rows to three tables. Pure; writing to a string cannot fail.

use std::fmt::Write as _;

use hybridnic_api::{
    conditions::{self, types},
    v1alpha1::{HybridNetwork, HybridNode, NicPhase, Path, VfCounts, VmHybridNic},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use serde::Serialize;

use crate::style::{Grid, Tone, cell};

/// The tables' titles, and what errors begin with.
pub const NETWORKS: &str = "Networks";
/// See [`NETWORKS`].
pub const NODES: &str = "Nodes";
/// See [`NETWORKS`].
pub const NICS: &str = "NICs";

/// Where the objects are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a cluster.
    Cluster,
    /// On one host without a cluster, in files.
    Host,
}

/// A list that was fetched, or why there is none.
pub type Fetched<K> = Result<Vec<K>, String>;

/// What `top` shows.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tables {
    /// A row a network, by name.
    pub networks: Vec<NetworkRow>,
    /// A row a node, by name.
    pub nodes: Vec<NodeRow>,
    /// A row a NIC, by namespace and name.
    pub nics: Vec<NicRow>,
    /// Why rows are missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
}

/// A network.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkRow {
    name: String,
    vfs: VfCounts,
    nics: i32,
    on_fast_path: i32,
    on_standby: i32,
    told_standby: i32,
    ready: String,
    why: String,
}

/// A node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRow {
    name: String,
    pfs: i32,
    vfs: VfCounts,
    agent: String,
    ready: String,
    why: String,
}

/// A NIC.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NicRow {
    namespace: String,
    name: String,
    vm: String,
    network: String,
    phase: NicPhase,
    path: Path,
    node: String,
    vf: String,
    why: String,
    message: String,
    /// It is not as its object asks.
    #[serde(skip)]
    refused: bool,
    /// What goes through it, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    rates: Option<Rates>,
}

/// What goes through a NIC, in bits a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// To the guest.
    pub rx: f64,
    /// From the guest.
    pub tx: f64,
}

impl Tables {
    /// The rows of what is there.
    pub fn new(
        networks: &Fetched<HybridNetwork>,
        nodes: &Fetched<HybridNode>,
        nics: &Fetched<VmHybridNic>,
    ) -> Self {
        let mut tables = Self::default();
        match networks {
            Ok(list) => tables.networks = list.iter().map(network).collect(),
            Err(error) => tables.errors.push(error.clone()),
        }
        match nodes {
            Ok(list) => tables.nodes = list.iter().map(node).collect(),
            Err(error) => tables.errors.push(error.clone()),
        }
        match nics {
            Ok(list) => tables.nics = list.iter().map(nic).collect(),
            Err(error) => tables.errors.push(error.clone()),
        }
        tables.networks.sort_by(|a, b| a.name.cmp(&b.name));
        tables.nodes.sort_by(|a, b| a.name.cmp(&b.name));
        tables
            .nics
            .sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        tables
    }

    /// Says what goes through a NIC.
    pub fn measured(&mut self, name: &str, rates: Option<Rates>) {
        for row in self.nics.iter_mut().filter(|row| row.name == name) {
            row.rates = rates;
        }
    }

    /// Whether nothing could be seen at all.
    pub fn is_blind(&self) -> bool {
        self.errors.len() == 3
    }
}

/// Errors in one line. Mostly all fail for one reason, and then it is printed once.
pub fn together(errors: &[String]) -> String {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for error in errors {
        let (what, reason) = error.split_once(": ").unwrap_or(("", error));
        match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, list)) => list.push(what),
            None => reasons.push((reason, vec![what])),
        }
    }
    let lines = reasons
        .iter()
        .map(|(reason, list)| format!("{}: {reason}", list.join(", ")));
    lines.collect::<Vec<_>>().join("; ")
}

fn condition<'a>(list: &'a [Condition], type_: &str) -> (&'a str, &'a str, &'a str) {
    conditions::find(list, type_).map_or(("Unknown", "", ""), |c| (&c.status, &c.reason, &c.message))
}

fn network(network: &HybridNetwork) -> NetworkRow {
    let status = network.status.clone().unwrap_or_default();
    let (ready, why, _) = condition(&status.conditions, types::READY);
    NetworkRow {
        name: network.name_any(),
        vfs: status.vfs,
        nics: status.nics,
        on_fast_path: status.on_fast_path,
        on_standby: status.on_standby,
        told_standby: status.told_standby,
        ready: ready.to_owned(),
        why: why.to_owned(),
    }
}

fn node(node: &HybridNode) -> NodeRow {
    let status = node.status.clone().unwrap_or_default();
    let (ready, why, _) = condition(&status.conditions, types::READY);
    NodeRow {
        name: node.name_any(),
        pfs: status.pf_count,
        vfs: status.vfs,
        agent: status.agent_version.unwrap_or_default(),
        ready: ready.to_owned(),
        why: why.to_owned(),
    }
}

fn nic(nic: &VmHybridNic) -> NicRow {
    let status = nic.status.clone().unwrap_or_default();
    // What is refused comes before what is not reached yet.
    let accepted = conditions::find(&status.conditions, types::ACCEPTED);
    let refused = accepted.is_some_and(|accepted| accepted.status == "False");
    let of = if refused {
        types::ACCEPTED
    } else {
        types::FAST_PATH
    };
    let (_, why, message) = condition(&status.conditions, of);
    NicRow {
        namespace: nic.namespace().unwrap_or_default(),
        name: nic.name_any(),
        vm: nic.spec.vm.name().unwrap_or_default().to_owned(),
        network: nic.spec.network.clone(),
        phase: status.phase,
        path: status.path,
        node: status.node_name.unwrap_or_default(),
        vf: status
            .vf
            .map(|vf| format!("{}/{} {}", vf.pf, vf.index, vf.pci_address))
            .unwrap_or_default(),
        why: why.to_owned(),
        message: message.to_owned(),
        refused,
        rates: None,
    }
}

/// The three tables. With a width, lines that do not fit are cut.
pub fn draw(tables: &Tables, place: Place, width: Option<usize>) -> String {
    let mut text = String::new();
    let mut section = |title: &str, grid: Grid, none: &str| {
        if !text.is_empty() {
            text.push('\n');
        }
        let _ = writeln!(text, "{}", Tone::Strong.paint(title));
        let seen = !tables
            .errors
            .iter()
            .any(|error| error.starts_with(&format!("{title}: ")));
        if !grid.is_empty() {
            text.push_str(&grid.render(0));
        } else if seen {
            let _ = writeln!(text, "{}", Tone::Quiet.paint(none));
        } else {
            let _ = writeln!(text, "{}", Tone::Quiet.paint("not seen"));
        }
    };
    section(
        NETWORKS,
        networks(&tables.networks, width),
        match place {
            Place::Cluster => "none: see deploy/examples/network.yaml",
            Place::Host => "none: write the file of one",
        },
    );
    section(NODES, nodes(&tables.nodes, width), "none: no agent has reported");
    section(
        NICS,
        nics(&tables.nics, place, width),
        match place {
            Place::Cluster => "none here: -A shows those of all namespaces",
            Place::Host => "none: hybridnic-agent ctl attach makes one",
        },
    );
    for error in &tables.errors {
        let _ = writeln!(text, "\n{} {error}", Tone::Bad.paint("error:"));
    }
    text
}

/// A count in a tone that it has only when it is not zero.
fn count(number: i32, tone: Tone) -> comfy_table::Cell {
    if number == 0 {
        Tone::Quiet.cell(number)
    } else {
        tone.cell(number)
    }
}

fn ready(status: &str) -> comfy_table::Cell {
    Tone::of_condition(status).cell(status)
}

fn networks(rows: &[NetworkRow], width: Option<usize>) -> Grid {
    let header = [
        "NAME",
        "READY",
        "VFS",
        "FREE",
        "HELD",
        "UNHEALTHY",
        "NICS",
        "FAST",
        "STANDBY",
        "NEITHER",
        "WHY",
    ];
    let mut grid = Grid::new(&header, width);
    for row in rows {
        grid.line(vec![
            cell(&row.name),
            ready(&row.ready),
            cell(row.vfs.total),
            count(row.vfs.free, Tone::Good),
            count(row.vfs.held, Tone::Plain),
            count(row.vfs.unhealthy, Tone::Bad),
            cell(row.nics),
            count(row.on_fast_path, Tone::Good),
            count(
                row.on_standby,
                // Those that were told to be there are where they should be.
                if row.on_standby > row.told_standby {
                    Tone::Warn
                } else {
                    Tone::Plain
                },
            ),
            count((row.nics - row.on_fast_path - row.on_standby).max(0), Tone::Bad),
            cell(&row.why),
        ]);
    }
    grid
}

fn nodes(rows: &[NodeRow], width: Option<usize>) -> Grid {
    let header = [
        "NAME",
        "READY",
        "PFS",
        "VFS",
        "FREE",
        "HELD",
        "UNHEALTHY",
        "AGENT",
        "WHY",
    ];
    let mut grid = Grid::new(&header, width);
    for row in rows {
        grid.line(vec![
            cell(&row.name),
            ready(&row.ready),
            cell(row.pfs),
            cell(row.vfs.total),
            count(row.vfs.free, Tone::Good),
            count(row.vfs.held, Tone::Plain),
            count(row.vfs.unhealthy, Tone::Bad),
            cell(&row.agent),
            cell(&row.why),
        ]);
    }
    grid
}

/// The tone of a NIC's phase.
pub fn tone(phase: NicPhase) -> Tone {
    match phase {
        NicPhase::FastPath => Tone::Good,
        NicPhase::Failed => Tone::Bad,
        _ => Tone::Warn,
    }
}

/// Bits a second in a few characters.
fn rate(bits: f64) -> String {
    let units = ["", "k", "M", "G"];
    let mut value = bits;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        (value, unit) = (value / 1000.0, unit + 1);
    }
    let digits = usize::from(unit > 0 && value < 9.95);
    format!("{value:.digits$}{}", units[unit])
}

fn nics(rows: &[NicRow], place: Place, width: Option<usize>) -> Grid {
    let cluster = place == Place::Cluster;
    // A host has one node and no namespaces; and its counters are at hand.
    let only = |here: bool, names: &'static [&'static str]| if here { names } else { &[] };
    let header = [
        only(cluster, &["NAMESPACE"]),
        &["NAME", "VM", "NETWORK", "PHASE", "PATH"],
        only(cluster, &["NODE"]),
        &["VF"],
        only(!cluster, &["RX BIT/S", "TX BIT/S"]),
        &["WHY", "MESSAGE"],
    ];
    let mut grid = Grid::new(&header.concat(), width);
    for row in rows {
        // Where the VF carries the traffic there is nothing to explain.
        let message = if row.phase == NicPhase::FastPath && !row.refused {
            ""
        } else {
            &row.message
        };
        let speed = |of: fn(&Rates) -> f64| cell(row.rates.as_ref().map(of).map_or_else(String::new, rate));
        let only = |here: bool, cells: Vec<comfy_table::Cell>| if here { cells } else { Vec::new() };
        let cells = [
            only(cluster, vec![cell(&row.namespace)]),
            vec![
                cell(&row.name),
                cell(&row.vm),
                cell(&row.network),
                tone(row.phase).cell(row.phase.to_string()),
                cell(row.path.to_string()),
            ],
            only(cluster, vec![cell(&row.node)]),
            vec![cell(&row.vf)],
            only(!cluster, vec![speed(|rates| rates.rx), speed(|rates| rates.tx)]),
            vec![cell(&row.why), cell(message)],
        ];
        grid.line(cells.into_iter().flatten().collect());
    }
    grid
}

#[cfg(test)]
#[path = "top_tests.rs"]
mod tests;
