//! `top`: networks, nodes and NICs.

mod live;

pub use hybridnic_console::top::tone;

use std::process::ExitCode;

use hybridnic_api::v1alpha1::{HybridNetwork, HybridNode, VmHybridNic};
use hybridnic_console::top::{self as view, Fetched, Place, Tables};
use kube::{Api, api::ListParams};

use crate::{cli::Format, connect::Cluster, print};

/// Shows the three tables, once or until the user has seen enough.
pub async fn run(cluster: &Cluster, all: bool, once: bool, output: Format) -> anyhow::Result<ExitCode> {
    if !once && output == Format::Table && print::is_terminal() {
        return live::run(cluster, all).await;
    }
    let everything = ListParams::default();
    let apis = Apis::new(cluster, all);
    let (networks, nodes, nics) = tokio::join!(
        cluster.ask(view::NETWORKS, apis.networks.list(&everything)),
        cluster.ask(view::NODES, apis.nodes.list(&everything)),
        cluster.ask(view::NICS, apis.nics.list(&everything)),
    );
    let tables = Tables::new(
        &fetched(networks.map(|list| list.items)),
        &fetched(nodes.map(|list| list.items)),
        &fetched(nics.map(|list| list.items)),
    );
    if tables.is_blind() {
        anyhow::bail!("{}", view::together(&tables.errors));
    }
    print::value(output, &tables, |tables| {
        view::draw(tables, Place::Cluster, print::width())
    })?;
    Ok(if tables.errors.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn fetched<K>(list: anyhow::Result<Vec<K>>) -> Fetched<K> {
    list.map_err(|error| format!("{error:#}"))
}

/// What `top` looks at.
struct Apis {
    networks: Api<HybridNetwork>,
    nodes: Api<HybridNode>,
    nics: Api<VmHybridNic>,
}

impl Apis {
    fn new(cluster: &Cluster, all: bool) -> Self {
        let client = &cluster.client;
        Self {
            networks: Api::all(client.clone()),
            nodes: Api::all(client.clone()),
            nics: if all {
                Api::all(client.clone())
            } else {
                Api::namespaced(client.clone(), &cluster.namespace)
            },
        }
    }
}
