//! What a NIC's task knows of its node's PFs and their VFs.

use crate::model::Model;
use crate::state::{Nic, Node, PFS, Pf};

/// How the PFs are to a NIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Cards {
    /// That of its VF.
    pub vf: Pf,
    /// That of its standby.
    pub standby: Pf,
    /// Whether a VF of another PF than its VF's can be had.
    pub other: bool,
    /// Whether one of its standby's can.
    pub home: bool,
}

impl Cards {
    pub(crate) fn of(model: &Model, node: &Node, nic: &Nic) -> Self {
        let offered = Offered::of(model, node);
        let vf = nic.vf.map(|vf| vf.index);
        Self {
            vf: vf.map(|pf| node.pf(pf)).unwrap_or_default(),
            standby: nic.standby.map(|pf| node.pf(pf)).unwrap_or_default(),
            other: vf.is_some_and(|vf| (0..model.vfs).any(|pf| pf != vf && offered.has(pf))),
            home: vf.is_some() && nic.standby.is_some_and(|pf| offered.has(pf)),
        }
    }
}

/// The VFs that a NIC may take.
pub(crate) struct Offered([bool; PFS]);

impl Offered {
    pub(crate) fn of(model: &Model, node: &Node) -> Self {
        let mut offered = [false; PFS];
        for vf in node.fit(model.vfs) {
            let held = node
                .nics
                .iter()
                .any(|nic| nic.vf.is_some_and(|held| held.index == vf));
            if let Some(offered) = offered.get_mut(usize::from(vf)) {
                *offered = !held;
            }
        }
        Self(offered)
    }

    pub(crate) fn has(&self, vf: u8) -> bool {
        self.0.get(usize::from(vf)) == Some(&true)
    }

    pub(crate) fn first(&self) -> Option<u8> {
        let first = self.0.iter().position(|offered| *offered)?;
        u8::try_from(first).ok()
    }
}
