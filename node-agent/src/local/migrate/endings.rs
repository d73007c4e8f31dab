//! What is left to be done at both ends when a migration is over. Pure.

use super::{
    super::order::{Attached, Says},
    hand::{Command, SeenNic},
    plan::{Both, Flight, Side},
};

/// Whether the agent has taken in that the migration is over. Before that its journal may have the order, which it would go on with.
pub fn is_taken(nic: &SeenNic, stays: bool) -> bool {
    let is_free = |attached: &Attached| attached.spec.migration.is_none() && is_observed(attached);
    if stays {
        nic.attached.as_ref().is_none_or(is_free)
    } else {
        !nic.said
    }
}

/// Whether what the agent says of a NIC is about what is wanted of it now.
pub(super) fn is_observed(attached: &Attached) -> bool {
    let status = attached.status.as_ref();
    let observed = status.and_then(|status| status.observed_generation);
    observed.is_some() && observed == attached.generation
}

impl Flight {
    /// The migration is over: each NIC is as its file says, and goes where the VM is not.
    pub(super) fn endings(&self, both: Both<'_>, succeeded: bool) -> Vec<(Side, Command)> {
        let mut changes = Vec::new();
        for (side, stays) in [(Side::Source, !succeeded), (Side::Target, succeeded)] {
            for name in self.nics.keys() {
                let nic = both.nic(side, name);
                let command = nic.and_then(|nic| self.ending(name, nic, side, stays));
                changes.extend(command.map(|command| (side, command)));
            }
        }
        changes
    }

    fn ending(&self, name: &str, nic: &SeenNic, side: Side, stays: bool) -> Option<Command> {
        let (order, _) = nic
            .order
            .as_ref()
            .filter(|(order, _)| order.migration == self.uid)?;
        if !stays && nic.file.is_some() {
            return Some(self.file(name, None));
        }
        if order.says != Says::Over {
            // Without a file it would leave a VM that runs.
            if stays && side == Side::Target && nic.file.is_none() {
                let text = self.nics.get(name)?.there.clone();
                return Some(self.file(name, Some(text)));
            }
            return self.say(name, nic, Says::Over);
        }
        is_taken(nic, stays).then(|| Command::Forget {
            nic: name.to_owned(),
            migration: self.uid.clone(),
            session: self.session,
        })
    }

    /// Whether something of the migration is left at an end; `None` where that is not known.
    pub fn is_left(&self, both: Both<'_>, side: Side) -> Option<bool> {
        let mut left = false;
        for name in self.nics.keys() {
            let nic = both.nic(side, name)?;
            left |= nic
                .order
                .as_ref()
                .is_some_and(|(order, _)| order.migration == self.uid);
        }
        Some(left)
    }

    /// Whether the source's agent has not taken in yet what it was told.
    pub fn source_lags(&self, both: Both<'_>) -> bool {
        let lags = |name| {
            let nic = both.nic(Side::Source, name);
            let Some((order, version)) = nic.and_then(|nic| nic.order.as_ref()) else {
                return false;
            };
            let attached = nic.and_then(|nic| nic.attached.as_ref());
            let taken = |attached: &Attached| attached.generation == Some(*version) && is_observed(attached);
            order.migration == self.uid && !attached.is_some_and(taken)
        };
        self.nics.keys().any(|name| lags(name))
    }
}
