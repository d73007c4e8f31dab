use std::{
    fs::{self, File},
    path::Path,
};

use super::*;

/// In this directory, of this host.
pub(crate) fn in_dir(dir: &Path, node: &str) -> Board {
    let place = Place::new(dir, &File::open(dir).unwrap()).unwrap();
    let board = Board::new(node);
    board.enter(&Arc::new(place));
    board
}

fn verdict(kind: Kind, refusal: Option<(&'static str, String)>) -> Verdict {
    Verdict {
        kind,
        generation: Some(5),
        refusal,
    }
}

fn said(board: &Board, name: &str) -> VmHybridNicStatus {
    let document = board.earlier(name).unwrap();
    serde_json::from_value(document["status"].clone()).unwrap()
}

fn fast() -> NicAttachmentStatus {
    let mut status = NicAttachmentStatus {
        state: AttachmentState::FastPath,
        path: hybridnic_api::v1alpha1::Path::FastPath,
        ..NicAttachmentStatus::default()
    };
    let ready = NewCondition::yes(types::READY, reasons::ATTACHED, "both are in the guest");
    conditions::set(&mut status.conditions, Some(1), Timestamp::UNIX_EPOCH, ready);
    status
}

#[tokio::test]
async fn a_nic_is_told_beside_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let board = in_dir(dir.path(), "h1");
    board.say("eth0", &verdict(Kind::Nic, None), None).await.unwrap();
    assert_eq!(said(&board, "eth0").phase, NicPhase::Attaching);
    board.tell("eth0", Some(&fast())).await.unwrap();
    let now = said(&board, "eth0");
    assert_eq!(
        (now.phase, now.observed_generation),
        (NicPhase::FastPath, Some(5))
    );
    assert!(conditions::is_true(&now.conditions, types::READY));
    // Of a file that is not understood: that is said, and how the NIC is stays.
    let refusal = Some((reasons::FILE_UNKNOWN, "no YAML".to_owned()));
    board
        .say("eth0", &verdict(Kind::Nic, refusal), None)
        .await
        .unwrap();
    let now = said(&board, "eth0");
    let accepted = conditions::find(&now.conditions, types::ACCEPTED).unwrap();
    assert_eq!(
        (accepted.status.as_str(), accepted.message.as_str()),
        ("False", "no YAML")
    );
    assert_eq!(now.phase, NicPhase::FastPath);
    board.forget("eth0").await.unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// It would prove that this is the directory of a NIC that it does not know.
#[tokio::test]
async fn of_what_was_not_seen_here_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let board = in_dir(dir.path(), "h1");
    board.tell("eth0", Some(&fast())).await.unwrap();
    board.tell("eth0", None).await.unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    board.say("eth0", &verdict(Kind::Nic, None), None).await.unwrap();
    assert_eq!(said(&board, "eth0").phase, NicPhase::FastPath, "it was kept");
    board.hide().await;
    fs::remove_file(dir.path().join("eth0.status.yaml")).unwrap();
    board.tell("eth0", Some(&fast())).await.unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn what_was_said_is_known_to_the_next_agent_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let board = in_dir(dir.path(), "h1");
    board.say("eth0", &verdict(Kind::Nic, None), None).await.unwrap();
    let before = said(&board, "eth0").conditions;
    let next = in_dir(dir.path(), "h1");
    next.say("eth0", &verdict(Kind::Nic, None), None).await.unwrap();
    assert_eq!(said(&next, "eth0").conditions, before, "since when is kept");
    fs::remove_file(dir.path().join("eth0.status.yaml")).unwrap();
    next.again("eth0").await.unwrap();
    assert_eq!(said(&next, "eth0").conditions, before);
}

#[tokio::test]
async fn a_network_says_what_its_pool_has() {
    let dir = tempfile::tempdir().unwrap();
    let board = in_dir(dir.path(), "h1");
    board
        .say("fast", &verdict(Kind::Network, None), None)
        .await
        .unwrap();
    let mut pool = PoolStatus {
        network: "fast".into(),
        message: "no PF".into(),
        ..PoolStatus::default()
    };
    board.count(&[pool.clone()]).await.unwrap();
    let ready = |board: &Board| {
        let document = board.earlier("fast").unwrap();
        conditions::find(&conditions_of(&document), types::READY)
            .unwrap()
            .reason
            .clone()
    };
    assert_eq!(ready(&board), reasons::POOL_EMPTY);
    (pool.vfs.total, pool.vfs.free) = (7, 7);
    board.count(&[pool]).await.unwrap();
    assert_eq!(ready(&board), reasons::POOL_READY);
}

/// As where one is mounted over it, of which the kernel tells nobody. What were said there would be proof that it is the NIC's.
#[tokio::test]
async fn nothing_is_said_in_another_directory() {
    let home = tempfile::tempdir().unwrap();
    let [dir, aside] = ["nics", "aside"].map(|name| home.path().join(name));
    fs::create_dir(&dir).unwrap();
    let board = in_dir(&dir, "h1");
    board.say("eth0", &verdict(Kind::Nic, None), None).await.unwrap();
    board.say("eth1", &verdict(Kind::Nic, None), None).await.unwrap();
    fs::rename(&dir, &aside).unwrap();
    fs::create_dir(&dir).unwrap();
    let told = [
        board.tell("eth0", Some(&fast())).await,
        board.again("eth1").await,
        board.say("eth2", &verdict(Kind::Nic, None), None).await,
    ];
    for told in told {
        let error = told.unwrap_err().to_string();
        assert!(error.contains("another directory"), "{error}");
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    // It is back.
    fs::remove_dir(&dir).unwrap();
    fs::rename(&aside, &dir).unwrap();
    board.tell("eth0", None).await.unwrap();
    assert_eq!(said(&board, "eth0").phase, NicPhase::FastPath);
}

#[tokio::test]
async fn what_another_host_has_said_of_itself_proves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let board = in_dir(dir.path(), "h1");
    let place = board.place().unwrap();
    for (node, status, seen) in [
        ("h2", json!({ "observedGeneration": 7 }), None),
        ("h1", json!({}), None),
        ("h1", json!({ "observedGeneration": 7 }), Some(7)),
    ] {
        let said = json!({ "metadata": { "name": node }, "status": status });
        put(&place, file::NODE, Some(&said)).await.unwrap();
        assert_eq!(board.seen_of_host(&place), seen, "{said}");
    }
}

/// A driver of a migration reads it, and so does the next agent.
#[tokio::test]
async fn what_is_wanted_and_how_it_is_stands_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let board = in_dir(dir.path(), "h1");
    let record = crate::journal::tests::record("uid-1");
    let want = Want {
        id: crate::wants::WantId {
            namespace: "local".into(),
            name: "eth0".into(),
            uid: record.spec.nic.uid.clone(),
        },
        created: 1,
        spec: record.spec.clone(),
        socket: Some("/run/vms/vm1.qmp".into()),
        generation: Some(7),
        deleting: false,
        status: None,
    };
    board
        .say("eth0", &verdict(Kind::Nic, None), Some(&want))
        .await
        .unwrap();
    assert_eq!(board.attached("eth0", &want.id.uid), None);
    board.tell("eth0", Some(&fast())).await.unwrap();
    assert_eq!(board.attached("eth0", &want.id.uid), Some(fast()));
    assert_eq!(board.attached("eth0", "another"), None);
    let said = board.earlier("eth0").unwrap();
    let attached: Attached = serde_json::from_value(said["attached"].clone()).unwrap();
    assert_eq!((attached.generation, attached.spec), (Some(7), want.spec));
}
/// A driver would take the want of a word for silence, and a source's report of a migration is not said twice.
#[tokio::test]
async fn what_an_earlier_agent_has_said_stands_until_there_is_more() {
    let dir = tempfile::tempdir().unwrap();
    let record = crate::journal::tests::record("uid-1");
    let want = Want {
        id: crate::wants::WantId {
            namespace: "local".into(),
            name: "eth0".into(),
            uid: record.spec.nic.uid.clone(),
        },
        created: 1,
        spec: record.spec.clone(),
        socket: Some("/run/vms/vm1.qmp".into()),
        generation: Some(7),
        deleting: false,
        status: None,
    };
    let mut status = fast();
    let report = hybridnic_api::v1alpha1::MigrationState::Completed;
    status.migration = Some(hybridnic_api::v1alpha1::MigrationReport::new("m-1", report));
    let verdict = verdict(Kind::Nic, None);
    let board = in_dir(dir.path(), "h1");
    board.say("eth0", &verdict, Some(&want)).await.unwrap();
    board.tell("eth0", Some(&status)).await.unwrap();
    // In either order.
    for holds_first in [false, true] {
        let next = in_dir(dir.path(), "h1");
        if holds_first {
            next.tell("eth0", None).await.unwrap();
        }
        next.say("eth0", &verdict, Some(&want)).await.unwrap();
        assert_eq!(next.attached("eth0", &want.id.uid), Some(status.clone()));
        next.tell("eth0", None).await.unwrap();
        assert_eq!(next.attached("eth0", &want.id.uid), Some(status.clone()));
    }
    // Of another NIC of the name nothing was said.
    let mut other = want.clone();
    other.id.uid = "another".into();
    other.spec.nic.uid = "another".into();
    let next = in_dir(dir.path(), "h1");
    next.say("eth0", &verdict, Some(&other)).await.unwrap();
    assert_eq!(next.attached("eth0", "another"), None);
}
