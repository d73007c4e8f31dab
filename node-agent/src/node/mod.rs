//! The node: which VFs make which pool, which NICs hold them, and what is published about it.

pub mod choice;
pub mod concern;
pub mod drain;
pub mod ledger;
pub mod object;
pub mod own;
pub mod parking;
pub mod provision;
pub mod publish;
pub mod select;
pub mod table;
pub mod trunk;
