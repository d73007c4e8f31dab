use super::*;
use crate::{log_level, probes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing_subscriber::layer::SubscriberExt as _;

async fn ask(address: SocketAddr, request: &str, body: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let request = format!("{request} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.lines().next().unwrap_or_default();
    (
        status.strip_prefix("HTTP/1.1 ").unwrap().to_owned(),
        body.to_owned(),
    )
}

#[tokio::test]
async fn everything_is_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (probes, mut heart) = probes::probes();
    let (filter, logs) = log_level::reloadable("info").unwrap();
    // The filter lives as long as its subscriber.
    let subscriber = tracing_subscriber::registry().with(filter);
    let mut registry = Registry::new("test", "1");
    registry.counter("hybridnic_things", [], "Things");
    let pages = Pages {
        probes: probes.clone(),
        metrics: Arc::new(registry),
        logs,
    };
    let server = tokio::spawn(async move { serve_on(listener, Site::All, &pages, None).await });
    let heart = tokio::spawn(async move { heart.beat().await });
    let status = async |request: &str| ask(address, request, "").await.0;
    assert_eq!(status("GET /livez").await, "200 OK");
    assert_eq!(status("GET /readyz").await, "503 Service Unavailable");
    assert_eq!(status("GET /startupz").await, "503 Service Unavailable");
    probes.set_started();
    probes.set_ready(true);
    assert_eq!(status("GET /readyz").await, "200 OK");
    assert_eq!(status("GET /startupz").await, "200 OK");
    assert_eq!(status("GET /secrets").await, "404 Not Found");
    assert_eq!(status("POST /livez").await, "405 Method Not Allowed");
    let (ok, text) = ask(address, "GET /metrics", "").await;
    assert_eq!(ok, "200 OK");
    assert!(
        text.contains("hybridnic_things_total 0\n") && text.ends_with("# EOF\n"),
        "{text}"
    );

    assert_eq!(ask(address, "GET /log-level", "").await.1, "info\n");
    assert_eq!(
        ask(address, "PUT /log-level", "debug,kube=info\n").await.0,
        "200 OK"
    );
    assert_eq!(ask(address, "GET /log-level", "").await.1, "debug,kube=info\n");
    let (bad, why) = ask(address, "PUT /log-level", "kube=loud").await;
    assert_eq!(bad, "400 Bad Request");
    assert!(why.contains("not a log filter"), "{why}");
    let long = "x".repeat(FILTER_MAX + 1);
    assert_eq!(ask(address, "PUT /log-level", &long).await.0, "400 Bad Request");
    heart.abort();
    // A heart that has stopped for good answers nothing.
    assert!(heart.await.unwrap_err().is_cancelled());
    assert_eq!(status("GET /livez").await, "503 Service Unavailable");
    server.abort();
    drop(subscriber);
}

#[test]
fn the_network_is_not_local() {
    let local = |text: &str| is_local(text.parse().unwrap());
    assert!(local("127.0.0.1") && local("::1") && local("::ffff:127.0.0.9"));
    assert!(!local("10.0.0.1") && !local("fe80::1") && !local("::ffff:10.0.0.1"));
}

/// A server whose main loop is well, and where it is.
async fn well(site: Site) -> (SocketAddr, tokio::task::JoinSet<Infallible>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (probes, mut heart) = probes::probes();
    let (_, logs) = log_level::reloadable::<tracing_subscriber::Registry>("info").unwrap();
    let pages = Pages {
        probes,
        metrics: Arc::new(Registry::new("test", "1")),
        logs,
    };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move { serve_on(listener, site, &pages, None).await });
    tasks.spawn(async move { heart.beat().await });
    (address, tasks)
}

/// Opens a connection from one of this host's loopback addresses.
async fn connect(from: [u8; 4], to: SocketAddr) -> io::Result<TcpStream> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(to).await
}

/// Asks whether the program lives, every 50 ms while `attack` goes on; each time there is an answer within a second.
async fn lives_through(address: SocketAddr, attack: impl Future<Output = ()>) {
    let mut answers = 0;
    let probes = async {
        loop {
            let answer = tokio::time::timeout(Duration::from_secs(1), ask(address, "GET /livez", ""));
            assert_eq!(answer.await.expect("no answer within a second").0, "200 OK");
            answers += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        never = probes => never,
        () = attack => {}
    }
    assert!(answers >= 10, "{answers} answers");
}

/// Connections that send nothing, 50 a second and many of them at once, none of which is ever closed by its client.
async fn idle(address: SocketAddr, from: impl Fn(u8) -> [u8; 4]) {
    let mut kept = Vec::new();
    for n in 0..100u8 {
        kept.extend(connect(from(n), address).await);
        if n == 30 || n == 60 {
            // All of a sudden.
            for n in 0..200 {
                kept.extend(connect(from(n), address).await);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(kept.len(), 500);
}

#[tokio::test]
async fn idle_connections_of_one_peer_keep_no_probe_from_its_answer() {
    let (address, _server) = well(Site::Probes).await;
    // The probe's own address.
    lives_through(address, idle(address, |_| [127, 0, 0, 1])).await;
}

#[tokio::test]
async fn idle_connections_of_many_peers_keep_no_probe_from_its_answer() {
    let (address, _server) = well(Site::All).await;
    lives_through(address, idle(address, |n| [127, 0, 1, n + 1])).await;
}

/// A request that never ends, one that has too much of a head, and one that is reset.
#[tokio::test]
async fn requests_that_never_end_keep_no_probe_from_its_answer() {
    let (address, _server) = well(Site::Probes).await;
    let attack = async {
        let mut kept = Vec::new();
        for n in 0..60u8 {
            for part in [
                "GET /livez HTTP/1.1\r\nHost:",
                &format!("GET / HTTP/1.1\r\nx: {}", "x".repeat(2 * HEAD_MAX)),
                "PUT /log-level HTTP/1.1\r\nContent-Length: 10\r\n\r\n",
            ] {
                if let Ok(mut stream) = connect([127, 0, 0, 1 + n % 2], address).await {
                    // It may be closed already.
                    drop(stream.write_all(part.as_bytes()).await);
                    kept.push(stream);
                }
            }
            if let Ok(reset) = connect([127, 0, 0, 9], address).await {
                nix::sys::socket::setsockopt(
                    &reset,
                    nix::sys::socket::sockopt::Linger,
                    &nix::libc::linger {
                        l_onoff: 1,
                        l_linger: 0,
                    },
                )
                .unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    lives_through(address, attack).await;
}

#[tokio::test]
async fn who_sends_nothing_is_closed_after_a_second() {
    let (address, _server) = well(Site::All).await;
    let mut idle = TcpStream::connect(address).await.unwrap();
    let begun = std::time::Instant::now();
    let closed = tokio::time::timeout(5 * HEADER_DEADLINE, idle.read(&mut [0; 1])).await;
    assert_eq!(closed.expect("still open").unwrap_or_default(), 0);
    assert!(begun.elapsed() >= HEADER_DEADLINE / 2);
}

#[tokio::test]
async fn probes_and_metrics_have_listeners_of_their_own() {
    let has = async |site, path: &str| {
        let (address, _server) = well(site).await;
        ask(address, path, "").await.0 == "200 OK"
    };
    assert!(has(Site::Probes, "GET /livez").await && !has(Site::Probes, "GET /metrics").await);
    assert!(has(Site::Metrics, "GET /metrics").await && !has(Site::Metrics, "GET /livez").await);
    assert!(!has(Site::Metrics, "GET /log-level").await && has(Site::All, "GET /metrics").await);
}

/// What there is to read, where nothing beats.
fn metrics_alone() -> Pages {
    let (_, logs) = log_level::reloadable::<tracing_subscriber::Registry>("info").unwrap();
    Pages {
        probes: probes::probes().0,
        metrics: Arc::new(Registry::new("test", "1")),
        logs,
    }
}

type ApiServer =
    tower_test::mock::Handle<http::Request<kube::client::Body>, http::Response<kube::client::Body>>;

/// A guard that knows one token, and the API server that it asks.
fn guard(known: &str) -> (Guard, ApiServer) {
    let (service, api) = tower_test::mock::pair();
    let client = kube::Client::new(service, "default");
    (Guard::of(client, [127, 0, 0, 1].into(), known), api)
}

/// The API server is slow, and strangers ask; a client that was let in before is answered.
#[tokio::test]
async fn strangers_who_wait_for_the_api_server_leave_places_for_others() {
    let (guard, mut api) = guard("known");
    let (door, pages) = (Door::default(), metrics_alone());
    let ask = async |peer: u8, token: &str| {
        let (mut client, server) = tokio::io::duplex(4096);
        let peer = [10, 0, 0, peer].into();
        let guest = Guest {
            peer,
            waiting: door.enter(peer),
            site: Site::Metrics,
            pages: pages.clone(),
        };
        let guard = guard.clone();
        tokio::spawn(async move { guest.exchange(server, Some(&guard)).await });
        let request = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        client
    };
    let said = async |mut client: tokio::io::DuplexStream| {
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        text
    };
    let mut wait = Vec::new();
    for n in 0..4 {
        let client = ask(1 + n / 2, "invented").await;
        wait.push((client, api.next_request().await.unwrap()));
    }
    for n in 0..4 {
        let refused = said(ask(3 + n / 2, "invented").await).await;
        assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    }
    // Also from where strangers are.
    for peer in [1, 9] {
        let text = said(ask(peer, "known").await).await;
        assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    }
    // A client without a token is answered at once.
    let none = said(ask(9, "").await).await;
    assert!(none.starts_with("HTTP/1.1 401 "), "{none}");
    drop(wait);
}

#[tokio::test]
async fn who_begins_handshakes_without_end_is_turned_away_and_nobody_else() {
    let (guard, _api) = guard("known");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let pages = metrics_alone();
    let server = tokio::spawn(async move { serve_on(listener, Site::Metrics, &pages, Some(&guard)).await });
    // If a TLS alert comes back, the server has looked at the client's handshake.
    let greet = async |from: u8| {
        let mut stream = connect([127, 0, 0, from], address).await.unwrap();
        let hello = b"GET / HTTP/1.1\r\n\r\n";
        let mut said = Vec::new();
        if stream.write_all(hello).await.is_ok() {
            drop(stream.read_to_end(&mut said).await);
        }
        !said.is_empty()
    };
    let mut greeted = 0;
    let flood = 200;
    for _ in 0..flood {
        greeted += usize::from(greet(2).await);
    }
    assert!((1..flood / 2).contains(&greeted), "{greeted}");
    assert!(greet(3).await && greet(1).await);
    server.abort();
}

#[tokio::test]
async fn an_address_that_is_taken_is_told() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = HttpOptions {
        http_address: None,
        metrics_address: Some(taken.local_addr().unwrap()),
    };
    let error = serve(&options, metrics_alone(), None).await.unwrap_err();
    assert!(error.to_string().contains("cannot serve on 127.0.0.1"), "{error}");
}
