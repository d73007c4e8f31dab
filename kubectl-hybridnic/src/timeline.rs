//! A migration's phases, drawn as bars over the time that it took.

use jiff::Timestamp;

use hybridnic_api::v1alpha1::MigrationPhaseTime;

use crate::{style::Tone, time};

/// Draws one line for each phase: its name, its place in the whole, and its length. A phase that goes on is drawn until
/// `now`, in another hatching.
///
/// `width` is the columns of the bars alone.
pub fn draw(phases: &[MigrationPhaseTime], now: Timestamp, width: usize) -> Vec<String> {
    let spans: Vec<(i64, i64)> = spans(phases, now);
    let whole = spans.iter().map(|(_, end)| *end).max().unwrap_or(0).max(1);
    let names = phases
        .iter()
        .map(|phase| phase.name.chars().count())
        .max()
        .unwrap_or(0);
    let draw = |(phase, (begin, end)): (&MigrationPhaseTime, &(i64, i64))| {
        let (before, bar) = place(*begin, *end, whole, width);
        let (sign, tone) = match phase.ms {
            Some(_) if phase.name == "RollingBack" => ("█", Tone::Bad),
            Some(_) => ("█", Tone::Good),
            None => ("░", Tone::Warn),
        };
        format!(
            "{:names$}  {}{}{}  {:>9}",
            phase.name,
            " ".repeat(before),
            tone.paint(sign.repeat(bar)),
            Tone::Quiet.paint("·".repeat(width - before - bar)),
            time::length(end - begin),
        )
    };
    phases.iter().zip(&spans).map(draw).collect()
}

/// Begin and end of each phase in milliseconds since the first one began.
fn spans(phases: &[MigrationPhaseTime], now: Timestamp) -> Vec<(i64, i64)> {
    let Some(zero) = phases.iter().map(|phase| phase.started_at.0).min() else {
        return Vec::new();
    };
    let span = |phase: &MigrationPhaseTime| {
        let begin = time::between(zero, phase.started_at.0);
        // Another machine's clock may say that the phase has not begun.
        let length = phase
            .ms
            .unwrap_or_else(|| time::between(phase.started_at.0, now))
            .max(0);
        (begin, begin + length)
    };
    phases.iter().map(span).collect()
}

/// Columns before a bar, and of the bar. Every phase shows, however short.
fn place(begin: i64, end: i64, whole: i64, width: usize) -> (usize, usize) {
    let column = |ms: i64| {
        let at = i128::from(ms) * i128::try_from(width).unwrap_or(0) / i128::from(whole);
        usize::try_from(at).unwrap_or(0)
    };
    let before = column(begin).min(width.saturating_sub(1));
    let bar = column(end).saturating_sub(before).clamp(1, width - before);
    (before, bar)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    use super::*;
    use crate::style::plain;

    fn phase(name: &str, at: i64, ms: Option<i64>) -> MigrationPhaseTime {
        let started_at = MicroTime(Timestamp::from_millisecond(at).unwrap());
        MigrationPhaseTime {
            name: name.to_owned(),
            started_at,
            ms,
        }
    }

    fn picture(phases: &[MigrationPhaseTime], now: i64) -> String {
        plain(&draw(phases, Timestamp::from_millisecond(now).unwrap(), 20).join("\n"))
    }

    #[test]
    fn bars_are_scaled_by_their_length() {
        let phases = [
            phase("PreparingTarget", 5_000, Some(1_000)),
            phase("SwitchingToStandby", 6_000, Some(1_000)),
            phase("Transferring", 7_000, Some(1_998)),
            phase("Completing", 8_998, Some(2)),
        ];
        assert_eq!(
            picture(&phases, 60_000),
            "PreparingTarget     █████···············     1.00 s\n\
             SwitchingToStandby       █████··········     1.00 s\n\
             Transferring                  █████████·     1.99 s\n\
             Completing                             █       2 ms\n"
        );
    }

    #[test]
    fn a_phase_that_goes_on_is_drawn_until_now() {
        let phases = [
            phase("PreparingTarget", 0, Some(500)),
            phase("Transferring", 500, None),
        ];
        assert_eq!(
            picture(&phases, 1_000),
            "PreparingTarget  ██████████··········     500 ms\n\
             Transferring               ░░░░░░░░░░     500 ms\n"
        );
        // A clock that is behind is no trouble.
        assert_eq!(
            picture(&phases[1..], 0),
            "Transferring  ░···················       0 ms\n"
        );
        assert_eq!(picture(&[], 0), "");
    }

    #[test]
    fn every_phase_shows_and_none_is_too_long() {
        for (begin, end) in [(0, 0), (0, 1), (99, 100), (100, 100), (0, 100), (50, 51)] {
            let (before, bar) = place(begin, end, 100, 7);
            assert!(bar >= 1 && before + bar <= 7, "{begin} to {end}: {before}, {bar}");
        }
    }
}
