//! A VM with several pods, as those of a StatefulSet: one has the VM, and the QEMUs of the others wait for it.

use hybridnic_api::conditions::{self, reasons, types};
use hybridnic_api::names::attachment_name;
use hybridnic_api::v1alpha1::{MigrationPhase, VmHybridNic};
use kube::ResourceExt;
use kube::api::ListParams;

use super::fast_nic;
use crate::agent::{Agents, Mood};
use crate::bench::{Bench, is_fast, is_in, reason};

/// In which pods QEMU waits from now on.
async fn waits(bench: &Bench, agents: &Agents, pods: &'static [&'static str]) {
    agents.be(Mood {
        waits: pods,
        ..Mood::default()
    });
    // Something must change for the agents to look again.
    let look = ["annotate", "--overwrite", "nicatt", "--all"];
    bench
        .kubectl(&[&look[..], &[&*format!("look={}", pods.len())]].concat())
        .await;
}

fn fast_in(pod: &str) -> impl Fn(&VmHybridNic) -> bool {
    move |nic| is_fast(nic) && pod_of(nic) == pod
}

fn pod_of(nic: &VmHybridNic) -> &str {
    let pod = nic.status.as_ref().and_then(|status| status.pod.as_ref());
    pod.map(|pod| pod.name.as_str()).unwrap_or_default()
}

fn waits_in(pod: &str) -> impl Fn(&VmHybridNic) -> bool {
    move |nic| reason(nic, types::READY) == reasons::VM_INCOMING && pod_of(nic) == pod
}

fn message(nic: &VmHybridNic) -> String {
    let conditions = nic.status.iter().flat_map(|status| status.conditions.clone());
    let conditions: Vec<_> = conditions.collect();
    conditions::find(&conditions, types::READY)
        .map(|ready| ready.message.clone())
        .unwrap_or_default()
}

async fn replace_nic(bench: &Bench) {
    bench.remove(bench.nics(), "eth0").await;
    bench.create_nic("eth0", "vm", None).await;
}

/// The pods that the NIC is attached to.
async fn attached(bench: &Bench) -> Vec<String> {
    let all = bench.attachments().list(&ListParams::default()).await.unwrap();
    all.items
        .into_iter()
        .map(|attachment| attachment.spec.pod.name)
        .collect()
}

/// The name of eth0's attachment to a pod.
async fn attachment_to(bench: &Bench, pod: &str) -> String {
    let pod = bench.pods().get(pod).await.unwrap();
    attachment_name("eth0", &pod.uid().unwrap())
}

/// Waits until an attachment is gone: a NIC is fast in another pod before that.
async fn gone(bench: &Bench, attachment: &str) {
    bench
        .until_object(bench.attachments(), attachment, "gone", |attachment| {
            attachment.is_none()
        })
        .await;
}

#[tokio::test]
async fn a_nic_finds_the_pod_that_has_the_vm() {
    let (bench, agents) = fast_nic().await;
    bench.run_pod("vm-b", "vm", "n2").await;
    bench.migrate("goes", "vm").await;
    bench
        .migration_with("goes", "succeeded", is_in(MigrationPhase::Succeeded))
        .await;
    bench.nic_with("eth0", "fast in vm-b", fast_in("vm-b")).await;

    // The pod that the VM has left lives on, and waits in turn. A new NIC goes where the VM has migrated to, and nowhere else.
    waits(&bench, &agents, &["vm-a"]).await;
    let before = bench.writes().len();
    replace_nic(&bench).await;
    bench.nic_with("eth0", "fast in vm-b", fast_in("vm-b")).await;
    let left = attachment_to(&bench, "vm-a").await;
    let writes = bench.writes().split_off(before);
    assert!(!writes.iter().any(|write| write.ends_with(&left)), "{writes:#?}");

    // When nobody knows any more that it has migrated, QEMU's report leads there.
    bench.remove(bench.migrations(), "goes").await;
    replace_nic(&bench).await;
    bench.nic_with("eth0", "fast in vm-b", fast_in("vm-b")).await;
    gone(&bench, &left).await;
    assert_eq!(attached(&bench).await, ["vm-b"]);
    let writes = bench.writes().split_off(before);
    assert!(writes.iter().any(|write| write.ends_with(&left)), "{writes:#?}");
    let events = ["get", "events.events.k8s.io", "-o", "jsonpath={.items[*].note}"];
    assert!(bench.kubectl(&events).await.contains("goes to the pod vm-b"));
}

#[tokio::test]
async fn a_nic_follows_a_vm_that_boots_in_another_pod_and_stays_where_none_has_it() {
    let (bench, agents) = fast_nic().await;
    bench.run_pod("vm-b", "vm", "n2").await;
    // The VM has ended in vm-a: there is one other pod, and it may be there.
    waits(&bench, &agents, &["vm-a", "vm-b"]).await;
    let nic = bench
        .nic_with("eth0", "VmIncoming in vm-b", waits_in("vm-b"))
        .await;
    let said = message(&nic);
    assert!(
        said.contains("if the VM runs in vm-a, delete the pod vm-b"),
        "{said}"
    );
    // None has it: the NIC does not wander.
    let before = bench.writes().len();
    bench.kubectl(&["annotate", "vhn", "eth0", "look=again"]).await;
    bench.run_pod("other", "other", "n1").await;
    bench.create_nic("eth1", "other", None).await;
    bench.nic_with("eth1", "fast", is_fast).await;
    let wandered = bench.writes().split_off(before);
    assert!(
        !wandered.iter().any(|write| write.contains("eth0")),
        "{wandered:#?}"
    );

    // It may boot again, and does so in the first pod, which is made again.
    let left = attachment_to(&bench, "vm-b").await;
    bench.delete_pod("vm-a").await;
    bench.run_pod("vm-c", "vm", "n1").await;
    bench.nic_with("eth0", "fast in vm-c", fast_in("vm-c")).await;
    gone(&bench, &left).await;
    let mut pods = attached(&bench).await;
    pods.sort();
    assert_eq!(pods, ["other", "vm-c"]);
}
