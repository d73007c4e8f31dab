//! The one HTTP server of a program: probes, metrics and the log level, over HTTP/1.1.
//!
//! | request | answer |
//! |---|---|
//! | `GET /livez`, `/readyz`, `/startupz` | 200, or 503 with the reason |
//! | `GET /metrics` | all metrics, as OpenMetrics text |
//! | `GET /log-level` | the log filter |
//! | `PUT /log-level` | sets the filter to the body; only from a loopback address, so not over the network |

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::log_level::LogLevel;
use crate::metrics::{self, Registry};
use crate::probes::Probes;

/// Who asks sends the request at once; who does not is no probe and no scraper.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);
/// The longest that an exchange may take, with a reader that is slow.
const DEADLINE: Duration = Duration::from_secs(30);
/// Probes and scrapers come one at a time; more connections than this wait.
const CONNECTIONS: usize = 8;
/// The pause after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// No filter is longer, in octets.
const FILTER_MAX: usize = 4096;

/// Options of the server, to flatten into a program's own.
#[derive(Args, Clone, Debug)]
pub struct HttpOptions {
    /// Address of /livez, /readyz, /startupz, /metrics and /log-level; without it they are not served
    #[arg(long, env = "HYBRIDNIC_HTTP_ADDRESS")]
    pub http_address: Option<SocketAddr>,
}

/// What is served. Clones share it.
#[derive(Clone)]
pub struct Pages {
    /// What the probes answer.
    pub probes: Probes,
    /// The metrics.
    pub metrics: Arc<Registry>,
    /// The log filter.
    pub logs: LogLevel,
}

/// A page: its status, media type and text.
struct Page(StatusCode, &'static str, String);

const TEXT: &str = "text/plain; charset=utf-8";

impl Page {
    fn text(status: StatusCode, text: impl Into<String>) -> Self {
        let mut text = text.into();
        text.push('\n');
        Self(status, TEXT, text)
    }

    fn probe(result: Result<(), String>) -> Self {
        match result {
            Ok(()) => Self::text(StatusCode::OK, "ok"),
            Err(why) => Self::text(StatusCode::SERVICE_UNAVAILABLE, why),
        }
    }
}

impl Pages {
    async fn answer(&self, peer: IpAddr, request: Request<Incoming>) -> Page {
        let said = |yes: bool, no: &str| if yes { Ok(()) } else { Err(no.to_owned()) };
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/livez") => Page::probe(self.probes.alive().await),
            (&Method::GET, "/readyz") => Page::probe(said(self.probes.is_ready(), "not ready yet")),
            (&Method::GET, "/startupz") => Page::probe(said(self.probes.has_started(), "not started yet")),
            (&Method::GET, "/metrics") => Page(StatusCode::OK, metrics::CONTENT_TYPE, self.metrics.encode()),
            (&Method::GET, "/log-level") => Page::text(StatusCode::OK, self.logs.get()),
            (&Method::PUT, "/log-level") if !is_local(peer) => Page::text(
                StatusCode::FORBIDDEN,
                "only from a loopback address: use kubectl port-forward",
            ),
            (&Method::PUT, "/log-level") => self.set_filter(request.into_body()).await,
            (_, "/livez" | "/readyz" | "/startupz" | "/metrics" | "/log-level") => {
                Page::text(StatusCode::METHOD_NOT_ALLOWED, "GET; and PUT for /log-level")
            }
            _ => Page::text(
                StatusCode::NOT_FOUND,
                "there are /livez, /readyz, /startupz, /metrics and /log-level",
            ),
        }
    }

    async fn set_filter(&self, body: Incoming) -> Page {
        let bad = |why: String| Page::text(StatusCode::BAD_REQUEST, why);
        let body = match Limited::new(body, FILTER_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return bad(error.to_string()),
        };
        let Ok(filter) = std::str::from_utf8(&body) else {
            return bad("the body is no text".to_owned());
        };
        let filter = filter.trim();
        match self.logs.set(filter) {
            Ok(()) => {
                tracing::warn!(filter, "the log filter was changed");
                Page::text(StatusCode::OK, filter)
            }
            Err(error) => bad(error.to_string()),
        }
    }
}

/// Whether a peer is on this host, or in this pod.
fn is_local(peer: IpAddr) -> bool {
    peer.to_canonical().is_loopback()
}

/// Answers on `address` for as long as it is polled. Fails when the address cannot be bound.
pub async fn serve(address: SocketAddr, pages: Pages) -> io::Result<()> {
    serve_on(TcpListener::bind(address).await?, pages).await
}

async fn serve_on(listener: TcpListener, pages: Pages) -> io::Result<()> {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let slot = slots.clone().acquire_owned().await.map_err(io::Error::other)?;
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of descriptors, or the peer has gone: neither ends the process. There is no event for a descriptor
            // that becomes free, and the next accept would fail at once.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let pages = pages.clone();
        tokio::spawn(async move {
            let _slot = slot;
            let service = service_fn(|request: Request<Incoming>| async {
                let Page(status, media_type, text) = pages.answer(peer.ip(), request).await;
                let mut response = Response::new(Full::new(Bytes::from(text)));
                *response.status_mut() = status;
                response
                    .headers_mut()
                    .insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
                Ok::<_, Infallible>(response)
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_DEADLINE)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            match tokio::time::timeout(DEADLINE, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a connection broke"),
                Err(_) => tracing::debug!(%peer, "a connection took too long"),
            }
        });
    }
}

#[cfg(test)]
mod tests {
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
        let server = tokio::spawn(serve_on(listener, pages));
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
}
