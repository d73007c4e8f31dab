//! Whether agent or runtime does each part for a VM's NICs. Pure.

/// Which of the two does a part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Owner {
    /// The agent.
    #[default]
    Agent,
    /// What runs the VM. The agent waits for it, and says so.
    Runtime,
}

/// Which of the two does each part. VF and macvtap are always the agent's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Duties {
    /// The standby's device in the guest: plugged and unplugged.
    pub standby: Owner,
    /// The VM's migrations: begun, called off, resumed.
    pub migration: Owner,
    /// The end of a QEMU that will never run the VM.
    pub vm_end: Owner,
}

impl Duties {
    /// A QEMU that the pod runs itself: all of it is the agent's.
    pub const QEMU: Self = Self {
        standby: Owner::Agent,
        migration: Owner::Agent,
        vm_end: Owner::Agent,
    };

    /// A QEMU that somebody has started on the host: it is not known here why it waits or stands still, and the agent does not
    /// end it, except what a migration leaves.
    pub const HOST: Self = Self {
        vm_end: Owner::Runtime,
        ..Self::QEMU
    };
}
