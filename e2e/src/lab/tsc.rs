//! The frequency of this machine's time stamp counter, which is an emulated node's too.
//!
//! A node that measures it while it boots gets it wrong if others want the processors, by up to a factor of 2.7 as seen. Then its
//! clock is wrong by that factor, and the guests that KVM runs in it have timers that fire at the wrong time or not at all. So nodes
//! are told.

use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// Long enough for a few parts in a million.
const SPAN: Duration = Duration::from_millis(200);
/// Of so many readings the best is taken: the rest may have been interrupted between counter and clock.
const READINGS: usize = 64;

/// In kHz; `None` where there is no such counter. Measured once.
pub(crate) fn khz() -> Option<u64> {
    static KHZ: OnceLock<Option<u64>> = OnceLock::new();
    *KHZ.get_or_init(measure)
}

fn measure() -> Option<u64> {
    let begin = best(READINGS, read)?;
    thread::sleep(SPAN);
    frequency(begin, best(READINGS, read)?)
}

/// A reading of both: the counter, and the clock just after it.
#[derive(Debug, Clone, Copy)]
struct Reading {
    counter: u64,
    /// What the counter has gone on while the clock was read.
    width: u64,
    at: Instant,
}

/// The reading that took the shortest.
fn best(readings: usize, read: impl Fn() -> Option<Reading>) -> Option<Reading> {
    (0..readings).filter_map(|_| read()).min_by_key(|r| r.width)
}

fn frequency(begin: Reading, end: Reading) -> Option<u64> {
    let ticks = u128::from(end.counter.checked_sub(begin.counter)?);
    let nanos = end.at.checked_duration_since(begin.at)?.as_nanos();
    u64::try_from((ticks * 1_000_000).checked_div(nanos)?).ok()
}

#[cfg(target_arch = "x86_64")]
#[allow(clippy::unnecessary_wraps, reason = "other machines have none")]
fn read() -> Option<Reading> {
    // SAFETY: every x86-64 processor has the instruction, and it only reads.
    let counter = || unsafe { std::arch::x86_64::_rdtsc() };
    let before = counter();
    let at = Instant::now();
    Some(Reading {
        counter: before,
        width: counter().wrapping_sub(before),
        at,
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn read() -> Option<Reading> {
    None
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn reading(counter: u64, width: u64, at: Instant) -> Reading {
        Reading { counter, width, at }
    }

    #[test]
    fn a_frequency_is_ticks_by_time() {
        let now = Instant::now();
        let later = now + Duration::from_millis(200);
        let khz = frequency(reading(1000, 0, now), reading(1000 + 489_085_600, 0, later));
        assert_eq!(khz, Some(2_445_428));
        // A counter that has been set back, as after a sleep of the machine, says nothing.
        assert_eq!(frequency(reading(1000, 0, now), reading(999, 0, later)), None);
    }

    #[test]
    fn an_interrupted_reading_is_not_taken() {
        let now = Instant::now();
        let widths = Cell::new([9_000_000, 60, 75].into_iter().collect::<Vec<u64>>());
        let next = || {
            let mut left = widths.take();
            let width = left.remove(0);
            widths.set(left);
            Some(reading(0, width, now))
        };
        assert_eq!(best(3, next).map(|r| r.width), Some(60));
    }

    #[test]
    fn two_measurements_agree_however_busy_the_machine_is() {
        let (Some(one), Some(two)) = (measure(), measure()) else {
            return;
        };
        assert!(
            one.abs_diff(two) * 1000 < one,
            "{one} and {two} kHz differ by more than a thousandth"
        );
    }
}
