//! Attachments that were written and have not come back to the cache yet.
//!
//! Until a write has come back by the watch, the cache shows the object as it was before, and a reconcile of the NIC meanwhile
//! would decide the same again: a write that is refused as a conflict, or a second deletion. So an attachment that was written is
//! left alone until the cache shows a change.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hybridnic_api::v1alpha1::NicAttachment;
use kube::ResourceExt;

use crate::cache::Name;

/// A write that has not come back for so long is no longer waited for: the next reconcile decides again whether it is needed.
const LOST: Duration = Duration::from_secs(2);

/// What was written of NICs' attachments, by NIC, and has not come back.
#[derive(Debug, Default)]
pub struct Echoes(Mutex<HashMap<Name, Vec<Written>>>);

#[derive(Debug)]
struct Written {
    attachment: String,
    /// The version that it was decided on; none where there was no attachment.
    over: Option<String>,
    at: Instant,
}

impl Echoes {
    /// The writes of a NIC that are still to come back: these attachments are as they were before them, or not there.
    pub fn awaited(&self, nic: &Name, seen: &[Arc<NicAttachment>], now: Instant) -> Awaited {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(written) = all.get_mut(nic) else {
            return Awaited::default();
        };
        written.retain(|written| {
            let is = seen
                .iter()
                .find(|seen| seen.metadata.name.as_ref() == Some(&written.attachment));
            let unchanged = is.and_then(|is| is.resource_version()) == written.over;
            unchanged && now.saturating_duration_since(written.at) < LOST
        });
        let again = written
            .iter()
            .map(|written| LOST.saturating_sub(now.saturating_duration_since(written.at)));
        let awaited = Awaited {
            again: again.min(),
            names: written.iter().map(|written| written.attachment.clone()).collect(),
        };
        if written.is_empty() {
            all.remove(nic);
        }
        awaited
    }

    /// An attachment of a NIC was written, by a decision on this version of it.
    pub fn written(&self, nic: Name, attachment: String, over: Option<String>, now: Instant) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(nic).or_default().push(Written {
            attachment,
            over,
            at: now,
        });
    }

    /// The NIC is gone.
    pub fn forget(&self, nic: &Name) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(nic);
    }
}

/// The attachments that are to be left alone for now.
#[derive(Debug, Default)]
pub struct Awaited {
    names: Vec<String>,
    /// After how long they are waited for no more.
    pub again: Option<Duration>,
}

impl Awaited {
    /// Whether this one is.
    pub fn has(&self, attachment: &str) -> bool {
        self.names.iter().any(|name| name == attachment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::attachment;

    fn at_version(version: &str) -> Arc<NicAttachment> {
        let mut attachment = attachment("eth0", "a", "n1");
        attachment.metadata.resource_version = Some(version.to_owned());
        Arc::new(attachment)
    }

    #[test]
    fn what_was_written_is_left_alone_until_it_is_seen() {
        let (echoes, nic, start) = (Echoes::default(), Name::new("ns", "eth0"), Instant::now());
        let (old, new) = ([at_version("1")], [at_version("2")]);
        let name = old[0].name_any();
        let at = |ms| start + Duration::from_millis(ms);
        let awaited = |seen: &[Arc<NicAttachment>], now| echoes.awaited(&nic, seen, now);
        assert!(!awaited(&old, at(0)).has(&name));

        echoes.written(nic.clone(), name.clone(), Some("1".into()), at(0));
        let wait = awaited(&old, at(500));
        assert!(wait.has(&name) && !wait.has("other"));
        assert_eq!(wait.again, Some(Duration::from_millis(1500)));
        let none = echoes.awaited(&Name::new("ns", "eth1"), &old, at(500));
        assert!(!none.has(&name), "another NIC's");
        let seen = awaited(&new, at(600));
        assert!(!seen.has(&name) && seen.again.is_none());
        assert!(!awaited(&old, at(700)).has(&name), "it is said once");
    }

    #[test]
    fn one_that_was_made_or_deleted_too_and_none_for_ever() {
        let (echoes, nic, start) = (Echoes::default(), Name::new("ns", "eth0"), Instant::now());
        let old = [at_version("1")];
        let name = old[0].name_any();
        echoes.written(nic.clone(), name.clone(), None, start);
        assert!(echoes.awaited(&nic, &[], start).has(&name));
        assert!(!echoes.awaited(&nic, &old, start).has(&name), "it was made");

        echoes.written(nic.clone(), name.clone(), Some("1".into()), start);
        assert!(echoes.awaited(&nic, &old, start).has(&name));
        assert!(!echoes.awaited(&nic, &[], start).has(&name), "it is gone");

        echoes.written(nic.clone(), name.clone(), Some("1".into()), start);
        assert!(!echoes.awaited(&nic, &old, start + LOST).has(&name));
        echoes.written(nic.clone(), name.clone(), Some("1".into()), start);
        echoes.forget(&nic);
        assert!(!echoes.awaited(&nic, &old, start).has(&name));
        assert!(echoes.0.lock().unwrap().is_empty());
    }
}
