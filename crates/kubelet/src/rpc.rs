//! Calls to a socket of the kubelet, and answers to its calls.

use std::{
    convert::Infallible,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::stream;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::{
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tonic::{
    Request, Response, Status,
    body::Body,
    client, server,
    transport::{Channel, Endpoint, Server},
};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

/// How long the kubelet may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// As much as the kubelet's own clients take.
const LONGEST_ANSWER: usize = 16 * 1024 * 1024;

/// Why the kubelet gave no answer, or not the one that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No process is at its socket.
    #[error("no kubelet at {}", socket.display())]
    Absent {
        /// Its socket.
        socket: PathBuf,
        /// What the connection came to.
        #[source]
        source: tonic::transport::Error,
    },
    /// It does not want to.
    #[error("the kubelet refuses {call}: {message} ({code:?})")]
    Refused {
        /// What was asked.
        call: &'static str,
        /// gRPC's code.
        code: tonic::Code,
        /// The kubelet's words.
        message: String,
    },
    /// It takes too long.
    #[error("the kubelet has not answered {call} within {} s", PATIENCE.as_secs())]
    Silent {
        /// What was asked.
        call: &'static str,
    },
    /// A socket of ours could not be made.
    #[error("cannot listen at {}", socket.display())]
    Listen {
        /// Ours.
        socket: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Connects, calls, and waits for the answer.
pub(crate) async fn call<Q, A>(socket: &Path, call: &'static str, question: Q) -> Result<A, Error>
where
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
{
    let channel = connect(socket).await?;
    ask(channel, socket, call, question).await
}

/// Calls over a connection to this socket, and waits for the answer.
pub(crate) async fn ask<Q, A>(
    channel: Channel,
    socket: &Path,
    call: &'static str,
    question: Q,
) -> Result<A, Error>
where
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
{
    let answered = timeout(PATIENCE, async {
        let mut client = client::Grpc::new(channel).max_decoding_message_size(LONGEST_ANSWER);
        let refused = |status: tonic::Status| Error::Refused {
            call,
            code: status.code(),
            message: status.message().to_owned(),
        };
        let ready = client.ready().await;
        ready.map_err(|source| Error::Absent {
            socket: socket.to_owned(),
            source,
        })?;
        let codec = ProstCodec::<Q, A>::default();
        let answer = client.unary(Request::new(question), PathAndQuery::from_static(call), codec);
        Ok(answer.await.map_err(refused)?.into_inner())
    });
    answered.await.unwrap_or(Err(Error::Silent { call }))
}

pub(crate) async fn connect(socket: &Path) -> Result<Channel, Error> {
    let path = socket.to_owned();
    let connector = service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    let channel = timeout(PATIENCE, endpoint.connect_with_connector(connector)).await;
    let call = "a connection";
    let channel = channel.map_err(|_| Error::Silent { call })?;
    channel.map_err(|source| Error::Absent {
        socket: socket.to_owned(),
        source,
    })
}

/// Serves all clients until it is dropped.
pub(crate) async fn serve<S>(listener: UnixListener, service: S) -> Result<(), tonic::transport::Error>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    let incoming = stream::poll_fn(move |cx| {
        let accepted = listener.poll_accept(cx);
        accepted.map(|accepted| Some(accepted.map(|(stream, _)| stream)))
    });
    Server::builder()
        .serve_with_incoming::<_, _, UnixStream, io::Error, _>(service, incoming)
        .await
}

/// Answers a call that has one question and one answer.
pub(crate) async fn unary<Q, A, F>(
    request: http::Request<Body>,
    mut answer: impl FnMut(Q) -> F + Send,
) -> http::Response<Body>
where
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
    F: Future<Output = Result<A, Status>> + Send,
{
    let service = service_fn(move |question: Request<Q>| {
        let answer = answer(question.into_inner());
        async move { answer.await.map(Response::new) }
    });
    server::Grpc::new(ProstCodec::<A, Q>::default())
        .unary(service, request)
        .await
}
