//! Whether a guest has moved its traffic from its standby to its VF. There is no event for it, so this looks at what is
//! counted on the node. Pure.
//!
//! A guest's driver has interrupts seconds before the VF's link is up, and until then the guest keeps using the standby. So
//! the standby must have fallen silent. If a guest sends little, only a long silence says something.

use std::time::Duration;

use tokio::time::Instant;

use super::plan::Sends;

/// How long the standby of a busy guest must be silent, while the VF's interrupts go on.
const SILENT: Duration = Duration::from_secs(1);
/// How long that of any other guest must be.
const IDLE: Duration = Duration::from_secs(5);
/// Packets sent by the standby since the plug that make a guest busy.
const BUSY: u64 = 10;

/// What has been seen since the VF was plugged.
#[derive(Debug)]
pub struct Silence {
    /// What the standby had sent when the VF was plugged.
    at_plug: u64,
    /// What it had sent when it fell silent, and when that was.
    sent: u64,
    since: Instant,
    /// The VF's interrupts at that moment.
    interrupts: Option<u64>,
    /// The first that were seen, and the last.
    span: Option<(u64, u64)>,
}

impl Silence {
    /// Begins to watch. `at_plug` counts the packets that the standby had sent when the VF was plugged.
    pub fn new(at_plug: u64, sent: u64, now: Instant) -> Self {
        Self {
            at_plug,
            sent,
            since: now,
            interrupts: None,
            span: None,
        }
    }

    /// Whether the guest has moved, by the packets that the standby has sent and the interrupts that the VF has had
    /// (`None` while the guest has none switched on).
    pub fn has_moved(&mut self, now: Instant, sent: u64, interrupts: Option<u64>) -> bool {
        if sent != self.sent || interrupts.is_none() || self.interrupts.is_none() {
            (self.sent, self.since, self.interrupts) = (sent, now, interrupts);
        }
        if let Some(interrupts) = interrupts {
            let (first, _) = self.span.unwrap_or((interrupts, interrupts));
            self.span = Some((first, interrupts));
        }
        let silent = now - self.since;
        let busy = sent.saturating_sub(self.at_plug) >= BUSY;
        interrupts.is_some() && (silent >= IDLE || busy && silent >= SILENT && interrupts > self.interrupts)
    }

    /// What the guest has sent through since the plug, as far as it was watched, if it has not moved.
    pub fn sends(&self) -> Sends {
        let lives = self.span.is_some_and(|(first, last)| last > first);
        match (self.sent > self.at_plug, lives) {
            (false, _) => Sends::ByNeither,
            (true, false) => Sends::ByStandby,
            (true, true) => Sends::BesideVf,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Guest {
        silence: Silence,
        start: Instant,
    }

    impl Guest {
        fn new() -> Self {
            let start = Instant::now();
            Self {
                silence: Silence::new(100, 100, start),
                start,
            }
        }

        fn at(&mut self, ms: u64, sent: u64, interrupts: Option<u64>) -> bool {
            self.silence
                .has_moved(self.start + Duration::from_millis(ms), sent, interrupts)
        }
    }

    #[test]
    fn a_busy_guest_has_moved_when_only_its_vf_is_busy() {
        let mut guest = Guest::new();
        assert!(!guest.at(0, 100, None));
        assert!(!guest.at(100, 110, Some(1)));
        assert!(!guest.at(900, 190, Some(3)), "it still sends by its standby");
        assert!(!guest.at(1800, 190, Some(90)));
        assert!(guest.at(1900, 190, Some(100)));
    }

    #[test]
    fn a_vf_without_interrupts_is_not_used() {
        let mut guest = Guest::new();
        assert!(!guest.at(0, 200, None));
        assert!(!guest.at(60_000, 200, None));
        assert!(
            !guest.at(60_100, 200, Some(1)),
            "silence counts from the first interrupt"
        );
        assert!(guest.at(65_100, 200, Some(1)));
        assert!(!guest.at(66_000, 200, None), "its driver has gone");
        assert!(!guest.at(66_100, 200, Some(1)));
    }

    /// Its driver has interrupts, its link is not up yet, and it has nothing to send.
    #[test]
    fn the_silence_of_a_quiet_guest_must_be_long() {
        let mut guest = Guest::new();
        assert!(!guest.at(0, 100, Some(1)));
        assert!(!guest.at(1500, 100, Some(9)));
        assert!(
            !guest.at(2000, 103, Some(10)),
            "it has sent something by its standby"
        );
        assert!(!guest.at(6900, 103, Some(20)));
        assert!(guest.at(7000, 103, Some(20)));
    }

    #[test]
    fn what_a_guest_sends_by_that_has_not_moved_is_told() {
        let mut guest = Guest::new();
        assert!(!guest.at(0, 100, None));
        assert_eq!(guest.silence.sends(), Sends::ByNeither);
        assert!(!guest.at(100, 120, None));
        assert_eq!(guest.silence.sends(), Sends::ByStandby);
        // A driver that is there, and has not set the VF up.
        assert!(!guest.at(200, 130, Some(1)));
        assert!(!guest.at(300, 140, Some(1)));
        assert_eq!(guest.silence.sends(), Sends::ByStandby);
        assert!(!guest.at(400, 150, Some(2)));
        assert_eq!(guest.silence.sends(), Sends::BesideVf);
    }

    #[test]
    fn a_busy_guest_whose_interrupts_stand_still_is_given_longer() {
        let mut guest = Guest::new();
        assert!(!guest.at(0, 150, Some(5)));
        assert!(!guest.at(4900, 150, Some(5)));
        assert!(guest.at(5000, 150, Some(5)));
    }
}
