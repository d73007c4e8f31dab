//! Writes `crds/*.yaml` from the types, or compares them with `--check`.
//!
//! Usage: `crdgen [--check] DIRECTORY`

use std::{env, error::Error, fs, path::Path, process::ExitCode};

use hybridnic_api::v1alpha1;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let check = args.iter().any(|a| a == "--check");
    let dir = args
        .iter()
        .find(|a| !a.starts_with("--"))
        .map_or("crds", String::as_str);
    let mut stale = false;
    for crd in v1alpha1::crds() {
        let path = Path::new(dir).join(format!("{}.yaml", crd.spec.names.plural));
        let text = render(&crd)?;
        if !check {
            fs::create_dir_all(dir)?;
            fs::write(&path, text)?;
        } else if fs::read_to_string(&path).ok().as_deref() != Some(&text) {
            eprintln!("{} differs from the types: run `make crds`", path.display());
            stale = true;
        }
    }
    Ok(if stale {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn render(crd: &CustomResourceDefinition) -> Result<String, Box<dyn Error>> {
    Ok(format!(
        "# Generated from crates/api by `make crds`. Do not edit.\n{}",
        serde_saphyr::to_string(crd)?
    ))
}
