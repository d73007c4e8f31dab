//! Which clients may have a connection to a listener, and which get an answer. Pure except for its lock.
//!
//! A connection costs nothing and proves nothing: anyone who can reach the port can open thousands. So no connection has a place of
//! its own before it has sent a whole request: if too many wait, the oldest is closed, first of a peer that has many.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// Connections that have not sent a whole request.
const WAITING: usize = 64;
/// The same, of one peer.
const WAITING_OF_ONE: usize = 16;
/// Requests that are answered at once, by what each costs: a cheap one, such as a probe, does not wait for a place.
const LIGHT: usize = 64;
/// The same for requests that need more, or may take long.
const HEAVY: usize = 8;
/// The same, of one peer.
const HEAVY_OF_ONE: usize = 2;
/// The same for clients that are not known yet to be allowed: they wait for the API server, and the others need not.
const UNKNOWN: usize = HEAVY / 2;

/// What an answer costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weight {
    /// A few octets.
    Light,
    /// Some work and many octets; or a request that is not over with its head.
    Heavy,
    /// The same, for a client whose token is not known yet.
    Unknown,
}

/// A listener's connections. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Door(Arc<Mutex<Crowd>>);

#[derive(Debug, Default)]
struct Crowd {
    next: u64,
    /// The oldest first.
    waiting: BTreeMap<u64, (IpAddr, CancellationToken)>,
    light: usize,
    heavy: HashMap<IpAddr, usize>,
    unknown: HashMap<IpAddr, usize>,
}

/// A connection that has not sent a whole request yet.
#[derive(Debug)]
pub(super) struct Waiting {
    door: Door,
    number: u64,
    peer: IpAddr,
    /// Cancelled when it has to go.
    pub(super) dropped: CancellationToken,
}

/// A request that is answered.
#[derive(Debug)]
pub(super) struct Served {
    door: Door,
    peer: IpAddr,
    weight: Weight,
}

impl Door {
    fn crowd(&self) -> MutexGuard<'_, Crowd> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection has come.
    pub(super) fn enter(&self, peer: IpAddr) -> Waiting {
        let mut crowd = self.crowd();
        crowd.make_room(peer);
        let number = crowd.next;
        crowd.next += 1;
        let dropped = CancellationToken::new();
        crowd.waiting.insert(number, (peer, dropped.clone()));
        drop(crowd);
        Waiting {
            door: self.clone(),
            number,
            peer,
            dropped,
        }
    }
}

impl Crowd {
    /// Drops connections until there is room for one more of `peer`.
    fn make_room(&mut self, peer: IpAddr) {
        let of = |peer: IpAddr, waiting: &BTreeMap<u64, (IpAddr, CancellationToken)>| {
            let mut its = waiting
                .iter()
                .filter(|(_, (of, _))| *of == peer)
                .map(|(number, _)| *number);
            (its.next(), its.count() + 1)
        };
        if let (Some(oldest), WAITING_OF_ONE..) = of(peer, &self.waiting) {
            self.let_go(oldest);
        }
        if self.waiting.len() >= WAITING
            && let Some(oldest) = self.oldest_of_most()
        {
            self.let_go(oldest);
        }
    }

    /// The oldest connection of the peer that has most.
    fn oldest_of_most(&self) -> Option<u64> {
        let mut counts: HashMap<IpAddr, (usize, u64)> = HashMap::new();
        for (number, (peer, _)) in &self.waiting {
            counts.entry(*peer).or_insert((0, *number)).0 += 1;
        }
        let most = counts
            .into_values()
            .max_by_key(|(count, oldest)| (*count, std::cmp::Reverse(*oldest)));
        most.map(|(_, oldest)| oldest)
    }

    /// The places that peers have, of the heavy ones.
    fn of(&mut self, weight: Weight) -> &mut HashMap<IpAddr, usize> {
        if weight == Weight::Unknown {
            &mut self.unknown
        } else {
            &mut self.heavy
        }
    }

    fn let_go(&mut self, number: u64) {
        if let Some((_, dropped)) = self.waiting.remove(&number) {
            dropped.cancel();
        }
    }
}

impl Waiting {
    /// Its request is there. `None` where as many are answered as can be.
    pub(super) fn serve(&self, weight: Weight) -> Option<Served> {
        let mut crowd = self.door.crowd();
        // It was let go of at this very moment.
        crowd.waiting.remove(&self.number)?;
        match weight {
            Weight::Light if crowd.light >= LIGHT => return None,
            Weight::Light => crowd.light += 1,
            Weight::Heavy | Weight::Unknown => {
                let (heavy, unknown): (usize, usize) =
                    (crowd.heavy.values().sum(), crowd.unknown.values().sum());
                let is_full = heavy + unknown >= HEAVY || weight == Weight::Unknown && unknown >= UNKNOWN;
                // Counted separately: behind a NAT a stranger may have the address of a known client.
                let places = crowd.of(weight);
                let its = places.get(&self.peer).copied().unwrap_or_default();
                if is_full || its >= HEAVY_OF_ONE {
                    return None;
                }
                places.insert(self.peer, its + 1);
            }
        }
        Some(Served {
            door: self.door.clone(),
            peer: self.peer,
            weight,
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.door.crowd().waiting.remove(&self.number);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let mut crowd = self.door.crowd();
        match self.weight {
            Weight::Light => crowd.light = crowd.light.saturating_sub(1),
            Weight::Heavy | Weight::Unknown => {
                let all = crowd.of(self.weight);
                if let Some(its) = all.get_mut(&self.peer) {
                    *its = its.saturating_sub(1);
                }
                all.retain(|_, its| *its > 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    fn gone(waiting: &[Waiting]) -> usize {
        waiting
            .iter()
            .filter(|waiting| waiting.dropped.is_cancelled())
            .count()
    }

    #[test]
    fn of_a_peer_with_many_the_oldest_go() {
        let door = Door::default();
        let other = door.enter(peer(1));
        let many: Vec<_> = (0..WAITING_OF_ONE + 3).map(|_| door.enter(peer(2))).collect();
        assert_eq!(gone(&many[..3]), 3);
        assert_eq!(gone(&many[3..]), 0);
        assert!(!other.dropped.is_cancelled());
        drop(many);
        assert_eq!(door.crowd().waiting.len(), 1);
    }

    #[test]
    fn where_many_peers_wait_one_that_has_many_pays() {
        let door = Door::default();
        let few: Vec<_> = (0..2).map(|_| door.enter(peer(1))).collect();
        let greedy: Vec<_> = (0..WAITING_OF_ONE).map(|_| door.enter(peer(2))).collect();
        let others: Vec<_> = (3..49).map(|n| door.enter(peer(n))).collect();
        assert_eq!(door.crowd().waiting.len(), WAITING);
        let more = door.enter(peer(50));
        assert_eq!((gone(&few), gone(&others)), (0, 0));
        assert!(greedy[0].dropped.is_cancelled() && gone(&greedy) == 1);
        assert!(!more.dropped.is_cancelled());
        // Of those that have one each it is the oldest.
        drop((few, greedy));
        let each: Vec<_> = (51..80).map(|n| door.enter(peer(n))).collect();
        assert!(others[0].dropped.is_cancelled() && !others[40].dropped.is_cancelled());
        assert_eq!(gone(&each), 0);
    }

    #[test]
    fn a_whole_request_is_safe_and_has_its_place() {
        let door = Door::default();
        let asks = door.enter(peer(1));
        let served = asks.serve(Weight::Light).unwrap();
        let flood: Vec<_> = (0..10 * WAITING)
            .map(|n| door.enter(peer(u8::try_from(n % 200).unwrap())))
            .collect();
        assert!(!asks.dropped.is_cancelled());
        assert!(flood[0].serve(Weight::Light).is_none(), "it had to go");
        drop(served);
        let heavy: Vec<_> = (0..HEAVY_OF_ONE)
            .map(|_| door.enter(peer(1)).serve(Weight::Heavy))
            .collect();
        assert!(heavy.iter().all(Option::is_some));
        assert!(door.enter(peer(1)).serve(Weight::Heavy).is_none());
        // A peer that asks for much does not keep others from asking for little.
        assert!(door.enter(peer(1)).serve(Weight::Light).is_some());
        assert!(door.enter(peer(2)).serve(Weight::Heavy).is_some());
        drop(heavy);
        assert!(door.enter(peer(1)).serve(Weight::Heavy).is_some());
    }

    #[test]
    fn those_of_whom_nobody_knows_have_half_of_the_places() {
        let door = Door::default();
        let serve = |n: u8, weight| door.enter(peer(n)).serve(weight);
        let unknown: Vec<_> = (0..=3).map(|n| serve(1 + n / 2, Weight::Unknown)).collect();
        assert!(unknown.iter().all(Option::is_some) && unknown.len() == UNKNOWN);
        assert!(serve(9, Weight::Unknown).is_none());
        // Of a peer that has some of those places, too.
        let known: Vec<_> = (0..=3).map(|n| serve(1 + n / 2, Weight::Heavy)).collect();
        assert!(known.iter().all(Option::is_some));
        assert!(serve(9, Weight::Heavy).is_none());
        drop(unknown);
        let one: Vec<_> = (0..=HEAVY_OF_ONE).map(|_| serve(9, Weight::Unknown)).collect();
        assert!(one[HEAVY_OF_ONE - 1].is_some() && one[HEAVY_OF_ONE].is_none());
    }

    #[test]
    fn no_more_are_answered_at_once_than_can_be() {
        let door = Door::default();
        let serve = |n: usize, weight| door.enter(peer(u8::try_from(n).unwrap())).serve(weight);
        let heavy: Vec<_> = (0..=HEAVY).map(|n| serve(n, Weight::Heavy)).collect();
        assert!(heavy[HEAVY - 1].is_some() && heavy[HEAVY].is_none());
        let light: Vec<_> = (0..=LIGHT).map(|n| serve(n, Weight::Light)).collect();
        assert!(light[LIGHT - 1].is_some() && light[LIGHT].is_none());
        drop(light);
        assert!(serve(0, Weight::Light).is_some());
    }
}
