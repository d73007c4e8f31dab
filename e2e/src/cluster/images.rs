//! The container images of the lab's clusters: made by the script that makes users' images, from the programs as cargo
//! has just built them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;

use super::TAG;
use crate::world::{binary, repository};

/// Made in six seconds.
const DEADLINE: Duration = Duration::from_mins(3);
/// What a node needs for VMs in pods of their own: no registry can be reached, and each image takes an emulated node its time.
pub(super) const OWN: [&str; 4] = ["operator", "agent", "qemu", "pause"];
/// And for VMs of KubeVirt, which has its own QEMU.
pub(super) const KUBEVIRT: [&str; 4] = ["operator", "agent", "sidecar", "pause"];

/// Name of an image.
pub fn name(image: &str) -> String {
    format!("localhost/hybridnic-{image}:{TAG}")
}

/// The chart's value that names the product's images.
pub fn value() -> String {
    format!("image.tag={TAG}")
}

/// Makes these images; gives their archives.
pub async fn build(images: &[&str]) -> Result<Vec<PathBuf>> {
    let agent = binary("hybridnic-agent")?;
    let programs = agent.parent().context("a program without a directory")?;
    let out = repository("target").join("lab-images");
    let mut script = Command::new(repository("deploy/images/build.sh"));
    script
        .arg(&out)
        .arg(TAG)
        .arg(programs)
        .args(images)
        .kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, script.output())
        .await
        .context("the images take too long")??;
    ensure!(
        output.status.success(),
        "deploy/images/build.sh: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(images.iter().map(|image| archive(&out, image)).collect())
}

fn archive(out: &Path, image: &str) -> PathBuf {
    out.join(format!("{image}.tar"))
}
