//! The traffic meter: numbered packets both ways between the peer and a guest, and which of them arrived.
//!
//! Beside IPv4 it watches IPv6, for which the peer has to ask for the guest's MAC again and again, and a group that the
//! guest has joined. Both need multicast on whatever device carries the guest's traffic.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use super::Lab;
use super::net;
use super::wire::{ECHO_PORT, Probe};

/// Packets sent as late as this before the end may still be on their way: they are not counted.
const GRACE: Duration = Duration::from_millis(300);

/// An answer that takes longer does not count: while a guest stands still the kernel keeps some hundred packets for it, and it answers
/// those when it goes on.
const LATE: Duration = Duration::from_secs(5);

/// Questions a second by IPv6, and to the group.
const BESIDE: u32 = 20;
/// From what time on a pause in the guest's stream is one of the guest, and not what a busy machine does to each packet.
const PAUSE: Duration = Duration::from_millis(100);
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

/// What became of one direction's packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Packets sent.
    pub sent: u64,
    /// Packets that arrived, or whose answer did in time.
    pub received: u64,
    /// Where packets are missing in a row, oldest first.
    pub gaps: Vec<Gap>,
}

/// A row of packets that did not arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// When the first of them was sent; for the guest's stream, when the last one before them arrived.
    pub from: SystemTime,
    /// How long until packets arrived again.
    pub length: Duration,
    /// Packets lost; 0 for a pause in the guest's stream in which it sent nothing.
    pub lost: u64,
}

impl Gap {
    /// The time that is in both.
    fn shared_with(&self, other: &Self) -> Duration {
        let end = (self.from + self.length).min(other.from + other.length);
        let from = self.from.max(other.from);
        end.duration_since(from).unwrap_or_default()
    }
}

impl Stream {
    /// Packets lost.
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }

    /// The longest gap.
    pub fn longest(&self) -> Duration {
        self.gaps.iter().map(|gap| gap.length).max().unwrap_or_default()
    }

    /// Packets lost in gaps that begin in this time.
    pub fn lost_between(&self, from: SystemTime, to: SystemTime) -> u64 {
        self.gaps
            .iter()
            .filter(|gap| (from..to).contains(&gap.from))
            .map(|gap| gap.lost)
            .sum()
    }
}

/// What the meter saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Questions of the peer that were answered: there and back.
    pub round_trip: Stream,
    /// The guest's own stream, from the first packet that arrived to the last.
    pub from_guest: Stream,
    /// When the guest itself stood still, oldest first: it sent nothing, and lost nothing. QEMU stops it in a migration, and a busy machine
    /// lets it wait.
    pub stood: Vec<Gap>,
    /// Of the questions lost, those the guest has seen: the answer got lost. Right while one guest answers.
    pub answers_lost: u64,
    /// Questions of the peer by IPv6.
    pub ipv6: Stream,
    /// Questions of the peer to the guest's group.
    pub multicast: Stream,
}

impl Report {
    /// For how long at most the guest was without its network while it ran: of each gap, what is left without the time in which the guest
    /// itself stood still.
    pub fn longest_of_network(&self) -> Duration {
        let gaps = self.round_trip.gaps.iter();
        gaps.map(|gap| gap.length.saturating_sub(self.stood_in(gap)))
            .max()
            .unwrap_or_default()
    }

    /// For how long of a gap the guest stood still.
    pub fn stood_in(&self, gap: &Gap) -> Duration {
        self.stood.iter().map(|pause| gap.shared_with(pause)).sum()
    }

    /// Says what is wrong, if IPv6 or the group was without traffic for longer than IPv4 and this.
    pub fn beside(&self, slack: Duration) -> Result<(), String> {
        let most = self.round_trip.longest() + slack;
        for (name, stream) in [("IPv6", &self.ipv6), ("multicast", &self.multicast)] {
            if stream.received == 0 || stream.longest() > most {
                return Err(format!(
                    "{name}: {} of {} answered, gaps {:#?}; IPv4's {:#?}",
                    stream.received, stream.sent, stream.gaps, self.round_trip.gaps
                ));
            }
        }
        Ok(())
    }
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

/// Two clocks read at the same time: the monotonic one measures, the other names.
struct Clock {
    instant: Instant,
    wall: SystemTime,
}

impl Clock {
    fn new() -> Self {
        Self {
            instant: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    fn wall(&self, at: Instant) -> SystemTime {
        self.wall
            .checked_sub(self.instant.saturating_duration_since(at))
            .unwrap_or(self.wall)
    }
}

fn round_trip(asked: &[(Instant, Option<Instant>)], clock: &Clock) -> Stream {
    let mut gaps: Vec<Gap> = Vec::new();
    let mut open: Option<(Instant, u64)> = None;
    for (at, answer) in asked {
        match (answer, &mut open) {
            (None, Some((_, lost))) => *lost += 1,
            (None, None) => open = Some((*at, 1)),
            (Some(_), _) => gaps.extend(open.take().map(|gap| close(gap, *at, clock))),
        }
    }
    if let Some((last, _)) = asked.last() {
        gaps.extend(open.take().map(|gap| close(gap, *last, clock)));
    }
    let received = asked.iter().filter(|(_, answer)| answer.is_some()).count() as u64;
    Stream {
        sent: asked.len() as u64,
        received,
        gaps,
    }
}

fn close((from, lost): (Instant, u64), until: Instant, clock: &Clock) -> Gap {
    Gap {
        from: clock.wall(from),
        length: until.saturating_duration_since(from),
        lost,
    }
}

fn from_guest(stream: &[(u64, Instant)], period: Duration, clock: &Clock) -> Stream {
    // Packets on two paths may overtake each other around a switch.
    let mut by_number = stream.to_vec();
    by_number.sort_unstable_by_key(|(seq, _)| *seq);
    by_number.dedup_by_key(|(seq, _)| *seq);
    let mut gaps = Vec::new();
    for pair in by_number.windows(2) {
        let [(before, left), (after, arrived)] = pair else {
            continue;
        };
        let lost = after - before - 1;
        let length = arrived.saturating_duration_since(*left);
        if lost > 0 || length > period * 5 {
            gaps.push(Gap {
                from: clock.wall(*left),
                length,
                lost,
            });
        }
    }
    let sent = match (by_number.first(), by_number.last()) {
        (Some((first, _)), Some((last, _))) => last - first + 1,
        _ => 0,
    };
    Stream {
        sent,
        received: by_number.len() as u64,
        gaps,
    }
}

/// Pauses of the guest itself: the packet after one is the next by number, and no more come with it than the guest sends in that time.
/// Otherwise the guest has sent on, and they waited on their way.
fn stood(stream: &[(u64, Instant)], period: Duration, clock: &Clock) -> Vec<Gap> {
    let mut pauses = Vec::new();
    for (at, pair) in stream.windows(2).enumerate() {
        let [(before, left), (after, came)] = pair else {
            continue;
        };
        let length = came.saturating_duration_since(*left);
        let with_it = stream
            .iter()
            .skip(at + 1)
            .take_while(|(_, one)| *one < *came + PAUSE);
        // One may wait to be sent, and one comes with a timer's slack.
        let sent_in_that = PAUSE.as_nanos() / period.as_nanos().max(1) + 2;
        if length > PAUSE && after.checked_sub(*before) == Some(1) && with_it.count() as u128 <= sent_in_that
        {
            pauses.push(Gap {
                from: clock.wall(*left),
                length,
                lost: 0,
            });
        }
    }
    pauses
}

/// The guest counts what it sees: between two answers, what it counted beyond the answers themselves was answered in
/// vain.
fn answers_lost(seen: &[(u64, u64)]) -> u64 {
    let (Some((_, first)), Some((_, last))) = (seen.first(), seen.last()) else {
        return 0;
    };
    (last.saturating_sub(*first) + 1).saturating_sub(seen.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_row_of_unanswered_questions_is_one_gap() {
        let clock = Clock::new();
        let at = |n: u32| clock.instant + MS * 10 * n;
        let asked: Vec<_> = (0..10)
            .map(|n| (at(n), (!(3..6).contains(&n)).then(|| at(n) + MS)))
            .collect();
        let stream = round_trip(&asked, &clock);
        assert_eq!((stream.sent, stream.received, stream.lost()), (10, 7, 3));
        assert_eq!(stream.gaps.len(), 1);
        assert_eq!((stream.gaps[0].lost, stream.gaps[0].length), (3, MS * 30));
    }

    #[test]
    fn a_paused_guest_leaves_a_gap_without_loss() {
        let clock = Clock::new();
        let at = |n: u32| clock.instant + MS * n;
        let stream = from_guest(
            &[(5, at(0)), (6, at(10)), (7, at(400)), (9, at(420))],
            MS * 10,
            &clock,
        );
        assert_eq!((stream.sent, stream.received), (5, 4));
        assert_eq!(stream.gaps.iter().map(|g| g.lost).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(stream.longest(), MS * 390);
    }

    #[test]
    fn a_guest_that_stood_still_is_told_from_packets_that_waited_and_from_those_that_were_lost() {
        let clock = Clock::new();
        let at = |ms: u32| clock.instant + MS * ms;
        let period = MS * 10;
        let regular = |first: u64, from: u32| {
            (0..20).map(move |n| (first + n, at(from + 10 * u32::try_from(n).unwrap())))
        };
        let stream = |after: Vec<(u64, Instant)>| regular(0, 0).chain(after).collect::<Vec<_>>();
        // Number 19 came at 190.
        let stood_still = stood(&stream(regular(20, 2190).collect()), period, &clock);
        assert_eq!(
            stood_still.iter().map(|p| p.length).collect::<Vec<_>>(),
            [MS * 2000]
        );
        let waited = stream((20..220).map(|n| (n, at(2190))).collect());
        assert_eq!(stood(&waited, period, &clock), []);
        assert_eq!(stood(&stream(regular(220, 2190).collect()), period, &clock), []);
    }

    #[test]
    fn what_is_left_of_a_gap_is_the_networks() {
        let from = SystemTime::now();
        let gap = |after: u32, length: u32, lost| Gap {
            from: from + MS * after,
            length: MS * length,
            lost,
        };
        let stream = |gaps| Stream {
            sent: 0,
            received: 0,
            gaps,
        };
        let report = Report {
            round_trip: stream(vec![gap(0, 100, 10), gap(1000, 5000, 500)]),
            from_guest: stream(Vec::new()),
            stood: vec![gap(900, 600, 0), gap(2000, 4500, 0)],
            answers_lost: 0,
            ipv6: stream(Vec::new()),
            multicast: stream(Vec::new()),
        };
        assert_eq!(report.longest_of_network(), MS * 500);
    }

    #[test]
    fn an_answer_lost_is_told_from_a_question_lost() {
        // The guest saw 1 to 6; the answers to two of them are missing.
        assert_eq!(answers_lost(&[(0, 1), (1, 2), (4, 5), (5, 6)]), 2);
        // It saw four, all answers came: what is missing never reached it.
        assert_eq!(answers_lost(&[(0, 1), (1, 2), (4, 3), (5, 4)]), 0);
    }
}
