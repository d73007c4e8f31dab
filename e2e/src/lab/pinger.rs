//! The traffic meter: numbered packets both ways between the peer and a guest, and which of them arrived.
//!
//! Beside IPv4 it watches IPv6, for which the peer has to ask for the guest's MAC again and again, and a group that the
//! guest has joined. Both need multicast on whatever device carries the guest's traffic.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use super::Lab;
use super::net;
use super::traffic::{Clock, Report, answers_lost, from_guest, round_trip, stood};
use super::wire::{ECHO_PORT, Probe};

/// Packets sent as late as this before the end may still be on their way: they are not counted.
const GRACE: Duration = Duration::from_millis(300);

/// An answer that takes longer does not count: while a guest stands still the kernel keeps some hundred packets for it, and it answers
/// those when it goes on.
const LATE: Duration = Duration::from_secs(5);

/// Questions a second by IPv6, and to the group.
const BESIDE: u32 = 20;
/// How often the peer forgets the guest's MAC.
const FORGET: Duration = Duration::from_millis(500);

/// The meter could not be set up.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("open a socket at the peer")]
    Net(#[from] net::Error),
    #[error("send to the guest")]
    Socket(#[source] io::Error),
}

/// A meter at work: the peer asks, the guest answers each question and sends a stream of its own.
#[derive(Debug)]
pub struct Pinger {
    meter: Meter,
    ipv6: Meter,
    multicast: Meter,
    forgetting: JoinHandle<()>,
}

/// Questions to one address.
#[derive(Debug)]
struct Meter {
    record: Arc<Mutex<Record>>,
    tasks: [JoinHandle<()>; 2],
    period: Duration,
}

#[derive(Debug, Default)]
struct Record {
    /// By number: when it was asked, and when the answer came.
    asked: Vec<(Instant, Option<Instant>)>,
    /// Of the answers: number of the question, and how many questions the guest had seen.
    seen: Vec<(u64, u64)>,
    /// The guest's stream: number and when it came.
    stream: Vec<(u64, Instant)>,
}

impl Lab {
    /// Starts to measure: `rate` packets a second each way between the peer and the guest at this address.
    pub fn pinger(&self, guest: Ipv4Addr, rate: u32) -> Result<Pinger, Error> {
        let [a, b, c, _] = guest.octets();
        let peer = Ipv4Addr::new(a, b, c, 1);
        let (guest6, peer6) = (net::ipv6(guest), net::ipv6(peer));
        Ok(Pinger {
            meter: self.meter(peer.into(), guest.into(), rate, rate)?,
            ipv6: self.meter(peer6.into(), guest6.into(), BESIDE, 0)?,
            multicast: self.meter(peer.into(), net::group(guest).into(), BESIDE, 0)?,
            forgetting: tokio::spawn(self.net().forget(guest6, FORGET)),
        })
    }

    /// Asks `rate` times a second, and for a stream of `back` packets a second.
    fn meter(&self, from: IpAddr, to: IpAddr, rate: u32, back: u32) -> Result<Meter, Error> {
        let socket = self.net().udp(from)?;
        socket.set_nonblocking(true).map_err(Error::Socket)?;
        let socket = Arc::new(UdpSocket::from_std(socket).map_err(Error::Socket)?);
        let record = Arc::<Mutex<Record>>::default();
        let period = Duration::from_secs(1) / rate.max(1);
        let to = SocketAddr::from((to, ECHO_PORT));
        let asking = tokio::spawn(ask(Arc::clone(&socket), to, back, period, Arc::clone(&record)));
        let listening = tokio::spawn(listen(socket, Arc::clone(&record)));
        Ok(Meter {
            record,
            tasks: [asking, listening],
            period,
        })
    }
}

async fn ask(
    socket: Arc<UdpSocket>,
    to: SocketAddr,
    rate: u32,
    period: Duration,
    record: Arc<Mutex<Record>>,
) {
    let mut ticks = interval(period);
    // A harness that was held up must not make up for it by a burst.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seq = 0;
    loop {
        ticks.tick().await;
        locked(&record).asked.push((Instant::now(), None));
        // No route and no neighbour are losses like others.
        let _ = socket.send_to(&Probe::Ask { seq, rate }.encode(), to).await;
        seq += 1;
    }
}

async fn listen(socket: Arc<UdpSocket>, record: Arc<Mutex<Record>>) {
    let mut buffer = [0; 2048];
    loop {
        // Errors are ICMP's answers to packets lost.
        let Ok((n, _)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let now = Instant::now();
        let mut record = locked(&record);
        match Probe::decode(&buffer[..n]) {
            Some(Probe::Answer { seq, seen }) => {
                let slot = usize::try_from(seq).ok().and_then(|at| record.asked.get_mut(at));
                if let Some((at, answer @ None)) = slot
                    && now < *at + LATE
                {
                    *answer = Some(now);
                    record.seen.push((seq, seen));
                }
            }
            Some(Probe::Stream { seq }) => record.stream.push((seq, now)),
            Some(Probe::Ask { .. }) | None => {}
        }
    }
}

fn locked(record: &Mutex<Record>) -> std::sync::MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Meter {
    /// The questions asked so far, without those that may still be on their way.
    fn asked(&self, clock: &Clock) -> Vec<(Instant, Option<Instant>)> {
        let end = clock.instant.checked_sub(GRACE).unwrap_or(clock.instant);
        let record = locked(&self.record);
        record
            .asked
            .iter()
            .copied()
            .take_while(|(at, _)| *at < end)
            .collect()
    }

    /// See [`Pinger::answered`].
    async fn answered(&self, count: usize, deadline: Duration) -> bool {
        let start = Instant::now();
        let mut ticks = interval(self.period);
        while start.elapsed() < deadline {
            ticks.tick().await;
            let record = locked(&self.record);
            let since = record.asked.iter().rev().take_while(|(at, _)| *at >= start);
            if since.filter(|(_, answer)| answer.is_some()).count() >= count {
                return true;
            }
        }
        false
    }
}

impl Pinger {
    /// What it has seen so far, and it goes on.
    pub fn report(&self) -> Report {
        let clock = Clock::new();
        let stream = |meter: &Meter| round_trip(&meter.asked(&clock), &clock);
        let round_trip = stream(&self.meter);
        let record = locked(&self.meter.record);
        let answers_lost = answers_lost(&record.seen).min(round_trip.lost());
        Report {
            round_trip,
            from_guest: from_guest(&record.stream, self.meter.period, &clock),
            stood: stood(&record.stream, self.meter.period, &clock),
            answers_lost,
            ipv6: stream(&self.ipv6),
            multicast: stream(&self.multicast),
        }
    }

    /// Waits for the packets on their way, then ends and reports.
    pub async fn stop(self) -> Report {
        tokio::time::sleep(GRACE).await;
        self.report()
    }

    /// Waits until `count` questions asked from now on are answered; says whether they were.
    pub async fn answered(&self, count: usize, deadline: Duration) -> bool {
        self.meter.answered(count, deadline).await
    }

    /// The same of IPv6 and the group.
    pub async fn answered_beside(&self, count: usize, deadline: Duration) -> bool {
        let (ipv6, multicast) = tokio::join!(
            self.ipv6.answered(count, deadline),
            self.multicast.answered(count, deadline)
        );
        ipv6 && multicast
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.forgetting.abort();
    }
}
