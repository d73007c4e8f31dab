//! Version `v1alpha1` of the API.

mod attachment;
mod common;
mod migration;
mod network;
mod nic;
mod node;

pub use attachment::*;
pub use common::*;
pub use migration::*;
pub use network::*;
pub use nic::*;
pub use node::*;
