use super::*;

use std::convert::Infallible;

use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use tokio::net::TcpListener;

const UID: &str = "0e7a3c52-9a43-4d6b-8f10-5c2d1e0f9a77";

/// A collector that answers each request with one of these, the last one for ever, and passes on what it was sent.
async fn collector(answers: &'static [StatusCode]) -> (TraceOptions, Receiver<ExportTraceServiceRequest>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        let asked = std::sync::atomic::AtomicUsize::new(0);
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = service_fn(async |request: Request<Incoming>| {
                assert_eq!(request.uri().path(), "/v1/traces");
                assert_eq!(request.headers()["content-type"], "application/x-protobuf");
                let body = request.into_body().collect().await.unwrap().to_bytes();
                sender
                    .send(ExportTraceServiceRequest::decode(body).unwrap())
                    .await
                    .unwrap();
                let at = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let mut response = Response::new(Empty::<Bytes>::new());
                *response.status_mut() = answers[at.min(answers.len() - 1)];
                Ok::<_, Infallible>(response)
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
    });
    let options = TraceOptions {
        otlp_endpoint: Some(format!("http://{address}")),
    };
    (options, receiver)
}

fn span(name: &'static str) -> Span {
    let from = SystemTime::UNIX_EPOCH + Duration::from_hours(500_000);
    Span {
        name: name.into(),
        from,
        to: from + Duration::from_millis(250),
        attributes: vec![("hybridnic.nic", "eth0".to_owned())],
        error: None,
    }
}

fn spans(request: &ExportTraceServiceRequest) -> Vec<&opentelemetry_proto::tonic::trace::v1::Span> {
    let scopes = request.resource_spans.iter().flat_map(|r| &r.scope_spans);
    scopes.flat_map(|scope| &scope.spans).collect()
}

#[tokio::test]
async fn two_processes_write_one_trace_without_a_word_between_them() {
    let (options, mut requests) = collector(&[StatusCode::OK]).await;
    let (operator, first) = start(&options, "hybridnic-operator", "a").unwrap();
    operator.whole(UID, span("migration"));
    first.finish().await;
    let (agent, second) = start(&options, "hybridnic-agent", "n1").unwrap();
    agent.part(
        UID,
        Span {
            error: Some("the guest keeps it".to_owned()),
            ..span("UnplugVf")
        },
    );
    second.finish().await;

    let (one, two) = (requests.recv().await.unwrap(), requests.recv().await.unwrap());
    let (whole, part) = (spans(&one)[0], spans(&two)[0]);
    assert_eq!((spans(&one).len(), spans(&two).len()), (1, 1));
    assert_eq!(
        format!(
            "{:x}",
            TraceId::from_bytes(whole.trace_id[..].try_into().unwrap())
        ),
        "e7a3c529a434d6b8f105c2d1e0f9a77"
    );
    assert_eq!(whole.trace_id, part.trace_id);
    assert_eq!(part.parent_span_id, whole.span_id);
    assert!(whole.parent_span_id.is_empty() || whole.parent_span_id.iter().all(|o| *o == 0));
    assert_ne!(part.span_id, whole.span_id);
    assert_eq!(part.end_time_unix_nano - part.start_time_unix_nano, 250_000_000);
    assert_eq!(part.attributes[0].key, "hybridnic.nic");
    assert_eq!(part.status.as_ref().unwrap().message, "the guest keeps it");
    let resource = format!("{:?}", two.resource_spans[0].resource);
    assert!(
        resource.contains("hybridnic-agent") && resource.contains("n1"),
        "{resource}"
    );
}

#[tokio::test]
async fn a_collector_that_fails_is_tried_with_the_next_spans() {
    let (options, mut requests) = collector(&[StatusCode::BAD_REQUEST, StatusCode::OK]).await;
    let (traces, exports) = start(&options, "hybridnic-agent", "n1").unwrap();
    traces.part(UID, span("lost"));
    assert_eq!(spans(&requests.recv().await.unwrap())[0].name, "lost");
    traces.part(UID, span("taken"));
    assert_eq!(spans(&requests.recv().await.unwrap())[0].name, "taken");
    exports.finish().await;
}

#[tokio::test]
async fn nobody_waits_for_a_collector_that_is_not_there() {
    let options = TraceOptions {
        // Discard: nobody listens there.
        otlp_endpoint: Some("http://127.0.0.1:9".to_owned()),
    };
    let (traces, exports) = start(&options, "hybridnic-agent", "n1").unwrap();
    for _ in 0..2 * WAITING {
        traces.part(UID, span("many"));
    }
    exports.finish().await;
    let (off, exports) = start(&TraceOptions::default(), "hybridnic-agent", "n1").unwrap();
    assert!(traces.are_on() && !off.are_on());
    off.part(UID, span("none"));
    exports.finish().await;
}

#[test]
fn a_uid_is_a_trace() {
    let (trace, root) = ids(UID).unwrap();
    assert_eq!(trace.to_string(), "0e7a3c529a434d6b8f105c2d1e0f9a77");
    assert_eq!(root.to_string(), "8f105c2d1e0f9a77");
    for odd in [
        "",
        "m1",
        "00000000-0000-0000-0000-000000000000",
        "é7a3c52-9a43-4d6b-8f10-5c2d1e0f9a7",
    ] {
        assert_eq!(ids(odd), None, "{odd}");
    }
}

#[test]
fn a_collectors_address_is_looked_at() {
    assert_eq!(
        endpoint("http://otel.monitoring:4318/").as_deref(),
        Ok("http://otel.monitoring:4318")
    );
    for wrong in [
        "otel:4318",
        "https://otel:4318",
        "http://",
        "grpc://otel:4317",
        "a b",
    ] {
        assert!(endpoint(wrong).is_err(), "{wrong}");
    }
}
