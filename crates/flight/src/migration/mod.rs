//! The phase of a `QemuMigration`: [`step::step`].
//!
//! | module | decides |
//! |---|---|
//! | [`step`] | the next phase |
//! | `begin` | where a migration comes from, where it goes, and with which NICs |
//! | [`encryption`] | whether the stream is encrypted |
//! | [`record`] | how a decision is written into the status |
//! | [`worth`] | whether a status is worth a write |
//! | [`phases`] | how long a migration has been as it is |
//! | [`inputs`] | nothing: what is observed, and how it is read |

mod begin;
pub mod encryption;
#[cfg(test)]
mod encryption_tests;
pub mod inputs;
pub mod phases;
pub mod record;
#[cfg(test)]
mod simulation_tests;
pub mod step;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod undecided_tests;
pub mod worth;
#[cfg(test)]
mod writes_tests;
