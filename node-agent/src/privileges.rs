//! Drops the capabilities that the agent does not need.
//!
//! Capabilities belong to threads, and a new thread inherits those of its creator. So this runs once, on the only
//! thread, before the runtime and everything else that has threads.

use std::fmt;

use rustix::{
    io::{self, Errno},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
        clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
        set_no_new_privs,
    },
};

/// What the agent needs, and why. The chart's DaemonSet has the same list.
pub const NEEDED: [(CapabilitySet, &str); 6] = [
    (CapabilitySet::NET_ADMIN, "netlink: links and settings of VFs"),
    (CapabilitySet::NET_RAW, "RARP frames that say where a MAC is now"),
    (
        CapabilitySet::SYS_RESOURCE,
        "QEMU's limit of locked memory, which a VF needs raised",
    ),
    (
        CapabilitySet::DAC_OVERRIDE,
        "QMP sockets of QEMUs that run as other users",
    ),
    (
        CapabilitySet::CHOWN,
        "the device of a macvtap in a pod, for the user that runs QEMU there",
    ),
    (
        CapabilitySet::MKNOD,
        "nodes by which it is known who has a VF's descriptor, or for a macvtap another one than /dev has",
    ),
];

/// A capability's number is a bit of a set of 64.
const CAPABILITIES: u32 = u64::BITS;

/// Why capabilities could not be given up.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub struct Error {
    step: &'static str,
    #[source]
    source: Errno,
}

/// What is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// What the agent has.
    pub kept: CapabilitySet,
    /// What it needs and did not have.
    pub missing: CapabilitySet,
}

impl Left {
    fn of(permitted: CapabilitySet) -> Self {
        let needed: CapabilitySet = NEEDED.iter().map(|(capability, _)| *capability).collect();
        Self {
            kept: permitted & needed,
            missing: needed - permitted,
        }
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_names(f, self.kept)?;
        if !self.missing.is_empty() {
            f.write_str(", without ")?;
            write_names(f, self.missing)?;
        }
        Ok(())
    }
}

/// The names of the capabilities, with spaces between.
fn write_names(f: &mut fmt::Formatter<'_>, set: CapabilitySet) -> fmt::Result {
    for (number, (name, _)) in set.iter_names().enumerate() {
        write!(f, "{}{name}", if number == 0 { "" } else { " " })?;
    }
    Ok(())
}

/// Drops all capabilities of this thread except those in [`NEEDED`] from the bounding, permitted, effective, inheritable and
/// ambient sets, and forbids it to gain new ones (`no_new_privs`).
///
/// Call it after modules are loaded and before there is another thread.
pub fn drop_unneeded() -> Result<Left, Error> {
    let had = capabilities(None).map_err(failed("read the capabilities"))?;
    let left = Left::of(had.permitted);
    drop_all_but(left.kept)?;
    Ok(left)
}

/// The same with this list; it does not get any of these that it does not have.
pub fn drop_all_but(needed: CapabilitySet) -> Result<(), Error> {
    let had = capabilities(None).map_err(failed("read the capabilities"))?;
    let kept = had.permitted & needed;
    // First of all, because it needs SETPCAP.
    bound(kept).map_err(failed("narrow the bounding set"))?;
    clear_ambient_capability_set().map_err(failed("clear the ambient set"))?;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).map_err(failed("set the capabilities"))?;
    set_no_new_privs(true).map_err(failed("set no_new_privs"))
}

fn failed(step: &'static str) -> impl Fn(Errno) -> Error {
    move |source| Error { step, source }
}

/// Leaves only `kept` in the bounding set, and no capability that is newer than this program.
fn bound(kept: CapabilitySet) -> io::Result<()> {
    for number in 0..CAPABILITIES {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(capability) {
            Ok(true) if !kept.contains(capability) => remove_capability_from_bounding_set(capability)?,
            Ok(_) => {}
            // The kernel has no capability with this number or a higher one.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_kept_and_what_is_missing_is_said() {
        let all = Left::of(CapabilitySet::all());
        assert_eq!(
            all.to_string(),
            "CHOWN DAC_OVERRIDE NET_ADMIN NET_RAW SYS_RESOURCE MKNOD"
        );
        assert_eq!(all.missing, CapabilitySet::empty());
        let some = Left::of(CapabilitySet::NET_ADMIN | CapabilitySet::SYS_ADMIN);
        assert_eq!(some.kept, CapabilitySet::NET_ADMIN);
        assert_eq!(
            some.to_string(),
            "NET_ADMIN, without CHOWN DAC_OVERRIDE NET_RAW SYS_RESOURCE MKNOD"
        );
    }

    #[test]
    fn the_chart_says_the_same() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../deploy/chart/templates/agent/daemonset.yaml"
        );
        let text = std::fs::read_to_string(path).unwrap();
        let table = text
            .lines()
            .skip_while(|line| !line.starts_with("#   capability"))
            .skip(2);
        let mut said: Vec<_> = table
            .map_while(|line| line.strip_prefix("#   "))
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        let needed: CapabilitySet = NEEDED.iter().map(|(capability, _)| *capability).collect();
        let mut names: Vec<_> = needed.iter_names().map(|(name, _)| name).collect();
        said.sort_unstable();
        names.sort_unstable();
        assert_eq!(said, names);
    }
}
