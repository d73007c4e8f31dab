use std::{
    fs,
    os::unix::{fs::symlink, net::UnixListener},
};

use nix::{sys::socket::Backlog, unistd::mkfifo};
use tempfile::TempDir;

use super::*;

pub(crate) const UID: &str = "0b2e7c1d-90aa-4f6e-8d2f-000000000001";
const OTHER: &str = "0b2e7c1d-90aa-4f6e-8d2f-000000000002";

/// The directory of a pod's volume, made as a kubelet does.
pub(crate) fn volume(pods: &Path, pod_uid: &str) -> PathBuf {
    let place = place_of(Runtime::Qemu, pod_uid).unwrap();
    let volume = pods.join(place.volumes).join(place.volume);
    fs::create_dir_all(&volume).unwrap();
    volume
}

fn connect(pods: &Path) -> Result<UnixStream, Closed> {
    open(pods, Runtime::Qemu, UID)?.connect()
}

/// A kubelet's directory, with a pod whose volume has what `make` makes in it: compares the result.
fn refused(make: impl Fn(&Path), why: Offence) {
    let dir = TempDir::new().unwrap();
    make(&volume(dir.path(), UID));
    let error = connect(dir.path()).unwrap_err();
    assert!(
        matches!(error, Closed::Untrusted(offence) if offence == why),
        "{error}"
    );
}

/// As a QEMU that does not accept, or a pod that never means to.
#[test]
fn a_full_queue_is_an_answer() {
    let dir = TempDir::new().unwrap();
    let listener = UnixListener::bind(volume(dir.path(), UID).join(QMP_SOCKET)).unwrap();
    nix::sys::socket::listen(&listener, Backlog::new(1).unwrap()).unwrap();
    let (mut queued, mut error) = (Vec::new(), None);
    while queued.len() < 10 && error.is_none() {
        match connect(dir.path()) {
            Ok(stream) => queued.push(stream),
            Err(e) => error = Some(e),
        }
    }
    let error = error.expect("the queue has an end");
    assert!(matches!(error, Closed::Busy), "somebody listens: {error}");
}

#[test]
fn a_socket_is_there_or_not() {
    let dir = TempDir::new().unwrap();
    let absent = |what: &str| {
        let result = connect(dir.path());
        assert!(matches!(result, Err(Closed::Absent)), "{what}: {result:?}");
    };
    absent("no directory of the pod");
    let volume = volume(dir.path(), UID);
    absent("no socket");
    let listener = UnixListener::bind(volume.join(QMP_SOCKET)).unwrap();
    connect(dir.path()).unwrap();
    drop(listener);
    absent("nobody listens any more");
}

#[test]
fn without_the_kubelets_directory_nothing_is_known() {
    let dir = TempDir::new().unwrap();
    let error = connect(&dir.path().join("pods")).unwrap_err();
    assert!(matches!(error, Closed::Failed(_)), "{error}");
    assert!(!is_kubelets(dir.path(), UID));
    volume(dir.path(), UID);
    assert!(is_kubelets(dir.path(), UID) && !is_kubelets(dir.path(), OTHER));
}

#[test]
fn no_uid_is_a_path() {
    let dir = TempDir::new().unwrap();
    volume(dir.path(), UID);
    for uid in ["", ".", "..", "/etc", &format!("{UID}/../{OTHER}"), "a\0b"] {
        assert!(place_of(Runtime::Qemu, uid).is_none(), "{uid}");
        assert!(matches!(
            open(dir.path(), Runtime::Qemu, uid),
            Err(Closed::Failed(_))
        ));
    }
}

/// Of another pod's socket, of a tree that has no end, of the socket's own directory.
#[test]
fn no_link_is_followed() {
    for target in [
        "/sys",
        "../../../../outside/qmp.sock",
        ".",
        "qmp.sock",
        "/proc/self/fd/0",
    ] {
        refused(
            |volume| symlink(target, volume.join(QMP_SOCKET)).unwrap(),
            Offence::Link,
        );
    }
    // In place of each directory on the way, also one that leads to a valid socket.
    let other = TempDir::new().unwrap();
    let _listener = UnixListener::bind(volume(other.path(), UID).join(QMP_SOCKET)).unwrap();
    connect(other.path()).unwrap();
    for depth in 0..4 {
        let dir = TempDir::new().unwrap();
        let way = volume(dir.path(), UID);
        let place = way.ancestors().nth(depth).unwrap();
        fs::remove_dir_all(place).unwrap();
        let elsewhere = other.path().join(place.strip_prefix(dir.path()).unwrap());
        symlink(elsewhere, place).unwrap();
        let error = connect(dir.path()).unwrap_err();
        assert!(
            matches!(error, Closed::Untrusted(Offence::Link)),
            "{}: {error}",
            place.display()
        );
    }
}

/// Opening a FIFO would wait for a writer.
#[test]
fn what_is_no_socket_is_not_opened() {
    for make in [
        |at: &Path| mkfifo(at, Mode::S_IRWXU).unwrap(),
        |at: &Path| fs::create_dir(at).unwrap(),
        |at: &Path| fs::write(at, "x").unwrap(),
    ] {
        refused(|volume| make(&volume.join(QMP_SOCKET)), Offence::NotASocket);
    }
}

/// The way leads by the pod's uid and the volume's name: what is elsewhere is not looked at.
#[test]
fn a_directory_of_another_pod_that_was_moved_in_is_not_seen() {
    let dir = TempDir::new().unwrap();
    let (mine, others) = (volume(dir.path(), UID), volume(dir.path(), OTHER));
    let _listener = UnixListener::bind(others.join(QMP_SOCKET)).unwrap();
    fs::rename(others, mine.join("moved")).unwrap();
    assert!(matches!(connect(dir.path()), Err(Closed::Absent)));
}

/// A pod of the same name has another uid, and so another directory.
#[test]
fn a_namesake_does_not_meet_an_old_socket() {
    let dir = TempDir::new().unwrap();
    let _old = UnixListener::bind(volume(dir.path(), OTHER).join(QMP_SOCKET)).unwrap();
    volume(dir.path(), UID);
    assert!(matches!(connect(dir.path()), Err(Closed::Absent)));
}
