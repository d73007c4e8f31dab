//! Whether everything ends well once nothing goes wrong any more.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use foldhash::fast::FixedState;

use crate::search::fingerprint;
use crate::system::{Broken, Rest, System};

/// What is known of each state that was let come to rest.
#[derive(Default)]
pub struct Settling {
    known: [Mutex<HashMap<u64, Option<Broken>, FixedState>>; SHARDS],
}

const SHARDS: usize = 32;

impl Settling {
    fn known(&self, print: u64) -> MutexGuard<'_, HashMap<u64, Option<Broken>, FixedState>> {
        let shard = usize::try_from(print).unwrap_or_default() % SHARDS;
        self.known[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets everybody have their turns, again and again, until nothing changes. The way there must be safe too.
    pub fn check<S: System>(&self, system: &S, state: &S::State) -> Result<(), Broken> {
        let mut now = system.calm(state);
        let mut way = Vec::new();
        let broken = loop {
            let print = fingerprint(&now);
            if let Some(known) = self.known(print).get(&print) {
                break known.clone();
            }
            if way.contains(&print) {
                break Some(format!("(d) it never comes to rest: {}", system.show(&now)));
            }
            way.push(print);
            if let Err(broken) = system.safe(&now) {
                break Some(format!("{broken}, on the way to rest"));
            }
            let next = system.pass(&now);
            if next != now {
                now = next;
                continue;
            }
            match system.rest(&now) {
                Rest::Goes(next) => now = next,
                Rest::Asks(all) => {
                    let mut all = all.iter().map(|next| self.check(system, next));
                    break all.find_map(Result::err);
                }
                Rest::Stays(held) => {
                    let shown = |broken| format!("{broken}: {}", system.show(&now));
                    break held.err().map(shown);
                }
            }
        };
        for print in way {
            self.known(print).insert(print, broken.clone());
        }
        broken.map_or(Ok(()), Err)
    }
}
