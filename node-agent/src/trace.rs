//! The traces that an agent sends to a collector: what it does for a migration, and how long that takes.

use std::{borrow::Cow, time::SystemTime};

use hybridnic_api::v1alpha1::MigrationOrder;
use hybridnic_process::traces::Span;

use crate::host::Host;

/// Something that has begun.
#[must_use = "it is told at its end"]
pub struct Begun {
    name: Cow<'static, str>,
    from: SystemTime,
}

/// Notes that something begins now.
pub fn begin(name: impl Into<Cow<'static, str>>) -> Begun {
    Begun {
        name: name.into(),
        from: SystemTime::now(),
    }
}

impl Begun {
    /// Reports it, if it was done for a migration and a collector is configured.
    pub fn end(
        self,
        host: &Host,
        order: Option<&MigrationOrder>,
        error: Option<String>,
        attributes: impl FnOnce() -> Vec<(&'static str, String)>,
    ) {
        let Some(order) = order.filter(|_| host.traces.are_on()) else {
            return;
        };
        let mut attributes = attributes();
        attributes.push(("k8s.node.name", host.options.node_name.clone()));
        attributes.push(("hybridnic.migration", order.migration.name.clone()));
        let span = Span {
            name: self.name,
            from: self.from,
            to: SystemTime::now(),
            attributes,
            error,
        };
        host.traces.part(&order.migration.uid, span);
    }
}
