//! Writes the table of the chart's values into its README, or compares it with `--check`.
//!
//! Usage: `values-table [--check] CHART`

mod table;

use std::{fs, path::Path, process::ExitCode};

use anyhow::{Context as _, Result, bail};

fn main() -> Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (check, chart) = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--check", chart] => (true, chart),
        [chart] if !chart.starts_with('-') => (false, chart),
        _ => bail!("usage: values-table [--check] CHART"),
    };
    let readme = Path::new(chart).join("README.md");
    let old = fs::read_to_string(&readme).with_context(|| readme.display().to_string())?;
    let values = Path::new(chart).join("values.yaml");
    let text = fs::read_to_string(&values).with_context(|| values.display().to_string())?;
    let values = table::parse(&text).with_context(|| values.display().to_string())?;
    let new = table::put(&old, &table::render(&values)).with_context(|| readme.display().to_string())?;
    if check && new != old {
        eprintln!("{} differs from values.yaml: run `make chart`", readme.display());
        return Ok(ExitCode::FAILURE);
    }
    if !check {
        fs::write(&readme, new)?;
    }
    Ok(ExitCode::SUCCESS)
}
