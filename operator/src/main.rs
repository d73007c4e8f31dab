//! The operator's process.

use clap::Parser;
use hybridnic_operator::Options;
use hybridnic_process::{telemetry, tls};

// One thread: the operator waits for the API server and computes little, and each wake-up across threads would cost more than what
// it is for. On a node of many processors it would have a thread for each of them.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    tls::install_provider();
    let options = Options::parse();
    let logs = telemetry::init(&options.log)?;
    hybridnic_operator::execute(options, logs).await
}
