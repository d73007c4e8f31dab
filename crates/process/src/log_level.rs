//! The log filter, changeable while the program runs.

use std::sync::{Arc, Mutex, PoisonError};

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::reload;

type Set = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

/// The log filter of this process. Clones share it.
#[derive(Clone)]
pub struct LogLevel(Arc<Inner>);

struct Inner {
    set: Set,
    text: Mutex<String>,
}

/// Why the filter stays as it was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not parse.
    #[error("{filter:?} is not a log filter; write it as in \"info,kube=debug\"")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// The subscriber has gone.
    #[error("the logs cannot be changed any more")]
    Gone(#[from] reload::Error),
}

/// A filter for a subscriber, and what changes it.
pub fn reloadable<S: Subscriber>(text: &str) -> Result<(reload::Layer<EnvFilter, S>, LogLevel), Error> {
    let (layer, handle) = reload::Layer::new(parse(text)?);
    let level = LogLevel(Arc::new(Inner {
        set: Box::new(move |filter| handle.reload(filter)),
        text: Mutex::new(text.to_owned()),
    }));
    Ok((layer, level))
}

fn parse(filter: &str) -> Result<EnvFilter, Error> {
    EnvFilter::try_new(filter).map_err(|source| Error::Filter {
        filter: filter.to_owned(),
        source,
    })
}

impl LogLevel {
    /// The filter as it was set last.
    pub fn get(&self) -> String {
        self.0.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the filter, written as for `--log`.
    pub fn set(&self, filter: &str) -> Result<(), Error> {
        let parsed = parse(filter)?;
        let mut text = self.0.text.lock().unwrap_or_else(PoisonError::into_inner);
        (self.0.set)(parsed)?;
        filter.clone_into(&mut text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt as _;

    #[test]
    fn what_is_logged_changes_at_once() {
        let (layer, level) = reloadable("info").unwrap();
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            assert!(!tracing::enabled!(tracing::Level::DEBUG));
            level.set("debug").unwrap();
            assert!(tracing::enabled!(tracing::Level::DEBUG));
            let error = level.set("info,kube=loud").unwrap_err();
            assert!(error.to_string().contains("info,kube=debug"), "{error}");
            assert_eq!(level.get(), "debug", "a wrong filter changes nothing");
        });
    }
}
