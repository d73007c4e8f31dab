//! What the demo leaves: `target/demo/report.json`.

use serde::Serialize;

/// All migrations.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// In their order.
    pub migrations: Vec<Migration>,
}

/// One migration.
#[derive(Debug, Serialize)]
pub struct Migration {
    /// The node that the VM left.
    pub from: String,
    /// The node that it went to.
    pub to: String,
    /// How it ended.
    pub result: String,
    /// The VF before.
    pub vf_before: Vf,
    /// The VF after.
    pub vf_after: Vf,
    /// From its begin until the VM is on its fast path again, in milliseconds.
    pub total_ms: i64,
    /// The VM's pause, by QEMU, in milliseconds.
    pub qemu_downtime_ms: i64,
    /// The traffic.
    pub packets: Packets,
    /// Its parts.
    pub phases: Vec<Phase>,
}

/// A VF on its node.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Vf {
    /// The node.
    pub node: String,
    /// PCI address.
    pub pci: String,
    /// Its PF.
    pub pf: String,
}

/// Packets to the VM and back.
#[derive(Debug, Serialize)]
pub struct Packets {
    /// Between two of them, in milliseconds.
    pub interval_ms: u32,
    /// How many were sent.
    pub sent: u64,
    /// How many did not come back.
    pub lost: u64,
}

/// A part of a migration.
#[derive(Debug, Serialize)]
pub struct Phase {
    /// What is done.
    pub name: String,
    /// Its length in milliseconds.
    pub ms: i64,
    /// Packets lost in it.
    pub lost: u64,
}
