//! What waits for a reconcile: each object once, and what is urgent before what is not.

use std::collections::{HashMap, VecDeque};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::cache::{Name, Object};
use crate::metrics::Reconciles;

/// How soon an object's turn comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// After those that have waited longer.
    #[default]
    Usual,
    /// Before all that are not: a VM is without its VFs meanwhile.
    Urgent,
}

/// Where changes ask for reconciles of a kind.
pub struct Queue<K>(Arc<Shared<K>>);

/// The other end of a [`Queue`].
pub struct Requests<K>(Arc<Shared<K>>);

struct Shared<K> {
    line: Mutex<Line>,
    asked: Notify,
    reconciles: Reconciles,
    kind: PhantomData<fn() -> K>,
}

/// A queue, and its other end.
pub fn queue<K: Object>(reconciles: &Reconciles) -> (Queue<K>, Requests<K>) {
    let shared = Arc::new(Shared {
        line: Mutex::default(),
        asked: Notify::new(),
        reconciles: reconciles.clone(),
        kind: PhantomData,
    });
    shared.with(|_| ());
    (Queue(Arc::clone(&shared)), Requests(shared))
}

impl<K: Object> Shared<K> {
    fn with<T>(&self, change: impl FnOnce(&mut Line) -> T) -> T {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let done = change(&mut line);
        self.reconciles.wait(&K::kind(&()), line.waiting.len());
        done
    }

    fn ask(&self, name: Name, urgency: Urgency) {
        self.with(|line| line.ask(name, urgency));
        self.asked.notify_one();
    }
}

impl<K: Object> Queue<K> {
    /// Asks for a reconcile of the object of a name.
    pub fn add(&self, name: Name, urgency: Urgency) {
        self.0.ask(name, urgency);
    }
}

impl<K: Object> Requests<K> {
    /// Asks for a reconcile, as [`Queue::add`] does.
    pub fn ask(&self, name: Name, urgency: Urgency) {
        self.0.ask(name, urgency);
    }

    /// The next object, once there is one. Until it is [`done`](Self::done) it is not given again.
    pub async fn next(&self) -> (Name, Urgency) {
        loop {
            if let Some(next) = self.0.with(Line::next) {
                return next;
            }
            self.0.asked.notified().await;
        }
    }

    /// The reconcile of an object has ended.
    pub fn done(&self, name: &Name) {
        self.0.with(|line| line.done(name));
        self.0.asked.notify_one();
    }
}

#[derive(Default)]
struct Line {
    urgent: VecDeque<Name>,
    usual: VecDeque<Name>,
    waiting: HashMap<Name, Urgency>,
    /// Those that have their turn now; and whether another was asked for meanwhile.
    running: HashMap<Name, Option<Urgency>>,
}

impl Line {
    fn ask(&mut self, name: Name, urgency: Urgency) {
        if let Some(again) = self.running.get_mut(&name) {
            *again = (*again).max(Some(urgency));
            return;
        }
        let before = self.waiting.get(&name).copied();
        if before >= Some(urgency) {
            return;
        }
        // One that becomes urgent stands in both; the second time it is not waiting any more.
        self.waiting.insert(name.clone(), urgency);
        match urgency {
            Urgency::Urgent => self.urgent.push_back(name),
            Urgency::Usual => self.usual.push_back(name),
        }
    }

    fn next(&mut self) -> Option<(Name, Urgency)> {
        while let Some(name) = self.urgent.pop_front().or_else(|| self.usual.pop_front()) {
            if let Some(urgency) = self.waiting.remove(&name) {
                self.running.insert(name.clone(), None);
                return Some((name, urgency));
            }
        }
        None
    }

    fn done(&mut self, name: &Name) {
        if let Some((name, Some(urgency))) = self.running.remove_entry(name) {
            self.ask(name, urgency);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Urgency::{Urgent, Usual};

    fn name(name: &str) -> Name {
        Name::new("ns", name)
    }

    fn all(line: &mut Line) -> Vec<String> {
        std::iter::from_fn(|| line.next())
            .map(|(name, _)| name.name().to_owned())
            .collect()
    }

    #[test]
    fn what_is_urgent_comes_first_and_each_once() {
        let mut line = Line::default();
        for (object, urgency) in [
            ("a", Usual),
            ("b", Usual),
            ("c", Urgent),
            ("a", Usual),
            ("b", Urgent),
            ("c", Usual),
        ] {
            line.ask(name(object), urgency);
        }
        assert_eq!(all(&mut line), ["c", "b", "a"]);
    }

    #[test]
    fn one_that_has_its_turn_waits_for_the_next_until_it_is_done() {
        let mut line = Line::default();
        line.ask(name("a"), Usual);
        assert_eq!(all(&mut line), ["a"]);
        line.ask(name("a"), Urgent);
        line.ask(name("a"), Usual);
        line.ask(name("b"), Usual);
        assert_eq!(all(&mut line), ["b"]);
        line.done(&name("a"));
        assert_eq!(
            line.next(),
            Some((name("a"), Urgent)),
            "as urgent as it was asked for"
        );
        line.done(&name("a"));
        line.done(&name("b"));
        assert_eq!(all(&mut line), Vec::<String>::new());
    }
}
