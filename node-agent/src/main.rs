//! The node agent's program.

use clap::Parser as _;

fn main() -> anyhow::Result<()> {
    hybridnic_agent::cli::Args::parse().execute()
}
