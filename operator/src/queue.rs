//! What waits for a reconcile: each object once, urgent ones first.

use std::collections::{HashMap, VecDeque};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cache::{Name, Object};
use crate::metrics::Reconciles;
use crate::moves::Stage;

/// How soon an object's turn comes: before all that are less urgent, after those as urgent that have waited longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Urgency {
    /// Only the caller waits for it.
    #[default]
    Usual,
    /// A migration has begun, and its VM has its VFs: a migration that has begun is finished before the next begins.
    Begun,
    /// A VM is without its VFs meanwhile.
    Urgent,
}

impl From<Stage> for Urgency {
    /// How urgent it is what is to be done for a VM on its way.
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Leaving | Stage::Moving | Stage::Returning => Self::Urgent,
            // The target's agent gives the VM its VFs back by itself.
            Stage::Preparing | Stage::Arrived => Self::Begun,
            Stage::Over(_) => Self::Usual,
        }
    }
}

/// How many reconciles of a kind run at once. They wait for the API server nearly all of their time, and it answers later the
/// more it is asked at once. So an urgent request should find few others before it there, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// If they are urgent.
    pub urgent: usize,
    /// If they are not, and nothing urgent runs.
    pub others: usize,
    /// If they are not, and something urgent runs.
    pub beside_urgent: usize,
}

impl Places {
    /// Whether one more may run beside so many.
    fn admit(self, urgency: Urgency, urgent: usize, others: usize) -> bool {
        match urgency {
            Urgency::Urgent => urgent < self.urgent,
            _ if urgent > 0 => others < self.beside_urgent,
            _ => others < self.others,
        }
    }
}

/// One whose turn it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Of which object.
    pub name: Name,
    /// How urgent it is.
    pub urgency: Urgency,
    /// How long it has waited for this, since it was asked for and its last turn had ended.
    pub waited: Duration,
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

impl<K: Object> Shared<K> {
    fn with<T>(&self, change: impl FnOnce(&mut Line) -> T) -> T {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let done = change(&mut line);
        self.reconciles.set_waiting(&K::kind(&()), line.waiting.len());
        done
    }

    fn ask(&self, name: Name, urgency: Urgency) {
        self.with(|line| line.ask(name, urgency));
        self.asked.notify_one();
    }
}

impl<K: Object> Queue<K> {
    /// An empty queue.
    pub fn new(reconciles: &Reconciles, places: Places) -> Self {
        let shared = Shared {
            line: Mutex::new(Line::new(places)),
            asked: Notify::new(),
            reconciles: reconciles.clone(),
            kind: PhantomData,
        };
        shared.with(|_| ());
        Self(Arc::new(shared))
    }

    /// Its other end, for the controller of the kind.
    pub fn requests(&self) -> Requests<K> {
        Requests(Arc::clone(&self.0))
    }

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

    /// The next object, once there is one and a place for it. Until it is [`done`](Self::done) it is not given again.
    pub async fn next(&self) -> Turn {
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

struct Line {
    places: Places,
    usual: VecDeque<Name>,
    begun: VecDeque<Name>,
    urgent: VecDeque<Name>,
    /// How urgent each is, and since when it waits.
    waiting: HashMap<Name, (Urgency, Instant)>,
    /// Those that have their turn now.
    running: HashMap<Name, Running>,
}

struct Running {
    urgent: bool,
    /// Whether it was asked for again meanwhile.
    again: Option<Urgency>,
}

impl Line {
    fn new(places: Places) -> Self {
        Self {
            places,
            usual: VecDeque::new(),
            begun: VecDeque::new(),
            urgent: VecDeque::new(),
            waiting: HashMap::new(),
            running: HashMap::new(),
        }
    }

    fn ask(&mut self, name: Name, urgency: Urgency) {
        if let Some(running) = self.running.get_mut(&name) {
            running.again = running.again.max(Some(urgency));
            return;
        }
        let before = self.waiting.get(&name).copied();
        if before.is_some_and(|(before, _)| before >= urgency) {
            return;
        }
        // An object that becomes more urgent is in two queues; the second time it is not waiting any more.
        let since = before.map_or_else(Instant::now, |(_, since)| since);
        self.waiting.insert(name.clone(), (urgency, since));
        self.of(urgency).push_back(name);
    }

    fn of(&mut self, urgency: Urgency) -> &mut VecDeque<Name> {
        match urgency {
            Urgency::Usual => &mut self.usual,
            Urgency::Begun => &mut self.begun,
            Urgency::Urgent => &mut self.urgent,
        }
    }

    fn next(&mut self) -> Option<Turn> {
        for urgency in [Urgency::Urgent, Urgency::Begun, Urgency::Usual] {
            let urgent = self.running.values().filter(|running| running.urgent).count();
            if !self.places.admit(urgency, urgent, self.running.len() - urgent) {
                return None;
            }
            while let Some(name) = self.of(urgency).pop_front() {
                if let Some((urgency, since)) = self.waiting.remove(&name) {
                    let running = Running {
                        urgent: urgency == Urgency::Urgent,
                        again: None,
                    };
                    self.running.insert(name.clone(), running);
                    let waited = since.elapsed();
                    return Some(Turn {
                        name,
                        urgency,
                        waited,
                    });
                }
            }
        }
        None
    }

    fn done(&mut self, name: &Name) {
        let ended = self.running.remove_entry(name);
        if let Some((name, Some(urgency))) = ended.map(|(name, running)| (name, running.again)) {
            self.ask(name, urgency);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Urgency::{Begun, Urgent, Usual};

    const FEW: Places = Places {
        urgent: 4,
        others: 3,
        beside_urgent: 1,
    };
    const ANY: Places = Places {
        urgent: 99,
        others: 99,
        beside_urgent: 99,
    };

    fn name(name: &str) -> Name {
        Name::new("ns", name)
    }

    fn all(line: &mut Line) -> Vec<String> {
        std::iter::from_fn(|| line.next())
            .map(|turn| turn.name.name().to_owned())
            .collect()
    }

    #[test]
    fn what_is_urgent_comes_first_and_each_once() {
        let mut line = Line::new(ANY);
        for (object, urgency) in [
            ("a", Usual),
            ("b", Usual),
            ("c", Urgent),
            ("d", Begun),
            ("a", Usual),
            ("b", Urgent),
            ("c", Usual),
            ("e", Usual),
            ("e", Begun),
        ] {
            line.ask(name(object), urgency);
        }
        assert_eq!(all(&mut line), ["c", "b", "d", "e", "a"]);
    }

    #[test]
    fn one_that_has_its_turn_waits_for_the_next_until_it_is_done() {
        let mut line = Line::new(ANY);
        line.ask(name("a"), Usual);
        assert_eq!(all(&mut line), ["a"]);
        line.ask(name("a"), Urgent);
        line.ask(name("a"), Usual);
        line.ask(name("b"), Usual);
        assert_eq!(all(&mut line), ["b"]);
        line.done(&name("a"));
        let next = line.next().map(|turn| (turn.name, turn.urgency));
        assert_eq!(next, Some((name("a"), Urgent)), "as urgent as it was asked for");
        line.done(&name("a"));
        line.done(&name("b"));
        assert_eq!(all(&mut line), Vec::<String>::new());
    }

    #[test]
    fn what_is_urgent_finds_places_and_few_beside_it() {
        let mut line = Line::new(FEW);
        for n in 0..9 {
            line.ask(name(&format!("u{n}")), Usual);
        }
        assert_eq!(all(&mut line), ["u0", "u1", "u2"]);
        line.ask(name("now"), Urgent);
        line.ask(name("begun"), Begun);
        assert_eq!(all(&mut line), ["now"], "and nothing else meanwhile");
        line.done(&name("u0"));
        line.done(&name("u1"));
        assert_eq!(all(&mut line), Vec::<String>::new(), "one is beside it still");
        line.done(&name("u2"));
        assert_eq!(all(&mut line), ["begun"]);
        line.done(&name("now"));
        assert_eq!(all(&mut line), ["u3", "u4"]);
        for n in 0..9 {
            line.ask(name(&format!("n{n}")), Urgent);
        }
        assert_eq!(all(&mut line), ["n0", "n1", "n2", "n3"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_counts_from_the_first_who_asked_and_without_its_own_last_turn() {
        let mut line = Line::new(ANY);
        let second = Duration::from_secs(1);
        line.ask(name("a"), Usual);
        tokio::time::advance(second).await;
        line.ask(name("a"), Urgent);
        tokio::time::advance(second).await;
        assert_eq!(line.next().map(|turn| turn.waited), Some(2 * second));
        line.ask(name("a"), Usual);
        tokio::time::advance(second).await;
        line.done(&name("a"));
        tokio::time::advance(second).await;
        assert_eq!(line.next().map(|turn| turn.waited), Some(second));
    }
}
