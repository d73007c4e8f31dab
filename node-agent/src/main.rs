//! The node agent's program.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> anyhow::Result<ExitCode> {
    hybridnic_agent::cli::Args::parse().execute()
}
