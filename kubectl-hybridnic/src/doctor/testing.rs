//! A cluster that is well, for the checks' tests.

use hybridnic_api::{
    foreign::binding,
    v1alpha1::{self, HybridNode},
};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, from_value, json};

use super::{
    finding::{Finding, Level},
    kubevirt::Objects,
    observed::{Observed, ObservedLease, VERSION},
    rights::{self, Answer, Who},
};
use crate::connect::Unanswered;

/// How bad findings are.
pub fn levels(findings: &[Finding]) -> Vec<Level> {
    findings.iter().map(|finding| finding.level).collect()
}

fn condition(type_: &str) -> Value {
    json!({
        "type": type_, "status": "True", "reason": "Well", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
    })
}

fn established(crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let mut crd = serde_json::to_value(crd).unwrap();
    crd["status"] = json!({
        "acceptedNames": {"kind": "x", "plural": "x"}, "storedVersions": [], "conditions": [condition("Established")],
    });
    from_value(crd).unwrap()
}

fn hybrid_node(name: &str) -> HybridNode {
    let vf = |index: i32| json!({"index": index, "pciAddress": format!("0000:01:10.{index}"), "state": "Free", "iommuGroup": index});
    from_value(json!({
        "metadata": {"name": name}, "spec": {},
        "status": {
            "agentVersion": VERSION, "conditions": [condition("Ready")],
            "pools": [{"network": "fast", "vfs": {"total": 2, "free": 2, "held": 0, "unhealthy": 0}}],
            "pfs": [{
                "name": "ens1", "pciAddress": "0000:01:00.0", "vendor": "8086", "device": "10c9", "driver": "igb",
                "linkUp": true, "totalVfs": 7, "vfs": [vf(0), vf(1)],
            }],
        },
    }))
    .unwrap()
}

/// Two nodes, an operator of two pods, an agent a node, a network, a NIC.
pub fn healthy() -> Observed {
    let crds = v1alpha1::crds();
    let meta = |name: &str| json!({"name": name, "namespace": "sys"});
    let pods = |name: &str| {
        json!({"spec": {
            "serviceAccountName": name, "containers": [{"name": "c", "image": format!("{name}:{VERSION}")}],
        }})
    };
    let operator = json!({
        "metadata": meta("hybridnic-operator"),
        "spec": {"replicas": 2, "selector": {}, "template": pods("hybridnic-operator")},
        "status": {"availableReplicas": 2},
    });
    let agent = json!({
        "metadata": meta("hybridnic-agent"),
        "spec": {"selector": {}, "template": pods("hybridnic-agent")},
    });
    let agent_pod = |node: &str| {
        json!({
            "metadata": meta(node), "spec": {"nodeName": node, "containers": []},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        })
    };
    let policy = json!({
        "metadata": {"name": "hybridnic-agent"},
        "spec": {"matchConstraints": {"resourceRules": [
            {"apiGroups": ["hybridnic.io"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*"]},
        ]}},
    });
    let binding = json!({
        "metadata": {"name": "hybridnic-agent"},
        "spec": {"policyName": "hybridnic-agent", "validationActions": ["Deny"]},
    });
    let nic = json!({
        "metadata": {"name": "eth0", "namespace": "shop"},
        "spec": {"network": "fast", "vm": {"qemu": {"name": "web"}}},
        "status": {"phase": "FastPath", "conditions": [condition("Ready")]},
    });
    let network = json!({
        "metadata": {"name": "fast"}, "spec": {"uplinks": []}, "status": {"conditions": [condition("Ready")]},
    });
    let account = |name: &str| rights::Account::service("sys", name);
    let may = |who| Answer {
        who,
        lacks: Ok(Vec::new()),
    };
    Observed {
        now: "2026-01-01T12:00:00Z".parse().unwrap(),
        kubernetes: Some("v1.33.0".to_owned()),
        crds: Ok(crds.into_iter().map(established).collect()),
        operators: Ok(vec![from_value(operator).unwrap()]),
        leases: Ok(vec![ObservedLease {
            namespace: "sys".to_owned(),
            holder: Some("operator-0".to_owned()),
            seconds: 15,
            renewed: true,
        }]),
        daemon_sets: Ok(vec![from_value(agent).unwrap()]),
        agent_pods: Ok(["n1", "n2"]
            .map(|node| from_value(agent_pod(node)).unwrap())
            .to_vec()),
        nodes: Ok(["n1", "n2"]
            .map(|node| from_value(json!({"metadata": {"name": node}})).unwrap())
            .to_vec()),
        hybrid_nodes: Ok(["n1", "n2"].map(hybrid_node).to_vec()),
        networks: Ok(vec![from_value(network).unwrap()]),
        nics: Ok(vec![from_value(nic).unwrap()]),
        attachments: Ok(Vec::new()),
        migrations: Ok(Vec::new()),
        kubevirt: Objects {
            installed: Ok(None),
            definitions: Ok(None),
            vmis: Ok(None),
            migrations: Ok(None),
        },
        policies: Ok(vec![from_value(policy).unwrap()]),
        policy_bindings: Ok(vec![from_value(binding).unwrap()]),
        rights: vec![
            may(Who::Me),
            may(Who::Operator(account("hybridnic-operator"))),
            may(Who::Agent(account("hybridnic-agent"))),
        ],
        sriov_operator: Ok(Vec::new()),
        slices: Ok(Vec::new()),
    }
}

/// The same with KubeVirt 1.8 and Multus, and a VM `db` of KubeVirt with a NIC.
pub fn with_kubevirt() -> Observed {
    let mut observed = healthy();
    let arguments = |spec: Option<&mut PodTemplateSpec>, of: &[&str]| {
        let pods = spec.and_then(|spec| spec.spec.as_mut()).unwrap();
        pods.containers[0].args = Some(of.iter().map(ToString::to_string).collect());
    };
    let operator = observed.operators.as_mut().unwrap()[0].spec.as_mut();
    arguments(
        operator.map(|spec| &mut spec.template),
        &["--kubevirt", "--kubevirt-sidecar=r/sidecar:1"],
    );
    let agent = observed.daemon_sets.as_mut().unwrap()[0].spec.as_mut();
    arguments(
        agent.map(|spec| &mut spec.template),
        &["--kubelet-dir=/var/lib/kubelet", "--cni-bin-dir=/opt/cni/bin"],
    );
    let nic = json!({
        "metadata": {"name": "db-fast", "namespace": "shop"},
        "spec": {"network": "fast", "vm": {"kubevirt": {"name": "db", "interface": "fast"}}},
        "status": {"phase": "FastPath", "conditions": [condition("Ready")]},
    });
    observed.nics.as_mut().unwrap().push(from_value(nic).unwrap());
    let kubevirt = json!({
        "metadata": {"name": "kv", "namespace": "kv"},
        "spec": {"configuration": {"network": {"binding": {"hybridnic": binding::binding("r/sidecar:1")}}}},
        "status": {"observedKubeVirtVersion": "v1.8.0"},
    });
    let definition = |namespace: &str| {
        from_value(json!({
            "metadata": {
                "name": "fast", "namespace": namespace,
                "labels": {"hybridnic.io/network": "fast", "app.kubernetes.io/managed-by": "hybridnic-operator"},
            },
            "spec": {"config": "{}"},
        }))
        .unwrap()
    };
    let vmi = json!({
        "metadata": {"name": "db", "namespace": "shop"},
        "spec": {
            "domain": {"devices": {"interfaces": [{"name": "fast", "binding": {"name": "hybridnic"}}]}},
            "networks": [{"name": "fast", "multus": {"networkName": "fast"}}],
        },
        "status": {"phase": "Running"},
    });
    observed.kubevirt = Objects {
        installed: Ok(Some(vec![from_value(kubevirt).unwrap()])),
        definitions: Ok(Some(["shop", "sys"].map(definition).to_vec())),
        vmis: Ok(Some(vec![from_value(vmi).unwrap()])),
        migrations: Ok(Some(Vec::new())),
    };
    observed
}

/// There was no answer.
pub fn unanswered() -> Unanswered {
    Unanswered {
        why: "no".to_owned(),
        forbidden: false,
    }
}
