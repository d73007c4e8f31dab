//! The directory that both nodes mount, and what is in it.

use hybridnic_e2e::{lab::COMMON, world::World};

use crate::common::SOON;

/// Mounts what all nodes share, empty.
pub async fn volume(world: &World) {
    for node in [1, 2] {
        let mount = format!(
            "mkdir -p /volume && (grep -q ' /volume ' /proc/mounts || \
             mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none {COMMON} /volume)"
        );
        world.node(node).run(&mount, SOON).await.unwrap();
    }
    sh(world, 1, "rm -rf /volume/saves && mkdir /volume/saves").await;
}

pub async fn sh(world: &World, node: usize, script: &str) -> String {
    world.node(node).run(script, SOON).await.unwrap()
}

/// All names in the directory.
pub async fn names(world: &World) -> Vec<String> {
    let listed = sh(world, 1, "ls -A /volume/saves").await;
    listed.lines().map(ToOwned::to_owned).collect()
}

/// A file is whole, is alone with its manifest, and was written as this QEMU can.
pub async fn is_whole(world: &World, file: &str) {
    assert_eq!(
        names(world).await,
        [file.to_owned(), format!("{file}.hybridnic.json")]
    );
    let text = sh(world, 1, &format!("cat /volume/saves/{file}.hybridnic.json")).await;
    let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    let length = sh(world, 1, &format!("stat -c %s /volume/saves/{file}")).await;
    assert_eq!(manifest["length"].to_string(), length.trim());
    // QEMU has mapped-ram since 9.0, and then it is used.
    let qemu = manifest["qemu"].as_str().unwrap();
    let major: u32 = qemu.split('.').next().unwrap().parse().unwrap();
    assert_eq!(
        manifest["mappedRam"],
        serde_json::json!(major >= 9),
        "by QEMU {qemu}"
    );
    eprintln!(
        "the file has {} octets, mapped-ram: {}, of {}",
        manifest["length"], manifest["mappedRam"], manifest["machineType"]
    );
}

/// The directory of a volume that is as good as full.
pub const FULL: &str = "/full";

/// Mounts it on node 1. What is beneath is in memory, and so small that no VM fits.
pub async fn full_volume(world: &World) {
    let mount = format!(
        "mkdir -p {FULL} {FULL}.d && mount -t tmpfs -o size=8m full {FULL}.d && cd {FULL}.d && mkdir lower upper work && \
         mount -t overlay -o lowerdir={FULL}.d/lower,upperdir={FULL}.d/upper,workdir={FULL}.d/work full {FULL}"
    );
    sh(world, 1, &mount).await;
}

/// Unmounts it; gives all names that were in it.
pub async fn unmount_full(world: &World) -> String {
    sh(world, 1, &format!("ls -A {FULL} && umount {FULL} {FULL}.d")).await
}
