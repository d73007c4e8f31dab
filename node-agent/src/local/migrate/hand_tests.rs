use hybridnic_api::v1alpha1::NicAttachmentSpec;
use serde_json::json;

use super::{super::super::order::Be, *};

struct End {
    home: tempfile::TempDir,
    hand: Hand,
}

impl End {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let hand = Hand::new(home.path(), &BTreeSet::from(["eth0".to_owned()]));
        let end = Self { home, hand };
        end.put("node.status.yaml", "metadata: {name: h2}\nstatus: {}\n");
        end
    }

    fn put(&self, file: &str, text: &str) {
        fs::write(self.home.path().join(file), text).unwrap();
    }

    fn has(&self, file: &str) -> bool {
        self.home.path().join(file).exists()
    }

    fn told(&self, command: &Command) -> Result<(), String> {
        self.hand.apply(command).map_err(|error| error.to_string())
    }
}

fn spec(uid: &str) -> NicAttachmentSpec {
    serde_json::from_value(json!({
        "nodeName": "h2",
        "nic": {"name": "eth0", "uid": uid},
        "vm": {"qemu": {"name": "vm1"}},
        "pod": {"name": "vm1", "uid": "host-1"},
        "network": "fast",
        "mac": "52:54:00:77:00:50",
        "goal": "FastPath",
        "noFreeVf": "Standby",
        "l2": {"spoofCheck": true, "trust": false},
    }))
    .unwrap()
}

fn order(migration: &str, session: u64) -> Command {
    Command::Order {
        nic: "eth0".into(),
        order: Box::new(Order {
            migration: migration.into(),
            session,
            serial: 1,
            says: Says::Be(Box::new(Be {
                socket: "/run/vm1.qmp".into(),
                spec: spec("uid-1"),
            })),
        }),
    }
}

fn file(session: u64, text: Option<&str>) -> Command {
    Command::File {
        nic: "eth0".into(),
        text: text.map(str::to_owned),
        migration: "m-1".into(),
        session,
    }
}

fn forget(session: u64) -> Command {
    Command::Forget {
        nic: "eth0".into(),
        migration: "m-1".into(),
        session,
    }
}

#[test]
fn only_its_migration_orders_a_nic_about() {
    let end = End::new();
    // Nothing is written before something is ordered.
    assert!(end.told(&file(1, Some("x"))).is_err());
    end.told(&order("m-1", 1)).unwrap();
    end.told(&order("m-1", 1)).unwrap();
    let other = end.told(&order("m-2", 5)).unwrap_err();
    assert!(other.contains("another migration has the NIC"), "{other}");
    end.told(&file(1, Some("x"))).unwrap();
    assert!(end.has("eth0.yaml"));
    let seen = end.hand.look().unwrap();
    assert_eq!(seen.nics["eth0"].file.as_deref(), Some("x"));
    end.told(&file(1, None)).unwrap();
    end.told(&forget(1)).unwrap();
    end.told(&forget(1)).unwrap();
    assert!(!end.has("eth0.order.json") && !end.has("eth0.yaml"));
}

/// What a driver that has died has sent must not undo what the next one orders.
#[test]
fn a_driver_that_comes_late_is_refused() {
    let end = End::new();
    end.told(&order("m-1", 2)).unwrap();
    for late in [order("m-1", 1), file(1, Some("x")), forget(1)] {
        let why = end.told(&late).unwrap_err();
        assert!(why.contains("a later `ctl migrate`"), "{why}");
    }
    end.told(&order("m-1", 3)).unwrap();
}

#[test]
fn another_nic_of_the_name_stays() {
    let end = End::new();
    end.put("eth0.yaml", "x");
    let why = end.told(&order("m-1", 1)).unwrap_err();
    assert!(why.contains("there is another NIC eth0"), "{why}");
    let attached = |uid: &str| {
        let attached = Attached {
            generation: Some(1),
            deleting: false,
            socket: "/run/vm1.qmp".into(),
            spec: spec(uid),
            status: None,
        };
        let said = json!({ "metadata": { "name": "eth0" }, "attached": attached, "status": {} });
        end.put("eth0.status.yaml", &serde_saphyr::to_string(&said).unwrap());
    };
    attached("uid-7");
    end.told(&order("m-1", 1)).unwrap_err();
    // As at the source.
    attached("uid-1");
    end.told(&order("m-1", 1)).unwrap();
}

#[test]
fn only_the_nics_that_were_named_are_touched() {
    let end = End::new();
    let mut command = order("m-1", 1);
    if let Command::Order { nic, .. } = &mut command {
        *nic = "../eth0".into();
    }
    assert!(
        end.told(&command)
            .unwrap_err()
            .contains("none of the migration's NICs")
    );
}

#[test]
fn without_an_agent_there_is_nothing_to_see() {
    let end = End::new();
    fs::remove_file(end.home.path().join("node.status.yaml")).unwrap();
    let why = end.hand.look().unwrap_err().to_string();
    assert!(why.contains("no agent has said anything"), "{why}");
}

/// It may have been on its way in a connection that is lost.
#[test]
fn an_earlier_order_does_not_undo_a_later_one() {
    let end = End::new();
    let numbered = |serial, says: Option<Says>| {
        let mut command = order("m-1", 1);
        if let Command::Order { order, .. } = &mut command {
            order.serial = serial;
            order.says = says.unwrap_or_else(|| order.says.clone());
        }
        command
    };
    let why = end.told(&numbered(1, Some(Says::Over))).unwrap_err();
    assert!(why.contains("no migration has the NIC"), "{why}");
    end.told(&numbered(2, None)).unwrap();
    end.told(&numbered(2, None)).unwrap();
    for late in [numbered(1, None), numbered(2, Some(Says::Over))] {
        let why = end.told(&late).unwrap_err();
        assert!(why.contains("a later order"), "{why}");
    }
    end.told(&numbered(3, Some(Says::Over))).unwrap();
    let why = end.told(&numbered(4, None)).unwrap_err();
    assert!(why.contains("was ended here"), "{why}");
}

/// A driver that comes back must not take the NIC of a VM that runs here.
#[test]
fn a_nic_that_is_this_hosts_own_gets_no_order_of_a_target() {
    use hybridnic_api::v1alpha1::{MigrationOrder, ObjectRef};
    let end = End::new();
    end.put("eth0.yaml", "x");
    let mut said = spec("uid-1");
    let attached = json!({ "socket": "/run/vm1.qmp", "spec": &said });
    let text = json!({ "metadata": { "name": "eth0" }, "attached": attached, "status": {} });
    end.put("eth0.status.yaml", &serde_saphyr::to_string(&text).unwrap());
    let mut told = |step| {
        let mut command = order("m-1", 9);
        let migration = ObjectRef {
            name: "eth0".into(),
            uid: "m-1".into(),
        };
        said.migration = Some(MigrationOrder {
            file: None,
            migration,
            nics: vec!["eth0".into()],
            step,
            target_uri: None,
            listen_address: None,
            tls: None,
        });
        if let Command::Order { order, .. } = &mut command {
            order.says = Says::Be(Box::new(Be {
                socket: "/run/vm1.qmp".into(),
                spec: said.clone(),
            }));
        }
        end.told(&command)
    };
    told(MigrationStep::GiveUp).unwrap_err();
    told(MigrationStep::Listen).unwrap_err();
    told(MigrationStep::Prepare).unwrap();
}
