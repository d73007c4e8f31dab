//! Keeps what another process has open, as if that had passed it on: for a QEMU that does not close what it was given.

use std::{
    fs, io,
    os::fd::{FromRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    libc::{self, c_long, pid_t},
    unistd::pause,
};

/// Until it is ended.
pub(crate) fn main(pid: &str, path: &str) -> io::Result<()> {
    let pid: pid_t = pid.parse().map_err(io::Error::other)?;
    let mut kept = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let number = entry
            .file_name()
            .to_string_lossy()
            .parse()
            .map_err(io::Error::other)?;
        // What is closed meanwhile is not there.
        if fs::read_link(entry.path()).is_ok_and(|link| link.to_string_lossy().starts_with(path)) {
            kept.push(copy(pid, number)?);
        }
    }
    println!("kept {}", kept.len());
    loop {
        pause();
    }
}

/// Another descriptor of the same open file.
fn copy(pid: pid_t, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: two system calls that take numbers, and give descriptors that nobody else has.
    unsafe {
        let of = owned(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
        let of = std::os::fd::AsRawFd::as_raw_fd(&of);
        owned(libc::syscall(libc::SYS_pidfd_getfd, of, number, 0))
    }
}

/// # Safety
/// The system call has made this descriptor, if it is one, for us alone.
unsafe fn owned(made: c_long) -> io::Result<OwnedFd> {
    let number = i32::try_from(Errno::result(made)?).map_err(io::Error::other)?;
    // SAFETY: see above.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
