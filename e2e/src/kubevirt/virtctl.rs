//! `virtctl`, and its way to virt-api: through the API server, as an aggregated API.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

use super::{NAMESPACE, PORT, SCRIPT, address};
use crate::cluster::Cluster;
use crate::controlplane::tools::Built;

/// What virt-operator would make, but for the service: virt-api is at an address of this host, and the API server takes such a name for one.
const AGGREGATED: &str = "
apiVersion: v1
kind: Service
metadata: {name: virt-api, namespace: NAMESPACE}
spec: {type: ExternalName, externalName: ADDRESS, ports: [{port: PORT}]}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1.subresources.kubevirt.io}
spec:
  group: subresources.kubevirt.io
  version: v1
  service: {name: virt-api, namespace: NAMESPACE, port: PORT}
  insecureSkipTLSVerify: true
  groupPriorityMinimum: 1000
  versionPriority: 15
";

/// `virtctl`, for an administrator.
pub struct Virtctl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Virtctl {
    /// Builds it where it is missing; virt-api answers it when this returns.
    pub async fn new(cluster: &Cluster) -> Result<Self> {
        let program = Built::by(SCRIPT, &["virtctl"]).await?.take("virtctl")?;
        let at = address(cluster.control_plane.port(), 1).to_string();
        let objects = AGGREGATED
            .replace("NAMESPACE", NAMESPACE)
            .replace("ADDRESS", &format!("{at:?}"))
            .replace("PORT", &PORT.to_string());
        cluster.apply(&objects).await?;
        let api = "apiservice/v1.subresources.kubevirt.io";
        cluster
            .kubectl(&["wait", "--for=condition=Available", api, "--timeout=60s"])
            .await
            .context("virt-api behind the API server")?;
        Ok(Self {
            program,
            kubeconfig: cluster.control_plane.kubeconfig_admin(),
        })
    }

    /// Where it is.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Runs it; a failure is an error with what it said.
    pub async fn run(&self, args: &[&str]) -> Result<()> {
        let output = Command::new(&self.program)
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .output()
            .await?;
        ensure!(
            output.status.success(),
            "virtctl {args:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}
