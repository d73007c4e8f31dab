//! API servers that accept a connection and fall silent, without a reply of their kernel. Time stands still except for the waits, so
//! that the deadlines are the real ones.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::watcher::Event;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::*;
use crate::watch::follow;

fn api(server: SocketAddr) -> Api<ConfigMap> {
    crate::tls::install_provider();
    let config = Config::new(format!("http://{server}").parse().unwrap());
    let requests = Requests::new(&mut Registry::new("test", "1"));
    let client = connect(config, &requests, Patience::default()).unwrap();
    Api::namespaced(client, "ns")
}

/// Reads a request's head; gives its first line. Waits for ever where the client has gone.
async fn request(stream: &mut BufReader<TcpStream>) -> String {
    let mut first = String::new();
    stream.read_line(&mut first).await.unwrap();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap() == 0 {
            std::future::pending::<()>().await;
        }
        if line.trim().is_empty() {
            return first;
        }
    }
}

fn patch(size: usize) -> Patch<serde_json::Value> {
    Patch::Merge(json!({"data": {"a": "x".repeat(size)}}))
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_not_answered_ends_at_its_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = api(listener.local_addr().unwrap());
    // It reads nothing either: a body that is larger than all buffers is never taken.
    let accept = async {
        let mut all = Vec::new();
        loop {
            all.push(listener.accept().await.unwrap());
        }
    };
    let ask = async {
        for (size, seconds) in [(1, 10), (16 << 20, 10)] {
            let began = Instant::now();
            let error = api
                .patch("a", &PatchParams::default(), &patch(size))
                .await
                .unwrap_err();
            assert_eq!(began.elapsed().as_secs(), seconds, "{error}");
        }
        let began = Instant::now();
        api.list(&ListParams::default()).await.unwrap_err();
        assert_eq!(began.elapsed().as_secs(), 60);
    };
    tokio::select! {
        never = accept => never,
        () = ask => {}
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_answers_again_is_asked_by_another_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = api(listener.local_addr().unwrap());
    let serve = async {
        let (_silent, _) = listener.accept().await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        request(&mut stream).await;
        let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}).to_string();
        let length = format!("Content-Length: {}", body.len());
        answer(&mut stream, &length, &body).await;
        std::future::pending::<()>().await;
    };
    let ask = async {
        let params = PatchParams::default();
        api.patch("a", &params, &patch(1)).await.unwrap_err();
        let began = Instant::now();
        api.patch("a", &params, &patch(1)).await.unwrap();
        assert_eq!(began.elapsed().as_secs(), 0);
    };
    tokio::select! {
        () = serve => panic!("it has ended"),
        () = ask => {}
    }
}

/// Answers lists; gives each watch one event, about a map that is named after how many watches there were before, and then says
/// nothing more.
async fn serve(stream: TcpStream, watches: Arc<AtomicUsize>) {
    let mut stream = BufReader::new(stream);
    loop {
        let line = request(&mut stream).await;
        let list = json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": "1"}, "items": []});
        if line.contains("watch=true") {
            let name = format!("watch-{}", watches.fetch_add(1, Ordering::Relaxed));
            let meta = json!({"name": name, "resourceVersion": "7"});
            let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta});
            let event = json!({"type": "ADDED", "object": object}).to_string() + "\n";
            let chunk = format!("{:x}\r\n{event}\r\n", event.len());
            answer(&mut stream, "Transfer-Encoding: chunked", &chunk).await;
            std::future::pending::<()>().await;
        }
        let list = list.to_string();
        let length = format!("Content-Length: {}", list.len());
        answer(&mut stream, &length, &list).await;
    }
}

async fn answer(stream: &mut BufReader<TcpStream>, length: &str, body: &str) {
    let text = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{length}\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_falls_silent_is_taken_up_again_within_a_minute() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = api(listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let server = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream, count.clone()));
        }
    });
    let events = follow(api, watches());
    pin_mut!(events);
    let mut seen: Vec<(String, Instant)> = Vec::new();
    while seen.len() < 2 {
        // What goes wrong between is told, and tried again.
        if let Some(Ok(Event::Apply(map))) = events.next().await {
            seen.push((map.metadata.name.unwrap(), Instant::now()));
        }
    }
    let [(first, began), (second, again)] = &seen[..] else {
        panic!("{seen:?}")
    };
    assert_eq!((first.as_str(), second.as_str()), ("watch-0", "watch-1"));
    let pause = again.duration_since(*began).as_secs();
    assert!((50..65).contains(&pause), "{pause} s");
    server.abort();
}
