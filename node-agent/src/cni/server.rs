//! The socket through which the CNI plugin asks. Only root may use it.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use hybridnic_cni::wire::{Answer, Attachment, LIMIT, Pod, Question, WAIT, Why};
use hybridnic_net::{DeviceId, netlink::LinkKind, netns::NetNs};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, getsockopt, listen, socket,
    sockopt::PeerCredentials,
};
use tokio::{io::unix::AsyncFd, task::JoinSet, time::timeout};
use tracing::{debug, info, warn};

use super::{
    sandbox::{self, Held, Inside},
    sandboxes::Sandboxes,
};
use crate::{
    broker::{self, Broker},
    error::{bounded, chain},
    packets,
};

/// How long a plugin may take to say what it wants, and to take the answer.
const SOON: Duration = Duration::from_secs(5);
/// How long the kubelet may take to say whose a device is.
const ASK_KUBELET: Duration = Duration::from_secs(10);
/// The most that are heard at once: each pod of a node has a few interfaces, and its sandboxes follow one another.
const PLACES: usize = 256;

/// What the kubelet knows of its pods' devices.
pub trait Kubelet: std::fmt::Debug + Send + Sync {
    /// Whether it has given the pod this device of the network's resource; otherwise why not, in words.
    fn has_given<'a>(
        &'a self,
        pod: &'a Pod,
        network: &'a str,
        device_id: &'a str,
    ) -> BoxFuture<'a, Result<(), String>>;
}

/// A socket that the plugin asks by.
#[derive(Debug)]
pub struct Listener(AsyncFd<OwnedFd>);

/// The server.
#[derive(Debug)]
pub struct Server {
    /// The sandboxes that it is asked about.
    pub sandboxes: Sandboxes,
    /// Gets into the network namespaces of pods.
    pub broker: Arc<dyn Broker>,
    /// Whose a device is.
    pub kubelet: Arc<dyn Kubelet>,
    /// How long a pod may wait: [`WAIT`].
    pub patience: Duration,
}

impl Server {
    /// A server.
    pub fn new(sandboxes: Sandboxes, broker: Arc<dyn Broker>, kubelet: Arc<dyn Kubelet>) -> Self {
        Self {
            sandboxes,
            broker,
            kubelet,
            patience: WAIT,
        }
    }

    /// Makes a socket at this path, in place of one that an earlier agent has left.
    pub fn open(path: &Path) -> io::Result<Listener> {
        open(path).map(Listener)
    }

    /// Serves a socket for as long as that can be done.
    pub async fn serve(self: Arc<Self>, listener: Listener) -> io::Error {
        // They end with this.
        let mut heard = JoinSet::new();
        loop {
            let accepted = packets::ready(&listener.0, false, |fd| {
                Ok(accept4(fd, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?)
            });
            let accepted = tokio::select! {
                Some(_) = heard.join_next() => continue,
                accepted = accepted, if heard.len() < PLACES => accepted,
            };
            let peer = match accepted {
                // SAFETY: the kernel has just made it for us, and nobody else has it.
                Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
                // The client has gone again.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return error,
            };
            let server = Arc::clone(&self);
            heard.spawn(async move {
                if let Err(error) = server.hear(peer).await {
                    debug!(%error, "a CNI plugin was not answered");
                }
            });
        }
    }

    async fn hear(&self, peer: OwnedFd) -> io::Result<()> {
        if getsockopt(&peer, PeerCredentials)?.uid() != 0 {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        // SAFETY: an `OwnedFd` stays open until it is dropped, and `AsyncFd` owns it.
        let peer = unsafe { AsyncFd::register(peer) }.map_err(io::Error::from)?;
        let question = packets::ready(&peer, false, |fd| packets::receive(fd, LIMIT));
        let (text, passed) = timeout(SOON, question).await??;
        let answer = match serde_json::from_slice(&text) {
            Ok(question) => tokio::select! {
                answer = self.answer(question, passed) => answer,
                () = gone(&peer) => return Err(io::ErrorKind::ConnectionReset.into()),
            },
            Err(error) => Answer::refused(
                Why::BadQuestion,
                format!("the agent does not understand the plugin, which may be of another version: {error}"),
            ),
        };
        let text = serde_json::to_vec(&answer)?;
        let answered = packets::ready(&peer, true, |fd| packets::send(fd, &text, None));
        timeout(SOON, answered).await?
    }

    async fn answer(&self, question: Question, passed: Option<OwnedFd>) -> Answer {
        let result = match question {
            Question::Status => Ok(Answer::Done),
            Question::Add {
                attachment,
                pod,
                network,
                device_id,
            } => self.add(attachment, pod, &network, device_id, passed).await,
            Question::Del { attachment } => self.del(&attachment, passed).await,
            Question::Check { attachment, mac } => self.check(&attachment, mac.as_deref(), passed).await,
        };
        result.unwrap_or_else(|(why, message)| Answer::refused(why, bounded(&message)))
    }

    async fn add(
        &self,
        attachment: Attachment,
        pod: Pod,
        network: &str,
        device_id: String,
        passed: Option<OwnedFd>,
    ) -> Said {
        let inside = self.enter(passed).await?;
        let known = self.kubelet.has_given(&pod, network, &device_id);
        let known = timeout(ASK_KUBELET, known).await;
        known
            .unwrap_or_else(|_| Err("the kubelet does not say in time which pod has the device".to_owned()))
            .map_err(|message| (Why::NotNow, message))?;
        let device = device_id
            .parse::<DeviceId>()
            .map_err(|error| (Why::BadQuestion, error.to_string()))?;
        let name = format!("{}/{}", pod.namespace, pod.name);
        let (interface, container) = (attachment.ifname.clone(), attachment.container_id.clone());
        info!(
            pod = name,
            uid = pod.uid,
            interface,
            sandbox = container,
            network,
            device = device_id,
            "a pod asks for its interface"
        );
        let held = Held::new(attachment, &pod, device, inside);
        let answer = self.sandboxes.add(held).await.answer(self.patience).await;
        if let Answer::Refused { message, .. } = &answer {
            warn!(
                pod = name,
                interface,
                sandbox = container,
                message,
                "the pod does not get its interface"
            );
        } else {
            info!(
                pod = name,
                interface,
                sandbox = container,
                "the pod has its interface"
            );
        }
        Ok(answer)
    }

    async fn del(&self, attachment: &Attachment, passed: Option<OwnedFd>) -> Said {
        let not_now = |message| (Why::NotNow, message);
        let known = self.sandboxes.del(attachment).await.map_err(not_now)?;
        // From before the agent's start: the runtime says which namespace it was.
        if !known && let Some(passed) = passed {
            let inside = self.enter(Some(passed)).await?;
            let removed = sandbox::remove(&inside.netlink, &attachment.ifname).await;
            removed.map_err(|error| not_now(chain(&error)))?;
        }
        Ok(Answer::Done)
    }

    /// By what is really in the pod's network namespace.
    async fn check(&self, attachment: &Attachment, mac: Option<&str>, passed: Option<OwnedFd>) -> Said {
        let Inside { netlink, .. } = self.enter(passed).await?;
        let ifname = &attachment.ifname;
        let link = netlink
            .link(ifname)
            .await
            .map_err(|error| (Why::NotNow, chain(&error)))?;
        let not_as_made = |what: String| Err((Why::NotAsMade, what));
        let Some(link) = link else {
            return not_as_made(format!("there is no interface {ifname} in the pod"));
        };
        if !matches!(link.kind, LinkKind::Macvtap { .. }) {
            return not_as_made(format!("the interface {ifname} in the pod is not a macvtap"));
        }
        match (mac, link.mac) {
            (Some(made), Some(now)) if !now.to_string().eq_ignore_ascii_case(made) => not_as_made(format!(
                "the interface {ifname} in the pod was made with MAC {made}, and has {now}"
            )),
            _ => Ok(Answer::Done),
        }
    }

    /// Gets into the network namespace whose descriptor a plugin has passed. It has to be a pod's.
    async fn enter(&self, passed: Option<OwnedFd>) -> Result<Inside, (Why, String)> {
        let bad = |message: &str| (Why::BadQuestion, message.to_owned());
        let passed = passed.ok_or_else(|| bad("no network namespace was passed"))?;
        let netns = NetNs::of(passed).map_err(|error| bad(&error.to_string()))?;
        let own = NetNs::own().map_err(|error| (Why::NotNow, error.to_string()))?;
        if netns == own {
            return Err(bad(
                "the pod is in the node's own network (hostNetwork), where it cannot have an interface",
            ));
        }
        let inside = Inside::of(&*self.broker, broker::Pod::NetNs(&netns)).await;
        inside.map_err(|error| {
            let message = format!(
                "there is no way into the pod's network namespace: {}",
                chain(&error)
            );
            (Why::NotNow, message)
        })
    }
}

type Said = Result<Answer, (Why, String)>;

/// Resolves when the other end has gone, or says what it should not.
async fn gone(peer: &AsyncFd<OwnedFd>) {
    // Whatever it is.
    let _ = packets::ready(peer, false, |fd| packets::receive(fd, 1)).await;
}

fn open(path: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    // Nobody connects before there is a listener.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listen(&socket, Backlog::new(128)?)?;
    // SAFETY: an `OwnedFd` stays open until it is dropped, and `AsyncFd` owns it.
    let listener = unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)?;
    Ok(listener)
}
