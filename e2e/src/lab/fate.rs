//! The end of a guest: QEMU reports on a monitor of its own why it ends, at the moment that it
//! does.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use super::exec::Process;

/// From QEMU's last word to its end.
const LAST_WORD: Duration = Duration::from_secs(10);
/// Of a console: a panic with its registers and call trace.
const LAST_LINES: usize = 40;

/// An end that nobody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The guest reset itself: by a triple fault, which its console does not show, or after its kernel's panic.
    Reset,
    /// The guest's kernel panicked.
    Panicked,
    /// The guest turned itself off.
    Off,
    /// QEMU ended with this status: by itself, or killed.
    Ended(i32),
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset => write!(f, "reset itself"),
            Self::Panicked => write!(f, "panicked"),
            Self::Off => write!(f, "turned itself off"),
            Self::Ended(status) => write!(f, "lost its QEMU, which ended with status {status}"),
        }
    }
}

impl Fate {
    /// Whether the guest's own processor or kernel failed. Nothing of ours runs there, and the processor is emulated.
    pub fn is_guests(self) -> bool {
        matches!(self, Self::Reset | Self::Panicked)
    }
}

/// What QEMU has said so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// The guest's doing.
    fate: Option<Fate>,
    /// Somebody told QEMU to end.
    asked: bool,
    /// Somebody told QEMU to reset the guest, whose SeaBIOS resets it once more, to have its own memory as it was.
    resets: bool,
    /// It says nothing more.
    over: bool,
}

impl Said {
    /// Takes in an event.
    fn hear(&mut self, event: &Value) {
        match (
            event["event"].as_str().unwrap_or_default(),
            event["data"]["reason"].as_str().unwrap_or_default(),
        ) {
            ("GUEST_PANICKED", _) | ("SHUTDOWN", "guest-panic") => self.fate = Some(Fate::Panicked),
            ("RESET", "host-qmp-system-reset") => self.resets = true,
            ("RESET", "guest-reset") if self.resets => self.resets = false,
            // After a panic the guest resets itself: that is known already.
            ("SHUTDOWN" | "RESET", "guest-reset") => self.fate = self.fate.or(Some(Fate::Reset)),
            ("SHUTDOWN", "guest-shutdown") => self.fate = Some(Fate::Off),
            ("SHUTDOWN", _) => self.asked = true,
            _ => {}
        }
    }

    /// Why it ended, once QEMU has ended with `status`. Nothing if it was told to.
    fn judge(self, status: Option<i32>) -> Option<Fate> {
        match (self.fate, status) {
            (Some(fate), _) => Some(fate),
            (None, Some(status)) if !self.asked => Some(Fate::Ended(status)),
            // Without a status the node went with it, which is the node's fate.
            _ => None,
        }
    }
}

/// Listens for as long as QEMU speaks, and keeps each event, with its time, in a file.
pub(super) async fn listen(
    stream: impl AsyncBufRead + AsyncWrite + Unpin,
    log: PathBuf,
    said: watch::Sender<Said>,
) {
    // That it ends is all there is to know of an error.
    let _ = follow(stream, &log, &said).await;
    said.send_modify(|said| said.over = true);
}

async fn follow(
    mut stream: impl AsyncBufRead + AsyncWrite + Unpin,
    log: &PathBuf,
    said: &watch::Sender<Said>,
) -> std::io::Result<()> {
    let mut log = OpenOptions::new().create(true).append(true).open(log)?;
    let hello = format!("{}\n", json!({ "execute": "qmp_capabilities" }));
    stream.write_all(hello.as_bytes()).await?;
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        log.write_all(line.as_bytes())?;
        if let Ok(event) = serde_json::from_str::<Value>(&line) {
            said.send_modify(|said| said.hear(&event));
        }
        line.clear();
    }
    Ok(())
}

/// Waits for an end that nobody asked for; for ever if there is none.
pub(super) async fn fate(mut said: watch::Receiver<Said>, qemu: &Process, killed: impl Fn() -> bool) -> Fate {
    // The listener may be gone with its runtime: then it is over too.
    let told = said
        .wait_for(|said| said.over || said.fate.is_some())
        .await
        .map(|said| *said)
        .unwrap_or_default();
    let status = match told.fate {
        Some(_) => None,
        None => qemu.wait(LAST_WORD).await.ok().flatten(),
    };
    match told.judge(status) {
        Some(fate) if !killed() => fate,
        _ => std::future::pending().await,
    }
}

/// The last that a console said.
pub fn last_words(console: &str) -> String {
    let lines: Vec<&str> = console.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

/// Whether a node's kernel panicked where it had just left a guest, or was about to enter it. An interrupt never comes there on a
/// real processor, on which the global interrupt flag is clear; on QEMU's emulated SVM one does, now and then, and the kernel takes
/// it with the guest's GS base (e2e/lab/README.md).
pub fn died_in_svm(console: &str) -> bool {
    console.contains("Kernel panic") && console.contains("__svm_vcpu_run")
}

/// Whether a node's KVM has ended a guest that came to a triple fault: the lab's kernel says so (`kernel-triple-fault.patch`), in the words
/// of `dump_vmcb()`. The guest starts again, and neither it nor its QEMU says why.
pub(super) fn has_reset_a_guest(console: &str) -> bool {
    console.contains("VMCB Control Area:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(events: &[(&str, &str)]) -> Said {
        let mut said = Said::default();
        for (event, reason) in events {
            said.hear(&json!({ "event": event, "data": { "reason": reason } }));
        }
        said
    }

    #[test]
    fn a_guest_that_resets_itself_is_told_from_one_that_is_told_to_end() {
        assert_eq!(
            after(&[("SHUTDOWN", "guest-reset")]).judge(Some(0)),
            Some(Fate::Reset)
        );
        assert_eq!(after(&[("RESET", "guest-reset")]).judge(None), Some(Fate::Reset));
        assert_eq!(after(&[("SHUTDOWN", "host-qmp-quit")]).judge(Some(0)), None);
        assert_eq!(after(&[("SHUTDOWN", "host-signal")]).judge(Some(0)), None);
    }

    #[test]
    fn a_panic_stays_a_panic_when_the_guest_resets_itself_after_it() {
        let said = after(&[("GUEST_PANICKED", ""), ("SHUTDOWN", "guest-reset")]);
        assert_eq!(said.judge(Some(0)), Some(Fate::Panicked));
    }

    #[test]
    fn a_qemu_that_ends_without_a_word_is_its_own_fate_and_a_node_that_takes_it_along_is_not() {
        assert_eq!(after(&[("STOP", "")]).judge(Some(134)), Some(Fate::Ended(134)));
        assert_eq!(after(&[]).judge(None), None);
        assert!(Fate::Reset.is_guests() && !Fate::Ended(134).is_guests());
    }

    #[test]
    fn a_nodes_death_in_emulated_svm_is_told_from_others() {
        let panic = "[  171.35]  ? asm_sysvec_apic_timer_interrupt+0x1a/0x20\n[  171.35]  ? __svm_vcpu_run+0xa0/0x1f0\n\
                     [  171.36] Kernel panic - not syncing: Fatal exception in interrupt\n";
        assert!(died_in_svm(panic));
        assert!(!died_in_svm(
            &panic.replace("__svm_vcpu_run", "vfio_unregister_group_dev")
        ));
        assert!(!died_in_svm("a test's own words on __svm_vcpu_run"));
    }

    #[test]
    fn a_guest_that_comes_to_a_triple_fault_leaves_its_registers_on_its_nodes_console() {
        let patch = include_str!("../../lab/kernel-triple-fault.patch");
        assert!(patch.contains("+\tdump_vmcb(vcpu);"));
        assert!(has_reset_a_guest("[  335.200519] kvm_amd: VMCB Control Area:\n"));
        assert!(!has_reset_a_guest("[  335.200519] kvm_amd: SVM enabled\n"));
    }

    #[test]
    fn a_reset_of_qemus_own_is_none_of_the_guests() {
        let [ours, its] = [("RESET", "host-qmp-system-reset"), ("RESET", "guest-reset")];
        assert_eq!(after(&[ours]).judge(None), None);
        assert_eq!(after(&[ours, its]).judge(None), None);
        assert_eq!(after(&[ours, its, its]).judge(None), Some(Fate::Reset));
    }
}
