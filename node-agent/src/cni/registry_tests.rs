//! Any order of what runtimes, NICs and time do.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{prelude::*, sample::select};

use super::*;

#[derive(Clone, Debug)]
enum Event {
    /// A pod's interface, in which sandbox.
    Add(u8, u8),
    Open(usize),
    Answer(usize, bool),
    Closed(usize),
    Late(usize),
    Del(u8, u8),
    Forget(u8),
    Adopt(u8, u8),
    /// The agent ends, and begins with nothing.
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    let (pod, sandbox, nth) = (0..3_u8, 0..4_u8, 0..8_usize);
    prop_oneof![
        4 => (pod.clone(), sandbox.clone()).prop_map(|(pod, sandbox)| Event::Add(pod, sandbox)),
        4 => nth.clone().prop_map(Event::Open),
        3 => (nth.clone(), any::<bool>()).prop_map(|(nth, made)| Event::Answer(nth, made)),
        2 => nth.clone().prop_map(Event::Closed),
        1 => nth.prop_map(Event::Late),
        3 => (pod.clone(), sandbox.clone()).prop_map(|(pod, sandbox)| Event::Del(pod, sandbox)),
        1 => pod.clone().prop_map(Event::Forget),
        1 => (pod, sandbox).prop_map(|(pod, sandbox)| Event::Adopt(pod, sandbox)),
        1 => select(vec![Event::Restart]),
    ]
}

fn key(pod: u8) -> Key {
    Key {
        pod_uid: format!("pod{pod}"),
        ifname: "eth1".into(),
    }
}

/// Each pod has sandboxes of its own.
fn container(pod: u8, sandbox: u8) -> String {
    format!("{pod}-{sandbox}")
}

fn attachment(container_id: String) -> Attachment {
    Attachment {
        container_id,
        ifname: "eth1".into(),
    }
}

fn added() -> Answer {
    Answer::Added {
        mac: "52:54:00:00:00:01".into(),
        mtu: 1500,
    }
}

/// What really is: which requests wait, and which sandboxes have their interface.
#[derive(Default)]
struct World {
    registry: Registry<u64>,
    /// A sandbox of its own for each request; it has it until it ends.
    live: BTreeMap<u64, (Key, String)>,
    asked: Vec<Id>,
    waiting: BTreeSet<Id>,
    answered: BTreeSet<Id>,
    sandboxes: u64,
}

impl World {
    fn nth(&self, nth: usize) -> Id {
        self.asked.iter().rev().nth(nth).copied().unwrap_or(u64::MAX)
    }

    fn new_sandbox(&mut self, pod: u8, sandbox: u8) -> (Key, String, u64) {
        self.sandboxes += 1;
        let (key, container) = (key(pod), container(pod, sandbox));
        self.live.insert(self.sandboxes, (key.clone(), container.clone()));
        (key, container, self.sandboxes)
    }

    fn take(&mut self, outputs: Vec<Output<u64>>) {
        for output in outputs {
            match output {
                Output::Reply(id, _) => {
                    assert!(self.waiting.remove(&id), "{id} is answered, and does not wait");
                    assert!(self.answered.insert(id), "{id} is answered twice");
                }
                Output::End(sandbox) => {
                    assert!(self.live.remove(&sandbox).is_some(), "{sandbox} ends twice");
                }
            }
        }
    }

    fn apply(&mut self, event: &Event) {
        match *event {
            Event::Add(pod, sandbox) => {
                let (key, container, new) = self.new_sandbox(pod, sandbox);
                let (id, outputs) = self.registry.add(key.clone(), &container, new);
                self.take(outputs);
                self.asked.push(id);
                self.waiting.insert(id);
                assert!(self.registry.get(&key).is_none(), "it is not open yet");
            }
            Event::Open(nth) => self.registry.open(self.nth(nth)),
            Event::Answer(nth, made) => {
                let id = self.nth(nth);
                let made = if made {
                    added()
                } else {
                    Answer::refused(Why::NotNow, "no")
                };
                let waits = self.waiting.contains(&id);
                match self.registry.answer(id, made) {
                    Some(outputs) => self.take(outputs),
                    // Not open yet, or nobody waits.
                    None => assert!(!waits || self.registry.all().all(|(_, entry)| entry.id != id)),
                }
            }
            Event::Closed(nth) => {
                let id = self.nth(nth);
                let outputs = self.registry.closed(id);
                self.waiting.remove(&id);
                self.take(outputs);
            }
            Event::Late(nth) => {
                let outputs = self.registry.late(self.nth(nth));
                self.take(outputs);
            }
            Event::Del(pod, sandbox) => {
                let attachment = attachment(container(pod, sandbox));
                let outputs = self.registry.del(&attachment);
                self.take(outputs);
                assert!(
                    !self.live.values().any(|(_, of)| *of == attachment.container_id),
                    "nothing is left of it"
                );
                assert_eq!(self.registry.del(&attachment), [], "twice");
            }
            Event::Forget(pod) => {
                let outputs = self.registry.forget(&key(pod));
                self.take(outputs);
                assert!(!self.live.values().any(|(of, _)| *of == key(pod)));
            }
            Event::Adopt(pod, sandbox) => {
                let (key, container, new) = self.new_sandbox(pod, sandbox);
                if self.registry.adopt(key, &container, new).is_none() {
                    // It stays whose it is.
                    self.live.remove(&new);
                }
            }
            Event::Restart => {
                self.registry = Registry::default();
                self.live.clear();
                self.waiting.clear();
                self.answered.clear();
                self.asked.clear();
            }
        }
    }

    fn check(&self) {
        let mut of_keys = BTreeSet::new();
        for (key, _) in self.live.values() {
            assert!(of_keys.insert(key), "{key:?} has two sandboxes");
        }
        let known: BTreeSet<u64> = self.registry.entries.values().map(|e| e.sandbox).collect();
        assert_eq!(known, self.live.keys().copied().collect(), "none is lost");
        let waiting: BTreeSet<Id> = self
            .registry
            .entries
            .values()
            .filter(|e| e.waits)
            .map(|e| e.id)
            .collect();
        assert_eq!(waiting, self.waiting, "nobody waits for nothing");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn one_sandbox_of_a_pod_counts_and_each_request_gets_one_answer(
        events in prop::collection::vec(event(), 0..60),
    ) {
        let mut world = World::default();
        for event in events {
            world.apply(&event);
            world.check();
        }
        // All go away: nothing is left.
        for nth in 0..world.asked.len() {
            world.apply(&Event::Closed(nth));
        }
        for pod in 0..3 {
            world.apply(&Event::Forget(pod));
        }
        world.check();
        prop_assert!(world.live.is_empty() && world.waiting.is_empty());
    }
}

#[test]
fn the_latest_sandbox_of_a_pod_counts() {
    let mut registry = Registry::default();
    let (first, _) = registry.add(key(1), "a", 1);
    registry.open(first);
    assert!(registry.answer(first, added()).is_some());
    assert_eq!(registry.answer(first, added()), None, "once");

    let (second, outputs) = registry.add(key(1), "b", 2);
    assert_eq!(outputs, [Output::End(1)], "who was answered hears no more");
    assert_eq!(registry.get(&key(1)), None, "the first has to go before");
    assert_eq!(registry.answer(second, added()), None);
    registry.open(second);
    assert_eq!(registry.get(&key(1)).map(|entry| entry.sandbox), Some(2));
    // The runtime takes the first away when the second is there already.
    assert_eq!(registry.del(&attachment("a".into())), []);

    let (third, outputs) = registry.add(key(1), "c", 3);
    let refused = Answer::refused(Why::NotNow, "the runtime has made another sandbox for the pod");
    assert_eq!(outputs, [Output::End(2), Output::Reply(second, refused)]);
    registry.explain(&key(1), "the source is not on its standby yet");
    let refused = Answer::refused(Why::NotNow, "the source is not on its standby yet");
    assert_eq!(
        registry.late(third),
        [Output::End(3), Output::Reply(third, refused)]
    );
    assert_eq!(registry.late(third), []);
    assert_eq!(registry.answer(third, added()), None, "nobody is answered late");
}

#[test]
fn what_was_found_after_a_restart_does_not_displace_what_was_asked_since() {
    let mut registry = Registry::default();
    assert!(registry.adopt(key(1), "a", 1).is_some());
    assert_eq!(registry.get(&key(1)).map(|entry| entry.waits), Some(false));
    let (_, outputs) = registry.add(key(1), "b", 2);
    assert_eq!(outputs, [Output::End(1)]);
    assert_eq!(registry.adopt(key(1), "a", 3), None);
    assert_eq!(registry.del(&attachment("b".into())).len(), 2);
}
