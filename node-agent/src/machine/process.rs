//! The process behind a QMP socket. That a socket does not answer proves nothing; that the process has ended does.

use std::{fs, io, os::fd::OwnedFd, path::Path};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use tokio::io::{Interest, unix::AsyncFd};

use super::stat;

/// A process, told from any other that ever had its pid.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessId {
    /// The kernel's boot (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
    /// The pid, as the agent sees it.
    pub pid: i32,
    /// When it started, in clock ticks since the boot (field 22 of `/proc/PID/stat`, `proc_pid_stat(5)`).
    pub start: u64,
}

impl ProcessId {
    /// The process that has this pid now, in the agent's pid namespace; `None` where none has.
    pub fn of(pid: i32) -> io::Result<Option<Self>> {
        let Some(start) = start_of(pid)? else {
            return Ok(None);
        };
        let boot = boot()?;
        Ok(Some(Self { boot, pid, start }))
    }

    /// Whether it is proven to have ended. An error of `/proc` proves nothing.
    pub fn has_ended(&self) -> bool {
        match boot() {
            Ok(boot) if boot != self.boot => true,
            Ok(_) => matches!(start_of(self.pid), Ok(start) if start != Some(self.start)),
            Err(_) => false,
        }
    }

    /// Resolves when it has ended; never if the kernel provides no descriptor.
    pub async fn ended(&self) {
        let Ok(fd) = self.descriptor() else {
            // No such process, or no such call.
            if self.has_ended() {
                return;
            }
            return std::future::pending().await;
        };
        // Asked after the descriptor was taken: it belongs to this process, or to one that has its pid now.
        if self.has_ended() {
            return;
        }
        wait_for_end(fd).await;
    }

    /// A descriptor of it.
    pub fn open(&self) -> io::Result<OwnedFd> {
        let descriptor = self.descriptor()?;
        // Asked after it was taken, as above.
        if self.has_ended() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the process has ended"));
        }
        Ok(descriptor)
    }

    fn descriptor(&self) -> io::Result<OwnedFd> {
        let pid = Pid::from_raw(self.pid).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(pidfd_open(pid, PidfdFlags::empty())?)
    }
}

/// A pidfd is readable once its process has ended (`pidfd_open(2)`).
async fn wait_for_end(pidfd: OwnedFd) {
    // SAFETY: an `OwnedFd` stays open until it is dropped, and `AsyncFd` owns it.
    let watched = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
    match watched {
        Ok(pidfd) => drop(pidfd.readable().await),
        Err(_) => std::future::pending().await,
    }
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// When the process of this pid started; `None` where there is none, or only its exit status is left.
fn start_of(pid: i32) -> io::Result<Option<u64>> {
    let text = match fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")) {
        // ESRCH: it ended while it was read.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH) =>
        {
            return Ok(None);
        }
        other => other?,
    };
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "not a line of /proc/PID/stat");
    let (state, start) = stat::parse(&text).ok_or_else(bad)?;
    Ok((!matches!(state, "Z" | "X" | "x")).then_some(start))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[tokio::test]
    async fn a_process_has_ended_when_it_has_and_not_before() {
        let mut child = Command::new("sleep")
            .arg("600")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let id = ProcessId::of(child.id().cast_signed()).unwrap().unwrap();
        assert!(!id.has_ended());
        // Stopped, it answers nothing, and lives.
        let pid = nix::unistd::Pid::from_raw(id.pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
        assert!(!id.has_ended());
        let ended = id.ended();
        tokio::pin!(ended);
        assert!(futures::poll!(&mut ended).is_pending());
        child.kill().unwrap();
        // A zombie first: it runs nothing any more.
        ended.await;
        assert!(id.has_ended());
        child.wait().unwrap();
        assert!(id.has_ended());
        id.ended().await;
    }

    #[test]
    fn another_process_of_the_same_pid_is_another() {
        let me = ProcessId::of(std::process::id().cast_signed()).unwrap().unwrap();
        let before = ProcessId {
            start: me.start - 1,
            ..me.clone()
        };
        assert!(before.has_ended() && !me.has_ended());
        let last_boot = ProcessId {
            boot: "another".into(),
            ..me
        };
        assert!(last_boot.has_ended());
    }
}
