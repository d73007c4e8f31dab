//! What a user is shown, of a real KubeVirt's objects.

use hybridnic_e2e::world::{binary, repository};
use tokio::process::Command;

use super::*;

impl Play {
    /// `kubectl hybridnic` with these arguments, as an administrator runs it.
    pub(super) fn plugin(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("kubectl-hybridnic").unwrap());
        command
            .env("KUBECONFIG", self.stage.cluster.kubeconfig_admin())
            .args(args)
            .kill_on_drop(true);
        command
    }

    /// What it prints, where all goes well.
    pub(super) async fn shown(&self, args: &[&str]) -> String {
        let output = self.plugin(args).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the doctor finds by one of its checks: the level and the words.
    pub(super) async fn doctor(&self, check: &str) -> Vec<(String, String)> {
        // It fails where something is wrong, and of this cluster a lot is not there.
        let output = self.plugin(&["doctor", "-o", "json"]).output().await.unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let all = report["findings"].as_array().unwrap().iter();
        let word = |finding: &Value, of: &str| finding[of].as_str().unwrap_or_default().to_owned();
        all.filter(|finding| finding["check"] == check)
            .map(|finding| (word(finding, "level"), word(finding, "message")))
            .collect()
    }

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
        self.stage.create_vm(NAMESPACE, "wrong", "Halted", spec).await;
        let words = "the interface fast has `sriov: {}`";
        event(
            &self.stage.client,
            NAMESPACE,
            "wrong",
            reasons::INTERFACE_UNFIT,
            words,
        )
        .await;
        self.stage.delete_vm(NAMESPACE, "wrong").await;
    }

    /// The doctor reads what KubeVirt's API server gives it, and finds it well.
    pub(super) async fn the_doctor_finds_kubevirt_well(&self) {
        let ok = |message: &str| [("ok".to_owned(), message.to_owned())];
        let sidecar = format!("registered, with the sidecar {SIDECAR}");
        assert_eq!(self.doctor("binding").await, ok(&sidecar));
        assert_eq!(
            self.doctor("multus").await,
            ok("definitions as they should be: 1")
        );
        assert_eq!(self.doctor("kubevirt-vms").await, ok("1 have their NICs"));
        assert_eq!(self.doctor("kubevirt-migrations").await, []);
        // Without virt-operator nobody writes the version down.
        assert_eq!(self.doctor("kubevirt").await.len(), 1);
    }

    /// The NIC's page and the table of all say where it is, with KubeVirt's names.
    pub(super) async fn is_shown_at(&self, node: &str, migration: &str, how: &str) {
        let page = self.shown(&["nic", "web-fast"]).await;
        for part in [
            "web (kubevirt)".to_owned(),
            format!("Node side ({node})"),
            format!("Last migration {migration}"),
            format!("n1 → n2  {how}"),
        ] {
            assert!(page.contains(&part), "{part}: {page}");
        }
        let table = self.shown(&["top", "--once"]).await;
        let line = table.lines().find(|line| line.contains("web-fast"));
        let words: Vec<_> = line.unwrap_or_default().split_whitespace().collect();
        for part in ["web", "fast", node] {
            assert!(words.contains(&part), "{part}: {table}");
        }
    }
}
