//! `node NAME`: a node's PFs and VFs as a map.

mod view;

use std::process::ExitCode;

use hybridnic_api::v1alpha1::{HybridNode, NicAttachment};
use kube::{Api, api::ListParams};
use serde::Serialize;

use crate::{
    cli::Format,
    connect::{Cluster, check_name},
    print,
};

/// What is observed of a node.
#[derive(Debug, Serialize)]
pub struct Observed {
    /// The node.
    node: HybridNode,
    /// The NICs on it, of all namespaces.
    attachments: Vec<NicAttachment>,
    /// What could not be asked for, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<String>,
}

/// Shows a node.
pub async fn run(cluster: &Cluster, name: &str, output: Format) -> anyhow::Result<ExitCode> {
    check_name("HybridNode", name)?;
    let nodes: Api<HybridNode> = Api::all(cluster.client.clone());
    let attachments: Api<NicAttachment> = Api::all(cluster.client.clone());
    let here = ListParams::default().fields(&format!("spec.nodeName={name}"));
    let (node, attachments) = tokio::join!(
        cluster.ask(format!("HybridNode {name}"), nodes.get(name)),
        cluster.ask(
            "which VFs are parked, and by which VM they are used",
            attachments.list(&here)
        ),
    );
    let mut observed = Observed {
        node: node?,
        attachments: Vec::new(),
        errors: Vec::new(),
    };
    match attachments {
        Ok(list) => observed.attachments = list.items,
        Err(error) => observed.errors.push(format!("{error:#}")),
    }
    // Which program wrote which field does not matter here.
    observed.node.metadata.managed_fields = None;
    for attachment in &mut observed.attachments {
        attachment.metadata.managed_fields = None;
    }
    print::value(output, &observed, |observed| view::draw(observed, print::width()))?;
    Ok(ExitCode::SUCCESS)
}
