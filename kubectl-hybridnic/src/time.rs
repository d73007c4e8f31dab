//! Times and lengths of time as people read them.

use jiff::{SignedDuration, Timestamp, tz::TimeZone};

/// How long ago, as kubectl says it: `5s`, `12m`, `3h`, `8d`. A time in the future, by another machine's clock, is `0s`.
pub fn age(at: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(at).max(SignedDuration::ZERO).as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A length in milliseconds: `31 ms`, `1.25 s`, `3 min 5 s`.
pub fn length(ms: i64) -> String {
    match ms {
        ..1000 => format!("{ms} ms"),
        1000..120_000 => format!("{}.{:02} s", ms / 1000, ms % 1000 / 10),
        _ => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
    }
}

/// From one time to another in whole milliseconds; never negative.
pub fn between(from: Timestamp, to: Timestamp) -> i64 {
    let ms = to.duration_since(from).max(SignedDuration::ZERO).as_millis();
    i64::try_from(ms).unwrap_or(i64::MAX)
}

/// The time of day in UTC to the millisecond, as the agents' and the operator's logs have it.
pub fn clock(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC).strftime("%H:%M:%S.%3f").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_lengths() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let ages = [0, 119, 120, 7199, 7200, 172_799, 172_800].map(|s| age(at(0), at(s)));
        assert_eq!(ages, ["0s", "119s", "2m", "119m", "2h", "47h", "2d"]);
        assert_eq!(age(at(9), at(0)), "0s");
        let lengths = [0, 999, 1000, 12_345, 119_999, 185_000].map(length);
        assert_eq!(
            lengths,
            ["0 ms", "999 ms", "1.00 s", "12.34 s", "119.99 s", "3 min 5 s"]
        );
        assert_eq!((between(at(1), at(3)), between(at(3), at(1))), (2000, 0));
        assert_eq!(
            clock(Timestamp::from_millisecond(3_723_004).unwrap()),
            "01:02:03.004"
        );
    }
}
