//! `QemuSave` and `QemuRestore`.

use hybridnic_api::v1alpha1::{QemuRestore, QemuSave};

use super::{Watched, unread};
use crate::cache::{Key, Object};
use crate::moves::Stage;
use crate::moves::file::OnFile;
use crate::moves::qemu::stage;
use crate::triggers::Triggers;
use crate::vm::VmRef;

fn keys_of(object: &impl OnFile) -> Vec<Key> {
    let end = object.file_status().and_then(|status| status.end.as_ref());
    let node = end.map(|end| Key::Node(end.node_name.clone()));
    node.into_iter()
        .chain([Key::Vm(VmRef::on_file(object))])
        .collect()
}

/// At a glance, its stage; none before it begins.
impl Object for QemuSave {
    type Glance = Option<Stage>;

    fn keys(&self) -> Vec<Key> {
        keys_of(self)
    }

    fn glance(&self) -> Option<Stage> {
        stage(self.phase())
    }

    fn trim(&mut self) {
        unread(self);
    }
}

/// At a glance, its stage; none before it begins.
impl Object for QemuRestore {
    type Glance = Option<Stage>;

    fn keys(&self) -> Vec<Key> {
        keys_of(self)
    }

    fn glance(&self) -> Option<Stage> {
        stage(self.phase())
    }

    fn trim(&mut self) {
        unread(self);
    }
}

impl Watched for QemuSave {
    fn changed(triggers: &Triggers, old: Option<&Self>, new: Option<&Self>) {
        if let Some(save) = new.or(old) {
            triggers.vm(&VmRef::on_file(save));
        }
    }
}

impl Watched for QemuRestore {
    fn changed(triggers: &Triggers, old: Option<&Self>, new: Option<&Self>) {
        if let Some(restore) = new.or(old) {
            triggers.vm(&VmRef::on_file(restore));
        }
    }
}
