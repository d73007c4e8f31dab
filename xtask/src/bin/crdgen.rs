//! Writes a file for each CRD from the types, or compares them with `--check`.
//!
//! Usage: `crdgen [--check] DIRECTORY...`

use std::{env, error::Error, fs, path::Path, process::ExitCode};

use hybridnic_api::v1alpha1;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let (flags, directories): (Vec<_>, Vec<_>) = env::args().skip(1).partition(|a| a.starts_with("--"));
    let check = match &*flags.iter().map(String::as_str).collect::<Vec<_>>() {
        [] => false,
        ["--check"] => true,
        _ => return Err("usage: crdgen [--check] DIRECTORY...".into()),
    };
    if directories.is_empty() {
        return Err("say in which directories the CRDs are".into());
    }
    let mut stale = false;
    for crd in v1alpha1::crds() {
        let text = render(&crd)?;
        for directory in &directories {
            let path = Path::new(directory).join(format!("{}.yaml", crd.spec.names.plural));
            if !check {
                fs::create_dir_all(directory)?;
                fs::write(&path, &text)?;
            } else if fs::read_to_string(&path).ok().as_deref() != Some(&text) {
                eprintln!("{} differs from the types: run `make crds`", path.display());
                stale = true;
            }
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
