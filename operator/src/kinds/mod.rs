//! The kinds that the operator watches, each in a module of its own: what the caches hold of an object, the keys to look it up, and
//! which reconciles its changes trigger.
//!
//! Another kind is another module here with its [`Object`] and its [`Watched`], a field of [`World`](crate::world::World), and its
//! rights in the chart.

mod attachment;
mod hybrid_node;
mod kubevirt;
mod migration;
mod nad;
mod namespace;
mod network;
mod nic;
mod node;
mod pod;
mod save;

use kube::ResourceExt;

pub use hybrid_node::Agent;
pub use nic::NicGlance;

use crate::cache::Object;
use crate::triggers::Triggers;

/// A kind that the operator watches.
pub trait Watched: Object {
    /// The label that its objects have, where not all are watched.
    const LABEL: Option<&'static str> = None;

    /// Asks for the reconciles that follow from a change: an object that came, changed, or went.
    fn changed(triggers: &Triggers, old: Option<&Self>, new: Option<&Self>);
}

fn namespace_of(object: &impl ResourceExt) -> String {
    object.namespace().unwrap_or_default()
}

/// Drops unused fields of our kinds. Their finalizers are written as a whole, so all of them are kept.
fn unread(object: &mut impl ResourceExt) {
    let meta = object.meta_mut();
    meta.labels = None;
    meta.owner_references = None;
    meta.generate_name = None;
    meta.self_link = None;
}

/// What belongs to other programs.
fn bare(object: &mut impl ResourceExt) {
    let meta = object.meta_mut();
    meta.owner_references = None;
    meta.finalizers = None;
}
