//! What the chart renders, and what it refuses to.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use hybridnic_e2e::chart;
use hybridnic_e2e::controlplane::tools::{Schemas, Tools};
use hybridnic_e2e::controlplane::{ControlPlane, Options};
use hybridnic_e2e::world::repository;
use serde_json::Value;
use tempfile::TempDir;

use super::conform::Kubeconform;
use super::{chart_path, kubectl, refusal, text};

/// Everything that can be switched on or said, with a value that is not the default.
const ALL_ON: &str = r#"
fullnameOverride: nics
image: {registry: "registry.example.com:5000/team", tag: v1, pullPolicy: Always, pullSecrets: [{name: regcred}]}
log: {filter: "info,hybridnic_agent=debug", format: human}
tracing: {otlpEndpoint: "http://collector:4318"}
operator:
  replicas: 3
  extraArgs: ["--log=debug"]
  extraEnv: [{name: A, value: b}]
  podAnnotations: {a: b}
  podLabels: {a: b}
  nodeSelector: {a: b}
  tolerations: [{key: a, operator: Exists, effect: NoSchedule}]
  affinity: &affinity
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Exists}]}]
agent:
  metricsPort: 9998
  probePort: 9999
  migrationBandwidth: 125000000000
  maxUnavailable: 10%
  extraArgs: ["--log=debug"]
  extraEnv: [{name: A, value: b}]
  podAnnotations: {a: b}
  podLabels: {a: b}
  nodeSelector: {a: b}
  tolerations: []
  affinity: *affinity
networkPolicy:
  metricsFrom: [{podSelector: {matchLabels: {a: b}}}, {ipBlock: {cidr: 10.0.0.0/8}}]
monitoring:
  podMonitor: {enabled: true, interval: 15s, labels: {release: p}}
  prometheusRule: {enabled: true, runbookBase: "https://git.example.com/n/", labels: {release: p}}
  dashboard: {enabled: true}
"#;

/// helm without a cluster.
async fn helm(args: &[&str]) -> Output {
    let tools = Tools::ready(false).await.unwrap();
    let home = TempDir::new().unwrap();
    let mut command = Command::new(tools.helm);
    for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(variable, home.path());
    }
    command.args(args).output().unwrap()
}

#[tokio::test]
async fn lint_has_nothing_to_say() {
    let output = helm(&["lint", "--strict", &chart_path()]).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", refusal(&output));
    assert!(said.contains("1 chart(s) linted, 0 chart(s) failed"), "{said}");
}

#[tokio::test]
async fn the_chart_is_of_this_version_and_says_which_kubernetes_it_needs() {
    let shown = text(helm(&["show", "chart", &chart_path()]).await);
    let version = env!("CARGO_PKG_VERSION");
    for line in [format!("version: {version}"), format!("appVersion: {version}")] {
        assert!(shown.lines().any(|l| l == line), "no {line:?} in {shown}");
    }
    let old = ["template", "x", &chart_path(), "--kube-version", "1.32.9"];
    let said = refusal(&helm(&old).await);
    assert!(said.contains("requires kubeVersion: >=1.33.0-0"), "{said}");
    let oldest = ["template", "x", &chart_path(), "--kube-version", "1.33.0"];
    text(helm(&oldest).await);
}

#[tokio::test]
async fn wrong_values_are_refused_in_words() {
    let cases = [
        (
            "operator.replicas=\"two\"",
            "at '/operator/replicas': got string, want integer",
        ),
        ("operator.replicas=-1", "minimum: got -1, want 0"),
        (
            "operator.replica=2",
            "additional properties 'replica' not allowed",
        ),
        ("agents={}", "additional properties 'agents' not allowed"),
        ("image.tag=5", "at '/image/tag': got number, want string"),
        ("image.registry=\"http://x\"", "does not match pattern"),
        (
            "image.pullPolicy=\"Sometimes\"",
            "value must be one of 'Always', 'IfNotPresent', 'Never'",
        ),
        ("operator.digest=\"latest\"", "does not match pattern"),
        ("agent.metricsPort=70000", "maximum: got 70,000, want 65,535"),
        (
            "agent.httpPort=9808",
            "additional properties 'httpPort' not allowed",
        ),
        ("agent.metricsAudience=\"a b\"", "does not match pattern"),
        ("networkPolicy.metricsFrom=[{}]", "minProperties: got 0, want 1"),
        ("agent.maxUnavailable=\"0%\"", "does not match pattern"),
        (
            "tracing.otlpEndpoint=\"collector:4317\"",
            "does not match pattern",
        ),
        (
            "agent.tolerations={\"key\":\"a\"}",
            "at '/agent/tolerations': got object, want array",
        ),
        (
            "agent.resources.limits.memory=\"much\"",
            "at '/agent/resources/limits/memory'",
        ),
        ("agent.extraArgs=[\"debug\"]", "does not match pattern '^-'"),
        (
            "monitoring.podMonitor.enabled=\"yes\"",
            "got string, want boolean",
        ),
        (
            "monitoring.podMonitor.interval=\"soon\"",
            "does not match pattern",
        ),
        (
            "monitoring.prometheusRule.runbookBase=\"docs\"",
            "does not match pattern",
        ),
        ("log.format=\"xml\"", "value must be one of 'json', 'human'"),
        ("agent.kubeletDir=\"kubelet\"", "does not match pattern"),
        // Good alone, and not together.
        (
            "kubevirt={\"enabled\":false,\"registerBinding\":true}",
            "kubevirt.registerBinding=true needs kubevirt.enabled=true",
        ),
        (
            "agent.cni.enabled=false",
            "kubevirt.enabled=true needs agent.cni.enabled=true",
        ),
        (
            "agent.devicePlugin.enabled=false",
            "kubevirt.enabled=true needs agent.devicePlugin.enabled=true",
        ),
    ];
    let mut wrong = Vec::new();
    for (value, expected) in cases {
        let output = helm(&["template", "x", &chart_path(), "--set-json", value]).await;
        let said = refusal(&output);
        if output.status.success() || !said.contains(expected) {
            wrong.push(format!("{value}: expected {expected:?}, got {said:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn an_image_is_named_by_its_digest_or_by_its_tag() {
    let digest = |part: &str| format!("sha256:{}", if part == "operator" { "a" } else { "b" }.repeat(64));
    let images = async |values: &[String]| {
        let path = chart_path();
        let sets = values.iter().flat_map(|value| ["--set", value]);
        let arguments: Vec<_> = ["template", "x", &path].into_iter().chain(sets).collect();
        let rendered = text(helm(&arguments).await);
        let images = rendered
            .lines()
            .filter_map(|line| line.trim().strip_prefix("image: "));
        images
            .map(str::to_owned)
            .collect::<std::collections::BTreeSet<_>>()
    };
    let version = env!("CARGO_PKG_VERSION");
    let tagged = ["agent", "operator"].map(|part| format!("localhost/hybridnic-{part}:{version}"));
    assert_eq!(images(&[]).await, tagged.into());
    // The tag then does not matter, because somebody may have moved it.
    let parts = ["agent", "operator"];
    let mut values = parts
        .map(|part| format!("{part}.digest={}", digest(part)))
        .to_vec();
    values.extend([
        "image.registry=registry.example.com".to_owned(),
        "image.tag=moved".to_owned(),
    ]);
    let by_digest = parts.map(|part| format!("registry.example.com/hybridnic-{part}@{}", digest(part)));
    assert_eq!(images(&values).await, by_digest.into());
}

#[tokio::test]
async fn without_kubevirt_its_parts_can_be_switched_off() {
    let path = chart_path();
    let off = "kubevirt.enabled=false,agent.cni.enabled=false,agent.devicePlugin.enabled=false";
    let rendered = text(helm(&["template", "x", &path, "--set", off]).await);
    for gone in [
        "--kubevirt",
        "--cni-bin-dir",
        "--kubelet-dir",
        "mountPath: /var/lib/kubelet/device-plugins",
        "network-attachment-definitions",
        "kubevirt.hybridnic.io",
    ] {
        assert!(!rendered.contains(gone), "{gone}");
    }
}

/// All that is in a kubelet's own directory follows one value; device plugins are elsewhere, no matter what it is.
#[tokio::test]
async fn where_the_kubelet_has_its_directory_is_one_value() {
    let path = chart_path();
    let set = "agent.kubeletDir=/var/lib/k0s/kubelet";
    let rendered = text(helm(&["template", "x", &path, "--set", set]).await);
    let mounted: Vec<_> = rendered
        .lines()
        .filter_map(|line| {
            let path = line.trim().strip_prefix("hostPath: {path: ")?.split(',').next()?;
            Some(path.trim_matches('"'))
        })
        .filter(|path| path.contains("kubelet"))
        .collect();
    assert_eq!(
        mounted,
        [
            "/var/lib/k0s/kubelet/pods",
            "/var/lib/kubelet/device-plugins",
            "/var/lib/k0s/kubelet/pod-resources"
        ]
    );
}

/// A kubelet's probes and a scraper come by the family that the cluster has; `[::]` is both.
#[tokio::test]
async fn what_others_ask_is_served_by_either_family() {
    let rendered = text(helm(&["template", "x", &chart_path()]).await);
    let addresses: Vec<_> = rendered
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- --")?.split_once("-address="))
        .collect();
    let on = |what: &str, address: &str| addresses.contains(&(what, address));
    assert!(
        on("http", "[::]:8081") && on("metrics", "[::]:8080") && on("metrics", "[::]:9808"),
        "{addresses:?}"
    );
    // Of the agent's, only its node is to ask.
    assert!(
        on("http", "127.0.0.1:9809") && addresses.len() == 4,
        "{addresses:?}"
    );
}

#[test]
fn the_schema_says_nothing_of_values_that_are_not_there() {
    let schema = fs::read_to_string(chart::path().join("values.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let readme = fs::read_to_string(chart::path().join("README.md")).unwrap();
    let mut paths = Vec::new();
    leaves(&schema, &schema["properties"], "", &mut paths);
    assert!(paths.len() > 40, "{paths:?}");
    for path in paths.iter().filter(|path| *path != "global") {
        let named = readme.contains(&format!("| `{path}` |")) || readme.contains(&format!("| `{path}."));
        assert!(named, "{path} is in the schema and not in the table of values");
    }
}

/// The paths of values that the schema knows, down to where it leaves names open.
fn leaves(schema: &Value, properties: &Value, prefix: &str, paths: &mut Vec<String>) {
    for (name, value) in properties.as_object().unwrap() {
        let path = format!("{prefix}{name}");
        let value = match value["$ref"].as_str().and_then(|r| r.strip_prefix('#')) {
            Some(pointer) => schema.pointer(pointer).unwrap(),
            None => value,
        };
        if value["properties"].is_object() {
            leaves(schema, &value["properties"], &format!("{path}."), paths);
        } else {
            paths.push(path);
        }
    }
}

#[tokio::test]
async fn a_real_api_server_takes_every_object() {
    let dir = TempDir::new().unwrap();
    let cluster = ControlPlane::start(Options::new(dir.path().join("cp")))
        .await
        .unwrap();
    let others = Schemas::ready().await.unwrap();
    for kind in ["podmonitors", "prometheusrules"] {
        let file = format!("monitoring.coreos.com_{kind}.yaml");
        cluster.apply(&others.monitoring_kinds.join(file)).await.unwrap();
    }
    cluster.apply(&repository("crds")).await.unwrap();
    chart::wait_for_kinds(&cluster).await.unwrap();
    kubectl(&cluster, &["create", "namespace", chart::NAMESPACE]).await;

    let all_on = dir.path().join("values.yaml");
    fs::write(&all_on, ALL_ON).unwrap();
    let few = objects(&cluster, dir.path(), &[]).await;
    let many = objects(&cluster, dir.path(), &["--values", all_on.to_str().unwrap()]).await;
    for expected in [
        "deployment.apps/hybridnic-operator",
        "daemonset.apps/hybridnic-agent",
        "poddisruptionbudget.policy/hybridnic-operator",
        "networkpolicy.networking.k8s.io/hybridnic-operator",
        "validatingadmissionpolicy.admissionregistration.k8s.io/agents.hybridnic.io",
        "validatingadmissionpolicy.admissionregistration.k8s.io/writers.hybridnic.io",
        "validatingadmissionpolicy.admissionregistration.k8s.io/kubevirt.hybridnic.io",
        "customresourcedefinition.apiextensions.k8s.io/vmhybridnics.hybridnic.io",
        "pod/hybridnic-check",
    ] {
        assert!(few.iter().any(|o| o == expected), "no {expected} in {few:#?}");
    }
    let mut expected = vec![
        "podmonitor.monitoring.coreos.com/nics-operator",
        "podmonitor.monitoring.coreos.com/nics-agent",
        // By which it reads the agents' metrics.
        "serviceaccount/nics-metrics",
        "secret/nics-metrics",
        "clusterrolebinding.rbac.authorization.k8s.io/nics-metrics",
    ];
    // These two are there once their files are.
    for (file, object) in [
        ("alerts.yaml", "prometheusrule.monitoring.coreos.com/nics"),
        ("dashboard.json", "configmap/nics-dashboard"),
    ] {
        if chart::path().join("files").join(file).exists() {
            expected.push(object);
        }
    }
    for expected in &expected {
        assert!(many.iter().any(|o| o == expected), "no {expected} in {many:#?}");
    }
    assert_eq!(many.len(), few.len() + expected.len(), "{few:#?}\n{many:#?}");

    let rendered = fs::read_to_string(dir.path().join("rendered.yaml")).unwrap();
    let links = rendered.lines().filter(|line| line.contains("runbook_url:"));
    for link in links {
        assert!(link.contains(": https://git.example.com/n/docs/"), "{link}");
    }

    // With schemas alone, as a user without a cluster checks it; and the examples, with ours.
    let conform = Kubeconform::new(&others, &cluster.client_admin(), dir.path()).await;
    let rendered_file = dir.path().join("rendered.yaml");
    conform.takes(&rendered_file, many.len());
    let examples = fs::read_dir(repository("deploy/examples")).unwrap();
    for example in examples.map(|file| file.unwrap().path()) {
        // KubeVirt's are for its own API server: tier `kubevirt`.
        let is_ours = !example.to_string_lossy().contains("kubevirt-");
        if is_ours && example.extension().is_some_and(|e| e == "yaml") {
            conform.takes(&example, count_kinds(&fs::read_to_string(&example).unwrap()));
        }
    }

    // A misspelt field is found; otherwise all of this would prove nothing.
    let broken = rendered.replace("hostNetwork: true", "hostNetwrok: true");
    let file = dir.path().join("broken.yaml");
    fs::write(&file, broken).unwrap();
    let said = refusal(&dry_run(&cluster, &file).await);
    assert!(said.contains("hostNetwrok"), "{said}");
    conform.refuses(&file, "hostNetwrok");
    let nic = "{apiVersion: hybridnic.io/v1alpha1, kind: VmHybridNic, metadata: {name: a}, spec: {network: n, vm: {}, mak: x}}";
    fs::write(&file, nic).unwrap();
    conform.refuses(&file, "mak");
}

/// The token of a Secret is for the API server: if metrics need one for an audience, there is none that could be stolen.
#[tokio::test]
async fn with_an_audience_for_metrics_there_is_no_token_in_a_secret() {
    let rendered = async |audience: &str| {
        let set = [
            "--set=monitoring.podMonitor.enabled=true",
            &format!("--set=agent.metricsAudience={audience}"),
        ];
        text(helm(&["template", "nics", &chart_path(), set[0], set[1]]).await)
    };
    let count = |rendered: &str, line: &str| rendered.lines().filter(|other| *other == line).count();
    for (audience, of_the_agent) in [("", 1), ("hybridnic-metrics", 0)] {
        let rendered = rendered(audience).await;
        assert_eq!(count(&rendered, "kind: Secret"), of_the_agent);
        assert_eq!(count(&rendered, "kind: PodMonitor"), 1 + of_the_agent);
        let argument = format!("            - --metrics-audience={audience}");
        assert_eq!(count(&rendered, &argument), 1 - of_the_agent);
    }
}

fn count_kinds(yaml: &str) -> usize {
    yaml.lines().filter(|line| line.starts_with("kind:")).count()
}

async fn dry_run(cluster: &ControlPlane, file: &Path) -> Output {
    let file = file.to_str().unwrap();
    let args = [
        "apply",
        "--dry-run=server",
        "--validate=strict",
        "-o",
        "name",
        "-f",
        file,
    ];
    cluster.kubectl(&args).await.unwrap()
}

/// All objects that the chart renders with these values, as the API server names them.
async fn objects(cluster: &ControlPlane, dir: &Path, values: &[&str]) -> Vec<String> {
    let path = chart_path();
    let mut args = vec!["template", chart::RELEASE, &path, "--namespace", chart::NAMESPACE];
    args.extend(values);
    let rendered = text(cluster.helm(&args).await.unwrap());
    let count = count_kinds(&rendered);
    let file = dir.join("rendered.yaml");
    fs::write(&file, rendered).unwrap();
    let taken: Vec<String> = text(dry_run(cluster, &file).await)
        .lines()
        .map(str::to_owned)
        .collect();
    assert_eq!(taken.len(), count);
    taken
}
