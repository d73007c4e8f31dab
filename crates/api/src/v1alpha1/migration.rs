//! `QemuMigration`: move a plain-QEMU VM to another of its pods.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{Display, IntoStaticStr};

use crate::limits;

use super::{MigrationPhaseTime, ObjectRef};

/// Moves a VM of the qemu runtime to another of its pods. Deleting it while it runs cancels it.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "hybridnic.io",
    version = "v1alpha1",
    kind = "QemuMigration",
    plural = "qemumigrations",
    shortname = "qmig",
    category = "hybridnic",
    namespaced,
    status = "QemuMigrationStatus",
    derive = "PartialEq",
    doc = "Moves a plain-QEMU virtual machine, with its hybrid NICs, to another of its pods. Delete it to cancel.",
    validation = Rule::new("self.metadata.name.size() <= 63")
        .message("the name of a QemuMigration must have at most 63 characters"),
    validation = Rule::new("!has(self.spec.decision) || has(self.status) && has(self.status.undecidedSince)")
        .message("a decision is taken once the migration asks for it, with the reason TargetSilent or NeedsDecision: \
                  before that the ends tell where the VM runs"),
    printcolumn(name = "VM", type_ = "string", json_path = ".spec.vm"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "From", type_ = "string", json_path = ".status.source.nodeName"),
    printcolumn(name = "To", type_ = "string", json_path = ".status.target.nodeName"),
    printcolumn(name = "Total", type_ = "integer", json_path = ".status.totalMs"),
    printcolumn(name = "Downtime", type_ = "integer", json_path = ".status.downtimeMs"),
    printcolumn(name = "Encrypted", type_ = "boolean", json_path = ".status.encrypted"),
    printcolumn(name = "Why", type_ = "string", json_path = r#".status.conditions[?(@.type=="Succeeded")].reason"#),
    printcolumn(name = "Message", type_ = "string", json_path = r#".status.conditions[?(@.type=="Succeeded")].message"#, priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.vm == oldSelf.vm && has(self.targetPod) == has(oldSelf.targetPod) && \
     (!has(self.targetPod) || self.targetPod == oldSelf.targetPod)")
    .message("a QemuMigration cannot change, but for its decision: delete it to cancel it, and create another"))]
#[x_kube(validation = Rule::new("!has(oldSelf.decision) || has(self.decision) && self.decision == oldSelf.decision")
    .message("a decision cannot be taken back"))]
pub struct QemuMigrationSpec {
    /// Value of the label `hybridnic.io/vm` on the VM's pods.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$')")
        .message("vm must be the value of the VM's pods' label hybridnic.io/vm"))]
    pub vm: String,
    /// The pod to move to; its QEMU runs with `-incoming defer`. Needed where the VM has several other running
    /// pods, unless an agent has said that QEMU waits for a VM in one of them only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub target_pod: Option<String>,
    /// A person's decision on where the VM goes on, for a migration with the reason `NeedsDecision` or `TargetSilent`: the source
    /// has handed the VM over, and nothing proves whether the target has run it. Refused before the migration asks for it,
    /// and ignored where the ends can tell. It cannot be taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
}

/// Where a VM goes on when neither end can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Decision {
    /// The VM does not run at the target, and will not: the source runs it on. If it had run there, its disk may be newer
    /// than the memory that it goes on with.
    ResumeSource,
    /// The VM runs at the target, or is lost: the source is ended.
    AbandonSource,
}

/// Where a migration is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display, IntoStaticStr,
)]
#[cfg_attr(test, derive(strum::VariantArray))]
pub enum MigrationPhase {
    /// Nothing has been done yet.
    #[default]
    Pending,
    /// The target reserves VFs and gets its standbys.
    PreparingTarget,
    /// The source unplugs the VFs; the standbys carry the traffic.
    SwitchingToStandby,
    /// QEMU sends the VM.
    Transferring,
    /// The VM runs at the target; the source is cleaned up.
    Completing,
    /// The VM stays at the source and gets its fast path back; the target is cleaned up.
    RollingBack,
    /// The VM runs at the target.
    Succeeded,
    /// The VM stayed at the source.
    Failed,
    /// It was cancelled; the VM stayed at the source.
    Cancelled,
}

impl MigrationPhase {
    /// Whether nothing more will happen.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// One end of a migration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationEnd {
    /// The node.
    #[schemars(length(max = limits::NAME))]
    pub node_name: String,
    /// The pod.
    pub pod: ObjectRef,
    /// The pod's address, to which the VM is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::ADDRESS))]
    pub pod_ip: Option<String>,
}

/// How a migration goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct QemuMigrationStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where it is.
    #[serde(default)]
    pub phase: MigrationPhase,
    /// Where the VM comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<MigrationEnd>,
    /// Where it goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<MigrationEnd>,
    /// The VM's NICs that take part.
    #[serde(default)]
    #[schemars(length(max = limits::NICS), inner(length(max = limits::NAME)))]
    pub nics: Vec<String>,
    /// Whether the VM is sent, or was to be sent, encrypted, each end knowing the other. It is decided before anything of the VM changes,
    /// and does not change again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<bool>,
    /// Why it is rolled back: a reason and a sentence, kept until the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<MigrationFailure>,
    /// When it first asked for a decision of a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "limits::maybe_time")]
    pub undecided_since: Option<MicroTime>,
    /// Since when the source is told to run the VM on, because the target or a person said so. It is not taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "limits::maybe_time")]
    pub resuming_since: Option<MicroTime>,
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
    /// QEMU's own count of the VM's pause, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<i64>,
    /// Its phases with their times.
    #[serde(default)]
    #[schemars(length(max = limits::PHASES))]
    pub phases: Vec<MigrationPhaseTime>,
    /// Condition `Succeeded`; and `Encrypted`, where the stream is plain because an end cannot encrypt it.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(schema_with = "limits::conditions")]
    pub conditions: Vec<Condition>,
}

/// Why a migration does not succeed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationFailure {
    /// One of [`crate::conditions::reasons`].
    #[schemars(length(max = limits::WORD))]
    pub reason: String,
    /// A sentence for a person.
    #[schemars(length(max = limits::MESSAGE))]
    pub message: String,
}
