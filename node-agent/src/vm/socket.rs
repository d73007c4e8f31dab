//! Opens a pod's QMP socket. The directory is shared with the pod, so nothing in it is trusted: no link is
//! followed, and nothing outside the agent's own directory is reached.

use std::{
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{fs::FileTypeExt as _, net::UnixStream},
    },
    path::Path,
};

use hybridnic_api::names::QMP_SOCKET;
use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, UnixAddr},
        stat::Mode,
    },
};

/// Connects to `<root>/<namespace>/<pod>/qmp.sock`.
///
/// A missing directory or socket and a socket that nobody listens on are `NotFound` and `ConnectionRefused`. It waits for
/// nobody: where the listener's queue is full, as QEMU's is behind one client, it is `WouldBlock`.
pub fn connect(root: &Path, namespace: &str, pod: &str) -> io::Result<UnixStream> {
    let bad = |part: &str| part.is_empty() || part == "." || part == ".." || part.contains('/');
    if bad(namespace) || bad(pod) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a name of a namespace or a pod",
        ));
    }
    let root = std::fs::File::open(root)?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .mode(Mode::empty())
        .resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_MAGICLINKS,
        );
    let socket: OwnedFd = openat2(
        &root,
        Path::new(namespace).join(pod).join(QMP_SOCKET).as_path(),
        how,
    )?;
    let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
    if !std::fs::metadata(&path)?.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "qmp.sock is not a socket",
        ));
    }
    let stream = nix::sys::socket::socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    nix::sys::socket::connect(stream.as_raw_fd(), &UnixAddr::new(path.as_str())?)?;
    Ok(UnixStream::from(stream))
}

/// Whether an error of [`connect`] says that no QEMU is there.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::*;

    /// As a QEMU that does not accept, or a pod that never means to.
    #[test]
    fn a_full_queue_is_an_answer() {
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("ns/pod");
        std::fs::create_dir_all(&pod).unwrap();
        let listener = UnixListener::bind(pod.join(QMP_SOCKET)).unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
        let (mut queued, mut error) = (Vec::new(), None);
        while queued.len() < 10 && error.is_none() {
            match connect(dir.path(), "ns", "pod") {
                Ok(stream) => queued.push(stream),
                Err(e) => error = Some(e),
            }
        }
        let error = error.expect("the queue has an end");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(!is_gone(&error), "somebody listens");
    }

    #[test]
    fn connects_beneath_its_root_only() {
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("ns/pod");
        std::fs::create_dir_all(&pod).unwrap();
        assert!(is_gone(&connect(dir.path(), "ns", "pod").unwrap_err()));

        let outside = tempfile::tempdir().unwrap();
        let _listener = UnixListener::bind(outside.path().join(QMP_SOCKET)).unwrap();
        symlink(outside.path().join(QMP_SOCKET), pod.join(QMP_SOCKET)).unwrap();
        let error = connect(dir.path(), "ns", "pod").unwrap_err();
        assert!(!is_gone(&error), "a link is an offence, not an absence: {error}");
        assert!(connect(dir.path(), "ns", "..").is_err());

        std::fs::remove_file(pod.join(QMP_SOCKET)).unwrap();
        let listener = UnixListener::bind(pod.join(QMP_SOCKET)).unwrap();
        connect(dir.path(), "ns", "pod").unwrap();
        drop(listener);
        assert!(
            is_gone(&connect(dir.path(), "ns", "pod").unwrap_err()),
            "nobody listens any more"
        );
    }
}
