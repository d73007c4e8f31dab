//! Whether a PF has been without link for so long that a NIC may leave it. Pure.
//!
//! A move costs a guest some seconds, and the outer switch has to learn a new port for the MAC. So a link that comes and goes must not
//! drive a NIC back and forth: it leaves a PF after a while without link, does not return before the link has been up for a while, and
//! leaves at most once a minute.

use std::time::Duration;

use hybridnic_net::PciAddress;
use tokio::time::Instant;

/// How long a link that was there must be missing.
const LOST: Duration = Duration::from_secs(3);
/// How long a port that was just brought up may take to find its link.
const NEVER_THERE: Duration = Duration::from_secs(10);
/// How long a link that has come back must stay.
const BACK: Duration = Duration::from_secs(10);
/// The least time between two moves of one NIC.
const BETWEEN_MOVES: Duration = Duration::from_mins(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It has no link, and has had none since the NIC came.
    Never(Instant),
    Up,
    Lost(Instant),
    Dark,
    Back(Instant),
}

/// The link of the PF that a NIC's VF is on.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkLoss {
    pf: Option<(PciAddress, Phase)>,
    left: Option<Instant>,
}

impl LinkLoss {
    /// Notes whether a PF has a link; says whether the NIC may leave it, or not come back yet.
    pub fn is_lost(&mut self, pf: PciAddress, link: bool, now: Instant) -> bool {
        let before = match self.pf {
            Some((same, phase)) if same == pf => phase,
            _ => Phase::Never(now),
        };
        let phase = match (before, link) {
            (Phase::Dark, true) => Phase::Back(now),
            (Phase::Back(since), true) if now < since + BACK => before,
            (_, true) => Phase::Up,
            (Phase::Dark | Phase::Back(_), false) => Phase::Dark,
            (Phase::Up, false) => Phase::Lost(now),
            (Phase::Never(_) | Phase::Lost(_), false) if self.ends(before).is_some_and(|end| now >= end) => {
                Phase::Dark
            }
            (Phase::Never(_) | Phase::Lost(_), false) => before,
        };
        self.pf = Some((pf, phase));
        matches!(phase, Phase::Dark | Phase::Back(_))
    }

    /// When a phase ends if the link stays as it is.
    fn ends(&self, phase: Phase) -> Option<Instant> {
        let (since, least) = match phase {
            Phase::Never(since) => (since, NEVER_THERE),
            Phase::Lost(since) => (since, LOST),
            Phase::Back(since) => return Some(since + BACK),
            Phase::Up | Phase::Dark => return None,
        };
        let end = since + least;
        Some(self.left.map_or(end, |left| end.max(left + BETWEEN_MOVES)))
    }

    /// When to look again although nothing tells to.
    pub fn next_look(&self) -> Option<Instant> {
        self.ends(self.pf?.1)
    }

    /// Notes that the NIC leaves the PF because of its link.
    pub fn leaves(&mut self, now: Instant) {
        self.left = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pf(n: u8) -> PciAddress {
        hybridnic_net::testing::pf_address(n)
    }

    /// Looks each second; gives the seconds in which the PF counts as dark.
    fn dark(loss: &mut LinkLoss, from: Instant, links: &[(u64, bool)]) -> Vec<u64> {
        let mut dark = Vec::new();
        let mut second = 0;
        for (lasts, link) in links {
            for _ in 0..*lasts {
                if loss.is_lost(pf(0), *link, from + Duration::from_secs(second)) {
                    dark.push(second);
                }
                second += 1;
            }
        }
        dark
    }

    #[test]
    fn a_link_is_lost_after_a_while_and_back_after_a_while() {
        let now = Instant::now();
        let seen = dark(
            &mut LinkLoss::default(),
            now,
            &[(5, true), (6, false), (20, true)],
        );
        assert_eq!(seen, (8..21).collect::<Vec<_>>());
    }

    #[test]
    fn a_link_that_flaps_moves_nothing_and_one_that_comes_back_briefly_leads_nobody_back() {
        let now = Instant::now();
        let flaps = [(1, true), (2, false)].repeat(10);
        assert!(dark(&mut LinkLoss::default(), now, &flaps).is_empty());
        let brief = [(1, true), (4, false), (5, true), (1, false), (5, true)];
        assert_eq!(
            dark(&mut LinkLoss::default(), now, &brief),
            (4..16).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_port_that_was_just_brought_up_has_more_time() {
        let seen = dark(&mut LinkLoss::default(), Instant::now(), &[(12, false)]);
        assert_eq!(seen, [10, 11]);
    }

    #[test]
    fn another_pf_starts_anew_and_is_not_left_within_a_minute() {
        let (now, mut loss) = (Instant::now(), LinkLoss::default());
        let at = |s| now + Duration::from_secs(s);
        assert!(!loss.is_lost(pf(0), true, at(0)));
        assert!(!loss.is_lost(pf(0), false, at(1)));
        assert_eq!(loss.next_look(), Some(at(4)));
        assert!(loss.is_lost(pf(0), false, at(4)));
        assert_eq!(loss.next_look(), None);
        loss.leaves(at(4));
        assert!(!loss.is_lost(pf(1), true, at(5)));
        assert!(!loss.is_lost(pf(1), false, at(6)));
        assert_eq!(loss.next_look(), Some(at(64)));
        assert!(!loss.is_lost(pf(1), false, at(63)));
        assert!(loss.is_lost(pf(1), false, at(64)));
    }
}
