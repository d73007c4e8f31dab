//! Interfaces that cannot be hybrid NICs, each as KubeVirt takes it: the NIC says why, and what to do, by a condition and an event.

use super::*;

/// A namespace in which somebody has a definition of a network's name.
const SHOP: &str = "shop";
const THEIRS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: fast, namespace: shop}
spec: {config: '{"cniVersion": "1.0.0", "type": "bridge", "bridge": "br0"}'}
"#;

struct Case {
    vm: &'static str,
    namespace: &'static str,
    /// Some is known only of a VM that is to run.
    strategy: &'static str,
    change: fn(&mut Value),
    reason: &'static str,
    /// What is wrong, and what to do.
    words: [&'static str; 2],
}

const CASES: [Case; 4] = [
    Case {
        vm: "closed",
        namespace: NAMESPACE,
        strategy: "Halted",
        change: |spec| spec["networks"][0]["multus"]["networkName"] = json!("inner"),
        reason: reasons::NAMESPACE_NOT_ALLOWED,
        words: [
            "does not select the labels of namespace default",
            "label the namespace, or change the selector",
        ],
    },
    Case {
        vm: "twin",
        namespace: NAMESPACE,
        strategy: "Halted",
        change: |spec| spec["domain"]["devices"]["interfaces"][0]["macAddress"] = json!("02:00:00:00:aa:01"),
        reason: reasons::MAC_CONFLICT,
        words: ["02:00:00:00:aa:01 belongs to", "choose another address"],
    },
    Case {
        vm: "noacpi",
        namespace: NAMESPACE,
        strategy: "Always",
        change: |spec| spec["domain"]["features"] = json!({ "acpi": { "enabled": false } }),
        reason: reasons::INTERFACE_UNFIT,
        words: ["the VM noacpi has no ACPI", "remove spec.domain.features.acpi"],
    },
    Case {
        vm: "theirs",
        namespace: SHOP,
        strategy: "Always",
        change: |_| (),
        reason: reasons::INTERFACE_UNFIT,
        words: ["shop/fast is not hybridnic's", "rename it"],
    },
];

/// A VM with one interface of ours, whose address is ours too.
pub(super) fn one() -> Value {
    let mut spec = launcher::spec();
    spec["domain"]["devices"]["interfaces"] = json!([{ "name": "fast", "binding": { "name": "hybridnic" } }]);
    spec["networks"] = json!([{ "name": "fast", "multus": { "networkName": "fast" } }]);
    spec
}

impl Play {
    /// All at once: none waits for another.
    pub(super) async fn what_does_not_fit_is_told(&self) {
        let client = &self.stage.client;
        let team = json!({ "namespaceSelector": { "matchLabels": { "team": "a" } } });
        network(client, "inner", team).await;
        let path = self.dir.path().join("theirs.yaml");
        std::fs::write(&path, THEIRS).unwrap();
        self.stage.cluster.apply(&path).await.unwrap();
        for case in &CASES {
            let mut spec = one();
            (case.change)(&mut spec);
            self.stage
                .create_vm(case.namespace, case.vm, case.strategy, spec)
                .await;
        }
        for case in &CASES {
            let nics: Api<VmHybridNic> = Api::namespaced(client.clone(), case.namespace);
            let name = format!("{}-fast", case.vm);
            let told = |nic: &VmHybridNic| says(nic, case.reason, &case.words);
            if let Err(error) = until(nics, &name, SOON, case.reason, told).await {
                panic!("{error}\n{}", self.logs());
            }
            event(client, case.namespace, &name, case.reason, case.words[1]).await;
        }
        // Of a definition that is in the way the network tells, too.
        let left = "shop/fast is not hybridnic's and is left alone";
        event(client, "default", "fast", reasons::INTERFACE_UNFIT, left).await;
        for case in &CASES {
            self.stage.delete_vm(case.namespace, case.vm).await;
        }
    }

    /// The VM goes on with the NICs that it has.
    pub(super) async fn an_interface_that_is_added_to_a_running_vm_is_told(&self) {
        let vms = Kind::VirtualMachine.api(self.stage.client.clone(), NAMESPACE);
        let becomes = |spec: Value| {
            let vms = vms.clone();
            async move {
                let patch = json!({ "spec": { "template": { "spec": {
                    "domain": { "devices": { "interfaces": spec["domain"]["devices"]["interfaces"] } },
                    "networks": spec["networks"],
                }}}});
                let patch = Patch::Merge(patch);
                vms.patch(VM, &PatchParams::default(), &patch).await.unwrap();
            }
        };
        let mut spec = launcher::spec();
        let (interface, network) = (
            json!({ "name": "late", "binding": { "name": "hybridnic" } }),
            json!({ "name": "late", "multus": { "networkName": "fast" } }),
        );
        for (of, more) in [("/domain/devices/interfaces", interface), ("/networks", network)] {
            spec.pointer_mut(of).unwrap().as_array_mut().unwrap().push(more);
        }
        becomes(spec).await;
        let words = [
            "the VM web runs without the interface late",
            "when the VM is restarted",
        ];
        let told = |nic: &VmHybridNic| says(nic, reasons::INTERFACE_UNFIT, &words);
        self.until_nic("web-late", "told that it comes later", told).await;
        let (client, reason) = (&self.stage.client, reasons::INTERFACE_UNFIT);
        event(client, NAMESPACE, "web-late", reason, words[1]).await;
        // KubeVirt 1.8 says nothing of it: it does not plug such an interface, and what it may ask for a restart for is something else.
        let vm = vms.get(VM).await.unwrap();
        let asked = condition(&vm, "RestartRequired").to_string().to_lowercase();
        assert!(
            !asked.contains("interface") && !asked.contains("network"),
            "{asked}"
        );
        becomes(launcher::spec()).await;
        let gone =
            kube::runtime::wait::await_condition(self.nics(), "web-late", |nic: Option<&VmHybridNic>| {
                nic.is_none()
            });
        tokio::time::timeout(SOON, gone).await.unwrap().unwrap();
        for name in NICS {
            let nic = self.nics().get(name).await.unwrap();
            assert_eq!(nic.status.unwrap().phase, NicPhase::FastPath);
        }
    }
}
