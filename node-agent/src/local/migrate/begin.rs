//! What must be so before a migration between two hosts begins.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum as _;
use hybridnic_api::v1alpha1::{MigrationPhase, QemuMigrationStatus};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    super::{dir::names, file, order::Attached, source::new_uid},
    Args,
    hand::{Hand, Seen},
    plan::{End, Flight, Nic},
};

/// A migration that has not begun, if it can: all is checked that can be known before anything is touched.
pub(super) fn checked(
    dir: &Path,
    args: &Args,
    source: &Seen,
    target: &Seen,
    address: IpAddr,
) -> anyhow::Result<Flight> {
    let nics = &args.nics.iter().cloned().collect::<BTreeSet<_>>();
    ensure!(
        source.node != target.node,
        "both hosts are called {}: say another --node-name to one of their agents",
        source.node
    );
    let mut known = BTreeMap::new();
    let mut socket: Option<PathBuf> = None;
    let mut vm = String::new();
    for name in nics {
        let seen = source.nics.get(name).cloned().unwrap_or_default();
        let path = dir.join(file::asking(name));
        let text = seen
            .file
            .with_context(|| format!("there is no NIC {name}: {}", path.display()))?;
        let nic = file::asked(name, &text).map_err(|why| anyhow::anyhow!("{}: {why}", path.display()))?;
        if let Some((order, _)) = &seen.order {
            bail!(
                "the migration {} has {name}: end it first, by `ctl migrate` where it was begun, or by `ctl end-migration` here",
                order.migration
            );
        }
        if let Some(why) = &seen.refusal {
            bail!("the agent does not do what the file of {name} asks for: {why}");
        }
        let attached = seen
            .attached
            .with_context(|| format!("the agent has not attached {name}"))?;
        ensure!(
            socket.as_ref().is_none_or(|socket| *socket == nic.socket),
            "{name} is of another VM than the others"
        );
        let to = args.to_socket.clone().unwrap_or_else(|| nic.socket.clone());
        let there = target.nics.get(name).cloned().unwrap_or_default();
        ensure!(
            !there.said && there.file.is_none() && there.order.is_none(),
            "{} has a NIC {name} already: detach it there first, or call this one otherwise",
            target.node
        );
        let network = &nic.spec.network;
        ensure!(
            target.networks.contains(network),
            "there is no HybridNetwork {network} on {}: make its file {}",
            target.node,
            file::asking(network)
        );
        let mac = attached.spec.mac.clone();
        known.insert(
            name.clone(),
            Nic {
                there: moved(&text, &to, &mac)?,
                spec: nic.spec.clone(),
                uid: attached.spec.nic.uid.clone(),
                mac,
            },
        );
        nic.spec.vm.name().unwrap_or_default().clone_into(&mut vm);
        socket = Some(nic.socket.clone());
    }
    let socket = socket.context("no NIC is named")?;
    if let Some(missing) = others(dir, nics, &socket)?.first() {
        bail!("{missing} is a NIC of the same VM: name it, too");
    }
    let encryption = args.encryption.to_possible_value();
    let encryption = encryption
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default();
    Ok(Flight {
        uid: new_uid(),
        vm,
        created: Timestamp::now(),
        session: 1,
        cancelled: false,
        decision: None,
        source: End {
            node: source.node.clone(),
            socket: socket.clone(),
            address: None,
        },
        target: End {
            node: target.node.clone(),
            socket: args.to_socket.clone().unwrap_or(socket),
            address: Some(address.to_string()),
        },
        nics: known,
        encryption,
        status: QemuMigrationStatus {
            phase: MigrationPhase::Pending,
            ..QemuMigrationStatus::default()
        },
        host: String::new(),
        connect: String::new(),
        dir: PathBuf::new(),
        agent: String::new(),
    })
}

/// The text of a NIC's file at the target.
fn moved(text: &str, socket: &Path, mac: &str) -> anyhow::Result<String> {
    let mut document: Value = serde_saphyr::from_str(text)?;
    let spec = document.get_mut("spec").and_then(Value::as_object_mut);
    let spec = spec.context("the file has no spec")?;
    spec.insert("vm".to_owned(), json!({ "qemu": { "socket": socket } }));
    spec.insert("mac".to_owned(), json!(mac));
    Ok(serde_saphyr::to_string(&document)?)
}

/// The NICs of the same VM that are not named.
fn others(dir: &Path, nics: &BTreeSet<String>, socket: &Path) -> anyhow::Result<Vec<String>> {
    let (asked_for, told) = names(dir)?;
    let unnamed = asked_for.union(&told).filter(|name| !nics.contains(*name));
    let seen = Hand::new(dir, &unnamed.cloned().collect()).look()?;
    let mut others = Vec::new();
    for (name, nic) in seen.nics {
        let asks = |text: String| file::asked(&name, &text).is_ok_and(|asked| asked.socket == socket);
        let has = |attached: Attached| attached.socket == socket;
        if nic.file.is_some_and(asks) || nic.attached.is_some_and(has) {
            others.push(name);
        }
    }
    Ok(others)
}
