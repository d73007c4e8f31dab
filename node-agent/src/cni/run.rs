//! Keeps the plugin's program on the node and its socket served.

use std::{
    convert::Infallible,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hybridnic_api::conditions::reasons;
use tokio::time::sleep;
use tracing::info;

use super::{
    install::install,
    server::{Kubelet, Server},
};
use crate::{error::chain, host::Host};

/// How long until what failed is tried again.
const AGAIN: Duration = Duration::from_secs(30);
/// What has trouble.
const PROGRAM: &str = "the CNI plugin";
const SOCKET: &str = "the CNI plugin's socket";

/// Where things are.
#[derive(Clone, Debug)]
pub struct Place {
    /// The plugin's program in the agent's image.
    pub program: PathBuf,
    /// The node's directory of such programs.
    pub directory: PathBuf,
    /// The socket.
    pub socket: PathBuf,
}

/// Installs the plugin, and serves it as long as the agent runs. What does not work is reported as trouble of the node.
pub async fn run(host: &Host, kubelet: Arc<dyn Kubelet>, place: &Place) -> Infallible {
    tokio::join!(keep(host, place), serve(host, kubelet, &place.socket)).1
}

async fn keep(host: &Host, place: &Place) {
    loop {
        let Place {
            program, directory, ..
        } = place.clone();
        let installed = tokio::task::spawn_blocking(move || install(&program, &directory)).await;
        match installed.map_err(io::Error::other).flatten() {
            Ok(new) => {
                host.troubles.end(PROGRAM);
                if new {
                    info!(directory = %place.directory.display(), "the CNI plugin is installed");
                }
                return;
            }
            Err(error) => trouble(host, PROGRAM, "cannot be installed", &error),
        }
        sleep(AGAIN).await;
    }
}

async fn serve(host: &Host, kubelet: Arc<dyn Kubelet>, socket: &Path) -> Infallible {
    let server = Server::new(host.sandboxes.clone(), Arc::clone(&host.broker), kubelet);
    let server = Arc::new(server);
    loop {
        let error = match Server::open(socket) {
            Ok(listener) => {
                host.troubles.end(SOCKET);
                Arc::clone(&server).serve(listener).await
            }
            Err(error) => error,
        };
        trouble(host, SOCKET, "cannot be served", &error);
        sleep(AGAIN).await;
    }
}

fn trouble(host: &Host, what: &str, does: &str, error: &io::Error) {
    let message = format!("{what} {does}, so no pod gets an interface: {}", chain(error));
    host.troubles.begin(what, reasons::CNI_UNAVAILABLE, message);
}
