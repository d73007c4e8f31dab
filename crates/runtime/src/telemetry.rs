//! Logs: to standard error, for people or for machines.

use clap::{Args, ValueEnum};
use tracing_subscriber::Layer as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

use crate::log_level::{self, LogLevel};

/// Options of the logs, to flatten into a program's own.
#[derive(Args, Clone, Debug)]
pub struct LogOptions {
    /// What to log: a level, or levels by module as in `info,kube=debug`
    #[arg(
        long = "log",
        env = "HYBRIDNIC_LOG",
        default_value = "info",
        value_name = "FILTER"
    )]
    pub filter: String,
    /// How a log line looks
    #[arg(long = "log-format", env = "HYBRIDNIC_LOG_FORMAT", value_enum, default_value_t = LogFormat::Human)]
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text for a terminal.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter does not parse.
    #[error("--log: {0}")]
    Filter(#[from] log_level::Error),
    /// Something else has set up logging before.
    #[error("logging is set up already")]
    Twice(#[from] TryInitError),
}

/// Sets up the logs of this process, once; gives what changes their level.
pub fn init(options: &LogOptions) -> Result<LogLevel, Error> {
    let (filter, level) = log_level::reloadable(&options.filter)?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match options.format {
        LogFormat::Human => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()?;
    Ok(level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_filter_says_how_to_write_it() {
        let options = LogOptions {
            filter: "info,kube=loud".to_owned(),
            format: LogFormat::Json,
        };
        let Err(error) = init(&options) else {
            panic!("it was taken");
        };
        assert!(error.to_string().contains("--log"), "{error}");
        assert!(error.to_string().contains("info,kube=debug"), "{error}");
    }
}
