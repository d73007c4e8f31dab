use std::{os::unix::fs::PermissionsExt as _, path::Path};

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

fn args(line: &[&str]) -> Args {
    Line::parse_from(["migrate"].iter().chain(line)).args
}

/// A host with a network and a NIC that is attached, as its agent says it.
fn host(node: &str, nic: bool) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let put = |file: &str, text: &str| fs::write(home.path().join(file), text).unwrap();
    put(
        "node.status.yaml",
        &format!("metadata: {{name: {node}}}\nstatus: {{}}\n"),
    );
    put(
        "fast.status.yaml",
        "kind: HybridNetwork\nmetadata: {name: fast}\nstatus: {}\n",
    );
    if nic {
        put("eth0.yaml", super::super::file::tests::NIC);
        let said = serde_json::json!({
            "kind": "VmHybridNic",
            "metadata": {"name": "eth0"},
            "attached": {"socket": "/run/vms/vm1.qmp", "generation": 1, "spec": {
                "nodeName": node,
                "nic": {"name": "eth0", "uid": "uid-1"},
                "vm": {"qemu": {"name": "vm1"}},
                "pod": {"name": "vm1", "uid": "host-1"},
                "network": "fast",
                "mac": "52:54:00:77:00:50",
                "goal": "FastPath",
                "noFreeVf": "Standby",
                "l2": {"spoofCheck": true, "trust": false},
            }, "status": {"observedGeneration": 1, "state": "Standby"}},
            "status": {},
        });
        put("eth0.status.yaml", &serde_saphyr::to_string(&said).unwrap());
    }
    home
}

fn nics(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

/// What becomes of a migration between these hosts before it begins.
fn checked(line: &[&str], source: &Path, target: &Path) -> anyhow::Result<Flight> {
    let args = args(line);
    let names: BTreeSet<String> = args.nics.iter().cloned().collect();
    let [here, there] = [source, target].map(|dir| Hand::new(dir, &names).look().unwrap());
    begin::checked(source, &args, &here, &there, "10.0.0.2".parse().unwrap())
}

#[test]
fn what_can_be_known_before_is_checked_before() {
    let (source, target) = (host("h1", true), host("h2", false));
    let flight = checked(&["eth0"], source.path(), target.path()).unwrap();
    assert_eq!((flight.target.node.as_str(), flight.vm.as_str()), ("h2", "vm1"));
    let there = super::super::file::asked("eth0", &flight.nics["eth0"].there).unwrap();
    assert_eq!(
        there.spec.mac.as_deref(),
        Some("52:54:00:77:00:50"),
        "it keeps its address"
    );
    let moved = checked(
        &["eth0", "--to-socket", "/run/other.qmp"],
        source.path(),
        target.path(),
    )
    .unwrap();
    assert_eq!(moved.target.socket, Path::new("/run/other.qmp"));

    let refused = |line: &[&str], source: &Path, target: &Path, why: &str| {
        let error = format!("{:#}", checked(line, source, target).unwrap_err());
        assert!(error.contains(why), "{error}");
    };
    refused(&["eth1"], source.path(), target.path(), "there is no NIC eth1");
    refused(
        &["eth0"],
        source.path(),
        host("h1", false).path(),
        "both hosts are called h1",
    );
    refused(
        &["eth0"],
        source.path(),
        host("h2", true).path(),
        "h2 has a NIC eth0 already",
    );
    fs::remove_file(target.path().join("fast.status.yaml")).unwrap();
    refused(
        &["eth0"],
        source.path(),
        target.path(),
        "no HybridNetwork fast on h2",
    );
    let text = super::super::file::tests::NIC.replace("eth0", "eth1");
    fs::write(source.path().join("eth1.yaml"), text).unwrap();
    refused(
        &["eth0"],
        source.path(),
        host("h2", false).path(),
        "eth1 is a NIC of the same VM",
    );
}

#[tokio::test]
async fn what_has_not_begun_is_neither_called_off_nor_decided() {
    let source = host("h1", true);
    for line in [
        &["eth0", "--cancel"][..],
        &["eth0"],
        &["eth0", "--decision", "ResumeSource"],
    ] {
        let error = run(source.path(), args(line)).await.unwrap_err();
        assert!(
            error.to_string().contains("no migration of eth0 has begun"),
            "{error:#}"
        );
    }
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_said_and_nothing_has_begun() {
    let source = host("h1", true);
    let line = ["eth0", "--to", "h2", "--connect", "false"];
    let error = format!("{:#}", run(source.path(), args(&line)).await.unwrap_err());
    assert!(
        error.starts_with("h2 does not answer, and nothing has begun"),
        "{error}"
    );
    assert!(!kept(source.path(), "eth0").exists());
}

#[test]
fn only_one_drives() {
    let source = host("h1", true);
    let _first = lock(source.path(), "eth0").unwrap();
    assert!(lock(source.path(), "eth0").is_err());
    lock(source.path(), "eth1").unwrap();
}

#[test]
fn a_decision_is_taken_when_it_is_asked_for() {
    let (source, target) = (host("h1", true), host("h2", false));
    let flight = checked(&["eth0"], source.path(), target.path()).unwrap();
    let decide = args(&["eth0", "--decision", "AbandonSource"]);
    assert!(again(flight.clone(), &decide).is_err());
    let mut asked = flight;
    asked.status.undecided_since = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(
        jiff::Timestamp::UNIX_EPOCH,
    ));
    let decided = again(asked, &decide).unwrap();
    assert_eq!(
        (decided.decision, decided.session),
        (Some(Decision::AbandonSource), 2)
    );
    let other = args(&["eth0", "--decision", "ResumeSource"]);
    assert!(again(decided, &other).is_err(), "it cannot be taken back");
}

/// The far end, as a shell does it.
fn far(home: &Path, script: &str) -> Way {
    let path = home.join("connect");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    Way {
        connect: path.display().to_string(),
        agent: "hybridnic-agent".into(),
    }
}

#[tokio::test]
async fn the_far_end_says_what_it_sees_and_answers() {
    let home = tempfile::tempdir().unwrap();
    let dir = Path::new("/etc/hybridnic");
    let names = nics(&["eth0", "eth1"]);
    let script = "echo \"$@\" > \"$0.args\"
        echo '{\"seen\":{\"protocol\":1,\"node\":\"h2\",\"networks\":[],\"nics\":{}}}'
        read line
        echo '{\"seen\":{\"protocol\":1,\"node\":\"h3\",\"networks\":[],\"nics\":{}}}'
        echo '{\"done\":{\"Ok\":null}}'
        read line
        echo '{\"done\":{\"Err\":\"no\"}}'";
    let way = far(home.path(), script);
    let (mut there, seen) = Far::connect(&way, dir, &names).await.unwrap();
    assert_eq!(seen.node, "h2");
    let (done, seen) = there.tell(&hand::Command::Look).await.unwrap();
    assert_eq!((done, seen.unwrap().node.as_str()), (Ok(()), "h3"));
    let (done, _) = there.tell(&hand::Command::Look).await.unwrap();
    assert_eq!(done, Err("no".to_owned()));
    there.tell(&hand::Command::Look).await.unwrap_err();
    let args = fs::read_to_string(home.path().join("connect.args")).unwrap();
    assert_eq!(args, "hybridnic-agent ctl --dir /etc/hybridnic serve eth0 eth1\n");
}

#[tokio::test]
async fn what_is_no_far_end_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let names = nics(&["eth0"]);
    for (script, why) in [
        ("echo Welcome to h2", "cannot be understood"),
        ("exit 255", "the connection has ended"),
        (
            "echo '{\"seen\":{\"protocol\":2,\"node\":\"h2\",\"networks\":[],\"nics\":{}}}'",
            "another version",
        ),
    ] {
        let way = far(home.path(), script);
        let error = Far::connect(&way, Path::new("/etc/hybridnic"), &names)
            .await
            .unwrap_err();
        assert!(format!("{error:#}").contains(why), "{error:#}");
    }
    let way = far(home.path(), "exit");
    for dir in ["/etc/$(reboot)", "/etc/a b", "--help"] {
        Far::connect(&way, Path::new(dir), &names).await.unwrap_err();
    }
}

#[test]
fn a_nic_that_is_not_as_its_file_says_does_not_leave() {
    let target = host("h2", false);
    let refused = |source: &Path, why: &str| {
        let error = format!("{:#}", checked(&["eth0"], source, target.path()).unwrap_err());
        assert!(error.contains(why), "{error}");
    };
    let source = host("h1", true);
    let order = r#"{"migration":"m-7","session":1,"serial":1,"says":"over"}"#;
    fs::write(source.path().join("eth0.order.json"), order).unwrap();
    refused(source.path(), "the migration m-7 has eth0");
    let source = host("h1", true);
    let path = source.path().join("eth0.status.yaml");
    let mut said: serde_json::Value = serde_saphyr::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    said["status"] = serde_json::json!({ "conditions": [{
        "type": "Accepted", "status": "False", "reason": "FileUnknown", "message": "no YAML",
        "lastTransitionTime": "1970-01-01T00:00:00Z",
    }] });
    fs::write(&path, serde_saphyr::to_string(&said).unwrap()).unwrap();
    refused(source.path(), "FileUnknown: no YAML");
}

/// A migration that has begun, and is driven no more.
fn left_behind(source: &Path, phase: hybridnic_api::v1alpha1::MigrationPhase, connect: &str) -> Flight {
    let target = host("h2", false);
    let mut flight = checked(&["eth0"], source, target.path()).unwrap();
    flight.status.phase = phase;
    (flight.host, flight.dir) = ("h2".into(), "/etc/hybridnic".into());
    (flight.connect, flight.agent) = (connect.to_owned(), plan::agent());
    keep(source, Some(&flight), "eth0").unwrap();
    flight
}

fn is_late(code: ExitCode) -> bool {
    format!("{code:?}") == format!("{:?}", ExitCode::from(LATE))
}

#[tokio::test]
async fn another_host_in_the_targets_place_is_told_nothing() {
    use hybridnic_api::v1alpha1::MigrationPhase;
    let (source, home) = (host("h1", true), tempfile::tempdir().unwrap());
    let script = "echo '{\"seen\":{\"protocol\":1,\"node\":\"h3\",\"networks\":[],\"nics\":{}}}'
        cat > \"$0.told\"";
    let way = far(home.path(), script);
    left_behind(source.path(), MigrationPhase::Pending, &way.connect);
    let code = run(source.path(), args(&["eth0"])).await.unwrap();
    assert!(is_late(code));
    assert_eq!(
        fs::read_to_string(home.path().join("connect.told")).unwrap_or_default(),
        ""
    );
    assert!(kept(source.path(), "eth0").exists());
}

#[tokio::test]
async fn an_error_after_the_begin_does_not_say_where_the_vm_is() {
    let source = host("h1", true);
    fs::write(kept(source.path(), "eth0"), "{").unwrap();
    assert!(is_late(run(source.path(), args(&["eth0"])).await.unwrap()));
    let source = host("h1", true);
    left_behind(
        source.path(),
        hybridnic_api::v1alpha1::MigrationPhase::Transferring,
        "false",
    );
    fs::remove_file(source.path().join("node.status.yaml")).unwrap();
    assert!(is_late(run(source.path(), args(&["eth0"])).await.unwrap()));
}

#[tokio::test]
async fn one_that_is_over_does_not_stand_in_the_way_of_the_next() {
    use hybridnic_api::v1alpha1::MigrationPhase::{Failed, Transferring};
    let source = host("h1", true);
    let next = ["eth0", "--to", "h9", "--connect", "false"];
    left_behind(source.path(), Transferring, "false");
    assert!(
        is_late(run(source.path(), args(&next)).await.unwrap()),
        "it goes to h2"
    );
    // Something of it is left here.
    let flight = left_behind(source.path(), Failed, "false");
    let order = format!(
        r#"{{"migration":"{}","session":1,"serial":1,"says":"over"}}"#,
        flight.uid
    );
    fs::write(source.path().join("eth0.order.json"), order).unwrap();
    assert!(is_late(run(source.path(), args(&next)).await.unwrap()));
    fs::remove_file(source.path().join("eth0.order.json")).unwrap();
    let error = format!("{:#}", run(source.path(), args(&next)).await.unwrap_err());
    assert!(
        error.starts_with("h9 does not answer, and nothing has begun"),
        "{error}"
    );
    assert!(!kept(source.path(), "eth0").exists());
}

#[test]
fn how_the_target_is_reached_is_kept() {
    let source = host("h1", true);
    let flight = left_behind(
        source.path(),
        hybridnic_api::v1alpha1::MigrationPhase::Transferring,
        "ssh h2",
    );
    let dir = Path::new("/etc/hybridnic");
    assert_eq!(
        flight.command(dir),
        "hybridnic-agent ctl --dir /etc/hybridnic migrate eth0"
    );
    let line = [
        "eth0",
        "--agent",
        "/opt/agent",
        "--connect",
        "ssh -i k h2",
        "--to-dir",
        "/srv/h",
    ];
    let flight = again(flight, &args(&line)).unwrap();
    keep(source.path(), Some(&flight), "eth0").unwrap();
    let flight = again(read(source.path(), "eth0").unwrap().unwrap(), &args(&["eth0"])).unwrap();
    assert_eq!(
        (flight.agent.as_str(), flight.connect.as_str()),
        ("/opt/agent", "ssh -i k h2")
    );
    assert_eq!(flight.dir, Path::new("/srv/h"));
}
