//! Breadth-first search through all states, by several threads, with the shortest way to what is broken.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;

use crate::settling::Settling;
use crate::system::{Broken, System};

/// What a search has found.
#[derive(Debug)]
pub struct Found<A> {
    /// How many states there are.
    pub states: usize,
    /// How many ways lead from one to another.
    pub transitions: usize,
    /// The length of the longest of the shortest ways.
    pub depth: usize,
    /// How long it took.
    pub time: Duration,
    /// What does not hold, by the first words of what it is, with the shortest way to each.
    pub broken: Vec<(Broken, Vec<A>)>,
    /// Whether all states were seen.
    pub complete: bool,
}

/// A state's hash: with as many states as fit into memory, two with the same are a matter of one in a hundred thousand searches.
pub fn fingerprint(state: &impl Hash) -> u64 {
    FixedState::with_seed(7).hash_one(state)
}

/// How far a search goes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How many faults may happen on one way.
    pub faults: u8,
    /// How often one NIC may be ahead of the other on one way.
    pub splits: u8,
    /// The most states to visit.
    pub states: usize,
    /// How many different broken things are looked for.
    pub broken: usize,
    /// Whether it is checked that all comes to rest.
    pub settling: bool,
    /// Threads.
    pub threads: usize,
}

/// How many states are looked at before what they lead to is put together.
const CHUNK: usize = 1 << 16;

/// How many of them a thread takes at a time.
const PART: usize = 1 << 9;

/// What a part of the states leads to.
struct Expanded<S: System> {
    broken: Vec<(u32, Broken)>,
    transitions: usize,
    next: Vec<Next<S>>,
}

/// A state that was not known before the part was looked at.
struct Next<S: System> {
    print: u64,
    from: u32,
    action: S::Action,
    state: S::State,
}

/// Searches all states that can be reached.
pub fn search<S: System>(system: &S, bounds: &Bounds) -> Found<S::Action> {
    let began = Instant::now();
    let start = system.start(bounds.faults, bounds.splits);
    let settling = Settling::default();
    let mut index: HashMap<u64, u32, FixedState> = HashMap::default();
    // The first state has no way to it.
    let mut parents: Vec<(u32, Option<S::Action>)> = vec![(0, None)];
    index.insert(fingerprint(&start), 0);
    let mut found = Found {
        states: 1,
        transitions: 0,
        depth: 0,
        time: Duration::ZERO,
        broken: Vec::new(),
        complete: true,
    };
    let mut level = vec![(0, start)];
    while !level.is_empty() {
        let mut following = Vec::new();
        for chunk in level.chunks(CHUNK) {
            let known = &index;
            let expanded = in_parallel(chunk, bounds.threads, |part| {
                expand(system, bounds, &settling, known, part)
            });
            for part in expanded {
                found.transitions += part.transitions;
                for (from, broken) in part.broken {
                    let kind = |text: &str| text.split(':').next().unwrap_or_default().to_owned();
                    let new = !found.broken.iter().any(|(known, _)| kind(known) == kind(&broken));
                    if new {
                        found.broken.push((broken, way(&parents, from)));
                    }
                }
                for next in part.next {
                    if let Entry::Vacant(slot) = index.entry(next.print) {
                        let Ok(at) = u32::try_from(parents.len()) else {
                            continue;
                        };
                        slot.insert(at);
                        parents.push((next.from, Some(next.action)));
                        following.push((at, next.state));
                    }
                }
            }
            found.complete = parents.len() < bounds.states;
            if !found.complete || found.broken.len() >= bounds.broken {
                break;
            }
        }
        if !found.complete || found.broken.len() >= bounds.broken {
            break;
        }
        found.depth += usize::from(!following.is_empty());
        level = following;
    }
    found.states = parents.len();
    found.time = began.elapsed();
    found
}

fn expand<S: System>(
    system: &S,
    bounds: &Bounds,
    settling: &Settling,
    known: &HashMap<u64, u32, FixedState>,
    part: &[(u32, S::State)],
) -> Expanded<S> {
    let mut expanded = Expanded {
        broken: Vec::new(),
        transitions: 0,
        next: Vec::with_capacity(part.len()),
    };
    for (from, state) in part {
        let held = system.safe(state);
        let held = if bounds.settling {
            held.and_then(|()| settling.check(system, state))
        } else {
            held
        };
        if let Err(broken) = held {
            expanded.broken.push((*from, broken));
            continue;
        }
        for action in system.actions(state) {
            let next = system.next(state, action);
            if next == *state {
                continue;
            }
            expanded.transitions += 1;
            let print = fingerprint(&next);
            if !known.contains_key(&print) {
                expanded.next.push(Next {
                    print,
                    from: *from,
                    action,
                    state: next,
                });
            }
        }
    }
    expanded
}

/// Each thread takes the next part as soon as it is done with one: the processors may have other work too. The answers are in the
/// order of the parts, so that the same way is found each time.
fn in_parallel<T: Sync, R: Send>(items: &[T], threads: usize, work: impl Fn(&[T]) -> R + Sync) -> Vec<R> {
    let parts: Vec<_> = items.chunks(PART).collect();
    let taken = AtomicUsize::new(0);
    let take = || {
        let at = taken.fetch_add(1, Ordering::Relaxed);
        parts.get(at).map(|part| (at, work(part)))
    };
    let mut done: Vec<(usize, R)> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads.clamp(1, parts.len().max(1)))
            .map(|_| scope.spawn(|| std::iter::from_fn(take).collect::<Vec<_>>()))
            .collect();
        handles
            .into_iter()
            .flat_map(|handle| {
                handle
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, answer)| answer).collect()
}

/// The actions that lead to a state.
fn way<A: Copy>(parents: &[(u32, Option<A>)], to: u32) -> Vec<A> {
    let mut actions = Vec::new();
    let mut at = to;
    while at != 0 {
        let (from, action) = parents[usize::try_from(at).unwrap_or_default()];
        actions.extend(action);
        at = from;
    }
    actions.reverse();
    actions
}
