//! Traces by OpenTelemetry: what belongs to one operation over several processes, sent to a collector by OTLP over HTTP.
//!
//! An operation is known everywhere by the uid of its object, a UUID, and that is its trace's id, in hexadecimal digits
//! without dashes. So no process has to pass anything on, a process that restarts continues the same trace, and the object leads to the
//! trace. Off unless a collector is named.
//!
//! The SDK's own tracer and processor are not used: they give a trace's first span a random id, which the other
//! processes would have to learn, and keep a thread for spans that come once in a while.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use clap::Args;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    IdGenerator as _, RandomIdGenerator, SpanData, SpanEvents, SpanExporter as _, SpanLinks,
};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Spans that wait for the collector; what comes beyond them is dropped.
const WAITING: usize = 2048;
/// Spans in one request.
const BATCH: usize = 256;
/// How long a request may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// The longest answer of a collector, in octets.
const ANSWER_MAX: usize = 64 * 1024;
/// How long the last spans may hold up the end of the process.
const FAREWELL: Duration = Duration::from_secs(2);

/// Options of traces, to flatten into a program's own.
#[derive(Args, Clone, Debug, Default)]
pub struct TraceOptions {
    /// Collector that traces are sent to by OTLP over HTTP, as in http://collector:4318; none without it
    #[arg(
        long,
        env = "OTEL_EXPORTER_OTLP_ENDPOINT",
        value_name = "URL",
        value_parser = endpoint,
    )]
    pub otlp_endpoint: Option<String>,
}

/// Takes a collector's address.
fn endpoint(text: &str) -> Result<String, String> {
    let address = text.trim_end_matches('/');
    let uri: hyper::Uri = address.parse().map_err(|error| format!("not a URL: {error}"))?;
    match uri.scheme_str() {
        Some("http") if uri.host().is_some() => Ok(address.to_owned()),
        Some("https") => {
            Err("TLS is not supported: write http://HOST:4318, of a collector in the cluster".to_owned())
        }
        _ => Err("write http://HOST:PORT, as in http://collector:4318".to_owned()),
    }
}

/// Where spans are given to. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Traces(Option<Sender<SpanData>>);

/// Sends the spans. Dropping it loses those that were not sent.
#[derive(Debug)]
pub struct Exports {
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

/// A part of an operation, or all of it.
#[derive(Clone, Debug)]
pub struct Span {
    /// What was done.
    pub name: Cow<'static, str>,
    /// When it began, on this host's clock.
    pub from: SystemTime,
    /// When it ended.
    pub to: SystemTime,
    /// What it was done to.
    pub attributes: Vec<(&'static str, String)>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// Begins to send spans as `service` of `instance` (a node, a pod), in a task of this runtime.
pub fn start(
    options: &TraceOptions,
    service: &'static str,
    instance: &str,
) -> Result<(Traces, Exports), ExporterBuildError> {
    let stop = CancellationToken::new();
    let Some(address) = &options.otlp_endpoint else {
        return Ok((Traces::default(), Exports { stop, task: None }));
    };
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Http(Client::builder(TokioExecutor::new()).build_http()))
        .with_endpoint(format!("{address}/v1/traces"))
        .with_timeout(DEADLINE)
        .build()?;
    exporter.set_resource(
        &Resource::builder()
            .with_service_name(service)
            .with_attribute(KeyValue::new("service.instance.id", instance.to_owned()))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build(),
    );
    tracing::info!(collector = address, "traces are sent");
    let (sender, receiver) = mpsc::channel(WAITING);
    let task = tokio::spawn(export(exporter, receiver, stop.clone()));
    let exports = Exports {
        stop,
        task: Some(task),
    };
    Ok((Traces(Some(sender)), exports))
}

/// The way to the collector. The library's own also speaks HTTP/2, which no program of ours needs.
#[derive(Debug)]
struct Http(Client<HttpConnector, Full<Bytes>>);

#[async_trait]
impl HttpClient for Http {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let exchange = async {
            let (head, body) = self.0.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, ANSWER_MAX).collect().await?.to_bytes();
            Ok(Response::from_parts(head, body))
        };
        tokio::time::timeout(DEADLINE, exchange).await?
    }
}

async fn export(exporter: SpanExporter, mut spans: Receiver<SpanData>, stop: CancellationToken) {
    let mut failing = false;
    loop {
        let mut batch = Vec::new();
        tokio::select! {
            biased;
            taken = spans.recv_many(&mut batch, BATCH) => if taken == 0 { return },
            () = stop.cancelled(), if !spans.is_closed() => spans.close(),
        }
        if batch.is_empty() {
            continue;
        }
        let sent = exporter.export(batch).await;
        // Said once for each change: a collector may be away for days.
        match &sent {
            Err(error) if !failing => {
                tracing::warn!(%error, "the collector of traces takes no spans; they are lost until it does");
            }
            Ok(()) if failing => tracing::info!("the collector of traces takes spans again"),
            _ => {}
        }
        failing = sent.is_err();
    }
}

impl Exports {
    /// Sends what there is, for as long as a process that ends may take for it.
    pub async fn finish(self) {
        self.stop.cancel();
        if let Some(task) = self.task
            && tokio::time::timeout(FAREWELL, task).await.is_err()
        {
            tracing::debug!("the collector of traces did not take the last spans in time");
        }
    }
}

impl Traces {
    /// Whether anybody reads them.
    pub fn are_on(&self) -> bool {
        self.0.is_some()
    }

    /// The whole operation on the object of this uid.
    pub fn whole(&self, uid: &str, span: Span) {
        if let Some((trace, root)) = ids(uid) {
            self.send(trace, root, SpanId::INVALID, span);
        }
    }

    /// A part of the operation, which this process has done.
    pub fn part(&self, uid: &str, span: Span) {
        if let Some((trace, root)) = ids(uid) {
            self.send(trace, RandomIdGenerator::default().new_span_id(), root, span);
        }
    }

    fn send(&self, trace: TraceId, id: SpanId, parent: SpanId, span: Span) {
        let Some(sender) = &self.0 else { return };
        let attributes = span.attributes.into_iter();
        let data = SpanData {
            span_context: SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::NONE),
            parent_span_id: parent,
            parent_span_is_remote: true,
            span_kind: SpanKind::Internal,
            name: span.name,
            start_time: span.from,
            end_time: span.to,
            attributes: attributes.map(|(key, value)| KeyValue::new(key, value)).collect(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: span.error.map_or(Status::Unset, Status::error),
            instrumentation_scope: InstrumentationScope::builder("hybridnic").build(),
        };
        if sender.try_send(data).is_err() {
            tracing::debug!("a span is dropped: the collector takes none");
        }
    }
}

/// Ids of a trace and of its first span, from an object's uid; none if that is no UUID, which no API server gives.
fn ids(uid: &str) -> Option<(TraceId, SpanId)> {
    let digits: String = uid.chars().filter(|c| *c != '-').collect();
    let trace = TraceId::from_hex(&digits)
        .ok()
        .filter(|id| digits.len() == 32 && *id != TraceId::INVALID)?;
    // The lower half of a UUID holds its variant and is never zero.
    SpanId::from_hex(digits.get(16..)?).ok().map(|root| (trace, root))
}

#[cfg(test)]
#[path = "traces_tests.rs"]
mod tests;
