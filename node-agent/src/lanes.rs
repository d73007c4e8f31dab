//! Calls that may wait for a driver: one at a time for each device, each on a thread of its own, with a deadline.
//!
//! A write to sysfs that binds a device or makes VFs runs the driver, and a driver may never return. Files that take the
//! device's lock hang with it. Only the call's own device suffers: the caller gets an error at the deadline, the device
//! counts as hung, and there are no further calls until this one has returned. tokio's own blocking threads are few, and are
//! not meant for this. The thread of a device's call waits for the process that makes it ([`crate::calls`]), and so can be ended.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use hybridnic_api::conditions::reasons;
use hybridnic_net::PciAddress;
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, timeout_at},
};

use crate::troubles::Troubles;

/// A thread's stack. Its calls are not deep, and most threads of a node with hung devices do nothing but wait.
const STACK: usize = 256 << 10;

/// What may be called one call at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// A PCI function.
    Device(PciAddress),
    /// The look at all of them.
    Discovery,
    /// Macvtaps' descriptors.
    Macvtaps,
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(address) => write!(f, "{address}"),
            Self::Discovery => f.write_str("the discovery of PFs and VFs"),
            Self::Macvtaps => f.write_str("the opening of macvtaps"),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// A call has not returned in time.
    #[error(
        "{lane} hangs: {what} has not returned{}; nothing more is asked of it until it has", within(*.deadline)
    )]
    Hung {
        /// Which lane.
        lane: Lane,
        /// What it was asked to do.
        what: &'static str,
        /// The time that it had.
        deadline: Duration,
    },
    /// Another call is under way and still has time.
    #[error("{lane} is busy: {what} has not returned yet")]
    Busy {
        /// Which lane.
        lane: Lane,
        /// What it was asked to do.
        what: &'static str,
    },
    /// There is no thread for it, or it panicked.
    #[error("{lane}: cannot {what}")]
    NoThread {
        /// Which lane.
        lane: Lane,
        /// What it was asked to do.
        what: &'static str,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

fn within(deadline: Duration) -> String {
    if deadline.is_zero() {
        return String::new();
    }
    format!(" within {} s", deadline.as_secs())
}

#[derive(Clone, Copy, Debug)]
struct Call {
    what: &'static str,
    since: Instant,
    deadline: Duration,
    hung: bool,
}

impl Call {
    fn error(self, lane: Lane) -> LaneError {
        let Self { what, deadline, .. } = self;
        if self.hung {
            LaneError::Hung { lane, what, deadline }
        } else {
            LaneError::Busy { lane, what }
        }
    }
}

#[derive(Debug)]
struct Inner {
    calls: Mutex<HashMap<Lane, Call>>,
    ended: watch::Sender<u64>,
    troubles: Arc<Troubles>,
    /// Notified when a device hangs, and when it can be used again.
    hardware: watch::Sender<u64>,
}

/// All lanes of a node. Clones share them.
#[derive(Clone, Debug)]
pub struct Lanes(Arc<Inner>);

impl Lanes {
    /// Nothing is under way. `hardware` is notified when a device hangs, and when it can be used again.
    pub fn new(troubles: Arc<Troubles>, hardware: watch::Sender<u64>) -> Self {
        Self(Arc::new(Inner {
            calls: Mutex::default(),
            ended: watch::Sender::default(),
            troubles,
            hardware,
        }))
    }

    /// Runs `work` once whatever else was asked of `lane` has returned. Both together have until the deadline; `work` goes on
    /// after that, and with a caller that went away.
    pub async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        what: &'static str,
        deadline: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, LaneError> {
        let until = Instant::now() + deadline;
        let mut ended = self.0.ended.subscribe();
        let turn = loop {
            ended.mark_unchanged();
            match self.enter(lane, what, deadline) {
                Ok(turn) => break turn,
                Err(call) if call.hung => return Err(call.error(lane)),
                Err(call) => {
                    let end = (call.since + call.deadline).min(until);
                    // The sender is ours: it never closes.
                    if timeout_at(end, ended.changed()).await.is_err() {
                        return Err(self.late(lane).unwrap_or(call).error(lane));
                    }
                }
            }
        };
        let (sender, receiver) = oneshot::channel();
        let no_thread = |source| LaneError::NoThread { lane, what, source };
        thread::Builder::new()
            .name(format!("lane {lane}"))
            .stack_size(STACK)
            .spawn(move || {
                let result = work();
                // First, so that the caller finds the lane free.
                drop(turn);
                // A caller that went away wants no answer.
                let _ = sender.send(result);
            })
            .map_err(no_thread)?;
        match timeout_at(until, receiver).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) => Err(no_thread(io::Error::other("its thread has panicked"))),
            Err(_) => Err(self
                .late(lane)
                .map_or(LaneError::Busy { lane, what }, |call| call.error(lane))),
        }
    }

    /// The devices that hang, with the words for each.
    pub fn hung(&self) -> BTreeMap<PciAddress, String> {
        let hung = |(lane, call): (&Lane, &Call)| match lane {
            Lane::Device(address) if call.hung => Some((*address, call.error(*lane).to_string())),
            _ => None,
        };
        self.calls(|calls| calls.iter().filter_map(hung).collect())
    }

    fn calls<T>(&self, change: impl FnOnce(&mut HashMap<Lane, Call>) -> T) -> T {
        change(&mut self.0.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn enter(&self, lane: Lane, what: &'static str, deadline: Duration) -> Result<Turn, Call> {
        self.late(lane);
        self.calls(|calls| {
            if let Some(call) = calls.get(&lane) {
                return Err(*call);
            }
            let call = Call {
                what,
                since: Instant::now(),
                deadline,
                hung: false,
            };
            calls.insert(lane, call);
            let lanes = self.clone();
            Ok(Turn { lanes, lane })
        })
    }

    /// The call that is under way; it counts as hung when its time is over.
    fn late(&self, lane: Lane) -> Option<Call> {
        let (call, new) = self.calls(|calls| {
            let call = calls.get_mut(&lane)?;
            let over = call.since.elapsed() >= call.deadline;
            let new = over && !call.hung;
            call.hung |= over;
            if new {
                // Under the lock, as its end is: one follows the other.
                let message = call.error(lane).to_string();
                self.0
                    .troubles
                    .begin(&lane.to_string(), reasons::DEVICE_HUNG, message);
            }
            Some((*call, new))
        })?;
        if new {
            self.0.hardware.send_modify(|n| *n += 1);
        }
        Some(call)
    }
}

/// The right to call. The call has returned, or panicked, when it is dropped.
struct Turn {
    lanes: Lanes,
    lane: Lane,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let inner = &self.lanes.0;
        let hung = self.lanes.calls(|calls| {
            let hung = calls.remove(&self.lane).is_some_and(|call| call.hung);
            if hung {
                inner.troubles.end(&self.lane.to_string());
            }
            hung
        });
        if hung {
            inner.hardware.send_modify(|n| *n += 1);
        }
        inner.ended.send_modify(|n| *n += 1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::metrics::metrics;

    const LANE: Lane = Lane::Discovery;
    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_mins(1);

    fn lanes() -> Lanes {
        let troubles = Arc::new(Troubles::new(metrics().1));
        Lanes::new(troubles, watch::Sender::new(0))
    }

    #[tokio::test]
    async fn calls_of_one_lane_follow_each_other() {
        let lanes = lanes();
        let (go, wait) = mpsc::channel::<()>();
        let first = lanes.run(LANE, "one", LONG, move || wait.recv().is_ok());
        let second = lanes.run(LANE, "two", LONG, || 2);
        let other = async {
            let device = Lane::Device(PciAddress::new(0, 1, 0, 0).unwrap());
            let three = lanes.run(device, "three", LONG, || 3).await.unwrap();
            assert!(
                lanes.calls(|calls| calls.contains_key(&LANE)),
                "another lane does not wait"
            );
            go.send(()).unwrap();
            three
        };
        let (first, second, other) = tokio::join!(first, second, other);
        assert_eq!((first.unwrap(), second.unwrap(), other), (true, 2, 3));
        assert!(lanes.calls(|calls| calls.is_empty()));
    }

    #[tokio::test]
    async fn a_call_that_hangs_costs_its_lane_until_it_returns() {
        let lanes = lanes();
        let device = Lane::Device(PciAddress::new(0, 1, 0, 0).unwrap());
        let mut hardware = lanes.0.hardware.subscribe();
        let (go, wait) = mpsc::channel::<()>();
        let error = lanes
            .run(device, "hang", SHORT, move || wait.recv())
            .await
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("0000:01:00.0 hangs: hang has not returned"),
            "{error}"
        );
        assert_eq!(lanes.hung().len(), 1);
        assert_eq!(lanes.0.troubles.condition().status, Some(true));
        assert!(hardware.has_changed().unwrap());
        hardware.mark_unchanged();
        // At once, and nothing is started.
        let refused = lanes
            .run(device, "again", LONG, || unreachable!("it hangs"))
            .await;
        assert!(
            matches!(refused, Err(LaneError::Hung { what: "hang", .. })),
            "{refused:?}"
        );
        go.send(()).unwrap();
        hardware.changed().await.unwrap();
        assert_eq!(lanes.run(device, "again", LONG, || 1).await.unwrap(), 1);
        assert_eq!(lanes.hung().len(), 0);
        assert_eq!(lanes.0.troubles.condition().status, Some(false));
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_leaves_its_call() {
        let lanes = lanes();
        let (go, wait) = mpsc::channel::<()>();
        let (sent, begun) = oneshot::channel();
        let call = lanes.run(LANE, "one", LONG, move || {
            let _ = sent.send(());
            wait.recv()
        });
        tokio::select! {
            _ = call => panic!("it has returned"),
            begun = begun => begun.unwrap(),
        }
        let busy = lanes.run(LANE, "two", SHORT, || 2).await;
        assert!(
            matches!(busy, Err(LaneError::Busy { what: "one", .. })),
            "{busy:?}"
        );
        go.send(()).unwrap();
        assert_eq!(lanes.run(LANE, "three", LONG, || 3).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_panic_frees_the_lane() {
        let lanes = lanes();
        let failed = lanes.run(LANE, "one", LONG, || panic!("as it may")).await;
        assert!(matches!(failed, Err(LaneError::NoThread { .. })), "{failed:?}");
        assert_eq!(lanes.run(LANE, "two", LONG, || 2).await.unwrap(), 2);
    }
}
