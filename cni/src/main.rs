//! The CNI plugin's program.

use std::{env, io, process::ExitCode};

use hybridnic_cni::plugin;

fn main() -> ExitCode {
    plugin::run(
        |name| env::var(name).ok(),
        io::stdin().lock(),
        io::stdout().lock(),
    )
}
