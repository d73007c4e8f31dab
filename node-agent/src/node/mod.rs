//! The node: which VFs make which pool, who holds them, and what of it is published.

pub mod concern;
pub mod own;
pub mod parking;
pub mod pool;
pub mod provision;
pub mod publish;
pub mod select;
pub mod table;
pub mod trunk;
