//! The guest's end of the traffic meter.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hybridnic_e2e::lab::wire::Probe;
use nix::sys::socket::{setsockopt, sockopt};

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
}

pub(crate) fn main(address: &str) -> io::Result<()> {
    let socket = Arc::new(UdpSocket::bind(address)?);
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    let peers: Arc<Mutex<Vec<Peer>>> = Arc::default();
    let seen = AtomicU64::new(0);
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
        let seen = seen.fetch_add(1, Ordering::Relaxed) + 1;
        // Lost answers are what the peer measures, also those that this host could not send.
        let _ = socket.send_to(&Probe::Answer { seq, seen }.encode(), from);
        note(
            &mut peers.lock().unwrap_or_else(PoisonError::into_inner),
            from,
            rate,
        );
    }
}

fn note(peers: &mut Vec<Peer>, address: SocketAddr, rate: u32) {
    let asked = Instant::now();
    match peers.iter_mut().find(|p| p.address == address) {
        Some(peer) => (peer.rate, peer.asked) = (rate, asked),
        None => peers.push(Peer {
            address,
            rate,
            asked,
            next: 0,
        }),
    }
}

/// Sends each peer its stream. One thread and one rate, the highest asked for, do for a lab.
fn stream(socket: &UdpSocket, peers: &Mutex<Vec<Peer>>) {
    loop {
        let rate = {
            let mut peers = peers.lock().unwrap_or_else(PoisonError::into_inner);
            peers.retain(|p| p.asked.elapsed() < PEER_GONE);
            for peer in peers.iter_mut().filter(|p| p.rate > 0) {
                let _ = socket.send_to(&Probe::Stream { seq: peer.next }.encode(), peer.address);
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
