use hybridnic_api::foreign::kubevirt::KubeVirt;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, from_value, json};

use super::*;
use crate::doctor::{
    finding::Level,
    testing::{healthy, levels, unanswered, with_kubevirt},
};

fn installed(observed: &mut Observed) -> &mut KubeVirt {
    &mut observed.kubevirt.installed.as_mut().unwrap().as_mut().unwrap()[0]
}

fn arguments(observed: &mut Observed, of: &[&str]) {
    let operator = &mut observed.operators.as_mut().unwrap()[0];
    let pods = operator.spec.as_mut().unwrap().template.spec.as_mut().unwrap();
    pods.containers[0].args = Some(of.iter().map(ToString::to_string).collect());
}

fn nobody_wants_it(observed: &mut Observed) {
    observed.nics = Ok(Vec::new());
    observed.kubevirt.vmis = Ok(Some(Vec::new()));
}

#[test]
fn a_cluster_without_kubevirt_is_well_unless_a_nic_is_of_a_vm_of_it() {
    let mut observed = healthy();
    for check in [kubevirt, binding, definitions] {
        assert!(levels(&check(&observed)).iter().all(|level| *level == Level::Ok));
    }
    assert_eq!(levels(&kubevirt(&observed)), [Level::Ok]);
    observed.nics = Ok(with_kubevirt().nics.unwrap());
    let findings = kubevirt(&observed);
    assert_eq!(levels(&findings), [Level::Fail]);
    assert!(findings[0].message.ends_with(": shop/db-fast"), "{findings:?}");
    observed.kubevirt.installed = Err(unanswered());
    assert_eq!(levels(&kubevirt(&observed)), [Level::Warn]);
}

#[test]
fn kubevirt_is_of_a_version_that_is_served() {
    let mut observed = with_kubevirt();
    assert_eq!(kubevirt(&observed), [Finding::ok("kubevirt", "v1.8.0")]);
    let mut version = |said: &str| {
        installed(&mut observed)
            .status
            .as_mut()
            .unwrap()
            .observed_kube_virt_version = said.to_owned();
        kubevirt(&observed).remove(0)
    };
    let old = version("v1.7.3");
    assert_eq!(old.level, Level::Fail);
    assert!(
        old.message.contains("v1.7.3") && old.message.contains("v1.8"),
        "{old:?}"
    );
    let new = version("v1.9.0");
    assert!(
        new.level == Level::Ok && new.message.contains("not one that the project tests"),
        "{new:?}"
    );
    assert_eq!(version("").level, Level::Warn);
}

#[test]
fn an_operator_without_kubevirt_is_wrong_where_one_is_asked_for() {
    let mut observed = with_kubevirt();
    arguments(&mut observed, &[]);
    let findings = kubevirt(&observed);
    assert_eq!(levels(&findings), [Level::Fail]);
    assert!(
        findings[0]
            .fix
            .as_ref()
            .unwrap()
            .contains("kubevirt.enabled=true"),
        "{findings:?}"
    );
    assert_eq!((binding(&observed), definitions(&observed)), (vec![], vec![]));
    nobody_wants_it(&mut observed);
    assert_eq!(levels(&kubevirt(&observed)), [Level::Ok]);
}

#[test]
fn the_binding_is_registered_with_the_sidecar_of_the_release() {
    let mut observed = with_kubevirt();
    assert_eq!(
        binding(&observed),
        [Finding::ok("binding", "registered, with the sidecar r/sidecar:1")]
    );
    let set = |observed: &mut Observed, to: Option<Value>| {
        let bindings = &mut installed(observed).spec.configuration.network.binding;
        bindings.clear();
        bindings.extend(to.map(|to| (BINDING.to_owned(), to)));
        binding(observed).remove(0)
    };
    let other = set(&mut observed, Some(binding::binding("r/sidecar:0")));
    assert_eq!(other.level, Level::Warn);
    assert!(
        other
            .message
            .contains("r/sidecar:0, and this release's is r/sidecar:1"),
        "{other:?}"
    );
    let fix = other.fix.unwrap();
    assert!(
        fix.starts_with("kubectl patch kubevirt kv -n kv --type merge") && fix.contains("r/sidecar:1"),
        "{fix}"
    );
    let mut without = binding::binding("r/sidecar:1");
    without.as_object_mut().unwrap().remove("migration");
    assert_eq!(set(&mut observed, Some(without)).level, Level::Warn);
    let missing = set(&mut observed, None);
    assert_eq!(missing.level, Level::Fail);
    // The operator is to do it itself.
    let registers = [
        "--kubevirt",
        "--kubevirt-sidecar=r/sidecar:1",
        "--kubevirt-register",
    ];
    arguments(&mut observed, &registers);
    let missing = set(&mut observed, None);
    assert!(missing.fix.unwrap().contains("may it patch kubevirts"));
    nobody_wants_it(&mut observed);
    assert_eq!(set(&mut observed, None).level, Level::Warn);
    // Which one it should be is not known.
    observed.operators = Ok(Vec::new());
    assert_eq!(
        set(&mut observed, Some(binding::binding("r/sidecar:0"))).level,
        Level::Ok
    );
}

#[test]
fn each_network_has_a_definition_of_ours_where_it_is_named() {
    let mut observed = with_kubevirt();
    assert_eq!(
        definitions(&observed),
        [Finding::ok("multus", "definitions as they should be: 2")]
    );
    let found = observed.kubevirt.definitions.as_mut().unwrap().as_mut().unwrap();
    let theirs = &mut found
        .iter_mut()
        .find(|nad| nad.namespace().as_deref() == Some("shop"));
    theirs.as_mut().unwrap().metadata.labels = None;
    found.retain(|nad| nad.namespace().as_deref() != Some("sys"));
    let findings = definitions(&observed);
    assert_eq!(levels(&findings), [Level::Fail, Level::Fail]);
    assert!(
        findings[0].message.contains("shop/fast is not hybridnic's"),
        "{findings:?}"
    );
    assert!(
        findings[1]
            .message
            .contains("there is no NetworkAttachmentDefinition sys/fast"),
        "{findings:?}"
    );
    observed.kubevirt.definitions = Ok(None);
    let findings = definitions(&observed);
    assert_eq!(levels(&findings), [Level::Fail]);
    assert!(findings[0].fix.as_ref().unwrap().contains("install Multus"));
    nobody_wants_it(&mut observed);
    assert_eq!(levels(&definitions(&observed)), [Level::Warn]);
    observed.kubevirt.definitions = Err(unanswered());
    assert_eq!(levels(&definitions(&observed)), [Level::Warn]);
}

#[test]
fn a_kubelet_offers_what_is_free_or_it_is_told() {
    let mut observed = with_kubevirt();
    let offer = |observed: &mut Observed, node: usize, number: &str| {
        let status = observed.nodes.as_mut().unwrap()[node]
            .status
            .get_or_insert_default();
        let offered = ("hybridnic.io/fast".to_owned(), Quantity(number.to_owned()));
        status.allocatable = Some([offered].into());
    };
    offer(&mut observed, 0, "2");
    offer(&mut observed, 1, "2");
    assert_eq!(
        resources(&observed),
        [Finding::ok("resources", "kubelets offer the VFs that are free")]
    );
    offer(&mut observed, 1, "0");
    let findings = resources(&observed);
    assert_eq!(levels(&findings), [Level::Warn]);
    assert_eq!(
        findings[0].message,
        "n2: its kubelet offers no hybridnic.io/fast, though 2 VFs are free"
    );
    // The node's own word is told by its check.
    let condition = json!({
        "type": "Degraded", "status": "True", "reason": "KubeletUnreachable", "message": "",
        "lastTransitionTime": "2026-01-01T11:00:00Z",
    });
    let node = &mut observed.hybrid_nodes.as_mut().unwrap()[1];
    node.status
        .as_mut()
        .unwrap()
        .conditions
        .push(from_value(condition).unwrap());
    assert_eq!(levels(&resources(&observed)), [Level::Ok]);
    // Nothing is free there.
    node_without_free_vfs(&mut observed);
    assert_eq!(levels(&resources(&observed)), [Level::Ok]);
}

fn node_without_free_vfs(observed: &mut Observed) {
    let status = observed.hybrid_nodes.as_mut().unwrap()[1]
        .status
        .as_mut()
        .unwrap();
    status.conditions.retain(|c| c.type_ != types::DEGRADED);
    (status.pools[0].vfs.free, status.pools[0].vfs.held) = (0, 2);
}

#[test]
fn agents_without_device_plugin_or_cni_are_wrong_where_vms_of_kubevirt_are_asked_for() {
    let mut observed = with_kubevirt();
    let set = |observed: &mut Observed, args: &[&str]| {
        let agent = &mut observed.daemon_sets.as_mut().unwrap()[0];
        let pods = agent.spec.as_mut().unwrap().template.spec.as_mut().unwrap();
        pods.containers[0].args = Some(args.iter().map(ToString::to_string).collect());
        resources(observed)
    };
    let findings = set(&mut observed, &[]);
    assert_eq!(levels(&findings), [Level::Fail, Level::Fail]);
    for (finding, value) in findings
        .iter()
        .zip(["agent.cni.enabled=true", "agent.devicePlugin.enabled=true"])
    {
        assert!(finding.fix.as_ref().unwrap().contains(value), "{finding:?}");
    }
    nobody_wants_it(&mut observed);
    assert_eq!(set(&mut observed, &[]), []);
    observed.daemon_sets = Ok(Vec::new());
    assert_eq!(resources(&observed), [], "it is not known how the agents run");
}
