//! Encryption against a scripted QEMU: what the real one does is in `tests/stream.rs`.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use hybridnic_api::v1alpha1::{
    AttachmentState, Goal, MigrationOrder, MigrationReport, MigrationState, MigrationStep, MigrationTls,
    ObjectRef, Runtime,
};
use hybridnic_qmp::{Client, commands::MigrationStatus};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::{
    super::{Vm, listener::Listener, process::ProcessId},
    certificates::End,
    encrypt::send,
    migration::Action,
    peer::Peer,
    session::serve,
    steps::act,
    tls::Keys,
};
use crate::{
    broker::{self, Broker},
    host,
    host::Host,
};

const ALONE: Duration = Duration::from_millis(100);

/// All processes have the test's own network; what is given to QEMU can be looked at.
#[derive(Debug)]
struct Here(PathBuf);

impl Broker for Here {
    fn socket<'a>(&'a self, _: &'a ProcessId, _: bool) -> BoxFuture<'a, io::Result<OwnedFd>> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None);
        Box::pin(std::future::ready(socket.map_err(io::Error::from)))
    }

    fn netlink<'a>(&'a self, _: broker::Pod<'a>) -> BoxFuture<'a, io::Result<OwnedFd>> {
        Box::pin(std::future::ready(Err(io::ErrorKind::Unsupported.into())))
    }

    fn groups<'a>(&'a self, _: broker::Pod<'a>) -> BoxFuture<'a, io::Result<OwnedFd>> {
        Box::pin(std::future::ready(Err(io::ErrorKind::Unsupported.into())))
    }

    fn memory(&self) -> BoxFuture<'_, io::Result<OwnedFd>> {
        let made = || {
            let _ = fs::remove_dir_all(&self.0);
            fs::create_dir(&self.0)?;
            Ok(File::open(&self.0)?.into())
        };
        Box::pin(std::future::ready(made()))
    }

    fn root<'a>(&'a self, _: &'a ProcessId) -> BoxFuture<'a, io::Result<OwnedFd>> {
        Box::pin(std::future::ready(Err(io::ErrorKind::Unsupported.into())))
    }
}

struct World {
    _dir: TempDir,
    memory: TempDir,
    host: Arc<Host>,
    vm: Vm,
}

impl World {
    fn new(step: MigrationStep, peer_ca: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut host = host::tests::made(dir.path(), 1, 1);
        host.keys = Keys::new(memory.path().join("tls"));
        host.broker = Arc::new(Here(memory.path().join("given")));
        let vm = Vm::new(Runtime::Qemu, "ns", "pod", "pod-uid");
        vm.set_peer(
            ProcessId::of(std::process::id().cast_signed())
                .unwrap()
                .map(Listener::pretend),
        );
        let order = MigrationOrder {
            migration: ObjectRef {
                name: "m".into(),
                uid: "m".into(),
            },
            nics: vec!["a".into()],
            step,
            target_uri: None,
            listen_address: Some("10.0.0.2".into()),
            tls: Some(MigrationTls {
                peer_ca: peer_ca.map(Into::into),
            }),
            file: None,
        };
        vm.update_nic("a", |nic| {
            nic.nic = "a".into();
            (nic.state, nic.goal) = match step {
                MigrationStep::Listen => (AttachmentState::Reserved, Goal::FastPath),
                MigrationStep::Prepare => (AttachmentState::FastPath, Goal::FastPath),
                _ => (AttachmentState::Standby, Goal::Standby),
            };
            nic.order = Some(order);
            nic.heard = true;
        });
        Self {
            _dir: dir,
            memory,
            host: Arc::new(host),
            vm,
        }
    }

    /// Certificates that an earlier agent has made.
    async fn made(&self, end: End) {
        let (client, mut peer) = Peer::connect().await;
        let made = self.host.keys.make("pod-uid", "m", end).unwrap();
        let name = if end == End::Source { "client" } else { "server" };
        let (tried, ()) = tokio::join!(
            made.try_out(&client, &*self.host.broker),
            tries(&mut peer, name, true)
        );
        tried.unwrap();
    }

    fn order(&self) -> MigrationOrder {
        self.vm.nics()["a"].order.clone().unwrap()
    }

    async fn act(
        &self,
        client: &Client,
        action: Action,
        qemu: impl Future<Output = ()>,
    ) -> Result<(), String> {
        let order = self.order();
        let (done, ()) = tokio::join!(act(&self.vm, &self.host, client, &order, &action), qemu);
        done.map_err(|failure| {
            assert!(failure.refused, "{}", failure.error);
            failure.error
        })
    }

    /// What was reported last, while QEMU says this.
    async fn reported(&self, client: &Client, qemu: impl Future<Output = ()>) -> Option<MigrationReport> {
        let peer = self.vm.peer().map(Listener::pretend);
        tokio::select! {
            reason = serve(&self.vm, &self.host, client, peer) => panic!("the session has ended: {reason}"),
            () = qemu => {}
        }
        self.vm.migration_report().borrow().clone()
    }
}

/// QEMU has nothing of an earlier migration any more.
async fn forgets(peer: &mut Peer) {
    let plain = peer.asked("migrate-set-parameters").await;
    assert_eq!(plain["arguments"], json!({"tls-creds": "", "tls-hostname": ""}));
    peer.reply(&plain, json!({})).await;
    peer.answer("object-del", json!({})).await;
}

/// QEMU reads certificates.
async fn reads(peer: &mut Peer, end: &str, works: bool) {
    peer.answer("add-fd", json!({"fdset-id": 3, "fd": 9})).await;
    if works {
        let asked = peer.asked("object-add").await;
        let wanted = json!({"qom-type": "tls-creds-x509", "id": "hybridnic-tls", "endpoint": end,
            "dir": "/proc/self/fd/9", "verify-peer": true});
        assert_eq!(asked["arguments"], wanted);
        peer.reply(&asked, json!({})).await;
    } else {
        peer.refuse("object-add").await;
    }
    let removed = peer.asked("remove-fd").await;
    assert_eq!(removed["arguments"], json!({"fdset-id": 3}));
    peer.reply(&removed, json!({})).await;
}

async fn tries(peer: &mut Peer, end: &str, works: bool) {
    forgets(peer).await;
    reads(peer, end, works).await;
    if works {
        peer.answer("object-del", json!({})).await;
    }
}

/// The stream's parameters.
async fn is_set_up(peer: &mut Peer) -> Value {
    peer.answer("migrate-set-capabilities", json!({})).await;
    let parameters = peer.asked("migrate-set-parameters").await;
    peer.reply(&parameters, json!({})).await;
    json!([
        parameters["arguments"]["tls-creds"],
        parameters["arguments"]["tls-hostname"]
    ])
}

#[tokio::test]
async fn a_source_reports_its_ca_once_qemu_has_tried_the_certificate() {
    let world = World::new(MigrationStep::Prepare, None);
    let (client, mut peer) = Peer::connect().await;
    let qemu = async {
        peer.shows("none", "running").await;
        tries(&mut peer, "client", true).await;
        peer.shows("none", "running").await;
        peer.is_left_alone(ALONE).await;
    };
    let report = world.reported(&client, qemu).await.unwrap();
    assert_eq!((report.state, report.no_tls), (MigrationState::Prepared, false));
    let kept = world.host.keys.kept("pod-uid", "m", End::Source).unwrap();
    assert!(report.ca == Some(kept.ca.clone()) && kept.has_key());
}

#[tokio::test]
async fn a_qemu_that_cannot_encrypt_is_said_to_be_one_and_nothing_is_kept() {
    for (step, end) in [
        (MigrationStep::Prepare, "client"),
        (MigrationStep::Listen, "server"),
    ] {
        let world = World::new(step, Some("CA"));
        let run = if step == MigrationStep::Listen {
            "inmigrate"
        } else {
            "running"
        };
        let (client, mut peer) = Peer::connect().await;
        let qemu = async {
            peer.shows("none", run).await;
            tries(&mut peer, end, false).await;
            peer.shows("none", run).await;
            peer.is_left_alone(ALONE).await;
        };
        let report = world.reported(&client, qemu).await.unwrap();
        assert_eq!(
            (report.state, report.no_tls, report.ca),
            (MigrationState::Prepared, true, None)
        );
        assert!(report.error.is_some() && !world.host.keys.has("pod-uid"));
    }
}

#[tokio::test]
async fn keys_are_not_put_on_a_disk() {
    let mut world = World::new(MigrationStep::Prepare, None);
    let dir = tempfile::tempdir().unwrap();
    let mut host = host::tests::made(dir.path(), 1, 1);
    host.keys = Keys::new("/proc");
    world.host = Arc::new(host);
    let (client, mut peer) = Peer::connect().await;
    let qemu = async {
        peer.shows("none", "running").await;
        peer.shows("none", "running").await;
        peer.is_left_alone(ALONE).await;
    };
    let report = world.reported(&client, qemu).await.unwrap();
    assert!(report.no_tls && report.error.unwrap().contains("not in memory"));
}

#[tokio::test]
async fn a_target_listens_once_qemu_knows_whom_to_let_in() {
    let world = World::new(MigrationStep::Listen, Some("CA of the source"));
    let (client, mut peer) = Peer::connect().await;
    let qemu = async {
        tries(&mut peer, "server", true).await;
        forgets(&mut peer).await;
        peer.answer("add-fd", json!({"fdset-id": 3, "fd": 9})).await;
        let asked = peer.asked("object-add").await;
        let given = world.memory.path().join("given");
        let trusted = fs::read_to_string(given.join("ca-cert.pem")).unwrap();
        assert!(given.join("server-key.pem").exists() && given.join("dh-params.pem").exists());
        assert!(trusted.ends_with("CA of the source") && trusted.contains("BEGIN CERTIFICATE"));
        peer.reply(&asked, json!({})).await;
        peer.answer("remove-fd", json!({})).await;
        assert_eq!(is_set_up(&mut peer).await, json!(["hybridnic-tls", ""]));
        let key = world.memory.path().join("tls/pod-uid/key.pem");
        assert!(!key.exists(), "QEMU alone has the key");
        peer.answer("stop", json!({})).await;
        peer.answer("migrate-incoming", json!({})).await;
    };
    world.act(&client, Action::Listen, qemu).await.unwrap();
    let kept = world.host.keys.kept("pod-uid", "m", End::Target).unwrap();
    assert!(
        !kept.has_key() && kept.ca.contains("BEGIN CERTIFICATE"),
        "to be reported"
    );
}

#[tokio::test]
async fn a_source_sends_with_the_certificate_that_an_earlier_agent_has_made() {
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("tcp:{}", target.local_addr().unwrap());
    let world = World::new(MigrationStep::Transfer, Some("CA of the target"));
    world.made(End::Source).await;
    let (client, mut peer) = Peer::connect().await;
    let qemu = async {
        peer.answer("query-migrate", json!({})).await;
        forgets(&mut peer).await;
        reads(&mut peer, "client", true).await;
        assert_eq!(is_set_up(&mut peer).await, json!(["hybridnic-tls", "m"]));
        peer.answer("getfd", json!({})).await;
        let asked = peer.asked("migrate").await;
        assert_eq!(asked["arguments"]["uri"], "fd:hn-migration");
        peer.reply(&asked, json!({})).await;
    };
    world
        .act(&client, Action::Start(uri.clone()), qemu)
        .await
        .unwrap();
    let (_stream, _) = target.accept().await.unwrap();

    // It has died before QEMU was told to send: QEMU has the certificate, and nobody else.
    let (client, mut peer) = Peer::connect().await;
    let qemu = async {
        peer.answer("query-migrate", json!({})).await;
        let objects = json!([{"name": "hybridnic-tls", "type": "child<tls-creds-x509>"}]);
        peer.answer("qom-list", objects).await;
        assert_eq!(is_set_up(&mut peer).await, json!(["hybridnic-tls", "m"]));
        peer.answer("getfd", json!({})).await;
        peer.answer("migrate", json!({})).await;
    };
    world.act(&client, Action::Start(uri), qemu).await.unwrap();
}

/// QEMU may have begun, and hang in a handshake with a target that says nothing.
#[tokio::test]
async fn a_connection_is_held_until_qemu_has_said_that_it_does_not_use_it() {
    for refused in [true, false] {
        let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("tcp:{}", target.local_addr().unwrap());
        let world = World::new(MigrationStep::Transfer, Some("CA of the target"));
        let (client, mut peer) = Peer::connect().await;
        let qemu = async {
            peer.answer("getfd", json!({})).await;
            if refused {
                peer.refuse("migrate").await;
                peer.answer("closefd", json!({})).await;
            } else {
                peer.asked("migrate").await;
                drop(peer);
            }
        };
        let (sent, ()) = tokio::join!(send(&world.vm, &world.host, &client, &uri), qemu);
        assert_eq!(sent.err().map(|failure| failure.refused), Some(refused));
        let left = world.vm.judge_handshake(&MigrationStatus::Setup);
        assert_eq!(left.is_none(), refused, "{left:?}");
    }
}

#[tokio::test]
async fn nothing_is_sent_without_a_certificate_or_a_peer() {
    for (peer_ca, made) in [(Some("CA"), false), (None, true)] {
        let world = World::new(MigrationStep::Transfer, peer_ca);
        if made {
            world.made(End::Source).await;
        }
        let (client, mut peer) = Peer::connect().await;
        let qemu = peer.answer("query-migrate", json!({}));
        let refused = world
            .act(&client, Action::Start("tcp:127.0.0.1:1".into()), qemu)
            .await;
        refused.unwrap_err();
        peer.is_left_alone(ALONE).await;
    }
}

#[tokio::test]
async fn what_was_made_goes_with_the_order() {
    let world = World::new(MigrationStep::Prepare, None);
    world.host.keys.make("pod-uid", "m", End::Source).unwrap();
    world.vm.update_nic("a", |nic| {
        nic.order = None;
        nic.heard = false;
    });
    let (client, mut peer) = Peer::connect().await;
    let qemu = async {
        peer.is_left_alone(ALONE).await;
        assert!(
            world.host.keys.has("pod-uid"),
            "only the journal says that it is called off"
        );
        world.vm.update_nic("a", |nic| nic.heard = true);
        forgets(&mut peer).await;
        peer.is_left_alone(ALONE).await;
        assert!(!world.host.keys.has("pod-uid"));
    };
    assert_eq!(world.reported(&client, qemu).await, None);
}

#[tokio::test]
async fn a_target_that_runs_the_vm_forgets_the_stream() {
    let world = World::new(MigrationStep::Listen, Some("CA"));
    world.host.keys.make("pod-uid", "m", End::Target).unwrap();
    let begun = crate::journal::Begun {
        migration: "m".into(),
        process: world.vm.peer(),
        arrival: Some(crate::journal::Arrival::Started),
        custody: crate::journal::Custody::Unknown,
        saving: None,
    };
    let noted = world
        .vm
        .remember(&world.host.journal, |record| record.begun = Some(begun));
    noted.await.unwrap();
    let (client, mut peer) = Peer::connect().await;
    let qemu = async {
        peer.shows("completed", "running").await;
        forgets(&mut peer).await;
        assert_eq!(
            world.vm.migration_report().borrow().as_ref().unwrap().state,
            MigrationState::Completed
        );
        peer.is_left_alone(ALONE).await;
    };
    world.reported(&client, qemu).await;
    assert!(!world.host.keys.has("pod-uid"));
}
