//! The source's end of an encrypted stream.
//!
//! QEMU makes the handshake with a socket on which it waits, and waits with all of itself, the VM's devices and QMP (seen of QEMU
//! 10.0 and 11.1). A target that says nothing, or that somebody keeps busy, would hold the running VM up for as long as it likes. So
//! the agent makes the connection, in the pod's own network, and gives it to QEMU as one on which nobody waits; it goes on then, and
//! the migration can be cancelled. A handshake that does not end is broken off.

use std::{
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::AsFd as _,
    time::Duration,
};

use hybridnic_qmp::{Client, EventError, Events, QmpError, commands::MigrationStatus, wait_event};
use tokio::{net::TcpSocket, time::Instant};

use super::process::ProcessId;
use crate::broker::Broker;

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
    #[error("{0:?} is no target")]
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

/// Lets QEMU send the VM by this connection.
pub async fn send(client: &Client, stream: TcpStream) -> Result<(), DialError> {
    client.getfd(NAME, stream.as_fd()).await?;
    // QEMU has made it one on which it waits (`qio_channel_socket_copy_fds` in io/channel-socket.c); it is ours as well.
    stream.set_nonblocking(true).map_err(DialError::Socket)?;
    let events = client.subscribe();
    if let Err(error) = client.migrate(&format!("fd:{NAME}")).await {
        // It is there only if it was not used.
        let _ = client.closefd(NAME).await;
        return Err(error.into());
    }
    tokio::spawn(until_it_is_known(events, stream));
    Ok(())
}

/// Holds the connection until QEMU knows its peer. Nobody can wait for more: also after a cancel QEMU would go on with the handshake,
/// and take no other migration until it ends.
async fn until_it_is_known(mut events: Events, stream: TcpStream) {
    let known = wait_event(&mut events, Instant::now() + HANDSHAKE, |event| {
        !matches!(event.migration_status(), None | Some(MigrationStatus::Setup))
    });
    let broken = match known.await.map(|event| event.migration_status()) {
        Ok(status) => matches!(
            status,
            Some(MigrationStatus::Cancelling | MigrationStatus::Cancelled | MigrationStatus::Failed)
        ),
        Err(EventError::Closed(_)) => false,
        Err(_) => true,
    };
    if broken {
        // QEMU says what follows.
        let _ = stream.shutdown(Shutdown::Both);
    }
}
