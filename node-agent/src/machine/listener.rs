//! The process that listens on a VM's QMP socket. In a pod it must belong to the pod. The agent holds it by a descriptor, so that
//! another process that gets its pid is never mistaken for it.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{getsockopt, sockopt},
};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, pidfd_open, prlimit};

use super::{
    home::Home,
    process::ProcessId,
    socket::{Closed, Offence},
};

/// The process that listens on a VM's QMP socket.
#[derive(Debug)]
pub struct Listener {
    id: ProcessId,
    pidfd: OwnedFd,
}

impl Listener {
    /// The process that listens at the other end of a connection; an error unless it lives and, in a pod, belongs to that.
    ///
    /// It is the process that called `listen`: if it has left the socket to its children and ended, there is none.
    pub fn of(stream: &UnixStream, home: &Home) -> Result<Self, Closed> {
        let pid = getsockopt(stream, sockopt::PeerCredentials)?.pid();
        if pid <= 0 {
            let error = "the process that listens on the VM's QMP socket has no pid here: the agent is not in the host's PID namespace";
            return Err(Closed::Failed(io::Error::other(error)));
        }
        Self::hold(pid, pidfd_of(stream, pid)?, home)
    }

    /// What is read of a pid is read of the descriptor's process only if that still lives afterwards.
    fn hold(pid: i32, pidfd: OwnedFd, home: &Home) -> Result<Self, Closed> {
        let read = ProcessId::of(pid)?.zip(groups(pid)?);
        let Some((id, groups)) = read.filter(|_| is_alive(&pidfd)) else {
            return Err(Closed::Untrusted(Offence::Inherited));
        };
        if !home.has(&groups) {
            return Err(Closed::Untrusted(Offence::Foreign));
        }
        Ok(Self { id, pidfd })
    }

    /// Which process it is.
    pub fn id(&self) -> &ProcessId {
        &self.id
    }

    /// Lets it lock memory without limit: what a VF may write to must not move. The kernel counts what all processes of a user
    /// have pinned against the limit of the one that pins (`iopt_pages` in `drivers/iommu/iommufd`), so no number would be right
    /// for two VMs of one user. The pod's memory limit decides what it may use at all.
    pub fn unlimit_locked_memory(&self) -> io::Result<()> {
        // The call takes no descriptor; pids are not used again in the moment between.
        if !is_alive(&self.pidfd) {
            return Err(Errno::ESRCH.into());
        }
        let unlimited = Rlimit {
            current: None,
            maximum: None,
        };
        prlimit(Pid::from_raw(self.id.pid), Resource::Memlock, unlimited)?;
        Ok(())
    }

    /// Any process, for tests, in the words of another.
    #[cfg(test)]
    pub(crate) fn pretend(id: ProcessId) -> Self {
        let me = Pid::from_raw(std::process::id().cast_signed()).unwrap();
        let pidfd = pidfd_open(me, PidfdFlags::empty()).unwrap();
        Self { id, pidfd }
    }
}

/// Linux 6.5 and later give the descriptor of the very process that called `listen`. Before that it is taken by its pid, which
/// another may have by then: that one is of the pod, too, or refused.
fn pidfd_of(stream: &UnixStream, pid: i32) -> Result<OwnedFd, Closed> {
    match getsockopt(stream, sockopt::PeerPidfd) {
        Ok(pidfd) => Ok(pidfd),
        Err(Errno::ENOPROTOOPT) => by_pid(pid),
        // It has ended and been waited for; which of these says so depends on the kernel.
        Err(Errno::ESRCH | Errno::EINVAL) => Err(Closed::Untrusted(Offence::Inherited)),
        Err(error) => Err(Closed::Failed(error.into())),
    }
}

fn by_pid(pid: i32) -> Result<OwnedFd, Closed> {
    let opened = Pid::from_raw(pid).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
    match opened {
        Some(Ok(pidfd)) => Ok(pidfd),
        None | Some(Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL)) => {
            Err(Closed::Untrusted(Offence::Inherited))
        }
        Some(Err(error)) => Err(Closed::Failed(error.into())),
    }
}

/// A pidfd is readable once its process has ended (`pidfd_open(2)`). If it cannot be asked, it is not known to live.
fn is_alive(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO) == Ok(0)
}

/// The control groups of a process; `None` where there is none of this pid.
fn groups(pid: i32) -> io::Result<Option<String>> {
    match fs::read_to_string(format!("/proc/{pid}/cgroup")) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use hybridnic_api::v1alpha1::Runtime;

    use super::*;
    use crate::machine::socket::tests::UID;

    /// What is read of a pid that another process has by now is not read of the one that listened.
    #[test]
    fn a_process_that_has_ended_is_not_taken_for_one_that_has_its_pid() {
        let mut child = Command::new("sleep")
            .arg("600")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let me = std::process::id().cast_signed();
        let home = Home::pod(Runtime::Qemu, UID);
        let pidfd = by_pid(child.id().cast_signed()).unwrap();
        assert!(is_alive(&pidfd));
        let error = Listener::hold(me, pidfd.try_clone().unwrap(), &home).unwrap_err();
        assert!(matches!(error, Closed::Untrusted(Offence::Foreign)), "{error}");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_alive(&pidfd));
        let error = Listener::hold(me, pidfd, &home).unwrap_err();
        assert!(matches!(error, Closed::Untrusted(Offence::Inherited)), "{error}");
        let error = by_pid(child.id().cast_signed()).unwrap_err();
        assert!(matches!(error, Closed::Untrusted(Offence::Inherited)), "{error}");
    }
}
