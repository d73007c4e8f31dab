//! Starting processes that must not outlive the harness.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

type Job = (Command, mpsc::Sender<io::Result<Child>>);

/// Starts the command in a network namespace. The kernel kills it when this process ends in any way.
pub(crate) fn launch(mut command: Command, netns: &File) -> io::Result<Child> {
    let netns = netns.try_clone()?;
    // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            set_pdeathsig(Signal::SIGKILL)?;
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
            Ok(())
        });
    }
    let (reply, result) = mpsc::channel();
    let gone = || io::Error::other("the launching thread is gone");
    launcher()
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, reply))
        .map_err(|_| gone())?;
    result.recv().map_err(|_| gone())?
}

/// The death signal comes when the *thread* that forked ends, and test threads end early: one thread that lasts as
/// long as the process starts them all.
fn launcher() -> &'static Mutex<mpsc::Sender<Job>> {
    static LAUNCHER: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    LAUNCHER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (mut command, reply) in jobs {
                // A caller that has gone leaves the child to its Drop.
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(sender)
    })
}
