use super::*;

/// What an agent says of a NIC.
fn say(dir: &Path, name: &str, status: &Value) {
    let document = json!({ "kind": "VmHybridNic", "metadata": { "name": name }, "status": status });
    let text = serde_saphyr::to_string(&document).unwrap();
    durable::set(dir, &dir.join(file::status(name)), Some(text.as_bytes())).unwrap();
}

fn accepted(status: &str, generation: i64) -> Value {
    json!({
        "observedGeneration": generation,
        "phase": "Attaching",
        "conditions": [{
            "type": "Accepted",
            "status": status,
            "reason": "MacConflict",
            "message": "it is another's",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    })
}

fn args(dir: &Path, command: &[&str]) -> Args {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }
    let dir = dir.to_str().unwrap();
    let line = ["ctl", "--dir", dir].into_iter().chain(command.iter().copied());
    <Line as clap::Parser>::parse_from(line).args
}

const ATTACH: [&str; 6] = [
    "attach",
    "eth0",
    "--network",
    "fast",
    "--socket",
    "/run/vms/vm1.qmp",
];

/// The file of a NIC as most ask for one.
fn macvtap() -> String {
    let socket = Path::new("/run/vms/vm1.qmp");
    nic_text("eth0", "fast", socket, None, Standby::Macvtap).unwrap()
}

/// The code that a command ends with, or its error, while `agent` does its part.
async fn ended(dir: &Path, command: &[&str], agent: impl Future<Output = ()>) -> Result<u8, String> {
    let (ended, ()) = tokio::join!(run(args(dir, command)), agent);
    // It has no other way to be looked at.
    let code = |code: ExitCode| (0..=2).find(|n| format!("{:?}", ExitCode::from(*n)) == format!("{code:?}"));
    ended
        .map(|end| code(end).unwrap())
        .map_err(|error| format!("{error:#}"))
}

#[tokio::test]
async fn a_nic_is_attached_when_the_agent_says_it_of_this_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    // Of an earlier file.
    say(
        path,
        "eth0",
        &json!({ "phase": "FastPath", "observedGeneration": 1 }),
    );
    let agent = async {
        while !path.join("eth0.yaml").exists() {
            tokio::task::yield_now().await;
        }
        let text = fs::read_to_string(path.join("eth0.yaml")).unwrap();
        let generation = file::generation(&text);
        say(
            path,
            "eth0",
            &json!({ "phase": "Attaching", "observedGeneration": generation }),
        );
        tokio::task::yield_now().await;
        say(
            path,
            "eth0",
            &json!({ "phase": "FastPath", "observedGeneration": generation }),
        );
    };
    assert_eq!(ended(path, &ATTACH, agent).await, Ok(0));
    let text = fs::read_to_string(path.join("eth0.yaml")).unwrap();
    file::parse("eth0", &text, None).unwrap();
    // Once more, and nothing is to be done.
    assert_eq!(ended(path, &ATTACH, async {}).await, Ok(0));
    let mut other = ATTACH;
    other[3] = "slow";
    let error = ended(path, &other, async {}).await.unwrap_err();
    assert!(error.contains("asks for something else"), "{error}");
}

#[tokio::test]
async fn what_the_agent_refuses_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let text = macvtap();
    say(path, "eth0", &accepted("False", file::generation(&text)));
    let error = ended(path, &ATTACH, async {}).await.unwrap_err();
    assert!(error.contains("MacConflict: it is another's"), "{error}");
}

#[test]
fn the_directory_may_be_said_before_or_behind_the_command_or_not_at_all() {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }
    <Line as clap::CommandFactory>::command().debug_assert();
    let dir = |line: &[&str]| <Line as clap::Parser>::try_parse_from(line).map(|line| line.args.dir);
    assert_eq!(dir(&["ctl", "nic"]).unwrap(), Path::new(DIR));
    for line in [["ctl", "--dir", "/d", "nic"], ["ctl", "nic", "--dir", "/d"]] {
        assert_eq!(dir(&line).unwrap(), Path::new("/d"));
    }
    for wrong in [
        &["ctl", "drain-pf"][..],
        &["ctl", "drain-pf", "ens1", "--all"],
        &["ctl", "undrain-pf", "--all", "--network", "fast"],
    ] {
        dir(wrong).unwrap_err();
    }
}

#[tokio::test]
async fn one_that_is_not_there_is_told_from_one_that_no_agent_knows() {
    let dir = tempfile::tempdir().unwrap();
    let nic = ["nic", "eth0"];
    let error = ended(dir.path(), &nic, async {}).await.unwrap_err();
    assert!(error.contains("there is no such NIC"), "{error}");
    fs::write(dir.path().join("eth0.yaml"), macvtap()).unwrap();
    let error = ended(dir.path(), &nic, async {}).await.unwrap_err();
    assert!(error.contains("no agent has said anything"), "{error}");
    let error = ended(dir.path(), &["detach", "node"], async {})
        .await
        .unwrap_err();
    assert!(error.contains("the host's own"), "{error}");
}

#[tokio::test]
async fn where_no_agent_runs_it_is_not_done_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let attach = [&ATTACH[..], &["--timeout", "1"]].concat();
    assert_eq!(ended(dir.path(), &attach, async {}).await, Ok(LATE));
    let attach = [&ATTACH[..], &["--timeout", "0"]].concat();
    assert_eq!(ended(dir.path(), &attach, async {}).await, Ok(0));
}

#[tokio::test]
async fn what_cannot_be_asked_for_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    for (at, bad) in [(1, "Eth0"), (3, ""), (5, "vm1.qmp")] {
        let mut attach = ATTACH;
        attach[at] = bad;
        ended(dir.path(), &attach, async {}).await.unwrap_err();
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_nic_is_detached_when_nothing_is_said_of_it_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let error = ended(path, &["detach", "eth0"], async {}).await.unwrap_err();
    assert!(error.contains("no NIC eth0"), "{error}");
    fs::write(path.join("eth0.yaml"), "").unwrap();
    say(path, "eth0", &json!({ "phase": "FastPath" }));
    let agent = async {
        while path.join("eth0.yaml").exists() {
            tokio::task::yield_now().await;
        }
        say(path, "eth0", &json!({ "phase": "Detaching" }));
        tokio::task::yield_now().await;
        fs::remove_file(path.join("eth0.status.yaml")).unwrap();
    };
    assert_eq!(ended(path, &["detach", "eth0"], agent).await, Ok(0));
}

#[tokio::test]
async fn a_nic_is_told_its_path_in_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let error = ended(path, &["standby", "eth0"], async {}).await.unwrap_err();
    assert!(error.contains("no NIC eth0"), "{error}");
    let text = macvtap();
    fs::write(path.join("eth0.yaml"), &text).unwrap();
    let vf = json!({ "pciAddress": "0000:01:10.0", "pf": "ens0", "index": 0 });
    // What the agent says, each time that the file has another text; of a kept VF, too.
    let agent = async |before: &str, phases: &[Value]| {
        let file = path.join("eth0.yaml");
        let text = loop {
            let text = fs::read_to_string(&file).unwrap();
            if text != before {
                break text;
            }
            tokio::task::yield_now().await;
        };
        for status in phases {
            let mut status = status.clone();
            status["observedGeneration"] = json!(file::generation(&text));
            say(path, "eth0", &status);
            tokio::task::yield_now().await;
        }
    };
    let aside = [
        json!({ "phase": "FastPath", "vf": vf }),
        json!({ "phase": "Standby", "vf": vf }),
    ];
    let keep = ["standby", "eth0", "--keep-vf"];
    assert_eq!(ended(path, &keep, agent(&text, &aside)).await, Ok(0));
    let kept = fs::read_to_string(path.join("eth0.yaml")).unwrap();
    let back = [
        json!({ "phase": "Standby", "vf": vf }),
        json!({ "phase": "Standby" }),
    ];
    let ended_so = ended(path, &["standby", "eth0"], agent(&kept, &back)).await;
    assert_eq!(ended_so, Ok(0), "its VF went back first");
    let aside = fs::read_to_string(path.join("eth0.yaml")).unwrap();
    let Ok(asked) = file::asked("eth0", &aside) else {
        panic!("{aside}")
    };
    assert_eq!(
        (asked.spec.path, asked.spec.keep_vf),
        (WantedPath::Standby, false)
    );
    let fast = [
        json!({ "phase": "Standby" }),
        json!({ "phase": "FastPath", "vf": vf }),
    ];
    assert_eq!(ended(path, &["fast", "eth0"], agent(&aside, &fast)).await, Ok(0));
    // Said already: nothing is written, and it is so.
    let now = fs::read_to_string(path.join("eth0.yaml")).unwrap();
    assert_eq!(ended(path, &["fast", "eth0"], async {}).await, Ok(0));
    assert_eq!(fs::read_to_string(path.join("eth0.yaml")).unwrap(), now);
}

#[tokio::test]
async fn what_two_commands_write_at_once_is_all_written() {
    let at = tempfile::tempdir().unwrap();
    let dir = at.path();
    let [kept, made, gone] = ["eth0.yaml", "eth1.yaml", "eth2.yaml"].map(|name| dir.join(name));
    let text = macvtap();
    fs::write(&kept, &text).unwrap();
    fs::write(&gone, &text).unwrap();
    // As another command has it between its look and its write.
    let lock = durable::lock(dir).unwrap();
    let commands: [fn(&Path) -> anyhow::Result<()>; 3] = [
        |dir| set_path(dir, "eth0", WantedPath::Standby, false, false).map(|_| ()),
        |dir| make(dir, "eth1", "a: b"),
        |dir| remove(dir, "eth2").map(|_| ()),
    ];
    let others = commands.map(|command| {
        let dir = dir.to_owned();
        tokio::task::spawn_blocking(move || command(&dir))
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(
        others.iter().all(|other| !other.is_finished()),
        "one does not wait"
    );
    assert!(!made.exists() && gone.exists());
    let mut document: Value = serde_saphyr::from_str(&text).unwrap();
    document["spec"]["noFreeVf"] = json!("Wait");
    fs::write(&kept, serde_saphyr::to_string(&document).unwrap()).unwrap();
    drop(lock);
    for other in others {
        other.await.unwrap().unwrap();
    }
    let Ok(asked) = file::asked("eth0", &fs::read_to_string(&kept).unwrap()) else {
        panic!("it is not understood")
    };
    assert_eq!(
        (asked.spec.path, asked.spec.no_free_vf),
        (WantedPath::Standby, hybridnic_api::v1alpha1::NoFreeVf::Wait)
    );
    assert!(made.exists() && !gone.exists());
}

#[tokio::test]
async fn a_nic_of_which_no_agent_has_said_anything_is_not_said_to_have_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let text = nic_text(
        "eth0",
        "fast",
        Path::new("/run/vms/vm1.qmp"),
        None,
        Standby::Macvtap,
    )
    .unwrap();
    fs::write(path.join("eth0.yaml"), text).unwrap();
    let late = ended(path, &["detach", "eth0", "--timeout", "1"], async {}).await;
    assert_eq!(late, Ok(2));
    assert!(!path.join("eth0.yaml").exists());
}

#[test]
fn a_network_is_not_detached() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    fs::write(path.join("fast.yaml"), "kind: HybridNetwork\n").unwrap();
    let refused = remove(path, "fast").unwrap_err().to_string();
    assert!(refused.contains("is a network"), "{refused}");
    // One that nobody understands any more, and was one.
    fs::write(path.join("slow.yaml"), "{").unwrap();
    fs::write(path.join("slow.status.yaml"), "kind: HybridNetwork\n").unwrap();
    assert!(remove(path, "slow").is_err());
    assert!(path.join("fast.yaml").exists() && path.join("slow.yaml").exists());
    assert!(!remove(path, "none").unwrap());
}

#[tokio::test]
async fn a_nic_without_a_standby_is_not_cut_off_by_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let attach = [&ATTACH[..], &["--standby", "none", "--timeout", "0"]].concat();
    assert_eq!(ended(path, &attach, async {}).await, Ok(0));
    let text = fs::read_to_string(path.join("eth0.yaml")).unwrap();
    let Ok(asked) = file::asked("eth0", &text) else {
        panic!("{text}")
    };
    assert_eq!(asked.spec.standby, StandbyKind::None);
    let error = ended(path, &["standby", "eth0"], async {}).await.unwrap_err();
    assert!(error.contains("--cut"), "{error}");
    assert_eq!(fs::read_to_string(path.join("eth0.yaml")).unwrap(), text);
    let agent = async {
        let file = path.join("eth0.yaml");
        let told = loop {
            let now = fs::read_to_string(&file).unwrap();
            if now != text {
                break now;
            }
            tokio::task::yield_now().await;
        };
        let generation = file::generation(&told);
        say(
            path,
            "eth0",
            &json!({ "phase": "Aside", "observedGeneration": generation }),
        );
    };
    assert_eq!(ended(path, &["standby", "eth0", "--cut"], agent).await, Ok(0));
}

#[test]
fn the_table_has_all_nics_and_no_networks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let text = macvtap();
    fs::write(path.join("eth0.yaml"), text).unwrap();
    fs::write(path.join("fast.yaml"), "kind: HybridNetwork\n").unwrap();
    fs::write(path.join("broken.yaml"), "{").unwrap();
    say(path, "broken", &accepted("False", 1));
    say(path, "leaves", &json!({ "phase": "Detaching" }));
    let table = table(&nics(path).unwrap());
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 4, "{table}");
    assert!(
        lines[1].starts_with("broken ") && lines[1].ends_with("MacConflict: it is another's"),
        "{table}"
    );
    assert!(lines[2].contains("/run/vms/vm1.qmp") && lines[2].ends_with("no agent has said anything of it"));
    assert!(lines[3].contains("Detaching"));
}
