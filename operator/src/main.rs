//! The operator's process.

use clap::Parser;
use hybridnic_operator::Options;
use hybridnic_runtime::{telemetry, tls};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tls::install_provider();
    let options = Options::parse();
    let logs = telemetry::init(&options.log)?;
    hybridnic_operator::execute(options, logs).await
}
