//! A few QMP commands by hand, with descriptors: for tests of the lab itself and for a look at a running guest.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, IoSlice, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

/// Sends `args`: `NAME=PATH` opens the file and hands it over by `getfd`; anything else is a command as JSON.
/// Prints the last command's reply, and each event met on the way on stderr.
pub(crate) fn main(socket: &str, args: &[&str]) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    // A monitor serves one client at a time and lets the next wait without a greeting.
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    receive(&mut reader, "QMP")?;
    let mut last = call(&mut stream, &mut reader, &json!({"execute": "qmp_capabilities"}))?;
    for arg in args {
        last = match arg.split_once('=') {
            Some((name, path)) if !arg.starts_with('{') => give(&stream, &mut reader, name, path)?,
            _ => call(&mut stream, &mut reader, &serde_json::from_str(arg)?)?,
        };
    }
    println!("{last}");
    Ok(())
}

fn give(stream: &UnixStream, reader: &mut impl BufRead, name: &str, path: &str) -> io::Result<Value> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let line = format!("{}\n", json!({"execute": "getfd", "arguments": {"fdname": name}}));
    sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(line.as_bytes())],
        &[ControlMessage::ScmRights(&[file.as_raw_fd()])],
        MsgFlags::empty(),
        None,
    )?;
    receive(reader, "return")
}

fn call(stream: &mut UnixStream, reader: &mut impl BufRead, command: &Value) -> io::Result<Value> {
    stream.write_all(format!("{command}\n").as_bytes())?;
    receive(reader, "return")
}

/// Reads on to the next message that has this key.
fn receive(reader: &mut impl BufRead, key: &str) -> io::Result<Value> {
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut message: Value = serde_json::from_str(&line)?;
        if let Some(value) = message.get_mut(key) {
            return Ok(value.take());
        }
        if let Some(error) = message.get("error") {
            return Err(io::Error::other(error.to_string()));
        }
        eprintln!("{message}");
    }
}
