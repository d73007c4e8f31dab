//! Packets with a descriptor, over sockets between processes of this node (`SOCK_SEQPACKET`).

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use nix::{
    cmsg_space,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};
use tokio::io::unix::AsyncFd;

/// Acts on a socket once it can be written, or read.
pub async fn ready<T>(
    socket: &AsyncFd<OwnedFd>,
    writable: bool,
    act: impl Fn(RawFd) -> io::Result<T>,
) -> io::Result<T> {
    loop {
        let mut guard = if writable {
            socket.writable().await?
        } else {
            socket.readable().await?
        };
        if let Ok(done) = guard.try_io(|socket| act(socket.get_ref().as_raw_fd())) {
            return done;
        }
    }
}

/// Sends a packet, and a descriptor with it.
pub fn send(to: RawFd, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let fds: Vec<RawFd> = fd.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<()>(to, &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// A packet of at most so many octets, and the descriptor with it. Nothing: the other end has gone.
pub fn receive(from: RawFd, limit: usize) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut bytes = vec![0_u8; limit];
    // For one: what else comes the kernel closes.
    let mut space = cmsg_space!(RawFd);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(from, &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let (length, whole) = (message.bytes, !message.flags.contains(MsgFlags::MSG_TRUNC));
    let mut passed = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel has just made it for us, and nobody else has it.
                passed = Some(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    if !whole {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the packet is too long",
        ));
    }
    bytes.truncate(length);
    Ok((bytes, passed))
}
