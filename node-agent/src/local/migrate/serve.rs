//! The far end of a migration: its host's directory, over standard input and output. Each line is one JSON value.
//!
//! It says what it sees, at once and each time that this changes, and answers each command when it is done. What it sees by then it has
//! said before. It ends with its input.

use std::{
    collections::BTreeSet,
    io::{self, BufRead as _, Write as _},
    path::Path,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{
    super::dir::{Change, Dir},
    hand::{Command, Hand, Seen},
};

/// When what could not be read is tried again: it may be about to be replaced.
const AGAIN: Duration = Duration::from_secs(1);

/// A line of the far end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Line {
    /// What is there now.
    Seen(Box<Seen>),
    /// The command is done; or why it is not.
    Done(Result<(), String>),
}

/// Serves the directory for these NICs until its input ends.
pub async fn serve(dir: &Path, nics: &BTreeSet<String>) -> anyhow::Result<()> {
    let watched = Dir::open(dir).with_context(|| format!("the directory {}", dir.display()))?;
    let hand = Hand::new(dir, nics);
    let mut said = None;
    say_seen(&mut said, hand.look()?)?;
    let mut lines = read();
    let mut again = None;
    loop {
        let rest = async {
            match again {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        let line = tokio::select! {
            line = lines.recv() => match line {
                Some(line) => Some(line?),
                None => return Ok(()),
            },
            change = watched.changed() => {
                anyhow::ensure!(change != Change::Lost, "the directory {} has gone", dir.display());
                None
            }
            () = rest => None,
        };
        // The driver would come back with it.
        let done = line.map(|line| match serde_json::from_str::<Command>(&line) {
            Ok(command) => hand.apply(&command).map_err(|error| error.to_string()),
            Err(error) => Err(format!("a command cannot be understood: {error}")),
        });
        match hand.look() {
            Ok(seen) => {
                again = None;
                say_seen(&mut said, seen)?;
            }
            Err(error) => {
                eprintln!("{}: {error}; tried again", dir.display());
                again = Some(AGAIN);
            }
        }
        if let Some(done) = done {
            say(&Line::Done(done))?;
        }
    }
}

/// The lines of standard input, one at a time: the driver waits for the answer to each.
fn read() -> mpsc::Receiver<io::Result<String>> {
    let (read, lines) = mpsc::channel(1);
    // It may wait for ever; the end of the process ends it.
    thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            if read.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

fn say_seen(said: &mut Option<Seen>, seen: Seen) -> io::Result<()> {
    if said.as_ref() != Some(&seen) {
        say(&Line::Seen(Box::new(seen.clone())))?;
        *said = Some(seen);
    }
    Ok(())
}

fn say(line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_string(line)?;
    text.push('\n');
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
