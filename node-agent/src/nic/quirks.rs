//! What is known about PF drivers that the kernel does not show.

use hybridnic_api::v1alpha1::SwitchOrder;

/// The order in which VF and standby are switched with a PF driver, when nothing else speaks against it.
///
/// `ice`: kernels with commit 47ebc7b02485 refuse a VF the MAC that the PF's filter has ("Unicast MAC already exists
/// on this PF"). Other drivers are assumed to accept it: a refusal is noticed, and the order changed.
pub fn driver_order(pf_driver: &str) -> SwitchOrder {
    match pf_driver {
        "ice" => SwitchOrder::BreakBeforeMake,
        _ => SwitchOrder::MakeBeforeBreak,
    }
}
