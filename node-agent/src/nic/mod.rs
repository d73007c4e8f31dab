//! One NIC on this node: observe → plan → execute → report, until it is where it should be.
//!
//! | module | does | touches |
//! |---|---|---|
//! | [`seen`] | names what can be seen | nothing |
//! | [`plan`] | decides the next step | nothing |
//! | [`settings`] | knows what a network's settings mean for VF and standby | nothing |
//! | [`ids`] | names devices | nothing |
//! | [`observe`] | sees how things are | reads only |
//! | [`silence`] | judges whether the guest has moved to its VF | nothing |
//! | [`disuse`] | judges whether it has stopped using it | nothing |
//! | [`link_loss`] | judges whether a PF's link is gone for good | nothing |
//! | [`way_home`] | judges whether a NIC that is split may go back to its standby's PF | nothing |
//! | [`macs`] | knows which MACs belong to NICs | nothing |
//! | [`steps`] | takes one step | VF, macvtap, QEMU, journal |
//! | [`quirks`] | knows drivers | nothing |
//! | [`report`] | says how things are | nothing |
//! | [`stopwatch`] | tells how long a switch between VF and standby took | nothing |
//! | [`task`] | drives one NIC | the others |

pub mod disuse;
pub mod ids;
pub mod link_loss;
pub mod macs;
pub mod observe;
pub mod plan;
pub mod quirks;
pub mod report;
pub mod seen;
pub mod settings;
pub mod silence;
pub mod steps;
pub mod stopwatch;
pub mod task;
pub mod way_home;
