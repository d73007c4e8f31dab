//! Passes what a NIC asks to the runtime of its VM. What a runtime does itself is refused here.

use tokio::time::Instant;

use super::{
    LetGo, Machine, MachineError, MachineSeen, PlugPath, StandbyPlug, VfPlug, Vm, kubevirt::Launcher,
};
use crate::journal::Record;

impl Machine {
    /// What is seen of a NIC's guest.
    pub async fn observe(&self, vm: &Vm, record: &Record) -> Result<MachineSeen, MachineError> {
        match self {
            Self::Qemu(qemu) => qemu.observe(vm, record).await,
            Self::Kubevirt(launcher) => launcher.observe(vm, record).await,
        }
    }

    /// Names of all of the guest's ports.
    pub async fn ports(&self) -> Result<Vec<String>, MachineError> {
        match self {
            Self::Qemu(qemu) => qemu.ports().await,
            Self::Kubevirt(launcher) => launcher.qemu.ports().await,
        }
    }

    /// Names of the guest's ports that are free for hot plug.
    pub async fn free_ports(&self) -> Result<Vec<String>, MachineError> {
        match self {
            Self::Qemu(qemu) => qemu.free_ports().await,
            Self::Kubevirt(launcher) => launcher.qemu.free_ports().await,
        }
    }

    /// Whether one of the guest's ports, which is there, is free for hot plug.
    pub async fn is_free_port(&self, port: &str) -> Result<bool, MachineError> {
        match self {
            Self::Qemu(qemu) => qemu.is_free_port(port).await,
            Self::Kubevirt(launcher) => launcher.qemu.is_free_port(port).await,
        }
    }

    /// Removes what a standby has left that was not completely plugged or unplugged.
    pub async fn clear_standby(&self, nic: &str) -> Result<(), MachineError> {
        match self {
            Self::Qemu(qemu) => qemu.clear_standby(nic).await,
            Self::Kubevirt(_) => Ok(()),
        }
    }

    /// Plugs a standby.
    pub async fn plug_standby(&self, plug: &StandbyPlug) -> Result<(), MachineError> {
        match self {
            Self::Qemu(qemu) => qemu.plug_standby(plug).await,
            Self::Kubevirt(_) => Err(Launcher::not_ours()),
        }
    }

    /// Whether a VF can be plugged by descriptors that are handed over.
    pub fn takes_descriptors(&self) -> bool {
        match self {
            Self::Qemu(qemu) => qemu.takes_descriptors(),
            Self::Kubevirt(launcher) => launcher.qemu.takes_descriptors(),
        }
    }

    /// Plugs a VF. All guest memory is pinned meanwhile, which may take minutes.
    pub async fn plug_vf(&self, plug: VfPlug) -> Result<PlugPath, MachineError> {
        match self {
            Self::Qemu(qemu) => qemu.plug_vf(plug).await,
            Self::Kubevirt(launcher) => launcher.qemu.plug_vf(plug).await,
        }
    }

    /// Takes back a VF's descriptor that was handed over for the device of this id, and may not be in use.
    pub async fn take_back(&self, id: &str) {
        match self {
            Self::Qemu(qemu) => qemu.take_back(id).await,
            Self::Kubevirt(launcher) => launcher.qemu.take_back(id).await,
        }
    }

    /// Asks the guest to let go of a device, and waits until it has.
    pub async fn unplug(&self, id: &str, deadline: Instant) -> Result<LetGo, MachineError> {
        match self {
            Self::Qemu(qemu) => qemu.unplug(id, deadline).await,
            Self::Kubevirt(launcher) => launcher.qemu.unplug(id, deadline).await,
        }
    }

    /// Announces the guest's own address to the switches, from these devices.
    pub async fn announce(&self, ids: &[&str]) -> Result<(), MachineError> {
        match self {
            Self::Qemu(qemu) => qemu.announce(ids).await,
            Self::Kubevirt(launcher) => launcher.qemu.announce(ids).await,
        }
    }

    /// A device's address in the guest, where it is known.
    pub async fn address(&self, id: &str) -> Option<String> {
        match self {
            Self::Qemu(qemu) => qemu.address(id).await,
            Self::Kubevirt(launcher) => launcher.qemu.address(id).await,
        }
    }

    /// Ends what will never run the VM, and waits until it has gone.
    pub async fn end(&self, vm: &Vm, record: &Record) -> Result<(), MachineError> {
        match self {
            Self::Qemu(qemu) => qemu.end(vm, record).await,
            Self::Kubevirt(_) => Err(Launcher::not_ours()),
        }
    }
}
