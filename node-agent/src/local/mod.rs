//! An agent without a cluster: `hybridnic-agent local --dir DIR`. Everything that touches devices is the same; what is wanted comes from
//! files, and what becomes of it is said beside them.
//!
//! | module | does | touches |
//! |---|---|---|
//! | [`mod@file`] | reads what a file asks for, and checks it as an API server would | nothing |
//! | [`dir`] | reads the directory, and hears what happens in it | the directory |
//! | [`place`] | reads and writes in the directory that was opened, and in no other | the directory |
//! | [`decide`] | decides what should be here | nothing |
//! | `address` | gives a NIC that is new its address | nothing |
//! | [`host_file`] | has drained what the host's own file asks for | the journal |
//! | [`order`] | what a migration asks of a NIC in place of its file | nothing |
//! | [`migrate`] | moves a VM to another host | the directory, and that host's |
//! | [`mod@line`] | says on the board how one NIC is | the directory |
//! | [`board`] | says how networks, NICs and the host are | the directory |
//! | [`source`] | puts these together, and is the source of what is wanted | the directory |
//! | [`ctl`] | does what a person says: writes files, and waits for what is said of them | the directory |
//! | [`drain`] | does the same for what is to be drained | the directory |
//! | [`top`] | shows a person what goes through the NICs | the directory, and the kernel's counters |
//! | [`show`] | shows files and statuses to a person | the directory |

mod address;
pub mod board;
pub mod ctl;
pub mod decide;
pub mod dir;
pub mod drain;
pub mod file;
pub mod host_file;
pub mod line;
pub mod migrate;
pub mod order;
pub mod place;
pub mod show;
pub mod source;
pub mod top;

use std::sync::Arc;

use hybridnic_api::{names::GROUP, v1alpha1::HybridNodeStatus};
use serde_json::json;
use tokio::sync::watch;
use tracing::warn;

use crate::{
    node::publish::{Publisher, SeenNode},
    wants::Told,
};

/// Where it is said what the host has.
#[derive(Debug)]
pub struct NodeFile {
    node: String,
    board: Arc<board::Board>,
    seen: watch::Receiver<Option<SeenNode>>,
    lost: watch::Receiver<()>,
}

impl NodeFile {
    /// Of the host of this name, where this version of its own file was seen.
    pub fn new(node: &str, board: Arc<board::Board>, seen: watch::Receiver<Option<SeenNode>>) -> Self {
        Self {
            node: node.to_owned(),
            lost: board.host_lost(),
            board,
            seen,
        }
    }

    async fn write(&self, status: &HybridNodeStatus) -> std::io::Result<()> {
        // In this order: what is seen by now was seen in this directory, or in a later one.
        let place = self.board.place()?;
        let seen = self.seen.borrow().is_some();
        let mut status = status.clone();
        // Of one in which none was seen, a version of an earlier one would be proof.
        status.observed_generation = status.observed_generation.filter(|_| seen);
        let document = json!({
            "apiVersion": format!("{GROUP}/v1alpha1"),
            "kind": "HybridNode",
            "metadata": { "name": self.node },
            "status": status,
        });
        board::put(&place, file::NODE, Some(&document)).await?;
        self.board.count(&status.pools).await
    }
}

impl Publisher for NodeFile {
    async fn publish(&self, status: &HybridNodeStatus) -> Told {
        match self.write(status).await {
            Ok(()) => Told::Done,
            Err(error) => {
                warn!(%error, "what the host has cannot be written; tried again");
                Told::Failed
            }
        }
    }

    async fn lost(&mut self) {
        // The board, which tells it, is there as long as this is.
        let _ = self.lost.changed().await;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        path::Path,
    };

    use super::{board::Board, place::Place, *};

    fn enter(board: &Board, dir: &Path) {
        let place = Place::new(dir, &File::open(dir).unwrap()).unwrap();
        board.enter(&Arc::new(place));
    }

    /// It would be proof that the host's own file was there.
    #[tokio::test]
    async fn no_version_of_the_hosts_file_is_said_in_another_directory() {
        let home = tempfile::tempdir().unwrap();
        let [dir, aside] = ["nics", "aside"].map(|name| home.path().join(name));
        fs::create_dir(&dir).unwrap();
        let board = Arc::new(Board::new("h1"));
        enter(&board, &dir);
        let (versions, seen) = watch::channel(Some(SeenNode {
            uid: None,
            generation: Some(7),
        }));
        let to = NodeFile::new("h1", Arc::clone(&board), seen);
        let status = HybridNodeStatus {
            observed_generation: Some(7),
            ..HybridNodeStatus::default()
        };
        let said = || board.seen_of_host(&board.place().unwrap());
        assert_eq!(to.publish(&status).await, Told::Done);
        assert_eq!(said(), Some(7));

        // One that is mounted over it, of which the kernel tells nobody.
        fs::rename(&dir, &aside).unwrap();
        fs::create_dir(&dir).unwrap();
        assert_eq!(to.publish(&status).await, Told::Failed);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);

        // One in its place, of which it is told while the status is made.
        board.hide().await;
        versions.send_replace(None);
        assert_eq!(to.publish(&status).await, Told::Failed);
        enter(&board, &dir);
        assert_eq!(to.publish(&status).await, Told::Done);
        assert_eq!(said(), None);
        assert!(dir.join("node.status.yaml").exists());
    }
}
