//! Files of this machine, in a directory that is a volume of no pod.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};

use super::*;

fn me() -> Who {
    Who::of(std::process::id().cast_signed()).unwrap()
}

fn place(dir: &Path) -> Place {
    Place {
        dir: File::open(dir).unwrap().into(),
        path: "/saves/vm".to_owned(),
        name: "vm".to_owned(),
        who: me(),
    }
}

fn manifest(length: u64) -> Manifest {
    let machine = SavedMachine {
        namespace: "ns".to_owned(),
        vm: "vm".to_owned(),
        machine_type: "pc-q35-10.0".to_owned(),
        memory: 1,
        qemu: "10.0.2".to_owned(),
        nics: Vec::new(),
    };
    Manifest::new("uid", machine, true, length, String::new())
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_has_the_name_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path());
    place.try_out("uid").unwrap();
    assert!(names(dir.path()).is_empty(), "nothing is left of a look");
    let made = place.make("uid").unwrap();
    File::from(made.file).write_all(b"a whole VM").unwrap();
    assert_eq!(names(dir.path()), [".vm.uid.part"]);
    let named = || place.seal("uid", made.inode, manifest);
    assert_eq!(named().unwrap(), 10);
    assert_eq!(names(dir.path()), ["vm", "vm.hybridnic.json"]);
    assert_eq!(named().unwrap(), 10, "an agent that died before it could say so");
    let kept = fs::metadata(dir.path().join("vm")).unwrap();
    assert_eq!(kept.mode() & 0o777, 0o600);
    let (_, length) = place.load().unwrap();
    assert!(length == 10 && place.manifest().unwrap() == manifest(10));
    // What is called off later, or another save, leaves it alone.
    place.discard("uid", None).unwrap();
    place.discard("other", Some(made.inode)).unwrap();
    place.discard("uid", Some(made.inode + 1)).unwrap();
    assert_eq!(names(dir.path()), ["vm", "vm.hybridnic.json"]);
    assert!(matches!(place.try_out("other"), Err(FileError::Exists(path)) if path == "/saves/vm"));
    // Its VM runs on although it was to be ended.
    place.discard("uid", Some(made.inode)).unwrap();
    assert!(names(dir.path()).is_empty());
}

#[test]
fn two_vms_never_share_a_name() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path());
    let made = place.make("uid").unwrap();
    // Of another, which was named since.
    let other = Manifest {
        save: "other".to_owned(),
        ..manifest(1)
    };
    let beside = dir.path().join("vm.hybridnic.json");
    fs::write(&beside, serde_json::to_vec(&other).unwrap()).unwrap();
    let refused = place.seal("uid", made.inode, manifest);
    assert!(
        matches!(refused, Err(FileError::Exists(path)) if path == "/saves/vm.hybridnic.json"),
        "nothing is written over it"
    );
    assert_eq!(place.manifest().unwrap(), other);
    assert!(place.stat("vm").unwrap().is_none());
    place.discard("uid", Some(made.inode)).unwrap();
    assert_eq!(names(dir.path()), ["vm.hybridnic.json"]);
    assert!(matches!(place.make("third"), Err(FileError::Exists(_))));
    fs::remove_file(&beside).unwrap();
    // An agent died between the two names of the file, and of the manifest before it.
    let made = place.make("uid").unwrap();
    fs::write(&beside, serde_json::to_vec(&manifest(0)).unwrap()).unwrap();
    place.seal("uid", made.inode, manifest).unwrap();
    assert_eq!(names(dir.path()), ["vm", "vm.hybridnic.json"]);
    fs::hard_link(dir.path().join("vm"), dir.path().join(".vm.uid.part")).unwrap();
    place.seal("uid", made.inode, manifest).unwrap();
    assert!(place.stat(".vm.uid.part").unwrap().is_none());
}

#[test]
fn nothing_is_left_of_what_is_called_off() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path());
    let _made = place.make("uid").unwrap();
    // An agent died between the two names.
    let text = serde_json::to_vec(&manifest(1)).unwrap();
    fs::write(dir.path().join("vm.hybridnic.json"), text).unwrap();
    fs::write(dir.path().join(".vm.uid.json"), b"{").unwrap();
    place.discard("other", Some(7)).unwrap();
    assert_eq!(names(dir.path()).len(), 3, "another's");
    place.discard("uid", None).unwrap();
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_file_that_something_has_replaced_gets_no_name() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path());
    let made = place.make("uid").unwrap();
    let kept = made.file;
    fs::remove_file(dir.path().join(".vm.uid.part")).unwrap();
    fs::write(dir.path().join(".vm.uid.part"), b"another").unwrap();
    assert!(matches!(
        place.seal("uid", made.inode, manifest),
        Err(FileError::Replaced)
    ));
    drop(kept);
    // And none takes the name of another.
    let made = place.make("uid").unwrap();
    fs::write(dir.path().join("vm"), b"of somebody").unwrap();
    assert!(matches!(
        place.seal("uid", made.inode, manifest),
        Err(FileError::Exists(_))
    ));
    assert_eq!(fs::read(dir.path().join("vm")).unwrap(), b"of somebody");
}

#[test]
fn only_plain_files_are_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let place = place(dir.path());
    let file = dir.path().join("vm");
    let refused = || matches!(place.load(), Err(FileError::NoFile(path)) if path == "/saves/vm");
    assert!(refused());
    symlink("/etc/passwd", &file).unwrap();
    assert!(refused());
    fs::remove_file(&file).unwrap();
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(refused(), "it would wait for a writer");
    fs::write(dir.path().join("vm.hybridnic.json"), b"{").unwrap();
    assert!(matches!(place.manifest(), Err(FileError::Manifest { .. })));
}

#[test]
fn what_qemu_itself_may_not_is_not_done_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut place = place(dir.path());
    place.who = Who {
        uid: me().uid + 1,
        gid: me().gid + 1,
        groups: Vec::new(),
        overrides: false,
    };
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    assert!(matches!(place.try_out("uid"), Err(FileError::NotAllowed { .. })));
    fs::write(dir.path().join("vm"), b"").unwrap();
    fs::set_permissions(dir.path().join("vm"), PermissionsExt::from_mode(0o640)).unwrap();
    assert!(matches!(place.load(), Err(FileError::NotAllowed { .. })));
    place.who.groups = vec![me().gid];
    place.load().unwrap();
}

#[test]
fn a_process_is_judged_by_its_last_ids() {
    let status =
        "Name:\tqemu\nUid:\t0\t0\t0\t107\nGid:\t0\t0\t0\t108\nGroups:\t36 107 \nCapEff:\t0000000000000000\n";
    let who = Who::parse(status).unwrap();
    assert_eq!((who.uid, who.gid, who.groups), (107, 108, vec![36, 107]));
    assert_eq!(Who::parse("Uid:\tx\n"), None);
    // Root needs the capability as well.
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o500)).unwrap();
    let stat = fstat(File::open(dir.path()).unwrap()).unwrap();
    for (effective, may) in [("00000000a80425fb", true), ("00000000a80425f9", false)] {
        let status = format!("Uid:\t0\nGid:\t0\nGroups:\t\nCapEff:\t{effective}\n");
        assert_eq!(Who::parse(&status).unwrap().may(&stat, 3), may);
    }
}

#[test]
fn a_path_stays_in_the_pod_and_leads_to_a_volume() {
    let pod = tempfile::tempdir().unwrap();
    let root: OwnedFd = File::open(pod.path()).unwrap().into();
    let open = |path: &str| Place::open(root.as_fd(), path, me());
    assert!(matches!(open("/saves/vm"), Err(FileError::NoDirectory { .. })));
    fs::create_dir(pod.path().join("saves")).unwrap();
    assert!(matches!(open("/saves/vm"), Err(FileError::NoVolume(dir)) if dir == "/saves"));
    // Up from the root is the root, and `/proc` leads nowhere.
    symlink("../../../../dev/shm", pod.path().join("out")).unwrap();
    assert!(matches!(open("/out/vm"), Err(FileError::NoDirectory { .. })));
    let host: OwnedFd = File::open("/").unwrap().into();
    let through = format!("/proc/self/fd/{}/vm", root.as_raw_fd());
    assert!(matches!(
        Place::open(host.as_fd(), &through, me()),
        Err(FileError::NoDirectory { .. })
    ));
    // Another file system, and one that goes with the container.
    let shared = Place::open(host.as_fd(), "/dev/shm/vm", me()).unwrap();
    assert!(matches!(shared.lasts(), Err(FileError::InMemory(dir)) if dir == "/dev/shm"));
    let proc = Place::open(host.as_fd(), "/proc/vm", me()).unwrap();
    assert!(matches!(proc.lasts(), Err(FileError::InMemory(_))));
}
