//! The tables on the terminal, drawn again when an object changes.

use std::{pin::pin, process::ExitCode, time::Duration};

use anyhow::Context as _;
use futures::{Stream, StreamExt as _, stream};
use hybridnic_console::{
    screen::{Act, Screen},
    top::{self as view, Place, Tables},
};
use kube::{
    Api, Resource,
    runtime::{WatchStreamExt as _, reflector, watcher},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until};

use super::Apis;
use crate::{connect::Cluster, print};

/// Changes that come close together are drawn at once.
const GATHER: Duration = Duration::from_millis(100);

/// Draws until `q`, Escape or Ctrl-C.
pub async fn run(cluster: &Cluster, all: bool) -> anyhow::Result<ExitCode> {
    let apis = Apis::new(cluster, all);
    let (networks, network_changes) = watch(cluster, view::NETWORKS, apis.networks);
    let (nodes, node_changes) = watch(cluster, view::NODES, apis.nodes);
    let (nics, nic_changes) = watch(cluster, view::NICS, apis.nics);
    let mut changes = pin!(stream::select(
        network_changes,
        stream::select(node_changes, nic_changes)
    ));
    let mut troubles: Vec<(&str, String)> = Vec::new();

    let mut screen = Screen::open()?;
    let mut draw_at = Some(Instant::now() + GATHER);
    loop {
        let drawing = async {
            match draw_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            change = changes.next() => {
                let (what, trouble) = change.context("the watches have ended")?;
                troubles.retain(|(other, _)| *other != what);
                troubles.extend(trouble.map(|text| (what, text)));
                draw_at.get_or_insert_with(|| Instant::now() + GATHER);
            }
            act = screen.act() => match act? {
                Act::Leave => return Ok(ExitCode::SUCCESS),
                Act::Resize => draw_at = Some(Instant::now()),
            },
            () = drawing => {
                draw_at = None;
                let mut tables = Tables::new(&Ok(all_of(&networks)), &Ok(all_of(&nodes)), &Ok(all_of(&nics)));
                tables.errors = troubles.iter().map(|(what, text)| format!("{what}: {text}")).collect();
                screen.paint(&view::draw(&tables, Place::Cluster, print::width()))?;
            }
        }
    }
}

/// A store that follows a kind, and its changes: what was looked at, and what is wrong with that, if anything.
fn watch<K>(
    cluster: &Cluster,
    what: &'static str,
    api: Api<K>,
) -> (
    reflector::Store<K>,
    impl Stream<Item = (&'static str, Option<String>)>,
)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let cluster = cluster.clone();
    let changes = watcher(api, watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .map(move |event| (what, event.err().map(|error| cluster.explain_watch(&error).0)));
    (store, changes)
}

fn all_of<K: Resource<DynamicType = ()> + Clone>(store: &reflector::Store<K>) -> Vec<K> {
    store
        .state()
        .iter()
        .map(|object| object.as_ref().clone())
        .collect()
}
