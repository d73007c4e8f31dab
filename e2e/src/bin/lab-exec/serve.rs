//! The server: a thread for each connection, so that a command that hangs holds up no other.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use hybridnic_e2e::lab::wire::{self, Frame, GUEST_PORT, Reply, Request, UP};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::vsock;

pub(crate) fn main(args: &[&str]) -> io::Result<()> {
    let (listen, announce) = match args {
        [kind, at] => ((*kind, *at), None),
        [kind, at, "--announce", file] => ((*kind, *at), Some(*file)),
        _ => return Err(io::Error::other("serve: --tcp ADDRESS:PORT or --vsock PORT")),
    };
    match listen {
        ("--tcp", address) => {
            let listener = TcpListener::bind(address)?;
            say_up(announce)?;
            loop {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                serve(OwnedFd::from(stream).into());
            }
        }
        ("--vsock", port) => {
            let listener = vsock::Listener::bind(port.parse().map_err(io::Error::other)?)?;
            say_up(announce)?;
            loop {
                serve(listener.accept()?);
            }
        }
        (other, _) => Err(io::Error::other(format!("serve: unknown {other}"))),
    }
}

fn say_up(announce: Option<&str>) -> io::Result<()> {
    match announce {
        Some(file) => OpenOptions::new()
            .write(true)
            .open(file)?
            .write_all(format!("{UP}\n").as_bytes()),
        None => Ok(()),
    }
}

/// Any stream socket dressed as a [`UnixStream`]: reading, writing and shutting down are the same calls.
fn serve(stream: UnixStream) {
    thread::spawn(move || {
        if let Err(e) = converse(stream) {
            eprintln!("lab-exec: connection: {e}");
        }
    });
}

fn converse(stream: UnixStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    match serde_json::from_str(&line)? {
        Request::Run(command) => run(&command, reader, stream),
        Request::Unix(path) => relay(UnixStream::connect(path), reader, stream),
        Request::Vsock(cid) => relay(vsock::connect(cid, GUEST_PORT), reader, stream),
    }
}

fn answer(stream: &mut UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Copies both ways until both sides have said all.
fn relay(
    target: io::Result<UnixStream>,
    mut client: BufReader<UnixStream>,
    mut stream: UnixStream,
) -> io::Result<()> {
    let mut target = match target {
        Ok(target) => target,
        Err(e) => return answer(&mut stream, &Reply::Error(e.to_string())),
    };
    answer(&mut stream, &Reply::Ok(0))?;
    let mut to_target = target.try_clone()?;
    let inward = thread::spawn(move || {
        let copied = io::copy(&mut client, &mut to_target);
        // The target may be gone already: then there is nobody to tell.
        let _ = to_target.shutdown(Shutdown::Write);
        copied
    });
    let outward = io::copy(&mut target, &mut stream);
    let _ = stream.shutdown(Shutdown::Both);
    let _ = inward.join();
    outward.map(|_| ())
}

fn run(command: &wire::Command, client: BufReader<UnixStream>, mut stream: UnixStream) -> io::Result<()> {
    let mut child = match start(command) {
        Ok(child) => child,
        Err(e) => return answer(&mut stream, &Reply::Error(e.to_string())),
    };
    answer(&mut stream, &Reply::Ok(child.id()))?;
    let out = Arc::new(Mutex::new(stream.try_clone()?));
    let mut copies: Vec<JoinHandle<()>> = Vec::new();
    if let Some(from) = child.stdout.take() {
        copies.push(copy_out(from, Arc::clone(&out), Frame::Stdout));
    }
    if let Some(from) = child.stderr.take() {
        copies.push(copy_out(from, Arc::clone(&out), Frame::Stderr));
    }
    let stdin = child.stdin.take();
    let group = Pid::from_raw(child.id().cast_signed());
    let ended = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&ended);
    thread::spawn(move || obey(client, stdin, group, &over));

    let status = child.wait()?;
    // A process that inherited the output may keep it open after the program's end; the harness wants it all.
    for copy in copies {
        let _ = copy.join();
    }
    let code = status
        .code()
        .or_else(|| status.signal().map(|n| 128 + n))
        .unwrap_or(-1);
    send(&out, &Frame::Exited(code))?;
    // What it has started and left behind ends with it.
    let _ = killpg(group, Signal::SIGKILL);
    ended.store(true, Ordering::Relaxed);
    // What the client sends is read until it goes: a socket that is closed with something unread resets the connection, and what is still on its
    // way to the client is lost.
    stream.shutdown(Shutdown::Write)
}

fn start(command: &wire::Command) -> io::Result<Child> {
    let (program, args) = command
        .argv
        .split_first()
        .ok_or_else(|| io::Error::other("empty command"))?;
    Command::new(program)
        .args(args)
        .envs(command.env.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Its own group: a signal, or the client's end, must reach what the program has started too.
        .process_group(0)
        .spawn()
}

fn send(out: &Mutex<UnixStream>, frame: &Frame) -> io::Result<()> {
    let mut out = out.lock().map_err(|_| io::Error::other("a writer panicked"))?;
    frame.write(&mut *out)
}

fn copy_out(
    mut from: impl Read + Send + 'static,
    out: Arc<Mutex<UnixStream>>,
    frame: fn(Vec<u8>) -> Frame,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = vec![0; wire::MAX_FRAME];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            if send(&out, &frame(buffer[..n].to_vec())).is_err() {
                break;
            }
        }
    })
}

/// Takes the client's frames until it goes; then the program must go as well. Once that has ended, its number may be another's.
fn obey(mut client: BufReader<UnixStream>, mut stdin: Option<ChildStdin>, group: Pid, ended: &AtomicBool) {
    let signal_it = |signal| {
        if !ended.load(Ordering::Relaxed) {
            let _ = killpg(group, signal);
        }
    };
    while let Ok(Some(frame)) = Frame::read(&mut client) {
        match frame {
            Frame::Stdin(data) if data.is_empty() => stdin = None,
            Frame::Stdin(data) => {
                // A program need not read its input to the end.
                let _ = stdin.as_mut().map(|to| to.write_all(&data));
            }
            Frame::Signal(number) => {
                if let Ok(signal) = Signal::try_from(number) {
                    signal_it(signal);
                }
            }
            _ => break,
        }
    }
    signal_it(Signal::SIGKILL);
}
