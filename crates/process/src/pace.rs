//! How often something may be done. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// So many times at once, and then once in each interval: a burst cannot last.
#[derive(Clone, Debug)]
pub struct Pace {
    every: Duration,
    ahead: Duration,
    /// When everything done so far would be done, at one in each interval.
    spent: Option<Instant>,
}

impl Pace {
    /// `burst` times at once, and then once in `every`.
    pub fn new(burst: u32, every: Duration) -> Self {
        Self {
            every,
            ahead: every.saturating_mul(burst.saturating_sub(1)),
            spent: None,
        }
    }

    /// How long it is until it may be done.
    pub fn time_left(&self, now: Instant) -> Duration {
        let spent = self.spent.unwrap_or(now);
        spent.saturating_duration_since(now).saturating_sub(self.ahead)
    }

    /// It is done now.
    pub fn done(&mut self, now: Instant) {
        self.spent = Some(self.spent.map_or(now, |spent| spent.max(now)) + self.every);
    }

    /// Whether it may be done as often as at first.
    pub fn is_rested(&self, now: Instant) -> bool {
        self.spent.is_none_or(|spent| spent <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_once_in_each_interval() {
        let second = Duration::from_secs(1);
        let start = Instant::now();
        let mut pace = Pace::new(3, second);
        let mut now = start;
        for _ in 0..3 {
            assert_eq!(pace.time_left(now), Duration::ZERO);
            pace.done(now);
        }
        for _ in 0..5 {
            assert_eq!(pace.time_left(now), second);
            now += pace.time_left(now);
            pace.done(now);
        }
        assert_eq!(now, start + 5 * second);
        assert!(!pace.is_rested(now));
        // After a rest it may happen as often again.
        now += 3 * second;
        assert!(pace.is_rested(now));
        for _ in 0..3 {
            assert_eq!(pace.time_left(now), Duration::ZERO);
            pace.done(now);
        }
        assert_eq!(pace.time_left(now), second);
    }
}
