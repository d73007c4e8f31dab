//! What should be on this node, and where its status is reported. Nothing else in the agent knows where this comes from.
//!
//! | module | is |
//! |---|---|
//! | [`cluster`] | the API server: `NicAttachment`s of this node |

pub mod cluster;

use std::{fmt::Debug, future::Future, path::PathBuf};

use hybridnic_api::v1alpha1::{NicAttachmentSpec, NicAttachmentStatus};

/// A NIC's attachment that should be here, or is to go.
#[derive(Clone, Debug, PartialEq)]
pub struct Want {
    /// What it is.
    pub id: WantId,
    /// When it was made, in seconds since the epoch.
    pub created: i64,
    /// What is asked for.
    pub spec: NicAttachmentSpec,
    /// The QMP socket of the VM's QEMU, where that runs on the host and not in a pod.
    pub socket: Option<PathBuf>,
    /// Which version of that it is.
    pub generation: Option<i64>,
    /// Whether it is to go.
    pub deleting: bool,
    /// What was said of it last.
    pub status: Option<NicAttachmentStatus>,
}

/// Which attachment. A namesake has another uid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantId {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// What is heard.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// Everything that should be here follows, each as [`Heard::Wanted`]: an attachment that is not among it is gone.
    Begins,
    /// This should be here, or is to go.
    Wanted(Box<Want>),
    /// That was all.
    Ends,
    /// The one of this uid is no more.
    Gone(String),
}

/// The source of what should be here.
pub trait Wants: Send {
    /// Where it is reported what becomes of one.
    type Teller: Teller;

    /// What is heard next. Waits while there is nothing; `None`: nothing ever follows.
    fn next(&mut self) -> impl Future<Output = Option<Heard>> + Send;

    /// Where the status of this one is reported.
    fn teller(&self, of: &WantId) -> Self::Teller;
}

/// Where the status of one attachment is reported.
pub trait Teller: Debug + Send + Sync + 'static {
    /// Tries once; an attachment that is gone needs no report.
    fn tell(&self, word: &Word<'_>) -> impl Future<Output = Told> + Send;
}

/// What is reported.
#[derive(Clone, Copy, Debug)]
pub enum Word<'a> {
    /// Whether the agent has it: while it has, the attachment does not go.
    Held(bool),
    /// How it is.
    Status(&'a NicAttachmentStatus),
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is written, or nothing is left to write to.
    Done,
    /// Nobody answers.
    Failed,
    /// It is not taken, and hardly will be in a moment.
    Refused,
}
