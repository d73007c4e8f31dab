//! Objects as they come from the API server: one that does not parse is no error of the whole list, nor of the watch. And what nobody
//! reads of an object goes before the next one is read, for a page has many.
//!
//! As kube's `DeserializeGuard`, which makes a tree of each object and clones that before it parses it; of 50,000 objects
//! that is seconds.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::PartialObjectMeta;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::Object;

/// As much of an error as is logged, in characters: it may quote the object.
const ERROR: usize = 512;

/// The most that an object's finalizers may have, in octets. They are written as a whole, so they are kept as a whole; and they are the
/// only thing of which a user may put in as much as the API server's store takes.
const FINALIZERS: usize = 4096;

/// Whether an object has more finalizers than are kept.
fn too_many(meta: &ObjectMeta) -> Option<String> {
    let octets: usize = meta.finalizers.iter().flatten().map(String::len).sum();
    (octets > FINALIZERS).then(|| format!("its finalizers have {octets} octets, and {FINALIZERS} are taken"))
}

/// An object, or why it is not taken: it does not parse, or has too much in it.
#[derive(Clone, Debug)]
pub struct Wire<K>(pub Result<K, Bad>);

/// An object that does not parse.
#[derive(Clone, Debug)]
pub struct Bad {
    /// What of it does.
    pub metadata: ObjectMeta,
    /// Why it does not.
    pub error: String,
}

impl<K: Object> From<K> for Wire<K> {
    fn from(mut object: K) -> Self {
        // They are the larger part of many objects, and a user may put what he likes into annotations.
        object.meta_mut().managed_fields = None;
        object.meta_mut().annotations = None;
        object.trim();
        Self(Ok(object))
    }
}

impl<'de, K: Object> Deserialize<'de> for Wire<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let error = match serde_json::from_str::<K>(text.get()).map(Self::from) {
            Ok(Self(Ok(object))) => match too_many(object.meta()) {
                None => return Ok(Self(Ok(object))),
                Some(error) => error,
            },
            Ok(bad) => return Ok(bad),
            Err(error) => error.to_string(),
        };
        let meta: PartialObjectMeta = serde_json::from_str(text.get()).map_err(D::Error::custom)?;
        let named = ObjectMeta {
            name: meta.metadata.name,
            namespace: meta.metadata.namespace,
            resource_version: meta.metadata.resource_version,
            uid: meta.metadata.uid,
            ..ObjectMeta::default()
        };
        Ok(Self(Err(Bad {
            metadata: named,
            error: hybridnic_text::bounded(&error, ERROR),
        })))
    }
}

impl<K: Object> Resource for Wire<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn metadata_api() -> bool {
        K::metadata_api()
    }

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.as_ref().map_or_else(|bad| &bad.metadata, K::meta)
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.as_mut().map_or_else(|bad| &mut bad.metadata, K::meta_mut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::ResourceExt;
    use kube::api::{ObjectList, WatchEvent};

    const BAD: &str = r#"{"metadata": {"name": "bad", "namespace": "ns"}, "data": 7}"#;
    const GOOD: &str = r#"{"metadata": {"name": "good", "annotations": {"a": "b"}, "managedFields": [{"manager": "m"}]}, "data": {"a": "b"}}"#;

    #[test]
    fn one_of_a_list_that_does_not_parse_leaves_the_others() {
        let list = format!(r#"{{"kind": "ConfigMapList", "metadata": {{}}, "items": [{BAD}, {GOOD}]}}"#);
        let list: ObjectList<Wire<ConfigMap>> = serde_json::from_str(&list).unwrap();
        let [bad, good] = &list.items[..] else {
            panic!("{list:?}")
        };
        assert_eq!(
            (bad.name_any(), bad.namespace()),
            ("bad".into(), Some("ns".into()))
        );
        assert!(bad.0.as_ref().unwrap_err().error.contains("invalid type"));
        let good = good.0.as_ref().unwrap();
        assert_eq!(good.name_any(), "good");
        // Nobody reads these, and that kind's data neither.
        let meta = &good.metadata;
        assert_eq!(
            (&meta.annotations, &meta.managed_fields, &good.data),
            (&None, &None, &None)
        );
    }

    /// They would fill the memory as well as annotations do.
    #[test]
    #[allow(
        clippy::result_large_err,
        reason = "it is what kube gives for an object that does not parse"
    )]
    fn one_with_finalizers_without_end_is_not_taken() {
        let with = |count: usize| {
            let finalizers: Vec<_> = (0..count).map(|n| format!("example.com/{n:04}")).collect();
            let map =
                serde_json::json!({"metadata": {"name": "a", "namespace": "ns", "finalizers": finalizers}});
            serde_json::from_value::<Wire<ConfigMap>>(map).unwrap().0
        };
        assert_eq!(with(FINALIZERS / 16).unwrap().finalizers().len(), FINALIZERS / 16);
        let bad = with(FINALIZERS / 16 + 1).unwrap_err();
        assert!(bad.error.contains("finalizers"), "{}", bad.error);
        assert_eq!(
            (bad.metadata.name.as_deref(), &bad.metadata.finalizers),
            (Some("a"), &None)
        );
    }

    #[test]
    fn so_it_is_in_a_watch() {
        for (text, parses) in [(BAD, false), (GOOD, true)] {
            let event = format!(r#"{{"type": "ADDED", "object": {text}}}"#);
            let event: WatchEvent<Wire<ConfigMap>> = serde_json::from_str(&event).unwrap();
            let WatchEvent::Added(object) = event else {
                panic!("{event:?}")
            };
            assert_eq!(object.0.is_ok(), parses);
        }
    }
}
