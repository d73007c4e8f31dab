//! The few ways in which the operator writes, each with a deadline and the version that it was decided on.
//!
//! If a write was decided on an older version of its object, the API server refuses it and the operator decides again: caches lag
//! behind, and a leader that was suspended may not know that it no longer leads.

use std::fmt::Debug;
use std::time::Duration;

use hybridnic_api::names::OPERATOR_MANAGER;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::cache::finalizers_are_cut;

/// A request that has not been answered for so long is given up.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why a write did not happen, or is not known to have happened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused it or is away.
    #[error("cannot {step} of {object}")]
    Refused {
        /// What was tried.
        step: &'static str,
        /// Kind, namespace and name.
        object: String,
        /// The API server's answer.
        source: Box<kube::Error>,
    },
    /// There was no answer in time.
    #[error("cannot {step} of {object}: no answer within {DEADLINE:?}")]
    Late {
        /// What was tried.
        step: &'static str,
        /// Kind, namespace and name.
        object: String,
    },
}

impl Error {
    /// Whether the object has changed since the write was decided on.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if matches!(source.as_ref(), kube::Error::Api(s) if s.is_conflict() || s.is_already_exists()))
    }

    /// Whether the API server accepts such a write from no client.
    pub fn is_invalid(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if matches!(source.as_ref(), kube::Error::Api(s) if s.code == 422))
    }

    /// Whether the object is not there any more.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if matches!(source.as_ref(), kube::Error::Api(s) if s.is_not_found()))
    }
}

/// A kind that can be written.
pub trait Writable: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned {}
impl<K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned> Writable for K {}

/// Applies `status` as the whole status of `of`.
pub async fn apply_status<K: Writable>(api: &Api<K>, of: &K, status: &impl Serialize) -> Result<(), Error> {
    let patch = document::<K>(of.meta(), json!({ "status": status }));
    within(
        "apply the status",
        of,
        api.patch_status(&of.name_any(), &params(), &Patch::Apply(&patch)),
    )
    .await
}

/// Makes `spec` the spec of `of`, where only the operator writes a field.
pub async fn apply_spec<K: Writable>(api: &Api<K>, of: &K, spec: &impl Serialize) -> Result<(), Error> {
    // Not applied: an empty list, applied where another manager has applied an empty spec, becomes `spec: null`, and
    // the API server refuses its own result.
    let patch = json!({ "metadata": { "resourceVersion": of.resource_version() }, "spec": spec });
    within(
        "set the spec",
        of,
        api.patch(&of.name_any(), &merge(), &Patch::Merge(&patch)),
    )
    .await
}

/// Applies `object`, creating it where it does not exist. It holds all of the operator's fields, and the version
/// that this was decided on where it does exist.
pub async fn apply_object<K: Writable + Serialize>(api: &Api<K>, object: &K) -> Result<(), Error> {
    within(
        "apply the whole",
        object,
        api.patch(&object.name_any(), &params(), &Patch::Apply(object)),
    )
    .await
}

/// Creates `object`. An existing object with its name is a conflict.
pub async fn create<K: Writable + Serialize>(api: &Api<K>, object: &K) -> Result<(), Error> {
    let params = PostParams {
        field_manager: Some(OPERATOR_MANAGER.to_owned()),
        ..PostParams::default()
    };
    within("create the whole", object, api.create(&params, object)).await
}

/// Merges `patch` into `of`, which is not ours. `step` says what that does.
pub async fn merge_into<K: Writable>(
    api: &Api<K>,
    of: &K,
    step: &'static str,
    patch: &Value,
) -> Result<(), Error> {
    within(
        step,
        of,
        api.patch(&of.name_any(), &merge(), &Patch::Merge(patch)),
    )
    .await
}

/// Makes `finalizers` the finalizers of `of`, and leaves alone those that the cache has not kept.
pub async fn finalizers<K: Writable>(api: &Api<K>, of: &K, finalizers: &[String]) -> Result<(), Error> {
    let finalizers = if finalizers_are_cut(of.meta()) {
        // It may list these kinds, and not get one.
        let named = ListParams::default().fields(&format!("metadata.name={}", of.name_any()));
        let list = answer("read the finalizers", of, api.list_metadata(&named)).await?;
        let whole = list.items.first().map(ResourceExt::finalizers);
        changed(whole.unwrap_or_default(), of.finalizers(), finalizers)
    } else {
        finalizers.to_vec()
    };
    // A list with several owners, where one must also be able to clear another's entries: apply cannot do that.
    let patch = json!({ "metadata": { "finalizers": finalizers, "resourceVersion": of.resource_version() } });
    within(
        "set the finalizers",
        of,
        api.patch(&of.name_any(), &merge(), &Patch::Merge(&patch)),
    )
    .await
}

/// Deletes `object`, but no other object of its name. It is no error if it is gone already.
pub async fn delete<K: Writable>(api: &Api<K>, object: &K) -> Result<(), Error> {
    let preconditions = Preconditions {
        uid: object.uid(),
        resource_version: None,
    };
    let params = DeleteParams {
        preconditions: Some(preconditions),
        ..DeleteParams::default()
    };
    match within(
        "ask for the deletion",
        object,
        api.delete(&object.name_any(), &params),
    )
    .await
    {
        Err(error) if error.is_gone() => Ok(()),
        done => done,
    }
}

/// `whole`, with what is only in `after` and without what is only in `before`.
fn changed(whole: &[String], before: &[String], after: &[String]) -> Vec<String> {
    let kept = whole
        .iter()
        .filter(|one| !before.contains(one) || after.contains(one));
    let added = after
        .iter()
        .filter(|one| !before.contains(one) && !whole.contains(one));
    kept.chain(added).cloned().collect()
}

fn params() -> PatchParams {
    PatchParams::apply(OPERATOR_MANAGER).force()
}

fn merge() -> PatchParams {
    PatchParams {
        field_manager: Some(OPERATOR_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

fn document<K: Writable>(of: &kube::api::ObjectMeta, part: Value) -> Value {
    let mut document = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": { "name": of.name, "resourceVersion": of.resource_version },
    });
    if let Some(namespace) = &of.namespace {
        document["metadata"]["namespace"] = json!(namespace);
    }
    if let (Value::Object(document), Value::Object(part)) = (&mut document, part) {
        document.extend(part);
    }
    document
}

async fn within<K: Writable, T>(
    step: &'static str,
    of: &K,
    write: impl Future<Output = Result<T, kube::Error>>,
) -> Result<(), Error> {
    answer(step, of, write).await.map(|_| ())
}

async fn answer<K: Writable, T>(
    step: &'static str,
    of: &K,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Error> {
    let object = || match of.namespace() {
        Some(namespace) => format!("{} {namespace}/{}", K::kind(&()), of.name_any()),
        None => format!("{} {}", K::kind(&()), of.name_any()),
    };
    match tokio::time::timeout(DEADLINE, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(Error::Refused {
            step,
            object: object(),
            source: Box::new(source),
        }),
        Err(_) => Err(Error::Late {
            step,
            object: object(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_finalizers_stay_whether_they_were_kept_or_not() {
        let list = |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
        let whole = list("a ours b");
        assert_eq!(changed(&whole, &list("ours …"), &list("…")), list("a b"));
        assert_eq!(
            changed(&list("a b"), &list("…"), &list("… ours")),
            list("a b ours")
        );
        assert_eq!(
            changed(&whole, &list("…"), &list("… ours")),
            whole,
            "there already"
        );
        assert_eq!(changed(&whole, &list("ours …"), &list("ours …")), whole);
    }
}
