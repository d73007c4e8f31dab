//! What a user is shown, of a real KubeVirt's objects.

use hybridnic_e2e::world::{binary, repository};
use k8s_openapi::api::events::v1::Event;
use tokio::process::Command;

use super::*;

impl Play {
    /// The VM of the examples is one that KubeVirt takes; in another namespace than the test's VM, which has its name.
    pub(super) async fn the_example_is_taken(&self) {
        let example = repository("deploy/examples/kubevirt-vm.yaml");
        let example = example.to_str().unwrap();
        let apply = [
            "apply",
            "--dry-run=server",
            "--validate=strict",
            "-n",
            chart::NAMESPACE,
            "-f",
            example,
        ];
        let output = self.stage.cluster.kubectl(&apply).await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("Warning"), "{said}");
    }

    /// KubeVirt takes it, and so only its events say that its pod would wait for ever.
    pub(super) async fn sriov_on_a_network_of_ours_is_told(&self) {
        let mut spec = launcher::spec();
        spec["domain"]["devices"]["interfaces"] = json!([{ "name": "fast", "sriov": {} }]);
        spec["networks"] = json!([{ "name": "fast", "multus": { "networkName": "fast" } }]);
        let vm = json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": { "name": "wrong" },
            "spec": { "runStrategy": "Halted", "template": { "spec": spec } },
        });
        let vms = Kind::VirtualMachine.api(self.stage.client.clone(), NAMESPACE);
        let vm = serde_json::from_value(vm).unwrap();
        vms.create(&PostParams::default(), &vm).await.unwrap();
        let events: Api<Event> = Api::namespaced(self.stage.client.clone(), NAMESPACE);
        let end = Instant::now() + SOON;
        let note = loop {
            let all = events.list(&ListParams::default()).await.unwrap();
            let is = |event: &Event| {
                event.reason.as_deref() == Some(reasons::INTERFACE_UNFIT)
                    && event
                        .regarding
                        .as_ref()
                        .is_some_and(|of| of.name.as_deref() == Some("wrong"))
            };
            if let Some(event) = all.items.into_iter().find(is) {
                break event.note.unwrap_or_default();
            }
            assert!(Instant::now() < end, "no event\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        assert!(note.contains("the interface fast has `sriov: {}`"), "{note}");
        vms.delete("wrong", &DeleteParams::default()).await.unwrap();
    }

    /// The doctor reads what KubeVirt's API server gives it, and finds it well.
    pub(super) async fn the_doctor_finds_kubevirt_well(&self) {
        let output = Command::new(binary("kubectl-hybridnic").unwrap())
            .env("KUBECONFIG", self.stage.cluster.kubeconfig_admin())
            .args(["doctor", "-o", "json"])
            .kill_on_drop(true)
            .output()
            .await
            .unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let of = |check: &str| -> Vec<(&str, &str)> {
            let all = report["findings"].as_array().unwrap().iter();
            all.filter(|finding| finding["check"] == check)
                .map(|finding| {
                    (
                        finding["level"].as_str().unwrap(),
                        finding["message"].as_str().unwrap(),
                    )
                })
                .collect()
        };
        let sidecar = format!("registered, with the sidecar {SIDECAR}");
        assert_eq!(of("binding"), [("ok", sidecar.as_str())]);
        assert_eq!(of("multus"), [("ok", "definitions as they should be: 1")]);
        assert_eq!(of("kubevirt-vms"), [("ok", "1 have their NICs")]);
        assert_eq!(of("kubevirt-migrations"), []);
        // Without virt-operator nobody writes the version down.
        assert_eq!(of("kubevirt").len(), 1, "{report}");
    }
}
