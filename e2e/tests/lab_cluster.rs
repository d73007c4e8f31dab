//! The product as users run it: a Helm chart on a real two-node cluster, VMs in pods that kubelets start. One cluster for
//! all of it, because making one is expensive.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "a test ends where something is not as it should be"
)]

mod common;
#[path = "lab_cluster/devices.rs"]
mod devices;
#[path = "lab_cluster/save.rs"]
mod save;

use std::time::{Duration, Instant};

use common::{LATER, SOON, check_nic, on, on_cluster, phase, twice, watched, whole};
use futures::TryStreamExt as _;
use hybridnic_api::v1alpha1::{MigrationPhase, Path, VmHybridNic};
use hybridnic_e2e::{
    cluster::{Cluster, SYSTEM, VmPod, VmPodSpec},
    lab::{Pinger, Report},
    until::until,
    world::{NicSpec, footprint},
};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use kube::{
    Api, ResourceExt as _,
    runtime::{WatchStreamExt as _, wait::await_condition, watcher},
};

const NAMESPACE: &str = "default";
const NIC: &str = "web-0";
/// Packets a second while something is done to the system.
const RATE: u32 = 50;

#[tokio::test(flavor = "multi_thread")]
async fn from_helm_install_to_uninstall() {
    twice("cluster", async |name| story(name).await).await;
}

async fn story(name: &str) {
    let began = Instant::now();
    let say = |what: &str| eprintln!("--- {what}");
    let mut cluster = Cluster::start(name, say).await.unwrap();
    let dead = cluster.lab.node_ended();
    let test = async |cluster: &mut Cluster| whole(Box::pin(flight(cluster, began)), dead).await;
    on_cluster(&mut cluster, test).await;
}

async fn flight(cluster: &mut Cluster, began: Instant) {
    let say = |what: &str| eprintln!("--- {:5.1} s  {what}", began.elapsed().as_secs_f64());

    install(cluster).await;
    say("installed");
    // What `nic.yaml` of the examples says.
    let spec = VmPodSpec::new(NAMESPACE, "web", &[NicSpec::new(0, 50)]);
    let spare = first_vm(cluster, &spec).await;
    say("a VM is on its fast path");
    looked_at(cluster).await;
    say("helm test, the doctor and the metrics say that all is well");
    at_rest(cluster).await;
    migrate_while_an_agent_is_killed(cluster, &spec, &spare).await;
    say("it has migrated");
    waits_in_turn(cluster).await;
    say("the pod that it has left waits for it");
    eprintln!("{}", plugin(cluster, &["nic", NIC]).await);
    undisturbed(cluster, &spare, &spec, "upgrade and rollback", async |cluster| {
        cluster
            .helm(&["upgrade", "hybridnic"], &["log.filter=debug"])
            .await
            .unwrap();
        cluster.helm(&["rollback", "hybridnic", "1"], &[]).await.unwrap();
    })
    .await;
    say("upgraded and rolled back");
    let pinger = watch(cluster, &spec).await;
    let joined = cluster.joined(2);
    joined.kill_kubelet().await.unwrap();
    joined.start_kubelet().await.unwrap();
    cluster.ready("n2").await.unwrap();
    nothing_lost(&pinger.stop().await, "a kubelet's restart");
    say("a kubelet was restarted");
    undisturbed(cluster, &spare, &spec, "uninstall and install", async |cluster| {
        cluster.helm(&["uninstall", "hybridnic"], &[]).await.unwrap();
        let kept = cluster.kubectl(&["get", "vhn", NIC, "-o", "name"]).await.unwrap();
        assert!(kept.contains(NIC), "{kept}");
        cluster.helm(&["install", "hybridnic"], &[]).await.unwrap();
    })
    .await;
    say("uninstalled and installed again");
    namespace_deleted(cluster).await;
    say("devices were given once, and a namespace was deleted");
    let vm = rebooted(cluster, &spec).await;
    say("a node was rebooted");
    save::to_the_other_node(cluster, &spec, &vm).await;
    say("the VM was saved there, and restored on the other");
    drained(cluster).await;
    say("a node was drained");
}

/// `helm install` with no values but the images' tag.
async fn install(cluster: &Cluster) {
    let began = Instant::now();
    let notes = cluster
        .helm(&["install", "hybridnic", "--create-namespace"], &[])
        .await;
    notes.unwrap();
    eprintln!(
        "figure: helm install to ready {:.1} s",
        began.elapsed().as_secs_f64()
    );
    eprintln!(
        "{}",
        cluster
            .kubectl(&["get", "pods", "-A", "-o", "wide"])
            .await
            .unwrap()
    );
    for node in 1..=2 {
        cluster
            .until_node(node, "published", |n| {
                n.status.as_ref().is_some_and(|s| s.pf_count == 2)
            })
            .await
            .unwrap();
    }
    cluster.apply_file("deploy/examples/network.yaml").await.unwrap();
    for node in 1..=2 {
        all_free(cluster, node).await;
    }
}

async fn all_free(cluster: &Cluster, node: usize) {
    cluster
        .until_node(node, "with 14 free VFs", |n| {
            n.status.as_ref().is_some_and(|s| s.vfs.free == 14)
        })
        .await
        .unwrap();
}

async fn fast(cluster: &Cluster, namespace: &str, nic: &str, node: &str) -> VmHybridNic {
    cluster
        .until_nic(namespace, nic, &format!("on the fast path on {node}"), |n| {
            on(n, Path::FastPath)
                && n.status
                    .as_ref()
                    .is_some_and(|s| s.node_name.as_deref() == Some(node))
        })
        .await
        .unwrap()
}

/// The example's StatefulSet: a pod with the VM, and one that waits for it, which is given.
async fn first_vm(cluster: &Cluster, spec: &VmPodSpec) -> VmPod {
    let [vm, spare] = cluster.start_vm_set(spec, 3).await.unwrap();
    let began = Instant::now();
    cluster.apply_file("deploy/examples/nic.yaml").await.unwrap();
    let nic = fast(cluster, NAMESPACE, NIC, "n1").await;
    eprintln!(
        "figure: NIC applied to fast path {:.1} s (the guest boots meanwhile)",
        began.elapsed().as_secs_f64()
    );
    check_nic(cluster.node(1), &vm.inside, &nic).await.unwrap();
    // QEMU is an ordinary user, whatever it was handed.
    let rights = cluster
        .node(1)
        .run(
            "grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/$(pidof qemu-system-x86_64)/status",
            SOON,
        )
        .await
        .unwrap();
    for line in [
        "Uid:\t107",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(rights.contains(line), "{line} is not in\n{rights}");
    }
    spare
}

/// How much of a processor each program takes while it only answers its probes. This is a figure, not a proof, so
/// it is measured only if release builds are tried (`HYBRIDNIC_BIN`).
async fn at_rest(cluster: &Cluster) {
    const WINDOW: Duration = Duration::from_mins(2);
    if std::env::var_os("HYBRIDNIC_BIN").is_none() {
        return;
    }
    let before = [cpu(cluster, 1).await, cpu(cluster, 2).await];
    tokio::time::sleep(WINDOW).await;
    for (before, node) in before.into_iter().zip(1..) {
        for ((program, before), (_, after)) in before.into_iter().zip(cpu(cluster, node).await) {
            let share = after.saturating_sub(before).as_secs_f64() / WINDOW.as_secs_f64();
            eprintln!(
                "figure: {program} on n{node} at rest: {:.2} millicores",
                share * 1000.0
            );
        }
    }
    // What an emulated processor is worth of ours.
    let work = "dd if=/dev/zero bs=1M count=32 2>/dev/null | busybox sha256sum";
    let began = Instant::now();
    cluster.node(1).run(work, SOON).await.unwrap();
    let there = began.elapsed();
    let began = Instant::now();
    let here = tokio::process::Command::new("sh").args(["-c", work]).output();
    assert!(here.await.unwrap().status.success());
    let ratio = there.as_secs_f64() / began.elapsed().as_secs_f64();
    eprintln!("figure: a node takes {ratio:.1} times as long for the same work as this machine");
}

/// CPU time that each of our programs on a node has taken, with everything in its container.
async fn cpu(cluster: &Cluster, node: usize) -> Vec<(String, Duration)> {
    // A control group counts by microseconds, a process by ticks.
    let script = "for name in agent operator; do for p in $(pidof hybridnic-$name); do \
                    echo $name $(awk '/^usage_usec/ {print $2}' /sys/fs/cgroup$(sed -n s/^0:://p /proc/$p/cgroup)/cpu.stat); \
                  done; done";
    let lines = cluster.node(node).run(script, SOON).await.unwrap();
    let parse = |line: &str| {
        let (program, time) = line.split_once(' ').unwrap();
        (program.to_owned(), Duration::from_micros(time.parse().unwrap()))
    };
    lines.lines().map(parse).collect()
}

/// Runs `kubectl hybridnic` as an administrator; it must say that all is well.
async fn plugin(cluster: &Cluster, args: &[&str]) -> String {
    cluster.plugin(args).await.unwrap()
}

/// What an administrator looks at, where it is installed for real.
async fn looked_at(cluster: &Cluster) {
    cluster.helm(&["test", "hybridnic"], &[]).await.unwrap();
    eprintln!("{}", plugin(cluster, &["doctor"]).await);
    eprintln!("{}", plugin(cluster, &["top", "--once", "-A"]).await);
    let held = ["get", "hybridnodes", "-o", "jsonpath={.items[*].status.vfs.held}"];
    let held = cluster.kubectl(&held).await.unwrap();
    assert!(
        held.split_whitespace().any(|count| count == "1"),
        "no held VF: {held}"
    );
    // They are for those only who may get them.
    let ask = "wget -qO- http://127.0.0.1:9808/metrics 2>&1 || echo refused";
    let plain = cluster.node(1).run(ask, SOON).await.unwrap();
    assert!(
        plain.contains("refused") && !plain.contains("hybridnic_agent"),
        "{plain}"
    );
    for program in ["agent", "operator"] {
        let memory = format!("grep VmRSS /proc/$(pidof hybridnic-{program} | cut -d' ' -f1)/status");
        let memory = cluster.node(1).run(&memory, SOON).await.unwrap();
        eprintln!("figure: {program} on the cluster: {}", memory.trim());
    }
}

async fn watch(cluster: &Cluster, spec: &VmPodSpec) -> Pinger {
    common::watch(&cluster.lab, spec.nics[0].address, RATE).await
}

fn nothing_lost(report: &Report, what: &str) {
    eprintln!(
        "{what}: {} of {} packets lost",
        report.round_trip.lost(),
        report.round_trip.sent
    );
    assert_eq!(
        report.round_trip.lost(),
        0,
        "{what}: {} of the answers, {:#?}",
        report.answers_lost,
        report.round_trip.gaps
    );
}

/// The system is changed while a VM's traffic goes on: the VM never notices, and is on its VF all the time.
async fn undisturbed(
    cluster: &Cluster,
    vm: &VmPod,
    spec: &VmPodSpec,
    what: &str,
    act: impl AsyncFn(&Cluster),
) {
    let pinger = watch(cluster, spec).await;
    act(cluster).await;
    let nic = fast(cluster, NAMESPACE, NIC, "n2").await;
    check_nic(cluster.node(2), &vm.inside, &nic).await.unwrap();
    nothing_lost(&pinger.stop().await, what);
}

async fn agent_of(cluster: &Cluster, node: &str) -> String {
    let field = format!("--field-selector=spec.nodeName={node}");
    let pods = cluster
        .kubectl(&[
            "get",
            "pods",
            "-n",
            SYSTEM,
            "-l",
            "app.kubernetes.io/component=agent",
            &field,
            "-o",
            "name",
        ])
        .await
        .unwrap();
    pods.trim().trim_start_matches("pod/").to_owned()
}

/// Waits until a node has an agent that is ready, and is not the one of this name.
async fn agent_is_back(cluster: &Cluster, node: &str, old: &str) {
    let pods: Api<Pod> = Api::namespaced(cluster.client(), SYSTEM);
    let of_node = watcher::Config::default()
        .labels("app.kubernetes.io/component=agent")
        .fields(&format!("spec.nodeName={node}"));
    let is_back = |pod: &Pod| {
        let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
        let ready = |c: &PodCondition| c.type_ == "Ready" && c.status == "True";
        pod.name_any() != old && conditions.is_some_and(|all| all.iter().any(ready))
    };
    let pods = watcher(pods, of_node).applied_objects();
    let mut back = std::pin::pin!(pods.try_filter(|pod| std::future::ready(is_back(pod))));
    tokio::time::timeout(LATER, back.try_next())
        .await
        .expect("the agent is not back")
        .unwrap();
}

async fn migrate_while_an_agent_is_killed(cluster: &Cluster, spec: &VmPodSpec, target: &VmPod) {
    let pinger = watch(cluster, spec).await;
    // The example without its targetPod: the set's other pod will do.
    cluster
        .apply(
            "apiVersion: hybridnic.io/v1alpha1\nkind: QemuMigration\nmetadata: {name: web-to-n2, namespace: default}\n\
             spec: {vm: web}\n",
        )
        .await
        .unwrap();
    cluster
        .until_object(NAMESPACE, "web-to-n2", "switching", |m| {
            phase(m) == MigrationPhase::SwitchingToStandby || phase(m).is_final()
        })
        .await
        .unwrap();
    let agent = agent_of(cluster, "n1").await;
    let killed = Instant::now();
    cluster
        .kubectl(&[
            "delete",
            "pod",
            "-n",
            SYSTEM,
            &agent,
            "--force",
            "--grace-period=0",
        ])
        .await
        .unwrap();
    let (ready, done) = tokio::join!(
        async {
            agent_is_back(cluster, "n1", &agent).await;
            killed.elapsed()
        },
        cluster.until_object(NAMESPACE, "web-to-n2", "over", |m| phase(m).is_final())
    );
    let done = done.unwrap();
    eprintln!(
        "figure: agent pod killed to the next one ready {:.1} s",
        ready.as_secs_f64()
    );
    assert_eq!(phase(&done), MigrationPhase::Succeeded, "{:#?}", done.status);
    eprintln!(
        "figure: agent pod killed to the end of the migration that it had in hand {:.1} s",
        killed.elapsed().as_secs_f64()
    );
    let nic = fast(cluster, NAMESPACE, NIC, "n2").await;
    check_nic(cluster.node(2), &target.inside, &nic).await.unwrap();
    let report = watched(pinger).await;
    for gap in &report.round_trip.gaps {
        eprintln!("gap of {:?}, {} lost", gap.length, gap.lost);
    }
}

/// The kubelet has started the left pod's QEMU again, and it has not booted the VM a second time.
async fn waits_in_turn(cluster: &Cluster) {
    let is_back = "until tr '\\0' ' ' </proc/$(pidof qemu-system-x86_64)/cmdline | grep -q -- '-incoming defer'; \
                   do sleep 0.5; done";
    cluster.node(1).run(is_back, SOON).await.unwrap();
    let restarted = |pod: Option<&Pod>| {
        let containers = pod
            .and_then(|pod| pod.status.as_ref()?.container_statuses.as_deref())
            .unwrap_or_default();
        containers.iter().any(|c| c.restart_count == 1)
    };
    let pods: Api<Pod> = Api::namespaced(cluster.client(), NAMESPACE);
    tokio::time::timeout(SOON, await_condition(pods, "web-0", restarted))
        .await
        .expect("web-0 was not restarted, or more than once")
        .unwrap();
}

/// A VM has asked for its VF, and others do. Then their namespace goes with VM and NIC in it, and the node is as before; also the
/// agent's view of it.
async fn namespace_deleted(cluster: &mut Cluster) {
    let clean = footprint(cluster.node(1)).await.unwrap();
    cluster.kubectl(&["create", "namespace", "team"]).await.unwrap();
    let mut spec = VmPodSpec::new("team", "db", &[NicSpec::new(0, 60)]);
    spec.socket_in_memory = true;
    spec.devices = vec![devices::RESOURCE.to_owned()];
    let _vm = cluster.start_vm(&spec, "db-a", 1, 4, false).await.unwrap();
    let mac = &spec.nics[0].mac;
    cluster
        .apply(&format!(
            "apiVersion: hybridnic.io/v1alpha1\nkind: VmHybridNic\nmetadata: {{name: db-0, namespace: team}}\n\
             spec: {{network: fast, vm: {{qemu: {{name: db}}}}, mac: \"{mac}\"}}\n"
        ))
        .await
        .unwrap();
    fast(cluster, "team", "db-0", "n1").await;
    devices::are_given_once(cluster, "team").await;
    cluster
        .kubectl(&["delete", "namespace", "team", "--timeout=150s"])
        .await
        .unwrap();
    clean_again(cluster, 1, &clean).await;
    // The volumes of a namespace that is gone are not mounted where the agent would keep them.
    // The agent's broker is a process of its own, so there is more than one to look at.
    let mounted = "pids=$(pidof hybridnic-agent) && for pid in $pids; do \
                   echo \"$pid $(grep -c kubernetes.io~empty-dir/hybridnic /proc/$pid/mounts)\"; done";
    let mounted = cluster.node(1).run(mounted, SOON).await.unwrap();
    assert!(
        !mounted.is_empty() && mounted.lines().all(|line| line.ends_with(" 0")),
        "the volume is still in the agent's view, by process: {mounted}"
    );
}

async fn clean_again(cluster: &Cluster, node: usize, clean: &str) {
    let end = Instant::now() + SOON;
    loop {
        let now = footprint(cluster.node(node)).await.unwrap();
        if now == clean {
            return;
        }
        assert!(
            Instant::now() < end,
            "node {node} is not as it was:\n{now}\ninstead of\n{clean}"
        );
        // A node tells nobody of what is on it.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// A node is reset with a VM on it: VFs are made again, the journal's records are cleared, and the VM's next pod gets its NIC.
async fn rebooted(cluster: &mut Cluster, spec: &VmPodSpec) -> VmPod {
    cluster.reboot(2).await.unwrap();
    // No pod of the set boots the VM again: one of its own does.
    cluster
        .kubectl(&[
            "delete",
            "statefulset",
            "web",
            "--cascade=foreground",
            "--timeout=90s",
        ])
        .await
        .unwrap();
    let again = cluster.start_vm(spec, "web-d", 2, 5, false).await.unwrap();
    fast(cluster, NAMESPACE, NIC, "n2").await;
    // The VM may be there before all VFs are: then its NIC has one of the other PF first, and goes to its standby's after a minute.
    let at_home = |n: &VmHybridNic| {
        let status = n.status.as_ref();
        let pfs = status.and_then(|s| Some((&s.vf.as_ref()?.pf, &s.standby.as_ref()?.pf)));
        on(n, Path::FastPath) && pfs.is_some_and(|(vf, standby)| vf == standby)
    };
    let api = Api::namespaced(cluster.client(), NAMESPACE);
    let nic = until(api, NIC, LATER, "on its standby's PF", at_home)
        .await
        .unwrap();
    check_nic(cluster.node(2), &again.inside, &nic).await.unwrap();
    again
}

/// A drain ends the VM on the node, as it ends every pod; its VF goes back, and the agent stays.
async fn drained(cluster: &Cluster) {
    cluster
        .kubectl(&[
            "drain",
            "n1",
            "--ignore-daemonsets",
            "--force",
            "--delete-emptydir-data",
            "--timeout=150s",
        ])
        .await
        .unwrap();
    cluster
        .until_nic(NAMESPACE, NIC, "without traffic", |n| {
            n.status.as_ref().is_some_and(|s| s.path == Path::None)
        })
        .await
        .unwrap();
    all_free(cluster, 1).await;
    assert!(!agent_of(cluster, "n1").await.is_empty());
    cluster.kubectl(&["uncordon", "n1"]).await.unwrap();
}
