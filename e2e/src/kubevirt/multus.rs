//! Multus.

use std::path::PathBuf;

use anyhow::Result;

use super::SCRIPT;
use crate::controlplane::tools::Built;

/// Its thin plugin, which a container runtime starts for each sandbox, and which asks the API server itself. Built where it is missing.
pub async fn thin_multus() -> Result<PathBuf> {
    Ok(Built::by(SCRIPT, &["multus"]).await?.take("multus")?)
}

/// What Multus installs: its kind, without its checks, and its rights.
pub const MULTUS: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: network-attachment-definitions.k8s.cni.cncf.io}
spec:
  group: k8s.cni.cncf.io
  scope: Namespaced
  names: {plural: network-attachment-definitions, singular: network-attachment-definition, kind: NetworkAttachmentDefinition, shortNames: [net-attach-def]}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: multus, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: multus}
rules:
- {apiGroups: [k8s.cni.cncf.io], resources: ['*'], verbs: ['*']}
- {apiGroups: [''], resources: [pods, pods/status], verbs: [get, list, watch, update]}
- {apiGroups: ['', events.k8s.io], resources: [events], verbs: [create, patch, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: multus}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: multus}
subjects: [{kind: ServiceAccount, name: multus, namespace: kube-system}]
";
