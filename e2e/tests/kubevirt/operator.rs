//! Our operator beside KubeVirt's own, with the rights that the chart gives: from a VM's interface to its NIC, and through its
//! migrations. The agents are stand-ins: they say what the operator wants to hear, when the test lets them.

mod users;

use std::fs::File;
use std::process::{Child, Command, Stdio};

use hybridnic_api::conditions::{self, reasons, types};
use hybridnic_api::v1alpha1::{
    AttachmentState, Goal, HybridNetwork, HybridNode, MigrationState, MigrationStep, NicAttachment, NicPhase,
    Placement, Runtime, VmHybridNic,
};
use hybridnic_e2e::chart;
use hybridnic_e2e::kubevirt::NAMESPACE as KUBEVIRT;
use hybridnic_e2e::world::binary;
use k8s_openapi::api::core::v1::Node;
use kube::api::ApiResource;
use kube::core::GroupVersionKind;

use super::*;

const REGISTERS: &str = "kubevirt.registerBinding=true";
const SIDECAR: &str = "localhost/hybridnic-sidecar:none";
const NICS: [&str; 2] = ["web-fast", "web-other"];

/// Dropped, it is killed.
struct Operator(Child);

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Play {
    // Dropped first.
    operator: Option<Operator>,
    stage: Stage,
    dir: TempDir,
}

#[tokio::test(flavor = "multi_thread")]
async fn our_operator_beside_kubevirt() {
    let began = Instant::now();
    let say = |what: &str| eprintln!("--- {:5.1} s  {what}", began.elapsed().as_secs_f64());
    let dir = TempDir::new().unwrap();
    let stage = Stage::start(&dir, say).await;
    chart::install_without_pods(&stage.cluster).await.unwrap();
    let mut play = Play {
        operator: None,
        stage,
        dir,
    };
    play.nodes_and_a_network().await;
    play.stage.vm().await;
    play.starts(&[]).await;
    play.a_vm_has_nics_before_it_runs_and_they_say_what_is_missing()
        .await;
    say("each interface has a NIC, which says how to register the binding");
    play.registers_the_binding().await;
    say("the binding is registered");
    let source = play.launcher_is_attached_before_it_runs().await;
    say("the launcher is attached as soon as it has a node");
    play.stage.runs(&source).await;
    play.the_example_is_taken().await;
    play.sriov_on_a_network_of_ours_is_told().await;
    play.the_doctor_finds_kubevirt_well().await;
    say("what a user sees is as it should be");
    play.a_migration_that_is_deleted(&source).await;
    say("a migration that was deleted while its target waited has given the VFs back");
    play.a_migration_whose_target_is_gone(&source).await;
    say("a migration whose target was deleted has given the VFs back");
    play.a_migration(&source).await;
    say("a migration has gone from gate to gate");
}

impl Play {
    /// Two nodes with an agent each, and a network.
    async fn nodes_and_a_network(&self) {
        let client = &self.stage.client;
        let network = json!({
            "metadata": { "name": "fast" },
            "spec": { "uplinks": [{ "pfNames": ["ens*"] }], "macs": "Any" },
        });
        Api::<HybridNetwork>::all(client.clone())
            .create(&PostParams::default(), &serde_json::from_value(network).unwrap())
            .await
            .unwrap();
        for name in ["n1", "n2"] {
            let condition = json!({
                "type": "Ready", "status": "True", "reason": "Test", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z", "lastHeartbeatTime": "2026-01-01T00:00:00Z",
            });
            let ready = Patch::Merge(json!({ "status": { "conditions": [condition] } }));
            Api::<Node>::all(client.clone())
                .patch_status(name, &PatchParams::default(), &ready)
                .await
                .unwrap();
            let nodes = Api::<HybridNode>::all(client.clone());
            let node = HybridNode::new(name, hybridnic_api::v1alpha1::HybridNodeSpec::default());
            nodes.create(&PostParams::default(), &node).await.unwrap();
            let status = json!({ "status": { "agentVersion": env!("CARGO_PKG_VERSION") } });
            nodes
                .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
                .await
                .unwrap();
        }
    }

    async fn starts(&mut self, options: &[&str]) {
        let login = self
            .stage
            .cluster
            .login_service_account(chart::NAMESPACE, chart::OPERATOR, None)
            .await
            .unwrap();
        let kubeconfig = self.dir.path().join("operator.kubeconfig");
        login.write(&kubeconfig).unwrap();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("operator.log"))
            .unwrap();
        let child = Command::new(binary("hybridnic-operator").unwrap())
            .env("KUBECONFIG", kubeconfig)
            .env("HYBRIDNIC_LOG", "info,hybridnic_operator=debug")
            .args(["--lease-namespace", chart::NAMESPACE])
            .args(["--http-address", "127.9.8.7:0"])
            .args(["--kubevirt", "--kubevirt-sidecar", SIDECAR])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.operator = Some(Operator(child));
    }

    fn logs(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("operator.log")).unwrap_or_default();
        let from = log.len().saturating_sub(6000);
        log.get(from..).unwrap_or(&log).to_owned()
    }

    fn nics(&self) -> Api<VmHybridNic> {
        Api::namespaced(self.stage.client.clone(), NAMESPACE)
    }

    fn attachments(&self) -> Api<NicAttachment> {
        Api::namespaced(self.stage.client.clone(), NAMESPACE)
    }

    async fn until_nic(&self, name: &str, what: &str, is: impl Fn(&VmHybridNic) -> bool) -> VmHybridNic {
        match until(self.nics(), name, SOON, what, is).await {
            Ok(nic) => nic,
            Err(error) => panic!("{error}\n{}", self.logs()),
        }
    }

    /// Waits until both NICs are attached to a pod with this goal.
    async fn until_goal(&self, pod: &Pod, goal: Goal) -> Vec<NicAttachment> {
        self.until_all(pod, &goal.to_string(), |a| a.spec.goal == goal)
            .await
    }

    /// Waits until both NICs' attachments to a pod are so.
    async fn until_all(
        &self,
        pod: &Pod,
        what: &str,
        is: impl Fn(&NicAttachment) -> bool,
    ) -> Vec<NicAttachment> {
        let mut all = Vec::new();
        for nic in NICS {
            let name = hybridnic_api::names::attachment_name(nic, &pod.uid().unwrap());
            let found = until(self.attachments(), &name, SOON, what, &is).await;
            match found {
                Ok(found) => all.push(found),
                Err(error) => panic!("{error}\n{}", self.logs()),
            }
        }
        all
    }

    /// The agents of a pod's NICs say that these are so.
    async fn say(&self, pod: &Pod, state: AttachmentState, migration: Option<(MigrationState, bool)>) {
        for nic in NICS {
            let name = hybridnic_api::names::attachment_name(nic, &pod.uid().unwrap());
            let attachment = self.attachments().get(&name).await.unwrap();
            let path = match state {
                AttachmentState::FastPath => "FastPath",
                AttachmentState::Standby => "Standby",
                _ => "None",
            };
            let order = attachment.spec.migration.as_ref();
            let report = migration.zip(order).map(
                |((state, kept), order)| json!({ "uid": order.migration.uid, "state": state, "kept": kept }),
            );
            let status = json!({ "status": {
                "observedGeneration": attachment.metadata.generation, "state": state, "path": path, "migration": report,
                "guest": {}, "timeline": [],
            }});
            self.attachments()
                .patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
                .await
                .unwrap();
            // As an agent keeps what it holds.
            let held: Vec<_> = (state != AttachmentState::Detached)
                .then_some(hybridnic_api::names::ATTACHMENT_FINALIZER)
                .into_iter()
                .collect();
            let held = json!({ "metadata": { "finalizers": held } });
            self.attachments()
                .patch(&name, &PatchParams::default(), &Patch::Merge(held))
                .await
                .unwrap();
        }
    }

    async fn a_vm_has_nics_before_it_runs_and_they_say_what_is_missing(&self) {
        for name in NICS {
            let nic = self
                .until_nic(name, "told what is missing", |nic| {
                    nic.status
                        .as_ref()
                        .and_then(|status| conditions::find(&status.conditions, types::READY))
                        .is_some_and(|ready| ready.reason == reasons::KUBEVIRT_NOT_READY)
                })
                .await;
            assert_eq!(nic.owner_references()[0].kind, "VirtualMachine");
            let status = nic.status.unwrap();
            assert_eq!(status.runtime, Some(Runtime::Kubevirt));
            let ready = conditions::find(&status.conditions, types::READY).unwrap();
            let command = "kubectl patch kubevirt kubevirt -n kubevirt --type merge -p '{";
            assert!(ready.message.contains(command), "{}", ready.message);
        }
        let asked = self.nics().get("web-fast").await.unwrap().spec.mac;
        assert_eq!(
            asked.as_deref(),
            Some("02:00:00:00:aa:01"),
            "what the VM asks for"
        );
        // The definition is there in both namespaces, and nowhere else.
        let kind = GroupVersionKind::gvk("k8s.cni.cncf.io", "v1", "NetworkAttachmentDefinition");
        let kind = ApiResource::from_gvk_with_plural(&kind, "network-attachment-definitions");
        for namespace in [NAMESPACE, chart::NAMESPACE] {
            let api: Api<DynamicObject> = Api::namespaced_with(self.stage.client.clone(), namespace, &kind);
            let nad = until(api, "fast", SOON, "made", |_| true).await.unwrap();
            let config: Value = serde_json::from_str(at(&nad, "/spec/config").as_str().unwrap()).unwrap();
            assert_eq!(
                config,
                json!({ "cniVersion": "1.0.0", "type": "hybridnic", "name": "fast", "network": "fast" })
            );
            assert_eq!(
                nad.annotations()["k8s.v1.cni.cncf.io/resourceName"],
                "hybridnic.io/fast"
            );
        }
        let all: Api<DynamicObject> = Api::all_with(self.stage.client.clone(), &kind);
        assert_eq!(all.list(&ListParams::default()).await.unwrap().items.len(), 2);
    }

    async fn registers_the_binding(&mut self) {
        let values = [REGISTERS];
        chart::install_without_pods_with(&self.stage.cluster, &values)
            .await
            .unwrap();
        self.operator = None;
        self.starts(&["--kubevirt-register"]).await;
        let all = Kind::KubeVirt.api(self.stage.client.clone(), KUBEVIRT);
        let binding = "/spec/configuration/network/binding/hybridnic";
        let registered = until(all, "kubevirt", SOON, "registered", |kubevirt| {
            at(kubevirt, binding)["sidecarImage"] == SIDECAR
        });
        let registered = registered.await.unwrap();
        assert_eq!(at(&registered, binding)["domainAttachmentType"], "tap");
    }

    async fn launcher_is_attached_before_it_runs(&self) -> Pod {
        let pod = launcher_with(&self.stage.client, "kubevirt.io=virt-launcher", SOON)
            .await
            .unwrap();
        self.stage.n1.take(&pod.name_any()).await.unwrap();
        for (attachment, interface) in self
            .until_goal(&pod, Goal::FastPath)
            .await
            .iter()
            .zip(["fast", "other"])
        {
            let spec = &attachment.spec;
            assert_eq!((spec.vm.runtime(), spec.vm.name()), (Runtime::Kubevirt, VM));
            assert_eq!(spec.placement, Some(Placement::Interface(interface.to_owned())));
            assert_eq!((spec.node_name.as_str(), spec.migration.as_ref()), ("n1", None));
        }
        self.say(&pod, AttachmentState::FastPath, None).await;
        for name in NICS {
            let is = |nic: &VmHybridNic| nic.status.as_ref().is_some_and(|s| s.phase == NicPhase::FastPath);
            self.until_nic(name, "on its VF", is).await;
        }
        let shown = self
            .stage
            .cluster
            .kubectl(&["get", "vhn", "-n", NAMESPACE])
            .await
            .unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        let line = shown.lines().find(|line| line.starts_with("web-fast")).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words[..4], ["web-fast", VM, "kubevirt", "fast"], "{shown}");
        pod
    }

    /// A migration whose target waits for its links: the source is on its standbys, and the gate is closed.
    async fn held(&self, name: &str, source: &Pod) -> (DynamicObject, Pod) {
        let migration = self.stage.migrate(name).await;
        let target = self.stage.target(&migration, source).await;
        for attachment in self.until_goal(&target, Goal::Reserved).await {
            let order = attachment.spec.migration.unwrap();
            assert_eq!(order.step, MigrationStep::Watch);
            assert_eq!(Some(order.migration.uid), migration.uid());
            assert_eq!(order.nics, NICS);
        }
        for attachment in self.until_goal(source, Goal::FastPath).await {
            assert!(
                attachment.spec.migration.is_some(),
                "it is watched from the start"
            );
        }
        self.say(
            source,
            AttachmentState::FastPath,
            Some((MigrationState::Prepared, true)),
        )
        .await;
        self.say(&target, AttachmentState::Reserved, None).await;
        self.until_goal(source, Goal::Standby).await;
        self.stage.held(name).await;
        (migration, target)
    }

    /// The source's agents say that it runs the VM, on its standbys, and sends it nowhere.
    async fn gives_back(&self, source: &Pod) {
        let asked = |a: &NicAttachment| {
            let order = a.spec.migration.as_ref();
            order.is_some_and(|order| order.step == MigrationStep::Cancel)
        };
        self.until_all(source, "asked once more", asked).await;
        self.say(
            source,
            AttachmentState::Standby,
            Some((MigrationState::Cancelled, true)),
        )
        .await;
        for attachment in self.until_goal(source, Goal::FastPath).await {
            assert_eq!(attachment.spec.migration, None);
        }
        self.say(source, AttachmentState::FastPath, None).await;
        for name in NICS {
            let is = |nic: &VmHybridNic| nic.status.as_ref().is_some_and(|s| s.phase == NicPhase::FastPath);
            self.until_nic(name, "on its VF again", is).await;
        }
    }

    /// The agents at the target say that nothing is left.
    async fn is_detached(&self, target: &Pod) {
        self.until_goal(target, Goal::Detached).await;
        self.say(target, AttachmentState::Detached, None).await;
        for nic in NICS {
            let name = hybridnic_api::names::attachment_name(nic, &target.uid().unwrap());
            let gone = kube::runtime::wait::await_condition(
                self.attachments(),
                &name,
                |a: Option<&NicAttachment>| a.is_none(),
            );
            tokio::time::timeout(SOON, gone).await.unwrap().unwrap();
        }
    }

    async fn a_migration_that_is_deleted(&self, source: &Pod) {
        let (_, target) = self.held("deleted", source).await;
        self.stage
            .migrations()
            .delete("deleted", &DeleteParams::default())
            .await
            .unwrap();
        self.stage.gone("deleted").await;
        self.stage.n2.end(&target).await.unwrap();
        self.until_goal(&target, Goal::Detached).await;
        self.gives_back(source).await;
        self.is_detached(&target).await;
    }

    async fn a_migration_whose_target_is_gone(&self, source: &Pod) {
        let (_, target) = self.held("lost", source).await;
        self.say(
            source,
            AttachmentState::Standby,
            Some((MigrationState::Prepared, true)),
        )
        .await;
        // The gate is open.
        self.until_goal(&target, Goal::Standby).await;
        self.stage.n2.end(&target).await.unwrap();
        self.stage.until_phase("lost", "Failed").await;
        self.gives_back(source).await;
        self.is_detached(&target).await;
        let failed = |nic: &VmHybridNic| {
            let last = nic
                .status
                .as_ref()
                .and_then(|status| status.last_migration.as_ref());
            last.is_some_and(|last| last.name == "lost" && last.result.as_deref() == Some("Failed"))
        };
        self.until_nic("web-fast", "told of it", failed).await;
    }

    async fn a_migration(&self, source: &Pod) {
        let (migration, target) = self.held("moves", source).await;
        self.say(
            source,
            AttachmentState::Standby,
            Some((MigrationState::Prepared, true)),
        )
        .await;
        self.until_goal(&target, Goal::Standby).await;
        self.stage.hand_over(&migration, source, &target).await;
        self.say(
            source,
            AttachmentState::Standby,
            Some((MigrationState::Active, false)),
        )
        .await;
        self.say(
            &target,
            AttachmentState::Reserved,
            Some((MigrationState::Listening, false)),
        )
        .await;
        // It has come, and KubeVirt does not know it yet.
        self.say(
            &target,
            AttachmentState::Standby,
            Some((MigrationState::Completed, false)),
        )
        .await;
        self.until_goal(&target, Goal::FastPath).await;
        self.until_goal(source, Goal::Detached).await;
        self.say(
            &target,
            AttachmentState::FastPath,
            Some((MigrationState::Completed, false)),
        )
        .await;
        self.stage.finish("moves", &target).await;
        self.stage.n1.end(source).await.unwrap();
        self.say(
            source,
            AttachmentState::Detached,
            Some((MigrationState::Lost, false)),
        )
        .await;
        for name in NICS {
            let nic = self
                .until_nic(name, "at its target", |nic| {
                    nic.status.as_ref().is_some_and(|status| {
                        status.phase == NicPhase::FastPath && status.node_name.as_deref() == Some("n2")
                    })
                })
                .await;
            let last = nic.status.unwrap().last_migration.unwrap();
            assert_eq!(
                (last.name.as_str(), last.from.as_str(), last.to.as_str()),
                ("moves", "n1", "n2")
            );
            assert_eq!(last.result.as_deref(), Some("Succeeded"));
        }
        for attachment in self.until_goal(&target, Goal::FastPath).await {
            let name = attachment.name_any();
            let is = |a: &NicAttachment| a.spec.migration.is_none();
            until(self.attachments(), &name, SOON, "without an order", is)
                .await
                .unwrap();
        }
    }
}
