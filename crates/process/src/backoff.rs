//! Pauses between tries of something that failed.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// Pauses that double up to a cap, each longer by a random part of itself. So clients that failed at the same moment, as all agents
/// do when the API server goes away, do not return at the same moment.
#[derive(Debug)]
pub struct Backoff {
    builder: ExponentialBuilder,
    pauses: ExponentialBackoff,
    longest: Duration,
}

impl Backoff {
    /// The first pause is `first`, and none is longer than `longest`, each without its random part.
    pub fn new(first: Duration, longest: Duration) -> Self {
        let builder = ExponentialBuilder::new()
            .with_min_delay(first)
            .with_max_delay(longest)
            .without_max_times()
            .with_jitter();
        Self {
            pauses: builder.build(),
            builder,
            longest,
        }
    }

    /// The next pause.
    pub fn next_pause(&mut self) -> Duration {
        self.pauses.next().unwrap_or(self.longest)
    }

    /// Makes the next pause.
    pub async fn pause(&mut self) {
        tokio::time::sleep(self.next_pause()).await;
    }

    /// It went well: the next pause is the first again.
    pub fn reset(&mut self) {
        self.pauses = self.builder.build();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_end_and_differ() {
        let new = || Backoff::new(Duration::from_millis(500), Duration::from_mins(1));
        let mut backoff = new();
        for ms in [
            500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000,
        ] {
            let pause = backoff.next_pause();
            let base = Duration::from_millis(ms);
            assert!(pause >= base && pause < 2 * base, "{pause:?} of {base:?}");
        }
        backoff.reset();
        assert!(backoff.next_pause() < Duration::from_secs(1));
        let first: std::collections::BTreeSet<_> = (0..10).map(|_| new().next_pause()).collect();
        assert!(first.len() > 1, "all alike: {first:?}");
    }
}
