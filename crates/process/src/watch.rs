//! Objects that are followed for as long as the process runs.

use std::{fmt::Debug, time::Duration};

use futures::{Stream, StreamExt as _, stream};
use kube::{
    Api, Resource,
    runtime::watcher::{self, Config, Event},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until};

use crate::backoff::Backoff;

/// The first pause after a failure.
const FIRST: Duration = Duration::from_millis(800);
/// With its random part a pause is up to twice as long. That is also how long it may take to notice that an API server is back.
const LONGEST: Duration = Duration::from_secs(5);

/// The objects and their changes, by lists and watches, without an end. After each error there is a pause before it is tried again.
pub fn follow<K>(api: Api<K>, config: Config) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    paced(watcher::watcher(api, config))
}

/// With pauses that grow from error to error, until a list is complete or a change has come. kube's own begin again with each list
/// that is begun: one that is always refused would be asked for each second.
fn paced<K>(
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Send,
{
    struct State<S> {
        events: S,
        pauses: Backoff,
        /// When it was, or is, to be tried again.
        again: Instant,
    }
    let state = State {
        events: Box::pin(events),
        pauses: Backoff::new(FIRST, LONGEST),
        again: Instant::now(),
    };
    stream::unfold(state, |mut state| async move {
        sleep_until(state.again).await;
        let event = state.events.next().await?;
        match &event {
            Ok(Event::Init | Event::InitApply(_)) => {}
            Ok(Event::InitDone | Event::Apply(_) | Event::Delete(_)) => state.pauses.reset(),
            Err(_) => {
                // A watch of objects that seldom change may bring nothing for hours and still work.
                if state.again.elapsed() > 2 * LONGEST {
                    state.pauses.reset();
                }
                state.again = Instant::now() + state.pauses.next_pause();
            }
        }
        Some((event, state))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use futures::FutureExt as _;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::core::Status;

    type Said = watcher::Result<Event<ConfigMap>>;

    fn refused() -> Said {
        let status = Status::failure("forbidden", "Forbidden").with_code(403);
        Err(watcher::Error::InitialListFailed(kube::Error::Api(
            status.boxed(),
        )))
    }

    /// How long it takes until all of this was said, in which pauses may be twice as long as these seconds.
    async fn takes(said: Vec<Said>) -> Duration {
        let began = Instant::now();
        let mut events = Box::pin(paced(stream::iter(said)));
        while events.next().await.is_some() {}
        began.elapsed()
    }

    fn is_about(took: Duration, seconds: f64) -> bool {
        let least = Duration::from_secs_f64(seconds);
        took >= least && took < 2 * least
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_is_refused_again_and_again_is_asked_for_ever_more_seldom() {
        let said = (0..10).flat_map(|_| {
            [
                Ok(Event::Init),
                Ok(Event::InitApply(ConfigMap::default())),
                refused(),
            ]
        });
        let took = takes(said.collect()).await;
        // 0.8, 1.6, 3.2, and seven times the longest.
        assert!(is_about(took, 5.6 + 7.0 * 5.0), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_gone_well_makes_the_next_pause_short() {
        let well: [fn() -> Event<ConfigMap>; 3] = [
            || Event::InitDone,
            || Event::Apply(ConfigMap::default()),
            || Event::Delete(ConfigMap::default()),
        ];
        for event in well {
            let said = (0..10).flat_map(|_| [Ok(Event::Init), Ok(event()), refused()]);
            let took = takes(said.collect()).await;
            assert!(is_about(took, 8.0), "{took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_brings_nothing_and_breaks_at_times_is_taken_up_at_once() {
        let hourly = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_hours(1)).await;
            Some((refused(), ()))
        });
        let mut events = Box::pin(paced(hourly));
        for _ in 0..10 {
            let began = Instant::now();
            assert!(events.next().await.unwrap().is_err());
            let took = began.elapsed();
            assert!(took < Duration::from_secs(3602), "{took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_what_has_come() {
        let mut events = Box::pin(paced(stream::iter([refused(), refused()])));
        assert!(events.next().now_or_never().flatten().unwrap().is_err());
        assert!(events.next().now_or_never().is_none(), "no pause");
        assert!(events.next().await.unwrap().is_err());
    }
}
