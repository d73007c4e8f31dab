//! The connection to the target's host: a program, by default `ssh`, whose standard input and output are those of `ctl serve` there.

use std::{collections::BTreeSet, path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, bail, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, Command as Program},
    sync::mpsc,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    hand::{Command, PROTOCOL, Seen},
    serve::Line,
};

/// How long the other host may take to answer at first: a person may have to type a password.
const GREETING: Duration = Duration::from_mins(1);
/// How long it may take for a command: what is written must be on its disk.
const ANSWER: Duration = Duration::from_secs(20);
/// How many lines wait to be heard.
const HEARD: usize = 16;

/// A connection.
#[derive(Debug)]
pub struct Far {
    stdin: ChildStdin,
    heard: mpsc::Receiver<Result<Line, String>>,
    _reader: AbortOnDropHandle<()>,
    /// It ends with this.
    _child: Child,
}

/// How the other host is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The words of the program that runs a command there.
    pub connect: String,
    /// The agent's program there.
    pub agent: String,
}

impl Way {
    /// The command line, which the shell takes apart here, and a shell may once more there.
    fn line(&self, dir: &Path, nics: &BTreeSet<String>) -> anyhow::Result<String> {
        let dir = dir.to_string_lossy();
        let plain = |word: &str| {
            let fits = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
            !word.is_empty() && !word.starts_with('-') && word.chars().all(fits)
        };
        for word in [self.agent.as_str(), &dir] {
            ensure!(
                plain(word),
                "{word:?}: only letters, digits and /._- are passed on to another host"
            );
        }
        let nics: Vec<&str> = nics.iter().map(String::as_str).collect();
        Ok(format!(
            "exec {} {} ctl --dir {dir} serve {}",
            self.connect,
            self.agent,
            nics.join(" ")
        ))
    }
}

impl Far {
    /// Reaches the other host, and hears what it sees there.
    pub async fn connect(way: &Way, dir: &Path, nics: &BTreeSet<String>) -> anyhow::Result<(Self, Seen)> {
        let line = way.line(dir, nics)?;
        let mut program = Program::new("/bin/sh");
        program.arg("-c").arg(&line);
        let child = program
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut child = child.context("/bin/sh cannot be run")?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the other host's program has no standard input or output");
        };
        let (hear, heard) = mpsc::channel(HEARD);
        let reader = tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            loop {
                let line = match lines.next_line().await {
                    Ok(Some(line)) => serde_json::from_str(&line)
                        .map_err(|error| format!("it says what cannot be understood ({error}): {line}")),
                    Ok(None) => Err("the connection has ended".to_owned()),
                    Err(error) => Err(error.to_string()),
                };
                let is_end = line.is_err();
                if hear.send(line).await.is_err() || is_end {
                    return;
                }
            }
        });
        let mut far = Self {
            stdin,
            heard,
            _reader: AbortOnDropHandle::new(reader),
            _child: child,
        };
        let seen = match timeout(GREETING, far.next()).await {
            Ok(Ok(Line::Seen(seen))) => *seen,
            Ok(Ok(Line::Done(_))) => bail!("it answers what nobody has asked"),
            Ok(Err(why)) => bail!("{why}"),
            Err(_) => bail!("no answer within {} s", GREETING.as_secs()),
        };
        ensure!(
            seen.protocol == PROTOCOL,
            "its agent is of another version, and speaks {} where this one speaks {PROTOCOL}",
            seen.protocol
        );
        Ok((far, seen))
    }

    /// The next line. May be dropped before it has come.
    pub async fn next(&mut self) -> Result<Line, String> {
        match self.heard.recv().await {
            Some(line) => line,
            None => Err("the connection has ended".to_owned()),
        }
    }

    /// Has a command done there; gives what is seen there since. The outer error: whether it was done is not known.
    pub async fn tell(&mut self, command: &Command) -> anyhow::Result<(Result<(), String>, Option<Seen>)> {
        let mut text = serde_json::to_string(command)?;
        text.push('\n');
        let mut now = None;
        let told = async {
            self.stdin.write_all(text.as_bytes()).await?;
            self.stdin.flush().await?;
            loop {
                match self.next().await {
                    Ok(Line::Seen(seen)) => now = Some(*seen),
                    Ok(Line::Done(done)) => return Ok(done),
                    Err(why) => bail!("{why}"),
                }
            }
        };
        match timeout(ANSWER, told).await {
            Ok(done) => Ok((done?, now)),
            Err(_) => bail!("no answer within {} s", ANSWER.as_secs()),
        }
    }
}
