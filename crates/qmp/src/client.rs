//! The handle callers use.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{timeout, timeout_at};
use tokio_util::codec::FramedRead;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::codec::{Frame, Lines};
use crate::commands::QemuVersion;
use crate::error::{CloseReason, QmpError};
use crate::event::{Event, Events};
use crate::message::{self, Reply};
use crate::session::{Limits, Outgoing, Pending, Session};

/// Commands that may wait for the socket to take them. More callers wait for a place, each within its deadline.
const QUEUE: usize = 32;

/// The bounds of a session.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long connecting, QEMU's greeting and the negotiation may take together.
    pub greeting_timeout: Duration,
    /// How long a command may take, unless [`Client::with_timeout`] says otherwise.
    pub command_timeout: Duration,
    /// The longest line taken from QEMU, in bytes. The command that a longer one answers fails, and the session goes on.
    pub max_line: usize,
    /// The longest event taken from QEMU, in bytes.
    pub max_event: usize,
    /// How many events, and other lines that nobody waits for, are taken within a second. With more of them the session ends. A
    /// migration has some twenty in all, and QEMU itself limits those that a guest can cause again and again.
    pub max_events: u32,
    /// How many events a receiver may be behind before it loses some.
    pub event_capacity: usize,
    /// Where failed commands are reported.
    pub on_error: OnError,
}

type Told = dyn Fn(&'static str, &QmpError) + Send + Sync;

/// Gets failed commands, with the command's name and the error.
#[derive(Clone, Default)]
pub struct OnError(Option<Arc<Told>>);

impl OnError {
    /// Calls `told` each time.
    pub fn new(told: impl Fn(&'static str, &QmpError) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(told)))
    }
}

impl fmt::Debug for OnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "OnError(set)"
        } else {
            "OnError"
        })
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            greeting_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(10),
            max_line: 1 << 20,
            max_event: 8 << 10,
            max_events: 1000,
            event_capacity: 256,
            on_error: OnError::default(),
        }
    }
}

#[derive(Debug)]
struct Inner {
    outgoing: mpsc::Sender<Outgoing>,
    pending: Arc<Pending>,
    // Weak, so that receivers see the session's end.
    events: broadcast::WeakSender<Arc<Event>>,
    closed: watch::Receiver<Option<CloseReason>>,
    version: QemuVersion,
    on_error: OnError,
    stop: CancellationToken,
    _stop_when_dropped: DropGuard,
}

/// One QMP session with one QEMU. Clones share it; it ends when the last of them is dropped.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
    timeout: Duration,
}

impl Client {
    /// Connects to the socket at `path` and negotiates.
    ///
    /// QEMU serves one client at a time: with another one connected this fails as
    /// [`is_busy_socket`](QmpError::is_busy_socket) after [`Options::greeting_timeout`].
    pub async fn connect(path: impl AsRef<Path>, options: &Options) -> Result<Self, QmpError> {
        let path = path.as_ref();
        let stream = UnixStream::connect(path)
            .await
            .map_err(|source| match source.kind() {
                // What the kernel says when the listen queue is full.
                io::ErrorKind::WouldBlock => QmpError::Busy,
                _ => QmpError::Connect {
                    path: path.to_owned(),
                    source,
                },
            })?;
        Self::from_stream(stream, options).await
    }

    /// As [`from_stream`](Self::from_stream), for a socket that was connected outside the runtime.
    pub async fn from_std(
        stream: std::os::unix::net::UnixStream,
        options: &Options,
    ) -> Result<Self, QmpError> {
        stream.set_nonblocking(true).map_err(QmpError::Socket)?;
        let stream = UnixStream::from_std(stream).map_err(QmpError::Socket)?;
        Self::from_stream(stream, options).await
    }

    /// Takes over a connected socket, waits for the greeting and negotiates.
    pub async fn from_stream(stream: UnixStream, options: &Options) -> Result<Self, QmpError> {
        let deadline = tokio::time::Instant::now() + options.greeting_timeout;
        let too_late = || QmpError::GreetingTimeout {
            after: options.greeting_timeout,
        };

        let (reader, writer) = stream.into_split();
        let mut frames = FramedRead::new(reader, Lines::new(options.max_line));
        let greeting = match timeout_at(deadline, frames.next())
            .await
            .map_err(|_| too_late())?
        {
            Some(Ok(Frame::Line(line))) => line,
            Some(Ok(Frame::Long(_))) => {
                let limit = options.max_line;
                return Err(QmpError::Closed(CloseReason::LineTooLong { limit }));
            }
            Some(Err(reason)) => return Err(QmpError::Closed(reason)),
            None => return Err(QmpError::Closed(CloseReason::Eof)),
        };
        let version = message::parse_greeting(&greeting).map_err(|text| QmpError::NotQmp { text })?;

        let (outgoing, queue) = mpsc::channel(QUEUE);
        let (events, _) = broadcast::channel(options.event_capacity);
        let (closed_sender, closed) = watch::channel(None);
        let pending = Arc::new(Pending::new());
        let stop = CancellationToken::new();
        let inner = Inner {
            outgoing,
            pending: Arc::clone(&pending),
            events: events.downgrade(),
            closed,
            version,
            on_error: options.on_error.clone(),
            stop: stop.clone(),
            _stop_when_dropped: stop.clone().drop_guard(),
        };
        let session = Session {
            frames,
            writer,
            outgoing: queue,
            pending,
            events,
            closed: closed_sender,
            stop,
            limits: Limits {
                line: options.max_line,
                event: options.max_event,
                events: options.max_events,
            },
        };
        tokio::spawn(session.run());

        let client = Self {
            inner: Arc::new(inner),
            timeout: options.command_timeout,
        };
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        match client
            .with_timeout(left)
            .run("qmp_capabilities", &json!({}))
            .await
        {
            Ok(()) => Ok(client),
            Err(QmpError::Timeout { .. }) => Err(too_late()),
            Err(e) => Err(e),
        }
    }

    /// The same session, with another deadline for the commands called through this handle.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            timeout,
        }
    }

    /// How long a command may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// QEMU's version, as its greeting says.
    pub fn version(&self) -> &QemuVersion {
        &self.inner.version
    }

    /// Receives the events from now on. Subscribe before reading the state that the events will change.
    pub fn subscribe(&self) -> Events {
        let events = match self.inner.events.upgrade() {
            Some(sender) => sender.subscribe(),
            None => broadcast::channel(1).1,
        };
        Events {
            events,
            closed: self.inner.closed.clone(),
        }
    }

    /// Ends the session for all clones.
    pub fn close(&self) {
        self.inner.stop.cancel();
    }

    /// Waits for the session's end and tells why it ended. Cancel safe.
    pub async fn closed(&self) -> CloseReason {
        let mut closed = self.inner.closed.clone();
        match closed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(CloseReason::Local),
            // The session's task was dropped with its runtime.
            Err(_) => CloseReason::Local,
        }
    }

    /// Runs a command and reads its reply. `arguments` must serialize to a JSON object.
    ///
    /// Dropping the future is harmless: a command not yet sent is not sent, a late reply is ignored.
    pub async fn execute<A, T>(&self, command: &'static str, arguments: &A) -> Result<T, QmpError>
    where
        A: Serialize + ?Sized,
        T: DeserializeOwned,
    {
        self.call(command, arguments, None).await
    }

    /// Runs a command whose reply holds nothing of interest.
    pub async fn run<A: Serialize + ?Sized>(
        &self,
        command: &'static str,
        arguments: &A,
    ) -> Result<(), QmpError> {
        self.call::<A, IgnoredAny>(command, arguments, None)
            .await
            .map(|_| ())
    }

    /// `getfd`: gives QEMU a duplicate of `fd` under `name`. A name in use is replaced. The first command that names
    /// the descriptor consumes it; what nobody used stays open in QEMU until [`closefd`](Self::closefd).
    pub async fn getfd(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), QmpError> {
        self.execute_with_fd::<_, IgnoredAny>("getfd", &json!({ "fdname": name }), name, fd)
            .await
            .map(|_| ())
    }

    /// As [`execute`](Self::execute), for a command that takes a duplicate of `fd`; `name` is for a message.
    pub(crate) async fn execute_with_fd<A, T>(
        &self,
        command: &'static str,
        arguments: &A,
        name: &str,
        fd: BorrowedFd<'_>,
    ) -> Result<T, QmpError>
    where
        A: Serialize + ?Sized,
        T: DeserializeOwned,
    {
        // The session owns a duplicate, so that a cancelled call cannot close what is still to be sent.
        let fd = fd.try_clone_to_owned().map_err(|source| QmpError::DuplicateFd {
            name: name.to_owned(),
            source,
        })?;
        self.call(command, arguments, Some(fd)).await
    }

    async fn call<A, T>(
        &self,
        command: &'static str,
        arguments: &A,
        fd: Option<OwnedFd>,
    ) -> Result<T, QmpError>
    where
        A: Serialize + ?Sized,
        T: DeserializeOwned,
    {
        let result = self.exchange(command, arguments, fd).await;
        if let (Err(error), Some(told)) = (&result, &self.inner.on_error.0) {
            told(command, error);
        }
        result
    }

    async fn exchange<A, T>(
        &self,
        command: &'static str,
        arguments: &A,
        fd: Option<OwnedFd>,
    ) -> Result<T, QmpError>
    where
        A: Serialize + ?Sized,
        T: DeserializeOwned,
    {
        let pending = &self.inner.pending;
        let mut ticket = pending.register().map_err(QmpError::Closed)?;
        let line = message::encode(command, arguments, ticket.id)
            .map_err(|source| QmpError::Encode { command, source })?;
        let outgoing = Outgoing {
            id: ticket.id,
            line,
            fd,
        };
        let exchange = async {
            // Both fail only when the session has ended.
            self.inner.outgoing.send(outgoing).await.ok()?;
            (&mut ticket.reply).await.ok()
        };
        let reply = timeout(self.timeout, exchange)
            .await
            .map_err(|_| QmpError::Timeout {
                command,
                after: self.timeout,
            })?;
        match reply {
            Some(Reply::Return(value)) => {
                serde_json::from_str(value.get()).map_err(|source| QmpError::Decode { command, source })
            }
            Some(Reply::Error { class, desc }) => Err(QmpError::Command { command, class, desc }),
            Some(Reply::TooLong { limit }) => Err(QmpError::TooLong { command, limit }),
            None => Err(QmpError::Closed(self.closed().await)),
        }
    }
}
