//! A session with a peer that answers anything: each command ends, with a value or an error. Each line of the input answers one
//! command. What a guest asks its standby to receive becomes no more than a macvtap may get.
#![no_main]

use std::os::fd::AsFd as _;
use std::sync::LazyLock;
use std::time::Duration;

use hybridnic_net::multicast::Received;
use hybridnic_qmp::commands::RxFilter;
use hybridnic_qmp::{Client, Options};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

#[allow(dead_code, reason = "the agent's own, as it is")]
#[path = "../../node-agent/src/machine/qemu/rx_filter.rs"]
mod rx_filter;

const GREETING: &[u8] =
    b"{\"QMP\":{\"version\":{\"qemu\":{\"major\":10,\"minor\":0,\"micro\":2}},\"capabilities\":[]}}\r\n";

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
});

async fn qemu(stream: UnixStream, answers: &[u8]) {
    let (read, mut write) = stream.into_split();
    let mut commands = BufReader::new(read).lines();
    let mut answers = answers.split(|byte| *byte == b'\n');
    if write.write_all(GREETING).await.is_err() {
        return;
    }
    for id in 1_u64.. {
        let Ok(Some(_)) = commands.next_line().await else {
            return;
        };
        let value = match id {
            // The command by which each session begins.
            1 => &b"{}"[..],
            _ => match answers.next() {
                Some(answer) => answer,
                None => return,
            },
        };
        // A line that begins like this is sent as it is, before the answer: an event, or something else.
        let line = match value.strip_prefix(b"!") {
            Some(raw) => [
                raw,
                b"\r\n{\"return\":{},\"id\":",
                id.to_string().as_bytes(),
                b"}\r\n",
            ]
            .concat(),
            None => [
                b"{\"return\":",
                value,
                b",\"id\":",
                id.to_string().as_bytes(),
                b"}\r\n",
            ]
            .concat(),
        };
        if write.write_all(&line).await.is_err() {
            return;
        }
    }
}

fn follows(filter: &RxFilter) {
    let now = Received::default();
    let change = rx_filter::change(filter, &now);
    assert!(change.add.len() <= 256 && change.add.iter().all(|mac| mac.is_multicast()));
    assert!(change.add.is_disjoint(&change.remove));
    // Once it is done there is nothing left to do.
    let done = Received {
        added: change.add,
        all: change.all.unwrap_or_default(),
    };
    assert_eq!(rx_filter::change(filter, &done), rx_filter::Change::default());
    assert!(rx_filter::beyond(filter).vlans.len() <= 2048);
}

async fn ask(client: &Client, which: u8) {
    match which % 11 {
        0 => drop(client.query_version().await.map(|version| version.to_string())),
        1 => drop(client.query_status().await),
        2 => drop(client.free_root_ports().await.inspect(|ports| {
            assert!(
                ports
                    .iter()
                    .all(|port| port.len() <= 64 && !port.contains(hybridnic_text::steers))
            );
        })),
        3 => drop(client.guest_pci_address("sb-a").await),
        4 => drop(client.query_migrate().await.inspect(|info| {
            let _ = (info.status_or_none(), info.listening());
            let desc = info.error_desc.as_deref().unwrap_or_default();
            assert!(desc.chars().count() <= 1024 && !desc.contains(hybridnic_text::steers));
        })),
        5 => drop(
            client
                .query_rx_filter("sb-a")
                .await
                .map(|filter| filter.as_ref().map(follows)),
        ),
        6 => drop(client.standby_negotiated("sb-a").await),
        7 => drop(client.has_tls_creds("tls").await),
        8 => drop(client.peripheral().await),
        9 => drop(client.add_fd(std::io::stdin().as_fd()).await),
        _ => drop(client.qom_get::<bool>("/machine", "hotplug").await),
    }
}

fuzz_target!(|input: (u8, &[u8])| {
    let (which, answers) = input;
    RUNTIME.block_on(async {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let options = Options {
            max_line: 4096,
            ..Options::default()
        };
        let session = async {
            let client = Client::from_stream(ours, &options).await.expect("a session");
            ask(&client, which).await;
        };
        let both = async { tokio::join!(qemu(theirs, answers), session) };
        // An answer ends a command, and so does a peer that goes; neither waits.
        tokio::time::timeout(Duration::from_secs(2), both)
            .await
            .expect("a command hangs");
    });
});
