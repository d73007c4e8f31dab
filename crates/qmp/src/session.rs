//! The task that owns the socket: writes commands, hands replies to their callers, broadcasts events.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::codec::FramedRead;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::codec::{Frame, Lines};
use crate::error::CloseReason;
use crate::event::Event;
use crate::message::{self, Message, Reply};

pub(crate) type Frames = FramedRead<OwnedReadHalf, Lines>;

/// One command on its way to QEMU.
pub(crate) struct Outgoing {
    pub(crate) id: u64,
    pub(crate) line: Vec<u8>,
    pub(crate) fd: Option<OwnedFd>,
}

type Callers = HashMap<u64, oneshot::Sender<Reply>>;

/// The commands that wait for their reply, or why there will be no more replies.
#[derive(Debug)]
pub(crate) struct Pending {
    callers: Mutex<Result<Callers, CloseReason>>,
    next_id: AtomicU64,
}

impl Pending {
    pub(crate) fn new() -> Self {
        Self {
            callers: Mutex::new(Ok(HashMap::new())),
            next_id: AtomicU64::new(1),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Result<Callers, CloseReason>> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a caller. Dropping the ticket forgets it, and with it a reply that comes late.
    pub(crate) fn register(self: &Arc<Self>) -> Result<Ticket, CloseReason> {
        let (sender, reply) = oneshot::channel();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.lock()
            .as_mut()
            .map_err(|reason| reason.clone())?
            .insert(id, sender);
        Ok(Ticket {
            id,
            reply,
            pending: Arc::clone(self),
        })
    }

    fn is_waiting(&self, id: u64) -> bool {
        self.lock()
            .as_ref()
            .is_ok_and(|callers| callers.contains_key(&id))
    }

    /// Hands a reply to its caller; whether one waited for it. A caller that went away is not an error; an id that was never given out is
    /// one.
    fn answer(&self, id: u64, reply: Reply) -> Result<bool, CloseReason> {
        if id == 0 || id >= self.next_id.load(Ordering::Relaxed) {
            return Err(message::invalid(
                &"a reply to a command never sent",
                &format!("id {id}"),
            ));
        }
        let caller = self.lock().as_mut().ok().and_then(|callers| callers.remove(&id));
        let waited = caller.is_some();
        if let Some(caller) = caller {
            // The caller may go away at this very moment: then nobody misses the reply.
            drop(caller.send(reply));
        } else {
            debug!(id, "late reply ignored");
        }
        Ok(waited)
    }

    fn close(&self, reason: CloseReason) {
        *self.lock() = Err(reason);
    }
}

/// A caller's place in [`Pending`].
pub(crate) struct Ticket {
    pub(crate) id: u64,
    pub(crate) reply: oneshot::Receiver<Reply>,
    pending: Arc<Pending>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Ok(callers) = self.pending.lock().as_mut() {
            callers.remove(&self.id);
        }
    }
}

/// All that the session's task owns.
pub(crate) struct Session {
    pub(crate) frames: Frames,
    pub(crate) writer: OwnedWriteHalf,
    pub(crate) outgoing: mpsc::Receiver<Outgoing>,
    pub(crate) pending: Arc<Pending>,
    pub(crate) events: broadcast::Sender<Arc<Event>>,
    pub(crate) closed: watch::Sender<Option<CloseReason>>,
    pub(crate) stop: CancellationToken,
    pub(crate) limits: Limits,
}

/// How long lines and events may be, and how many events may come within a second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) line: usize,
    pub(crate) event: usize,
    pub(crate) events: u32,
}

/// Counts what comes unasked.
struct Unasked {
    since: Instant,
    count: u32,
    limit: u32,
}

impl Unasked {
    fn new(limit: u32) -> Self {
        Self {
            since: Instant::now(),
            count: 0,
            limit,
        }
    }

    fn count(&mut self, now: Instant) -> Result<(), CloseReason> {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            (self.since, self.count) = (now, 0);
        }
        self.count = self.count.saturating_add(1);
        if self.count > self.limit {
            return Err(CloseReason::TooManyEvents { limit: self.limit });
        }
        Ok(())
    }
}

impl Session {
    /// Runs until the connection ends, for whatever reason.
    pub(crate) async fn run(mut self) {
        let reason = tokio::select! {
            reason = read(&mut self.frames, &self.pending, &self.events, self.limits) => reason,
            reason = write(self.writer.as_ref(), &mut self.outgoing, &self.pending) => reason,
            () = self.stop.cancelled() => CloseReason::Local,
        };
        debug!(%reason, "QMP session ended");
        // Callers and receivers look for the reason when their channel closes: it must be there before.
        self.closed.send_replace(Some(reason.clone()));
        self.pending.close(reason);
    }
}

async fn read(
    frames: &mut Frames,
    pending: &Pending,
    events: &broadcast::Sender<Arc<Event>>,
    limits: Limits,
) -> CloseReason {
    let mut unasked = Unasked::new(limits.events);
    while let Some(frame) = frames.next().await {
        let line = match frame {
            Ok(Frame::Line(line)) => line,
            Ok(Frame::Long(long)) => {
                let limit = limits.line;
                let Some(id) = long.id() else {
                    return CloseReason::LineTooLong { limit };
                };
                // The caller loses its answer, and the session goes on.
                match pending.answer(id, Reply::TooLong { limit }) {
                    Ok(true) => continue,
                    Ok(false) => String::new(),
                    Err(reason) => return reason,
                }
            }
            Err(reason) => return reason,
        };
        let handled = take(&line, pending, events, limits).and_then(|asked| {
            if asked {
                Ok(())
            } else {
                unasked.count(Instant::now())
            }
        });
        if let Err(reason) = handled {
            return reason;
        }
    }
    CloseReason::Eof
}

/// Takes one line; whether somebody waited for it.
fn take(
    line: &str,
    pending: &Pending,
    events: &broadcast::Sender<Arc<Event>>,
    limits: Limits,
) -> Result<bool, CloseReason> {
    if line.is_empty() {
        return Ok(false);
    }
    match message::parse(line, limits.event)? {
        Message::Reply { id, reply } => pending.answer(id, reply),
        Message::Event(event) => {
            debug!(name = event.name, data = %event.data, "QMP event");
            // Without a receiver the event is not wanted.
            drop(events.send(Arc::new(event)));
            Ok(false)
        }
    }
}

async fn write(
    stream: &UnixStream,
    outgoing: &mut mpsc::Receiver<Outgoing>,
    pending: &Pending,
) -> CloseReason {
    while let Some(command) = outgoing.recv().await {
        // Its caller gave up before it was sent: QEMU need not execute it.
        if !pending.is_waiting(command.id) {
            continue;
        }
        if let Err(e) = send(stream, &command).await {
            return e.into();
        }
    }
    CloseReason::Local
}

/// Writes one line. Its descriptor travels with the line's first bytes: QEMU keeps it until `getfd` is executed
/// (QEMU `chardev/char-socket.c`, `tcp_chr_recv`).
async fn send(stream: &UnixStream, command: &Outgoing) -> io::Result<()> {
    let mut fd = command.fd.as_ref().map(|fd| [fd.as_raw_fd()]);
    let mut rest = command.line.as_slice();
    while !rest.is_empty() {
        let sent = stream
            .async_io(Interest::WRITABLE, || {
                let rights = fd.as_ref().map(|fd| ControlMessage::ScmRights(fd));
                let bytes = [IoSlice::new(rest)];
                sendmsg::<()>(
                    stream.as_raw_fd(),
                    &bytes,
                    rights.as_slice(),
                    MsgFlags::MSG_NOSIGNAL,
                    None,
                )
                .map_err(io::Error::from)
            })
            .await?;
        rest = &rest[sent..];
        fd = None;
    }
    Ok(())
}
