//! A network that swallows packets, in network namespaces of their own. Needs root, and `ip`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, pin_mut};
use hybridnic_process::api::{self, Patience, Requests};
use hybridnic_process::metrics::Registry;
use hybridnic_process::{tls, watch::follow};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::Event;
use kube::{Api, Config};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

const CLIENT: &str = "10.99.0.1";
const SERVER: &str = "10.99.0.2";

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(done.success(), "ip {arguments}");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Answers a list, and a watch by one event; a write by nothing.
async fn serve(stream: TcpStream) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut first = String::new();
        if stream.read_line(&mut first).await.unwrap_or(0) == 0 {
            return;
        }
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let (length, body) = if first.contains("watch=true") {
            let meta = json!({"name": "a", "resourceVersion": "7"});
            let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta});
            let event = json!({"type": "ADDED", "object": object}).to_string() + "\n";
            let chunk = format!("{:x}\r\n{event}\r\n", event.len());
            ("Transfer-Encoding: chunked".to_owned(), chunk)
        } else if first.starts_with("GET") {
            let meta = json!({"resourceVersion": "1"});
            let list = json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": meta, "items": []});
            let list = list.to_string();
            (format!("Content-Length: {}", list.len()), list)
        } else {
            return std::future::pending().await;
        };
        let text = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{length}\r\n\r\n{body}");
        stream.write_all(text.as_bytes()).await.unwrap();
    }
}

/// The API server's machine: says its thread's id, and serves once the client has made the wire. Then it swallows what is for the
/// client, or no more, as it is told.
fn server(tell: &mpsc::Sender<i32>, orders: &mpsc::Receiver<bool>) {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (are you root?)");
    tell.send(gettid().as_raw()).unwrap();
    orders.recv().unwrap();
    ip(&format!("addr add {SERVER}/24 dev far"));
    ip("link set far up");
    let runtime = runtime();
    let listener = runtime.block_on(TcpListener::bind((SERVER, 80))).unwrap();
    tell.send(0).unwrap();
    runtime.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream));
        }
    });
    runtime.block_on(async {
        loop {
            match orders.try_recv() {
                Ok(cut) => {
                    let verb = if cut { "add" } else { "del" };
                    ip(&format!("route {verb} blackhole {CLIENT}/32"));
                    tell.send(0).unwrap();
                }
                Err(mpsc::TryRecvError::Empty) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(mpsc::TryRecvError::Disconnected) => return,
            }
        }
    });
}

/// The connections stand, and from one moment on nothing comes back, no acknowledgement either: what waits for an answer ends
/// before its own deadline, and the watch is taken up again when the network is back.
#[test]
fn a_peer_whose_packets_are_lost_is_given_up() {
    let (tell, told) = mpsc::channel();
    let (order, orders) = mpsc::channel();
    thread::spawn(move || server(&tell, &orders));
    let client = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (are you root?)");
        let far = told.recv().unwrap();
        ip(&format!("link add near type veth peer name far netns {far}"));
        ip(&format!("addr add {CLIENT}/24 dev near"));
        ip("link set near up");
        let cut = |cut| {
            order.send(cut).unwrap();
            told.recv().unwrap();
        };
        cut(false);
        runtime().block_on(client(cut));
    });
    if let Err(panic) = client.join() {
        std::panic::resume_unwind(panic);
    }
}

async fn client(cut: impl Fn(bool)) {
    tls::install_provider();
    let patience = Patience {
        keepalive: Duration::from_secs(1),
        keepalive_again: Duration::from_secs(1),
        unacknowledged: Duration::from_secs(2),
    };
    let config = Config::new(format!("http://{SERVER}").parse().unwrap());
    let requests = Requests::new(&mut Registry::new("test", "1"));
    let client = api::connect(config, &requests, patience).unwrap();
    let api: Api<ConfigMap> = Api::namespaced(client, "ns");

    let events = follow(api.clone(), api::watches());
    pin_mut!(events);
    while !matches!(events.next().await, Some(Ok(Event::Apply(_)))) {}
    let (params, patch) = (PatchParams::default(), Patch::Merge(json!({})));
    let write = api.patch("a", &params, &patch);
    pin_mut!(write);
    // It is on its way, and the client would wait ten seconds for it.
    let early = tokio::time::timeout(Duration::from_millis(500), &mut write).await;
    assert!(early.is_err(), "{early:?}");
    cut(true);
    let began = Instant::now();
    let broken = async {
        loop {
            if let Some(Err(error)) = events.next().await {
                return error;
            }
        }
    };
    let (written, broken) = tokio::join!(write, broken);
    let took = began.elapsed();
    println!("{took:?}: {written:?}; {broken}");
    written.unwrap_err();
    assert!(took < Duration::from_secs(9), "{took:?}");
    cut(false);
    let again = async { while !matches!(events.next().await, Some(Ok(Event::Apply(_)))) {} };
    tokio::time::timeout(Duration::from_secs(50), again)
        .await
        .expect("the watch goes on");
}
