//! What `ctl` shows a person of files and statuses.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::Context as _;
use hybridnic_api::{
    conditions::{self, types},
    v1alpha1::{HybridNode, HybridNodeSpec, HybridNodeStatus, NodePool, VmHybridNicStatus},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{dir::names, file};
use crate::{durable::found, inventory};

/// What is said of an object; `None` where nothing is.
pub fn said(dir: &Path, name: &str) -> anyhow::Result<Option<Value>> {
    let path = dir.join(file::status(name));
    let text = found(fs::read_to_string(&path)).with_context(|| path.display().to_string())?;
    let said = text.map(|text| serde_saphyr::from_str(&text)).transpose();
    said.with_context(|| path.display().to_string())
}

/// Its status.
pub fn status<T: DeserializeOwned>(dir: &Path, name: &str) -> anyhow::Result<Option<T>> {
    status_in(name, said(dir, name)?)
}

/// The status in what is said of it.
pub fn status_in<T: DeserializeOwned>(name: &str, said: Option<Value>) -> anyhow::Result<Option<T>> {
    let status = said.and_then(|mut said| Some(said.get_mut("status")?.take()));
    let status = status.map(serde_json::from_value).transpose();
    status.with_context(|| format!("what is said of {name} cannot be understood"))
}

/// How a NIC is, in a line.
pub fn line(name: &str, status: Option<&VmHybridNicStatus>) -> String {
    let Some(status) = status else {
        return format!("{name}: nothing is said of it");
    };
    let why = why(status).map_or_else(String::new, |why| format!(": {why}"));
    format!("{name}: {}, path {}{why}", status.phase, status.path)
}

/// What is wrong with a NIC, or is waited for: what is refused comes before what is not reached yet.
fn why(status: &VmHybridNicStatus) -> Option<String> {
    let not =
        |type_| conditions::find(&status.conditions, type_).filter(|condition| condition.status != "True");
    let wrong = [types::ACCEPTED, types::READY, types::FAST_PATH]
        .into_iter()
        .find_map(not)?;
    Some(format!("{}: {}", wrong.reason, wrong.message))
}

/// A NIC in the table.
#[derive(Debug, Default, PartialEq)]
pub struct Row {
    asked: Option<Value>,
    status: Option<VmHybridNicStatus>,
}

/// All NICs that are asked for, or of which something is said.
pub fn nics(dir: &Path) -> anyhow::Result<BTreeMap<String, Row>> {
    let listed = names(dir).with_context(|| format!("the directory {}", dir.display()));
    let (asked, told) = listed?;
    let mut rows = BTreeMap::new();
    for name in asked.union(&told).filter(|name| *name != file::NODE) {
        let text = fs::read_to_string(dir.join(file::asking(name))).unwrap_or_default();
        let document: Option<Value> = serde_saphyr::from_str(&text).ok();
        let is_network = |document: &Value| document["kind"] == "HybridNetwork";
        if document.as_ref().is_some_and(is_network) {
            continue;
        }
        let said = said(dir, name)?;
        if said.as_ref().is_some_and(is_network) {
            continue;
        }
        let spec = document.and_then(|document| document.get("spec").cloned());
        let row = Row {
            asked: spec,
            status: status_in(name, said)?,
        };
        rows.insert(name.clone(), row);
    }
    Ok(rows)
}

/// The host, as the agent has said it, with the pools of its status in its spec, and nothing that its own file asks for. `None` where no agent has said anything.
pub fn host(dir: &Path) -> anyhow::Result<Option<HybridNode>> {
    let Some(said) = said(dir, file::NODE)? else {
        return Ok(None);
    };
    let name = said.pointer("/metadata/name").and_then(Value::as_str);
    let mut host = HybridNode::new(name.unwrap_or("this host"), HybridNodeSpec::default());
    host.status = status_in(file::NODE, Some(said))?;
    let pools = host.status.iter().flat_map(|status| &status.pools);
    let pools = pools.map(|pool| NodePool {
        network: pool.network.clone(),
        ..NodePool::default()
    });
    host.spec.pools = pools.collect();
    Ok(Some(host))
}

/// NICs in a table.
pub fn table(nics: &BTreeMap<String, Row>) -> String {
    let header = [
        "NAME", "PHASE", "PATH", "NETWORK", "SOCKET", "MAC", "PF", "VF", "WHY",
    ];
    let mut lines = vec![header.map(str::to_owned)];
    for (name, row) in nics {
        let status = row.status.clone().unwrap_or_default();
        let asked = |pointer: &str| {
            let value = row
                .asked
                .as_ref()
                .and_then(|asked| asked.pointer(pointer)?.as_str());
            value.unwrap_or("-").to_owned()
        };
        let vf = status.vf.as_ref();
        let or_dash = |text: Option<&String>| text.map_or_else(|| "-".to_owned(), Clone::clone);
        lines.push([
            name.clone(),
            if row.status.is_some() {
                status.phase.to_string()
            } else {
                "-".to_owned()
            },
            status.path.to_string(),
            asked("/network"),
            asked("/vm/qemu/socket"),
            or_dash(status.mac.as_ref()),
            or_dash(vf.map(|vf| &vf.pf)),
            or_dash(vf.map(|vf| &vf.pci_address)),
            if row.status.is_some() {
                why(&status).unwrap_or_default()
            } else {
                "no agent has said anything of it".to_owned()
            },
        ]);
    }
    inventory::columns(lines.as_slice())
}

/// PFs, VFs and pools, as the agent has said them.
pub fn node(dir: &Path) -> anyhow::Result<String> {
    let status: Option<HybridNodeStatus> = status(dir, file::NODE)?;
    let status = status.with_context(|| format!("no agent has said anything in {}", dir.display()))?;
    let mut text = inventory::rows(&status.pfs);
    let header = ["NETWORK", "VFS", "FREE", "HELD", "UNHEALTHY", "NOTE"];
    let mut lines = vec![header.map(str::to_owned)];
    lines.extend(status.pools.iter().map(|pool| {
        let vfs = pool.vfs;
        [
            pool.network.clone(),
            vfs.total.to_string(),
            vfs.free.to_string(),
            vfs.held.to_string(),
            vfs.unhealthy.to_string(),
            pool.message.clone(),
        ]
    }));
    text.push('\n');
    text.push_str(&inventory::columns(lines.as_slice()));
    for condition in &status.conditions {
        let Condition {
            type_,
            status,
            reason,
            message,
            ..
        } = condition;
        // Writing to a string cannot fail.
        let _ = write!(text, "\n{type_}: {status}, {reason}: {message}");
    }
    text.push('\n');
    Ok(text)
}
