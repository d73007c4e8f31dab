//! What a traffic meter has seen, as figures: what was lost, for how long at once, and when the guest itself stood still.

use std::time::{Duration, Instant, SystemTime};

/// From what time on a pause in the guest's stream is one of the guest, and not what a busy machine does to each packet.
const PAUSE: Duration = Duration::from_millis(100);
/// For how long after a pause the stream is looked at: packets that waited on their way all come soon after it.
const AFTER: Duration = Duration::from_secs(5);
/// So many packets before a pause say how fast the guest sends.
const BEFORE: usize = 50;
/// How much later IPv6 may be back: a guest repeats a lost question for a neighbour after so long (`retrans_time_ms`).
const ASKED_AGAIN: Duration = Duration::from_secs(1);

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

/// A time in which the guest itself stood still for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// When the last packet before it arrived.
    pub from: SystemTime,
    /// When the next one did.
    pub until: SystemTime,
    /// For how long of that the guest stood still.
    pub length: Duration,
}

impl Pause {
    /// For how long of a gap it stood still, at least.
    fn within(&self, gap: &Gap) -> Duration {
        let between = |from: SystemTime, until: SystemTime| until.duration_since(from).unwrap_or_default();
        let both = between(self.from.max(gap.from), self.until.min(gap.from + gap.length));
        // It may have stood still in all of the time that is not the gap's.
        let outside = between(self.from, self.until).saturating_sub(both);
        self.length.saturating_sub(outside)
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
    /// When the guest itself stood still, oldest first: it sent nothing. QEMU stops it in a migration, and a busy machine lets it wait.
    pub stood: Vec<Pause>,
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
        self.longest_of(&self.round_trip)
    }

    fn longest_of(&self, stream: &Stream) -> Duration {
        let gaps = stream.gaps.iter();
        let networks = gaps.map(|gap| gap.length.saturating_sub(self.stood_in(gap)));
        networks.max().unwrap_or_default()
    }

    /// For how long of a gap the guest stood still.
    pub fn stood_in(&self, gap: &Gap) -> Duration {
        self.stood.iter().map(|pause| pause.within(gap)).sum()
    }

    /// Says what is wrong, if IPv6 or the group was without traffic for longer than IPv4 and this, while the guest ran; IPv6 for
    /// `ASKED_AGAIN` more.
    pub fn beside(&self, slack: Duration) -> Result<(), String> {
        let most = self.longest_of_network() + slack;
        for (name, stream, most) in [
            ("IPv6", &self.ipv6, most + ASKED_AGAIN),
            ("multicast", &self.multicast, most),
        ] {
            if stream.received == 0 || self.longest_of(stream) > most {
                return Err(format!(
                    "{name}: {} of {} answered, gaps {:#?}; IPv4's {:#?}; the guest stood still: {:#?}",
                    stream.received, stream.sent, stream.gaps, self.round_trip.gaps, self.stood
                ));
            }
        }
        Ok(())
    }
}

/// Two clocks read at the same time: the monotonic one measures, the other names.
pub(super) struct Clock {
    pub(super) instant: Instant,
    wall: SystemTime,
}

impl Clock {
    pub(super) fn new() -> Self {
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

pub(super) fn round_trip(asked: &[(Instant, Option<Instant>)], clock: &Clock) -> Stream {
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

pub(super) fn from_guest(stream: &[(u64, Instant)], period: Duration, clock: &Clock) -> Stream {
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

/// Pauses of the guest itself. By the numbers of what comes after a gap in the stream it is known how much the guest has sent meanwhile, lost or
/// late, and so for how long it has run.
pub(super) fn stood(stream: &[(u64, Instant)], period: Duration, clock: &Clock) -> Vec<Pause> {
    let mut pauses = Vec::new();
    for (at, pair) in stream.windows(2).enumerate() {
        let [(before, left), (_, came)] = pair else {
            continue;
        };
        if came.saturating_duration_since(*left) <= PAUSE {
            continue;
        }
        let period = pace(&stream[at.saturating_sub(BEFORE)..=at]).max(period);
        let after = stream[at + 1..]
            .iter()
            .take_while(|(_, one)| *one < *came + AFTER);
        // A guest that begins to count again has booted: nothing is known of it.
        let length = after.map(|(number, one)| {
            let sent = number
                .checked_sub(*before)
                .and_then(|sent| u32::try_from(sent).ok());
            let ran = period.saturating_mul(sent.unwrap_or(u32::MAX));
            one.saturating_duration_since(*left).saturating_sub(ran)
        });
        if let Some(length) = length.min().filter(|length| *length > PAUSE) {
            pauses.push(Pause {
                from: clock.wall(*left),
                until: clock.wall(*came),
                length,
            });
        }
    }
    pauses
}

/// The time between two packets of a guest that runs; nothing where too few are known.
fn pace(stream: &[(u64, Instant)]) -> Duration {
    let between = stream.windows(2).filter_map(|pair| {
        let [(before, left), (after, came)] = pair else {
            return None;
        };
        let sent = after
            .checked_sub(*before)
            .and_then(|sent| u32::try_from(sent).ok())?;
        came.saturating_duration_since(*left).checked_div(sent)
    });
    let mut between: Vec<_> = between.collect();
    between.sort_unstable();
    between.get(between.len() / 2).copied().unwrap_or_default()
}

/// The guest counts what it sees: between two answers, what it counted beyond the answers themselves was answered in
/// vain.
pub(super) fn answers_lost(seen: &[(u64, u64)]) -> u64 {
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
        let pauses = |stream: &[(u64, Instant)]| {
            let pauses = stood(stream, period, &clock);
            pauses.iter().map(|p| p.length).collect::<Vec<_>>()
        };
        assert_eq!(pauses(&stream(regular(20, 2190).collect())), [MS * 1990]);
        // It has sent ten that were lost.
        assert_eq!(pauses(&stream(regular(30, 2190).collect())), [MS * 1890]);
        // One that waited comes first, and then what it sends now.
        let held = [(20, at(2190))].into_iter().chain(regular(220, 2191));
        assert!(pauses(&stream(held.collect())).is_empty());
        let waited = stream((20..220).map(|n| (n, at(2190))).collect());
        assert!(pauses(&waited).is_empty());
        assert!(pauses(&stream(regular(220, 2190).collect())).is_empty());
    }

    #[test]
    fn what_is_left_of_a_gap_is_the_networks() {
        let from = SystemTime::now();
        let gap = |after: u32, length: u32| Gap {
            from: from + MS * after,
            length: MS * length,
            lost: 1,
        };
        let pause = |after: u32, until: u32, length: u32| Pause {
            from: from + MS * after,
            until: from + MS * until,
            length: MS * length,
        };
        let stream = |gaps| Stream {
            sent: 0,
            received: 0,
            gaps,
        };
        let report = |gap: Gap, pause: Pause| Report {
            round_trip: stream(vec![gap]),
            from_guest: stream(Vec::new()),
            stood: vec![pause],
            answers_lost: 0,
            ipv6: stream(Vec::new()),
            multicast: stream(Vec::new()),
        };
        let left = |gap, pause| report(gap, pause).longest_of_network();
        assert_eq!(left(gap(1000, 5000), pause(900, 6000, 4500)), MS * 600);
        // It may have stood still after the gap.
        assert_eq!(left(gap(0, 10_000), pause(0, 15_000, 5000)), MS * 10_000);
        assert_eq!(left(gap(0, 10_000), pause(20_000, 25_000, 5000)), MS * 10_000);
    }

    #[test]
    fn an_answer_lost_is_told_from_a_question_lost() {
        // The guest saw 1 to 6; the answers to two of them are missing.
        assert_eq!(answers_lost(&[(0, 1), (1, 2), (4, 5), (5, 6)]), 2);
        // It saw four, all answers came: what is missing never reached it.
        assert_eq!(answers_lost(&[(0, 1), (1, 2), (4, 3), (5, 4)]), 0);
    }
}
