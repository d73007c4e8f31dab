//! Where a VM's QEMU runs: in a pod, or on the host itself. What is proof of a process differs.
//!
//! | | in a pod | on the host |
//! |---|---|---|
//! | the socket | in the pod's volume, which the pod fills as it likes | where a file of root's says |
//! | the process that listens is the VM's | if it is in the pod's control group | if nobody but root and the directory's owner could have put a socket there |
//! | somebody may have what QEMU was given | while the pod has processes | while that QEMU's process lives |

use std::{
    io,
    path::{Path, PathBuf},
};

use hybridnic_api::v1alpha1::Runtime;

use super::{
    cgroup,
    process::ProcessId,
    residents,
    socket::{self, Closed, Directory},
};
use crate::journal::Record;

/// Where a VM's QEMU runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Home {
    /// In a pod.
    Pod {
        /// What runs the VM there.
        runtime: Runtime,
        /// The pod's uid.
        uid: String,
    },
    /// On the host, without a pod.
    Host {
        /// QEMU's QMP socket.
        socket: PathBuf,
    },
}

impl Home {
    /// In this pod.
    pub fn pod(runtime: Runtime, uid: impl Into<String>) -> Self {
        let uid = uid.into();
        Self::Pod { runtime, uid }
    }

    /// Where the VM of an attachment runs.
    pub fn of(record: &Record) -> Self {
        match &record.socket {
            Some(socket) => Self::Host {
                socket: socket.clone(),
            },
            None => Self::pod(record.spec.vm.runtime(), &record.spec.pod.uid),
        }
    }

    /// Opens the directory of the VM's QMP socket; those of pods are beneath `pods`.
    pub fn open(&self, pods: &Path) -> Result<Directory, Closed> {
        match self {
            Self::Pod { runtime, uid } => socket::open(pods, *runtime, uid),
            Self::Host { socket } => socket::open_on_host(socket),
        }
    }

    /// Whether a process that listens there is the VM's, by its control groups.
    pub fn has(&self, groups: &str) -> bool {
        match self {
            Self::Pod { uid, .. } => cgroup::is_of_pod(groups, uid),
            // The socket's directory has shown it.
            Self::Host { .. } => true,
        }
    }

    /// Whether there are processes that may still have what the VM's QEMU was given; `known` is the QEMU that was talked to last.
    pub fn has_processes(&self, proc: &Path, known: Option<&ProcessId>) -> io::Result<bool> {
        match self {
            Self::Pod { uid, .. } => residents::has_any(proc, uid),
            Self::Host { .. } => Ok(known.is_some_and(|process| !process.has_ended())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::{fs::PermissionsExt as _, fs::symlink, net::UnixListener},
    };

    use super::*;
    use crate::machine::{listener::Listener, socket::Offence};

    /// The result for a socket in directories with these modes, the outer one first.
    fn connect(outer: u32, inner: u32) -> Result<Listener, Closed> {
        let dir = tempfile::tempdir().unwrap();
        let vms = dir.path().join("vms");
        fs::create_dir(&vms).unwrap();
        let path = vms.join("vm.qmp");
        let _qemu = UnixListener::bind(&path).unwrap();
        fs::set_permissions(&vms, Permissions::from_mode(inner)).unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(outer)).unwrap();
        let home = Home::Host { socket: path };
        let stream = home.open(Path::new("/none"))?.connect()?;
        Listener::of(&stream, &home)
    }

    #[test]
    fn on_the_host_the_listener_is_held_by_what_it_is() {
        let listener = connect(0o700, 0o755).unwrap();
        let me = ProcessId::of(std::process::id().cast_signed()).unwrap();
        assert_eq!(Some(listener.id()), me.as_ref());
        connect(0o1777, 0o700).expect("nobody renames what is another's in a sticky directory");
    }

    #[test]
    fn where_others_could_have_put_a_socket_nobody_is_talked_to() {
        for (outer, inner) in [(0o755, 0o777), (0o755, 0o1777), (0o755, 0o775), (0o777, 0o755)] {
            let error = connect(outer, inner).unwrap_err();
            assert!(
                matches!(error, Closed::Untrusted(Offence::Exposed)),
                "{outer:o} {inner:o}: {error}"
            );
        }
    }

    /// It may lead to the socket of another VM.
    #[test]
    fn a_link_in_the_place_of_the_socket_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let _qemu = UnixListener::bind(dir.path().join("other.qmp")).unwrap();
        let link = dir.path().join("vm.qmp");
        symlink("other.qmp", &link).unwrap();
        let home = Home::Host { socket: link };
        let error = home.open(Path::new("/none")).unwrap().connect().unwrap_err();
        assert!(matches!(error, Closed::Untrusted(Offence::Link)), "{error}");
        let home = Home::Host {
            socket: dir.path().join("none/vm.qmp"),
        };
        assert!(matches!(home.open(Path::new("/none")), Err(Closed::Absent)));
    }

    #[test]
    fn a_qemu_of_the_host_has_what_it_was_given_until_its_process_has_ended() {
        let home = Home::Host {
            socket: "/run/vm.qmp".into(),
        };
        let me = ProcessId::of(std::process::id().cast_signed()).unwrap().unwrap();
        let ended = ProcessId {
            start: me.start - 1,
            ..me.clone()
        };
        // No `/proc` is looked through.
        let has = |known: &ProcessId| home.has_processes(Path::new("/none"), Some(known)).unwrap();
        assert!(has(&me) && !has(&ended));
    }
}
