//! What a traffic meter has seen, as figures: what was lost, for how long at once, and when the guest itself stood still.

use std::time::{Duration, Instant, SystemTime};

/// From what time on a pause in the guest's stream is one of the guest, and not what a busy machine does to each packet.
const PAUSE: Duration = Duration::from_millis(100);

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
    /// When the guest itself stood still, oldest first: it sent nothing. QEMU stops it in a migration, and a busy machine lets it wait.
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

/// Pauses of the guest itself, without the time that it took to send the packets that were lost meanwhile. No more may come after one than the
/// guest sends in that time: otherwise it has sent on, and they waited on their way.
pub(super) fn stood(stream: &[(u64, Instant)], period: Duration, clock: &Clock) -> Vec<Gap> {
    let mut pauses = Vec::new();
    for (at, pair) in stream.windows(2).enumerate() {
        let [(before, left), (after, came)] = pair else {
            continue;
        };
        let Some(sent) = after.checked_sub(*before) else {
            continue;
        };
        let ran = period.saturating_mul(u32::try_from(sent).unwrap_or(u32::MAX));
        let length = came.saturating_duration_since(*left).saturating_sub(ran);
        let with_it = stream
            .iter()
            .skip(at + 1)
            .take_while(|(_, one)| *one < *came + PAUSE);
        // One may wait to be sent, and one comes with a timer's slack.
        let sent_in_that = PAUSE.as_nanos() / period.as_nanos().max(1) + 2;
        if length > PAUSE && with_it.count() as u128 <= sent_in_that {
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
        let waited = stream((20..220).map(|n| (n, at(2190))).collect());
        assert!(pauses(&waited).is_empty());
        assert!(pauses(&stream(regular(220, 2190).collect())).is_empty());
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
