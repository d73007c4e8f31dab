use hybridnic_api::v1alpha1::{Goal, MigrationOrder, MigrationReport, MigrationStep, Vm};
use serde_json::{Value, json};

use super::*;
use crate::testing::{attachment, nic, observe, pod};
use crate::vm::VmRef;

fn vmi(change: impl FnOnce(&mut Value)) -> Arc<VirtualMachineInstance> {
    let mut vmi = json!({
        "metadata": {"name": "vm", "namespace": "ns", "uid": "vmi-uid"},
        "spec": {
            "domain": {"devices": {"interfaces": [
                {"name": "fast", "binding": {"name": "hybridnic"}},
                {"name": "plain", "binding": {"name": "passt"}},
            ]}},
            "networks": [
                {"name": "fast", "multus": {"networkName": "net"}},
                {"name": "plain", "multus": {"networkName": "net"}},
            ],
        },
    });
    change(&mut vmi);
    Arc::new(serde_json::from_value(vmi).unwrap())
}

fn launcher(name: &str, second: i64, labels: &[(&str, &str)]) -> Arc<Pod> {
    let mut pod = pod(name, "vm", second, "Running", "n1");
    pod.labels_mut()
        .insert(CREATED_BY_LABEL.to_owned(), "vmi-uid".to_owned());
    for (label, value) in labels {
        pod.labels_mut().insert((*label).to_owned(), (*value).to_owned());
    }
    Arc::new(pod)
}

fn known(pods: Vec<Arc<Pod>>) -> Observed {
    Observed {
        restore: None,
        vm: Some(VmRef::kubevirt("ns", "vm")),
        kubevirt: ObservedVm {
            vmi: Some(vmi(|_| {})),
            ..ObservedVm::default()
        },
        network: None,
        pods,
        attachments: Vec::new(),
        others: Vec::new(),
        orphans: Vec::new(),
        unreadable: false,
        nodes: std::collections::BTreeMap::new(),
        overdue: std::collections::BTreeSet::new(),
        without_agent: std::collections::BTreeSet::new(),
        moves: Vec::new(),
        moving: None,
    }
}

fn at(observed: &Observed, recorded: Option<&str>) -> Option<String> {
    let recorded = recorded.map(|name| ObjectRef {
        name: name.to_owned(),
        uid: format!("{name}-uid"),
    });
    pod_of_vm(observed, recorded.as_ref()).map(|pod| pod.name_any())
}

#[test]
fn a_vm_is_in_its_launcher_and_not_in_one_that_was_made_for_a_migration() {
    let first = launcher("b", 2, &[]);
    let target = launcher("a", 1, &[(MIGRATION_LABEL, "m")]);
    let mut observed = known(vec![target.clone(), first]);
    assert_eq!(at(&observed, None).as_deref(), Some("b"));
    assert_eq!(
        at(&observed, Some("a")).as_deref(),
        Some("a"),
        "it has gone there"
    );
    // After that there is no other.
    observed.pods = vec![target];
    assert_eq!(
        at(&observed, Some("b")),
        None,
        "nothing says that the VM is there"
    );
    observed.kubevirt.vmi = Some(vmi(|vmi| vmi["status"] = json!({"nodeName": "n1"})));
    assert_eq!(at(&observed, Some("b")).as_deref(), Some("a"));
}

/// It was paused, or nobody looked, and the source has let it go: no agent says that it has come.
#[test]
fn a_vm_that_kubevirt_has_moved_is_where_it_went() {
    let pods = vec![launcher("a", 1, &[]), launcher("b", 2, &[(MIGRATION_LABEL, "m")])];
    let mut observed = known(pods);
    let mut says = |node: &str, uid: &str| {
        observed.kubevirt.vmi = Some(vmi(|vmi| {
            vmi["status"] = json!({"nodeName": node, "migrationState": {"migrationUid": uid}});
        }));
        at(&observed, Some("a"))
    };
    assert_eq!(says("n1", "m").as_deref(), Some("b"));
    assert_eq!(says("n1", "another").as_deref(), Some("a"));
    assert_eq!(says("n2", "m").as_deref(), Some("a"));
    let mut here = attachment("eth1", "a", "n1");
    observe(&mut here, AttachmentState::Standby);
    observed.others = vec![Arc::new(here)];
    observed.kubevirt.vmi = Some(vmi(|vmi| {
        vmi["status"] = json!({"nodeName": "n1", "migrationState": {"migrationUid": "m"}});
    }));
    assert_eq!(
        at(&observed, Some("a")).as_deref(),
        Some("a"),
        "an agent says that it is here"
    );
}

#[test]
fn the_launcher_of_an_earlier_start_is_none_of_it() {
    let old = launcher("a", 1, &[(CREATED_BY_LABEL, "before")]);
    let mut observed = known(vec![old.clone(), launcher("b", 2, &[])]);
    assert_eq!(at(&observed, Some("a")).as_deref(), Some("b"));
    observed.pods = vec![old];
    assert_eq!(at(&observed, Some("a")), None);
    observed.pods = vec![launcher("b", 2, &[])];
    observed.kubevirt.vmi = None;
    assert_eq!(at(&observed, Some("b")), None, "the VM does not run");
}

#[test]
fn the_word_of_an_agent_comes_before_what_is_recorded() {
    let mut observed = known(vec![
        launcher("a", 1, &[]),
        launcher("b", 2, &[(MIGRATION_LABEL, "m")]),
    ]);
    let mut there = attachment("eth1", "b", "n1");
    observed.others = vec![Arc::new(there.clone())];
    assert_eq!(at(&observed, Some("a")).as_deref(), Some("a"));
    observe(&mut there, AttachmentState::FastPath);
    observed.others = vec![Arc::new(there.clone())];
    assert_eq!(at(&observed, Some("a")).as_deref(), Some("b"));
    // It has come, and carries nothing yet.
    observe(&mut there, AttachmentState::Reserved);
    // It need not have been told yet that it has come, and it may have been told that it has not.
    for (goal, order, uid, state, is_there) in [
        (Goal::FastPath, None, "m", MigrationState::Completed, true),
        (Goal::Standby, None, "m", MigrationState::Completed, true),
        (Goal::Standby, None, "m", MigrationState::Active, false),
        (Goal::Detached, Some("m"), "m", MigrationState::Completed, true),
        (Goal::Detached, Some("m"), "m", MigrationState::Ended, false),
        // It has gone from there by the next one.
        (Goal::FastPath, None, "n", MigrationState::Completed, false),
        (Goal::Detached, Some("n"), "m", MigrationState::Completed, false),
        (Goal::Detached, None, "m", MigrationState::Completed, false),
    ] {
        there.spec.goal = goal;
        there.spec.migration = order.map(|uid| MigrationOrder {
            migration: ObjectRef {
                name: uid.to_owned(),
                uid: uid.to_owned(),
            },
            nics: vec!["eth1".to_owned()],
            step: MigrationStep::Watch,
            target_uri: None,
            listen_address: None,
            tls: None,
            file: None,
        });
        let status = there.status.as_mut().unwrap();
        status.migration = Some(MigrationReport::new(uid, state));
        observed.others = vec![Arc::new(there.clone())];
        let expected = if is_there { "b" } else { "a" };
        assert_eq!(
            at(&observed, Some("a")).as_deref(),
            Some(expected),
            "{goal:?} {order:?} {uid} {state:?}"
        );
    }
}

fn asked(interface: Option<&str>) -> (VmHybridNic, KubevirtVm) {
    let vm = KubevirtVm {
        name: "vm".to_owned(),
        interface: interface.map(ToOwned::to_owned),
    };
    let mut nic = nic("eth0", "vm", "net", 1);
    nic.spec.vm = Vm {
        qemu: None,
        kubevirt: Some(vm.clone()),
    };
    (nic, vm)
}

#[track_caller]
fn refused(change: impl FnOnce(&mut Value), name: Option<&str>, words: &str) {
    let (nic, vm) = asked(name);
    let refusal = interface(&vmi(change), &nic, &vm).unwrap_err();
    assert_eq!(refusal.reason, reasons::INTERFACE_UNFIT);
    assert!(refusal.message.contains(words), "{}", refusal.message);
}

#[test]
fn an_interface_is_found_or_refused_in_words() {
    for name in [None, Some("fast")] {
        let (nic, vm) = asked(name);
        assert_eq!(interface(&vmi(|_| {}), &nic, &vm).unwrap().name, "fast");
    }
    let interfaces = "/spec/domain/devices/interfaces/0";
    let set = move |field: &'static str, value: Value| {
        move |vmi: &mut Value| vmi.pointer_mut(interfaces).unwrap()[field] = value
    };
    refused(|_| {}, Some("plain"), "has no `binding: {name: hybridnic}`");
    refused(|_| {}, Some("later"), "comes when the VM is restarted");
    refused(
        set("binding", json!({"name": "passt"})),
        None,
        "without an interface",
    );
    refused(set("model", json!("e1000e")), None, "the model e1000e");
    refused(
        |vmi| vmi["spec"]["domain"]["features"] = json!({"acpi": {"enabled": false}}),
        None,
        "no ACPI",
    );
    refused(
        |vmi| vmi["spec"]["networks"][0]["multus"]["networkName"] = json!("other"),
        Some("fast"),
        "is not on the network net",
    );
    let second = json!({"name": "hybridnic"});
    refused(
        |vmi| vmi["spec"]["domain"]["devices"]["interfaces"][1]["binding"] = second,
        None,
        "several interfaces",
    );
}

#[test]
fn what_the_cluster_lacks_is_said_with_what_to_do() {
    let settings = Settings {
        sidecar: "r/sidecar:1".to_owned(),
        register: false,
        namespace: "sys".to_owned(),
    };
    let kubevirt = |version: &str, bindings: Value| -> KubeVirt {
        serde_json::from_value(json!({
            "metadata": {"name": "kv", "namespace": "kv-ns"},
            "spec": {"configuration": {"network": {"binding": bindings}}},
            "status": {"observedKubeVirtVersion": version},
        }))
        .unwrap()
    };
    let ours = json!({"hybridnic": binding::binding("r/sidecar:1")});
    let well = kubevirt("v1.8.0", ours.clone());
    assert_eq!(installation_trouble(Some(&settings), Some(&well)), None);
    let cases = [
        (None, Some(well), "set kubevirt.enabled of the chart"),
        (Some(&settings), None, "has no KubeVirt, as far as is known"),
        (
            Some(&settings),
            Some(kubevirt("v1.7.1", ours)),
            "KubeVirt is of version v1.7.1",
        ),
        (
            Some(&settings),
            Some(kubevirt("v1.8.0", json!({}))),
            "register it: kubectl patch kubevirt kv -n kv-ns",
        ),
    ];
    for (settings, kubevirt, words) in cases {
        let refusal = installation_trouble(settings, kubevirt.as_ref()).unwrap();
        assert_eq!(refusal.reason, reasons::KUBEVIRT_NOT_READY);
        assert!(refusal.message.contains(words), "{}", refusal.message);
    }
}

#[test]
fn a_definition_must_be_there_and_ours() {
    let reason = |nad: Option<&NetworkAttachmentDefinition>, served| {
        definition_trouble("ns", "net", nad, served).map(|refusal| refusal.reason)
    };
    assert_eq!(reason(None, false), Some(reasons::KUBEVIRT_NOT_READY));
    assert_eq!(reason(None, true), Some(reasons::KUBEVIRT_NOT_READY));
    let mut nad: NetworkAttachmentDefinition =
        serde_json::from_value(json!({"metadata": {"name": "net"}, "spec": {}})).unwrap();
    assert_eq!(reason(Some(&nad), true), Some(reasons::INTERFACE_UNFIT));
    let labels = nad.labels_mut();
    labels.insert("hybridnic.io/network".to_owned(), "net".to_owned());
    labels.insert(
        "app.kubernetes.io/managed-by".to_owned(),
        "hybridnic-operator".to_owned(),
    );
    assert_eq!(reason(Some(&nad), true), None);
}

#[test]
fn what_kubevirt_says_of_a_vm_that_does_not_start_is_told() {
    let mut observed = known(Vec::new());
    assert_eq!(missing(&observed, "vm"), "the VM vm has no pod yet");
    let said = json!([{"type": "Synchronized", "status": "False", "message": "no such binding"}]);
    observed.kubevirt.vmi = Some(vmi(|vmi| vmi["status"] = json!({"conditions": said})));
    assert!(missing(&observed, "vm").ends_with("KubeVirt says: no such binding"));
    observed.kubevirt.vmi = None;
    assert!(missing(&observed, "vm").contains("does not run"));
}

/// KubeVirt's API is away when an operator starts, or the chart's value was changed: a VM that runs keeps its network.
#[test]
fn a_vm_that_is_not_seen_has_not_ended() {
    let refused = |observed: &Observed| observed.unknown().map(|refusal| refusal.reason);
    let launcher = launcher("a", 1, &[]);
    let mut observed = known(vec![launcher.clone()]);
    observed.attachments = vec![Arc::new(attachment("nic", "a", "n1"))];
    assert_eq!(refused(&observed), None);
    observed.kubevirt.vmi = None;
    assert_eq!(
        refused(&observed),
        Some(reasons::KUBEVIRT_NOT_READY),
        "nobody looks"
    );
    observed.kubevirt.is_known = true;
    let uid = launcher.metadata.uid.clone().unwrap();
    let mut of_launcher = attachment("nic", "a", "n1");
    of_launcher.spec.pod.uid = uid;
    observed.attachments = vec![Arc::new(of_launcher)];
    assert_eq!(
        refused(&observed),
        Some(reasons::KUBEVIRT_NOT_READY),
        "its pod lives"
    );
    let mut ended = (*launcher).clone();
    ended.status.get_or_insert_default().phase = Some("Succeeded".to_owned());
    observed.pods = vec![Arc::new(ended)];
    assert_eq!(refused(&observed), None);
    observed.attachments.clear();
    observed.kubevirt.is_known = false;
    assert_eq!(refused(&observed), None, "it has nothing to keep");
    observed.vm = Some(VmRef::qemu("ns", "vm"));
    assert_eq!(refused(&observed), None);
}
