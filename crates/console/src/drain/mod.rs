//! What of a node's VFs is to be drained, and how far that is. Pure.

mod change;
mod standing;

pub use change::{Target, changed, covers, left, target};
pub use standing::standing;

/// What of a node is drained.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Which {
    /// The PF, by its interface's name or its PCI address
    pub pf: Option<String>,
    /// All PFs of the node
    #[arg(long)]
    pub all: bool,
    /// All PFs of the node, for the NICs of one network
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,
}
