use std::collections::BTreeMap;

use hybridnic_api::v1alpha1::Goal;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::*;
use crate::nic::whereabouts::kubevirt::ObservedVm;
use crate::testing::{a_move, attachment, nic, observe, pod, say};
use crate::vm::VmRef;

/// The pods of a StatefulSet, each on a node of its own, all of which are ready.
fn known(pods: &[(&str, i64)]) -> Observed {
    let made = |(name, second): &(&str, i64)| Arc::new(pod(name, "vm", *second, "Running", &node_of(name)));
    Observed {
        restore: None,
        vm: Some(VmRef::qemu("ns", "vm")),
        kubevirt: ObservedVm::default(),
        network: None,
        pods: pods.iter().map(made).collect(),
        attachments: Vec::new(),
        others: Vec::new(),
        orphans: Vec::new(),
        unreadable: false,
        nodes: pods
            .iter()
            .map(|(name, _)| (node_of(name), NodeState::Ready))
            .collect::<BTreeMap<_, _>>(),
        overdue: std::collections::BTreeSet::new(),
        without_agent: std::collections::BTreeSet::new(),
        moves: Vec::new(),
        moving: None,
    }
}

fn node_of(pod: &str) -> String {
    format!("node-of-{pod}")
}

fn attached(nic: &str, pod: &str, state: AttachmentState) -> NicAttachment {
    let mut attachment = attachment(nic, pod, &node_of(pod));
    observe(&mut attachment, state);
    attachment
}

/// QEMU in this pod waits for a VM, and no migration brings one.
fn waiting(nic: &str, pod: &str) -> NicAttachment {
    let mut attachment = attached(nic, pod, AttachmentState::Reserved);
    say(&mut attachment, reasons::VM_INCOMING, "QEMU waits");
    attachment
}

fn reference(pod: &str) -> ObjectRef {
    ObjectRef {
        name: pod.to_owned(),
        uid: format!("{pod}-uid"),
    }
}

fn at(observed: &Observed, recorded: Option<&str>) -> String {
    let recorded = recorded.map(reference);
    observed
        .whereabouts(recorded.as_ref())
        .map(|pod| pod.name_any())
        .unwrap_or_default()
}

fn succeeded(name: &str, target: &str, second: i64) -> Move {
    let mut of = a_move(name, "web-0", target);
    of.stage = Stage::Over(Outcome::Succeeded);
    of.times.finished_at = Some(MicroTime(Timestamp::from_second(second).unwrap()));
    of
}

#[test]
fn a_new_nic_goes_where_the_vm_has_migrated_to() {
    let mut observed = known(&[("web-0", 1), ("web-1", 2), ("web-2", 3)]);
    assert_eq!(at(&observed, None), "web-0", "nothing else is known");
    observed.moves = vec![succeeded("a", "web-2", 20), succeeded("b", "web-1", 30)];
    assert_eq!(at(&observed, None), "web-1");
    let mut failed = succeeded("c", "web-2", 40);
    failed.stage = Stage::Over(Outcome::Failed);
    observed.moves.push(failed);
    assert_eq!(at(&observed, None), "web-1");
    // The VM's other NICs know better, and best of all when they carry traffic.
    observed.others = vec![Arc::new(attached("eth1", "web-2", AttachmentState::Pending))];
    assert_eq!(at(&observed, None), "web-2");
    observed.others.push(Arc::new(waiting("eth2", "web-0")));
    assert_eq!(at(&observed, None), "web-2");
    observed
        .others
        .push(Arc::new(attached("eth3", "web-1", AttachmentState::Standby)));
    assert_eq!(at(&observed, None), "web-1");
    // What leaves says nothing.
    let mut leaving = attached("eth3", "web-1", AttachmentState::Standby);
    leaving.spec.goal = Goal::Detached;
    observed.others[2] = Arc::new(leaving);
    assert_eq!(at(&observed, None), "web-2");
    // A pod that has gone was another.
    observed.others.clear();
    observed.pods.remove(1);
    assert_eq!(at(&observed, None), "web-0");
}

#[test]
fn a_nic_leaves_a_pod_whose_qemu_waits_for_the_next_younger_one() {
    let mut observed = known(&[("web-0", 1), ("web-1", 2), ("web-2", 3)]);
    // It stays where it is attached, no matter what is known about others.
    observed.attachments = vec![Arc::new(attached("eth0", "web-0", AttachmentState::FastPath))];
    observed.moves = vec![succeeded("a", "web-2", 20)];
    assert_eq!(at(&observed, Some("web-0")), "web-0");
    assert!(!observed.must_ask(Some(&reference("web-0"))));
    observed.attachments = vec![Arc::new(waiting("eth0", "web-0"))];
    assert!(observed.must_ask(Some(&reference("web-0"))));
    assert_eq!(at(&observed, Some("web-0")), "web-1");
    let note = observed
        .left(&recorded_nic("web-0"), &reference("web-1"))
        .unwrap();
    assert!(
        note.message.contains("in the pod web-0") && note.message.contains("to the pod web-1"),
        "{}",
        note.message
    );
    assert_eq!(observed.left(&recorded_nic("web-0"), &reference("web-0")), None);

    // On its way it is called back by nothing.
    let mut leaving = waiting("eth0", "web-0");
    leaving.spec.goal = Goal::Detached;
    leaving.metadata.generation = Some(2);
    observed.attachments = vec![Arc::new(leaving)];
    assert_eq!(at(&observed, Some("web-1")), "web-1");
    assert_eq!(observed.left(&recorded_nic("web-1"), &reference("web-1")), None);

    // To the youngest, and no farther: all wait. A pod that is on its way out, or does not run, is not an option.
    observed.attachments = vec![Arc::new(waiting("eth0", "web-1"))];
    assert_eq!(at(&observed, Some("web-1")), "web-2");
    observed.attachments = vec![Arc::new(waiting("eth0", "web-2"))];
    assert_eq!(at(&observed, Some("web-2")), "web-2");
    assert_eq!(observed.other_pods(&reference("web-2")), ["web-0", "web-1"]);
    observed.attachments = vec![Arc::new(waiting("eth0", "web-0"))];
    let mut deleted = observed.pods[1].as_ref().clone();
    deleted.metadata.deletion_timestamp = deleted.metadata.creation_timestamp.clone();
    observed.pods[1] = Arc::new(deleted);
    observed.pods[2] = Arc::new(pod("web-2", "vm", 3, "Pending", &node_of("web-2")));
    assert_eq!(at(&observed, Some("web-0")), "web-0");
    assert!(observed.other_pods(&reference("web-0")).is_empty());
}

fn recorded_nic(pod: &str) -> VmHybridNic {
    let mut nic = nic("eth0", "vm", "net", 1);
    nic.status.get_or_insert_default().pod = Some(reference(pod));
    nic
}

#[test]
fn a_nic_leaves_by_qemus_word_of_now_and_outside_of_migrations() {
    let mut observed = known(&[("web-0", 1), ("web-1", 2)]);
    let stays = |observed: &mut Observed, change: fn(&mut NicAttachment)| {
        let mut here = waiting("eth0", "web-0");
        change(&mut here);
        observed.attachments = vec![Arc::new(here)];
        at(observed, Some("web-0")) == "web-0"
    };
    assert!(!stays(&mut observed, |_| {}));
    assert!(stays(&mut observed, |here| here.metadata.generation = Some(2)));
    assert!(stays(&mut observed, |here| here
        .status
        .as_mut()
        .unwrap()
        .observed_generation = None));
    assert!(stays(&mut observed, |here| observe(
        here,
        AttachmentState::Pending
    )));
    assert!(stays(&mut observed, |here| say(
        here,
        reasons::QMP_UNAVAILABLE,
        "it has ended"
    )));
    assert!(stays(&mut observed, |here| here.status = None));
    for state in [NodeState::NotReady(None), NodeState::Unknown] {
        observed.nodes.insert(node_of("web-0"), state);
        assert!(stays(&mut observed, |_| {}), "what the agent said is old");
    }
    observed.nodes.insert(node_of("web-0"), NodeState::Ready);
    let mut other = a_move("m", "web-0", "web-1");
    other.nics = vec!["eth1".to_owned()];
    observed.moves = vec![other];
    assert!(stays(&mut observed, |_| {}), "the VM may be on its way");
}

#[test]
fn a_nic_that_is_not_where_the_vms_others_carry_traffic_goes_there() {
    let mut observed = known(&[("web-0", 1), ("web-1", 2), ("web-2", 3)]);
    observed.others = vec![Arc::new(attached("eth1", "web-0", AttachmentState::FastPath))];
    // Back to an older pod too: QEMU says that the VM is there.
    observed.attachments = vec![Arc::new(waiting("eth0", "web-1"))];
    assert_eq!(at(&observed, Some("web-1")), "web-0");
    // It came when a migration was under way, waited for that, and has nothing anywhere.
    observed.attachments.clear();
    assert_eq!(at(&observed, Some("web-1")), "web-0");
    observed.others = vec![Arc::new(attached("eth1", "web-0", AttachmentState::Reserved))];
    assert_eq!(at(&observed, Some("web-1")), "web-1", "no proof of anything");
}
