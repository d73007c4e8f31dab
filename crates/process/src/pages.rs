//! Lists from the API server, with a limit to what is in memory at once.
//!
//! A list comes in pages of so many objects. The used part of most is small, but a client that may write an object may fill it up to
//! what the API server's store accepts, a mebibyte and a half, with unused annotations. So a page is read up to a number
//! of bytes, and if it is longer it is requested again with fewer objects. The API server takes any limit with any page.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Response, Uri};
use kube::client::Body;
use tower::{BoxError, Layer, Service};

/// The most of a page that is taken, in octets: some of the largest objects that there can be, and thousands of usual ones.
const LARGEST: usize = 8 << 20;
/// After a page that was too long, each page has only this part of its objects.
const FEWER: u32 = 4;

/// Bounds the pages of lists. Clones share what they have learnt.
#[derive(Clone, Debug, Default)]
pub struct Pages {
    /// For paths whose pages were too long: how many objects a page may have.
    limits: Arc<Mutex<HashMap<String, u32>>>,
}

impl Pages {
    fn limits(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limit(&self, path: &str, asked: u32) -> u32 {
        self.limits().get(path).map_or(asked, |limit| asked.min(*limit))
    }

    /// A page with `limit` objects had `length` octets, or more than are taken.
    fn learn(&self, path: &str, limit: u32, length: Option<usize>) {
        let mut limits = self.limits();
        match length {
            None => {
                limits.insert(path.to_owned(), (limit / FEWER).max(1));
            }
            // It would fit with more in it.
            Some(length) if length < LARGEST / 16 => {
                if let Some(known) = limits.get_mut(path) {
                    *known = known.saturating_mul(2);
                }
            }
            Some(_) => {}
        }
    }
}

/// The answer: as it comes, or a page that was read.
type Answer = UnsyncBoxBody<Bytes, BoxError>;

/// How many objects a list is asked for; `None` if it is not a list, or one without pages.
fn asked(method: &Method, uri: &Uri) -> Option<u32> {
    let mut pairs = uri.query().filter(|_| method == Method::GET)?.split('&');
    pairs.find_map(|pair| pair.strip_prefix("limit="))?.parse().ok()
}

/// The same list with another number of objects.
fn with_limit(uri: &Uri, limit: u32) -> Result<Uri, BoxError> {
    let pairs = uri.query().unwrap_or_default().split('&');
    let pairs: Vec<_> = pairs
        .map(|pair| match pair.strip_prefix("limit=") {
            Some(_) => format!("limit={limit}"),
            None => pair.to_owned(),
        })
        .collect();
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(format!(
        "{}?{}",
        uri.path(),
        pairs.join("&")
    ))?);
    Ok(Uri::from_parts(parts)?)
}

impl<S> Layer<S> for Pages {
    type Service = Paged<S>;

    fn layer(&self, inner: S) -> Paged<S> {
        Paged {
            inner,
            pages: self.clone(),
        }
    }
}

/// A service whose lists are bounded.
#[derive(Clone, Debug)]
pub struct Paged<S> {
    inner: S,
    pages: Pages,
}

impl<S, B> Service<Request<Body>> for Paged<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
    B: hyper::body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<Answer>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answer>, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some(asked) = asked(request.method(), request.uri()) else {
            let answer = self.inner.call(request);
            return Box::pin(async move {
                let answer = answer.await.map_err(Into::into)?;
                Ok(answer.map(|body| body.map_err(Into::into).boxed_unsync()))
            });
        };
        // The one that is ready.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let pages = self.pages.clone();
        Box::pin(async move {
            let (mut head, _) = request.into_parts();
            let path = head.uri.path().to_owned();
            loop {
                let limit = pages.limit(&path, asked);
                head.uri = with_limit(&head.uri, limit)?;
                std::future::poll_fn(|cx| inner.poll_ready(cx))
                    .await
                    .map_err(Into::into)?;
                let request = Request::from_parts(head.clone(), Body::empty());
                let (answer, body) = inner.call(request).await.map_err(Into::into)?.into_parts();
                match Limited::new(body, LARGEST).collect().await {
                    Ok(body) => {
                        let body = body.to_bytes();
                        pages.learn(&path, limit, Some(body.len()));
                        let body = Full::new(body).map_err(|never| match never {}).boxed_unsync();
                        return Ok(Response::from_parts(answer, body));
                    }
                    Err(error) if error.is::<LengthLimitError>() && limit > 1 => {
                        tracing::warn!(
                            path,
                            limit,
                            "a page of a list is too long: fewer objects are asked for"
                        );
                        pages.learn(&path, limit, None);
                    }
                    Err(error) => return Err(error),
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tower::ServiceExt as _;

    use super::*;

    /// An API server whose objects have so many octets each; it says which lists it was asked for.
    fn server(
        octets: usize,
        seen: Arc<Mutex<Vec<String>>>,
    ) -> impl Service<Request<Body>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send>
    + Clone
    + Send {
        tower::service_fn(move |request: Request<Body>| {
            let limit = asked(request.method(), request.uri()).unwrap_or(1);
            seen.lock().unwrap().push(request.uri().to_string());
            let body = vec![b'x'; octets * usize::try_from(limit).unwrap()];
            std::future::ready(Ok(Response::new(Full::new(Bytes::from(body)))))
        })
    }

    async fn length(
        service: impl Service<Request<Body>, Response = Response<Answer>, Error = BoxError>,
        uri: &str,
    ) -> Result<usize, BoxError> {
        let answer = service
            .oneshot(Request::get(uri).body(Body::empty()).unwrap())
            .await?;
        Ok(answer.into_body().collect().await?.to_bytes().len())
    }

    #[tokio::test]
    async fn a_page_that_is_too_long_is_asked_for_with_fewer_objects() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let pages = Pages::default();
        // 250 of them are 375 MiB.
        let large = pages.layer(server(3 << 19, Arc::clone(&seen)));
        let list = "https://server/apis/g/v1/nics?x=limit&limit=250&continue=abc";
        assert!(length(large.clone(), list).await.unwrap() <= LARGEST);
        let limits = |seen: &Mutex<Vec<String>>| -> Vec<String> {
            let seen = std::mem::take(&mut *seen.lock().unwrap());
            seen.iter()
                .map(|uri| {
                    uri.replace("https://server/apis/g/v1/nics?x=limit&limit=", "")
                        .replace("&continue=abc", "")
                })
                .collect()
        };
        assert_eq!(limits(&seen), ["250", "62", "15", "3"]);
        // The next one begins where that ended; another kind is not affected.
        assert!(length(large.clone(), list).await.unwrap() <= LARGEST);
        assert_eq!(limits(&seen), ["3"]);
        let small = pages.layer(server(1000, Arc::clone(&seen)));
        assert_eq!(
            length(small.clone(), "https://server/api/v1/pods?limit=250")
                .await
                .unwrap(),
            250_000
        );
        assert_eq!(limits(&seen), ["https://server/api/v1/pods?limit=250"]);
        // Where they are small again, there are more in each.
        for limit in ["3", "6", "12", "24", "48", "96", "192", "250", "250"] {
            length(small.clone(), list).await.unwrap();
            assert_eq!(limits(&seen), [limit]);
        }
    }

    #[tokio::test]
    async fn one_object_that_is_too_long_is_an_error_and_what_is_no_list_passes() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let service = Pages::default().layer(server(LARGEST + 1, Arc::clone(&seen)));
        let error = length(service.clone(), "https://server/api/v1/pods?limit=2")
            .await
            .unwrap_err();
        assert!(error.is::<LengthLimitError>(), "{error}");
        assert_eq!(seen.lock().unwrap().len(), 2);
        for passes in [
            "https://server/api/v1/pods",
            "https://server/api/v1/pods?watch=true",
        ] {
            assert_eq!(length(service.clone(), passes).await.unwrap(), LARGEST + 1);
        }
    }
}
