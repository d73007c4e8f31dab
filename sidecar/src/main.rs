//! hybridnic-sidecar: gives the libvirt domain of a KubeVirt VM what its hybrid NICs need.

use std::path::PathBuf;

use anyhow::Result;
use hybridnic_sidecar::hooks::serve;
use tokio::signal::unix::{SignalKind, signal};

/// Where KubeVirt mounts the sidecar's own part of the directory that it searches.
const DIRECTORY: &str = "/var/run/kubevirt-hooks";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let directory = std::env::args_os()
        .nth(1)
        .map_or_else(|| DIRECTORY.into(), PathBuf::from);
    // As a container's first process it would not be ended by the signal itself.
    let mut end = signal(SignalKind::terminate())?;
    serve(&directory, async move {
        end.recv().await;
    })
    .await
}
