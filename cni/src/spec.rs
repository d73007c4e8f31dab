//! What a container runtime says to a CNI plugin, and a plugin to a runtime, as far as this one needs it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::wire::{Attachment, Pod};

/// The versions of the specification that this plugin speaks, the newest last.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Error codes: those of the specification, and two of our own.
pub mod codes {
    /// The configuration is of a version that the plugin does not speak.
    pub const VERSION: u32 = 1;
    /// What the environment says is missing or wrong.
    pub const ENVIRONMENT: u32 = 4;
    /// A file or a socket cannot be used.
    pub const IO: u32 = 5;
    /// The input is not JSON, or lacks what it must have.
    pub const DECODE: u32 = 6;
    /// The configuration is wrong.
    pub const CONFIG: u32 = 7;
    /// It may be otherwise in a while.
    pub const TRY_AGAIN: u32 = 11;
    /// The plugin cannot serve `ADD` (answers `STATUS`).
    pub const NOT_AVAILABLE: u32 = 50;
    /// The interface is not as it was made (answers `CHECK`).
    pub const NOT_AS_MADE: u32 = 100;
}

/// Why a command has failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// One of [`codes`].
    pub code: u32,
    /// In words.
    pub message: String,
}

impl Failure {
    /// A failure.
    pub fn new(code: u32, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// The error that a runtime reads from the plugin's output.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorResult<'a> {
    /// The version of the configuration.
    pub cni_version: &'a str,
    /// One of [`codes`].
    pub code: u32,
    /// In words.
    pub msg: &'a str,
}

/// A network's configuration, as the runtime gives it. What others put into it is ignored.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    /// Of which version it is.
    pub cni_version: Option<String>,
    /// The `HybridNetwork`.
    pub network: Option<String>,
    /// The device that Multus has found among those of the pod: the k-th one of the network's resource for the pod's k-th interface of it
    /// (`getKubernetesDelegate` of Multus' pkg/k8sclient, `delegateAddDeviceID` of its pkg/types).
    #[serde(rename = "deviceID")]
    pub device_id: Option<String>,
    /// The same, by the name that SR-IOV plugins know.
    #[serde(rename = "pciBusID")]
    pub pci_bus_id: Option<String>,
    /// What a runtime adds, for plugins that ask for it.
    pub runtime_config: RuntimeConfig,
    /// What `ADD` has answered.
    pub prev_result: Option<AddResult>,
}

/// What a runtime says itself.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct RuntimeConfig {
    /// The device.
    #[serde(rename = "deviceID")]
    pub device_id: Option<String>,
}

impl Config {
    /// Reads one.
    pub fn read(text: &[u8]) -> Result<Self, Failure> {
        serde_json::from_slice(text).map_err(|e| {
            Failure::new(
                codes::DECODE,
                format!("the network's configuration cannot be read: {e}"),
            )
        })
    }

    /// The version to answer in.
    pub fn version(&self) -> &str {
        // Configurations from before there were versions have none.
        self.cni_version.as_deref().unwrap_or("0.1.0")
    }

    /// Whether the plugin speaks its version.
    pub fn check_version(&self) -> Result<(), Failure> {
        let version = self.version();
        if VERSIONS.contains(&version) {
            return Ok(());
        }
        let message = format!(
            "the network's configuration is of CNI {version:?}; this plugin speaks {}",
            VERSIONS.join(", ")
        );
        Err(Failure::new(codes::VERSION, message))
    }

    /// The network.
    pub fn network(&self) -> Result<String, Failure> {
        self.network.clone().filter(|name| !name.is_empty()).ok_or_else(|| {
            Failure::new(
                codes::CONFIG,
                "the network's configuration does not say which HybridNetwork it is: it needs \"network\"",
            )
        })
    }

    /// The device of the pod that the interface is to be made on. It is never guessed.
    pub fn device(&self) -> Result<String, Failure> {
        let said: Vec<&String> = [&self.device_id, &self.pci_bus_id, &self.runtime_config.device_id]
            .into_iter()
            .flatten()
            .filter(|id| !id.is_empty())
            .collect();
        match said[..] {
            [] => Err(Failure::new(
                codes::CONFIG,
                "the pod has no device of this network: Multus gives no deviceID. The network's NetworkAttachmentDefinition needs the annotation \
                 k8s.v1.cni.cncf.io/resourceName, and the pod must request that resource",
            )),
            [first, ..] if said.iter().all(|other| *other == first) => Ok(first.clone()),
            [first, ..] => Err(Failure::new(
                codes::CONFIG,
                format!("the configuration names several devices, among them {first:?}"),
            )),
        }
    }
}

/// What `ADD` answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AddResult {
    /// The version of the configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cni_version: Option<String>,
    /// The interfaces that were made.
    pub interfaces: Vec<Interface>,
    /// None: a VM has its own.
    #[serde(skip_deserializing)]
    pub ips: Vec<Value>,
    /// Nothing.
    #[serde(skip_deserializing)]
    pub dns: serde_json::Map<String, Value>,
}

/// An interface that was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its MTU; since version 1.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The pod's network namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
}

/// What the environment says, by the names of the specification.
pub struct Environment<F>(pub F);

impl<F: Fn(&str) -> Option<String>> Environment<F> {
    /// A variable that must be there.
    pub fn get(&self, name: &str) -> Result<String, Failure> {
        self.optional(name)
            .ok_or_else(|| Failure::new(codes::ENVIRONMENT, format!("{name} is not set")))
    }

    /// A variable that may be missing; an empty one counts as missing.
    pub fn optional(&self, name: &str) -> Option<String> {
        self.0(name).filter(|value| !value.is_empty())
    }

    /// Which interface of which sandbox.
    pub fn attachment(&self) -> Result<Attachment, Failure> {
        let (container_id, ifname) = (self.get("CNI_CONTAINERID")?, self.get("CNI_IFNAME")?);
        let of_id = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if !container_id.starts_with(|c: char| c.is_ascii_alphanumeric()) || !container_id.chars().all(of_id)
        {
            let message = format!("CNI_CONTAINERID is no id: {container_id:?}");
            return Err(Failure::new(codes::ENVIRONMENT, message));
        }
        // `dev_valid_name` of net/core/dev.c.
        let no_name = |c: char| c == '/' || c == ':' || c.is_whitespace();
        if ifname.len() > 15 || matches!(&*ifname, "." | "..") || ifname.contains(no_name) {
            let message = format!("CNI_IFNAME is no name of an interface: {ifname:?}");
            return Err(Failure::new(codes::ENVIRONMENT, message));
        }
        Ok(Attachment { container_id, ifname })
    }

    /// For which pod.
    pub fn pod(&self) -> Result<Pod, Failure> {
        let args = self.get("CNI_ARGS")?;
        let get = |name: &str| {
            args.split(';')
                .filter_map(|pair| pair.split_once('='))
                .find(|(key, value)| *key == name && !value.is_empty())
                .map(|(_, value)| value.to_owned())
                .ok_or_else(|| {
                    let message = format!("CNI_ARGS does not say for which pod this is: {name} is missing");
                    Failure::new(codes::ENVIRONMENT, message)
                })
        };
        Ok(Pod {
            namespace: get("K8S_POD_NAMESPACE")?,
            name: get("K8S_POD_NAME")?,
            uid: get("K8S_POD_UID")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(config: &str) -> Result<String, Failure> {
        Config::read(config.as_bytes()).unwrap().device()
    }

    #[test]
    fn the_device_is_the_one_that_all_name() {
        for config in [
            r#"{"deviceID":"0000:01:00.0-3","pciBusID":"0000:01:00.0-3"}"#,
            r#"{"runtimeConfig":{"deviceID":"0000:01:00.0-3","mac":"52:54:00:00:00:01"}}"#,
            r#"{"pciBusID":"0000:01:00.0-3","deviceID":""}"#,
        ] {
            assert_eq!(device(config).unwrap(), "0000:01:00.0-3", "{config}");
        }
        for config in [
            "{}",
            r#"{"deviceID":"","runtimeConfig":{}}"#,
            r#"{"deviceID":"0000:01:00.0-3","runtimeConfig":{"deviceID":"0000:01:00.0-4"}}"#,
        ] {
            assert_eq!(device(config).unwrap_err().code, codes::CONFIG, "{config}");
        }
    }

    fn environment(pairs: &'static [(&str, &str)]) -> Environment<impl Fn(&str) -> Option<String>> {
        Environment(move |name: &str| {
            pairs
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_is_taken_at_its_word_where_it_has_one() {
        let good = environment(&[
            ("CNI_CONTAINERID", "0123abc"),
            ("CNI_IFNAME", "pod37a8eec1ce1"),
            (
                "CNI_ARGS",
                "IgnoreUnknown=true;K8S_POD_NAMESPACE=tenant;K8S_POD_NAME=vm-1;K8S_POD_INFRA_CONTAINER_ID=0123abc;K8S_POD_UID=u1",
            ),
        ]);
        assert_eq!(good.attachment().unwrap().ifname, "pod37a8eec1ce1");
        let pod = good.pod().unwrap();
        assert_eq!((&*pod.namespace, &*pod.name, &*pod.uid), ("tenant", "vm-1", "u1"));
        for bad in [
            environment(&[("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "")]),
            environment(&[("CNI_CONTAINERID", "-c1"), ("CNI_IFNAME", "pod1")]),
            environment(&[("CNI_CONTAINERID", "../c1"), ("CNI_IFNAME", "pod1")]),
            environment(&[("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "a/b")]),
            environment(&[("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "a23456789012345x")]),
        ] {
            assert_eq!(bad.attachment().unwrap_err().code, codes::ENVIRONMENT);
        }
        let anonymous = environment(&[(
            "CNI_ARGS",
            "K8S_POD_NAMESPACE=tenant;K8S_POD_NAME=vm-1;K8S_POD_UID=",
        )]);
        let error = anonymous.pod().unwrap_err();
        assert!(error.message.contains("K8S_POD_UID"), "{}", error.message);
    }
}
