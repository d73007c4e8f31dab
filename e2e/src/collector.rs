//! A collector of traces: takes OTLP over HTTP and keeps what it was sent.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

/// A span as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Program that has sent it.
    pub service: String,
    /// Its instance: a node, a pod.
    pub instance: String,
    /// In hexadecimal digits.
    pub trace: String,
    /// In hexadecimal digits.
    pub id: String,
    /// In hexadecimal digits; empty for a trace's first span.
    pub parent: String,
    /// What was done.
    pub name: String,
    /// How long it took.
    pub took: Duration,
}

#[derive(Debug, Default)]
struct Kept {
    spans: Mutex<Vec<Seen>>,
    came: Notify,
}

/// A collector that runs. It ends with this.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    kept: Arc<Kept>,
    _task: AbortOnDropHandle<()>,
}

impl Collector {
    /// Starts one on a free port of an address.
    pub async fn start(address: IpAddr) -> Result<Self> {
        let listener = TcpListener::bind((address, 0)).await.context("a collector")?;
        let address = listener.local_addr()?;
        let kept = Arc::<Kept>::default();
        let task = tokio::spawn(serve(listener, Arc::clone(&kept)));
        Ok(Self {
            address,
            kept,
            _task: AbortOnDropHandle::new(task),
        })
    }

    /// Its address, as programs get it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The spans of a trace, once they are as they should be.
    pub async fn until(
        &self,
        trace: &str,
        deadline: Duration,
        right: impl Fn(&[Seen]) -> bool,
    ) -> Result<Vec<Seen>> {
        let spans = || {
            let spans = self.kept.spans.lock().unwrap_or_else(PoisonError::into_inner);
            let mine = spans.iter().filter(|span| span.trace == trace);
            mine.cloned().collect::<Vec<_>>()
        };
        let wait = async {
            loop {
                let came = self.kept.came.notified();
                if right(&spans()) {
                    return;
                }
                came.await;
            }
        };
        tokio::time::timeout(deadline, wait)
            .await
            .with_context(|| format!("the trace {trace} is {:#?}", spans()))?;
        Ok(spans())
    }
}

async fn serve(listener: TcpListener, kept: Arc<Kept>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let kept = Arc::clone(&kept);
        tokio::spawn(async move {
            let service = service_fn(async |request| Ok::<_, Infallible>(take(request, &kept).await));
            // A client that breaks off sends its spans again or not.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn take(request: Request<Incoming>, kept: &Kept) -> Response<Empty<Bytes>> {
    let body = request.into_body().collect().await.ok();
    let sent = body.and_then(|body| ExportTraceServiceRequest::decode(body.to_bytes()).ok());
    let mut response = Response::new(Empty::new());
    match sent {
        Some(sent) => {
            let mut spans = kept.spans.lock().unwrap_or_else(PoisonError::into_inner);
            spans.extend(seen(sent));
            kept.came.notify_waiters();
        }
        None => *response.status_mut() = StatusCode::BAD_REQUEST,
    }
    response
}

fn seen(sent: ExportTraceServiceRequest) -> impl Iterator<Item = Seen> {
    sent.resource_spans.into_iter().flat_map(|of| {
        let who = of.resource.unwrap_or_default().attributes;
        let (service, instance) = (text(&who, "service.name"), text(&who, "service.instance.id"));
        let spans = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
        spans.map(move |span| Seen {
            service: service.clone(),
            instance: instance.clone(),
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            name: span.name,
            took: Duration::from_nanos(span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano)),
        })
    })
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let value = attributes
        .iter()
        .find(|a| a.key == key)
        .and_then(|a| a.value.clone());
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        _ => String::new(),
    }
}

/// Digits; none of an id of noughts, which is no id.
fn hex(id: &[u8]) -> String {
    if id.iter().all(|octet| *octet == 0) {
        return String::new();
    }
    id.iter().fold(String::new(), |mut digits, octet| {
        // Writing to a string cannot fail.
        let _ = write!(digits, "{octet:02x}");
        digits
    })
}
