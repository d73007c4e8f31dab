use std::collections::BTreeSet;

use hybridnic_api::v1alpha1::NicAttachmentStatus;
use serde_json::Value;

use super::{super::super::order, *};

/// An end with an order, of which its agent says this.
fn host(step: &str, state: Option<&str>) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let put = |file: &str, text: &str| fs::write(home.path().join(file), text).unwrap();
    put("node.status.yaml", "metadata: {name: h2}\nstatus: {}\n");
    let mut spec = json!({
        "nodeName": "h2",
        "nic": {"name": "eth0", "uid": "uid-1"},
        "vm": {"qemu": {"name": "vm1"}},
        "pod": {"name": "vm1", "uid": "host-1"},
        "network": "fast",
        "mac": "52:54:00:77:00:50",
        "goal": "FastPath",
        "aside": "KeepVf",
        "noFreeVf": "Wait",
        "l2": {"spoofCheck": true, "trust": false},
    });
    spec["migration"] = json!({"migration": {"name": "eth0", "uid": "m-1"}, "nics": ["eth0"], "step": step});
    let says = json!({"be": {"socket": "/run/vm1.qmp", "spec": spec}});
    let order = json!({"migration": "m-1", "session": 4, "serial": 9, "says": says});
    put("eth0.order.json", &order.to_string());
    let mut status = json!({"observedGeneration": 1, "state": "Standby"});
    if let Some(state) = state {
        status["migration"] = json!({"uid": "m-1", "state": state});
    }
    let _: NicAttachmentStatus = serde_json::from_value(status.clone()).unwrap();
    let attached = json!({"socket": "/run/vm1.qmp", "generation": 1, "spec": spec, "status": status});
    say(home.path(), &attached);
    home
}

fn say(dir: &Path, attached: &Value) {
    let said =
        json!({"kind": "VmHybridNic", "metadata": {"name": "eth0"}, "attached": attached, "status": {}});
    fs::write(
        dir.join("eth0.status.yaml"),
        serde_saphyr::to_string(&said).unwrap(),
    )
    .unwrap();
}

async fn ended(dir: &Path, vm: Option<Whereabouts>) -> Result<String, String> {
    let args = Args {
        nics: vec!["eth0".into()],
        vm,
        timeout: 0,
    };
    let code = run(dir, args).await.map_err(|error| format!("{error:#}"))?;
    Ok(format!("{code:?}"))
}

fn hand(dir: &Path) -> Hand {
    Hand::new(dir, &BTreeSet::from(["eth0".to_owned()]))
}

#[tokio::test]
async fn where_the_vm_has_come_the_nic_stays_with_it() {
    let home = host("Listen", Some("Completed"));
    let dir = home.path();
    let why = ended(dir, Some(Whereabouts::Elsewhere)).await.unwrap_err();
    assert!(why.contains("QEMU here says otherwise"), "{why}");
    let late = format!("{:?}", ExitCode::from(LATE));
    assert_eq!(
        ended(dir, None).await.unwrap(),
        late,
        "the agent has not heard it"
    );
    let seen = hand(dir).look().unwrap();
    let nic = &seen.nics["eth0"];
    let asks = file::asked("eth0", nic.file.as_ref().unwrap()).unwrap();
    assert_eq!(asks.spec.mac.as_deref(), Some("52:54:00:77:00:50"));
    assert_eq!(asks.spec.aside(), Some(Aside::KeepVf));
    let (order, _) = nic.order.as_ref().unwrap();
    assert_eq!((&order.says, order.serial), (&Says::Over, 10));
    // Once the agent has taken it in, the order goes.
    let mut attached = nic.attached.clone().unwrap();
    attached.spec.migration = None;
    say(dir, &json!(attached));
    assert_eq!(
        ended(dir, None).await.unwrap(),
        format!("{:?}", ExitCode::SUCCESS)
    );
    assert!(!dir.join(order::file("eth0")).exists() && dir.join("eth0.yaml").exists());
    let why = ended(dir, None).await.unwrap_err();
    assert!(why.contains("no migration has the NIC"), "{why}");
}

#[tokio::test]
async fn where_it_has_not_come_the_nic_goes() {
    let home = host("GiveUp", Some("Lost"));
    ended(home.path(), None).await.unwrap();
    assert!(!home.path().join("eth0.yaml").exists());
    let seen = hand(home.path()).look().unwrap();
    assert_eq!(seen.nics["eth0"].order.as_ref().unwrap().0.says, Says::Over);
}

#[tokio::test]
async fn what_is_not_proven_the_administrator_says() {
    for (step, state) in [
        ("Listen", Some("Listening")),
        ("Listen", None),
        // It has left from here: where it is, the other end knows.
        ("Transfer", Some("Completed")),
    ] {
        let home = host(step, state);
        let why = ended(home.path(), None).await.unwrap_err();
        assert!(why.contains("--vm here or --vm elsewhere"), "{why}");
        ended(home.path(), Some(Whereabouts::Elsewhere)).await.unwrap();
        assert!(!home.path().join("eth0.yaml").exists());
        let home = host(step, state);
        ended(home.path(), Some(Whereabouts::Here)).await.unwrap();
        assert!(home.path().join("eth0.yaml").exists());
    }
}

#[tokio::test]
async fn one_that_is_driven_here_is_not_ended_so() {
    let home = host("Listen", Some("Completed"));
    let end = json!({"node": "h1", "socket": "/run/vm1.qmp"});
    let flight = json!({
        "uid": "m-1", "vm": "vm1", "created": "1970-01-01T00:00:00Z", "session": 1, "cancelled": false,
        "source": end, "target": end, "nics": {}, "encryption": "off", "status": {},
        "host": "h2", "connect": "ssh h2", "dir": "/etc/hybridnic",
    });
    fs::write(home.path().join("eth0.migration.json"), flight.to_string()).unwrap();
    let why = ended(home.path(), None).await.unwrap_err();
    assert!(why.contains("this host drives the migration"), "{why}");
}
