//! How often each peer may have something done that costs more than its request. Pure.
//!
//! Each has a pace of its own, because otherwise a peer that asks too often would keep the others out. There is room for a limited number,
//! so all others share one pace. A peer that was let in keeps its own, also when there is no room left.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::pace::Pace;

/// Peers that have a pace of their own.
const PEERS: usize = 64;
/// The same, with those that were let in.
const PEERS_WITH_WELCOME: usize = 96;
/// How long a peer that was let in is welcome.
const WELCOME: Duration = Duration::from_hours(1);

/// The paces of all peers.
pub(super) struct Peers {
    /// Of one that has not come yet.
    fresh: Pace,
    known: HashMap<IpAddr, Peer>,
    /// Of all peers for which there is no room.
    others: Pace,
}

struct Peer {
    pace: Pace,
    welcome: Option<Instant>,
}

impl Peer {
    fn stays(&self, now: Instant) -> bool {
        let welcome = self
            .welcome
            .is_some_and(|since| now.saturating_duration_since(since) < WELCOME);
        welcome || !self.pace.is_rested(now)
    }
}

impl Peers {
    /// Each `burst` times at once, and then once in `every`.
    pub(super) fn new(burst: u32, every: Duration) -> Self {
        Self {
            fresh: Pace::new(burst, every),
            known: HashMap::new(),
            others: Pace::new(burst, every),
        }
    }

    /// Whether a peer may have it done now; that is noted.
    pub(super) fn may(&mut self, peer: IpAddr, now: Instant) -> bool {
        let pace = match self.room(peer, PEERS, now) {
            Some(peer) => &mut peer.pace,
            None => &mut self.others,
        };
        let may = pace.time_left(now).is_zero();
        if may {
            pace.done(now);
        }
        may
    }

    /// A peer was let in.
    pub(super) fn welcome(&mut self, peer: IpAddr, now: Instant) {
        if let Some(peer) = self.room(peer, PEERS_WITH_WELCOME, now) {
            peer.welcome = Some(now);
        }
    }

    /// What is known of a peer, or room for it where there are fewer than `most`.
    fn room(&mut self, peer: IpAddr, most: usize, now: Instant) -> Option<&mut Peer> {
        if !self.known.contains_key(&peer) && self.known.len() >= most {
            self.known.retain(|_, peer| peer.stays(now));
        }
        if !self.known.contains_key(&peer) && self.known.len() >= most {
            return None;
        }
        let fresh = || Peer {
            pace: self.fresh.clone(),
            welcome: None,
        };
        Some(self.known.entry(peer).or_insert_with(fresh))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(1);

    fn peer(n: usize) -> IpAddr {
        [10, 0, 0, u8::try_from(n).unwrap()].into()
    }

    #[test]
    fn who_asks_too_often_keeps_nobody_else_out() {
        let mut peers = Peers::new(3, EVERY);
        let now = Instant::now();
        let greedy = (0..10).filter(|_| peers.may(peer(1), now)).count();
        assert_eq!(greedy, 3);
        assert!(peers.may(peer(2), now));
        assert!(peers.may(peer(1), now + EVERY) && !peers.may(peer(1), now + EVERY));
    }

    #[test]
    fn all_together_have_a_pace_too_and_who_was_let_in_is_not_kept_out_by_it() {
        let mut peers = Peers::new(2, EVERY);
        let now = Instant::now();
        let crowd = |peers: &mut Peers, now| {
            let each = (0..200).cycle().take(2000);
            each.filter(|n| peers.may(peer(*n), now)).count()
        };
        assert_eq!(crowd(&mut peers, now), 2 * PEERS + 2);
        assert!(!peers.may(peer(250), now), "a newcomer shares with the crowd");
        peers.welcome(peer(250), now);
        assert!(peers.may(peer(250), now));
        let later = now + EVERY;
        assert_eq!(crowd(&mut peers, later), PEERS + 1);
        assert!(peers.may(peer(250), later));
        // The crowd has gone: there is room again, and the peer that is welcome still has its own pace.
        let rested = later + 2 * EVERY;
        assert!(peers.may(peer(251), rested));
        assert_eq!(peers.known.len(), 2);
        // Peers that are let in do not fill the memory either.
        for n in 0..200 {
            peers.welcome(peer(n), rested);
        }
        assert_eq!(peers.known.len(), PEERS_WITH_WELCOME);
        assert!(peers.may(peer(252), rested + WELCOME));
        assert_eq!(peers.known.len(), 1);
    }
}
