//! The plugin's end of the agent's socket.

use std::{
    fmt, io,
    io::{IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recvmsg, sendmsg,
        socket,
    },
};

use crate::wire::{Answer, LIMIT, Question};

/// Why there is no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// No process listens: there is no agent, or it is being started.
    Nobody(Errno),
    /// Somebody does, and did not answer.
    Lost(String),
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody(errno) => write!(
                f,
                "hybridnic's agent does not run on this node, or is being started: {}",
                errno.desc()
            ),
            Self::Lost(what) => write!(f, "hybridnic's agent has not answered: {what}"),
        }
    }
}

fn lost(error: impl fmt::Display) -> NoAnswer {
    NoAnswer::Lost(error.to_string())
}

/// Asks the agent, and waits for its answer up to a deadline.
pub fn ask(
    path: &Path,
    question: &Question,
    netns: Option<BorrowedFd<'_>>,
    patience: Duration,
) -> Result<Answer, NoAnswer> {
    let until = Instant::now() + patience;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(lost)?;
    loop {
        match connect(socket.as_raw_fd(), &UnixAddr::new(path).map_err(lost)?) {
            Ok(()) => break,
            // All places for callers that wait are taken.
            Err(Errno::EAGAIN) if Instant::now() < until => std::thread::sleep(Duration::from_millis(50)),
            Err(errno @ (Errno::ENOENT | Errno::ECONNREFUSED)) => return Err(NoAnswer::Nobody(errno)),
            Err(errno) => return Err(lost(errno)),
        }
    }
    let text = serde_json::to_vec(question).map_err(lost)?;
    let fds: Vec<RawFd> = netns.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    let parts = [IoSlice::new(&text)];
    sendmsg::<()>(socket.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None).map_err(lost)?;
    let answer = receive(&socket, until).map_err(lost)?;
    serde_json::from_slice(&answer).map_err(|e| lost(format!("its answer cannot be read: {e}")))
}

fn receive(socket: &OwnedFd, until: Instant) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; LIMIT];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it takes too long"));
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(Errno::EINTR) => continue,
            other => other?,
        };
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, None, MsgFlags::empty());
        match received.map(|message| message.bytes) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // It ends, or is started again.
            Ok(0) | Err(Errno::ECONNRESET) => {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has ended"));
            }
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}
