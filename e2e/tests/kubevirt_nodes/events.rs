//! What QEMU says of itself, as libvirt passes it on in its launcher's pod.

use hybridnic_e2e::kubevirt::Vm;

use super::faults::{in_launcher, with_qemu};
use super::{LONG, Story};

impl Story<'_> {
    /// Waits until a VM's QEMU stops the VM, to hand it over; then does this on its node, with nobody in between.
    pub async fn when_stopped(&self, vm: &Vm, then: &str) {
        // It ends with the first one.
        let stopped = in_launcher(
            &format!("qemu-monitor-event --event STOP --timeout {}", LONG.as_secs()),
            vm,
        );
        let script = with_qemu(vm, &format!("{stopped} && {then}"));
        self.node(vm).await.run(&script, 2 * LONG).await.unwrap();
    }

    /// Waits until a VM's QEMU sends the VM.
    pub async fn until_sent(&self, vm: &Vm) {
        // QEMU's event of it says that it begins, and not that the other end takes it.
        let sends = format!("{} | grep -q 'Data remaining'", in_launcher("domjobinfo", vm));
        let script = with_qemu(vm, &format!("until {sends}; do sleep 0.3; done"));
        self.node(vm).await.run(&script, LONG).await.unwrap();
    }
}
