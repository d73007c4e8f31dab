//! A VM that a kubelet has started is saved on a volume of its pod, and comes back in a pod of the other node, by the objects that the
//! page shows. Its QEMU is an ordinary user in a namespace that is `restricted`.

use std::{path::Path, time::Instant};

use hybridnic_api::{
    conditions::{find, reasons, types},
    v1alpha1::{MigrationPhase, QemuRestore, QemuSave, StateFileStatus},
};
use hybridnic_e2e::{
    cluster::{Cluster, VmPod, VmPodSpec},
    docs,
};

use super::{NAMESPACE, NIC, SOON, all_free, check_nic, fast, watch, watched};

const PAGE: &str = "docs/save.md";
/// The names that the page gives to a save and to a restore.
const NAMES: [&str; 2] = ["web-tonight", "web-again"];
/// Whose the files are, and who may read them, as the other node sees them. What was written beside them is gone.
const FILES: &str = "web.state 107:107 600\nweb.state.hybridnic.json 107:107 600\n";

/// The object of this kind that the page shows first.
fn shown(kind: &str) -> String {
    let pages = docs::pages().unwrap();
    let page = pages.iter().find(|page| page.path == Path::new(PAGE)).unwrap();
    let line = format!("kind: {kind}");
    let mut blocks = page.blocks.iter();
    let block = blocks.find(|block| block.text.lines().any(|l| l == line));
    block.expect(kind).text.clone()
}

/// Saves the VM, which runs on n2, and restores it on n1.
pub async fn to_the_other_node(cluster: &Cluster, spec: &VmPodSpec, vm: &VmPod) {
    vm.inside.run("echo kept >/tmp/mark", SOON).await.unwrap();
    let pinger = watch(cluster, spec).await;
    is_refused_what_qemu_may_not(cluster).await;

    let began = Instant::now();
    cluster.apply(&shown("QemuSave")).await.unwrap();
    let saved = save(cluster, NAMES[0]).await;
    assert_eq!(phase(saved.as_ref()), MigrationPhase::Succeeded, "{saved:#?}");
    let ended = format!("pod/{}", vm.pod);
    let succeeded = "--for=jsonpath={.status.phase}=Succeeded";
    cluster
        .kubectl(&["wait", &ended, "-n", NAMESPACE, succeeded, "--timeout=60s"])
        .await
        .unwrap();
    eprintln!(
        "figure: save applied to pod ended {:.1} s",
        began.elapsed().as_secs_f64()
    );
    are_whole(cluster).await;
    all_free(cluster, 2).await;

    let began = Instant::now();
    cluster.apply(&shown("QemuRestore")).await.unwrap();
    let again = cluster.start_vm(spec, "web-e", 1, 5, true).await.unwrap();
    let is_over = |restore: &QemuRestore| phase(restore.status.as_ref()).is_final();
    let restored = cluster.until_object(NAMESPACE, NAMES[1], "over", is_over).await;
    let restored = restored.unwrap().status;
    assert_eq!(
        phase(restored.as_ref()),
        MigrationPhase::Succeeded,
        "{restored:#?}"
    );
    assert!(pinger.answered(20, SOON).await, "no answer after the restore");
    eprintln!(
        "figure: restore applied, and its pod made, to the first answers {:.1} s",
        began.elapsed().as_secs_f64()
    );
    let nic = fast(cluster, NAMESPACE, NIC, "n1").await;
    check_nic(cluster.node(1), &again.inside, &nic).await.unwrap();
    let mark = again.inside.run("cat /tmp/mark", SOON).await.unwrap();
    assert_eq!(mark.trim(), "kept", "it is the VM that was saved");
    are_whole(cluster).await;
    for gap in &watched(pinger).await.round_trip.gaps {
        eprintln!("gap of {:?}, {} lost", gap.length, gap.lost);
    }
    let both = cluster
        .kubectl(&["get", "qsave,qrestore", "-n", NAMESPACE, "-o", "wide"])
        .await;
    eprintln!("{}", both.unwrap());
}

/// The volume with the guest's kernel is root's, and is read-only in the pod. The save says that QEMU's user may not write there, and the
/// VM stays on its VF.
async fn is_refused_what_qemu_may_not(cluster: &Cluster) {
    let there = shown("QemuSave")
        .replace(NAMES[0], "web-refused")
        .replace("/disk/", "/guest/");
    cluster.apply(&there).await.unwrap();
    let refused = save(cluster, "web-refused").await;
    assert_eq!(phase(refused.as_ref()), MigrationPhase::Failed, "{refused:#?}");
    let status = refused.unwrap();
    let why = find(&status.conditions, types::SUCCEEDED).unwrap();
    assert_eq!(why.reason, reasons::FILE_REFUSED, "{}", why.message);
    let words = "QEMU's user, 107, may not make files";
    assert!(why.message.contains(words), "{}", why.message);
    fast(cluster, NAMESPACE, NIC, "n2").await;
}

/// How a save has ended.
async fn save(cluster: &Cluster, name: &str) -> Option<StateFileStatus> {
    let is_over = |save: &QemuSave| phase(save.status.as_ref()).is_final();
    let over = cluster.until_object(NAMESPACE, name, "over", is_over).await;
    over.unwrap().status
}

fn phase(status: Option<&StateFileStatus>) -> MigrationPhase {
    status.map(|status| status.phase).unwrap_or_default()
}

async fn are_whole(cluster: &Cluster) {
    let look = "cd /common && for file in $(ls -A | grep -F web.state); do stat -c '%n %u:%g %a' $file; done";
    let files = cluster.node(1).run(look, SOON).await.unwrap();
    assert_eq!(files, FILES);
}
