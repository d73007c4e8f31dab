//! Commands in nodes and guests, many at a time: the client of `lab-exec serve`.

use std::fs::{File, OpenOptions};
use std::io::{self, Cursor, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::wire::{Command, Frame, HEADER, MAX_FRAME, Reply, Request};

/// A command could not be run, or did not do.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("talk to lab-exec at {target}")]
    Talk { target: Target, source: io::Error },
    #[error("lab-exec at {target} refused: {why}")]
    Refused { target: Target, why: String },
    #[error("`{what}` at {target} took more than {deadline:?}")]
    Deadline {
        target: Target,
        what: String,
        deadline: Duration,
    },
    #[error("`{what}` at {target} ended with {status}: {stderr}")]
    Failed {
        target: Target,
        what: String,
        status: i32,
        stderr: String,
    },
    #[error("log of `{what}`")]
    Log { what: String, source: io::Error },
    #[error("`{what}` printed what is not expected: {source}: {text}")]
    Parse {
        what: String,
        text: String,
        source: serde_json::Error,
    },
}

/// What a command left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit status, or 128 + the number of the signal that ended it.
    pub status: i32,
    /// What it wrote, as far as it is UTF-8.
    pub stdout: String,
    /// Likewise.
    pub stderr: String,
}

/// A machine that runs `lab-exec serve`: a node, or a guest behind its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The node's server.
    pub node: SocketAddr,
    /// Vsock context id of the guest in it.
    pub guest: Option<u32>,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.guest {
            Some(cid) => write!(f, "{} guest {cid}", self.node.ip()),
            None => write!(f, "{}", self.node.ip()),
        }
    }
}

impl Target {
    /// Runs a shell command to its end, successful or not. At the deadline it is killed with all it has started.
    pub(crate) async fn shell(self, script: &str, deadline: Duration) -> Result<Output, Error> {
        let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
        self.run(
            Command {
                argv,
                env: Vec::new(),
            },
            &[],
            deadline,
        )
        .await
    }

    /// Runs a program with this input.
    pub(crate) async fn run(
        self,
        command: Command,
        stdin: &[u8],
        deadline: Duration,
    ) -> Result<Output, Error> {
        let what = command.argv.join(" ");
        match timeout(deadline, self.converse(command, stdin)).await {
            Ok(done) => done,
            Err(_) => Err(Error::Deadline {
                target: self,
                what,
                deadline,
            }),
        }
    }

    async fn converse(self, command: Command, stdin: &[u8]) -> Result<Output, Error> {
        let (mut stream, _) = self.open(Request::Run(command)).await?;
        let talk = |source| Error::Talk { target: self, source };
        for chunk in stdin.chunks(MAX_FRAME) {
            stream
                .write_all(&Frame::Stdin(chunk.to_vec()).encode())
                .await
                .map_err(talk)?;
        }
        stream
            .write_all(&Frame::Stdin(Vec::new()).encode())
            .await
            .map_err(talk)?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match read_frame(&mut stream).await.map_err(talk)? {
                Frame::Stdout(data) => stdout.extend(data),
                Frame::Stderr(data) => stderr.extend(data),
                Frame::Exited(status) => {
                    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                    return Ok(Output {
                        status,
                        stdout: text(stdout),
                        stderr: text(stderr),
                    });
                }
                Frame::Stdin(_) | Frame::Signal(_) => {}
            }
        }
    }

    /// Starts a program that goes on; its output is appended to `log` on this host.
    pub(crate) async fn spawn(
        self,
        command: Command,
        log: PathBuf,
        marker: &'static str,
    ) -> Result<Process, Error> {
        let what = command.argv.join(" ");
        let log_error = |source| Error::Log {
            what: what.clone(),
            source,
        };
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(log_error)?;
        let (stream, pid) = self.open(Request::Run(command)).await?;
        let early = stream.buffer().to_vec();
        let talk = |source| Error::Talk { target: self, source };
        let control = stream.into_inner().into_std().map_err(talk)?;
        control.set_nonblocking(false).map_err(talk)?;
        let reader = Read::chain(Cursor::new(early), control.try_clone().map_err(talk)?);
        let (sender, state) = watch::channel(State::default());
        thread::spawn(move || follow_frames(reader, file, marker, &sender));
        Ok(Process {
            target: self,
            what,
            pid,
            log,
            control,
            state,
        })
    }

    /// A stream to a Unix socket in the node.
    pub(crate) async fn unix(self, path: &str) -> Result<BufReader<TcpStream>, Error> {
        Ok(self.open(Request::Unix(path.into())).await?.0)
    }

    async fn open(self, request: Request) -> Result<(BufReader<TcpStream>, u32), Error> {
        let talk = |source| Error::Talk { target: self, source };
        let stream = TcpStream::connect(self.node).await.map_err(talk)?;
        stream.set_nodelay(true).map_err(talk)?;
        let mut stream = BufReader::new(stream);
        if let Some(cid) = self.guest {
            self.ask(&mut stream, &Request::Vsock(cid)).await?;
        }
        let pid = self.ask(&mut stream, &request).await?;
        Ok((stream, pid))
    }

    async fn ask(self, stream: &mut BufReader<TcpStream>, request: &Request) -> Result<u32, Error> {
        let talk = |source| Error::Talk { target: self, source };
        let mut line = serde_json::to_vec(request).map_err(|e| talk(e.into()))?;
        line.push(b'\n');
        stream.write_all(&line).await.map_err(talk)?;
        let mut reply = String::new();
        stream.read_line(&mut reply).await.map_err(talk)?;
        let unclear = |e| {
            talk(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{e}: {reply:?}"),
            ))
        };
        match serde_json::from_str(&reply).map_err(unclear)? {
            Reply::Ok(pid) => Ok(pid),
            Reply::Error(why) => Err(Error::Refused { target: self, why }),
        }
    }
}

impl Output {
    /// The stdout of a command that had to succeed.
    pub(crate) fn success(self, target: Target, what: &str) -> Result<String, Error> {
        if self.status == 0 {
            Ok(self.stdout)
        } else {
            Err(Error::Failed {
                target,
                what: what.into(),
                status: self.status,
                stderr: self.stderr,
            })
        }
    }
}

async fn read_frame(stream: &mut BufReader<TcpStream>) -> io::Result<Frame> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).await?;
    let mut payload = vec![0; Frame::payload_len(header)?];
    stream.read_exact(&mut payload).await?;
    Frame::decode(header, payload)
}

/// A program that goes on in a node. Dropping it kills the program and all it has started.
#[derive(Debug)]
pub struct Process {
    target: Target,
    what: String,
    pid: u32,
    log: PathBuf,
    control: std::net::TcpStream,
    state: watch::Receiver<State>,
}

impl Process {
    /// Its process id, in the node's numbers.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// File on this host that has all it wrote.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// All it has written so far.
    pub fn read_log(&self) -> Result<String, Error> {
        let bytes = std::fs::read(&self.log).map_err(|source| Error::Log {
            what: self.what.clone(),
            source,
        })?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Waits until it has written this, or ended; says whether it is in the log.
    pub async fn logged(&self, text: &str, deadline: Duration) -> Result<bool, Error> {
        let mut seen = 0;
        let end = Instant::now() + deadline;
        while !self.read_log()?.contains(text) {
            let more = |state: &State| state.written > seen;
            let left = end.saturating_duration_since(Instant::now());
            let state = self
                .state_when(&format!("`{text}` in the log"), left, more)
                .await?;
            if state.ended {
                return Ok(self.read_log()?.contains(text));
            }
            seen = state.written;
        }
        Ok(true)
    }

    /// Sends a signal to the program and all it has started.
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        let mut control = &self.control;
        Frame::Signal(signal as i32)
            .write(&mut control)
            .map_err(|source| Error::Talk {
                target: self.target,
                source,
            })
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        !self.state.borrow().ended
    }

    /// Waits for its end; gives the exit status, or `None` if the node went with it.
    pub async fn wait(&self, deadline: Duration) -> Result<Option<i32>, Error> {
        Ok(self
            .state_when("end", deadline, |state| state.ended)
            .await?
            .status)
    }

    /// Kills it and waits for its end.
    pub async fn kill(&self, deadline: Duration) -> Result<(), Error> {
        if self.is_running() {
            self.signal(Signal::SIGKILL)?;
        }
        self.wait(deadline).await.map(|_| ())
    }

    /// Waits until it has written the marker or has ended; says whether it wrote it.
    pub(crate) async fn marked(&self, deadline: Duration) -> Result<bool, Error> {
        Ok(self
            .state_when("start", deadline, |state| state.marked || state.ended)
            .await?
            .marked)
    }

    async fn state_when(
        &self,
        what: &str,
        deadline: Duration,
        reached: impl Fn(&State) -> bool,
    ) -> Result<State, Error> {
        await_state(self.state.clone(), deadline, reached)
            .await
            .ok_or_else(|| Error::Deadline {
                target: self.target,
                what: format!("{what} of {}", self.what),
                deadline,
            })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.control.shutdown(Shutdown::Both);
    }
}

/// How far a followed program has come.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct State {
    /// Bytes it has written.
    pub(crate) written: usize,
    /// It has written the marker.
    pub(crate) marked: bool,
    /// Nothing more will come.
    pub(crate) ended: bool,
    /// How it ended, if it is known.
    pub(crate) status: Option<i32>,
}

/// Waits for a state; `None` at the deadline. A follower that is gone has nothing more to report.
pub(crate) async fn await_state(
    mut states: watch::Receiver<State>,
    deadline: Duration,
    reached: impl Fn(&State) -> bool,
) -> Option<State> {
    let waited = timeout(deadline, states.wait_for(|state| reached(state) || state.ended))
        .await
        .ok()?;
    match waited {
        Ok(state) => Some(*state),
        Err(_) => Some(State {
            ended: true,
            ..State::default()
        }),
    }
}

/// Writes output to a log and watches for a marker in it.
pub(crate) struct Follower {
    log: File,
    marker: &'static str,
    tail: Vec<u8>,
}

impl Follower {
    pub(crate) fn new(log: File, marker: &'static str) -> Self {
        Self {
            log,
            marker,
            tail: Vec::new(),
        }
    }

    pub(crate) fn take(&mut self, data: &[u8], sender: &watch::Sender<State>) {
        // A full disk must not stop the machine whose output this is.
        let _ = self.log.write_all(data);
        sender.send_modify(|state| state.written += data.len());
        if self.marker.is_empty() || sender.borrow().marked {
            return;
        }
        self.tail.extend_from_slice(data);
        let marker = self.marker.as_bytes();
        if self.tail.windows(marker.len()).any(|window| window == marker) {
            sender.send_modify(|state| state.marked = true);
        } else {
            let surplus = self.tail.len().saturating_sub(marker.len());
            self.tail.drain(..surplus);
        }
    }
}

fn follow_frames(mut from: impl Read, log: File, marker: &'static str, sender: &watch::Sender<State>) {
    let mut follower = Follower::new(log, marker);
    let mut status = None;
    while let Ok(Some(frame)) = Frame::read(&mut from) {
        match frame {
            Frame::Stdout(data) | Frame::Stderr(data) => follower.take(&data, sender),
            Frame::Exited(code) => status = Some(code),
            Frame::Stdin(_) | Frame::Signal(_) => {}
        }
    }
    sender.send_modify(|state| (state.ended, state.status) = (true, status));
}
