use std::os::{fd::OwnedFd, unix::net::UnixStream};

use hybridnic_net::testing::vf_address;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::*;

fn vf() -> PciAddress {
    vf_address(0, 0)
}

fn agent(dir: &Path) -> Handouts {
    Handouts::new(DevNodes::new(dir), Path::new("/proc"), watch::Sender::new(0))
}

/// A plain file stands for the node: making one needs no capability.
fn give(handouts: &Handouts) -> OwnedFd {
    let make = |node: &Path| File::create_new(node).map(drop);
    handouts.open_made(vf(), make).unwrap()
}

fn nodes(dir: &Path) -> usize {
    fs::read_dir(dir.join(DIR)).unwrap().count()
}

/// QEMU gets it as here, and may pass it on in the same way.
#[tokio::test]
async fn it_is_out_until_the_last_has_closed_it_wherever_that_is() {
    let dir = tempfile::tempdir().unwrap();
    let handouts = agent(dir.path());
    assert!(!handouts.is_out(vf()));
    let given = give(&handouts);
    let (one, two) = UnixStream::pair().unwrap();
    let rights = [std::os::fd::AsRawFd::as_raw_fd(&given)];
    let control = [ControlMessage::ScmRights(&rights)];
    let bytes = [io::IoSlice::new(b"x")];
    sendmsg::<()>(
        std::os::fd::AsRawFd::as_raw_fd(&one),
        &bytes,
        &control,
        MsgFlags::empty(),
        None,
    )
    .unwrap();
    drop(given);
    assert!(
        handouts.is_out(vf()),
        "it lies in a socket, and no process has it"
    );
    assert!(!handouts.is_out(vf_address(0, 1)));
    let mut bytes = [0; 1];
    let mut parts = [io::IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!(i32);
    let from = std::os::fd::AsRawFd::as_raw_fd(&two);
    let message = recvmsg::<()>(from, &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
    let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs().unwrap().next() else {
        panic!("no descriptor");
    };
    // SAFETY: the kernel has just made it for us, and nobody else has it.
    let taken = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fds[0]) };
    let copy = taken.try_clone().unwrap();
    drop(taken);
    assert!(handouts.is_out(vf()));
    // A waiting task is notified, and does not have to ask.
    let mut told = handouts.hardware.subscribe();
    let run = handouts.run();
    tokio::pin!(run);
    tokio::select! {
        ended = &mut run => panic!("{ended:?}"),
        () = tokio::task::yield_now() => {}
    }
    drop(copy);
    tokio::select! {
        ended = run => panic!("{ended:?}"),
        changed = told.changed() => changed.unwrap(),
    }
    assert!(!handouts.is_out(vf()));
    assert_eq!(nodes(dir.path()), 0);
}

#[test]
fn of_several_each_counts() {
    let dir = tempfile::tempdir().unwrap();
    let handouts = agent(dir.path());
    let (one, two) = (give(&handouts), give(&handouts));
    drop(one);
    assert!(handouts.is_out(vf()));
    drop(two);
    assert!(!handouts.is_out(vf()));
}

#[test]
fn the_next_agent_knows_of_them_and_is_told_of_their_end() {
    let dir = tempfile::tempdir().unwrap();
    let before = agent(dir.path());
    let (one, two) = (give(&before), give(&before));
    drop(before);
    let next = agent(dir.path());
    for _ in 0..2 {
        next.take_over(vf()).unwrap();
        assert!(next.is_out(vf()) && !next.is_unsure(vf()));
        assert_eq!(nodes(dir.path()), 2);
    }
    drop(one);
    assert!(next.is_out(vf()));
    drop(two);
    assert!(!next.is_out(vf()) && !next.is_unsure(vf()));
    assert_eq!(nodes(dir.path()), 0);
}

#[test]
fn what_was_closed_while_no_agent_was_there_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let before = agent(dir.path());
    let (one, two) = (give(&before), give(&before));
    drop((before, one));
    let next = agent(dir.path());
    next.take_over(vf()).unwrap();
    assert!(next.is_out(vf()) && !next.is_unsure(vf()), "the other is not");
    assert_eq!(nodes(dir.path()), 1);
    drop(two);
    let last = agent(dir.path());
    last.take_over(vf()).unwrap();
    assert!(!last.is_out(vf()) && !last.is_unsure(vf()));
    assert_eq!(nodes(dir.path()), 0);
}

/// A copy is not another one: its end does not end the lock.
#[test]
fn a_copy_of_one_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let given = give(&agent(dir.path()));
    drop(given.try_clone().unwrap());
    let next = agent(dir.path());
    next.take_over(vf()).unwrap();
    assert!(next.is_out(vf()));
}

#[test]
fn where_locks_cannot_be_read_nothing_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let given = give(&agent(dir.path()));
    let mut next = agent(dir.path());
    next.locks = dir.path().join("none");
    next.take_over(vf()).unwrap();
    assert!(!next.is_out(vf()) && next.is_unsure(vf()));
    drop(given);
    assert!(next.is_unsure(vf()));
    // Its driver has let go of it.
    next.forget(vf());
    assert!(!next.is_unsure(vf()));
    assert_eq!(nodes(dir.path()), 0);
}

/// As root in a pod may: then only the VF's driver knows.
#[test]
fn of_one_that_was_opened_once_more_a_close_proves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let handouts = agent(dir.path());
    let given = give(&handouts);
    let again = File::open(format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&given)
    ));
    drop(given);
    assert!(!handouts.is_out(vf()) && handouts.is_unsure(vf()));
    drop(again.unwrap());
    assert!(!handouts.is_out(vf()) && handouts.is_unsure(vf()));
    handouts.forget(vf());
    assert!(!handouts.is_unsure(vf()));
}

/// Other processes of the node may have used up the kernel's watches.
#[test]
fn what_nothing_tells_of_is_unsure_until_the_driver_has_let_go_also_for_the_next_agent() {
    let dir = tempfile::tempdir().unwrap();
    let mut blind = agent(dir.path());
    blind.inotify = None;
    blind
        .open_made(vf(), |node| File::create_new(node).map(drop))
        .expect_err("it cannot be watched");
    assert!(!blind.is_unsure(vf()));
    blind.note_unwatched(vf());
    assert!(blind.is_unsure(vf()) && !blind.is_out(vf()));
    for watches in [true, false] {
        let mut next = agent(dir.path());
        if !watches {
            next.inotify = None;
        }
        next.take_over(vf()).unwrap();
        assert!(next.is_unsure(vf()) && !next.is_out(vf()));
    }
    blind.forget(vf());
    assert!(!blind.is_unsure(vf()));
    assert_eq!(nodes(dir.path()), 0);
}

/// An agent that cannot watch what an earlier one has handed out does not assume that it is closed.
#[test]
fn a_node_that_cannot_be_watched_is_unsure() {
    let dir = tempfile::tempdir().unwrap();
    let given = give(&agent(dir.path()));
    let mut next = agent(dir.path());
    next.inotify = None;
    next.take_over(vf()).unwrap();
    assert!(next.is_unsure(vf()));
    drop(given);
    assert!(next.is_unsure(vf()));
}
