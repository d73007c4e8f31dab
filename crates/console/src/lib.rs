//! What an administrator looks at, on a terminal: the same with a cluster (`kubectl hybridnic`) and without (`hybridnic-agent ctl`).
//!
//! | module | does | touches |
//! |---|---|---|
//! | [`top`] | networks, nodes and NICs in three tables | nothing |
//! | [`drain`] | what is to be drained, and how far that is | nothing |
//! | [`standing`] | how far what was told is | nothing |
//! | [`style`] | colours and tables | nothing |
//! | [`mod@print`] | text for standard output | standard output |
//! | [`canvas`] | a picture that is drawn over again | the terminal |
//! | [`screen`] | a picture that has the terminal to itself, and the keys that end it | the terminal |

pub mod canvas;
pub mod drain;
pub mod print;
pub mod screen;
pub mod standing;
pub mod style;
pub mod top;

pub use standing::Standing;
