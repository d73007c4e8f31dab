//! Copies of a VM that is attached, put into etcd: the API server shows them as if it had created them.
//!
//! Through the API server 50,000 NICs would take an hour on two processors, and nearly all of that time would be the API server's.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use http_body_util::{BodyExt as _, Full};
use hybridnic_api::names::attachment_name;
use hybridnic_api::v1alpha1::VmHybridNic;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::ByteString;
use kube::api::ListParams;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::net::UnixStream;

use crate::cluster::{Size, namespace};
use crate::say;

/// VMs of one of etcd's transactions, which take 128 writes.
const AT_ONCE: usize = 32;

/// The first VM's objects, their places in etcd, and what in them is its own.
struct Template {
    objects: Vec<(&'static str, Value)>,
    uids: Vec<String>,
    attachment: String,
    pod_ip: String,
    mac: String,
}

/// Makes the VMs that are not there yet, each as the first one is.
pub async fn make(client: &Client, etcd: &Path, size: Size) -> Result<()> {
    say(&format!("{} copies", size.nics - size.made()));
    let template = Template::read(client).await?;
    let nics: Api<VmHybridNic> = Api::all(client.clone());
    let nics = nics.list(&ListParams::default()).await?.items;
    let taken: HashSet<_> = nics.into_iter().filter_map(|nic| nic.status?.mac).collect();
    // The first half of an address is the network's.
    let block = template.mac.get(..8).context("an address is longer")?;
    let mut free = (0..1 << 24)
        .map(|n: usize| format!("{block}:{:02x}:{:02x}:{:02x}", n >> 16, n >> 8 & 0xff, n & 0xff))
        .filter(|mac| !taken.contains(mac));
    let vms: Vec<_> = (size.made()..size.nics).zip(&mut free).collect();
    stream::iter(vms.chunks(AT_ONCE))
        .map(|vms| {
            let copies = vms.iter().map(|(n, mac)| template.copy(*n, mac, *n % size.nodes));
            copies.collect::<Result<Vec<_>>>()
        })
        .map(|copies| async { put(etcd, copies?.concat()).await })
        .buffer_unordered(2)
        .try_collect()
        .await
}

impl Template {
    async fn read(client: &Client) -> Result<Self> {
        let namespace = namespace(0);
        let get = async |path: &str| -> Result<Value> {
            let uri = format!("/{path}");
            let request = http::Request::get(&uri).body(Vec::new())?;
            let mut object: Value = client.request(request).await.context(uri)?;
            // etcd's own, which an object there does not have.
            let meta = object["metadata"].as_object_mut().context("no metadata")?;
            meta.remove("resourceVersion");
            Ok(object)
        };
        let text = |object: &Value, path: &str| -> Result<String> {
            let text = object.pointer(path).and_then(Value::as_str);
            Ok(text.with_context(|| format!("no {path} in {object}"))?.to_owned())
        };
        let ours = format!("apis/hybridnic.io/v1alpha1/namespaces/{namespace}");
        let pod = get(&format!("api/v1/namespaces/{namespace}/pods/vm-0-a")).await?;
        let nic = get(&format!("{ours}/vmhybridnics/vm-0-0")).await?;
        let name = attachment_name("vm-0-0", &text(&pod, "/metadata/uid")?);
        let attachment = get(&format!("{ours}/nicattachments/{name}")).await?;
        Ok(Self {
            uids: [&pod, &nic, &attachment]
                .into_iter()
                .map(|object| text(object, "/metadata/uid"))
                .collect::<Result<_>>()?,
            attachment: name,
            pod_ip: text(&pod, "/status/podIP")?,
            mac: text(&nic, "/status/mac")?,
            // The pod last: until the VM is whole it does not run.
            objects: vec![
                ("hybridnic.io/nicattachments", attachment),
                ("hybridnic.io/vmhybridnics", nic),
                ("pods", pod),
            ],
        })
    }

    /// The keys and objects of another VM.
    fn copy(&self, n: usize, mac: &str, node: usize) -> Result<Vec<(String, Vec<u8>)>> {
        let uid = |kind: usize| format!("{n:08x}-0000-4000-8000-{kind:012x}");
        let pod_uid = uid(0);
        let ip = format!("10.{}.{}.{}", n >> 16 & 0xff, n >> 8 & 0xff, n & 0xff);
        let attachment = attachment_name(&format!("vm-{n}-0"), &pod_uid);
        let names = HashMap::from([
            ("ns-0".to_owned(), namespace(n)),
            ("vm-0".to_owned(), format!("vm-{n}")),
            ("vm-0-0".to_owned(), format!("vm-{n}-0")),
            ("vm-0-a".to_owned(), format!("vm-{n}-a")),
            ("node-0".to_owned(), format!("node-{node}")),
            (self.attachment.clone(), attachment.clone()),
            (self.pod_ip.clone(), ip),
            (self.mac.clone(), mac.to_owned()),
        ]);
        let copies = self.objects.iter().map(|(resource, object)| {
            let mut object = object.clone();
            rename(&mut object, &names);
            let name = object["metadata"]["name"].as_str().context("no name")?;
            let key = format!("/registry/{resource}/{}/{name}", namespace(n));
            let mut text = object.to_string();
            // They are in names of fields, too.
            for (kind, old) in self.uids.iter().enumerate() {
                text = text.replace(old, &uid(kind));
            }
            Ok((key, text.into_bytes()))
        });
        copies.collect()
    }
}

fn rename(value: &mut Value, names: &HashMap<String, String>) {
    match value {
        Value::String(text) => {
            if let Some(new) = names.get(text) {
                text.clone_from(new);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| rename(value, names)),
        Value::Object(fields) => fields.values_mut().for_each(|value| rename(value, names)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// One transaction, by etcd's API over HTTP.
async fn put(etcd: &Path, all: Vec<(String, Vec<u8>)>) -> Result<()> {
    let puts = all.into_iter().map(|(key, value)| {
        let (key, value) = (ByteString(key.into_bytes()), ByteString(value));
        json!({"requestPut": {"key": key, "value": value}})
    });
    let body = json!({"success": puts.collect::<Vec<_>>()}).to_string();
    let stream = UnixStream::connect(etcd).await.context("no etcd")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = http::Request::post("/v3/kv/txn").header("host", "etcd");
    let answer = sender
        .send_request(request.body(Full::new(Bytes::from(body)))?)
        .await?;
    let status = answer.status();
    let text = answer.into_body().collect().await?.to_bytes();
    ensure!(status.is_success(), "etcd: {}", String::from_utf8_lossy(&text));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_another_vm_in_all_that_names_it() {
        let meta = |name: &str, uid: &str| json!({"name": name, "namespace": "ns-0", "uid": uid});
        let owner = json!({"f:ownerReferences": {"k:{\"uid\":\"uid-nic\"}": {}}});
        let attachment = json!({"metadata": meta("vm-0-0-podpod", "uid-attachment"), "managed": owner,
            "spec": {"mac": "02:00:00:00:00:01", "nodeName": "node-0", "pod": {"uid": "pod-pod"}}});
        let pod = json!({"metadata": meta("vm-0-a", "pod-pod"), "status": {"podIP": "10.0.0.0"}});
        let template = Template {
            objects: vec![("hybridnic.io/nicattachments", attachment), ("pods", pod)],
            uids: vec!["pod-pod".into(), "uid-nic".into(), "uid-attachment".into()],
            attachment: "vm-0-0-podpod".into(),
            pod_ip: "10.0.0.0".into(),
            mac: "02:00:00:00:00:01".into(),
        };
        let copies = template.copy(700, "02:00:00:00:00:09", 3).unwrap();
        let [(key, attachment), (pod_key, pod)] = &copies[..] else {
            panic!("{copies:?}")
        };
        assert_eq!(pod_key, "/registry/pods/ns-1/vm-700-a");
        assert_eq!(
            key,
            "/registry/hybridnic.io/nicattachments/ns-1/vm-700-0-000002bc00"
        );
        let attachment: Value = serde_json::from_slice(attachment).unwrap();
        let spec = &attachment["spec"];
        assert_eq!(spec["mac"], "02:00:00:00:00:09");
        assert_eq!(spec["nodeName"], "node-3");
        let pod: Value = serde_json::from_slice(pod).unwrap();
        assert_eq!(spec["pod"]["uid"], pod["metadata"]["uid"]);
        assert_eq!(pod["status"]["podIP"], "10.0.2.188");
        let text = format!("{attachment}{pod}");
        for old in ["vm-0", "ns-0", "uid-nic", "uid-attachment", "pod-pod", "node-0"] {
            assert!(!text.contains(old), "{old} in {text}");
        }
    }
}
