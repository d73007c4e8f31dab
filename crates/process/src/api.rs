//! A client of the API server that counts its requests and waits for none of them forever.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::{Method, Request, Response, StatusCode};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use kube::runtime::watcher;
use kube::{Client, Config};
use tower::retry::RetryLayer;
use tower::{BoxError, Layer, Service, ServiceBuilder};

use crate::deadline::Deadlines;
use crate::metrics::{Counter, Registry};
use crate::pages::Pages;

/// How long a connection may take to be made, TLS included.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the API server lets a watch live, in seconds; kube gives one up that is silent for 5 s longer. So a server that
/// has gone without closing, behind a peer that still acknowledges, is noticed within a minute.
const WATCH: u32 = 50;
/// Objects of one page of a list. kube's streamed lists may begin with an old cache of the API server; a program that starts
/// must begin with the present state.
const PAGE: u32 = 250;
/// How long nothing may come in answer to a request; longer than a watch may be silent.
const SILENCE: Duration = Duration::from_secs(70);

/// Counts of the requests to the API server. Clones share them.
#[derive(Clone, Debug)]
pub struct Requests(Counter<3>);

impl Requests {
    /// Adds the counts to a program's metrics.
    pub fn new(registry: &mut Registry) -> Self {
        Self(registry.counter(
            "hybridnic_api_requests",
            ["resource", "verb", "result"],
            "Requests to the API server, by resource (as in RBAC rules), verb and result",
        ))
    }
}

/// A client that finds the API server as kubectl does, by KUBECONFIG or within a pod, and counts its requests.
pub async fn client(requests: Requests) -> Result<Client, kube::Error> {
    let config = Config::infer().await.map_err(kube::Error::InferConfig)?;
    connect(config, &requests, Patience::default())
}

/// How the programs watch. A list comes in pages, each of which [`Pages`] bounds besides.
pub fn watches() -> watcher::Config {
    watcher::Config::default().timeout(WATCH).page_size(PAGE)
}

/// How long a peer that says nothing is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// How long nothing may come or go on a connection before the kernel asks the peer whether it is there.
    pub keepalive: Duration,
    /// How often it asks again, without an answer.
    pub keepalive_again: Duration,
    /// How long a peer may leave unacknowledged what it was sent, be it a request or the kernel's question.
    pub unacknowledged: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            keepalive: Duration::from_secs(15),
            keepalive_again: Duration::from_secs(5),
            unacknowledged: Duration::from_secs(30),
        }
    }
}

/// A client for this API server. Like kube's own, except that kube's does not check whether the peer is still there.
pub fn connect(config: Config, requests: &Requests, patience: Patience) -> Result<Client, kube::Error> {
    if let Some(proxy) = config.proxy_url {
        return Err(kube::Error::ProxyProtocolDisabled {
            proxy_url: Box::new(proxy),
            protocol_feature: "kube/http-proxy",
        });
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_keepalive(Some(patience.keepalive));
    tcp.set_keepalive_interval(Some(patience.keepalive_again));
    tcp.set_tcp_user_timeout(Some(patience.unacknowledged));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_read_timeout(Some(SILENCE));
    connector.set_write_timeout(Some(patience.unacknowledged));
    // A connection that was idle before a request is not late.
    connector.set_reset_reader_on_write(true);
    let http: legacy::Client<_, Body> = legacy::Client::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(RetryPolicy::server_retry()))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service, config.default_namespace)
        .with_layer(&Deadlines::default())
        .with_layer(requests)
        .with_layer(&Pages::default())
        .build())
}

impl<S> Layer<S> for Requests {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted {
            inner,
            requests: self.clone(),
        }
    }
}

/// A service whose requests are counted.
#[derive(Clone, Debug)]
pub struct Counted<S> {
    inner: S,
    requests: Requests,
}

impl<S, B> Service<Request<Body>> for Counted<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>, Future: Send + 'static>,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let under_way = UnderWay {
            requests: self.requests.clone(),
            resource: resource(request.uri().path()),
            verb: verb(request.method(), request.uri().path(), request.uri().query()),
            result: "abandoned",
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            // All of it, to be dropped with this future.
            let mut under_way = under_way;
            let answer = answer.await;
            under_way.result = match &answer {
                Ok(answer) => result(answer.status()),
                Err(_) => "unreachable",
            };
            answer
        })
    }
}

/// A request; counted when it ends, also if its caller has stopped waiting.
struct UnderWay {
    requests: Requests,
    resource: String,
    verb: &'static str,
    result: &'static str,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.requests.0.inc([&self.resource, self.verb, self.result]);
    }
}

/// The path's parts from the resource on: `nodes`, or `vmhybridnics/NAME/status`.
fn parts(path: &str) -> Vec<&str> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let rest = match parts.as_slice() {
        ["api", _version, rest @ ..] | ["apis", _, _version, rest @ ..] => rest,
        other => other,
    };
    match rest {
        ["namespaces", _namespace, resource @ ..] if !resource.is_empty() => resource.to_vec(),
        _ => rest.to_vec(),
    }
}

/// What a request is about, as an RBAC rule names it: `vmhybridnics/status`. The programs ask for a fixed set of them.
fn resource(path: &str) -> String {
    match parts(path).as_slice() {
        [resource, _name, sub, ..] => format!("{resource}/{sub}"),
        [resource, ..] => (*resource).to_owned(),
        [] => String::new(),
    }
}

/// The verb, as an RBAC rule names it.
fn verb(method: &Method, path: &str, query: Option<&str>) -> &'static str {
    let watches = query.is_some_and(|q| q.split('&').any(|pair| pair == "watch=true"));
    match *method {
        Method::GET if watches => "watch",
        Method::GET if parts(path).len() < 2 => "list",
        Method::GET => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "other",
    }
}

fn result(status: StatusCode) -> &'static str {
    match status {
        StatusCode::CONFLICT => "conflict",
        StatusCode::NOT_FOUND => "not_found",
        // The watch's position is too old; it begins again.
        StatusCode::GONE => "expired",
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "forbidden",
        StatusCode::TOO_MANY_REQUESTS => "throttled",
        status if status.is_server_error() => "server_error",
        status if status.is_client_error() => "refused",
        _ => "ok",
    }
}

#[cfg(test)]
#[path = "silence_tests.rs"]
mod silence_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Empty;
    use hyper::body::Bytes;

    #[test]
    fn requests_are_named_as_in_rbac_rules() {
        let cases = [
            (Method::GET, "/api/v1/nodes", None, "nodes", "list"),
            (
                Method::GET,
                "/api/v1/pods",
                Some("labelSelector=x&watch=true"),
                "pods",
                "watch",
            ),
            (Method::GET, "/api/v1/namespaces/ns", None, "namespaces", "get"),
            (Method::GET, "/api/v1/namespaces", None, "namespaces", "list"),
            (
                Method::PATCH,
                "/apis/hybridnic.io/v1alpha1/namespaces/ns/vmhybridnics/eth0/status",
                Some("fieldManager=x"),
                "vmhybridnics/status",
                "patch",
            ),
            (
                Method::PUT,
                "/apis/coordination.k8s.io/v1/namespaces/ns/leases/op",
                None,
                "leases",
                "update",
            ),
            (
                Method::POST,
                "/apis/events.k8s.io/v1/namespaces/ns/events",
                None,
                "events",
                "create",
            ),
            (
                Method::DELETE,
                "/apis/hybridnic.io/v1alpha1/hybridnodes/n1",
                None,
                "hybridnodes",
                "delete",
            ),
        ];
        for (method, path, query, wanted, wanted_verb) in cases {
            let seen = (resource(path), verb(&method, path, query));
            assert_eq!(seen, (wanted.to_owned(), wanted_verb), "{path}");
        }
    }

    #[tokio::test]
    async fn every_end_of_a_request_is_counted() {
        let mut registry = Registry::new("test", "1");
        let requests = Requests::new(&mut registry);
        let answers = tower::service_fn(|request: Request<Body>| async move {
            match request.uri().path() {
                "/api/v1/nodes" => Ok(Response::new(Empty::<Bytes>::new())),
                "/api/v1/pods" => std::future::pending().await,
                _ => Err(BoxError::from("connection refused")),
            }
        });
        let mut service = requests.layer(answers);
        let mut get = |path: &str| {
            let request = Request::get(path).body(Body::empty()).unwrap();
            service.call(request)
        };
        get("/api/v1/nodes").await.unwrap();
        get("/api/v1/secrets").await.unwrap_err();
        drop(get("/api/v1/pods"));
        for (resource, result) in [("nodes", "ok"), ("secrets", "unreachable"), ("pods", "abandoned")] {
            assert_eq!(
                requests.0.get([resource, "list", result]),
                1,
                "{resource} {result}"
            );
        }
        assert_eq!(result(StatusCode::FORBIDDEN), "forbidden");
        assert_eq!(result(StatusCode::UNPROCESSABLE_ENTITY), "refused");
    }
}
