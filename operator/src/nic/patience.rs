//! How long the operator waits for a node that does not answer, by this process's own clock.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// NICs by namespace and name, each with its lost attachments' uids and when they were first seen as lost.
type Lost = HashMap<(String, String), HashMap<String, Instant>>;

/// Notes since when attachments are lost. An operator that takes over starts to count again.
pub struct Patience {
    timeout: Option<Duration>,
    lost: Mutex<Lost>,
}

/// What has become of the lost attachments of a NIC.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Waited {
    /// Those that were waited for long enough.
    pub overdue: BTreeSet<String>,
    /// When the next one will be.
    pub again: Option<Duration>,
}

impl Patience {
    /// Waits for `timeout`; without one, for as long as it takes.
    pub fn new(timeout: Option<Duration>) -> Self {
        Self {
            timeout,
            lost: Mutex::default(),
        }
    }

    /// Looks at a NIC whose attachments with these uids, and no others, are lost now.
    pub fn count(&self, nic: (String, String), lost: BTreeSet<String>, now: Instant) -> Waited {
        let Some(timeout) = self.timeout else {
            return Waited::default();
        };
        let mut all = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = all.remove(&nic).unwrap_or_default();
        known.retain(|uid, _| lost.contains(uid));
        let mut waited = Waited::default();
        for uid in lost {
            let since = *known.entry(uid.clone()).or_insert(now);
            match timeout.checked_sub(now.saturating_duration_since(since)) {
                Some(left) if !left.is_zero() => {
                    waited.again = Some(waited.again.map_or(left, |again| again.min(left)));
                }
                _ => {
                    waited.overdue.insert(uid);
                }
            }
        }
        if !known.is_empty() {
            all.insert(nic, known);
        }
        waited
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn uids(uids: &[&str]) -> BTreeSet<String> {
        uids.iter().map(ToString::to_string).collect()
    }

    fn nic() -> (String, String) {
        ("ns".to_owned(), "eth0".to_owned())
    }

    #[test]
    fn without_a_deadline_it_waits_for_ever() {
        let (patience, now) = (Patience::new(None), Instant::now());
        for minutes in 0..100 {
            assert_eq!(
                patience.count(nic(), uids(&["a"]), now + minutes * MINUTE),
                Waited::default()
            );
        }
        assert!(patience.lost.lock().unwrap().is_empty());
    }

    #[test]
    fn what_is_lost_without_a_break_is_overdue_in_the_end() {
        let (patience, now) = (Patience::new(Some(6 * MINUTE)), Instant::now());
        let look = |minutes: u32, lost: &[&str]| {
            let waited = patience.count(nic(), uids(lost), now + minutes * MINUTE);
            (waited.overdue, waited.again.map(|left| left.as_secs() / 60))
        };
        assert_eq!(look(0, &["a"]), (uids(&[]), Some(6)));
        assert_eq!(look(2, &["a", "b"]), (uids(&[]), Some(4)));
        assert_eq!(look(6, &["a", "b"]), (uids(&["a"]), Some(2)));
        assert_eq!(look(7, &["b"]), (uids(&[]), Some(1)), "a is back");
        assert_eq!(look(8, &["a", "b"]), (uids(&["b"]), Some(6)), "and lost again");
        assert_eq!(look(9, &[]), (uids(&[]), None));
        assert!(patience.lost.lock().unwrap().is_empty());
    }
}
