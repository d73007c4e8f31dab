use hybridnic_api::{
    conditions::types,
    v1alpha1::{Goal, NicAttachmentStatus},
};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::{
    super::{
        NodeFile,
        file::tests::{NETWORK, NIC},
    },
    *,
};
use crate::{
    host,
    journal::tests::record,
    node::publish::publish,
    wants::{Teller as _, Told, Want, Word},
};

/// Longer than a file may be away.
const LATER: Duration = Duration::from_secs(3);

/// An agent's source of wants in a directory of files.
struct Running {
    host: Arc<Host>,
    board: Arc<Board>,
    /// Which version of the host's own file was seen.
    seen: watch::Receiver<Option<SeenNode>>,
    files: Files,
    dir: PathBuf,
    _source: AbortOnDropHandle<Infallible>,
    _home: tempfile::TempDir,
}

impl Running {
    /// Where these files are, with their contents, and the journal has this.
    fn new(files: &[(&str, &str)], journal: &Contents) -> Self {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("nics");
        fs::create_dir(&dir).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
        let host = host::tests::host(home.path(), 1, 2);
        let board = Arc::new(Board::new("h1"));
        let (versions, seen) = watch::channel(None);
        let (source, files) = open(&dir, &host, &board, "seed".into(), journal, versions).unwrap();
        Self {
            host,
            board,
            seen,
            files,
            dir,
            _source: AbortOnDropHandle::new(tokio::spawn(source.run())),
            _home: home,
        }
    }

    async fn next(&mut self) -> Heard {
        let heard = timeout(Duration::from_secs(10), self.files.next());
        heard.await.expect("nothing is heard").unwrap()
    }

    async fn want(&mut self) -> Want {
        match self.next().await {
            Heard::Wanted(want) => *want,
            other => panic!("{other:?}"),
        }
    }

    /// All that is heard at the start.
    async fn listed(&mut self) -> Vec<Want> {
        assert_eq!(self.next().await, Heard::Begins);
        let mut wants = Vec::new();
        loop {
            match self.next().await {
                Heard::Wanted(want) => wants.push(*want),
                Heard::Ends => return wants,
                other => panic!("{other:?}"),
            }
        }
    }

    async fn hears_nothing(&mut self) {
        let heard = timeout(LATER, self.files.next()).await;
        assert!(heard.is_err(), "{heard:?}");
    }

    fn write(&self, name: &str, text: &str) {
        // As editors do.
        let new = self.dir.join("4913");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.dir.join(name)).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.dir.join(name)).unwrap();
    }

    fn has(&self, name: &str) -> bool {
        self.dir.join(name).exists()
    }

    async fn until_there(&self, name: &str) {
        let there = async {
            while !self.has(name) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(10), there).await.expect(name);
    }

    /// Reason and message of a NIC's `Accepted`, once it has a reason.
    async fn refused(&self, name: &str, reason: &str) -> String {
        let look = async {
            loop {
                let text = fs::read_to_string(self.dir.join(file::status(name))).unwrap_or_default();
                let said: serde_json::Value = serde_saphyr::from_str(&text).unwrap_or_default();
                let list = said["status"]["conditions"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                let accepted = list.into_iter().find(|c| c["type"] == types::ACCEPTED);
                if let Some(accepted) = accepted.filter(|accepted| accepted["reason"] == reason) {
                    return accepted["message"].as_str().unwrap().to_owned();
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(10), look)
            .await
            .expect("it is not said")
    }
}

/// The host's file that drains its PF.
const DRAINED: &str = "
apiVersion: hybridnic.io/v1alpha1
kind: HybridNode
metadata: {name: node}
spec: {drain: {all: true}}
";

/// Waits until this is so of what is drained.
async fn until_drained(host: &Host, all: bool) {
    let mut changes = host.pools.subscribe();
    let drained = async {
        while host.pools.drain().all != all {
            changes.changed().await.unwrap();
        }
    };
    timeout(Duration::from_secs(10), drained).await.expect("not told");
}

#[tokio::test]
async fn what_is_drained_is_in_the_hosts_own_file() {
    let mut running = Running::new(&[("node.yaml", DRAINED)], &Contents::default());
    running.listed().await;
    assert!(running.host.pools.drain().all);
    assert!(running.host.journal.drain().unwrap().all);
    // What is not understood changes nothing, and is said.
    let mut troubles = running.host.troubles.subscribe();
    running.write("node.yaml", "spec: {drain: {pfs: [ens1]}}");
    timeout(Duration::from_secs(10), troubles.changed())
        .await
        .expect("it is not said")
        .unwrap();
    let said = running.host.troubles.condition();
    assert_eq!(said.reason, reasons::FILE_UNKNOWN);
    assert!(said.message.contains("node.yaml"), "{}", said.message);
    assert!(running.host.pools.drain().all);
    running.write("node.yaml", DRAINED.replace("{all: true}", "{}").as_str());
    until_drained(&running.host, false).await;
    // Nor does a file that is away for a moment; one that is deleted does.
    running.write("node.yaml", DRAINED);
    until_drained(&running.host, true).await;
    running.remove("node.yaml");
    running.hears_nothing().await;
    until_drained(&running.host, false).await;
}

/// What the journal has of the NIC that [`NIC`] asks for.
fn of_journal() -> Contents {
    let mut held = record("uid-1");
    held.namespace = NAMESPACE.into();
    held.name = "eth0".into();
    held.spec.nic.name = "eth0".into();
    held.spec.network = "fast".into();
    held.socket = Some("/run/vms/vm1.qmp".into());
    Contents {
        records: vec![held],
        ..Contents::default()
    }
}

#[tokio::test]
async fn a_nic_comes_with_its_file_and_leaves_with_it() {
    let files = [("fast.yaml", NETWORK), ("eth0.yaml", NIC)];
    let mut r = Running::new(&files, &Contents::default());
    let [want] = <[Want; 1]>::try_from(r.listed().await).unwrap();
    assert_eq!(r.host.pools.pools()[0].network, "fast");
    let line = r.files.teller(&want.id);
    assert_eq!(line.tell(&Word::Held(true)).await, Told::Done);
    assert!(r.has("eth0.status.yaml"), "a later agent must know the directory");

    // It is away for a moment only.
    r.remove("eth0.yaml");
    r.write("eth0.yaml", NIC);
    r.hears_nothing().await;

    r.remove("eth0.yaml");
    let leaves = r.want().await;
    assert!(leaves.deleting && leaves.id == want.id);
    // Written again before it has left: another NIC, which comes after it.
    r.write("eth0.yaml", NIC);
    r.refused("eth0", reasons::WAITING_FOR_DETACH).await;
    assert_eq!(line.tell(&Word::Held(false)).await, Told::Done);
    assert_eq!(r.next().await, Heard::Gone(want.id.uid.clone()));
    let again = r.want().await;
    assert!(!again.deleting && again.id.uid != want.id.uid);

    r.remove("eth0.yaml");
    assert!(r.want().await.deleting);
    r.files.teller(&again.id).tell(&Word::Held(false)).await;
    assert_eq!(r.next().await, Heard::Gone(again.id.uid));
    assert!(!r.has("eth0.status.yaml"));
}

#[tokio::test]
async fn what_is_not_understood_is_said_and_changes_nothing() {
    let files = [("fast.yaml", NETWORK), ("eth0.yaml", NIC)];
    let mut r = Running::new(&files, &Contents::default());
    r.listed().await;
    r.write("eth0.yaml", "spec: {");
    let why = r.refused("eth0", reasons::FILE_UNKNOWN).await;
    assert!(why.ends_with("it stays as it was"), "{why}");
    r.write("fast.yaml", &NETWORK.replace("igb", "i gb"));
    let why = r.refused("fast", reasons::FILE_UNKNOWN).await;
    assert!(why.contains("names of kernel drivers"), "{why}");
    r.hears_nothing().await;
    assert_eq!(r.host.pools.pools().len(), 1);
    // What is said comes back.
    r.remove("eth0.status.yaml");
    r.refused("eth0", reasons::FILE_UNKNOWN).await;
    r.write(
        "eth0.yaml",
        &NIC.replace("network: fast", "network: fast\n  noFreeVf: Wait"),
    );
    assert_eq!(
        r.want().await.spec.no_free_vf,
        hybridnic_api::v1alpha1::NoFreeVf::Wait
    );
}

#[tokio::test]
async fn what_is_said_comes_back_when_it_is_deleted() {
    let files = [("fast.yaml", NETWORK), ("eth0.yaml", NIC)];
    let mut r = Running::new(&files, &Contents::default());
    let to = NodeFile::new("h1", Arc::clone(&r.board), r.seen.clone());
    let published = publish(to, Arc::clone(&r.host), r.seen.clone(), watch::Sender::new(false));
    let _publishing = AbortOnDropHandle::new(tokio::spawn(published));
    r.listed().await;
    for name in ["node.status.yaml", "fast.status.yaml", "eth0.status.yaml"] {
        r.until_there(name).await;
        // More than once: at the start something else may have it written.
        for _ in 0..3 {
            r.remove(name);
            r.until_there(name).await;
        }
    }
}

#[tokio::test]
async fn what_the_journal_has_goes_on_whatever_its_file_says() {
    for nic in [NIC, "spec: {"] {
        let mut r = Running::new(&[("fast.yaml", NETWORK), ("eth0.yaml", nic)], &of_journal());
        let [want] = <[Want; 1]>::try_from(r.listed().await).unwrap();
        assert_eq!((want.id.uid.as_str(), want.deleting), ("uid-1", false));
        assert_eq!(
            want.spec.mac,
            of_journal().records[0].spec.mac,
            "it keeps its address"
        );
    }
}

/// As where another directory is mounted, or none.
#[tokio::test]
async fn without_proof_that_a_file_was_removed_its_nic_stays() {
    let mut r = Running::new(&[("fast.yaml", NETWORK)], &of_journal());
    let [want] = <[Want; 1]>::try_from(r.listed().await).unwrap();
    assert!(!want.deleting);
    let line = r.files.teller(&want.id);
    line.tell(&Word::Status(&NicAttachmentStatus::default())).await;
    r.hears_nothing().await;
    let trouble = r.host.troubles.condition();
    assert_eq!(trouble.reason, reasons::FILE_UNKNOWN);
    assert!(trouble.message.contains("eth0.yaml"), "{}", trouble.message);
    assert!(!r.has("eth0.status.yaml"), "that would be taken for proof");

    // The file comes, and goes: that is the user's word.
    r.write("eth0.yaml", NIC);
    assert!(!r.want().await.deleting);
    r.remove("eth0.yaml");
    assert!(r.want().await.deleting);
    assert_eq!(r.host.troubles.condition().status, Some(false));
}

#[tokio::test]
async fn a_file_that_was_removed_while_no_agent_ran_is_known_by_its_status() {
    let status = "metadata: {name: eth0, uid: uid-1}\nstatus: {}\n";
    let files = [("fast.yaml", NETWORK), ("eth0.status.yaml", status)];
    let mut r = Running::new(&files, &of_journal());
    r.listed().await;
    assert!(r.want().await.deleting);
    // Of a NIC that has left as well, nothing is left to say.
    let r = Running::new(&files, &Contents::default());
    let gone = async {
        while r.has("eth0.status.yaml") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(10), gone).await.unwrap();
}

#[tokio::test]
async fn the_end_of_the_directory_is_the_end_of_no_nic() {
    let files = [("fast.yaml", NETWORK), ("eth0.yaml", NIC)];
    let mut r = Running::new(&files, &Contents::default());
    let [want] = <[Want; 1]>::try_from(r.listed().await).unwrap();
    fs::remove_dir_all(&r.dir).unwrap();
    r.hears_nothing().await;
    assert_eq!(r.host.troubles.condition().reason, reasons::FILE_UNKNOWN);
    fs::create_dir(&r.dir).unwrap();
    r.hears_nothing().await;
    r.write("fast.yaml", NETWORK);
    r.write("eth0.yaml", NIC);
    // The directory is looked for from time to time. Before the file was seen in it, its end would prove nothing.
    let seen = async {
        while !r.has("eth0.status.yaml") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(30), seen).await.unwrap();
    assert_eq!(r.host.troubles.condition().status, Some(false));
    r.remove("eth0.yaml");
    let leaves = r.want().await;
    assert!(leaves.deleting && leaves.id == want.id);
}

#[tokio::test]
async fn what_could_not_be_read_is_read_again() {
    let home = tempfile::tempdir().unwrap();
    let [dir, aside] = ["nics", "aside"].map(|name| home.path().join(name));
    fs::create_dir(&dir).unwrap();
    let host = host::tests::host(home.path(), 1, 2);
    let board = Arc::new(Board::new("h1"));
    let (mut source, _files) = open(
        &dir,
        &host,
        &board,
        "seed".into(),
        &Contents::default(),
        watch::Sender::default(),
    )
    .unwrap();
    fs::write(dir.join("eth0.yaml"), NIC).unwrap();
    fs::rename(&dir, &aside).unwrap();
    source.again = Some(Instant::now());
    source.on_time().await;
    assert!(source.state.readings.is_empty());
    assert!(source.again.is_some_and(|again| again > Instant::now()));
    fs::rename(&aside, &dir).unwrap();
    source.again = Some(Instant::now());
    source.on_time().await;
    assert!(matches!(source.state.readings["eth0"], Reading::Asks(..)));
    assert_eq!(source.again, None);
}

/// What is published at the start takes the place of what an earlier agent has said.
#[tokio::test]
async fn what_an_earlier_agent_has_seen_of_the_hosts_file_is_known_from_the_start() {
    for (of, seen) in [("h1", Some(7)), ("h2", None)] {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("nics");
        fs::create_dir(&dir).unwrap();
        let status = format!("metadata: {{name: {of}}}\nstatus: {{observedGeneration: 7}}\n");
        fs::write(dir.join("node.status.yaml"), status).unwrap();
        let host = host::tests::host(home.path(), 1, 2);
        let board = Arc::new(Board::new("h1"));
        let (versions, said) = watch::channel(None);
        let journal = Contents::default();
        let _opened = open(&dir, &host, &board, "seed".into(), &journal, versions).unwrap();
        let said = said.borrow().as_ref().and_then(|said| said.generation);
        assert_eq!(said, seen, "{of}");
    }
}

/// As of a directory that cannot be opened for a moment, because too much is open.
#[tokio::test]
async fn a_file_that_cannot_be_looked_for_proves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let [dir, aside] = ["nics", "aside"].map(|name| home.path().join(name));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("fast.yaml"), NETWORK).unwrap();
    let host = host::tests::host(home.path(), 1, 2);
    let board = Arc::new(Board::new("h1"));
    let versions = watch::Sender::default();
    let (mut source, _files) = open(&dir, &host, &board, "seed".into(), &of_journal(), versions).unwrap();
    fs::rename(&dir, &aside).unwrap();
    source.read("eth0");
    fs::rename(&aside, &dir).unwrap();
    assert!(source.again.is_some(), "nobody tells that it can be");
    source.act().await;
    assert!(
        !dir.join("eth0.status.yaml").exists(),
        "that would be taken for proof"
    );
    let trouble = host.troubles.condition();
    assert_eq!(trouble.reason, reasons::FILE_UNKNOWN);
    source.read("eth0");
    source.due.insert("eth0".into(), Instant::now());
    source.on_time().await;
    assert_eq!(source.state.readings["eth0"], Reading::Unproven);
}

/// The order that the NIC `eth0` leave, or that its migration be over.
fn order(over: bool) -> String {
    let mut spec = record("uid-9").spec;
    spec.nic = hybridnic_api::v1alpha1::ObjectRef {
        name: "eth0".into(),
        uid: "uid-9".into(),
    };
    spec.network = "fast".into();
    spec.goal = Goal::Detached;
    spec.migration = Some(
        serde_json::from_value(serde_json::json!({
            "migration": {"name": "eth0", "uid": "m-1"}, "nics": ["eth0"], "step": "GiveUp",
        }))
        .unwrap(),
    );
    let says = if over {
        serde_json::json!("over")
    } else {
        serde_json::json!({ "be": { "socket": "/run/vms/vm1.qmp", "spec": spec } })
    };
    serde_json::json!({ "migration": "m-1", "session": 1, "serial": 1 + u64::from(over), "says": says })
        .to_string()
}

#[tokio::test]
async fn a_nic_comes_with_an_order_and_leaves_when_that_is_over() {
    let mut r = Running::new(&[("fast.yaml", NETWORK)], &Contents::default());
    assert!(r.listed().await.is_empty());
    r.write("eth0.order.json", &order(false));
    let want = r.want().await;
    assert_eq!(
        (want.id.uid.as_str(), want.deleting, want.spec.goal),
        ("uid-9", false, Goal::Detached)
    );
    let line = r.files.teller(&want.id);
    let said = NicAttachmentStatus {
        observed_generation: want.generation,
        ..NicAttachmentStatus::default()
    };
    line.tell(&Word::Status(&said)).await;
    // It may have been removed by mistake.
    r.remove("eth0.order.json");
    r.refused("eth0", reasons::FILE_UNKNOWN).await;
    r.hears_nothing().await;
    r.write("eth0.order.json", &order(true));
    let leaves = r.want().await;
    assert!(leaves.deleting && leaves.id == want.id);
    assert_eq!(
        leaves.status.unwrap().observed_generation,
        want.generation,
        "what was said stands"
    );
    line.tell(&Word::Held(false)).await;
    assert_eq!(r.next().await, Heard::Gone("uid-9".into()));
    assert!(!r.has("eth0.status.yaml"));
}

/// It is told to be nowhere, for now: that is not yet its end.
#[tokio::test]
async fn what_the_journal_has_of_a_migration_goes_on_by_its_order() {
    let mut journal = of_journal();
    let given_up: serde_json::Value = serde_json::from_str(&order(false)).unwrap();
    let held = &mut journal.records[0];
    held.spec = serde_json::from_value(given_up["says"]["be"]["spec"].clone()).unwrap();
    held.uid = "uid-9".into();
    let files = [("fast.yaml", NETWORK), ("eth0.order.json", &order(false))];
    let mut r = Running::new(&files, &journal);
    let [want] = <[Want; 1]>::try_from(r.listed().await).unwrap();
    assert!(!want.deleting && want.generation.is_some());
    assert!(want.spec.migration.is_some());
}

/// One of them may be the user's last.
#[tokio::test]
async fn a_nic_whose_record_cannot_be_read_keeps_its_uid() {
    let home = tempfile::tempdir().unwrap();
    let journal = crate::journal::Journal::open(home.path().join("journal")).unwrap();
    let held = of_journal().records.remove(0);
    journal.write(&held).await.unwrap();
    let path = home.path().join("journal/uid-1.json");
    let text = fs::read_to_string(&path)
        .unwrap()
        .replace("\"version\": 1", "\"version\": 99");
    fs::write(&path, text).unwrap();
    let contents = journal.load().unwrap();
    assert_eq!(contents.unreadable.len(), 1);
    let mut r = Running::new(&[("fast.yaml", NETWORK), ("eth0.yaml", NIC)], &contents);
    assert_eq!(r.listed().await[0].id.uid, "uid-1");
}
