//! VMIs that somebody makes without a VM, and a NIC that a user writes.

use super::unfit::one;
use super::*;

/// Its NIC is written by a user, before it is there.
const ALONE: &str = "alone";
/// Its NIC is made by the operator.
const BARE: &str = "bare";

impl Play {
    /// The user's NIC, which names the VM and nothing else, is attached where the VM is, and no other is made. Without it the VMI gets one
    /// that is the VMI's own. Gives the launcher of the first.
    pub(super) async fn a_nic_that_a_user_wrote_serves_a_vmi_without_a_vm(&self) -> Pod {
        let client = &self.stage.client;
        write_nic(client, "mine", ALONE).await;
        for name in [ALONE, BARE] {
            let vmi = json!({
                "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": { "name": name }, "spec": one(),
            });
            let vmi = serde_json::from_value(vmi).unwrap();
            self.stage
                .vmis()
                .create(&PostParams::default(), &vmi)
                .await
                .unwrap();
        }
        let label = format!("vm.kubevirt.io/name={ALONE}");
        let pod = launcher_with(client, &label, SOON).await.unwrap();
        self.stage.n2.take(&pod.name_any()).await.unwrap();
        let attachment = hybridnic_api::names::attachment_name("mine", &pod.uid().unwrap());
        let found = until(self.attachments(), &attachment, SOON, "made", |_| true).await;
        let spec = found
            .unwrap_or_else(|error| panic!("{error}\n{}", self.logs()))
            .spec;
        assert_eq!(
            (
                spec.vm.runtime(),
                spec.vm.name(),
                spec.node_name.as_str(),
                spec.goal
            ),
            (Runtime::Kubevirt, ALONE, "n2", Goal::FastPath)
        );
        assert_eq!(spec.placement, Some(Placement::Interface("fast".to_owned())));

        let made = self.until_nic("bare-fast", "made", |_| true).await;
        let owner = &made.owner_references()[0];
        let bare = self.stage.vmis().get(BARE).await.unwrap();
        assert_eq!(
            (owner.kind.as_str(), owner.controller, Some(&owner.uid)),
            ("VirtualMachineInstance", Some(true), bare.uid().as_ref())
        );
        assert_eq!(made.spec.vm.kubevirt.unwrap().interface.as_deref(), Some("fast"));
        assert!(self.nics().get_opt("alone-fast").await.unwrap().is_none());
        assert_eq!(self.nics().get("mine").await.unwrap().owner_references(), []);
        for name in [ALONE, BARE] {
            let delete = DeleteParams::default();
            self.stage.vmis().delete(name, &delete).await.unwrap();
        }
        pod
    }

    /// The user's NIC stays.
    pub(super) async fn what_a_vmi_owned_has_gone_with_it(&self, alone: &Pod) {
        self.stage.n2.end(alone).await.unwrap();
        let gone =
            kube::runtime::wait::await_condition(self.nics(), "bare-fast", |nic: Option<&VmHybridNic>| {
                nic.is_none()
            });
        tokio::time::timeout(SOON, gone).await.unwrap().unwrap();
        let mine = self.nics().get("mine").await.unwrap();
        assert_eq!(mine.metadata.deletion_timestamp, None);
    }
}
