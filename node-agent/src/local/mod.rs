//! An agent without a cluster: `hybridnic-agent local --dir DIR`. Everything that touches devices is the same; what is wanted comes from
//! files, and what becomes of it is said beside them.
//!
//! | module | does | touches |
//! |---|---|---|
//! | [`mod@file`] | reads what a file asks for, and checks it as an API server would | nothing |
//! | [`dir`] | reads the directory, and hears what happens in it | the directory |
//! | [`decide`] | decides what should be here | nothing |
//! | `address` | gives a NIC that is new its address | nothing |
//! | [`host_file`] | decides what of the host is to be drained | nothing |
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
pub mod show;
pub mod source;
pub mod top;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use hybridnic_api::{names::GROUP, v1alpha1::HybridNodeStatus};
use serde_json::json;
use tracing::warn;

use crate::{node::publish::Publisher, wants::Told};

/// Where it is said what the host has.
#[derive(Debug)]
pub struct NodeFile {
    dir: PathBuf,
    node: String,
    board: Arc<board::Board>,
}

impl NodeFile {
    /// In this directory, of the host of this name.
    pub fn new(dir: &Path, node: &str, board: Arc<board::Board>) -> Self {
        Self {
            dir: dir.to_owned(),
            node: node.to_owned(),
            board,
        }
    }

    async fn write(&self, status: &HybridNodeStatus) -> std::io::Result<()> {
        let document = json!({
            "apiVersion": format!("{GROUP}/v1alpha1"),
            "kind": "HybridNode",
            "metadata": { "name": self.node },
            "status": status,
        });
        board::put(&self.dir, &file::status(file::NODE), Some(&document)).await?;
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
}
