//! The host's own file, `node.yaml`: what of its VFs is to be drained.
//!
//! What is drained stays so as long as the file cannot be read or understood. A file that is gone ends the drain only where it is proven
//! that it was in this directory, as with a NIC's: by this agent, which has seen it, or by the host's status, in which an earlier one has
//! said which version of it that had seen.

use hybridnic_api::{conditions::reasons, v1alpha1::Drain};
use tokio::sync::watch;

use super::{dir::Content, file};
use crate::{host::Host, node::publish::SeenNode};

/// What was read last.
#[derive(Clone, Debug, Default, PartialEq)]
enum Reading {
    /// Nothing yet: there was no file.
    #[default]
    Never,
    /// It asks for this.
    Asks(Drain),
    /// What it asks for is not known; says why.
    Unknown(String),
    /// It is not there.
    Gone,
}

/// What follows from it.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    /// What is to be drained; `None` leaves it as it is.
    drain: Option<Drain>,
    /// What is wrong.
    trouble: Option<String>,
}

/// The host's file.
#[derive(Debug)]
pub struct HostFile {
    reading: Reading,
    /// It was in this directory.
    proven: bool,
    /// The version of it that was seen here last, also by an earlier agent. As long as its end has not been acted on, it is in the host's
    /// status: an agent that comes after this one needs it as proof.
    version: Option<i64>,
    seen: watch::Sender<Option<SeenNode>>,
}

impl HostFile {
    /// `seen` is told which version was seen.
    pub fn new(seen: watch::Sender<Option<SeenNode>>) -> Self {
        Self {
            reading: Reading::default(),
            proven: false,
            version: None,
            seen,
        }
    }

    /// An earlier agent has seen it in this directory, in this version.
    pub fn prove(&mut self, version: i64) {
        if !self.proven {
            (self.proven, self.version) = (true, Some(version));
            self.say();
        }
    }

    /// The directory is another one, in which it was not seen yet.
    pub fn hide(&mut self) {
        (self.reading, self.proven, self.version) = (Reading::Never, false, None);
        self.say();
    }

    /// Takes in what was read, where `drain` is what is drained now; whether the file is away, which may pass.
    pub fn read(&mut self, content: Content, drain: &Drain) -> bool {
        self.reading = match content {
            Content::Text(text) => {
                self.version = Some(file::generation(&text));
                match file::host(&text) {
                    Ok(drain) => Reading::Asks(drain),
                    Err(why) => Reading::Unknown(why),
                }
            }
            Content::Unreadable(why) => Reading::Unknown(why),
            Content::Unknown(why) => {
                self.reading = Reading::Unknown(why);
                return false;
            }
            Content::Absent => {
                let never = self.reading == Reading::Never && !self.proven && drain.is_empty();
                return !never && self.reading != Reading::Gone;
            }
        };
        self.proven = true;
        false
    }

    /// It was away for so long that this counts.
    pub fn gone(&mut self) {
        (self.reading, self.version) = (Reading::Gone, None);
    }

    /// Has it done.
    pub async fn act(&self, host: &Host) {
        let outcome = decide(&self.reading, self.proven, &host.pools.drain());
        let what = format!("the file {}", file::asking(file::NODE));
        match outcome.trouble {
            Some(why) => host.troubles.begin(&what, reasons::FILE_UNKNOWN, why),
            None => host.troubles.end(&what),
        }
        if let Some(drain) = &outcome.drain {
            host.note_drain(drain).await;
        }
        self.say();
    }

    /// Says which version was seen.
    fn say(&self) {
        let seen = self.version.map(|version| SeenNode {
            uid: None,
            generation: Some(version),
        });
        self.seen.send_if_modified(|before| {
            let changed = *before != seen;
            *before = seen;
            changed
        });
    }
}

fn decide(reading: &Reading, proven: bool, drained: &Drain) -> Outcome {
    let file = file::asking(file::NODE);
    match reading {
        Reading::Asks(drain) => Outcome {
            drain: Some(drain.clone()),
            trouble: None,
        },
        Reading::Unknown(why) => Outcome {
            drain: None,
            trouble: Some(format!("{file}: {why}; what is drained stays as it was")),
        },
        Reading::Gone if proven => Outcome {
            drain: Some(Drain::default()),
            ..Outcome::default()
        },
        Reading::Gone if !drained.is_empty() => Outcome {
            trouble: Some(format!(
                "something is drained, and neither {file} nor what was said of it is in the directory, so nothing proves that it was \
                 deleted, and what is drained stays so. Is this another directory? `ctl undrain-pf --all` ends it"
            )),
            ..Outcome::default()
        },
        Reading::Never | Reading::Gone => Outcome::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain() -> Drain {
        Drain {
            pfs: vec!["0000:01:00.0".into()],
            ..Drain::default()
        }
    }

    fn text(drain: &Drain) -> Content {
        Content::Text(file::of_host(drain, "id").unwrap())
    }

    fn new() -> HostFile {
        HostFile::new(watch::Sender::default())
    }

    fn outcome(file: &HostFile, drained: &Drain) -> Outcome {
        decide(&file.reading, file.proven, drained)
    }

    #[test]
    fn a_host_without_the_file_is_as_it_was() {
        let mut file = new();
        assert!(!file.read(Content::Absent, &Drain::default()));
        assert_eq!(outcome(&file, &Drain::default()), Outcome::default());
    }

    #[test]
    fn what_it_asks_for_is_drained_and_stays_so_while_it_is_not_understood() {
        let mut file = new();
        assert!(!file.read(text(&drain()), &Drain::default()));
        let asked = outcome(&file, &Drain::default());
        assert_eq!((asked.drain, asked.trouble), (Some(drain()), None));
        assert!(file.version.is_some());
        for wrong in [
            Content::Text("spec: {".into()),
            Content::Unreadable("it is a link".into()),
        ] {
            assert!(!file.read(wrong, &drain()));
            let unknown = outcome(&file, &drain());
            assert_eq!(unknown.drain, None);
            assert!(unknown.trouble.unwrap().contains("stays as it was"));
        }
    }

    #[test]
    fn one_that_is_deleted_ends_the_drain_after_a_while() {
        let mut file = new();
        file.read(text(&drain()), &Drain::default());
        assert!(file.read(Content::Absent, &drain()), "an editor may be at work");
        assert_eq!(outcome(&file, &drain()).drain, Some(drain()));
        file.gone();
        assert_eq!(outcome(&file, &drain()).drain, Some(Drain::default()));
        assert!(!file.read(Content::Absent, &Drain::default()), "once");
    }

    #[test]
    fn after_a_restart_only_a_status_proves_that_it_was_deleted() {
        let mut file = new();
        assert!(file.read(Content::Absent, &drain()), "the journal has a drain");
        file.gone();
        let unproven = outcome(&file, &drain());
        assert_eq!((unproven.drain, file.version), (None, None));
        assert!(unproven.trouble.unwrap().contains("nothing proves"));
        let mut file = new();
        file.prove(7);
        assert!(file.read(Content::Absent, &drain()));
        file.gone();
        assert_eq!(outcome(&file, &drain()).drain, Some(Drain::default()));
        // Nor is there proof where it cannot be looked for.
        for (content, ends) in [
            (Content::Unknown("too many open files".into()), None),
            (Content::Unreadable("it is a link".into()), Some(Drain::default())),
        ] {
            let mut file = new();
            file.read(content, &drain());
            assert!(file.read(Content::Absent, &drain()));
            file.gone();
            assert_eq!(outcome(&file, &drain()).drain, ends);
        }
        // Another directory proves nothing.
        file.read(text(&drain()), &Drain::default());
        file.hide();
        assert!(file.read(Content::Absent, &drain()));
        file.gone();
        assert_eq!(outcome(&file, &drain()).drain, None);
    }

    /// It may end before it has acted on the file's end, and has overwritten the host's status by then.
    #[test]
    fn what_proves_it_is_there_until_its_end_was_acted_on() {
        let (seen, said) = watch::channel(None);
        let said = || said.borrow().as_ref().and_then(|seen: &SeenNode| seen.generation);
        let mut file = HostFile::new(seen);
        file.prove(7);
        assert_eq!(said(), Some(7), "before anything is published");
        assert!(file.read(Content::Absent, &drain()));
        file.say();
        assert_eq!(said(), Some(7));
        file.read(Content::Unreadable("it is a link".into()), &drain());
        file.say();
        assert_eq!(said(), Some(7));
        assert!(file.read(Content::Absent, &drain()));
        file.gone();
        assert_eq!(said(), Some(7), "it is drained yet");
        file.say();
        assert_eq!(said(), None);
        let text = text(&drain());
        file.read(text, &drain());
        file.say();
        assert!(said().is_some_and(|version| version != 7));
    }
}
