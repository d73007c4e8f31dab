//! Where the launcher finds it.

use std::fs::{Permissions, remove_file, set_permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use futures::{StreamExt as _, stream};
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tonic::Request;
use tonic::client::Grpc;
use tonic::transport::{Endpoint, Server, Uri};
use tonic_prost::ProstCodec;

use super::{Hooks, INFO, Info, InfoRequest};

/// The socket's name. The launcher asks one of each name, whichever directory it is in.
const NAME: &str = "hybridnic.sock";

/// How long it waits for its own answer. Without one it ends, and is started again.
const ITSELF: Duration = Duration::from_secs(30);

/// Answers in this directory until the VM has ended or `end` has.
///
/// The launcher looks through the directory again and again: a socket that does not listen yet is asked again, any other file ends
/// it. So nothing else is ever there, and a socket that an earlier process has left is made again. One that listens has a second for
/// its first answer, or the launcher panics; on a busy node that is short for a process that has just begun. So it asks itself first.
pub async fn serve(directory: &Path, end: impl Future<Output = ()>) -> Result<()> {
    let path = directory.join(NAME);
    match remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("remove {}", path.display()));
        }
        _ => {}
    }
    let (own, first) = UnixStream::pair().context("a socket of its own")?;
    let (opens, opened) = oneshot::channel();
    let others = stream::once(opened).flat_map(|listener: Result<UnixListener, _>| {
        let listener = stream::iter(listener.ok());
        listener.flat_map(|listener| {
            stream::unfold(listener, |listener| async move {
                let accepted = listener.accept().await.map(|(stream, _)| stream);
                Some((accepted, listener))
            })
        })
    });
    let accepted = stream::iter([Ok(first)]).chain(others);
    let hooks = Hooks::default();
    let ended = async {
        tokio::select! {
            () = hooks.vm_has_ended() => {}
            () = end => {}
        }
    };
    let served = Server::builder().serve_with_incoming_shutdown(hooks.clone(), Box::pin(accepted), ended);
    let open = async {
        ask(own).await?;
        let listener = UnixListener::bind(&path).with_context(|| format!("listen at {}", path.display()))?;
        // Only this pod sees the directory; the launcher may be another user than this.
        set_permissions(&path, Permissions::from_mode(0o777))?;
        eprintln!("listening at {}", path.display());
        opens.send(listener).map_err(|_| anyhow!("it has ended"))
    };
    let served = async { served.await.context("serve") };
    let done = tokio::try_join!(served, open);
    let _ = remove_file(&path);
    done.map(|_| ())
}

/// Asks as the launcher does, over a connection that is there already.
async fn ask(connection: UnixStream) -> Result<Info> {
    let mut connection = Some(TokioIo::new(connection));
    let connector = tower::service_fn(move |_: Uri| {
        std::future::ready(connection.take().ok_or_else(|| io::Error::other("it was closed")))
    });
    let channel = Endpoint::from_static("http://sidecar")
        .timeout(ITSELF)
        .connect_with_connector(connector)
        .await
        .context("reach itself")?;
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.context("reach itself")?;
    let path = PathAndQuery::from_static(INFO);
    let codec = ProstCodec::<InfoRequest, Info>::default();
    let answer = grpc.unary(Request::new(InfoRequest {}), path, codec).await;
    Ok(answer.context("no answer to itself")?.into_inner())
}
