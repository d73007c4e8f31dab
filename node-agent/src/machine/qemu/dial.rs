//! The source's end of an encrypted stream.
//!
//! QEMU makes the handshake on a socket that blocks, and meanwhile everything in QEMU stops, the VM's devices and QMP too (seen with
//! QEMU 10.0 and 11.1). A target that says nothing, or that a stranger keeps busy, would stop the running VM for as long as it likes. So
//! the agent makes the connection, in the pod's own network, and gives it to QEMU as one that does not block. Then QEMU goes on, and
//! the migration can be cancelled. A handshake that does not end is broken off.

use std::{
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::AsFd as _,
    time::Duration,
};

use hybridnic_qmp::{Client, QmpError, commands::MigrationStatus};
use tokio::{net::TcpSocket, time::Instant};

use crate::{broker::Broker, machine::process::ProcessId};

/// The connection's name in QEMU.
const NAME: &str = "hn-migration";
/// How long the target may take to accept.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// Why QEMU does not send.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// That is no address.
    #[error("{0:?} is not a target")]
    Target(String),
    /// There is no socket of QEMU's network.
    #[error("cannot make a socket in the network of QEMU's process")]
    Socket(#[source] std::io::Error),
    /// The target does not accept.
    #[error("cannot connect to {to}")]
    Connect {
        /// The target.
        to: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// QEMU refused.
    #[error(transparent)]
    Qemu(#[from] QmpError),
}

/// A connection to the target, by the network of QEMU's process.
pub async fn connect(broker: &dyn Broker, process: &ProcessId, uri: &str) -> Result<TcpStream, DialError> {
    let no_target = || DialError::Target(uri.to_owned());
    let to: SocketAddr = uri
        .strip_prefix("tcp:")
        .and_then(|to| to.parse().ok())
        .ok_or_else(no_target)?;
    let socket = broker
        .socket(process, to.is_ipv6())
        .await
        .map_err(DialError::Socket)?;
    let socket = TcpSocket::from_std_stream(socket.into());
    let fail = |source| DialError::Connect { to, source };
    let connected = tokio::time::timeout(CONNECT, socket.connect(to)).await;
    let late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
    let stream = connected.map_err(late).flatten().map_err(fail)?;
    stream.into_std().map_err(fail)
}

/// Gives QEMU this connection, to send the VM by.
pub async fn give(client: &Client, stream: TcpStream) -> Result<Handshake, DialError> {
    client.getfd(NAME, stream.as_fd()).await?;
    // QEMU has made it one on which it waits (`qio_channel_socket_copy_fds` in io/channel-socket.c); it is ours as well.
    stream.set_nonblocking(true).map_err(DialError::Socket)?;
    Ok(Handshake {
        stream,
        ends: Instant::now() + HANDSHAKE,
    })
}

/// Lets QEMU send the VM by the connection that it was given. Only a refusal proves that it does not.
pub async fn send(client: &Client) -> Result<(), QmpError> {
    let sent = client.migrate(&format!("fd:{NAME}")).await;
    if sent.is_err() {
        // It is there only if it was not used.
        let _ = client.closefd(NAME).await;
    }
    sent
}

/// A connection that QEMU sends through, while it may not know its peer yet. After a cancel QEMU would still go on with
/// the handshake, and accept no other migration until that ends.
///
/// Only QEMU's reports tell about it: a QMP session that was lost says nothing, and breaking a good stream might break it
/// while the VM moves.
#[derive(Debug)]
pub struct Handshake {
    stream: TcpStream,
    ends: Instant,
}

impl Handshake {
    /// Breaks it off if it is in the way, from what QEMU now says about the migration; returns it as long as it has not ended.
    pub fn judge(self, status: &MigrationStatus) -> Option<Self> {
        use MigrationStatus::{Cancelled, Cancelling, Failed, None as Idle, Setup};
        match status {
            Idle | Setup if !self.left().is_zero() => return Some(self),
            Idle | Setup | Cancelling | Cancelled | Failed => {
                // QEMU says what follows.
                let _ = self.stream.shutdown(Shutdown::Both);
            }
            _ => {}
        }
        None
    }

    /// How long it may still take.
    pub fn left(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read as _},
        net::TcpListener,
    };

    use super::*;

    /// A handshake, QEMU's own descriptor of the connection, and the other end.
    fn begun() -> (Handshake, TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        peer.set_nonblocking(true).unwrap();
        let qemus = stream.try_clone().unwrap();
        let ends = Instant::now() + HANDSHAKE;
        (Handshake { stream, ends }, qemus, peer)
    }

    fn is_broken(mut peer: &TcpStream) -> bool {
        match peer.read(&mut [0]) {
            Ok(0) => true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_ends_by_itself_or_is_broken_off_in_time() {
        let (handshake, _qemus, peer) = begun();
        tokio::time::advance(HANDSHAKE / 2).await;
        let handshake = handshake.judge(&MigrationStatus::Setup).unwrap();
        assert_eq!(handshake.left(), HANDSHAKE / 2);
        assert!(!is_broken(&peer));
        tokio::time::advance(HANDSHAKE / 2).await;
        assert!(handshake.judge(&MigrationStatus::Setup).is_none());
        assert!(is_broken(&peer));
    }

    #[tokio::test]
    async fn one_that_was_called_off_is_broken_off_and_one_that_is_over_is_let_be() {
        for (status, broken) in [
            (MigrationStatus::Cancelling, true),
            (MigrationStatus::Failed, true),
            (MigrationStatus::Active, false),
            (MigrationStatus::Device, false),
            (MigrationStatus::Completed, false),
        ] {
            let (handshake, _qemus, peer) = begun();
            assert!(handshake.judge(&status).is_none());
            assert_eq!(is_broken(&peer), broken, "{status}");
        }
    }
}
