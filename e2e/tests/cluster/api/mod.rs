//! Every rule of the API, on a real API server: what it accepts, what it refuses, and what it then says to write.

mod attachments;
mod changes;
mod migrations;
mod names;
mod networks;
mod nics;
mod nodes;
mod saves;

use hybridnic_e2e::chart;
use hybridnic_e2e::controlplane::{ControlPlane, Options};
use hybridnic_e2e::world::repository;
use kube::{
    Api, Client, Discovery,
    api::{DynamicObject, PostParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};

const GROUP: &str = "hybridnic.io";

async fn start() -> (ControlPlane, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(Options::new(dir.path().join("cp")))
        .await
        .unwrap();
    control_plane.apply(&repository("crds")).await.unwrap();
    chart::wait_for_kinds(&control_plane).await.unwrap();
    (control_plane, dir)
}

async fn api(client: &Client, kind: &str) -> Api<DynamicObject> {
    let discovery = Discovery::new(client.clone())
        .filter(&[GROUP])
        .run()
        .await
        .unwrap();
    let gvk = GroupVersionKind::gvk(GROUP, "v1alpha1", kind);
    let (resource, capabilities) = discovery.resolve_gvk(&gvk).unwrap();
    match capabilities.scope {
        kube::discovery::Scope::Cluster => Api::all_with(client.clone(), &resource),
        kube::discovery::Scope::Namespaced => Api::namespaced_with(client.clone(), "default", &resource),
    }
}

fn object(kind: &str, name: &str, spec: &Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "hybridnic.io/v1alpha1",
        "kind": kind,
        "metadata": { "name": name },
        "spec": spec,
    }))
    .unwrap()
}

/// What the API server says about an object; nothing if it accepts it.
async fn verdict(api: &Api<DynamicObject>, object: &DynamicObject) -> String {
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    match api.create(&dry, object).await {
        Ok(_) => String::new(),
        Err(kube::Error::Api(status)) => status.message,
        Err(error) => panic!("{error}"),
    }
}

/// A spec with one change in it, and what the refusal must say; nothing if it must be accepted.
struct Case(&'static str, Value, &'static str);

async fn judge(control_plane: &ControlPlane, kind: &str, base: &Value, cases: Vec<Case>) {
    let api = api(&control_plane.client_admin(), kind).await;
    assert_eq!(verdict(&api, &object(kind, "base", base)).await, "");
    let mut wrong = Vec::new();
    for Case(path, value, refusal) in cases {
        let mut spec = base.clone();
        set(&mut spec, path, value.clone());
        let said = verdict(&api, &object(kind, "case", &spec)).await;
        let right = if refusal.is_empty() {
            said.is_empty()
        } else {
            said.contains(refusal)
        };
        if !right {
            wrong.push(format!("{path} = {value}: expected {refusal:?}, got {said:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Sets a value by its path; a null removes it.
fn set(spec: &mut Value, path: &str, value: Value) {
    let (parent, last) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = spec.pointer_mut(parent).unwrap_or_else(|| panic!("no {parent}"));
    match (parent, value) {
        (Value::Object(map), Value::Null) => {
            map.remove(last);
        }
        (Value::Object(map), value) => {
            map.insert(last.to_owned(), value);
        }
        _ => panic!("{path} is in no object"),
    }
}

#[tokio::test]
async fn every_rule() {
    let (control_plane, _dir) = start().await;
    networks::rules(&control_plane).await;
    nodes::rules(&control_plane).await;
    nics::rules(&control_plane).await;
    attachments::rules(&control_plane).await;
    migrations::rules(&control_plane).await;
    saves::rules(&control_plane).await;
    changes::rules(&control_plane).await;
    names::rules(&control_plane).await;
}
