//! Which of several runs on a machine comes first.

use std::{env, fs};

/// The share of the processors that a session has, where Linux gives each one its own (`sched_autogroup_enabled`, sched(7)).
const SESSION: &str = "/proc/self/autogroup";
/// What `e2e/test.sh` gives to the lab's first run.
const FIRST: i8 = -10;

/// This session comes before those of other runs until it is dropped. Where that cannot be had, nothing changes.
#[derive(Debug)]
pub struct Precedence {
    before: Option<i8>,
}

impl Precedence {
    /// Takes it, in a run that comes after another one (`LAB_LAST_FIRST`), whose session is its own.
    pub fn take() -> Self {
        let is_second = env::var_os("LAB_LAST_FIRST").is_some_and(|set| !set.is_empty());
        let said = is_second.then(|| fs::read_to_string(SESSION).ok()).flatten();
        let before = said.and_then(|said| nice_of(&said));
        if before.is_some_and(|nice| nice > FIRST) {
            set(FIRST);
        }
        Self { before }
    }
}

impl Drop for Precedence {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            set(before);
        }
    }
}

fn set(nice: i8) {
    if let Err(e) = fs::write(SESSION, nice.to_string()) {
        eprintln!("--- the session's nice value is not {nice}: {SESSION}: {e}");
    }
}

/// Of `/autogroup-12 nice 0`.
fn nice_of(said: &str) -> Option<i8> {
    said.rsplit_once("nice ")?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sessions_value_is_read() {
        assert_eq!(nice_of("/autogroup-12 nice 0\n"), Some(0));
        assert_eq!(nice_of("/autogroup-7 nice -10\n"), Some(-10));
        assert_eq!(nice_of(""), None);
    }
}
