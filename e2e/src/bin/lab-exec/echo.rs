//! The guest's end of the traffic meter.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hybridnic_e2e::lab::wire::Probe;
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto, setsockopt, sockopt};

/// A peer that has not asked for this long has gone.
const PEER_GONE: Duration = Duration::from_mins(1);

/// In octets. The kernel's default holds some 40 packets of an emulated card: a guest that its node does not run for a
/// second would lose packets that the network has brought.
const BUFFER: usize = 1 << 20;

struct Peer {
    address: SocketAddr,
    rate: u32,
    asked: Instant,
    next: u64,
    seen: u64,
}

pub(crate) fn main(address: &str) -> io::Result<()> {
    let socket = Arc::new(UdpSocket::bind(address)?);
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    let peers: Arc<Mutex<Vec<Peer>>> = Arc::default();
    {
        let (socket, peers) = (Arc::clone(&socket), Arc::clone(&peers));
        thread::spawn(move || stream(&socket, &peers));
    }
    let mut buffer = [0; 2048];
    loop {
        let Ok((n, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let Some(Probe::Ask { seq, rate }) = Probe::decode(&buffer[..n]) else {
            continue;
        };
        let seen = note(
            &mut peers.lock().unwrap_or_else(PoisonError::into_inner),
            from,
            rate,
        );
        // Lost answers are what the peer measures, also those that this host could not send.
        say(&socket, Probe::Answer { seq, seen }, from);
    }
}

/// Is in a multicast group, on the interface that has this address, as long as it runs.
pub(crate) fn join(group: &str, address: &str) -> io::Result<()> {
    let parse = |text: &str| text.parse::<Ipv4Addr>().map_err(io::Error::other);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.join_multicast_v4(&parse(group)?, &parse(address)?)?;
    loop {
        thread::park();
    }
}

/// Notes that a peer has asked; how often it has.
fn note(peers: &mut Vec<Peer>, address: SocketAddr, rate: u32) -> u64 {
    let asked = Instant::now();
    if let Some(peer) = peers.iter_mut().find(|p| p.address == address) {
        (peer.rate, peer.asked) = (rate, asked);
        peer.seen += 1;
        return peer.seen;
    }
    peers.push(Peer {
        address,
        rate,
        asked,
        next: 0,
        seen: 1,
    });
    1
}

/// Sends a probe, and does not wait where the device takes none: a guest whose network is stuck goes on, and what it could not send is lost.
fn say(socket: &UdpSocket, probe: Probe, to: SocketAddr) {
    let _ = sendto(
        socket.as_raw_fd(),
        &probe.encode(),
        &SockaddrStorage::from(to),
        MsgFlags::MSG_DONTWAIT,
    );
}

/// Sends each peer its stream. One thread and one rate, the highest asked for, are enough for a lab.
fn stream(socket: &UdpSocket, peers: &Mutex<Vec<Peer>>) {
    loop {
        let rate = {
            let mut peers = peers.lock().unwrap_or_else(PoisonError::into_inner);
            peers.retain(|p| p.asked.elapsed() < PEER_GONE);
            for peer in peers.iter_mut().filter(|p| p.rate > 0) {
                say(socket, Probe::Stream { seq: peer.next }, peer.address);
                peer.next += 1;
            }
            peers.iter().map(|p| p.rate).max().unwrap_or(0)
        };
        thread::sleep(
            Duration::from_secs(1)
                .checked_div(rate)
                .unwrap_or(Duration::from_millis(100)),
        );
    }
}
