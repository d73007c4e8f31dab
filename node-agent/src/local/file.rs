//! What a file asks for, checked as an API server checks an object. Pure.
//!
//! A file has one object, and its name without `.yaml` is the object's. The objects are those of the API, but for a NIC's `spec.vm`: on a
//! host there is no pod with a label, so a VM is named by its QEMU's QMP socket.

use std::path::{Path, PathBuf};

use hybridnic_api::{
    checks::Checks,
    names::{GROUP, NIC_NAME_MAX},
    v1alpha1::{
        Drain, HybridNetwork, HybridNetworkSpec, HybridNode, HybridNodeSpec, VmHybridNic, VmHybridNicSpec,
    },
};
use hybridnic_decisions::mac;
use kube::CustomResourceExt as _;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::order;

/// How the name of a file ends that asks for something.
const END: &str = ".yaml";
/// How the name of a file ends that says how it is.
const STATUS: &str = ".status.yaml";
/// The name of what is asked of the host itself, and said of it.
pub const NODE: &str = "node";
/// How a NIC names its VM.
const VM: &str =
    "a NIC without a cluster names its VM by QEMU's QMP socket, as in vm: {qemu: {socket: /run/vms/vm1.qmp}}";

/// The object that a file is about, by the file's name; none for a file of another kind.
pub fn object(file: &str) -> Option<&str> {
    let name = file.strip_suffix(END)?;
    (!name.starts_with('.') && !file.ends_with(STATUS)).then_some(name)
}

/// The object that a file says something of, by the file's name.
pub fn told(file: &str) -> Option<&str> {
    file.strip_suffix(STATUS).filter(|name| !name.starts_with('.'))
}

/// The file that asks for an object.
pub fn asking(name: &str) -> String {
    format!("{name}{END}")
}

/// The file that says how it is.
pub fn status(name: &str) -> String {
    format!("{name}{STATUS}")
}

/// Which version of a file a status is about: the same for the same text.
pub fn generation(text: &str) -> i64 {
    // Numbers that JSON keeps exactly.
    i64::try_from(mac::hash(&[text]) >> 12).unwrap_or_default()
}

/// What a file asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    /// A network.
    Network(Box<HybridNetworkSpec>),
    /// A NIC.
    Nic(Box<AskedNic>),
}

/// A NIC that a file asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct AskedNic {
    /// Its spec; the VM has a name that is made of the socket's.
    pub spec: VmHybridNicSpec,
    /// The QMP socket of its VM's QEMU.
    pub socket: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: Value,
    /// As in what `kubectl get -o yaml` prints.
    #[serde(default, rename = "status")]
    _status: Value,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

/// How a NIC names its VM here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VmHere {
    qemu: QemuHere,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct QemuHere {
    socket: PathBuf,
}

/// Reads the file of this name; `before` is what it asked for when it was understood last. An error says all that is wrong.
pub fn parse(name: &str, text: &str, before: Option<&Asked>) -> Result<Asked, String> {
    check_name(name)?;
    let document = document(name, text)?;
    let asked = match document.kind.as_str() {
        "HybridNetwork" => network(document.spec, before)?,
        "VmHybridNic" => nic(document.spec, before)?,
        other => {
            return Err(format!(
                "kind is {other:?}: a file here is a HybridNetwork or a VmHybridNic"
            ));
        }
    };
    match (before, &asked) {
        (Some(Asked::Network(_)), Asked::Nic(_)) | (Some(Asked::Nic(_)), Asked::Network(_)) => {
            Err("kind cannot change: remove the file, and take another name".to_owned())
        }
        _ => Ok(asked),
    }
}

/// What of the host the text of its file asks to drain.
pub fn host(text: &str) -> Result<Drain, String> {
    let document = document(NODE, text)?;
    if document.kind != "HybridNode" {
        return Err(format!(
            "kind is {:?}: {NODE}{END} is the host's own, a HybridNode; a network or a NIC takes another name",
            document.kind
        ));
    }
    if document.spec.get("pools").is_some() {
        return Err(
            "spec.pools: the files of networks say which pools the host has: leave it out".to_owned(),
        );
    }
    let checks = Checks::of(HybridNode::crd());
    let spec: HybridNodeSpec = checked(&checks, document.spec, None, |_| {})?;
    Ok(spec.drain)
}

/// The text of the host's file that asks to drain this. No other has the same `id`: what was said of an earlier text that asked for the
/// same is not said of this one.
pub fn of_host(drain: &Drain, id: &str) -> Result<String, String> {
    let spec = if drain.is_empty() {
        json!({})
    } else {
        json!({ "drain": drain })
    };
    let document = json!({
        "apiVersion": format!("{GROUP}/v1alpha1"),
        "kind": "HybridNode",
        "metadata": { "name": NODE },
        "spec": spec,
    });
    let text = serde_saphyr::to_string(&document).map_err(|error| error.to_string())?;
    let text = format!("# Written by hybridnic-agent ctl, as {id}.\n{text}");
    host(&text).map(|_| text)
}

fn document(name: &str, text: &str) -> Result<Document, String> {
    let document: Document = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    if document.api_version != format!("{GROUP}/v1alpha1") {
        return Err(format!(
            "apiVersion is {}, not {GROUP}/v1alpha1",
            document.api_version
        ));
    }
    if document.metadata.name != name {
        return Err(format!(
            "metadata.name is {:?}: it must be {name:?}, as the file's name without {END}",
            document.metadata.name
        ));
    }
    Ok(document)
}

/// The NIC that a file's text asks for.
pub fn asked(name: &str, text: &str) -> Result<Box<AskedNic>, String> {
    match parse(name, text, None)? {
        Asked::Nic(asked) => Ok(asked),
        Asked::Network(_) => Err(format!("{name} is a network")),
    }
}

/// Names of devices in QEMU and of files are made of it.
fn check_name(name: &str) -> Result<(), String> {
    let is_end =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = name.as_bytes();
    let is_label = bytes
        .iter()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-');
    if name == NODE {
        return Err(format!(
            "the name {NODE:?} is the host's own: a network or a NIC takes another one"
        ));
    }
    if !is_label || !is_end(bytes.first()) || !is_end(bytes.last()) || name.len() > NIC_NAME_MAX {
        return Err(format!(
            "the name {name:?} must be of lower-case letters, digits and hyphens, {NIC_NAME_MAX} at most"
        ));
    }
    Ok(())
}

fn network(spec: Value, before: Option<&Asked>) -> Result<Asked, String> {
    for selector in ["nodeSelector", "namespaceSelector"] {
        if spec.get(selector).is_some() {
            return Err(format!(
                "spec.{selector} means nothing without a cluster: leave it out"
            ));
        }
    }
    let before = match before {
        Some(Asked::Network(before)) => Some(json!(before)),
        _ => None,
    };
    let checks = Checks::of(HybridNetwork::crd());
    let spec = checked(&checks, spec, before.as_ref(), |_| {})?;
    Ok(Asked::Network(Box::new(spec)))
}

fn nic(mut spec: Value, before: Option<&Asked>) -> Result<Asked, String> {
    let vm = spec.as_object_mut().and_then(|spec| spec.remove("vm"));
    let vm: VmHere =
        serde_json::from_value(vm.unwrap_or_default()).map_err(|error| format!("spec.vm: {error}; {VM}"))?;
    let socket = vm.qemu.socket;
    if !order::is_whole(&socket) {
        return Err(format!(
            "spec.vm.qemu.socket must be a whole path without ..; {VM}"
        ));
    }
    let before = match before {
        Some(Asked::Nic(before)) => Some(before),
        _ => None,
    };
    if before.is_some_and(|before| before.socket != socket) {
        return Err(
            "spec.vm: vm cannot change: delete the NIC and create it again for the other VM".to_owned(),
        );
    }
    let checks = Checks::of(VmHybridNic::crd()).without("vm");
    let before = before.map(|before| json!(before.spec));
    let name = vm_name(&socket);
    let named = move |spec: &mut Value| spec["vm"] = json!({ "qemu": { "name": name } });
    let spec = checked(&checks, spec, before.as_ref(), named)?;
    Ok(Asked::Nic(Box::new(AskedNic { spec, socket })))
}

/// What a VM is called where the API has its name: by its socket's, as far as a label may have it.
fn vm_name(socket: &Path) -> String {
    let stem = socket.file_stem().unwrap_or_default().to_string_lossy();
    let fits = |c: &char| c.is_ascii_alphanumeric() || *c == '-';
    let name: String = stem.chars().filter(fits).take(63).collect();
    let name = name.trim_matches('-');
    if name.is_empty() { "vm" } else { name }.to_owned()
}

/// A spec without what nobody knows, with all its defaults, and within all rules.
fn checked<T: Serialize + DeserializeOwned>(
    checks: &Checks,
    mut spec: Value,
    before: Option<&Value>,
    complete: impl FnOnce(&mut Value),
) -> Result<T, String> {
    let all = |wrong: Vec<String>| {
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(wrong.join("; "))
        }
    };
    if !spec.is_object() {
        return Err("spec is no object".to_owned());
    }
    all(checks.unknown(&spec))?;
    complete(&mut spec);
    let typed: T = serde_json::from_value(spec).map_err(|error| format!("spec: {error}"))?;
    let whole = serde_json::to_value(&typed).map_err(|error| error.to_string())?;
    all(checks.broken(&whole, before))?;
    Ok(typed)
}

#[cfg(test)]
#[path = "file_tests.rs"]
pub(crate) mod tests;
