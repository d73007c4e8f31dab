//! What a VM's libvirt domain gets from us, for its NICs.
//!
//! ```text
//! <interface> of each of our NICs      <teaming type='persistent'/>       QEMU offers the guest to pair it: failover
//! <qemu:commandline>, once             -chardev, -mon                     the monitor that the agent speaks to
//!                     for each NIC     -device pcie-root-port             where its VF is plugged
//! ```
//! The text is added where it belongs, and every other byte stays: KubeVirt's own elements that this does not know, and
//! those of other sidecars. What is already there is not added again, so that the launcher may ask again.

mod text;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use roxmltree::{Document, Node};
use thiserror::Error;

use crate::vmi::Nic;
use text::{Insertion, insert, prefix};

/// The VF's ports are the eight functions of this device. libvirt, which does not know about them, fills the bus from
/// its lower end.
const SLOT: u8 = 0x1e;
/// NICs that a VM can have.
pub const PORTS: usize = 8;
/// Chassis and slot numbers, unique in the VM, of the first port. libvirt counts its own from one.
const FIRST_NUMBER: usize = 200;
/// The socket of the second monitor, in the volume that libvirt keeps its own in.
pub const MONITOR: &str = "/var/run/kubevirt-private/hybridnic-qmp.sock";
/// libvirt's namespace for arguments that it hands on to QEMU.
const QEMU: &str = "http://libvirt.org/schemas/domain/qemu/1.0";

/// Why a domain is not changed. The VM does not start then, and its user reads this.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Not XML, or not a domain.
    #[error("the domain cannot be read: {0}")]
    Unreadable(String),
    /// A VF is plugged by ACPI.
    #[error("ACPI is off, and a guest without it cannot be given a VF: leave out features.acpi")]
    NoAcpi,
    /// Its bus is another one.
    #[error("machine type {0}: a VF is plugged into a port of q35 only")]
    Machine(String),
    /// More NICs than ports.
    #[error("{0} interfaces of the binding hybridnic: a VM can have {PORTS}")]
    TooMany(usize),
    /// A name that libvirt or QEMU would take for something else.
    #[error("the interface name {0:?} has other characters than letters, digits, '-' and '_'")]
    Name(String),
    /// Two with one name.
    #[error("two interfaces have the name {0}")]
    SameName(String),
    /// No virtio.
    #[error("interface {nic} has model {model}: only virtio can be paired with a VF")]
    Model {
        /// Its name.
        nic: String,
        /// What it was given.
        model: String,
    },
    /// KubeVirt has built something else than a tap device.
    #[error(
        "interface {nic} is of type {found}: register the binding hybridnic with domainAttachmentType tap"
    )]
    Attachment {
        /// Its name.
        nic: String,
        /// What it is.
        found: String,
    },
    /// It is already paired by something else.
    #[error("interface {0} is paired with another device already")]
    Paired(String),
    /// A device that is not ours is where our ports go.
    #[error("PCI slot {SLOT:#x} is taken: the VFs' ports have it")]
    SlotTaken,
    /// Arguments for QEMU that are not ours use one of our IDs.
    #[error("QEMU's arguments have another {0} already")]
    OtherWords(String),
}

/// Adds to a domain what these NICs need, all of the VM's. NICs that KubeVirt has not put in yet get their ports
/// already.
pub fn edit(domain: &str, nics: &[Nic]) -> Result<String, Refusal> {
    insert(domain, insertions(domain, nics)?).ok_or_else(|| Refusal::Unreadable("places overlap".into()))
}

fn insertions(domain: &str, nics: &[Nic]) -> Result<Vec<Insertion>, Refusal> {
    let document = Document::parse(domain).map_err(|e| Refusal::Unreadable(e.to_string()))?;
    let root = document.root_element();
    if root.tag_name().name() != "domain" {
        return Err(Refusal::Unreadable("it has no <domain>".into()));
    }
    if nics.is_empty() {
        return Ok(Vec::new());
    }
    check_names(nics)?;
    check_machine(root)?;
    let mut all = Vec::new();
    for nic in nics {
        all.extend(teaming(root, nic)?);
    }
    all.extend(commandline(root, nics)?);
    Ok(all)
}

fn check_names(nics: &[Nic]) -> Result<(), Refusal> {
    if nics.len() > PORTS {
        return Err(Refusal::TooMany(nics.len()));
    }
    let mut names = BTreeSet::new();
    for Nic { name, model } in nics {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if name.is_empty() || !name.chars().all(plain) {
            return Err(Refusal::Name(name.clone()));
        }
        if !names.insert(name) {
            return Err(Refusal::SameName(name.clone()));
        }
        if let Some(model) = model.as_ref().filter(|model| !is_virtio(model)) {
            return Err(Refusal::Model {
                nic: name.clone(),
                model: model.clone(),
            });
        }
    }
    Ok(())
}

fn check_machine(root: Node<'_, '_>) -> Result<(), Refusal> {
    let machine = child(root, "os")
        .and_then(|os| child(os, "type"))
        .and_then(|kind| kind.attribute("machine"))
        .unwrap_or("unknown");
    if machine != "q35" && !machine.starts_with("pc-q35-") {
        return Err(Refusal::Machine(machine.into()));
    }
    if child(root, "features")
        .and_then(|features| child(features, "acpi"))
        .is_none()
    {
        return Err(Refusal::NoAcpi);
    }
    if devices(root)
        .flat_map(|d| d.descendants())
        .any(|node| is_at_our_slot(node) || is_bridge_of_our_slot(node))
    {
        return Err(Refusal::SlotTaken);
    }
    Ok(())
}

fn is_at_our_slot(node: Node<'_, '_>) -> bool {
    let is = |name: &str, number: u8| {
        let text = node.attribute(name).unwrap_or("0");
        let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |digits| (digits, 16));
        u8::from_str_radix(digits, radix) == Ok(number)
    };
    node.has_tag_name("address")
        && node.attribute("type") == Some("pci")
        && node
            .parent_element()
            .is_some_and(|parent| !parent.has_tag_name("source"))
        && is("bus", 0)
        && is("slot", SLOT)
}

/// libvirt puts the first of these there by itself.
fn is_bridge_of_our_slot(node: Node<'_, '_>) -> bool {
    node.has_tag_name("controller") && node.attribute("model") == Some("dmi-to-pci-bridge")
}

fn is_virtio(model: &str) -> bool {
    matches!(
        model,
        "virtio" | "virtio-transitional" | "virtio-non-transitional"
    )
}

/// What the interface of a NIC lacks; nothing if KubeVirt has not put it in yet.
fn teaming(root: Node<'_, '_>, nic: &Nic) -> Result<Option<Insertion>, Refusal> {
    let alias = format!("ua-{}", nic.name);
    let is_it = |node: &Node<'_, '_>| {
        node.has_tag_name("interface")
            && child(*node, "alias").and_then(|a| a.attribute("name")) == Some(&*alias)
    };
    let mut found = devices(root).flat_map(|devices| devices.children()).filter(is_it);
    let Some(interface) = found.next() else {
        return Ok(None);
    };
    if found.next().is_some() {
        return Err(Refusal::SameName(nic.name.clone()));
    }
    let kind = interface.attribute("type").unwrap_or_default();
    if kind != "ethernet" {
        return Err(Refusal::Attachment {
            nic: nic.name.clone(),
            found: shown(kind),
        });
    }
    let model = child(interface, "model")
        .and_then(|model| model.attribute("type"))
        .unwrap_or_default();
    if !is_virtio(model) {
        return Err(Refusal::Model {
            nic: nic.name.clone(),
            model: shown(model),
        });
    }
    match child(interface, "teaming") {
        None => Ok(Some(Insertion::last_in(
            interface,
            "<teaming type='persistent'/>".into(),
        ))),
        Some(teaming) if teaming.attribute("type") == Some("persistent") => Ok(None),
        Some(_) => Err(Refusal::Paired(nic.name.clone())),
    }
}

/// What is added to QEMU's command line besides libvirt's own arguments.
fn words(nics: &[Nic]) -> Vec<[String; 2]> {
    let monitor = [
        [
            "-chardev".into(),
            format!("socket,id=hybridnic-qmp,path={MONITOR},server=on,wait=off"),
        ],
        ["-mon".into(), "chardev=hybridnic-qmp,mode=control".into()],
    ];
    let ports = nics.iter().enumerate().map(|(n, nic)| {
        // The first function says that there are more.
        let first = if n == 0 { ",multifunction=on" } else { "" };
        // With an address: QEMU makes these before libvirt's own devices, and would take an address that those are to have.
        let port = format!(
            "pcie-root-port,id=hybridnic-{name},bus=pcie.0,addr={SLOT:#x}.{n:#x}{first},chassis={number},slot={number}",
            name = nic.name,
            number = FIRST_NUMBER + n,
        );
        ["-device".into(), port]
    });
    monitor.into_iter().chain(ports).collect()
}

/// The arguments that QEMU does not have yet: in the one element that libvirt reads, which another sidecar may have made.
fn commandline(root: Node<'_, '_>, nics: &[Nic]) -> Result<Vec<Insertion>, Refusal> {
    let here = child_in(root, QEMU, "commandline");
    let said: Vec<_> = here
        .into_iter()
        .flat_map(|here| here.children())
        .filter(|node| node.has_tag_name((QEMU, "arg")))
        .filter_map(|node| node.attribute("value"))
        .collect();
    let mut missing = Vec::new();
    for [option, value] in words(nics) {
        if said.windows(2).any(|pair| pair == [&*option, &*value]) {
            continue;
        }
        if let Some(id) = identity(&value)
            && said
                .windows(2)
                .any(|pair| pair[0] == option && identity(pair[1]) == Some(id))
        {
            return Err(Refusal::OtherWords(id.to_owned()));
        }
        missing.extend([option, value]);
    }
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![match here {
        Some(here) => Insertion::last_in(here, arguments(prefix(here), &missing)),
        // A prefix that is declared at the root may mean something else in another element.
        None => Insertion::last_in(
            root,
            format!(
                "<qemu:commandline xmlns:qemu='{QEMU}'>{}</qemu:commandline>",
                arguments("qemu:", &missing)
            ),
        ),
    }])
}

fn arguments(prefix: &str, words: &[String]) -> String {
    let elements = words.iter().map(|word| format!("<{prefix}arg value='{word}'/>"));
    elements.collect::<Vec<_>>().concat()
}

/// The ID that an argument for QEMU gives something, or the device that it is about.
fn identity(value: &str) -> Option<&str> {
    value
        .split(',')
        .find_map(|part| part.strip_prefix("id=").or_else(|| part.strip_prefix("chardev=")))
}

fn devices<'a, 'i>(root: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    root.children().filter(|child| child.has_tag_name("devices"))
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|child| child.has_tag_name(name))
}

fn child_in<'a, 'i>(node: Node<'a, 'i>, namespace: &str, name: &str) -> Option<Node<'a, 'i>> {
    node.children()
        .find(|child| child.has_tag_name((namespace, name)))
}

fn shown(word: &str) -> String {
    if word.is_empty() {
        "none".into()
    } else {
        word.into()
    }
}
