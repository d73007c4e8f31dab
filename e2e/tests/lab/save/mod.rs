//! A VM is written to a file on one node, and comes back from it on the other; snapshots; what is refused; and what dies meanwhile.
//!
//! Both nodes mount a directory of the host, as pods mount a volume of a file server.

mod called_off;
mod files;
mod killed;
mod objects;
mod refused;
mod snapshots;
mod there;

pub use called_off::kept;

use std::sync::Arc;

use libtest_mimic::Trial;

use crate::suite::Suite;

pub fn tests(suite: &Arc<Suite>) -> Vec<Trial> {
    vec![
        suite.test("a_vm_is_saved_on_one_node_and_restored_on_the_other", async |w| {
            there::there(w).await
        }),
        suite.test("a_vm_runs_on_after_a_snapshot", async |w| {
            snapshots::snapshots(w).await
        }),
        suite.test("a_save_that_is_called_off_leaves_the_vm_and_no_file", async |w| {
            called_off::called_off(w).await
        }),
        suite.test("a_wrong_file_is_refused", async |w| refused::refused(w).await),
        suite.test("an_agent_dies_while_a_vm_is_saved_or_restored", async |w| {
            killed::killed(w).await
        }),
    ]
}
