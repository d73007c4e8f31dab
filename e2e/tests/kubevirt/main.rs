//! KubeVirt itself and a VM with interfaces of our binding: what it makes of that, on which operator, device plugin, CNI plugin,
//! sidecar and agent rely. Its control half, with stand-ins for nodes (here); its node half, with libvirt and QEMU (`real`).
//!
//! ```text
//! cargo test --workspace --all-features --test kubevirt
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

mod cni;
#[path = "../common/mod.rs"]
mod common;
mod launcher;
mod network;
mod operator;
mod real;
mod stand_in;

use std::time::{Duration, Instant};

use hybridnic_e2e::controlplane::{ControlPlane, Options};
use hybridnic_e2e::kubevirt::{Kind, KubeVirt, MULTUS, configure};
use hybridnic_e2e::until::until;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use stand_in::{StandIn, at, launcher_with};
use tempfile::TempDir;

const NAMESPACE: &str = "default";
const VM: &str = "web";
/// For what a controller does by itself.
const SOON: Duration = Duration::from_mins(1);
/// For what must not happen: long enough for a controller that would do it.
const A_WHILE: Duration = Duration::from_secs(2);

/// As the operator will make it for a network.
const FAST: &str = r#"
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata:
  name: fast
  namespace: default
  annotations: {k8s.v1.cni.cncf.io/resourceName: hybridnic.io/fast}
spec: {config: '{"cniVersion": "1.0.0", "type": "hybridnic", "network": "fast"}'}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_kubevirt_makes_of_a_vm_with_our_binding() {
    let began = Instant::now();
    let say = |what: &str| eprintln!("--- {:5.1} s  {what}", began.elapsed().as_secs_f64());
    let dir = TempDir::new().unwrap();
    let stage = Stage::start(&dir, say).await;
    stage.definition_by_hand(&dir).await;
    stage.vm_with_a_binding_that_nobody_has_registered().await;
    say("a binding that is not registered is taken, and said of the VMI");
    let source = stage.registered().await;
    launcher::check(&source, &stage.vmi().await);
    say("its launcher is as it should be");
    stage.n1.take(&source.name_any()).await.unwrap();
    stage.runs(&source).await;
    stage.others_change_nothing().await;
    say("it runs; nobody but KubeVirt changes it");
    stage.migration_that_is_deleted(&source).await;
    say("a migration that is deleted while its target waits is gone");
    stage.migration_whose_target_is_deleted(&source).await;
    say("a migration whose target is deleted has failed");
    stage.migration(&source).await;
    say("a migration has succeeded");
    for (program, kib) in stage.kubevirt.resident_kib() {
        eprintln!("{program}: {} MiB", kib / 1024);
    }
}

async fn control_plane(dir: &TempDir) -> ControlPlane {
    let options = Options::new(dir.path()).with_controllers();
    ControlPlane::start(options).await.unwrap()
}

struct Stage {
    // Dropped in this order.
    n1: StandIn,
    n2: StandIn,
    client: Client,
    kubevirt: KubeVirt,
    cluster: ControlPlane,
}

impl Stage {
    async fn start(dir: &TempDir, say: impl Fn(&str)) -> Self {
        let cluster = control_plane(dir).await;
        say("the control plane is ready");
        let stage = Self::on(cluster).await;
        say("KubeVirt is ready");
        stage.install_multus(dir).await;
        stage
    }

    /// Installs KubeVirt, and shows it two nodes.
    async fn on(cluster: ControlPlane) -> Self {
        let configuration = json!({ "developerConfiguration": { "useEmulation": true } });
        let kubevirt = KubeVirt::start(&cluster, configuration).await.unwrap();
        Self {
            n1: StandIn::start(&cluster, "n1").await.unwrap(),
            n2: StandIn::start(&cluster, "n2").await.unwrap(),
            client: cluster.client_admin(),
            kubevirt,
            cluster,
        }
    }

    /// Its kind and its rights; no program of it runs by itself.
    async fn install_multus(&self, dir: &TempDir) {
        let path = dir.path().join("multus.yaml");
        std::fs::write(&path, MULTUS).unwrap();
        self.cluster.apply(&path).await.unwrap();
        let wait = [
            "wait",
            "--for=condition=Established",
            "--timeout=30s",
            "crd",
            "--all",
        ];
        assert!(self.cluster.kubectl(&wait).await.unwrap().status.success());
    }

    /// What the operator makes, where there is none.
    async fn definition_by_hand(&self, dir: &TempDir) {
        let path = dir.path().join("definition.yaml");
        std::fs::write(&path, FAST).unwrap();
        self.cluster.apply(&path).await.unwrap();
    }

    /// Somebody starts the VM.
    async fn vm(&self) {
        self.create_vm(NAMESPACE, VM, "Always", launcher::spec()).await;
    }

    async fn create_vm(&self, namespace: &str, name: &str, strategy: &str, spec: Value) {
        let vm = json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": { "name": name },
            "spec": { "runStrategy": strategy, "template": { "spec": spec } },
        });
        let vms = Kind::VirtualMachine.api(self.client.clone(), namespace);
        let vm = serde_json::from_value(vm).unwrap();
        vms.create(&PostParams::default(), &vm).await.unwrap();
    }

    async fn delete_vm(&self, namespace: &str, name: &str) {
        let vms = Kind::VirtualMachine.api(self.client.clone(), namespace);
        vms.delete(name, &DeleteParams::default()).await.unwrap();
    }

    fn vmis(&self) -> Api<DynamicObject> {
        Kind::VirtualMachineInstance.api(self.client.clone(), NAMESPACE)
    }

    fn migrations(&self) -> Api<DynamicObject> {
        Kind::VirtualMachineInstanceMigration.api(self.client.clone(), NAMESPACE)
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    async fn vmi(&self) -> DynamicObject {
        self.vmis().get(VM).await.unwrap()
    }

    async fn until_vmi(&self, what: &str, is: impl Fn(&DynamicObject) -> bool) -> DynamicObject {
        until(self.vmis(), VM, SOON, what, is).await.unwrap()
    }

    async fn until_phase(&self, migration: &str, phase: &str) -> DynamicObject {
        let is = |m: &DynamicObject| at(m, "/status/phase") == phase;
        until(self.migrations(), migration, SOON, phase, is)
            .await
            .unwrap()
    }

    /// KubeVirt takes it: webhooks do not look at bindings. Only the VMI says it, and it has no pod.
    async fn vm_with_a_binding_that_nobody_has_registered(&self) {
        self.vm().await;
        let vmi = self
            .until_vmi("said to be without its binding", |vmi| {
                condition(vmi, "Synchronized")["reason"] == "FailedCreate"
            })
            .await;
        let message = &condition(&vmi, "Synchronized")["message"];
        assert_eq!(
            message,
            "failed to render launch manifest: couldn't find configuration for network binding: hybridnic"
        );
        assert_eq!(at(&vmi, "/status/phase"), "Pending");
        assert!(
            self.pods()
                .list(&ListParams::default())
                .await
                .unwrap()
                .items
                .is_empty()
        );
    }

    /// Once it is there, the VM goes on by itself.
    async fn registered(&self) -> Pod {
        configure(self.client.clone(), launcher::configuration())
            .await
            .unwrap();
        launcher_with(&self.client, "kubevirt.io=virt-launcher", SOON)
            .await
            .unwrap()
    }

    async fn runs(&self, pod: &Pod) {
        self.n1.run(pod, &[]).await.unwrap();
        let vmi = self
            .until_vmi("scheduled", |vmi| at(vmi, "/status/phase") == "Scheduled")
            .await;
        assert_eq!(at(&vmi, "/status/nodeName"), "n1");
        assert_eq!(vmi.labels()["kubevirt.io/nodeName"], "n1");
        let report = json!({ "status": {
            "phase": "Running",
            "selinuxContext": "none",
            "conditions": [{ "type": "LiveMigratable", "status": "True" }, { "type": "Ready", "status": "True" }],
        }});
        self.n1.report(VM, report).await.unwrap();
        self.until_vmi("running", |vmi| at(vmi, "/status/phase") == "Running")
            .await;
    }

    /// An administrator's change of a spec is refused, and of a status passed over without a word.
    async fn others_change_nothing(&self) {
        let patch = |patch: Value| async move {
            self.vmis()
                .patch(VM, &PatchParams::default(), &Patch::Merge(patch))
                .await
        };
        let mac = "02:00:00:00:aa:02";
        let interfaces = json!([{ "name": "fast", "binding": { "name": "hybridnic" }, "macAddress": mac }]);
        let spec = json!({ "spec": { "domain": { "devices": { "interfaces": interfaces } } } });
        let refusal = patch(spec).await.unwrap_err().to_string();
        assert!(
            refusal.contains("update of VMI object is restricted"),
            "{refusal}"
        );
        let vmi = patch(json!({ "status": { "phase": "Failed" } })).await.unwrap();
        assert_eq!(at(&vmi, "/status/phase"), "Running");
    }

    async fn migrate(&self, name: &str) -> DynamicObject {
        let migration = json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
            "metadata": { "name": name }, "spec": { "vmiName": VM },
        });
        let migration = serde_json::from_value(migration).unwrap();
        self.migrations()
            .create(&PostParams::default(), &migration)
            .await
            .unwrap()
    }

    /// A migration's target pod, which has a node and whose containers do not run, as while a CNI plugin waits.
    async fn target(&self, migration: &DynamicObject, source: &Pod) -> Pod {
        let label = format!("kubevirt.io/migrationJobUID={}", migration.uid().unwrap());
        let target = launcher_with(&self.client, &label, SOON).await.unwrap();
        launcher::check_target(&target, source, migration, "n1");
        self.n2.take(&target.name_any()).await.unwrap();
        let migration = self.until_phase(&migration.name_any(), "Scheduling").await;
        let source = source.name_any();
        assert_eq!(*at(&migration, "/status/migrationState/sourcePod"), source);
        target
    }

    /// Nothing of it is in the VMI, which is still where it was.
    async fn untouched(&self) {
        let vmi = self.vmi().await;
        assert_eq!(at(&vmi, "/status/migrationState"), &Value::Null);
        assert_eq!(at(&vmi, "/status/nodeName"), "n1");
        assert!(!vmi.labels().contains_key("kubevirt.io/migrationTargetNodeName"));
    }

    async fn migration_that_is_deleted(&self, source: &Pod) {
        let migration = self.migrate("deleted").await;
        let target = self.target(&migration, source).await;
        self.held(&migration.name_any()).await;
        let sidecar = ["hook-sidecar-0"];
        self.n2.run(&target, &sidecar).await.unwrap();
        self.held(&migration.name_any()).await;
        self.untouched().await;
        let delete = DeleteParams::default();
        self.migrations().delete("deleted", &delete).await.unwrap();
        let leaves = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
        until(self.pods(), &target.name_any(), SOON, "deleted", leaves)
            .await
            .unwrap();
        self.gone("deleted").await;
        self.n2.end(&target).await.unwrap();
        self.untouched().await;
    }

    /// It stays in `Scheduling`, and its target on its node.
    async fn held(&self, migration: &str) {
        tokio::time::sleep(A_WHILE).await;
        let migration = self.migrations().get(migration).await.unwrap();
        assert_eq!(at(&migration, "/status/phase"), "Scheduling");
    }

    async fn gone(&self, migration: &str) {
        let gone = kube::runtime::wait::await_condition(
            self.migrations(),
            migration,
            |m: Option<&DynamicObject>| m.is_none(),
        );
        tokio::time::timeout(SOON, gone).await.unwrap().unwrap();
    }

    async fn migration_whose_target_is_deleted(&self, source: &Pod) {
        let migration = self.migrate("lost").await;
        let target = self.target(&migration, source).await;
        self.n2.end(&target).await.unwrap();
        self.until_phase("lost", "Failed").await;
        self.untouched().await;
    }

    async fn migration(&self, source: &Pod) {
        let migration = self.migrate("moves").await;
        let target = self.target(&migration, source).await;
        self.hand_over(&migration, source, &target).await;
        self.finish("moves", &target).await;
    }

    /// The target's pod runs, and the VM is being sent there.
    async fn hand_over(&self, migration: &DynamicObject, source: &Pod, target: &Pod) {
        let name = migration.name_any();
        self.n2.run(target, &[]).await.unwrap();
        self.until_phase(&name, "PreparingTarget").await;
        let vmi = self
            .until_vmi("handed to its target", |vmi| {
                at(vmi, "/status/migrationState/targetNode") == "n2"
            })
            .await;
        assert_eq!(vmi.labels()["kubevirt.io/migrationTargetNodeName"], "n2");
        let state = at(&vmi, "/status/migrationState");
        let expected = json!({
            "migrationUid": migration.uid(), "sourceNode": "n1", "sourcePod": source.name_any(),
            "targetNode": "n2", "targetPod": target.name_any(),
        });
        for (field, value) in expected.as_object().unwrap() {
            assert_eq!(&state[field], value, "{field}");
        }
        let ports = json!({ "49152": 49152 });
        self.report_migration(
            &self.n2,
            json!({ "targetNodeAddress": "10.0.0.2", "targetDirectMigrationNodePorts": ports }),
        )
        .await;
        self.until_phase(&name, "TargetReady").await;
        let started = json!({ "startTimestamp": "2026-01-01T00:00:00Z" });
        self.report_migration(&self.n1, started).await;
        self.until_phase(&name, "Running").await;
    }

    async fn report_migration(&self, node: &StandIn, state: Value) {
        let status = json!({ "status": { "migrationState": state } });
        node.report(VM, status).await.unwrap();
    }

    /// The VM runs at its target.
    async fn finish(&self, name: &str, target: &Pod) {
        self.report_migration(&self.n2, json!({ "targetNodeDomainDetected": true, "targetNodeDomainReadyTimestamp": "2026-01-01T00:00:09Z" })).await;
        let marked = |pod: &Pod| {
            pod.annotations()
                .contains_key("kubevirt.io/migration-target-ready-timestamp")
        };
        until(self.pods(), &target.name_any(), SOON, "marked", marked)
            .await
            .unwrap();
        self.report_migration(
            &self.n2,
            json!({ "endTimestamp": "2026-01-01T00:00:10Z", "completed": true }),
        )
        .await;
        self.until_phase(name, "Succeeded").await;
    }
}

/// A condition of a VMI; null where it has none of that type.
fn condition<'a>(vmi: &'a DynamicObject, type_: &str) -> &'a Value {
    let conditions = at(vmi, "/status/conditions").as_array().into_iter().flatten();
    let mut conditions = conditions.filter(|condition| condition["type"] == type_);
    conditions.next().unwrap_or(&Value::Null)
}
