//! Kubeconform, with schemas of what a real API server says of its kinds: Kubernetes' own, and those of the CRDs that it has.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use hybridnic_e2e::controlplane::tools::Schemas;
use kube::Client;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

/// The API server publishes the schemas of CRDs some time after it takes objects of them.
const PUBLISHED: Duration = Duration::from_mins(1);
/// One of each CRD file that the test applies.
const LAST_KINDS: [&str; 3] = ["PodMonitor", "PrometheusRule", "VmHybridNic"];

pub(super) struct Kubeconform {
    program: PathBuf,
    /// `-schema-location`: a template of the files' names.
    schemas: String,
}

impl Kubeconform {
    /// Asks the API server for its kinds, and keeps their schemas in `dir`.
    pub(super) async fn new(tools: &Schemas, client: &Client, dir: &Path) -> Self {
        let definitions = published(client).await;
        let dir = dir.join("schemas");
        fs::create_dir(&dir).unwrap();
        for (name, definition) in &definitions {
            for (group, version, kind) in kinds_of(definition) {
                let mut used = Map::new();
                collect(&definitions, name, &mut used);
                let schema = json!({ "$ref": format!("#/definitions/{name}"), "definitions": used });
                // Kubeconform takes the version for the group where there is none.
                let group = if group.is_empty() { &version } else { &group };
                let file = format!("{group}_{version}_{}.json", kind.to_lowercase());
                fs::write(dir.join(file), schema.to_string()).unwrap();
            }
        }
        Self {
            program: tools.kubeconform.clone(),
            schemas: format!(
                "{}/{{{{.Group}}}}_{{{{.ResourceAPIVersion}}}}_{{{{.ResourceKind}}}}.json",
                dir.display()
            ),
        }
    }

    fn run(&self, file: &Path) -> (Output, String) {
        let output = Command::new(&self.program)
            .args(["-strict", "-summary", "-schema-location", &self.schemas])
            .arg(file)
            .output()
            .unwrap();
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        (output, String::from_utf8_lossy(&said).into_owned())
    }

    /// All of a file's objects are as their schemas say, and none was left out.
    pub(super) fn takes(&self, file: &Path, objects: usize) {
        let (output, said) = self.run(file);
        let all = format!("Valid: {objects}, Invalid: 0, Errors: 0, Skipped: 0");
        assert!(
            output.status.success() && said.contains(&all),
            "{}, {objects} objects: {said}",
            file.display()
        );
    }

    /// It finds fault with a file, and names `what`.
    pub(super) fn refuses(&self, file: &Path, what: &str) {
        let (output, said) = self.run(file);
        assert!(!output.status.success() && said.contains(what), "{said}");
    }
}

/// The API server's definitions, each made as strict as the server is.
async fn published(client: &Client) -> Map<String, Value> {
    let end = Instant::now() + PUBLISHED;
    loop {
        let request = http::Request::get("/openapi/v2")
            .header("Accept", "application/json")
            .body(Vec::new())
            .unwrap();
        let mut openapi: Value = client.request(request).await.unwrap();
        let Value::Object(mut definitions) = openapi["definitions"].take() else {
            panic!("no definitions")
        };
        let there: BTreeSet<_> = definitions.values().flat_map(kinds_of).map(|k| k.2).collect();
        if LAST_KINDS.iter().all(|kind| there.contains(*kind)) {
            definitions.values_mut().for_each(tighten);
            return definitions;
        }
        assert!(Instant::now() < end, "{LAST_KINDS:?} are not in /openapi/v2");
        // It has no watch.
        sleep(Duration::from_millis(200)).await;
    }
}

/// Group, version and kind of what a definition is of; nothing where it is a part only.
fn kinds_of(definition: &Value) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kinds = definition["x-kubernetes-group-version-kind"].as_array();
    kinds
        .into_iter()
        .flatten()
        .map(|kind| (text(&kind["group"]), text(&kind["version"]), text(&kind["kind"])))
        .collect()
}

/// JSON Schema of what OpenAPI says in its own way; and no field that the definition does not name.
fn tighten(schema: &mut Value) {
    if let Value::Object(object) = &mut *schema {
        if object.get("format") == Some(&json!("int-or-string")) {
            *schema = json!({ "type": ["string", "integer"] });
            return;
        }
        let open = object.contains_key("additionalProperties")
            || object.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
        if !open && object.get("properties").is_some_and(Value::is_object) {
            object.insert("additionalProperties".into(), Value::Bool(false));
        }
        // A field may be named as a keyword is; so only where schemas are.
        for (key, value) in object {
            match (key.as_str(), value) {
                ("properties", Value::Object(fields)) => fields.values_mut().for_each(tighten),
                ("items" | "additionalProperties", value) => tighten(value),
                _ => {}
            }
        }
    }
}

/// A definition and all that it refers to.
fn collect(definitions: &Map<String, Value>, name: &str, used: &mut Map<String, Value>) {
    if used.contains_key(name) {
        return;
    }
    let definition = &definitions[name];
    used.insert(name.to_owned(), definition.clone());
    let mut values = vec![definition];
    while let Some(value) = values.pop() {
        match value {
            Value::Object(object) => {
                let reference = object.get("$ref").and_then(Value::as_str);
                if let Some(name) = reference.and_then(|r| r.strip_prefix("#/definitions/")) {
                    collect(definitions, name, used);
                }
                values.extend(object.values());
            }
            Value::Array(array) => values.extend(array),
            _ => {}
        }
    }
}
