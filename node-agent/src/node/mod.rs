//! The node: which VFs make which pool, who holds them, and what of it is published.

pub mod choice;
pub mod concern;
pub mod ledger;
pub mod own;
pub mod parking;
pub mod provision;
pub mod publish;
pub mod select;
pub mod table;
pub mod trunk;
