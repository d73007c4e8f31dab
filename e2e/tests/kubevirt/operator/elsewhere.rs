//! Migrations to other clusters and from them, which KubeVirt has behind a feature gate.

use super::unfit::one;
use super::*;

/// A VM without a NIC of ours, at first.
const PLAIN: &str = "plain";

fn migration(name: &str, vm: &str, direction: &str) -> DynamicObject {
    let there = json!({ "migrationID": "m", "connectURL": "192.0.2.1:9185" });
    let here = json!({ "migrationID": "m" });
    let mut spec = json!({ "vmiName": vm });
    spec[direction] = if direction == "sendTo" { there } else { here };
    serde_json::from_value(json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration",
        "metadata": { "name": name }, "spec": spec,
    }))
    .unwrap()
}

impl Play {
    /// The API server refuses it, of our VMs and of no other's. Of one that was there before the NIC an event and the doctor tell.
    pub(super) async fn no_vm_of_ours_goes_to_another_cluster(&self) {
        let (client, create) = (&self.stage.client, PostParams::default());
        let gate = json!({ "developerConfiguration": { "featureGates": ["DecentralizedLiveMigration"] } });
        configure(client.clone(), gate).await.unwrap();
        let mut spec = one();
        spec["domain"]["devices"] = json!({ "autoattachPodInterface": false });
        spec.as_object_mut().unwrap().remove("networks");
        let vmi = json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": { "name": PLAIN }, "spec": spec,
        });
        let vmi = serde_json::from_value(vmi).unwrap();
        self.stage.vmis().create(&create, &vmi).await.unwrap();

        // KubeVirt has to hear of its gate first, which shows only so.
        let end = Instant::now() + SOON;
        let migrations = self.stage.migrations();
        while let Err(refusal) = migrations
            .create(&create, &migration("away", PLAIN, "sendTo"))
            .await
        {
            let refusal = refusal.to_string();
            assert!(refusal.contains("feature gate is not enabled"), "{refusal}");
            assert!(Instant::now() < end, "{refusal}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        for direction in ["sendTo", "receive"] {
            let refused = migrations
                .create(&create, &migration("ours", VM, direction))
                .await;
            let refusal = refused.unwrap_err().to_string();
            for words in [
                "kubevirt.hybridnic.io",
                "the VM web has hybrid NICs",
                "cannot migrate to or from another cluster",
                "Migrate it within its cluster",
                "delete the VmHybridNics that you have made for it",
            ] {
                assert!(refusal.contains(words), "{direction}: {refusal}");
            }
        }

        write_nic(client, "plain-fast", PLAIN).await;
        let words = "cannot migrate to or from another cluster";
        event(client, NAMESPACE, "away", reasons::MIGRATION_UNSUPPORTED, words).await;
        let found = self.doctor("kubevirt-migrations").await;
        assert!(
            matches!(&found[..], [(level, message)] if level == "fail" && message.contains(words)),
            "{found:?}"
        );

        let delete = DeleteParams::default();
        migrations.delete("away", &delete).await.unwrap();
        self.stage.gone("away").await;
        self.nics().delete("plain-fast", &delete).await.unwrap();
        self.stage.vmis().delete(PLAIN, &delete).await.unwrap();
    }
}
