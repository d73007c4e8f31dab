//! Kinds of other projects, with the fields that are read here and no others. No object is written as a whole from these types: the
//! fields that are written are written one by one.

pub mod binding;
pub mod interfaces;
pub mod kubevirt;
pub mod multus;
