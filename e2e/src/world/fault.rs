//! What can go wrong with a world, and whose fault it is: the emulation's or ours.

use std::{
    fmt,
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use super::World;
use crate::lab::{Fate, Guest, died_in_svm};

/// Between two looks for a frozen guest.
const LOOK: Duration = Duration::from_secs(15);
/// So many looks in a row must find it frozen: a frozen guest stays frozen; one that a busy machine or a plug holds up does not.
const LOOKS: usize = 3;
/// How a fault of the emulation begins.
const EMULATIONS: &str = "the emulation has failed, not hybridnic";

/// Something that ends whatever a world was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The emulation's: a machine has reset itself, or is gone. No program of ours has power over its processor.
    Reset(String),
    /// The emulation's: a machine does not go on, because a timer of its processor was lost.
    Frozen(String),
    /// A QEMU is gone, and why is for us to find out.
    Ours(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset(what) | Self::Frozen(what) => {
                write!(f, "{EMULATIONS}: {what}")
            }
            Self::Ours(what) => write!(f, "{what}"),
        }
    }
}

impl std::error::Error for Fault {}

impl Fault {
    /// Whether it is the emulation's.
    pub fn is_emulations(&self) -> bool {
        matches!(self, Self::Reset(_) | Self::Frozen(_))
    }

    /// Whether a panic's text is that of a fault of the emulation.
    pub fn is_emulations_by(words: &str) -> bool {
        words.starts_with(EMULATIONS) || died_in_svm(words)
    }

    /// Waits for a guest's end that nobody asked for, and says whose fault it is.
    pub async fn of_guest(guest: &Guest) -> Self {
        let fate = guest.fate().await;
        Self::of(&guest.spec().name, guest.node().name(), fate, &guest.last_words())
    }

    fn of(name: &str, node: &str, fate: Fate, last_words: &str) -> Self {
        let what = format!("the guest {name} on {node} {fate}; the last on its console:\n{last_words}");
        if fate.is_guests() {
            Self::Reset(what)
        } else {
            Self::Ours(what)
        }
    }
}

/// Reports a guest's end that nobody asked for: the first one, unless a later one is the emulation's.
pub(super) async fn report_loss(guest: Arc<Guest>, lost: watch::Sender<Option<Fault>>) {
    let fault = Fault::of_guest(&guest).await;
    lost.send_if_modified(|lost| {
        let news = lost.is_none() || fault.is_emulations();
        if news {
            *lost = Some(fault);
        }
        news
    });
}

impl World {
    /// Waits until a node is gone, or a guest has come to an end that nobody asked for, and returns at that moment. Does
    /// not keep the world alive.
    pub fn fault(&self) -> impl Future<Output = Fault> + use<> {
        self.fault_that(|_| true)
    }

    /// The same of the emulation's faults alone, for tests that end QEMUs themselves.
    pub fn broken(&self) -> impl Future<Output = Fault> + use<> {
        self.fault_that(Fault::is_emulations)
    }

    /// The guest's end that nobody asked for, if there was one.
    pub fn lost(&self) -> Option<Fault> {
        self.lost.borrow().clone()
    }

    fn fault_that(&self, counts: fn(&Fault) -> bool) -> impl Future<Output = Fault> + use<> {
        let (mut lost, node) = (self.lost.subscribe(), self.lab.node_ended());
        async move {
            let lost = async {
                let found = lost.wait_for(|fault| fault.as_ref().is_some_and(counts)).await;
                match found.map(|fault| fault.clone()) {
                    Ok(Some(fault)) => fault,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                fault = lost => fault,
                said = node => Fault::Reset(said),
            }
        }
    }

    /// Waits until a guest is frozen: no event reports that, so it is asked now and then.
    pub async fn freeze(&self) -> Fault {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Some(fault) = self.find_frozen().await {
                return fault;
            }
        }
    }

    /// Whether the emulation has frozen a guest, which is its fault and not ours.
    pub async fn is_frozen(&self) -> bool {
        self.find_frozen().await.is_some()
    }

    /// A guest that the emulation has frozen, if there is one.
    pub async fn find_frozen(&self) -> Option<Fault> {
        let name = self.frozen().await?;
        for _ in 1..LOOKS {
            tokio::time::sleep(LOOK).await;
            if self.frozen().await.as_ref() != Some(&name) {
                return None;
            }
        }
        Some(Fault::Frozen(format!(
            "a timer of the guest {name} was lost, and it has frozen"
        )))
    }

    async fn frozen(&self) -> Option<String> {
        let guests: Vec<_> = self.guests.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for guest in guests {
            let running =
                async || guest.qemu().is_running() && guest.status().await.is_ok_and(|s| s == "running");
            // Asked again at the end: one that has been paused or has moved meanwhile did not answer for that reason.
            if running().await && guest.is_frozen().await && running().await {
                return Some(guest.spec().name.clone());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_resets_itself_is_the_emulations_fault_and_a_qemu_that_ends_is_ours() {
        let of = |fate| Fault::of("web-a", "n1", fate, "Kernel panic");
        assert!(matches!(of(Fate::Reset), Fault::Reset(_)));
        assert!(Fault::is_emulations_by(&of(Fate::Reset).to_string()));
        assert!(!Fault::is_emulations_by(&of(Fate::Ended(139)).to_string()));
        assert!(matches!(of(Fate::Ended(139)), Fault::Ours(_)));
        assert_eq!(
            of(Fate::Ended(139)).to_string(),
            "the guest web-a on n1 lost its QEMU, which ended with status 139; the last on its console:\nKernel panic"
        );
    }
}
