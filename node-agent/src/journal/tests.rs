use std::fs::File;

use hybridnic_api::v1alpha1::{
    AttachedVm, Goal, L2Settings, NicAttachmentSpec, NoFreeVf, ObjectRef, Pairing, StandbyKind,
};
use hybridnic_net::{MacAddr, netlink::VfConfig, sysfs::DriverState};

use super::*;
use crate::machine::process::ProcessId;

pub(crate) fn record(uid: &str) -> Record {
    let object = |name: &str| ObjectRef {
        name: name.into(),
        uid: format!("{name}-uid"),
    };
    Record {
        version: VERSION,
        namespace: "ns".into(),
        name: format!("nic-{uid}"),
        uid: uid.into(),
        created: 1,
        spec: NicAttachmentSpec {
            node_name: "n1".into(),
            nic: object("nic"),
            vm: AttachedVm::Qemu { name: "vm".into() },
            pod: object("pod"),
            network: "net".into(),
            mac: "02:00:00:00:00:01".into(),
            goal: Goal::FastPath,
            aside: None,
            standby: StandbyKind::Macvtap,
            no_free_vf: NoFreeVf::Standby,
            pairing: Pairing::NetFailover,
            port_instance_id: None,
            l2: L2Settings::default(),
            placement: None,
            pod_devices: None,
            migration: None,
        },
        socket: None,
        vf: None,
        standby: None,
        ports: None,
        plugs: 0,
    }
}

pub(crate) fn vf_record(address: &str) -> VfRecord {
    VfRecord {
        address: address.parse().unwrap(),
        index: 0,
        pf: PciAddress::new(0, 1, 0, 0).unwrap(),
        pf_name: "ens0".into(),
        pf_driver: "igb".into(),
        iommu_group: 7,
        parking_mac: MacAddr::new([6; 6]),
        saved: VfConfig::default(),
        saved_driver: DriverState::default(),
        rate_set: false,
        port_asked: false,
    }
}

fn records(journal: &Journal) -> Vec<Record> {
    let contents = journal.load().unwrap();
    assert_eq!(contents.unreadable, []);
    contents.records
}

/// A VF of the tests' node that is held, as it was and as it is to be given back.
pub(crate) fn held_vf(pf: u8, index: u8) -> VfRecord {
    VfRecord {
        address: hybridnic_net::testing::vf_address(pf, index),
        index: index.into(),
        pf: hybridnic_net::testing::pf_address(pf),
        pf_name: format!("ens{pf}"),
        pf_driver: "igb".into(),
        iommu_group: 1,
        parking_mac: MacAddr::new([6, 0, 0, 0, pf, index]),
        saved: VfConfig {
            index: index.into(),
            mac: Some(MacAddr::ZERO),
            ..VfConfig::default()
        },
        saved_driver: DriverState::default(),
        rate_set: false,
        port_asked: false,
    }
}

#[tokio::test]
async fn what_is_written_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path().join("j")).unwrap();
    assert_eq!(records(&journal), []);
    let mut a = record("a");
    journal.write(&a).await.unwrap();
    a.plugs = 3;
    journal.write(&a).await.unwrap();
    assert_eq!(records(&journal), [a]);
    journal.remove("a").await.unwrap();
    journal.remove("a").await.unwrap();
    assert_eq!(records(&journal), []);
}

#[tokio::test]
async fn a_write_that_was_cut_short_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    journal.write(&record("a")).await.unwrap();
    fs::write(dir.path().join("a.json.tmp"), "{\"namesp").unwrap();
    assert_eq!(journal.contents().await.unwrap().records, [record("a")]);
    assert!(dir.path().join("a.json.tmp").exists(), "reading removes nothing");
    assert_eq!(records(&journal), [record("a")]);
    assert!(!dir.path().join("a.json.tmp").exists());
}

#[test]
fn a_record_of_before_there_were_versions_is_read() {
    let mut value = serde_json::to_value(record("a")).unwrap();
    value.as_object_mut().unwrap().remove("version").unwrap();
    assert_eq!(parse(value.to_string().as_bytes()), Ok(record("a")));
}

/// After a downgrade. What the newer agent wrote besides its version is anything.
#[tokio::test]
async fn a_newer_agents_record_is_kept_and_its_vf_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    journal.write(&record("a")).await.unwrap();
    let newer = r#"{"version":2,"namespace":"ns","spec":{"nic":{"name":"eth1","kind":7}},"vf":{"address":"0000:01:10.2"},
        "standby":{"macvtap":"hnx"}}"#;
    fs::write(dir.path().join("b.json"), newer).unwrap();
    let contents = journal.load().unwrap();
    assert_eq!(contents.records, [record("a")], "the rest of the node goes on");
    let [unreadable] = contents.unreadable.as_slice() else {
        panic!("{contents:?}");
    };
    assert_eq!(
        (unreadable.uid.as_str(), unreadable.nic.as_deref()),
        ("b", Some("ns/eth1"))
    );
    assert_eq!(unreadable.vf, Some("0000:01:10.2".parse().unwrap()));
    assert_eq!(unreadable.macvtap.as_deref(), Some("hnx"));
    assert!(unreadable.why.contains("newer"), "{unreadable}");
    assert_eq!(fs::read_to_string(dir.path().join("b.json")).unwrap(), newer);
}

#[tokio::test]
async fn a_spoilt_file_costs_its_own_nic_only() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    let mut held = record("a");
    held.vf = Some(vf_record("0000:01:10.4"));
    let text = serde_json::to_string_pretty(&held).unwrap();
    fs::write(dir.path().join("cut.json"), &text[..text.len() - 9]).unwrap();
    fs::write(dir.path().join("garbage.json"), "garbage").unwrap();
    fs::create_dir(dir.path().join("unread.json")).unwrap();
    journal.write(&record("b")).await.unwrap();
    let mut contents = journal.load().unwrap();
    contents.unreadable.sort_by(|a, b| a.uid.cmp(&b.uid));
    let vfs: Vec<_> = contents
        .unreadable
        .iter()
        .map(|u| (u.uid.as_str(), u.vf.map(|vf| vf.to_string())))
        .collect();
    let cut = Some("0000:01:10.4".to_owned());
    assert_eq!(vfs, [("cut", cut), ("garbage", None), ("unread", None)]);
    assert_eq!(contents.records, [record("b")]);
}

#[tokio::test]
async fn what_is_remembered_of_a_vm_is_there_again_and_an_error_is_not_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.vm("pod").await.unwrap(), None);
    let process = ProcessId {
        boot: "b".into(),
        pid: 7,
        start: 9,
    };
    let mut vm = VmRecord {
        process: Some(process.clone()),
        begun: Some(Begun {
            custody: Custody::Left,
            saving: None,
            migration: "m".into(),
            process: Some(process),
            arrival: None,
        }),
        ..VmRecord::default()
    };
    journal.write_vm("pod", &vm).await.unwrap();
    assert_eq!(journal.vm("pod").await.unwrap().as_ref(), Some(&vm));
    vm.begun.as_mut().unwrap().arrival = Some(Arrival::Starting);
    journal.write_vm("pod", &vm).await.unwrap();
    assert_eq!(journal.vm("pod").await.unwrap().as_ref(), Some(&vm));
    assert_eq!(
        journal.contents().await.unwrap().records,
        [],
        "it is no record of a NIC"
    );
    assert_eq!(journal.contents().await.unwrap().vms, ["pod".to_owned()].into());
    journal.remove_vm("pod").await.unwrap();
    assert_eq!(journal.vm("pod").await.unwrap(), None);
    fs::write(dir.path().join("pod.vm"), "{").unwrap();
    journal.vm("pod").await.unwrap_err();
    // After a downgrade: what reads the same may mean something else.
    fs::write(
        dir.path().join("pod.vm"),
        r#"{"version":2,"process":null,"begun":null}"#,
    )
    .unwrap();
    let newer = crate::error::chain(&journal.vm("pod").await.unwrap_err());
    assert!(
        newer.contains("pod.vm") && newer.contains("a newer agent wrote it"),
        "{newer}"
    );
    // Before there were versions.
    fs::write(dir.path().join("pod.vm"), r#"{"process":null,"begun":null}"#).unwrap();
    assert_eq!(journal.vm("pod").await.unwrap(), Some(VmRecord::default()));
    fs::remove_file(dir.path().join("pod.vm")).unwrap();
    fs::create_dir(dir.path().join("pod.vm")).unwrap();
    journal.vm("pod").await.unwrap_err();
}

/// As on a full disk, and on one that hangs: a FIFO without a reader waits for ever.
#[tokio::test]
async fn a_write_that_failed_or_came_too_late_has_not_happened() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    let mut impatient = journal.clone();
    impatient.deadline = Duration::from_millis(50);
    journal.write(&record("a")).await.unwrap();
    let changed = Record {
        plugs: 7,
        ..record("a")
    };
    let temporary = dir.path().join("a.json.tmp");
    fs::create_dir(&temporary).unwrap();
    journal.write(&changed).await.unwrap_err();
    fs::remove_dir(&temporary).unwrap();
    assert_eq!(records(&journal), [record("a")]);

    nix::unistd::mkfifo(&temporary, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let late = impatient.write(&changed).await.unwrap_err();
    assert_eq!(late.source.kind(), io::ErrorKind::TimedOut, "{late}");
    // Another waits behind it, and is not begun once its caller has gone.
    impatient.write(&record("b")).await.unwrap_err();
    // The disk is back. What was to be synced is no file, so that too is an error, and what it did is undone.
    let mut reader = File::open(&temporary).unwrap();
    io::copy(&mut reader, &mut io::sink()).unwrap();
    let _ = fs::remove_file(&temporary);
    journal.write(&record("c")).await.unwrap();
    let mut names: Vec<_> = records(&journal).into_iter().map(|r| (r.uid, r.plugs)).collect();
    names.sort();
    assert_eq!(names, [("a".to_owned(), 0), ("c".to_owned(), 0)]);
}

/// Nobody may rely on it, so it is taken back, before anything that was requested later.
#[tokio::test]
async fn a_write_whose_caller_went_away_is_undone() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    journal.write(&record("a")).await.unwrap();
    let (go, wait) = mpsc::channel::<()>();
    let (sent, begun) = mpsc::channel::<()>();
    let set_and_wait = {
        let (dir, path) = (dir.path().to_owned(), journal.path("a"));
        move || {
            let before = found(fs::read(&path))?;
            set(&dir, &path, None)?;
            sent.send(()).unwrap();
            wait.recv().unwrap();
            Ok(before)
        }
    };
    let (path, undone) = (journal.path("a"), dir.path().to_owned());
    let write = journal.run(
        "remove",
        path.clone(),
        set_and_wait,
        move |before: Option<Vec<u8>>| {
            set(&undone, &path, before.as_deref()).unwrap();
        },
    );
    begun.recv().unwrap();
    drop(write);
    go.send(()).unwrap();
    assert_eq!(journal.contents().await.unwrap().records, [record("a")]);
}

#[tokio::test]
async fn what_is_parked_for_good_outlives_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    let parked: BTreeSet<PciAddress> = ["0000:01:10.0", "0000:81:1f.7"]
        .map(|a| a.parse().unwrap())
        .into();
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.parked().unwrap(), BTreeSet::new());
    journal.set_parked(&parked).await.unwrap();
    assert_eq!(journal.load().unwrap(), Contents::default(), "it is no record");
    assert_eq!(Journal::open(dir.path()).unwrap().parked().unwrap(), parked);
    fs::write(dir.path().join(PARKED), "?\n").unwrap();
    assert!(journal.parked().is_err());
}

#[tokio::test]
async fn what_is_drained_outlives_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.drain().unwrap(), Drain::default());
    let drain = Drain {
        pfs: vec!["0000:01:00.0".into()],
        ..Drain::default()
    };
    journal.set_drain(&drain).await.unwrap();
    assert_eq!(journal.load().unwrap(), Contents::default(), "it is no record");
    assert_eq!(Journal::open(dir.path()).unwrap().drain().unwrap(), drain);
    journal.set_drain(&Drain::default()).await.unwrap();
    assert_eq!(journal.drain().unwrap(), Drain::default());
    fs::write(dir.path().join(DRAIN), "?").unwrap();
    assert!(journal.drain().is_err());
}

#[test]
fn no_uid_leads_out_of_the_directory() {
    let mut journal = Journal::open(tempfile::tempdir().unwrap().path()).unwrap();
    journal.dir = "/j".into();
    assert_eq!(journal.path("../../etc/x"), Path::new("/j/etcx.json"));
}

#[tokio::test]
async fn nobody_else_reads_it_also_not_what_was_written_before() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let open = || Journal::open(&path).unwrap();
    open().write(&record("a")).await.unwrap();
    open().write_vm("pod-uid", &VmRecord::default()).await.unwrap();
    let files = [path.join("a.json"), path.join("pod-uid.vm")];
    let closed = || {
        assert_eq!(mode(&path), 0o700);
        for file in &files {
            assert_eq!(mode(file), 0o600, "{}", file.display());
        }
    };
    closed();
    // As an earlier agent made them.
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    for file in &files {
        fs::set_permissions(file, Permissions::from_mode(0o644)).unwrap();
    }
    let journal = open();
    assert_eq!(records(&journal).len(), 1);
    closed();
    journal.write(&record("a")).await.unwrap();
    closed();
}

proptest::proptest! {
    /// Anything may be in a file after a disk failure: a record that is whole, cut, overwritten in a place, or noise.
    #[test]
    fn no_file_of_the_journal_is_the_end_of_the_agent(
        noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
        at: proptest::sample::Index,
        kind in 0_u8..3,
    ) {
        let whole = serde_json::to_vec(&record("a")).unwrap();
        let at = at.index(whole.len());
        let text = match kind {
            0 => noise,
            1 => whole[..at].to_vec(),
            _ => [&whole[..at], &noise[..], whole.get(at + noise.len()..).unwrap_or_default()].concat(),
        };
        if let Ok(read) = parse(&text) {
            // What is read is written as what is read.
            proptest::prop_assert_eq!(parse(&serde_json::to_vec(&read).unwrap()), Ok(read));
        }
        let _ = understand::<VmRecord>(&text);
    }
}
