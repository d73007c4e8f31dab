//! Frames on the wire, watched by tcpdump at a port of the outer network.

use std::fs::File;
use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::watch;

use super::Lab;
use super::exec::{Follower, State, await_state};
use super::launch::launch;
use super::net::{BRIDGE, Net};

const START_DEADLINE: Duration = Duration::from_secs(10);

/// The watcher could not watch.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("start tcpdump")]
    Launch(#[source] io::Error),
    #[error("tcpdump did not start to listen")]
    NotListening,
    #[error("end tcpdump")]
    End(#[source] io::Error),
    #[error("read what tcpdump wrote")]
    Read(#[source] io::Error),
}

/// One frame seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// When, by this host's clock.
    pub at: SystemTime,
    /// Source MAC address.
    pub source: String,
    /// Destination MAC address.
    pub destination: String,
    /// VLAN tag, if it had one.
    pub vlan: Option<u16>,
    /// The rest, as tcpdump puts it; in full, it has several lines.
    pub text: String,
}

/// A tcpdump that is watching. Dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Child,
    output: Option<thread::JoinHandle<io::Result<String>>>,
}

impl Lab {
    /// Watches the wire of a node's port for frames that a tcpdump expression selects, both ways. It watches from
    /// the moment this returns.
    pub async fn capture(&self, node: u8, port: u8, expression: &str) -> Result<Capture, Error> {
        self.tcpdump(&Net::tap(node, port), &[], expression).await
    }

    /// The same of what the peer sends and gets, with all that tcpdump can read in it.
    pub async fn capture_at_peer(&self, expression: &str) -> Result<Capture, Error> {
        self.tcpdump(BRIDGE, &["-v"], expression).await
    }

    async fn tcpdump(&self, interface: &str, more: &[&str], expression: &str) -> Result<Capture, Error> {
        let mut command = Command::new("tcpdump");
        command
            .args(["-i", interface, "-n", "-e", "-tt", "-l", "--immediate-mode"])
            .args(more)
            .arg(expression);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut tcpdump = launch(command, self.net.file()).map_err(Error::Launch)?;
        let (stdout, stderr) = (tcpdump.stdout.take(), tcpdump.stderr.take());
        let output = thread::spawn(move || {
            let mut text = String::new();
            if let Some(mut stdout) = stdout {
                stdout.read_to_string(&mut text)?;
            }
            Ok(text)
        });
        let capture = Capture {
            tcpdump,
            output: Some(output),
        };
        let log = File::create(self.dir.join(format!("tcpdump-{interface}.log"))).map_err(Error::Launch)?;
        let (sender, state) = watch::channel(State::default());
        thread::spawn(move || {
            let mut follower = Follower::new(log, "listening on");
            let mut buffer = [0; 1024];
            let mut stderr = stderr;
            while let Some(Ok(n @ 1..)) = stderr.as_mut().map(|from| from.read(&mut buffer)) {
                follower.take(&buffer[..n], &sender);
            }
            sender.send_modify(|state| state.ended = true);
        });
        match await_state(state, START_DEADLINE, |state| state.marked).await {
            Some(state) if state.marked => Ok(capture),
            _ => Err(Error::NotListening),
        }
    }
}

impl Capture {
    /// Ends the watch and gives what was seen, in order.
    pub fn stop(mut self) -> Result<Vec<Frame>, Error> {
        self.end().map_err(Error::End)?;
        let text = match self.output.take().map(thread::JoinHandle::join) {
            Some(Ok(text)) => text.map_err(Error::Read)?,
            _ => String::new(),
        };
        Ok(frames(&text))
    }

    fn end(&mut self) -> io::Result<()> {
        if self.tcpdump.try_wait()?.is_none() {
            // At an interrupt tcpdump writes out what it still holds.
            kill(Pid::from_raw(self.tcpdump.id().cast_signed()), Signal::SIGINT)?;
        }
        self.tcpdump.wait().map(|_| ())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// What tcpdump has written. With `-v` a frame goes on in lines that begin with blanks.
pub(super) fn frames(text: &str) -> Vec<Frame> {
    let mut frames: Vec<Frame> = Vec::new();
    for line in text.lines() {
        match frames.last_mut() {
            Some(frame) if line.starts_with(char::is_whitespace) => {
                frame.text.push('\n');
                frame.text.push_str(line);
            }
            _ => frames.extend(parse(line)),
        }
    }
    frames
}

/// `1700000000.123456 52:54:00:aa:bb:01 > ff:ff:ff:ff:ff:ff, ethertype 802.1Q (0x8100), length 64: vlan 42, p 0, ...`
fn parse(line: &str) -> Option<Frame> {
    let (time, rest) = line.split_once(' ')?;
    let (source, rest) = rest.split_once(" > ")?;
    let (destination, text) = rest.split_once(", ")?;
    let vlan = text
        .split_once(": vlan ")
        .and_then(|(_, tail)| tail.split_once(','))
        .and_then(|(id, _)| id.parse().ok());
    Some(Frame {
        at: SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(time.parse().ok()?).ok()?)?,
        source: source.into(),
        destination: destination.into(),
        vlan,
        text: text.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tagged_and_plain_frames_are_told_apart() {
        let tagged = parse(
            "1700000000.250000 52:54:00:aa:bb:02 > ff:ff:ff:ff:ff:ff, ethertype 802.1Q (0x8100), length 46: \
             vlan 42, p 0, ethertype ARP (0x0806), Request who-has 10.77.0.1 tell 10.77.0.50, length 28",
        )
        .unwrap();
        assert_eq!(
            (tagged.vlan, tagged.source.as_str()),
            (Some(42), "52:54:00:aa:bb:02")
        );
        assert_eq!(tagged.destination, "ff:ff:ff:ff:ff:ff");
        let plain = parse(
            "1700000000.250000 52:54:00:aa:bb:02 > 52:54:00:aa:bb:03, ethertype IPv4 (0x0800), length 98: \
             10.77.0.50 > 10.77.0.1: ICMP echo request, id 1, seq 1, length 64",
        )
        .unwrap();
        assert_eq!(plain.vlan, None);
        assert_eq!(parse("tcpdump: something else"), None);
    }
}
