//! Kinds of other projects, with the fields that are read here and no others. None of them is made from these types as a whole: what
//! is written of them is written field by field.

pub mod binding;
pub mod interfaces;
pub mod kubevirt;
pub mod multus;
