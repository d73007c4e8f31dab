//! The pods of the documentation and of the examples, in a namespace where PodSecurity allows only the ordinary.

use hybridnic_e2e::controlplane::{ControlPlane, Options};
use hybridnic_e2e::{docs, world::repository};
use serde_json::{Value, json};
use tempfile::TempDir;

const EXAMPLES: [&str; 2] = [
    "deploy/examples/vm-pod.yaml",
    "deploy/examples/vm-statefulset.yaml",
];
const NAMESPACE: &str = "tenant";

struct Restricted {
    cluster: ControlPlane,
    dir: TempDir,
}

impl Restricted {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let cluster = ControlPlane::start(Options::new(dir.path().join("cp")))
            .await
            .unwrap();
        let this = Self { cluster, dir };
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": {
                "pod-security.kubernetes.io/enforce": "restricted",
                "pod-security.kubernetes.io/warn": "restricted",
            }},
        });
        this.kubectl(&["apply"], &namespace).await.unwrap();
        this
    }

    /// kubectl with an object; what it complains of is the error, warnings too.
    async fn kubectl(&self, args: &[&str], object: &Value) -> Result<Value, String> {
        let file = self.dir.path().join("object.json");
        std::fs::write(&file, object.to_string()).unwrap();
        let file = file.display().to_string();
        let args = [args, &["--warnings-as-errors", "-o", "json", "-f", &file]].concat();
        let output = self.cluster.kubectl(&args).await.unwrap();
        if output.status.success() {
            Ok(serde_json::from_slice(&output.stdout).unwrap())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    async fn takes(&self, mut object: Value) -> Result<Value, String> {
        object["metadata"]["namespace"] = json!(NAMESPACE);
        self.kubectl(&["create", "--dry-run=server"], &object).await
    }
}

fn parsed(yaml: &str) -> Value {
    serde_saphyr::from_str(yaml).unwrap()
}

#[tokio::test]
async fn vms_are_ordinary_pods() {
    let restricted = Restricted::new().await;
    let mut objects: Vec<Value> = EXAMPLES
        .iter()
        .map(|path| parsed(&std::fs::read_to_string(repository(path)).unwrap()))
        .collect();
    // For a set there is only a warning; its pods would be refused one by one.
    let set = objects[1].clone();
    let mut pod = set["spec"]["template"].clone();
    (pod["apiVersion"], pod["kind"]) = (json!("v1"), json!("Pod"));
    pod["metadata"]["name"] = json!("web-0");
    objects.push(pod);
    let shown = docs::pages().unwrap();
    let blocks = shown.iter().flat_map(|page| &page.blocks);
    objects.extend(
        blocks
            .filter(|block| block.language() == "yaml" && block.text.contains("\nkind: Pod\n"))
            .map(|block| parsed(&block.text)),
    );
    assert!(objects.len() > 3, "the documentation shows no pod");
    for object in objects {
        if let Err(refusal) = restricted.takes(object.clone()).await {
            panic!("{refusal}\n{object:#}");
        }
    }

    // It is enforced: what a VM needed once is refused.
    let mut privileged = parsed(&std::fs::read_to_string(repository(EXAMPLES[0])).unwrap());
    privileged["spec"]["volumes"][0] =
        json!({"name": "hybridnic", "hostPath": {"path": "/run/hybridnic/vms"}});
    let refusal = restricted.takes(privileged).await.unwrap_err();
    assert!(
        refusal.contains("PodSecurity") && refusal.contains("hostPath"),
        "{refusal}"
    );
}
