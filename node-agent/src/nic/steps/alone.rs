//! Whether the guest of a NIC without a standby uses its VF. There is no standby whose silence would show where the traffic is: the guest's
//! driver of the VF has switched its interrupts on, or not.

use hybridnic_net::interrupts;
use tokio::time::Instant;
use tracing::warn;

use super::{
    Context, announce,
    guest::{GuestError, LOOK, LOOK_AT_REST},
};
use crate::{
    journal::VfRecord,
    nic::{observe, plan::Sends},
};

/// Waits until the guest's driver has the VF, or the goal changes, or the deadline passes.
pub(super) async fn await_guest(cx: &mut Context, vf: &VfRecord) -> Result<(), GuestError> {
    let deadline = Instant::now() + cx.host.options.plug_deadline;
    let mut pulse = cx.vm.pulse();
    loop {
        let read = interrupts::read(vf.address);
        if read.as_ref().is_ok_and(|read| read.vectors > 0) {
            (cx.learnt.moved, cx.learnt.ignores_vf) = (true, None);
            // The MAC was on another port of the switch, or on none.
            announce::on_pf(cx).await?;
            return Ok(());
        }
        if Instant::now() >= deadline {
            if read.is_err() {
                // Nothing is learnt of the guest.
                return Ok(());
            }
            warn!(vf = %vf.address, pf = vf.pf_name, "the guest does not use the VF");
            cx.learnt.ignores_vf = Some(Sends::ByNeither);
            return Ok(());
        }
        // This step follows itself until they can be read.
        let pause = if read.is_err() { LOOK_AT_REST } else { LOOK };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // Both are looked at by the task.
            _ = cx.interrupt.changed() => return Ok(()),
            _ = pulse.changed() => {}
        }
    }
}

/// Resolves when the guest, which `uses` its VF or does not, has started or stopped using it.
pub async fn until_use_changes(cx: &Context, uses: bool) {
    let Some(vf) = &cx.record.vf else {
        return std::future::pending().await;
    };
    while observe::uses(vf) == uses {
        // The kernel does not report interrupts.
        tokio::time::sleep(LOOK_AT_REST).await;
    }
}
