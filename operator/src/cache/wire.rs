//! Objects as they come from the API server: if one does not parse, that is no error of the whole list, nor of the watch. Fields that are
//! not used are dropped before the next object is read, because a page has many.
//!
//! It is like kube's `DeserializeGuard`, but that makes a tree of each object and clones it before it parses it; for 50,000 objects
//! this takes seconds.

use std::borrow::Cow;

use hybridnic_api::names::{ATTACHMENT_FINALIZER, MIGRATION_FINALIZER, NETWORK_FINALIZER, NIC_FINALIZER};
use hybridnic_decisions::mac::Mac;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::PartialObjectMeta;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{Key, Object};

/// As much of an error as is logged, in characters: it may quote the object.
const ERROR: usize = 512;

/// The most of an object's finalizers that is kept, in octets: they are the only part that a user may make as large as the API
/// server's store takes.
const FINALIZERS: usize = 4096;

/// Stands in the place of finalizers that were not kept: before the list is written it must be read. No finalizer looks like this.
const CUT: &str = "…";

/// Those that the operator and the agents go by.
const OURS: [&str; 4] = [
    ATTACHMENT_FINALIZER,
    MIGRATION_FINALIZER,
    NETWORK_FINALIZER,
    NIC_FINALIZER,
];

/// Whether some of an object's finalizers were not kept.
pub fn finalizers_are_cut(meta: &ObjectMeta) -> bool {
    meta.finalizers.iter().flatten().any(|finalizer| finalizer == CUT)
}

/// Keeps only our own of too many finalizers. The object stays, because an object that is not there could not keep its address.
fn cut_finalizers(meta: &mut ObjectMeta) {
    let Some(finalizers) = &mut meta.finalizers else {
        return;
    };
    let octets: usize = finalizers.iter().map(String::len).sum();
    if octets > FINALIZERS {
        let mut kept: Vec<String> = OURS
            .iter()
            .filter(|ours| finalizers.iter().any(|finalizer| finalizer == *ours))
            .map(ToString::to_string)
            .collect();
        kept.push(CUT.to_owned());
        *finalizers = kept;
    }
}

/// An object, or why it is not taken: it does not parse.
#[derive(Clone, Debug)]
pub struct Wire<K>(pub Result<K, Bad>);

/// An object that does not parse.
#[derive(Clone, Debug)]
pub struct Bad {
    /// What of it does.
    pub metadata: ObjectMeta,
    /// Why it does not.
    pub error: String,
    /// The keys to look it up nevertheless: a NIC's addresses, an attachment's NIC.
    pub keys: Vec<Key>,
}

/// Where these are, in an object that does not parse.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    spec: serde_json::Value,
    #[serde(default)]
    status: serde_json::Value,
}

fn keys(text: &str, namespace: &str) -> Vec<Key> {
    let Ok(Parts { spec, status }) = serde_json::from_str(text) else {
        return Vec::new();
    };
    let macs = [&spec, &status].into_iter();
    let macs = macs
        .filter_map(|part| part.get("mac")?.as_str().map(str::to_ascii_lowercase))
        .filter(|mac| mac.parse::<Mac>().is_ok());
    let nic = spec.get("nic").and_then(|nic| nic.get("name")?.as_str());
    let nic = nic.map(|nic| Key::Nic(namespace.to_owned(), nic.to_owned()));
    macs.map(Key::Mac).chain(nic).collect()
}

impl<K: Object> From<K> for Wire<K> {
    fn from(mut object: K) -> Self {
        // They are the larger part of many objects, and users may put anything into annotations.
        object.meta_mut().managed_fields = None;
        if !K::ANNOTATED {
            object.meta_mut().annotations = None;
        }
        cut_finalizers(object.meta_mut());
        object.trim();
        Self(Ok(object))
    }
}

impl<'de, K: Object> Deserialize<'de> for Wire<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let error = match serde_json::from_str::<K>(text.get()).map(Self::from) {
            Ok(read) => return Ok(read),
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
        let keys = keys(text.get(), named.namespace.as_deref().unwrap_or_default());
        Ok(Self(Err(Bad {
            metadata: named,
            error: hybridnic_text::bounded(&error, ERROR),
            keys,
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
    use hybridnic_api::v1alpha1::{NicAttachment, VmHybridNic};
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
        // These are not used, nor is that kind's data.
        let meta = &good.metadata;
        assert_eq!(
            (&meta.annotations, &meta.managed_fields, &good.data),
            (&None, &None, &None)
        );
    }

    /// They would fill the memory as well as annotations do. And an object that is hidden by them still has an address.
    #[test]
    fn one_with_finalizers_without_end_is_there_with_ours() {
        let with = |count: usize| {
            let mut finalizers: Vec<_> = (0..count).map(|n| format!("example.com/{n:04}")).collect();
            finalizers.insert(count / 2, NIC_FINALIZER.to_owned());
            let map =
                serde_json::json!({"metadata": {"name": "a", "namespace": "ns", "finalizers": finalizers}});
            serde_json::from_value::<Wire<ConfigMap>>(map).unwrap().0.unwrap()
        };
        let few = with(FINALIZERS / 16 - 2);
        assert_eq!(few.finalizers().len(), FINALIZERS / 16 - 1);
        assert!(!finalizers_are_cut(few.meta()));
        let many = with(FINALIZERS / 16 + 1);
        assert_eq!(many.finalizers(), [NIC_FINALIZER, CUT]);
        assert!(finalizers_are_cut(many.meta()));
        // As it comes out of the cache.
        let mut again = many.clone();
        cut_finalizers(&mut again.metadata);
        assert_eq!(again.metadata, many.metadata);
    }

    #[test]
    fn of_one_that_does_not_parse_addresses_and_nic_are_known() {
        let nic = r#"{"metadata": {"name": "a", "namespace": "ns"}, "spec": {"mac": "52:54:00:00:00:0A", "network": 7},
            "status": {"mac": "52:54:00:00:00:0b", "path": []}}"#;
        let bad = serde_json::from_str::<Wire<VmHybridNic>>(nic)
            .unwrap()
            .0
            .unwrap_err();
        let macs = ["52:54:00:00:00:0a", "52:54:00:00:00:0b"].map(|mac| Key::Mac(mac.into()));
        assert_eq!(bad.keys, macs);
        let attachment = r#"{"metadata": {"name": "a-1", "namespace": "ns"}, "spec": {"nic": {"name": "a"}, "goal": "Elsewhere"}}"#;
        let bad = serde_json::from_str::<Wire<NicAttachment>>(attachment)
            .unwrap()
            .0
            .unwrap_err();
        assert_eq!(bad.keys, [Key::Nic("ns".into(), "a".into())]);
        for none in [
            r#"{"metadata": {}, "spec": 7}"#,
            r#"{"metadata": {}, "spec": {"mac": "x", "nic": "a"}}"#,
        ] {
            let bad = serde_json::from_str::<Wire<VmHybridNic>>(none)
                .unwrap()
                .0
                .unwrap_err();
            assert_eq!(bad.keys, []);
        }
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
