//! Waiting for a state of API objects, by their watch.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Result, bail};
use futures::TryStreamExt as _;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Resource};
use serde::{Serialize, de::DeserializeOwned};

/// Waits until an object is as `is` says, and gives it. The error shows the object at the deadline.
pub async fn until<K>(
    api: Api<K>,
    name: &str,
    deadline: Duration,
    what: &str,
    is: impl Fn(&K) -> bool,
) -> Result<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Serialize + Send + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let stream = watcher(api, config).default_backoff().applied_objects();
    futures::pin_mut!(stream);
    let mut last: Option<K> = None;
    let found = tokio::time::timeout(deadline, async {
        loop {
            match stream.try_next().await {
                Ok(Some(object)) if is(&object) => return Ok(object),
                Ok(Some(object)) => last = Some(object),
                Ok(None) => bail!("the watch of {name} has ended"),
                // The API server may be away, as some tests want it.
                Err(_) => {}
            }
        }
    })
    .await;
    match found {
        Ok(result) => result,
        Err(_) => bail!("{name} is not {what} after {deadline:?}; it is:\n{}", seen(last)),
    }
}

/// What a failure shows of an object: without the writers of its fields.
fn seen<K: Resource + Serialize>(object: Option<K>) -> String {
    let Some(mut object) = object else {
        return "not there".into();
    };
    object.meta_mut().managed_fields = None;
    object.meta_mut().annotations = None;
    serde_json::to_string_pretty(&object).unwrap_or_else(|e| e.to_string())
}
