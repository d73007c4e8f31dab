//! What the demo leaves: `target/demo/report.json`.

use std::time::Duration;

use serde::Serialize;

/// All migrations.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// In their order.
    pub migrations: Vec<Migration>,
}

/// One migration.
#[derive(Debug, Serialize)]
pub struct Migration {
    /// The node that the VM left.
    pub from: String,
    /// The node that it went to.
    pub to: String,
    /// How it ended.
    pub result: String,
    /// The VF before.
    pub vf_before: Vf,
    /// The VF after.
    pub vf_after: Vf,
    /// From its begin until the VM is on its fast path again, in milliseconds.
    pub total_ms: i64,
    /// The VM's pause, by QEMU, in milliseconds.
    pub qemu_downtime_ms: i64,
    /// The traffic.
    pub packets: Packets,
    /// The unplug at the source, where packets were lost in it and the guest says what it is to blame for.
    pub unplug: Option<Unplug>,
    /// Its parts.
    pub phases: Vec<Phase>,
}

/// A VF on its node.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Vf {
    /// The node.
    pub node: String,
    /// PCI address.
    pub pci: String,
    /// Its PF.
    pub pf: String,
}

/// Packets to the VM and back.
#[derive(Debug, Serialize)]
pub struct Packets {
    /// Between two of them, in milliseconds.
    pub interval_ms: u32,
    /// How many were sent.
    pub sent: u64,
    /// How many did not come back.
    pub lost: u64,
    /// The longest time in which nothing came from the VM, in milliseconds.
    pub silence_ms: u64,
}

impl Packets {
    /// What the traffic says beside QEMU's own figure.
    ///
    /// A pause is not a loss: packets for a paused VM may wait for it and be answered late. It is a silence, because a
    /// paused VM sends nothing. So where QEMU's figure is larger than the longest silence it counts more than the pause:
    /// until the source has heard that the VM runs at the target, and by the clock of an emulated node, which may be wrong.
    pub fn beside(&self, pause_ms: i64) -> String {
        let lost = match self.lost {
            0 => format!("none of {} packets lost", self.sent),
            lost => format!(
                "{lost} of {} packets lost, one each {} ms: {} ms of traffic",
                self.sent,
                self.interval_ms,
                lost * u64::from(self.interval_ms)
            ),
        };
        let silence = self.silence_ms;
        let pause = u64::try_from(pause_ms).unwrap_or_default();
        let pause = if pause == 0 {
            "QEMU did not say how long it paused the VM".to_owned()
        } else if pause <= silence {
            format!("of which QEMU's own pause is {pause} ms")
        } else {
            format!(
                "while QEMU counts a pause of {pause} ms: by its node's own clock, and until the source has heard that the VM runs \
                 at the target"
            )
        };
        format!("{lost}; nothing came from the VM for {silence} ms at most, {pause}")
    }
}

/// The time without traffic at the unplug of the VF, and its limit.
#[derive(Debug, Serialize)]
pub struct Unplug {
    /// How long no packet came back, in milliseconds.
    pub gap_ms: u64,
    /// How long the guest itself could not receive: from its VF driver's last packet until `net_failover` takes the standby's,
    /// in milliseconds.
    pub guest_ms: u64,
}

impl Unplug {
    /// The gap divided by its limit: no node can do better than 1.
    pub fn ratio(&self) -> f64 {
        let ms = |ms| Duration::from_millis(ms).as_secs_f64();
        ms(self.gap_ms) / ms(self.guest_ms.max(1))
    }

    /// Both, for people.
    pub fn line(&self) -> String {
        format!(
            "at the unplug {} ms without traffic; the guest itself could not receive for {} ms: ratio {:.1}",
            self.gap_ms,
            self.guest_ms,
            self.ratio()
        )
    }
}

/// A part of a migration.
#[derive(Debug, Serialize)]
pub struct Phase {
    /// What is done.
    pub name: String,
    /// Its length in milliseconds.
    pub ms: i64,
    /// Packets lost in it.
    pub lost: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(lost: u64, silence_ms: u64) -> Packets {
        Packets {
            interval_ms: 10,
            sent: 1000,
            lost,
            silence_ms,
        }
    }

    #[test]
    fn a_pause_is_a_part_of_a_silence_that_is_longer() {
        assert_eq!(
            packets(52, 1710).beside(1595),
            "52 of 1000 packets lost, one each 10 ms: 520 ms of traffic; nothing came from the VM for 1710 ms at most, of which \
             QEMU's own pause is 1595 ms"
        );
    }

    #[test]
    fn a_pause_is_no_part_of_a_silence_that_is_shorter() {
        let said = packets(52, 520).beside(1595);
        assert!(
            !said.contains("of which") && said.contains("counts a pause of 1595 ms"),
            "{said}"
        );
    }

    #[test]
    fn nothing_lost_and_nothing_said_are_said_so() {
        assert_eq!(
            packets(0, 60).beside(0),
            "none of 1000 packets lost; nothing came from the VM for 60 ms at most, QEMU did not say how long it paused the VM"
        );
    }

    #[test]
    fn an_unplug_is_compared_with_what_the_guest_takes() {
        let unplug = Unplug {
            gap_ms: 90,
            guest_ms: 75,
        };
        assert_eq!(
            unplug.line(),
            "at the unplug 90 ms without traffic; the guest itself could not receive for 75 ms: ratio 1.2"
        );
    }
}
