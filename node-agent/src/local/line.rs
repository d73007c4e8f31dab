//! How a NIC is, said beside its file.

use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::warn;

use super::board::Board;
use crate::wants::{Teller, Told, Word};

/// Where it is said how one NIC is.
#[derive(Debug)]
pub struct Line {
    pub(super) board: Arc<Board>,
    pub(super) name: String,
    pub(super) uid: String,
    /// Told the uid of a NIC that has left.
    pub(super) left: mpsc::UnboundedSender<String>,
}

impl Teller for Line {
    async fn tell(&self, word: &Word<'_>) -> Told {
        let written = match word {
            // With its status there, a later agent knows the directory.
            Word::Held(true) => self.board.tell(&self.name, None).await,
            Word::Held(false) => {
                // The other end is there as long as the agent runs.
                let _ = self.left.send(self.uid.clone());
                Ok(())
            }
            Word::Status(status) => self.board.tell(&self.name, Some(status)).await,
        };
        match written {
            Ok(()) => Told::Done,
            Err(error) => {
                warn!(nic = self.name, %error, "its status cannot be written; tried again");
                Told::Failed
            }
        }
    }
}
