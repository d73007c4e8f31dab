//! `QemuSave` and `QemuRestore`: write a plain-QEMU VM to a file, and bring it back from there.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{Display, IntoStaticStr};

use crate::limits;

use super::{MigrationEnd, MigrationFailure, MigrationPhase, MigrationPhaseTime};

/// Writes a VM of the qemu runtime to a file. Deleting it before the file is whole cancels it, and leaves no file; deleted
/// later, also while the VM is paused for `then: Pause`, it leaves the file.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "hybridnic.io",
    version = "v1alpha1",
    kind = "QemuSave",
    plural = "qemusaves",
    shortname = "qsave",
    category = "hybridnic",
    namespaced,
    status = "StateFileStatus",
    derive = "PartialEq",
    doc = "Writes a plain-QEMU virtual machine to a file in its pod. Its VFs leave it meanwhile. Delete it to cancel.",
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("the name of a QemuSave must have at most 63 characters"),
    printcolumn(name = "VM", type_ = "string", json_path = ".spec.vm"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Then", type_ = "string", json_path = ".spec.then"),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.end.nodeName"),
    printcolumn(name = "Written", type_ = "integer", json_path = ".status.written"),
    printcolumn(name = "Total", type_ = "integer", json_path = ".status.totalMs"),
    printcolumn(name = "Why", type_ = "string", json_path = r#".status.conditions[?(@.type=="Succeeded")].reason"#),
    printcolumn(name = "File", type_ = "string", json_path = ".spec.file", priority = "1"),
    printcolumn(name = "Message", type_ = "string", json_path = r#".status.conditions[?(@.type=="Succeeded")].message"#, priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.vm == oldSelf.vm && self.file == oldSelf.file && \
     has(self.deadlineSeconds) == has(oldSelf.deadlineSeconds) && \
     (!has(self.deadlineSeconds) || self.deadlineSeconds == oldSelf.deadlineSeconds) && \
     has(self.bandwidth) == has(oldSelf.bandwidth) && (!has(self.bandwidth) || self.bandwidth == oldSelf.bandwidth)")
    .message("a QemuSave cannot change, but from then: Pause: delete it to cancel it, and create another"))]
#[x_kube(validation = Rule::new("self.then == oldSelf.then || oldSelf.then == 'Pause'")
    .message("only then: Pause can be changed, to End or Continue"))]
pub struct QemuSaveSpec {
    /// Value of the label `hybridnic.io/vm` on the VM's pods.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$')")
        .message("vm must be the value of the VM's pods' label hybridnic.io/vm"))]
    pub vm: String,
    /// The file, by its path in the container that runs QEMU, on a volume in which QEMU's user may write. There must be no file of this name.
    /// Beside it comes `FILE.hybridnic.json`, which says whose it is.
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new(FILE_RULE).message(FILE_MESSAGE))]
    pub file: String,
    /// What becomes of the VM once the file is whole.
    pub then: AfterSave,
    /// How long QEMU may take to write the file, in seconds; without it, as long as it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604_800))]
    pub deadline_seconds: Option<i64>,
    /// The most octets a second that QEMU writes; without it, as many as for migrations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1_048_576))]
    pub bandwidth: Option<i64>,
}

/// As far as the path can be judged without the pod. The name has room for what is added to it.
const FILE_RULE: &str = "self.matches('^(/[^/]+)*/[^/]{1,128}$') && !self.matches('/[.][.]?(/|$)') && !self.contains(',') && \
     !self.endsWith('.hybridnic.json')";
const FILE_MESSAGE: &str = "file must be an absolute path without . and .., without a comma, with a name of at most 128 characters, which does not \
     end in .hybridnic.json";

/// What becomes of a VM that was written to a file.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, Display, IntoStaticStr,
)]
#[cfg_attr(test, derive(strum::VariantArray))]
pub enum AfterSave {
    /// Its QEMU is ended: the VM goes on where the file is loaded.
    End,
    /// It runs on, and gets its VFs back: the file is a snapshot.
    Continue,
    /// It stays paused, for a snapshot of its disks at the same point, until this is changed to one of the others.
    Pause,
}

/// Brings a VM of the qemu runtime back from a file of a [`QemuSave`]. Deleting it while it runs cancels it.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "hybridnic.io",
    version = "v1alpha1",
    kind = "QemuRestore",
    plural = "qemurestores",
    shortname = "qrestore",
    category = "hybridnic",
    namespaced,
    status = "StateFileStatus",
    derive = "PartialEq",
    doc = "Brings a plain-QEMU virtual machine back from the file of a QemuSave, in a pod whose QEMU runs with -incoming defer.",
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("the name of a QemuRestore must have at most 63 characters"),
    printcolumn(name = "VM", type_ = "string", json_path = ".spec.vm"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.end.nodeName"),
    printcolumn(name = "Total", type_ = "integer", json_path = ".status.totalMs"),
    printcolumn(name = "Why", type_ = "string", json_path = r#".status.conditions[?(@.type=="Succeeded")].reason"#),
    printcolumn(name = "File", type_ = "string", json_path = ".spec.file", priority = "1"),
    printcolumn(name = "Message", type_ = "string", json_path = r#".status.conditions[?(@.type=="Succeeded")].message"#, priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf")
    .message("a QemuRestore cannot change: delete it to cancel it, and create another"))]
pub struct QemuRestoreSpec {
    /// Value of the label `hybridnic.io/vm` on the VM's pods.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$')")
        .message("vm must be the value of the VM's pods' label hybridnic.io/vm"))]
    pub vm: String,
    /// The file, by its path in the container that runs QEMU. `FILE.hybridnic.json` must be beside it.
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new(FILE_RULE).message(FILE_MESSAGE))]
    pub file: String,
    /// The pod; its QEMU runs with `-incoming defer`. Needed where the VM has several running pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub pod: Option<String>,
    /// How long QEMU may take to load the file, in seconds; without it, as long as it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604_800))]
    pub deadline_seconds: Option<i64>,
}

/// How a save or a restore goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StateFileStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where it is, in the words of a migration: `Transferring` is the time in which QEMU writes or reads the file.
    #[serde(default)]
    pub phase: MigrationPhase,
    /// Where the VM is, or comes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<MigrationEnd>,
    /// The VM's NICs that take part.
    #[serde(default)]
    #[schemars(length(max = limits::NICS), inner(length(max = limits::NAME)))]
    pub nics: Vec<String>,
    /// Save: octets that QEMU has written so far; in the end the file's length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<i64>,
    /// Save: octets of memory that QEMU has not written yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining: Option<i64>,
    /// Why it is rolled back: a reason and a sentence, kept until the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<MigrationFailure>,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "limits::maybe_time")]
    pub started_at: Option<MicroTime>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "limits::maybe_time")]
    pub finished_at: Option<MicroTime>,
    /// From begin to end in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_ms: Option<i64>,
    /// Save: QEMU's own count of the time for which the VM was paused before the file was whole, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<i64>,
    /// Its phases with their times.
    #[serde(default)]
    #[schemars(length(max = limits::PHASES))]
    pub phases: Vec<MigrationPhaseTime>,
    /// Condition `Succeeded`.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(schema_with = "limits::conditions")]
    pub conditions: Vec<Condition>,
}
