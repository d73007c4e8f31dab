//! `QemuMigration`.

use hybridnic_api::v1alpha1::QemuMigration;

use super::{Watched, unread};
use crate::cache::{Key, Object};
use crate::moves::Stage;
use crate::moves::qemu::{phase, stage};
use crate::triggers::Triggers;
use crate::vm::VmRef;

/// At a glance, its stage; none before it begins.
impl Object for QemuMigration {
    type Glance = Option<Stage>;

    fn keys(&self) -> Vec<Key> {
        let status = self.status.iter();
        let ends = status
            .flat_map(|status| [&status.source, &status.target])
            .flatten();
        let mut keys: Vec<_> = ends.map(|end| Key::Node(end.node_name.clone())).collect();
        keys.dedup();
        keys.push(Key::Vm(VmRef::of_migration(self)));
        keys
    }

    fn glance(&self) -> Option<Stage> {
        stage(phase(self))
    }

    fn trim(&mut self) {
        unread(self);
    }
}

impl Watched for QemuMigration {
    fn changed(triggers: &Triggers, old: Option<&Self>, new: Option<&Self>) {
        if let Some(migration) = new.or(old) {
            triggers.vm(&VmRef::of_migration(migration));
        }
    }
}
