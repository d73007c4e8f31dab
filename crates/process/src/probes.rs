//! What a kubelet asks of a process: does it live, is it ready, has it started.
//!
//! To live means more than answering HTTP: the program's main loop must answer a heartbeat, so that a blocked program is
//! restarted; and what the program itself watches must be well.

use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// How long the main loop may take to answer.
const HEARTBEAT_DEADLINE: Duration = Duration::from_secs(2);

type Check = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

struct Inner {
    started: AtomicBool,
    ready: AtomicBool,
    asks: mpsc::Sender<oneshot::Sender<()>>,
    checks: Mutex<Vec<Check>>,
}

/// What the probes answer. Clones share it.
#[derive(Clone)]
pub struct Probes(Arc<Inner>);

/// The main loop's end of the heartbeat.
#[derive(Debug)]
pub struct Heart(mpsc::Receiver<oneshot::Sender<()>>);

impl fmt::Debug for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probes")
            .field("started", &self.has_started())
            .field("ready", &self.is_ready())
            .finish_non_exhaustive()
    }
}

/// Not started and not ready yet; alive as long as the heart beats.
pub fn probes() -> (Probes, Heart) {
    let (asks, heart) = mpsc::channel(1);
    let inner = Inner {
        started: AtomicBool::default(),
        ready: AtomicBool::default(),
        asks,
        checks: Mutex::default(),
    };
    (Probes(Arc::new(inner)), Heart(heart))
}

impl Probes {
    /// The process has started. This is never taken back.
    pub fn set_started(&self) {
        self.0.started.store(true, Ordering::Relaxed);
    }

    /// Whether the process has started.
    pub fn has_started(&self) -> bool {
        self.0.started.load(Ordering::Relaxed)
    }

    /// Sets whether the process is ready for its work.
    pub fn set_ready(&self, ready: bool) {
        self.0.ready.store(ready, Ordering::Relaxed);
    }

    /// Whether the process is ready for its work.
    pub fn is_ready(&self) -> bool {
        self.0.ready.load(Ordering::Relaxed)
    }

    /// Makes the process alive only while `check` finds nothing wrong; its error says what is. It must not block.
    pub fn require(&self, check: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        let mut checks = self.0.checks.lock().unwrap_or_else(PoisonError::into_inner);
        checks.push(Box::new(check));
    }

    /// Whether the process does its work; if not, why.
    pub async fn alive(&self) -> Result<(), String> {
        let ask = async {
            let (answer, answered) = oneshot::channel();
            self.0.asks.send(answer).await.ok()?;
            answered.await.ok()
        };
        match timeout(HEARTBEAT_DEADLINE, ask).await {
            Ok(Some(())) => {}
            Ok(None) => return Err("the main loop has ended".to_owned()),
            Err(_) => {
                return Err(format!(
                    "the main loop did not answer within {HEARTBEAT_DEADLINE:?}"
                ));
            }
        }
        let checks = self.0.checks.lock().unwrap_or_else(PoisonError::into_inner);
        checks.iter().try_for_each(|check| check())
    }
}

impl Heart {
    /// Answers heartbeats for as long as it is polled: a branch of the main loop's `select!`.
    pub async fn beat(&mut self) -> Infallible {
        loop {
            match self.0.recv().await {
                // The caller may have gone.
                Some(answer) => drop(answer.send(())),
                None => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_main_loop_that_does_not_answer_is_not_alive() {
        let (probes, mut heart) = probes();
        let error = probes.alive().await.unwrap_err();
        assert!(error.contains("2s"), "{error}");
        tokio::select! {
            never = heart.beat() => match never {},
            alive = probes.alive() => assert_eq!(alive, Ok(())),
        }
        drop(heart);
        assert!(probes.alive().await.unwrap_err().contains("ended"));
    }

    #[tokio::test]
    async fn what_the_program_watches_counts() {
        let (probes, mut heart) = probes();
        probes.require(|| Err("a reconcile hangs".to_owned()));
        tokio::select! {
            never = heart.beat() => match never {},
            alive = probes.alive() => assert_eq!(alive, Err("a reconcile hangs".to_owned())),
        }
    }
}
