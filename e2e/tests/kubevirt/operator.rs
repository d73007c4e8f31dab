//! Our operator beside KubeVirt's own, with the rights that the chart gives: from a VM's interface to its NIC, and through its
//! migrations. The agents are stand-ins: they say what the operator wants to hear, when the test lets them.

mod elsewhere;
mod missing;
mod moves;
mod unfit;
mod users;
mod written;

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use hybridnic_api::conditions::{self, reasons, types};
use hybridnic_api::v1alpha1::{
    AttachmentState, Goal, HybridNetwork, HybridNode, MigrationState, MigrationStep, NicAttachment, NicPhase,
    Placement, Runtime, VmHybridNic,
};
use hybridnic_e2e::chart;
use hybridnic_e2e::kubevirt::NAMESPACE as KUBEVIRT;
use hybridnic_e2e::world::binary;
use hybridnic_net::MacAddr;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::events::v1::Event;
use kube::api::ApiResource;
use kube::core::GroupVersionKind;

use super::*;

const REGISTERS: &str = "kubevirt.registerBinding=true";
const SIDECAR: &str = "localhost/hybridnic-sidecar:none";
const NICS: [&str; 2] = ["web-fast", "web-other"];
const LOG: &str = "operator.log";

/// Dropped, it is killed.
struct Operator(Child);

impl Operator {
    /// Starts it, with the rights that the chart gives.
    async fn start(cluster: &ControlPlane, dir: &Path, options: &[&str]) -> Self {
        let login = cluster
            .login_service_account(chart::NAMESPACE, chart::OPERATOR, None)
            .await
            .unwrap();
        let kubeconfig = dir.join("operator.kubeconfig");
        login.write(&kubeconfig).unwrap();
        let log = File::options()
            .create(true)
            .append(true)
            .open(dir.join(LOG))
            .unwrap();
        let child = Command::new(binary("hybridnic-operator").unwrap())
            .env("KUBECONFIG", kubeconfig)
            .env("HYBRIDNIC_LOG", "info,hybridnic_operator=debug")
            .args(["--lease-namespace", chart::NAMESPACE])
            .args(["--http-address", &Self::address(cluster).to_string()])
            .args(["--kubevirt", "--kubevirt-sidecar", SIDECAR])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Where it has its metrics: beside KubeVirt's programs, at an address that no other cluster on this machine has.
    fn address(cluster: &ControlPlane) -> SocketAddr {
        let [high, low] = cluster.port().to_be_bytes();
        (Ipv4Addr::new(127, high, low, 3), 8080).into()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Play {
    // Dropped first.
    operator: Option<Operator>,
    pub stage: Stage,
    dir: TempDir,
}

#[tokio::test(flavor = "multi_thread")]
async fn our_operator_beside_kubevirt() {
    let began = Instant::now();
    let say = |what: &str| eprintln!("--- {:5.1} s  {what}", began.elapsed().as_secs_f64());
    let dir = TempDir::new().unwrap();
    let cluster = control_plane(&dir).await;
    chart::install_without_pods(&cluster).await.unwrap();
    say("the control plane is ready");
    let operator = Operator::start(&cluster, dir.path(), &[]).await;
    missing::kubevirt(&cluster).await;
    say("a NIC says that there is no KubeVirt");
    let mut play = Play {
        operator: Some(operator),
        stage: Stage::on(cluster).await,
        dir,
    };
    say("KubeVirt is ready");
    play.nodes().await;
    play.stage.vm().await;
    play.a_vm_has_nics_before_it_runs_and_they_say_what_is_missing()
        .await;
    say("each interface has a NIC, which says how to register the binding");
    play.a_kubevirt_that_is_too_old_is_told().await;
    play.may_register().await;
    play.registers_the_binding().await;
    say("the binding is registered");
    play.multus_is_missed_and_then_found().await;
    say("each NIC says that there is no Multus, until there is");
    let source = play.launcher_is_attached_before_it_runs().await;
    say("the launcher is attached as soon as it has a node");
    play.stage.runs(&source).await;
    play.the_example_is_taken().await;
    play.sriov_on_a_network_of_ours_is_told().await;
    play.the_doctor_finds_kubevirt_well().await;
    say("what a user sees is as it should be");
    play.what_does_not_fit_is_told().await;
    play.an_interface_that_is_added_to_a_running_vm_is_told().await;
    say("what cannot be a hybrid NIC says why, and what to do");
    play.no_vm_of_ours_goes_to_another_cluster().await;
    say("a migration to another cluster is refused");
    let alone = play.a_nic_that_a_user_wrote_serves_a_vmi_without_a_vm().await;
    say("VMIs without a VM have their NICs");
    play.a_migration_that_is_deleted(&source).await;
    say("a migration that was deleted while its target waited has given the VFs back");
    play.a_migration_whose_target_is_gone(&source).await;
    say("a migration whose target was deleted has given the VFs back");
    play.a_migration(&source).await;
    say("a migration has gone from gate to gate");
    play.migrations_are_counted().await;
    play.what_a_vmi_owned_has_gone_with_it(&alone).await;
    say("what KubeVirt's migrations were is counted");
}

/// A network that may have any address, with more in its spec.
async fn network(client: &Client, name: &str, more: Value) {
    let mut spec = json!({ "uplinks": [{ "pfNames": ["ens*"] }], "macs": "Any" });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let network = json!({ "metadata": { "name": name }, "spec": spec });
    Api::<HybridNetwork>::all(client.clone())
        .create(&PostParams::default(), &serde_json::from_value(network).unwrap())
        .await
        .unwrap();
}

/// A NIC that a user writes for a VM of KubeVirt.
async fn write_nic(client: &Client, name: &str, vm: &str) {
    let nic = json!({
        "metadata": { "name": name }, "spec": { "network": "fast", "vm": { "kubevirt": { "name": vm } } },
    });
    Api::<VmHybridNic>::namespaced(client.clone(), NAMESPACE)
        .create(&PostParams::default(), &serde_json::from_value(nic).unwrap())
        .await
        .unwrap();
}

/// Why a NIC is not ready: its reason and its words.
fn why(nic: &VmHybridNic) -> (String, String) {
    let status = nic.status.as_ref();
    let ready = status.and_then(|status| conditions::find(&status.conditions, types::READY));
    ready.map_or_else(Default::default, |ready| {
        (ready.reason.clone(), ready.message.clone())
    })
}

/// Whether a NIC says all of this, for this reason.
fn says(nic: &VmHybridNic, reason: &str, words: &[&str]) -> bool {
    let (said, message) = why(nic);
    said == reason && words.iter().all(|word| message.contains(word))
}

/// Waits for an event of an object, with this reason and these words: there may be others.
async fn event(client: &Client, namespace: &str, of: &str, reason: &str, words: &str) {
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let is = |event: &Event| {
        let regards = event
            .regarding
            .as_ref()
            .and_then(|regarding| regarding.name.as_deref());
        let note = event.note.as_deref().unwrap_or_default();
        event.reason.as_deref() == Some(reason) && regards == Some(of) && note.contains(words)
    };
    let end = Instant::now() + SOON;
    loop {
        let all = events.list(&ListParams::default()).await.unwrap();
        if all.items.iter().any(is) {
            return;
        }
        let notes: Vec<_> = all
            .items
            .iter()
            .map(|event| (&event.reason, &event.note))
            .collect();
        assert!(
            Instant::now() < end,
            "no event {reason} of {of}: {words}; there are {notes:#?}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

impl Play {
    /// The operator, which has registered the binding, two nodes and the network.
    pub async fn serves(stage: Stage, dir: TempDir) -> Self {
        let mut play = Self {
            operator: None,
            stage,
            dir,
        };
        play.may_register().await;
        network(&play.stage.client, "fast", json!({})).await;
        play.nodes().await;
        play.registers_the_binding().await;
        play
    }

    /// The address that the operator has given to a NIC.
    pub async fn mac(&self, nic: &str) -> MacAddr {
        let has = |nic: &VmHybridNic| nic.status.as_ref().is_some_and(|status| status.mac.is_some());
        let nic = self.until_nic(nic, "given its address", has).await;
        nic.status.unwrap().mac.unwrap().parse().unwrap()
    }

    /// Two nodes with an agent each.
    async fn nodes(&self) {
        let client = &self.stage.client;
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

    /// Starts the operator, in place of another one.
    async fn starts(&mut self, options: &[&str]) {
        self.operator = None;
        self.operator = Some(Operator::start(&self.stage.cluster, self.dir.path(), options).await);
    }

    fn logs(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join(LOG)).unwrap_or_default();
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
            let words = ["kubectl patch kubevirt kubevirt -n kubevirt --type merge -p '{"];
            let told = |nic: &VmHybridNic| says(nic, reasons::KUBEVIRT_NOT_READY, &words);
            let nic = self.until_nic(name, "told what is missing", told).await;
            assert_eq!(nic.owner_references()[0].kind, "VirtualMachine");
            assert_eq!(nic.status.unwrap().runtime, Some(Runtime::Kubevirt));
        }
        let asked = self.nics().get("web-fast").await.unwrap().spec.mac;
        assert_eq!(
            asked.as_deref(),
            Some("02:00:00:00:aa:01"),
            "what the VM asks for"
        );
    }

    /// Installs the chart so that the operator may.
    async fn may_register(&self) {
        let values = [REGISTERS];
        chart::install_without_pods_with(&self.stage.cluster, &values)
            .await
            .unwrap();
    }

    async fn registers_the_binding(&mut self) {
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
}
