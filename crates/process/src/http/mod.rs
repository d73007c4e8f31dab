//! A program's HTTP: probes, metrics and the log level, over HTTP/1.1.
//!
//! | request | answer |
//! |---|---|
//! | `GET /livez`, `/readyz`, `/startupz` | 200, or 503 with the reason |
//! | `GET /metrics` | all metrics, as OpenMetrics text |
//! | `GET /log-level` | the log filter |
//! | `PUT /log-level` | sets the filter to the body; only from a loopback address, so not over the network |
//!
//! Metrics may have a listener of their own, which more peers can reach than the one for probes. `door` decides which clients get an
//! answer, and which connection is closed if there are too many.

mod door;
mod guard;
mod listen;
mod peers;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Args;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use crate::log_level::LogLevel;
use crate::metrics::{self, Registry};
use crate::probes::Probes;
use door::{Door, Waiting, Weight};
pub use guard::Guard;
use guard::Refusal;

/// Probes and scrapers send their request immediately; a client that does not is dropped.
const HEADER_DEADLINE: Duration = Duration::from_secs(1);
/// The longest that an exchange may take, with a reader that is slow.
const DEADLINE: Duration = Duration::from_secs(10);
/// The pause after a connection that could not be accepted because something has run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The most of a request's head that is read, in octets.
const HEAD_MAX: usize = 8 << 10;
/// No filter is longer, in octets.
const FILTER_MAX: usize = 4096;

/// Options of the listeners, to flatten into a program's own.
#[derive(Args, Clone, Debug, Default)]
pub struct HttpOptions {
    /// Address of /livez, /readyz, /startupz and /log-level; without it they are not served. `[::]` is all addresses, of IPv4 too
    #[arg(long, env = "HYBRIDNIC_HTTP_ADDRESS")]
    pub http_address: Option<SocketAddr>,
    /// Address of /metrics; without it they are served beside the probes. `[::]` is all addresses, of IPv4 too
    #[arg(long, env = "HYBRIDNIC_METRICS_ADDRESS")]
    pub metrics_address: Option<SocketAddr>,
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

/// What of the pages a listener has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Site {
    /// All.
    All,
    /// All but the metrics.
    Probes,
    /// The metrics alone.
    Metrics,
}

impl Site {
    fn has(self, path: &str) -> bool {
        let probes =
            ["/livez", "/readyz", "/startupz", "/log-level"].contains(&path) && self != Self::Metrics;
        probes || (path == "/metrics" && self != Self::Probes)
    }

    fn list(self) -> &'static str {
        match self {
            Self::All => "there are /livez, /readyz, /startupz, /metrics and /log-level",
            Self::Probes => {
                "there are /livez, /readyz, /startupz and /log-level; /metrics has a port of its own"
            }
            Self::Metrics => "there is /metrics",
        }
    }
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

fn weight(request: &Request<Incoming>) -> Weight {
    match (request.method(), request.uri().path()) {
        (_, "/metrics") | (&Method::PUT, _) => Weight::Heavy,
        _ => Weight::Light,
    }
}

impl Pages {
    async fn answer(&self, site: Site, peer: IpAddr, request: Request<Incoming>) -> Page {
        let said = |yes: bool, no: &str| if yes { Ok(()) } else { Err(no.to_owned()) };
        match (request.method(), request.uri().path()) {
            (_, path) if !site.has(path) => Page::text(StatusCode::NOT_FOUND, site.list()),
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
            _ => Page::text(StatusCode::METHOD_NOT_ALLOWED, "GET; and PUT for /log-level"),
        }
    }

    async fn set_filter(&self, body: Incoming) -> Page {
        let bad = |why: String| Page::text(StatusCode::BAD_REQUEST, why);
        let body = match tokio::time::timeout(HEADER_DEADLINE, Limited::new(body, FILTER_MAX).collect()).await
        {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => return bad(error.to_string()),
            Err(_) => return bad("the body did not arrive in time".to_owned()),
        };
        let Ok(filter) = std::str::from_utf8(&body) else {
            return bad("the body is not text".to_owned());
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

/// Answers on the addresses for as long as it is polled. Fails when one of them cannot be bound. With a guard, metrics on a
/// listener of their own are only for clients that it lets in.
pub async fn serve(options: &HttpOptions, pages: Pages, guard: Option<Guard>) -> io::Result<()> {
    let bind = |address: Option<SocketAddr>| match address.map(|address| (address, listen::on(address))) {
        None => Ok(None),
        Some((_, Ok(listener))) => Ok(Some(listener)),
        Some((address, Err(error))) => Err(io::Error::new(
            error.kind(),
            format!("cannot serve on {address}: {error}"),
        )),
    };
    let (probes, metrics) = (bind(options.http_address)?, bind(options.metrics_address)?);
    let site = if metrics.is_some() {
        Site::Probes
    } else {
        Site::All
    };
    let serving = async |listener: Option<TcpListener>, site, guard: Option<Guard>| match listener {
        Some(listener) => serve_on(listener, site, &pages, guard.as_ref()).await,
        None => std::future::pending().await,
    };
    tokio::select! {
        never = serving(probes, site, None) => match never {},
        never = serving(metrics, Site::Metrics, guard) => match never {},
    }
}

async fn serve_on(listener: TcpListener, site: Site, pages: &Pages, guard: Option<&Guard>) -> Infallible {
    let door = Door::default();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let peer = peer.ip().to_canonical();
                if guard.is_some_and(|guard| !guard.may_greet(peer)) {
                    drop(stream);
                    tokio::task::yield_now().await;
                    continue;
                }
                let guest = Guest {
                    peer,
                    waiting: door.enter(peer),
                    site,
                    pages: pages.clone(),
                };
                tokio::spawn(guest.come_in(stream, guard.cloned()));
                // A connection that has sent a request is read before others come, for which it might have to go.
                tokio::task::yield_now().await;
            }
            // There is no event for a descriptor or memory that becomes free, and the next try would fail at once. Anything else
            // is about a peer that has gone, and must not delay the others.
            Err(error) if has_run_out(&error) => tokio::time::sleep(ACCEPT_PAUSE).await,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

fn has_run_out(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

/// A client that has opened a connection, and what it can get.
struct Guest {
    peer: IpAddr,
    waiting: Waiting,
    site: Site,
    pages: Pages,
}

impl Guest {
    async fn come_in(self, stream: TcpStream, guard: Option<Guard>) {
        let Some(guard) = guard else {
            return self.exchange(stream, None).await;
        };
        let accepted = tokio::select! {
            accepted = tokio::time::timeout(HEADER_DEADLINE, guard.tls.accept(stream)) => accepted,
            () = self.waiting.dropped.cancelled() => return,
        };
        match accepted {
            Ok(Ok(stream)) => self.exchange(stream, Some(&guard)).await,
            Ok(Err(error)) => tracing::debug!(%error, peer = %self.peer, "no TLS"),
            Err(_) => tracing::debug!(peer = %self.peer, "a handshake took too long"),
        }
    }

    /// One request and its answer.
    async fn exchange(self, stream: impl AsyncRead + AsyncWrite + Unpin, guard: Option<&Guard>) {
        let Self {
            peer,
            waiting,
            site,
            pages,
        } = self;
        // As long as the answer is on its way.
        let served = Mutex::new(None);
        let service = service_fn(|request: Request<Incoming>| async {
            let authorization = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
            let asker = guard.map(|guard| guard.asker(peer, authorization)).transpose();
            // The API server is asked only about clients that have a place. Clients that it lets in have places of their own.
            let weight = match &asker {
                Ok(Some(asker)) if !asker.is_known() => Weight::Unknown,
                Ok(_) => weight(&request),
                Err(_) => Weight::Light,
            };
            let Page(status, media_type, text) = match waiting.serve(weight) {
                Some(place) => {
                    if let Ok(mut served) = served.lock() {
                        *served = Some(place);
                    }
                    let admitted = match asker {
                        Ok(Some(asker)) => asker.admit().await,
                        Ok(None) => Ok(()),
                        Err(refusal) => Err(refusal),
                    };
                    match admitted {
                        Ok(()) => pages.answer(site, peer, request).await,
                        Err(Refusal(status, why)) => Page::text(status, why),
                    }
                }
                None => Page::text(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once"),
            };
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
            .max_buf_size(HEAD_MAX)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            done = tokio::time::timeout(DEADLINE, connection) => match done {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a connection broke"),
                Err(_) => tracing::debug!(%peer, "a connection took too long"),
            },
            () = waiting.dropped.cancelled() => tracing::debug!(%peer, "a connection without a request was closed to make room"),
        }
    }
}

#[cfg(test)]
mod tests;
