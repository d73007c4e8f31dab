//! Encrypted streams between real QEMUs, with certificates as the agent makes them. QEMU runs as nobody, in a network of its own.
//! Needs `qemu-system-x86_64`, root, and /dev/shm.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test fails so"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use hybridnic_agent::{
    broker::{Broker as _, Process, Started},
    machine::{
        process::ProcessId,
        qemu::{
            certificates::End,
            dial,
            tls::{self, Kept, Keys, LoadError},
        },
    },
};
use hybridnic_qmp::{
    Client, QmpError,
    commands::{MigrationCapability, MigrationStatus, RunState},
    wait_event,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, timeout},
};

#[allow(dead_code, reason = "others need the rest")]
#[path = "../../crates/qmp/tests/common/qemu.rs"]
mod qemu;

use qemu::{Qemu, SOON};

const UID: &str = "0b9f3f3c-7a0e-4c89-a3a5-5f1b8d0c2e4f";
const ADDRESS: &str = "10.99.99.1";

/// A network namespace with one address. It lives as long as this.
struct Network(Child);

impl Network {
    async fn new() -> Self {
        let script =
            format!("ip link set lo up && ip address add {ADDRESS}/32 dev lo && echo up && exec sleep 600");
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut up = [0; 3];
        let mut stdout = child.stdout.take().unwrap();
        tokio::io::AsyncReadExt::read_exact(&mut stdout, &mut up)
            .await
            .unwrap();
        Self(child)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.0.id().unwrap()))
    }
}

fn start(network: &Network, arguments: &[&str]) -> Qemu {
    let network = format!("--net={}", network.path().display());
    let become_it =
        "setpriv --reuid=65534 --regid=65534 --clear-groups qemu-system-x86_64 -machine q35 -accel tcg -m 64";
    let command = ["nsenter", &network].into_iter().chain(become_it.split(' '));
    Qemu::run(command.chain(arguments.iter().copied()))
}

fn process(qemu: &Qemu) -> ProcessId {
    ProcessId::of(qemu.pid().cast_signed()).unwrap().unwrap()
}

/// A source and a target with their certificates, neither given to QEMU yet.
struct Pair {
    memory: TempDir,
    keys: Keys,
    network: Network,
    broker: Process,
    qemus: [Qemu; 2],
    source: Client,
    target: Client,
}

impl Pair {
    async fn new() -> Self {
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let keys = Keys::new(memory.path().join("tls"));
        let network = Network::new().await;
        let program = Path::new(env!("CARGO_BIN_EXE_hybridnic-agent"));
        let broker = Started::new(program).unwrap().run().unwrap();
        let mut qemus = [start(&network, &[]), start(&network, &["-incoming", "defer"])];
        let (source, target) = (qemus[0].connect().await, qemus[1].connect().await);
        for client in [&source, &target] {
            set_up(client).await;
        }
        Self {
            memory,
            keys,
            network,
            broker,
            qemus,
            source,
            target,
        }
    }

    fn make(&self, pod: &str, end: End) -> Kept {
        self.keys.make(pod, UID, end).unwrap()
    }

    /// The target listens for the source that has this CA.
    async fn listen(&self, kept: &Kept, source_ca: &str) -> String {
        kept.try_out(&self.target, &self.broker).await.unwrap();
        kept.load(&self.target, &self.broker, source_ca).await.unwrap();
        let parameters = tls::parameters(Some((UID, End::Target)));
        self.target.migrate_set_parameters(&parameters).await.unwrap();
        self.target.stop().await.unwrap();
        let uri = format!("tcp:{ADDRESS}:0");
        self.target.migrate_incoming(&uri).await.unwrap();
        let listening = self.target.query_migrate().await.unwrap().listening();
        assert_eq!(listening[0].host, ADDRESS, "and nowhere else");
        format!("tcp:{ADDRESS}:{}", listening[0].port)
    }

    async fn trust(&self, client: &Client, kept: &Kept, target_ca: &str) {
        kept.try_out(client, &self.broker).await.unwrap();
        kept.load(client, &self.broker, target_ca).await.unwrap();
        let parameters = tls::parameters(Some((UID, End::Source)));
        client.migrate_set_parameters(&parameters).await.unwrap();
    }

    async fn send(&self, client: &Client, qemu: &Qemu, uri: &str) -> dial::Handshake {
        let stream = dial::connect(&self.broker, &process(qemu), uri).await.unwrap();
        let handshake = dial::give(client, stream).await.unwrap();
        dial::send(client).await.unwrap();
        handshake
    }

    async fn stranger(&self, uri: &str) -> TcpStream {
        let socket = self.broker.socket(&process(&self.qemus[0]), false).await.unwrap();
        let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
        let to = uri.strip_prefix("tcp:").unwrap().parse().unwrap();
        timeout(SOON, socket.connect(to)).await.unwrap().unwrap()
    }

    async fn arrives(&self) {
        assert_eq!(end(&self.source).await, (MigrationStatus::Completed, None));
        let status = self.target.query_status().await.unwrap().status;
        assert_eq!(status, RunState::Paused);
    }
}

async fn set_up(client: &Client) {
    use MigrationCapability::{Events, ReturnPath};
    let capabilities = [(Events, true), (ReturnPath, true)];
    client.migrate_set_capabilities(&capabilities).await.unwrap();
}

/// How a source's migration ends.
async fn end(client: &Client) -> (MigrationStatus, Option<String>) {
    let mut events = client.subscribe();
    let deadline = Instant::now() + SOON;
    loop {
        let info = client.query_migrate().await.unwrap();
        if info.status_or_none().is_idle() && info.status_or_none() != MigrationStatus::None {
            return (info.status_or_none(), info.error_desc);
        }
        wait_event(&mut events, deadline, |event| event.migration_status().is_some())
            .await
            .unwrap();
    }
}

/// Directories that QEMU has open.
fn directories(pid: u32) -> Vec<PathBuf> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let paths = links.map(|link| link.path());
    paths
        .filter(|path| fs::metadata(path).is_ok_and(|to| to.is_dir()))
        .collect()
}

#[tokio::test]
async fn the_right_source_gets_in_and_nobody_else() {
    let pair = Pair::new().await;
    let (at_source, at_target) = (pair.make("source", End::Source), pair.make("target", End::Target));
    let uri = pair.listen(&at_target, &at_source.ca).await;

    // In plain, as a QEMU would begin.
    let mut plain = pair.stranger(&uri).await;
    plain.write_all(b"QEVM\0\0\0\x03").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(
        SOON,
        tokio::io::AsyncReadExt::read_to_end(&mut plain, &mut answer),
    )
    .await
    .expect("it is sent away");

    // With a certificate of the right name, by another CA.
    let mut other = start(&pair.network, &[]);
    let client = other.connect().await;
    set_up(&client).await;
    let stranger = pair.make("stranger", End::Source);
    pair.trust(&client, &stranger, &at_target.ca).await;
    pair.send(&client, &other, &uri).await;
    assert_eq!(end(&client).await.0, MigrationStatus::Failed);
    let status = pair.target.query_status().await.unwrap().status;
    assert_eq!(status, RunState::InMigrate, "it waits on");

    pair.trust(&pair.source, &at_source, &at_target.ca).await;
    pair.send(&pair.source, &pair.qemus[0], &uri).await;
    pair.arrives().await;
}

#[tokio::test]
async fn a_source_sends_to_nobody_but_the_target() {
    let pair = Pair::new().await;
    let (at_source, at_target) = (pair.make("source", End::Source), pair.make("target", End::Target));
    // It listens where the target should, and accepts any source.
    let uri = pair.listen(&at_target, &at_source.ca).await;
    let expected = pair.make("expected", End::Target);
    pair.trust(&pair.source, &at_source, &expected.ca).await;
    pair.send(&pair.source, &pair.qemus[0], &uri).await;
    let (status, why) = end(&pair.source).await;
    assert_eq!(status, MigrationStatus::Failed);
    assert!(
        why.as_deref().is_some_and(|why| why.contains("known issuer")),
        "{why:?}"
    );
    assert_eq!(
        pair.source.query_status().await.unwrap().status,
        RunState::Running
    );
}

#[tokio::test]
async fn nothing_is_left_of_the_certificates() {
    let pair = Pair::new().await;
    let (at_source, at_target) = (pair.make("source", End::Source), pair.make("target", End::Target));
    let uri = pair.listen(&at_target, &at_source.ca).await;
    at_source.try_out(&pair.source, &pair.broker).await.unwrap();
    // An agent after the one that has made them.
    let keys = Keys::new(pair.memory.path().join("tls"));
    let again = keys.kept("source", UID, End::Source).unwrap();
    assert!(again.ca == at_source.ca && again.has_key());
    again
        .load(&pair.source, &pair.broker, &at_target.ca)
        .await
        .unwrap();
    let parameters = tls::parameters(Some((UID, End::Source)));
    pair.source.migrate_set_parameters(&parameters).await.unwrap();
    for (qemu, pod, kept) in [
        (&pair.qemus[0], "source", again),
        (&pair.qemus[1], "target", at_target),
    ] {
        assert!(!kept.has_key() && directories(qemu.pid()).is_empty(), "{pod}");
    }
    pair.send(&pair.source, &pair.qemus[0], &uri).await;
    pair.arrives().await;
    for client in [&pair.source, &pair.target] {
        assert!(client.has_tls_creds(tls::ID).await.unwrap());
        tls::unload(client).await.unwrap();
        assert!(!client.has_tls_creds(tls::ID).await.unwrap());
        let now: Value = client
            .execute("query-migrate-parameters", &json!({}))
            .await
            .unwrap();
        assert_eq!(
            (&now["tls-creds"], &now["tls-hostname"]),
            (&json!(""), &json!(""))
        );
        tls::unload(client).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_no_certificate_is_refused() {
    let pair = Pair::new().await;
    let kept = pair.make("target", End::Target);
    for text in ["", "-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n"] {
        let refused = kept.load(&pair.target, &pair.broker, text).await;
        if text.is_empty() {
            // Then it trusts nobody but itself.
            refused.unwrap();
        } else {
            assert!(
                matches!(refused, Err(LoadError::Qemu(QmpError::Command { .. }))),
                "{refused:?}"
            );
        }
        pair.make("target", End::Target);
    }
}

/// QEMU itself waits for any client that has connected. The VM must not.
#[tokio::test]
async fn a_target_that_is_held_up_does_not_hold_the_vm_up() {
    let pair = Pair::new().await;
    let (at_source, at_target) = (pair.make("source", End::Source), pair.make("target", End::Target));
    let uri = pair.listen(&at_target, &at_source.ca).await;
    pair.trust(&pair.source, &at_source, &at_target.ca).await;
    let mute = pair.stranger(&uri).await;
    pair.send(&pair.source, &pair.qemus[0], &uri).await;
    let brief = pair.target.with_timeout(Duration::from_millis(500));
    let held_up = brief.query_status().await;
    eprintln!("the target, while a stranger says nothing: {held_up:?}");
    let at_once = pair.source.with_timeout(Duration::from_secs(5));
    assert_eq!(at_once.query_status().await.unwrap().status, RunState::Running);
    assert_eq!(
        at_once.query_migrate().await.unwrap().status_or_none(),
        MigrationStatus::Setup
    );
    drop(mute);
    pair.arrives().await;
}

#[tokio::test]
async fn a_handshake_that_does_not_end_can_be_cancelled() {
    let pair = Pair::new().await;
    let (at_source, at_target) = (pair.make("source", End::Source), pair.make("target", End::Target));
    let uri = pair.listen(&at_target, &at_source.ca).await;
    pair.trust(&pair.source, &at_source, &at_target.ca).await;
    let mute = pair.stranger(&uri).await;
    let handshake = pair.send(&pair.source, &pair.qemus[0], &uri).await;
    let status = pair.source.query_migrate().await.unwrap().status_or_none();
    let handshake = handshake.judge(&status).expect("it has not ended");
    pair.source.migrate_cancel().await.unwrap();
    let status = pair.source.query_migrate().await.unwrap().status_or_none();
    assert!(handshake.judge(&status).is_none(), "{status}");
    let (status, _) = end(&pair.source).await;
    assert!(
        matches!(status, MigrationStatus::Cancelled | MigrationStatus::Failed),
        "{status}"
    );
    assert_eq!(
        pair.source.query_status().await.unwrap().status,
        RunState::Running
    );
    drop(mute);
    // It is not in the way of the next.
    let again = pair.make("source", End::Source);
    let mut next = start(&pair.network, &["-incoming", "defer"]);
    let target = next.connect().await;
    set_up(&target).await;
    let next = Pair { target, ..pair };
    let at_target = next.make("target", End::Target);
    let uri = next.listen(&at_target, &again.ca).await;
    next.trust(&next.source, &again, &at_target.ca).await;
    next.send(&next.source, &next.qemus[0], &uri).await;
    next.arrives().await;
}

#[tokio::test]
async fn a_socket_is_of_the_network_of_the_process() {
    let pair = Pair::new().await;
    let kept = pair.make("target", End::Target);
    let uri = pair.listen(&kept, &kept.ca).await;
    let to: std::net::SocketAddr = uri.strip_prefix("tcp:").unwrap().parse().unwrap();
    let here = timeout(Duration::from_millis(300), TcpStream::connect(to)).await;
    assert!(!matches!(here, Ok(Ok(_))), "the test has another network");
    dial::connect(&pair.broker, &process(&pair.qemus[0]), &uri)
        .await
        .unwrap();
    let nowhere = dial::connect(
        &pair.broker,
        &process(&pair.qemus[0]),
        &format!("tcp:{ADDRESS}:1"),
    )
    .await;
    assert!(
        matches!(nowhere, Err(dial::DialError::Connect { .. })),
        "{nowhere:?}"
    );
    for bad in ["unix:/x", "exec:x", "tcp:host:1", "tcp:10.0.0.1"] {
        let refused = dial::connect(&pair.broker, &process(&pair.qemus[0]), bad).await;
        assert!(matches!(refused, Err(dial::DialError::Target(_))), "{bad}");
    }
}

/// A QEMU that is root, and whose guest has taken it over, may walk up from a directory that it gets.
#[tokio::test]
async fn from_what_qemu_gets_nothing_else_can_be_reached() {
    let program = Path::new(env!("CARGO_BIN_EXE_hybridnic-agent"));
    let broker = Started::new(program).unwrap().run().unwrap();
    let directory = broker.memory().await.unwrap();
    let here = PathBuf::from(format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&directory)
    ));
    fs::write(here.join("mine"), "x").unwrap();
    let up = fs::read_dir(here.join("../../../..")).unwrap();
    let names: Vec<_> = up.flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["mine"]);
    let another = broker.memory().await.unwrap();
    let there = PathBuf::from(format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&another)
    ));
    assert_eq!(fs::read_dir(there).unwrap().count(), 0);
    let large = vec![0_u8; 1 << 20];
    assert!(
        fs::write(here.join("large"), large).is_err(),
        "it is as large as it needs to be"
    );
}
