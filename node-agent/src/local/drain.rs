//! `ctl drain-pf` and `ctl undrain-pf`: say in the host's own file what of its VFs is to be drained, and wait until the agent has done it.

use std::{fs, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, anyhow, bail, ensure};
use hybridnic_api::v1alpha1::{Drain, HybridNode, HybridNodeSpec, NicAttachment};
use hybridnic_console::{
    Standing,
    drain::{Target, Which, changed, covers, left, standing, target},
};
use kube::api::ObjectMeta;
use tokio::time::timeout;

use super::{
    ctl::{LATE, Wait, watch},
    dir::{Change, Dir, names},
    file,
    order::Attached,
    show::{host, said},
    source::new_uid,
};
use crate::durable::{self, found};

/// Says it, and waits.
pub async fn run(dir: &Path, which: &Which, drained: bool, wait: &Wait) -> anyhow::Result<ExitCode> {
    let watched = watch(dir)?;
    let (target, drain) = change(dir, which, drained)?;
    if !drained && covers(&drain, &target) {
        bail!(
            "it stays drained, because all of the host is: {} --all",
            command(dir, "undrain-pf")
        );
    }
    if wait.timeout > 0 {
        let end = follow(&watched, dir, &target, drained);
        let Ok(end) = timeout(Duration::from_secs(wait.timeout), end).await else {
            eprintln!(
                "not done within {} s; the agent, if one runs, goes on. Take it back: {} {}",
                wait.timeout,
                command(dir, if drained { "undrain-pf" } else { "drain-pf" }),
                target.arguments()
            );
            return Ok(ExitCode::from(LATE));
        };
        end?;
    }
    for arguments in left(&drain).into_iter().filter(|_| !drained) {
        eprintln!(
            "something is drained yet; take that back, too: {} {arguments}",
            command(dir, "undrain-pf")
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Says it in the host's file; gives what it is about, and all that the file asks to drain then.
fn change(dir: &Path, which: &Which, drained: bool) -> anyhow::Result<(Target, Drain)> {
    // What another command writes between the look and the write would be lost.
    let _lock = durable::lock(dir)?;
    let before = asked(dir)?.map(|(drain, _)| drain);
    let node = seen(dir, before.clone().unwrap_or_default())?;
    let target = target(which, &node).map_err(anyhow::Error::msg)?;
    let drain = changed(&node.spec.drain, &target, drained);
    if before.as_ref() != Some(&drain) {
        let text = file::of_host(&drain, &new_uid()).map_err(anyhow::Error::msg)?;
        let path = dir.join(file::asking(file::NODE));
        durable::set(dir, &path, Some(text.as_bytes())).with_context(|| path.display().to_string())?;
    }
    Ok((target, drain))
}

/// How the command line says it.
fn command(dir: &Path, command: &str) -> String {
    format!("hybridnic-agent ctl --dir {} {command}", dir.display())
}

/// What the host's file asks to drain, and its version; `None` where there is none.
fn asked(dir: &Path) -> anyhow::Result<Option<(Drain, i64)>> {
    let path = dir.join(file::asking(file::NODE));
    let text = found(fs::read_to_string(&path)).with_context(|| path.display().to_string())?;
    let asked = text.map(|text| Ok((file::host(&text)?, file::generation(&text))));
    asked
        .transpose()
        .map_err(|why: String| anyhow!("{}: {why}", path.display()))
}

/// The host as its agent has said it, of which this is to be drained.
fn seen(dir: &Path, drain: Drain) -> anyhow::Result<HybridNode> {
    let nobody = || HybridNode::new("this host", HybridNodeSpec::default());
    let mut node = host(dir)?.unwrap_or_else(nobody);
    node.spec.drain = drain;
    Ok(node)
}

/// The NICs, as the agent has said them.
fn attachments(dir: &Path) -> anyhow::Result<Vec<NicAttachment>> {
    let (_, told) = names(dir)?;
    let mut all = Vec::new();
    for name in told {
        let attached = said(dir, &name)?.and_then(|mut said| Some(said.get_mut("attached")?.take()));
        let Some(attached) = attached else { continue };
        let attached: Attached = serde_json::from_value(attached)
            .with_context(|| format!("what is said of {name} cannot be understood"))?;
        all.push(NicAttachment {
            metadata: ObjectMeta {
                name: Some(name),
                ..ObjectMeta::default()
            },
            spec: attached.spec,
            status: attached.status,
        });
    }
    Ok(all)
}

/// Tells how far it is each time that this changes, until it is done.
async fn follow(watched: &Dir, dir: &Path, target: &Target, drained: bool) -> anyhow::Result<()> {
    let mut before = String::new();
    loop {
        let (drain, version) = asked(dir)?.unzip();
        let drain = drain.unwrap_or_default();
        let is_said = covers(&drain, target) == drained;
        ensure!(is_said, "the host's file says something else since");
        let node = seen(dir, drain)?;
        let observed = node.status.as_ref().and_then(|status| status.observed_generation);
        // Without a file the agent has seen none, once it has acted on its end.
        let is_seen = observed == version;
        let now = if drained {
            standing(&node, &attachments(dir)?, target, is_seen)
        } else if is_seen {
            Standing::There("NICs may have VFs of it again, and come back by themselves".to_owned())
        } else {
            Standing::OnItsWay("the host's agent has not looked at it yet".to_owned())
        };
        let line = format!("{}: {}", target.arguments(), now.text());
        if line != before {
            eprintln!("{line}");
            before = line;
        }
        // A NIC that is stuck may be helped while this waits.
        if matches!(now, Standing::There(_)) {
            return Ok(());
        }
        let change = watched.changed().await;
        ensure!(change != Change::Lost, "the directory {} has gone", dir.display());
    }
}

#[cfg(test)]
#[path = "drain_tests.rs"]
mod tests;
