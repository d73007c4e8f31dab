//! Listeners on a VM's socket that do not belong to its pod.

use std::os::unix::net::UnixListener;

use super::*;
use crate::{
    host,
    machine::socket::{
        Offence,
        tests::{UID, volume},
    },
    sockets::Sockets,
};

/// The test itself listens, and is in no group of the pod's.
#[tokio::test]
async fn who_is_not_of_the_pod_is_told_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let host = host::tests::host(dir.path(), 1, 1);
    let socket = volume(dir.path(), UID).join("qmp.sock");
    let qemu = UnixListener::bind(&socket).unwrap();
    let vm = Arc::new(Vm::new(Runtime::Qemu, "ns", "pod", UID));
    let followed =
        Sockets::new(dir.path(), Arc::clone(&host.troubles)).follow(vm.home.clone(), "ns", "pod", UID);
    let task = tokio::spawn(run(Arc::clone(&vm), Arc::clone(&host), followed));
    vm.tried().await;
    let session = vm.session();
    assert!(
        matches!(session, Session::Untrusted(Offence::Foreign)),
        "{session:?}"
    );
    assert_eq!(vm.peer(), None, "whose limit of locked memory would be lifted");
    // It is connected to, and that is all.
    let (mut stream, _) = qemu.accept().unwrap();
    let mut said = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut said).unwrap();
    assert!(said.is_empty(), "{said:?}");

    // What it is comes to be seen again.
    let mut pulse = vm.pulse();
    drop(qemu);
    std::fs::remove_file(&socket).unwrap();
    nix::unistd::mkfifo(&socket, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let seen = async {
        while !matches!(vm.session(), Session::Untrusted(Offence::NotASocket)) {
            pulse.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(20), seen).await.unwrap();
    task.abort();
}
