//! Deadlines of requests to the API server. Without them a server whose machine died keeps its clients waiting until TCP gives
//! up, a quarter of an hour later.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::{Method, Request, Response};
use kube::client::Body;
use tower::{BoxError, Layer, Service};

/// How long the answer to a request may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the answer to a list or a watch may take to begin: an API server that has just started fills its caches first.
const LIST: Duration = Duration::from_mins(1);

/// Gives each request a deadline for its answer to begin. What comes after that is bounded by the connection's own.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    answer: Duration,
    list: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            answer: ANSWER,
            list: LIST,
        }
    }
}

impl Deadlines {
    fn of(&self, request: &Request<Body>) -> Duration {
        // With or without a name: nobody requests single objects so often that a minute hurts.
        if *request.method() == Method::GET {
            self.list
        } else {
            self.answer
        }
    }
}

impl<S> Layer<S> for Deadlines {
    type Service = Hurried<S>;

    fn layer(&self, inner: S) -> Hurried<S> {
        Hurried {
            inner,
            deadlines: *self,
        }
    }
}

/// A service whose requests have a deadline.
#[derive(Clone, Debug)]
pub struct Hurried<S> {
    inner: S,
    deadlines: Deadlines,
}

/// The API server did not answer in time.
#[derive(Debug, thiserror::Error)]
#[error("the API server has not answered within {0:?}")]
pub struct Late(Duration);

impl<S, B> Service<Request<Body>> for Hurried<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>, Future: Send + 'static>,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let deadline = self.deadlines.of(&request);
        let answer = self.inner.call(request);
        Box::pin(async move {
            match tokio::time::timeout(deadline, answer).await {
                Ok(answer) => answer.map_err(Into::into),
                Err(_) => Err(Late(deadline).into()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Empty;
    use hyper::body::Bytes;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_silent_is_not_waited_for() {
        let silent = tower::service_fn(|request: Request<Body>| async move {
            if request.uri().path() == "/late" {
                tokio::time::sleep(Duration::from_secs(9)).await;
                return Ok::<_, BoxError>(Response::new(Empty::<Bytes>::new()));
            }
            std::future::pending().await
        });
        let mut service = Deadlines::default().layer(silent);
        for (method, path, seconds) in [("PATCH", "/x", 10), ("POST", "/x", 10), ("GET", "/x", 60)] {
            let request = Request::builder().method(method).uri(path).body(Body::empty());
            let began = Instant::now();
            let error = service.call(request.unwrap()).await.unwrap_err();
            assert!(error.is::<Late>(), "{error}");
            assert_eq!(began.elapsed().as_secs(), seconds, "{method}");
        }
        let request = Request::patch("/late").body(Body::empty()).unwrap();
        service.call(request).await.unwrap();
    }
}
