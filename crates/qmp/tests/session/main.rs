//! The session against a scripted peer: what a real QEMU does too rarely, or never. `real_qemu` shows the same
//! behaviour on the real one wherever it can be brought to it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod hostile;

use std::io::{IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use hybridnic_qmp::{Client, CloseReason, EventError, Options, QmpError, wait_event};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};

const SOON: Duration = Duration::from_secs(5);
const GREETING: &str = r#"{"QMP":{"version":{"qemu":{"major":10,"minor":0,"micro":2},"package":"test"},"capabilities":["oob"]}}"#;

/// QEMU's side of a connection.
struct Peer {
    stream: BufReader<UnixStream>,
}

impl Peer {
    async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    async fn line(&mut self, text: &str) {
        self.send(&format!("{text}\r\n")).await;
    }

    async fn event(&mut self, name: &str) {
        self.line(&json!({"event": name, "timestamp": {"seconds": 1, "microseconds": 2}}).to_string())
            .await;
    }

    async fn command(&mut self) -> Value {
        let mut line = String::new();
        timeout(SOON, self.stream.read_line(&mut line))
            .await
            .expect("a command in time")
            .unwrap();
        serde_json::from_str(&line).unwrap()
    }

    async fn answer(&mut self, command: &Value, value: Value) {
        self.line(&json!({"return": value, "id": command["id"]}).to_string())
            .await;
    }
}

async fn connect_with(options: Options) -> (Client, Peer) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut peer = Peer {
        stream: BufReader::new(theirs),
    };
    let greet = async {
        peer.line(GREETING).await;
        let command = peer.command().await;
        assert_eq!(command["execute"], "qmp_capabilities");
        peer.answer(&command, json!({})).await;
        peer
    };
    let (client, peer) = tokio::join!(Client::from_stream(ours, &options), greet);
    (client.unwrap(), peer)
}

async fn connect() -> (Client, Peer) {
    connect_with(Options::default()).await
}

async fn ended(client: &Client) -> CloseReason {
    timeout(SOON, client.closed()).await.expect("the session ends")
}

#[tokio::test]
async fn greeting_gives_the_version() {
    let (client, _peer) = connect().await;
    assert!(client.version().at_least(10, 0));
    assert_eq!(client.version().package, "test");
}

#[tokio::test]
async fn a_standard_library_socket_does_as_well() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut peer = Peer {
        stream: BufReader::new(UnixStream::from_std(theirs).unwrap()),
    };
    let greet = async {
        peer.line(GREETING).await;
        let command = peer.command().await;
        peer.answer(&command, json!({})).await;
    };
    let options = Options::default();
    let (client, ()) = tokio::join!(Client::from_std(ours, &options), greet);
    client.unwrap();
}

#[tokio::test]
async fn replies_out_of_order_find_their_callers() {
    let (client, mut peer) = connect().await;
    let ask = |name: &'static str| {
        let client = client.clone();
        async move {
            client
                .execute::<_, String>("echo", &json!({ "name": name }))
                .await
                .unwrap()
        }
    };
    let serve = async {
        let commands = [peer.command().await, peer.command().await, peer.command().await];
        for command in commands.iter().rev() {
            peer.answer(command, command["arguments"]["name"].clone()).await;
        }
    };
    let (a, b, c, ()) = tokio::join!(ask("a"), ask("b"), ask("c"), serve);
    assert_eq!((a.as_str(), b.as_str(), c.as_str()), ("a", "b", "c"));
}

#[tokio::test]
async fn unknown_events_pass_and_harm_no_command() {
    let (client, mut peer) = connect().await;
    let mut events = client.subscribe();
    let serve = async {
        let command = peer.command().await;
        peer.line(r#"{"event":"FUTURE_EVENT","data":{"deep":[{"x":null}]},"extra":1}"#)
            .await;
        peer.answer(&command, json!({"running": true, "status": "running"}))
            .await;
    };
    let (status, ()) = tokio::join!(client.query_status(), serve);
    assert!(status.unwrap().running);
    let event = timeout(SOON, events.recv()).await.unwrap().unwrap();
    assert_eq!(
        (event.name.as_str(), &event.data),
        ("FUTURE_EVENT", &json!({"deep": [{"x": null}]}))
    );
}

#[tokio::test]
async fn refusals_are_typed() {
    let (client, mut peer) = connect().await;
    let serve = async {
        for (class, desc) in [
            ("DeviceNotFound", "Device 'x' not found"),
            ("GenericError", "Device x is already in the process of unplug"),
            (
                "GenericError",
                "Hot-unplug failed: guest is busy (power indicator blinking)",
            ),
        ] {
            let command = peer.command().await;
            let error = json!({"id": command["id"], "error": {"class": class, "desc": desc}});
            peer.line(&error.to_string()).await;
        }
    };
    let calls = async {
        let mut errors = Vec::new();
        for _ in 0..3 {
            errors.push(client.device_del("x").await.unwrap_err());
        }
        errors
    };
    let (errors, ()) = tokio::join!(calls, serve);
    let kinds: Vec<_> = errors
        .iter()
        .map(|e| (e.is_device_not_found(), e.is_unplug_pending(), e.is_busy_guest()))
        .collect();
    assert_eq!(
        kinds,
        [(true, false, false), (false, true, false), (false, false, true)]
    );
    assert_eq!(
        errors[0].to_string(),
        "QEMU refused device_del: Device 'x' not found"
    );
}

#[tokio::test]
async fn half_line_at_the_end() {
    let (client, mut peer) = connect().await;
    peer.send(r#"{"event":"RES"#).await;
    drop(peer);
    assert_eq!(ended(&client).await, CloseReason::HalfLine { bytes: 13 });

    let (client, peer) = connect().await;
    drop(peer);
    assert_eq!(ended(&client).await, CloseReason::Eof);
}

#[tokio::test]
async fn late_reply_to_a_cancelled_call_is_ignored() {
    let (client, mut peer) = connect().await;
    // Cancelled after it was sent: the peer has read it.
    let sent = tokio::spawn({
        let client = client.clone();
        async move { client.query_status().await }
    });
    let stale = peer.command().await;
    sent.abort();
    assert!(sent.await.unwrap_err().is_cancelled());
    // Timed out.
    let brief = client.with_timeout(Duration::from_millis(20));
    let (timed_out, second) = tokio::join!(brief.query_status(), peer.command());
    assert!(matches!(
        timed_out,
        Err(QmpError::Timeout {
            command: "query-status",
            ..
        })
    ));

    let serve = async {
        let third = peer.command().await;
        peer.answer(&stale, json!("late")).await;
        peer.answer(&second, json!("late")).await;
        peer.answer(&third, json!({"running": false, "status": "paused"}))
            .await;
    };
    let (status, ()) = tokio::join!(client.query_status(), serve);
    assert_eq!(status.unwrap().status.as_str(), "paused");
}

#[tokio::test]
async fn a_peer_that_reads_nothing_costs_each_caller_its_deadline_and_no_more() {
    let (client, mut peer) = connect().await;
    let brief = client.with_timeout(Duration::from_millis(50));
    // Larger than any socket buffer: the line stays unfinished.
    let large = "x".repeat(8 << 20);
    let stuck = brief.run("large", &json!({ "x": large })).await;
    assert!(matches!(stuck, Err(QmpError::Timeout { .. })));
    let behind = futures::future::join_all((0..100).map(|_| brief.query_status())).await;
    assert!(behind.iter().all(|r| matches!(r, Err(QmpError::Timeout { .. }))));
    // Once the peer reads again the first line arrives whole, and none of those given up before they were sent.
    let serve = async {
        assert_eq!(peer.command().await["execute"], "large");
        let next = peer.command().await;
        assert_eq!(next["execute"], "query-version");
        peer.answer(
            &next,
            json!({"qemu": {"major": 9, "minor": 2, "micro": 0}, "package": ""}),
        )
        .await;
    };
    let (version, ()) = tokio::join!(client.query_version(), serve);
    assert_eq!(version.unwrap().to_string(), "9.2.0");
}

#[tokio::test]
async fn greeting_has_a_deadline() {
    let options = Options {
        greeting_timeout: Duration::from_millis(50),
        ..Options::default()
    };
    let (ours, _silent) = UnixStream::pair().unwrap();
    let error = Client::from_stream(ours, &options).await.unwrap_err();
    assert!(matches!(error, QmpError::GreetingTimeout { .. }) && error.is_busy_socket());

    // One that greets and then hangs.
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs
        .write_all(format!("{GREETING}\r\n").as_bytes())
        .await
        .unwrap();
    let error = Client::from_stream(ours, &options).await.unwrap_err();
    assert!(matches!(error, QmpError::GreetingTimeout { .. }));
}

#[tokio::test]
async fn another_protocol_is_told() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(b"SSH-2.0-OpenSSH\r\n").await.unwrap();
    let error = Client::from_stream(ours, &Options::default()).await.unwrap_err();
    assert!(matches!(error, QmpError::NotQmp { text } if text.starts_with("SSH")));
}

#[tokio::test]
async fn a_slow_receiver_learns_what_it_lost() {
    let (client, mut peer) = connect_with(Options {
        event_capacity: 4,
        ..Options::default()
    })
    .await;
    let mut events = client.subscribe();
    for n in 0..10 {
        peer.event(&format!("E{n}")).await;
    }
    // The reply behind them shows that all have been read.
    let serve = async {
        let command = peer.command().await;
        peer.answer(&command, json!({})).await;
    };
    tokio::join!(async { client.cont().await.unwrap() }, serve);
    assert_eq!(events.recv().await, Err(EventError::Lagged(6)));
    assert_eq!(events.recv().await.unwrap().name, "E6");
}

#[tokio::test]
async fn waiting_for_an_event() {
    let (client, mut peer) = connect().await;
    let mut events = client.subscribe();
    peer.line(r#"{"event":"DEVICE_DELETED","data":{"path":"/machine/peripheral/sb/virtio-backend"}}"#)
        .await;
    peer.line(
        r#"{"event":"DEVICE_DELETED","data":{"device":"vf-a-g1","path":"/machine/peripheral/vf-a-g1"}}"#,
    )
    .await;
    let deleted = wait_event(&mut events, Instant::now() + SOON, |e| {
        e.is_device_deleted("vf-a-g1")
    })
    .await
    .unwrap();
    assert_eq!(deleted.data["device"], "vf-a-g1");
    let soon = Instant::now() + Duration::from_millis(20);
    assert_eq!(
        wait_event(&mut events, soon, |_| true).await,
        Err(EventError::Timeout)
    );
    drop(peer);
    let end = wait_event(&mut events, Instant::now() + SOON, |_| true).await;
    assert_eq!(end, Err(EventError::Closed(CloseReason::Eof)));
}

#[tokio::test]
async fn dropping_or_closing_the_client_ends_the_session() {
    for close in [false, true] {
        let (client, mut peer) = connect().await;
        let mut events = client.subscribe();
        let clone = client.clone();
        drop(client);
        if close {
            clone.close();
            assert_eq!(ended(&clone).await, CloseReason::Local);
        }
        drop(clone);
        assert_eq!(
            timeout(SOON, events.recv()).await.unwrap(),
            Err(EventError::Closed(CloseReason::Local))
        );
        let mut rest = String::new();
        assert_eq!(
            timeout(SOON, peer.stream.read_line(&mut rest))
                .await
                .unwrap()
                .unwrap(),
            0
        );
    }
}

#[tokio::test]
async fn a_descriptor_travels_with_its_line() {
    let (client, peer) = connect().await;
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let socket = peer.stream.into_inner();
    let serve = async {
        socket.readable().await.unwrap();
        let mut bytes = [0; 1024];
        let mut space = nix::cmsg_space!([i32; 2]);
        let (line, fds) = {
            let mut buffers = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let message = recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space), flags).unwrap();
            let fds: Vec<i32> = message
                .cmsgs()
                .unwrap()
                .filter_map(|c| {
                    if let ControlMessageOwned::ScmRights(fds) = c {
                        Some(fds)
                    } else {
                        None
                    }
                })
                .flatten()
                .collect();
            (message.bytes, fds)
        };
        let command: Value = serde_json::from_slice(&bytes[..line]).unwrap();
        assert_eq!(
            (&command["execute"], &command["arguments"]["fdname"]),
            (&json!("getfd"), &json!("tap0"))
        );
        assert_eq!(fds.len(), 1);
        // SAFETY: the kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fds[0]) };
        std::io::Write::write_all(&mut std::fs::File::from(fd), b"x").unwrap();
        let reply = format!("{}\r\n", json!({"return": {}, "id": command["id"]}));
        assert_eq!(socket.try_write(reply.as_bytes()).unwrap(), reply.len());
    };
    let (result, ()) = tokio::join!(client.getfd("tap0", ours.as_fd()), serve);
    result.unwrap();
    let mut byte = [0];
    theirs.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"x");
}
