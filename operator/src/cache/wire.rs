//! Objects as they come from the API server: one that does not parse is no error of the whole list, nor of the watch.
//!
//! As kube's `DeserializeGuard`, which makes a tree of each object and clones that before it parses it; of 50,000 objects
//! that is seconds.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::PartialObjectMeta;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// An object, or why it does not parse.
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

impl<K> From<K> for Wire<K> {
    fn from(object: K) -> Self {
        Self(Ok(object))
    }
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Wire<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let error = match serde_json::from_str(text.get()) {
            Ok(object) => return Ok(Self(Ok(object))),
            Err(error) => error.to_string(),
        };
        let meta: PartialObjectMeta = serde_json::from_str(text.get()).map_err(D::Error::custom)?;
        Ok(Self(Err(Bad {
            metadata: meta.metadata,
            error,
        })))
    }
}

impl<K: Resource<DynamicType = ()>> Resource for Wire<K> {
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
    const GOOD: &str = r#"{"metadata": {"name": "good"}, "data": {"a": "b"}}"#;

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
        assert_eq!(good.0.as_ref().unwrap().data.as_ref().unwrap()["a"], "b");
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
