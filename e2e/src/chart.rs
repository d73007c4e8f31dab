//! The chart, and the part of it that the tests install where no kubelet runs its pods: kinds, roles, service accounts and the
//! admission policy. So the programs under test have the rights that the chart gives, and no others.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::controlplane::ControlPlane;

/// The release's name.
pub const RELEASE: &str = "hybridnic";
/// The release's namespace.
pub const NAMESPACE: &str = "hybridnic-system";
/// The operator's service account, which [`ControlPlane::writes`] names [`OPERATOR_USER`].
pub const OPERATOR: &str = "hybridnic-operator";
/// The agents' service account.
pub const AGENT: &str = "hybridnic-agent";
/// The operator, as the API server calls it.
pub const OPERATOR_USER: &str = "system:serviceaccount:hybridnic-system:hybridnic-operator";
/// All agents, as the API server calls them.
pub const AGENT_USER: &str = "system:serviceaccount:hybridnic-system:hybridnic-agent";

/// All templates except those that make pods, or are about their ports.
const WITHOUT_PODS: [&str; 8] = [
    "templates/crds.yaml",
    "templates/user-roles.yaml",
    "templates/operator/serviceaccount.yaml",
    "templates/operator/rbac.yaml",
    "templates/agent/serviceaccount.yaml",
    "templates/agent/rbac.yaml",
    "templates/admission.yaml",
    "templates/monitoring/metrics-reader.yaml",
];

/// Where the chart is.
pub fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart")
}

/// Installs the chart without its pods, and waits until its kinds are served.
pub async fn install_without_pods(cluster: &ControlPlane) -> Result<()> {
    install_without_pods_with(cluster, &[]).await
}

/// The same, with these values, as helm's `--set` has them.
pub async fn install_without_pods_with(cluster: &ControlPlane, values: &[&str]) -> Result<()> {
    let chart = path();
    let chart = chart.to_str().context("the chart's path is no text")?;
    let mut args = vec!["template", RELEASE, chart, "--namespace", NAMESPACE];
    for value in values {
        args.extend(["--set", value]);
    }
    for template in &WITHOUT_PODS {
        args.extend(["--show-only", template]);
    }
    let rendered = cluster.helm(&args).await?;
    ensure!(
        rendered.status.success(),
        "helm template: {}",
        String::from_utf8_lossy(&rendered.stderr)
    );
    let file = cluster.dir().join("chart.yaml");
    let namespace = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n");
    let rendered = String::from_utf8(rendered.stdout).context("helm prints UTF-8")?;
    fs::write(&file, format!("{namespace}{rendered}"))?;
    cluster.apply(&file).await?;
    wait_for_kinds(cluster).await
}

/// Waits until all kinds are served.
pub async fn wait_for_kinds(cluster: &ControlPlane) -> Result<()> {
    let wait = [
        "wait",
        "--for=condition=Established",
        "--timeout=60s",
        "crd",
        "--all",
    ];
    let output = cluster.kubectl(&wait).await?;
    ensure!(
        output.status.success(),
        "the kinds are not served: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
