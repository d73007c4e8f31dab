//! `drain-pf NODE PF` and `undrain-pf NODE PF`: keep NICs off the VFs of a PF, of all PFs of a node, or of one network there.

use std::{collections::BTreeMap, pin::pin, process::ExitCode};

use anyhow::{Context as _, bail};
use futures::{StreamExt as _, stream};
use hybridnic_api::v1alpha1::{Drain, HybridNode, NicAttachment};
use hybridnic_console::{
    Standing,
    drain::{Target, Which, changed, covers, left, standing, target},
};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::watcher,
};
use serde_json::{Value, json};

use crate::{
    aside::watch,
    canvas::Canvas,
    cli::Format,
    connect::{Cluster, check_name},
    migrate::INTERRUPTED,
    print,
    style::Tone,
};

/// How often to try again when another client has written the object meanwhile, as its agent often does.
const TRIES: usize = 5;

/// What is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Drain it.
    Drain {
        /// And watch it to its end.
        watch: bool,
    },
    /// Undrain it.
    Undrain,
}

/// Tells a node, and watches it if that is asked for.
pub async fn run(
    cluster: &Cluster,
    name: &str,
    which: &Which,
    word: Word,
    output: Format,
) -> anyhow::Result<ExitCode> {
    check_name("HybridNode", name)?;
    let nodes: Api<HybridNode> = Api::all(cluster.client.clone());
    let drained = word != Word::Undrain;
    let (node, target) = tell(cluster, &nodes, name, which, drained).await?;
    if !drained && covers(&node.spec.drain, &target) {
        bail!("it stays drained, because all of {name} is: kubectl hybridnic undrain-pf {name} --all");
    }
    if word == (Word::Drain { watch: true }) {
        return follow(cluster, nodes, node, &target, output).await;
    }
    print::value(output, &node, |_| {
        let what = words(&target);
        if drained {
            format!(
                "hybridnode.hybridnic.io/{name} changed: NICs leave {what}\nSee how it goes: kubectl hybridnic node {name}\n"
            )
        } else {
            undrained(name, &what, &left(&node.spec.drain))
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What stays drained on the node was asked for separately, and somebody may have a reason for it.
fn undrained(name: &str, what: &str, left: &[String]) -> String {
    let mut text = format!("hybridnode.hybridnic.io/{name} changed: NICs may have {what} again\n");
    if !left.is_empty() {
        text.push_str("Some of it stays drained; to take that back, too:\n");
    }
    text.extend(
        left.iter()
            .map(|arguments| format!("  kubectl hybridnic undrain-pf {name} {arguments}\n")),
    );
    text
}

fn words(target: &Target) -> String {
    match target {
        Target::All => "all of its VFs".to_owned(),
        Target::Pf(address) => format!("the VFs of its PF {address}"),
        Target::Network(network) => format!("the VFs of the network {network}"),
    }
}

/// Writes it into the node's spec, unless it is there already. Lists are written as wholes, so only what was read is replaced.
async fn tell(
    cluster: &Cluster,
    nodes: &Api<HybridNode>,
    name: &str,
    which: &Which,
    drained: bool,
) -> anyhow::Result<(HybridNode, Target)> {
    for _ in 0..TRIES {
        let node = cluster.ask(format!("HybridNode {name}"), nodes.get(name)).await?;
        let target = target(which, &node).map_err(anyhow::Error::msg)?;
        let drain = changed(&node.spec.drain, &target, drained);
        if drain == node.spec.drain {
            return Ok((clean(node), target));
        }
        let patch = json!({
            "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
            "spec": {"drain": patch(&drain)},
        });
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let told = async {
            match nodes.patch(name, &params, &patch).await {
                Err(kube::Error::Api(status)) if status.is_conflict() => Ok(None),
                told => told.map(Some),
            }
        };
        if let Some(told) = cluster.ask(format!("HybridNode {name}"), told).await? {
            return Ok((clean(told), target));
        }
    }
    bail!("others keep writing HybridNode {name}: try again")
}

/// As a merge patch: a null takes a field away.
fn patch(drain: &Drain) -> Value {
    let list = |list: &Vec<String>| if list.is_empty() { Value::Null } else { json!(list) };
    if drain.is_empty() {
        return Value::Null;
    }
    json!({
        "all": drain.all.then_some(true),
        "pfs": list(&drain.pfs),
        "networks": list(&drain.networks),
    })
}

fn clean(mut node: HybridNode) -> HybridNode {
    node.metadata.managed_fields = None;
    node
}

/// An object as a watch has it, and whether it is there.
enum Change {
    Node(Box<HybridNode>, bool),
    Attachment(Box<NicAttachment>, bool),
}

/// Watches until no NIC holds a VF, or those that do say why.
async fn follow(
    cluster: &Cluster,
    nodes: Api<HybridNode>,
    mut node: HybridNode,
    target: &Target,
    output: Format,
) -> anyhow::Result<ExitCode> {
    let name = node.name_any();
    let generation = node.metadata.generation;
    let here = |field: &str| watcher::Config::default().fields(&format!("{field}={name}"));
    let attachments: Api<NicAttachment> = Api::all(cluster.client.clone());
    let nodes = watch(nodes, here("metadata.name"))
        .map(|change| change.map(|(node, there)| Change::Node(Box::new(node), there)));
    let attachments = watch(attachments, here("spec.nodeName"))
        .map(|change| change.map(|(attachment, there)| Change::Attachment(Box::new(attachment), there)));
    let mut changes = pin!(stream::select(nodes, attachments));
    let mut interrupted = pin!(tokio::signal::ctrl_c());
    let mut known: BTreeMap<String, NicAttachment> = BTreeMap::new();
    let (mut canvas, mut before) = (Canvas::default(), String::new());
    loop {
        let all: Vec<_> = known.values().cloned().collect();
        let observed = node.status.as_ref().and_then(|status| status.observed_generation);
        let now = standing(&node, &all, target, observed >= generation);
        let line = line(&name, target, &now);
        if output == Format::Table && line != before {
            if print::is_terminal() {
                canvas.draw(&line, print::width().unwrap_or(80))?;
            } else {
                print::text(&line)?;
            }
            before = line;
        }
        if now.is_settled() {
            if output != Format::Table {
                print::value(output, &clean(node), |_| String::new())?;
            }
            let there = matches!(now, Standing::There(_));
            return Ok(if there {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        tokio::select! {
            change = changes.next() => match change.context("the watches have ended; the drain goes on")? {
                Ok(Change::Node(new, true)) if new.metadata.uid == node.metadata.uid => {
                    if new.metadata.generation >= node.metadata.generation {
                        node = *new;
                    }
                }
                Ok(Change::Node(..)) => bail!("the HybridNode {name} was deleted, and its drain with it"),
                Ok(Change::Attachment(attachment, there)) => {
                    let key = attachment.metadata.uid.clone().unwrap_or_default();
                    if there {
                        known.insert(key, *attachment);
                    } else {
                        known.remove(&key);
                    }
                }
                Err(error) => {
                    let (text, passes) = cluster.explain_watch(&error);
                    if !passes {
                        bail!("{text}; the drain goes on");
                    }
                }
            },
            _ = &mut interrupted => {
                print::note(&format!(
                    "the drain goes on by itself. Take it back: kubectl hybridnic undrain-pf {name} {}",
                    target.arguments()
                ))?;
                return Ok(ExitCode::from(INTERRUPTED));
            }
        }
    }
}

fn line(node: &str, target: &Target, standing: &Standing) -> String {
    let (tone, mark) = match standing {
        Standing::OnItsWay(_) => (Tone::Plain, "…"),
        Standing::There(_) => (Tone::Good, "✓"),
        Standing::Stuck(_) => (Tone::Bad, "✗"),
    };
    let what = match target {
        Target::All => String::new(),
        Target::Pf(address) => format!(" {address}"),
        Target::Network(network) => format!(" network {network}"),
    };
    format!("{} {node}{what}  {}\n", tone.paint(mark), standing.text())
}
