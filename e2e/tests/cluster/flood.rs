//! A user who may write one object cannot fill the API server's store with it, nor the operator's memory.

use std::time::Duration;

use hybridnic_api::names::{AGENT_MANAGER, ATTACHMENT_FINALIZER, NIC_FINALIZER, OPERATOR_MANAGER};
use hybridnic_api::v1alpha1::{HybridNetwork, NicAttachment, QemuMigration, VmHybridNic, crds};
use hybridnic_e2e::chart;
use hybridnic_e2e::controlplane::{ControlPlane, Options};
use hybridnic_e2e::usage::Usage;
use hybridnic_e2e::world::repository;
use k8s_openapi::api::core::v1::ResourceQuota;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::bench::{Bench, DEADLINE, NAMESPACE};

/// A schema without its limits, as it was before there were any.
fn unlimited(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            for limit in ["maxLength", "maxItems", "maxProperties"] {
                // A field may have that name; none of ours has.
                fields.remove(limit);
            }
            fields.values_mut().for_each(unlimited);
        }
        Value::Array(items) => items.iter_mut().for_each(unlimited),
        _ => {}
    }
}

/// The kinds as they were: a rule of a spec costs too much without the limits that it always had.
fn older() -> Vec<CustomResourceDefinition> {
    let older = crds().into_iter().map(|crd| {
        let mut crd = serde_json::to_value(crd).unwrap();
        let attachment = crd["spec"]["names"]["kind"] == "NicAttachment";
        let schema = crd
            .pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties")
            .unwrap();
        unlimited(&mut schema["status"]);
        if attachment {
            unlimited(&mut schema["spec"]);
        }
        if let Some(selector) = schema.pointer_mut("/spec/properties/nodeSelector") {
            unlimited(selector);
        }
        serde_json::from_value(crd).unwrap()
    });
    older.collect()
}

async fn apply_crds(client: &Client, all: &[CustomResourceDefinition]) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let params = PatchParams::apply("test").force();
    for crd in all {
        api.patch(&crd.name_any(), &params, &Patch::Apply(crd))
            .await
            .unwrap();
    }
}

fn condition(message: &str) -> Value {
    json!({
        "type": "Ready", "status": "False", "reason": "Failed", "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    })
}

fn timeline(entries: usize, length: usize) -> Value {
    let entry = json!({"event": "x".repeat(length), "at": "2026-01-01T00:00:00.000000Z"});
    json!(vec![entry; entries])
}

fn attachment(name: &str) -> NicAttachment {
    let reference = json!({"name": "x", "uid": "u"});
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "nodeName": "n1", "nic": reference, "vm": {"qemu": {"name": "vm"}}, "pod": reference, "network": "net", "mac": "02:00:00:00:00:01",
            "goal": "Standby", "noFreeVf": "Standby", "l2": {"spoofCheck": true, "trust": false},
        },
    }))
    .unwrap()
}

/// Applies a status, as one of the programs does.
async fn say<K>(api: &Api<K>, by: &str, name: &str, status: Value) -> kube::Result<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let whole = json!({
        "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": {"name": name}, "status": status,
    });
    let params = PatchParams::apply(by).force();
    api.patch_status(name, &params, &Patch::Apply(whole)).await
}

/// What earlier agents and operators have written is longer than the API takes now. Each of them goes on with it.
#[tokio::test]
async fn what_was_stored_before_there_were_limits_wedges_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = ControlPlane::start(Options::new(dir.path().join("cp")))
        .await
        .unwrap();
    let client = cluster.client_admin();
    apply_crds(&client, &older()).await;
    chart::wait_for_kinds(&cluster).await.unwrap();
    let attachments: Api<NicAttachment> = Api::default_namespaced(client.clone());
    let migrations: Api<QemuMigration> = Api::default_namespaced(client.clone());
    let networks: Api<HybridNetwork> = Api::all(client.clone());
    let post = PostParams::default();
    attachments.create(&post, &attachment("a")).await.unwrap();
    let values: Vec<_> = (0..100).map(|n| format!("zone-{n}")).collect();
    let network = json!({
        "metadata": {"name": "net"},
        "spec": {
            "uplinks": [{"pfNames": ["ens*"]}],
            "nodeSelector": {"matchExpressions": [{"key": "zone", "operator": "In", "values": values}]},
        },
    });
    networks
        .create(&post, &serde_json::from_value(network).unwrap())
        .await
        .unwrap();
    let migration = json!({"metadata": {"name": "m"}, "spec": {"vm": "vm"}});
    migrations
        .create(&post, &serde_json::from_value(migration).unwrap())
        .await
        .unwrap();
    let long = "y".repeat(5000);
    let status =
        json!({"state": "Standby", "timeline": timeline(60, 8000), "conditions": [condition(&long)]});
    say(&attachments, AGENT_MANAGER, "a", status).await.unwrap();
    let status = json!({"conditions": [condition(&long)]});
    say(&networks, OPERATOR_MANAGER, "net", status).await.unwrap();
    let phases: Vec<_> = (0..100)
        .map(|n| json!({"name": format!("p{n}"), "startedAt": "2026-01-01T00:00:00.000000Z"}))
        .collect();
    let status =
        json!({"phase": "Pending", "phases": phases, "failure": {"reason": "Failed", "message": long}});
    say(&migrations, OPERATOR_MANAGER, "m", status).await.unwrap();

    // The upgrade. The API server needs a moment to take it up.
    apply_crds(&client, &crds()).await;
    attachments.create(&post, &attachment("b")).await.unwrap();
    let too_long = json!({"timeline": timeline(1, 65)});
    let begun = Instant::now();
    while say(&attachments, AGENT_MANAGER, "b", too_long.clone())
        .await
        .is_ok()
    {
        assert!(begun.elapsed() < DEADLINE, "it takes what is too long");
        sleep(Duration::from_millis(100)).await;
    }

    // Others' fields of objects that are too long: a finalizer, a goal.
    let merge = PatchParams::default();
    let finalizer = json!({"metadata": {"finalizers": [ATTACHMENT_FINALIZER]}});
    attachments
        .patch("a", &merge, &Patch::Merge(&finalizer))
        .await
        .unwrap();
    attachments
        .patch("a", &merge, &Patch::Merge(json!({"spec": {"goal": "Detached"}})))
        .await
        .unwrap();
    let decision = json!({"metadata": {"finalizers": ["hybridnic.io/migration"]}});
    migrations
        .patch("m", &merge, &Patch::Merge(decision))
        .await
        .unwrap();
    // One field of a status whose others stay too long, as a program would that says what it has read.
    let old = attachments.get("a").await.unwrap();
    let mut status = serde_json::to_value(old.status.unwrap()).unwrap();
    status["state"] = json!("FastPath");
    let kept = say(&attachments, AGENT_MANAGER, "a", status).await.unwrap();
    assert_eq!(kept.status.unwrap().timeline.len(), 60);
    let old = networks.get("net").await.unwrap();
    let mut status = serde_json::to_value(old.status.unwrap()).unwrap();
    status["nics"] = json!(7);
    say(&networks, OPERATOR_MANAGER, "net", status).await.unwrap();
    let old = migrations.get("m").await.unwrap();
    let mut status = serde_json::to_value(old.status.unwrap()).unwrap();
    status["phase"] = json!("RollingBack");
    say(&migrations, OPERATOR_MANAGER, "m", status).await.unwrap();
    // What the programs say of them from now on fits.
    let status =
        json!({"state": "Standby", "timeline": timeline(40, 64), "conditions": [condition(&long[..2048])]});
    let written = say(&attachments, AGENT_MANAGER, "a", status).await.unwrap();
    assert_eq!(written.status.unwrap().timeline.len(), 40);
    // And it is released.
    attachments
        .patch(
            "a",
            &merge,
            &Patch::Merge(json!({"metadata": {"finalizers": null}})),
        )
        .await
        .unwrap();
    for (status, why) in [
        (json!({"timeline": timeline(41, 1)}), "timeline"),
        (json!({"conditions": [condition(&long[..2049])]}), "message"),
    ] {
        let refused = say(&attachments, AGENT_MANAGER, "a", status).await.unwrap_err();
        assert!(refused.to_string().contains(why), "{refused}");
    }
}

/// As `edit` in one namespace may do; this once made the kernel kill the operator of all for its memory.
#[tokio::test]
async fn a_tenants_annotations_do_not_fill_the_operators_memory() {
    const NICS: usize = 300;
    const ANNOTATION: usize = 250_000;
    let mut bench = Bench::start().await;
    let large = "x".repeat(ANNOTATION);
    let nics: Vec<_> = (0..NICS).collect();
    for some in nics.chunks(8) {
        let mut made = tokio::task::JoinSet::new();
        for n in some {
            let nic: VmHybridNic = serde_json::from_value(json!({
                // With the finalizer, so that each costs the store less.
                "metadata": {"name": format!("f{n}"), "annotations": {"a": large}, "finalizers": [NIC_FINALIZER]},
                "spec": {"network": "nowhere", "vm": {"qemu": {"name": "v"}}},
            }))
            .unwrap();
            let api = bench.nics();
            made.spawn(async move { api.create(&PostParams::default(), &nic).await.map(|_| ()) });
        }
        for made in made.join_all().await {
            made.unwrap();
        }
    }
    bench.start_operator();
    let begun = Instant::now();
    loop {
        // The last to come is the last to be made true.
        let last = bench.nics().get(&format!("f{}", NICS - 1)).await.unwrap();
        if last.status.is_some() && bench.operators[0].ask("GET /readyz", "").await.0 == 200 {
            break;
        }
        assert!(begun.elapsed() < 2 * DEADLINE, "{}", bench.logs());
        sleep(Duration::from_millis(500)).await;
    }
    let usage = Usage::of_process(bench.operators[0].pid()).unwrap();
    println!("{NICS} NICs with {ANNOTATION} octets each: {usage:?}");
    assert!(
        usage.peak_kib < 64 << 10,
        "the operator took {} KiB",
        usage.peak_kib
    );
    // The others are served.
    bench.create_nic("eth0", "vm", None).await;
    bench
        .nic_with("eth0", "accepted", |nic| {
            nic.status.as_ref().is_some_and(|status| status.mac.is_some())
        })
        .await;
}

/// A NIC that its user has given more finalizers than the operator keeps. A leader that has just begun still knows its address, and does
/// not remove any of the user's when it writes.
#[tokio::test]
async fn a_nic_with_finalizers_without_end_keeps_its_address() {
    const MAC: &str = "02:00:00:00:00:0a";
    const COUNT: usize = 1000;
    let mut bench = Bench::start().await;
    bench.create_nic("first", "vm", Some(MAC)).await;
    let theirs: Vec<_> = (0..COUNT).map(|n| format!("example.com/{n}")).collect();
    let many = json!({"metadata": {"finalizers": theirs}});
    bench
        .nics()
        .patch("first", &PatchParams::default(), &Patch::Merge(many))
        .await
        .unwrap();
    bench.start_operator();
    let first = bench
        .nic_with("first", "with an address", |nic| {
            nic.status.as_ref().is_some_and(|status| status.mac.is_some())
        })
        .await;
    let mut all = theirs.clone();
    all.push(NIC_FINALIZER.to_owned());
    assert_eq!(first.finalizers(), all);
    // A later NIC does not get it, not even from a leader that has never seen another version of the first.
    bench.operators.remove(0).terminate().await;
    bench.create_nic("second", "vm", Some(MAC)).await;
    bench.start_operator();
    let second = bench
        .nic_with("second", "refused", |nic| {
            nic.status
                .as_ref()
                .is_some_and(|status| !status.conditions.is_empty())
        })
        .await;
    let status = second.status.unwrap();
    assert_eq!(status.mac, None, "{status:?}");
    assert!(
        status
            .conditions
            .iter()
            .any(|condition| condition.reason == "MacConflict"),
        "{status:?}"
    );
    // And it goes, as far as it is ours to say.
    bench
        .nics()
        .delete("first", &DeleteParams::default())
        .await
        .unwrap();
    let first = bench
        .nic_with("first", "let go", |nic| {
            !nic.finalizers().iter().any(|one| one == NIC_FINALIZER)
        })
        .await;
    assert_eq!(first.finalizers(), theirs);
}

/// A user writes one NIC all the time. What that leads to is written once a second.
#[tokio::test]
async fn who_writes_all_the_time_has_the_operator_write_once_a_second() {
    let mut bench = Bench::start().await;
    bench.start_operator();
    bench.create_nic("busy", "vm", None).await;
    bench.nic_with("busy", "seen", |nic| nic.status.is_some()).await;
    let before = bench.writes().len();
    let (begun, mut changes) = (Instant::now(), 0u32);
    while begun.elapsed() < Duration::from_secs(10) {
        let no_free_vf = ["Wait", "Standby"][changes as usize % 2];
        let patch = json!({"spec": {"noFreeVf": no_free_vf}});
        bench
            .nics()
            .patch("busy", &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
        changes += 1;
    }
    let generation = bench.nics().get("busy").await.unwrap().metadata.generation;
    bench
        .nic_with("busy", "up to date", |nic| {
            nic.status
                .as_ref()
                .is_some_and(|status| status.observed_generation == generation)
        })
        .await;
    let writes = bench.writes();
    let of_it = writes[before..]
        .iter()
        .filter(|write| write.ends_with(" busy"))
        .count();
    println!(
        "{changes} changes by the user, {of_it} writes by the operator in {:?}",
        begun.elapsed()
    );
    let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap();
    assert!(of_it <= 31 + seconds, "{of_it} writes in {seconds} s");
    assert!(of_it < changes as usize, "{changes} changes are too few to tell");
}

/// What bounds a tenant's VFs, according to docs/security.md.
#[tokio::test]
async fn a_quota_bounds_a_tenants_nics_and_migrations() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = ControlPlane::start(Options::new(dir.path().join("cp")))
        .await
        .unwrap();
    cluster.apply(&repository("crds")).await.unwrap();
    chart::wait_for_kinds(&cluster).await.unwrap();
    let client = cluster.client_admin();
    let hard = json!({"count/vmhybridnics.hybridnic.io": "2", "count/qemumigrations.hybridnic.io": "1"});
    let quota: ResourceQuota = serde_json::from_value(json!({
        "metadata": {"name": "vfs", "namespace": NAMESPACE}, "spec": {"hard": hard},
    }))
    .unwrap();
    let quotas: Api<ResourceQuota> = Api::namespaced(client.clone(), NAMESPACE);
    quotas.create(&PostParams::default(), &quota).await.unwrap();
    // What its controller says at first, which does not run here.
    let used = json!({"count/vmhybridnics.hybridnic.io": "0", "count/qemumigrations.hybridnic.io": "0"});
    let status = json!({"status": {"hard": hard, "used": used}});
    quotas
        .patch_status("vfs", &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
    let nic = |n: usize| -> VmHybridNic {
        serde_json::from_value(json!({
            "metadata": {"name": format!("eth{n}")}, "spec": {"network": "net", "vm": {"qemu": {"name": "v"}}},
        }))
        .unwrap()
    };
    let nics: Api<VmHybridNic> = Api::namespaced(client.clone(), NAMESPACE);
    let begun = Instant::now();
    let mut made = 0;
    // The API server knows a quota a moment after it was made.
    let refused = loop {
        match nics.create(&PostParams::default(), &nic(made)).await {
            Ok(_) => made += 1,
            Err(error) => break error.to_string(),
        }
        assert!(begun.elapsed() < DEADLINE, "no quota");
    };
    assert!(refused.contains("exceeded quota: vfs"), "{refused}");
    let migration = |n: usize| -> QemuMigration {
        serde_json::from_value(json!({"metadata": {"name": format!("m{n}")}, "spec": {"vm": "v"}})).unwrap()
    };
    let migrations: Api<QemuMigration> = Api::namespaced(client, NAMESPACE);
    migrations
        .create(&PostParams::default(), &migration(0))
        .await
        .unwrap();
    let refused = migrations
        .create(&PostParams::default(), &migration(1))
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("exceeded quota: vfs"), "{refused}");
}
