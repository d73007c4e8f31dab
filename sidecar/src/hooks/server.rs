//! The answers.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hybridnic_text::bounded;
use prost::Message;
use tokio::sync::Notify;
use tonic::body::Body;
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::Service;

use super::{
    HookPoint, INFO, Info, InfoRequest, ON_DEFINE_DOMAIN, OnDefineDomain, OnDefineDomainRequest, SHUTDOWN,
    Shutdown, ShutdownRequest, VERSIONS,
};
use crate::{domain, vmi};

/// The text of an error is shown as a condition and an event.
const LONGEST: usize = 500;

/// The service.
#[derive(Debug, Clone, Default)]
pub struct Hooks {
    ended: Arc<Notify>,
}

impl Hooks {
    /// Ends when the VM has.
    pub async fn vm_has_ended(&self) {
        self.ended.notified().await;
    }
}

impl Service<http::Request<Body>> for Hooks {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path();
        if path == INFO {
            return unary(request, |_: InfoRequest| Ok(info()));
        }
        let mut callback = VERSIONS
            .iter()
            .filter_map(|version| path.strip_prefix(&*format!("/kubevirt.hooks.{version}.Callbacks/")));
        match callback.next() {
            Some(ON_DEFINE_DOMAIN) => unary(request, |asked| on_define_domain(&asked)),
            Some(SHUTDOWN) => {
                let ended = self.ended.clone();
                unary(request, move |_: ShutdownRequest| {
                    eprintln!("the VM has ended");
                    ended.notify_one();
                    Ok(Shutdown {})
                })
            }
            _ => Box::pin(ready(Ok(Status::unimplemented("").into_http()))),
        }
    }
}

fn info() -> Info {
    let hook_point = |name: &str| HookPoint {
        name: name.into(),
        priority: 0,
    };
    Info {
        name: "hybridnic".into(),
        hook_points: vec![hook_point(ON_DEFINE_DOMAIN), hook_point(SHUTDOWN)],
        versions: VERSIONS.map(Into::into).into(),
    }
}

fn on_define_domain(asked: &OnDefineDomainRequest) -> Result<OnDefineDomain, Status> {
    let edited = edited(asked).inspect_err(|why| eprintln!("refused: {why}"));
    let domain = edited.map_err(|why| Status::failed_precondition(format!("hybridnic: {why}")))?;
    eprintln!(
        "domain of {} bytes, {} of them ours",
        domain.len(),
        domain.len().saturating_sub(asked.domain.len())
    );
    Ok(OnDefineDomain {
        domain: domain.into(),
    })
}

fn edited(asked: &OnDefineDomainRequest) -> Result<String, String> {
    let nics = vmi::nics(&asked.vmi).map_err(|e| bounded(&format!("the VM cannot be read: {e}"), LONGEST))?;
    let domain = str::from_utf8(&asked.domain).map_err(|e| format!("the domain cannot be read: {e}"))?;
    domain::edit(domain, &nics).map_err(|refusal| bounded(&refusal.to_string(), LONGEST))
}

/// Answers a call that waits for nothing.
fn unary<T, U, F>(request: http::Request<Body>, answer: F) -> <Hooks as Service<http::Request<Body>>>::Future
where
    T: Message + Default + 'static,
    U: Message + Default + 'static,
    F: FnMut(T) -> Result<U, Status> + Send + 'static,
{
    Box::pin(async move {
        let mut grpc = Grpc::new(ProstCodec::<U, T>::default());
        Ok(grpc
            .unary(Answer(answer, std::marker::PhantomData), request)
            .await)
    })
}

struct Answer<F, T, U>(F, std::marker::PhantomData<fn(T) -> U>);

impl<F, T, U> UnaryService<T> for Answer<F, T, U>
where
    F: FnMut(T) -> Result<U, Status>,
{
    type Response = U;
    type Future = Ready<Result<Response<U>, Status>>;

    fn call(&mut self, request: Request<T>) -> Self::Future {
        ready((self.0)(request.into_inner()).map(Response::new))
    }
}
