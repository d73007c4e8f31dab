//! Where the launcher finds it.

use std::fs::{Permissions, remove_file, set_permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use futures::stream;
use tokio::net::UnixListener;
use tonic::transport::Server;

use super::Hooks;

/// The socket's name. The launcher asks one of each name, whichever directory it is in.
const NAME: &str = "hybridnic.sock";

/// Answers in this directory until the VM has ended or `end` has.
///
/// The launcher looks through the directory again and again: a socket that does not listen yet is asked again, any other file ends
/// it. So nothing else is ever there, and a socket that an earlier process has left is made again.
pub async fn serve(directory: &Path, end: impl Future<Output = ()>) -> Result<()> {
    let path = directory.join(NAME);
    match remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("remove {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path).with_context(|| format!("listen at {}", path.display()))?;
    // Only this pod sees the directory; the launcher may be another user than this.
    set_permissions(&path, Permissions::from_mode(0o777))?;
    eprintln!("listening at {}", path.display());
    let accepted = stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    let hooks = Hooks::default();
    let ended = async {
        tokio::select! {
            () = hooks.vm_has_ended() => {}
            () = end => {}
        }
    };
    let served = Server::builder()
        .serve_with_incoming_shutdown(hooks.clone(), accepted, ended)
        .await;
    let _ = remove_file(&path);
    served.context("serve")
}
