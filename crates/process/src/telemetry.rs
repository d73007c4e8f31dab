//! Logs: to standard error, for people or for machines.

use clap::{Args, ValueEnum};
use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{Layer, fmt};

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
    let lines = lines(options.format, std::io::stderr);
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()?;
    Ok(level)
}

/// What writes the lines.
fn lines<S, W>(format: LogFormat, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = fmt::layer().with_writer(writer);
    match format {
        LogFormat::Human => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// What is written, for a test to read.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_json_line_has_its_fields_at_the_top() {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::registry().with(lines(LogFormat::Json, move || writer.clone()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(namespace = "ns", nic = "eth0", vf = %"0000:01:10.0", "VF \"reserved\"");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        for (field, value) in [
            ("level", "WARN"),
            ("message", "VF \"reserved\""),
            ("namespace", "ns"),
            ("nic", "eth0"),
            ("vf", "0000:01:10.0"),
        ] {
            assert_eq!(line[field], value, "{text}");
        }
    }

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
