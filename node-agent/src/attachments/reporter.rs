//! Sends what a NIC's task reports, and that the agent has its attachment. All that is decided here is when to try again.

use std::time::Duration;

use hybridnic_api::v1alpha1::{AttachmentState, NicAttachmentStatus};
use hybridnic_process::backoff::Backoff;
use tokio::{sync::watch, time::Instant};

use crate::{
    news::{Gate, News},
    wants::{Teller, Told, Word},
};

/// The pause after a write that failed.
const BACKOFF: Duration = Duration::from_millis(200);
/// The longest pause after a write that failed.
const BACKOFF_CAP: Duration = Duration::from_secs(10);

/// Tells how one attachment is.
pub(super) struct Reporter<T> {
    teller: T,
}

impl<T: Teller> Reporter<T> {
    /// Tells it there.
    pub(super) fn new(teller: T) -> Self {
        Self { teller }
    }

    /// Reports that the agent has it, reports each status, and releases it once the NIC has left and the object is to go.
    pub(super) async fn run(
        self,
        mut status: watch::Receiver<Option<NicAttachmentStatus>>,
        mut deleting: watch::Receiver<bool>,
        held: watch::Sender<bool>,
    ) {
        if !*held.borrow() {
            // For an object that is to go this is too late, and nothing needs it.
            if !*deleting.borrow() {
                self.patiently(&Word::Held(true)).await;
            }
            held.send_replace(true);
        }
        let mut written: Option<NicAttachmentStatus> = None;
        let mut open = true;
        // Since when something is not written that can wait.
        let mut since = None;
        let mut backoff = Backoff::new(BACKOFF, BACKOFF_CAP);
        let mut gate = Gate::default();
        loop {
            let now = status.borrow_and_update().clone();
            let gone = *deleting.borrow_and_update();
            let unwritten = now.filter(|now| written.as_ref() != Some(now));
            let rest = unwritten.as_ref().map(|now| {
                let news = written
                    .as_ref()
                    .map_or(News::Moved, |written| News::of(written, now));
                gate.rest(news, *since.get_or_insert_with(Instant::now), Instant::now())
            });
            if rest.is_none() {
                since = None;
            }
            if let Some(now) = unwritten
                && rest == Some(Duration::ZERO)
            {
                gate.wrote(Instant::now());
                // Newer reports replace this one while it waits.
                match self.teller.tell(&Word::Status(&now)).await {
                    Told::Done => {
                        (written, since) = (Some(now), None);
                        backoff.reset();
                    }
                    Told::Failed => {
                        backoff.pause().await;
                        continue;
                    }
                    Told::Refused => {
                        tokio::time::sleep(BACKOFF_CAP).await;
                        continue;
                    }
                }
            }
            let detached = written
                .as_ref()
                .is_some_and(|s| s.state == AttachmentState::Detached);
            if detached && gone {
                return self.patiently(&Word::Held(false)).await;
            }
            tokio::select! {
                changed = status.changed(), if open => open = changed.is_ok(),
                changed = deleting.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(rest.unwrap_or_default()), if rest.is_some_and(|rest| !rest.is_zero()) => {}
            }
        }
    }

    /// Tries until it is done.
    pub(super) async fn patiently(&self, word: &Word<'_>) {
        let mut backoff = Backoff::new(BACKOFF, BACKOFF_CAP);
        while self.teller.tell(word).await != Told::Done {
            backoff.pause().await;
        }
    }
}
