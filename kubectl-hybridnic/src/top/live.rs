//! The tables on the terminal, drawn again when an object changes.

use std::{io, pin::pin, process::ExitCode, time::Duration};

use anyhow::Context as _;
use crossterm::{
    cursor,
    event::{Event, EventStream, KeyCode, KeyModifiers},
    execute, terminal,
};
use futures::{Stream, StreamExt as _, stream};
use kube::{
    Api, Resource,
    runtime::{WatchStreamExt as _, reflector, watcher},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until};

use super::{
    Apis,
    view::{self, Tables},
};
use crate::{connect::Cluster, print, style::Tone};

/// Changes that come close together are drawn at once.
const GATHER: Duration = Duration::from_millis(100);

/// Draws until `q`, Escape or Ctrl-C.
pub async fn run(cluster: &Cluster, all: bool) -> anyhow::Result<ExitCode> {
    let apis = Apis::new(cluster, all);
    let (networks, network_changes) = watch(cluster, view::NETWORKS, apis.networks);
    let (nodes, node_changes) = watch(cluster, view::NODES, apis.nodes);
    let (nics, nic_changes) = watch(cluster, view::NICS, apis.nics);
    let mut changes = pin!(stream::select(
        network_changes,
        stream::select(node_changes, nic_changes)
    ));
    let mut troubles: Vec<(&str, String)> = Vec::new();

    let _screen = Screen::open()?;
    let mut keys = EventStream::new();
    let mut draw_at = Some(Instant::now() + GATHER);
    loop {
        let drawing = async {
            match draw_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            change = changes.next() => {
                let (what, trouble) = change.context("the watches have ended")?;
                troubles.retain(|(other, _)| *other != what);
                troubles.extend(trouble.map(|text| (what, text)));
                draw_at.get_or_insert_with(|| Instant::now() + GATHER);
            }
            key = keys.next() => match key.context("the terminal has gone")?? {
                event if is_goodbye(&event) => return Ok(ExitCode::SUCCESS),
                Event::Resize(..) => draw_at = Some(Instant::now()),
                _ => {}
            },
            () = drawing => {
                draw_at = None;
                let mut tables = Tables::new(&Ok(all_of(&networks)), &Ok(all_of(&nodes)), &Ok(all_of(&nics)));
                tables.errors = troubles.iter().map(|(what, text)| format!("{what}: {text}")).collect();
                paint(&tables)?;
            }
        }
    }
}

/// A store that follows a kind, and its changes: what was looked at, and what is wrong with that, if anything.
fn watch<K>(
    cluster: &Cluster,
    what: &'static str,
    api: Api<K>,
) -> (
    reflector::Store<K>,
    impl Stream<Item = (&'static str, Option<String>)>,
)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let cluster = cluster.clone();
    let changes = watcher(api, watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .map(move |event| (what, event.err().map(|error| cluster.explain_watch(&error).0)));
    (store, changes)
}

fn all_of<K: Resource<DynamicType = ()> + Clone>(store: &reflector::Store<K>) -> Vec<K> {
    store
        .state()
        .iter()
        .map(|object| object.as_ref().clone())
        .collect()
}

fn is_goodbye(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => true,
        // The terminal sends no signal for it while top reads its keys.
        KeyCode::Char('c' | 'd') => key.modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    }
}

fn paint(tables: &Tables) -> anyhow::Result<()> {
    let (_, height) = terminal::size()?;
    let text = frame(&view::draw(tables, print::width()), usize::from(height));
    // Terminals that know it show nothing half drawn. The cursor moves even if colours are not wanted.
    execute!(
        io::stdout(),
        terminal::BeginSynchronizedUpdate,
        cursor::MoveTo(0, 0),
        terminal::Clear(terminal::ClearType::All)
    )?;
    // A terminal that reads keys does not return the carriage by itself.
    print::text(&text.replace('\n', "\r\n"))?;
    execute!(io::stdout(), terminal::EndSynchronizedUpdate)?;
    Ok(())
}

/// As many lines as there is room for, and how many are not shown.
fn frame(text: &str, height: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    let room = height.saturating_sub(2).max(1);
    let hidden = lines.len().saturating_sub(room);
    let shown = lines[..lines.len() - hidden].join("\n");
    let footer = if hidden == 0 {
        "q ends".to_owned()
    } else {
        format!("q ends; {hidden} more lines do not fit, --once shows all")
    };
    format!("{shown}\n\n{}", Tone::Quiet.paint(footer))
}

/// The terminal's other screen; dropped, the terminal is as it was.
struct Screen;

impl Screen {
    fn open() -> anyhow::Result<Self> {
        terminal::enable_raw_mode().context("the terminal gives no keys")?;
        let screen = Self;
        execute!(io::stdout(), terminal::EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // There is no reader left.
        let _ = execute!(io::stdout(), terminal::LeaveAlternateScreen, cursor::Show);
        let _ = terminal::disable_raw_mode();
    }
}

#[cfg(test)]
mod tests {
    use crossterm::event::KeyEvent;

    use super::*;
    use crate::style::plain;

    #[test]
    fn frames_fit_the_screen() {
        assert_eq!(plain(&frame("a\nb\n", 10)), "a\nb\n\nq ends\n");
        let cut = plain(&frame("a\nb\nc\nd\n", 4));
        assert_eq!(cut, "a\nb\n\nq ends; 2 more lines do not fit, --once shows all\n");
        assert!(cut.lines().count() <= 4);
        assert_eq!(plain(&frame("a\nb", 0)).lines().count(), 3, "one line at least");
    }

    #[test]
    fn ways_out() {
        let key = |code, modifiers| Event::Key(KeyEvent::new(code, modifiers));
        assert!(is_goodbye(&key(KeyCode::Char('q'), KeyModifiers::NONE)));
        assert!(is_goodbye(&key(KeyCode::Esc, KeyModifiers::NONE)));
        assert!(is_goodbye(&key(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        assert!(!is_goodbye(&key(KeyCode::Char('c'), KeyModifiers::NONE)));
        assert!(!is_goodbye(&Event::Resize(1, 1)));
    }
}
