//! A daemon under the test's control: started in its own directory, logged to a file, gone when the test is gone.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, mpsc};
use std::thread;

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, getppid};

/// How much of a log's end an error quotes, in bytes.
const LOG_TAIL: u64 = 2048;

/// How much Go's programs may grow before they collect their garbage, in percent: with the default of 100 they spend a fifth of
/// their processor's time on that, as long as they are small.
pub(super) const GOGC: &str = "400";

/// The size at which they collect it anyway, as often as needed: with 50,000 NICs an API server would take all of a machine's memory.
const GOMEMLIMIT: &str = "10GiB";

/// Why a daemon could not be started, or is not running.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("cannot write the log {path}")]
    OpenLog { path: PathBuf, source: io::Error },
    #[error("cannot start {program}")]
    Spawn { program: PathBuf, source: io::Error },
    #[error("cannot look after {name}")]
    Wait { name: &'static str, source: io::Error },
    #[error("cannot send {signal} to {name}")]
    Signal {
        name: &'static str,
        signal: Signal,
        source: nix::Error,
    },
    #[error("{name} has ended ({status}); its log ends:\n{log}")]
    Ended {
        name: &'static str,
        status: ExitStatus,
        log: String,
    },
    #[error("{name} is not running")]
    NotRunning { name: &'static str },
}

/// A child process with a log. Dropping it kills it; so does the end of the test's process, however it ends.
#[derive(Debug)]
pub struct Daemon {
    name: &'static str,
    program: PathBuf,
    args: Vec<String>,
    dir: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// Describes a daemon; nothing runs before [`start`](Self::start).
    ///
    /// It runs in `dir` and logs to `dir/NAME.log`, appending over restarts.
    pub fn new(name: &'static str, program: &Path, args: Vec<String>, dir: &Path) -> Self {
        Self {
            name,
            program: program.to_owned(),
            args,
            dir: dir.to_owned(),
            child: None,
        }
    }

    /// Starts it, or does nothing where it already runs.
    pub fn start(&mut self) -> Result<(), Error> {
        if self.child.is_some() {
            return Ok(());
        }
        let path = self.log_path();
        let log = OpenOptions::new().create(true).append(true).open(&path);
        let log = log.and_then(|log| Ok((log.try_clone()?, log)));
        let (stdout, stderr) = log.map_err(|source| Error::OpenLog { path, source })?;

        let mut command = Command::new(&self.program);
        command.args(&self.args).current_dir(&self.dir);
        command.env("GOGC", GOGC).env("GOMEMLIMIT", GOMEMLIMIT);
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let spawned = spawn(command);
        let child = spawned.map_err(|source| Error::Spawn {
            program: self.program.clone(),
            source,
        })?;
        self.child = Some(child);
        Ok(())
    }

    /// Fails if it has ended by itself, with the end of its log.
    pub fn check(&mut self) -> Result<(), Error> {
        let name = self.name;
        let child = self.child.as_mut().ok_or(Error::NotRunning { name })?;
        match child.try_wait().map_err(|source| Error::Wait { name, source })? {
            None => Ok(()),
            Some(status) => {
                self.child = None;
                Err(Error::Ended {
                    name,
                    status,
                    log: self.log_tail(),
                })
            }
        }
    }

    /// Sends a signal, such as `SIGSTOP`.
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        let name = self.name;
        let child = self.child.as_ref().ok_or(Error::NotRunning { name })?;
        kill(pid_of(child), signal).map_err(|source| Error::Signal { name, signal, source })
    }

    /// `SIGSTOP`, and waits until the kernel has stopped all of its threads: until then it may still answer.
    pub fn stop(&self) -> Result<(), Error> {
        let name = self.name;
        let child = self.child.as_ref().ok_or(Error::NotRunning { name })?;
        let pid = pid_of(child);
        let signal = Signal::SIGSTOP;
        kill(pid, signal)
            .and_then(|()| waitid(Id::Pid(pid), WaitPidFlag::WSTOPPED))
            .map_err(|source| Error::Signal { name, signal, source })?;
        Ok(())
    }

    /// `SIGKILL`, and waits for the end. Harmless where it does not run.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only where the child is gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Its name, as in its log's.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its process while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Its resident memory in KiB while it runs (`VmRSS` of proc(5)).
    pub fn resident_kib(&self) -> Option<u64> {
        resident_kib(self.pid()?)
    }

    /// Where its standard output and error go.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.name))
    }

    fn log_tail(&self) -> String {
        let tail = || -> io::Result<Vec<u8>> {
            let mut log = File::open(self.log_path())?;
            let length = log.metadata()?.len();
            log.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
            let mut bytes = Vec::new();
            log.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match tail() {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => format!("(no log: {error})"),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The resident memory of a process, in KiB.
pub fn resident_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

fn pid_of(child: &Child) -> Pid {
    // A pid_t is what the kernel handed out; it fits.
    Pid::from_raw(child.id().cast_signed())
}

type Order = (Command, mpsc::SyncSender<io::Result<Child>>);

/// Spawns a child that dies with this process.
///
/// `PR_SET_PDEATHSIG` watches the *thread* that forked (prctl(2)), and a test's thread ends before the process
/// does. So all children come from one thread that lives as long as the process.
fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: LazyLock<mpsc::Sender<Order>> = LazyLock::new(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, reply) in inbox {
                // The caller may have given up meanwhile; the child is then reaped at our end.
                let _ = reply.send(spawn_bound(&mut command));
            }
        });
        orders
    });
    let (reply, answer) = mpsc::sync_channel(1);
    let gone = |_| io::Error::other("the thread that starts processes is gone");
    SPAWNER
        .send((command, reply))
        .map_err(|_| gone(mpsc::RecvError))?;
    answer.recv().map_err(gone)?
}

fn spawn_bound(command: &mut Command) -> io::Result<Child> {
    let parent = Pid::this();
    // SAFETY: between fork and exec, only the async-signal-safe prctl(2) and getppid(2) are called; nothing allocates.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have died before the line above took hold.
            if getppid() == parent {
                Ok(())
            } else {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        });
    }
    command.spawn()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::env;
    use std::io::{BufRead as _, BufReader};
    use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    /// Set for the process that is to be killed, to the directory of its daemon.
    const VICTIM: &str = "HYBRIDNIC_TEST_VICTIM";

    fn sleeper(dir: &Path) -> Daemon {
        Daemon::new("sleeper", Path::new("sleep"), vec!["300".into()], dir)
    }

    /// A descriptor that becomes readable when the process ends, also if it is not our child.
    fn watch(pid: u32) -> OwnedFd {
        // SAFETY: pidfd_open(2) takes two integers and touches no memory of ours.
        let fd = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, pid, 0) };
        assert!(fd >= 0, "pidfd_open: {}", io::Error::last_os_error());
        // SAFETY: the kernel has just given this descriptor to us and nobody else.
        unsafe { OwnedFd::from_raw_fd(fd.try_into().unwrap()) }
    }

    #[test]
    fn a_daemon_outlives_the_thread_that_started_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut daemon = sleeper(dir.path());
        thread::scope(|scope| scope.spawn(|| daemon.start().unwrap()).join().unwrap());
        let pidfd = watch(daemon.child.as_ref().unwrap().id());
        let ended = poll(
            &mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)],
            PollTimeout::from(300_u16),
        )
        .unwrap();
        assert_eq!(ended, 0, "it ended with its thread");
        daemon.check().unwrap();
    }

    #[test]
    fn a_daemon_dies_with_a_process_that_is_killed() {
        if let Some(dir) = env::var_os(VICTIM) {
            let mut daemon = sleeper(Path::new(&dir));
            daemon.start().unwrap();
            println!("\ndaemon {}", daemon.child.as_ref().unwrap().id());
            loop {
                thread::park();
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let name = "controlplane::process::tests::a_daemon_dies_with_a_process_that_is_killed";
        let mut victim = Command::new(env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(VICTIM, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        let pid = lines
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("daemon ")?.parse().ok());
        let pidfd = watch(pid.expect("the victim names its daemon"));
        victim.kill().unwrap();
        victim.wait().unwrap();
        let ended = poll(
            &mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)],
            PollTimeout::from(10_000_u16),
        )
        .unwrap();
        assert_eq!(ended, 1, "its daemon lives on");
    }

    #[test]
    fn an_early_end_is_told_with_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let script = vec!["-c".into(), "echo no such flag >&2; exit 3".into()];
        let mut daemon = Daemon::new("failing", Path::new("sh"), script, dir.path());
        daemon.start().unwrap();
        daemon.child.as_mut().unwrap().wait().unwrap();
        let error = daemon.check().unwrap_err().to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("no such flag"),
            "{error}"
        );
        assert!(matches!(daemon.check(), Err(Error::NotRunning { .. })));
    }
}
