//! What the cluster lacks: a NIC of KubeVirt's says what, and what to do, and goes on by itself once it is there.

use super::*;

/// How long it may take to find what was installed: it is looked for every ten seconds at most.
const FOUND: Duration = Duration::from_secs(30);

/// Where there is no KubeVirt. The operator has asked for its kinds in vain.
pub(super) async fn kubevirt(cluster: &ControlPlane) {
    let client = cluster.client_admin();
    network(&client, "fast", json!({})).await;
    write_nic(&client, "early", "web").await;
    let nics: Api<VmHybridNic> = Api::namespaced(client.clone(), NAMESPACE);
    let words = [
        "the cluster has no KubeVirt, as far as is known",
        "install it first",
    ];
    let told = |nic: &VmHybridNic| says(nic, reasons::KUBEVIRT_NOT_READY, &words);
    until(
        nics.clone(),
        "early",
        SOON,
        "told that there is no KubeVirt",
        told,
    )
    .await
    .unwrap();
    event(&client, NAMESPACE, "early", reasons::KUBEVIRT_NOT_READY, words[1]).await;
    // Or it would be the NIC of both interfaces of the VM to come.
    nics.delete("early", &DeleteParams::default()).await.unwrap();
    let gone = kube::runtime::wait::await_condition(nics, "early", |nic: Option<&VmHybridNic>| nic.is_none());
    tokio::time::timeout(SOON, gone).await.unwrap().unwrap();
}

impl Play {
    /// It is not served, whatever else is there.
    pub(super) async fn a_kubevirt_that_is_too_old_is_told(&self) {
        let kubevirts = Kind::KubeVirt.api(self.stage.client.clone(), KUBEVIRT);
        // What virt-operator writes down.
        let version = |version: Value| {
            let kubevirts = kubevirts.clone();
            async move {
                let patch = Patch::Merge(json!({ "status": { "observedKubeVirtVersion": version } }));
                kubevirts
                    .patch_status("kubevirt", &PatchParams::default(), &patch)
                    .await
                    .unwrap();
            }
        };
        version(json!("v1.7.2")).await;
        let words = [
            "KubeVirt is of version v1.7.2",
            "tried with v1.8 and newer",
            "upgrade KubeVirt",
        ];
        let told = |nic: &VmHybridNic| says(nic, reasons::KUBEVIRT_NOT_READY, &words);
        self.until_nic("web-fast", "told that KubeVirt is too old", told)
            .await;
        version(Value::Null).await;
        let well = |nic: &VmHybridNic| says(nic, reasons::KUBEVIRT_NOT_READY, &["register it"]);
        self.until_nic("web-fast", "back at the missing binding", well)
            .await;
    }

    /// Its kind is not there; then it is, and so are the definitions of ours.
    pub(super) async fn multus_is_missed_and_then_found(&self) {
        let words = [
            "the cluster has no Multus, as far as is known",
            "install it first",
        ];
        for name in NICS {
            let told = |nic: &VmHybridNic| says(nic, reasons::KUBEVIRT_NOT_READY, &words);
            self.until_nic(name, "told that there is no Multus", told).await;
        }
        self.stage.install_multus(&self.dir).await;
        // The definition is there in both namespaces, and nowhere else.
        let kind = GroupVersionKind::gvk("k8s.cni.cncf.io", "v1", "NetworkAttachmentDefinition");
        let kind = ApiResource::from_gvk_with_plural(&kind, "network-attachment-definitions");
        for namespace in [NAMESPACE, chart::NAMESPACE] {
            let api: Api<DynamicObject> = Api::namespaced_with(self.stage.client.clone(), namespace, &kind);
            let nad = until(api, "fast", FOUND, "made", |_| true).await.unwrap();
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
        // KubeVirt has looked for them in vain, and waits longer each time; when its object changes it looks at once.
        let again = Patch::Merge(json!({ "metadata": { "annotations": { "again": "now" } } }));
        let vmis = self.stage.vmis();
        vmis.patch(VM, &PatchParams::default(), &again).await.unwrap();
    }
}
