//! Keeps a resource registered with the current kubelet: registers again after each start of it, and when it has hung up.

use std::{fs, io, sync::Arc, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::{net::UnixListener, sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::{
    Error,
    device_plugin::{Plugin, Service, options},
    directory::{Directory, Identity, KUBELET},
    resource::Resource,
    rpc,
    wire::{Empty, RegisterRequest, VERSION, path},
};

/// How soon after its registration the kubelet asks for the devices.
const ASKS: Duration = Duration::from_secs(10);
/// The pause after a registration that failed.
const FIRST: Duration = Duration::from_millis(500);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(30);

/// How it stands with a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The kubelet does not know its devices, and why.
    Unknown(String),
    /// The kubelet has asked for its devices and gets each change.
    Registered,
}

/// Why a registration is over.
#[derive(Debug)]
enum Over {
    /// There is a new kubelet, or none any more; or it has removed our socket.
    Restarted,
    /// The kubelet no longer listens.
    HungUp,
    /// It has registered us and never asked.
    NeverAsked,
}

/// Offers the devices of a resource for as long as it is polled. `count` counts registrations.
pub async fn keep(
    directory: Directory,
    resource: Resource,
    plugin: Arc<dyn Plugin>,
    state: watch::Sender<State>,
    count: impl Fn(),
) -> std::convert::Infallible {
    let backoff = ExponentialBuilder::new()
        .with_min_delay(FIRST)
        .with_max_delay(LONGEST)
        .without_max_times()
        .with_jitter();
    let mut pauses = backoff.build();
    let mut changes = directory.changes();
    loop {
        let kubelet = directory.identity(KUBELET);
        let registered = || {
            count();
            state.send_replace(State::Registered);
        };
        let over = once(&directory, &resource, &plugin, registered).await;
        let was = state.borrow().clone();
        let why = match over {
            Ok(over) => {
                info!(%resource, ?over, "the kubelet no longer gets the devices; they are registered again");
                match over {
                    Over::Restarted => "the kubelet has been restarted",
                    Over::HungUp => "the kubelet has hung up",
                    Over::NeverAsked => "the kubelet has not asked for the devices",
                }
                .to_owned()
            }
            Err(error) => {
                let why = chain(&error);
                debug!(%resource, error = why, "not registered");
                why
            }
        };
        if was == State::Registered {
            // It went well for a while.
            pauses = backoff.build();
        }
        let new = State::Unknown(why);
        state.send_if_modified(|state| {
            let is_news = *state != new;
            *state = new;
            is_news
        });
        // A kubelet that has just made its socket is asked at once. What else changes there is our own socket.
        let new = async {
            while directory.identity(KUBELET) == kubelet {
                let _ = changes.changed().await;
            }
        };
        let pause = pauses.next().unwrap_or(LONGEST);
        let _ = timeout(pause, new).await;
    }
}

/// Our socket, which goes when it is not served any more.
struct Socket<'a> {
    directory: &'a Directory,
    name: &'a str,
    identity: Option<Identity>,
}

impl Drop for Socket<'_> {
    fn drop(&mut self) {
        // In its place there may be the next one's.
        if self.directory.identity(self.name) == self.identity {
            let _ = fs::remove_file(self.directory.path().join(self.name));
        }
    }
}

/// In place of what an earlier agent has left there.
fn listen(directory: &Directory, name: &str) -> Result<UnixListener, Error> {
    let socket = directory.path().join(name);
    let listening = match fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(&socket),
    };
    listening.map_err(|source| Error::Listen { socket, source })
}

async fn once(
    directory: &Directory,
    resource: &Resource,
    plugin: &Arc<dyn Plugin>,
    registered: impl FnOnce(),
) -> Result<Over, Error> {
    let mut changes = directory.changes();
    let kubelet = directory.identity(KUBELET);
    let name = resource.socket();
    let listener = listen(directory, &name)?;
    let ours = directory.identity(&name);
    let _socket = Socket {
        directory,
        name: &name,
        identity: ours,
    };
    let (streams, mut open) = watch::channel(0);
    let end = CancellationToken::new();
    let _end = end.clone().drop_guard();
    let service = Service {
        plugin: Arc::clone(plugin),
        streams,
        end,
    };
    let socket = directory.path().join(&name);
    let serve = service.serve(&socket, listener);
    let follow = async {
        register(directory, resource, name.clone()).await?;
        if timeout(ASKS, open.wait_for(|open| *open > 0)).await.is_err() {
            return Ok(Over::NeverAsked);
        }
        registered();
        loop {
            tokio::select! {
                _ = open.wait_for(|open| *open == 0) => return Ok(Over::HungUp),
                _ = changes.changed() => {
                    if directory.identity(KUBELET) != kubelet || directory.identity(&name) != ours {
                        return Ok(Over::Restarted);
                    }
                }
            }
        }
    };
    tokio::select! {
        error = serve => Err(error),
        over = follow => over,
    }
}

async fn register(directory: &Directory, resource: &Resource, endpoint: String) -> Result<(), Error> {
    let request = RegisterRequest {
        version: VERSION.to_owned(),
        endpoint,
        resource_name: resource.as_str().to_owned(),
        options: Some(options()),
    };
    let kubelet = directory.path().join(KUBELET);
    let _: Empty = rpc::call(&kubelet, path::REGISTER, request).await?;
    info!(%resource, "registered with the kubelet");
    Ok(())
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
