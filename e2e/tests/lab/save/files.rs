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

pub async fn is_whole(world: &World, file: &str) {
    assert_eq!(
        names(world).await,
        [file.to_owned(), format!("{file}.hybridnic.json")]
    );
    let text = sh(world, 1, &format!("cat /volume/saves/{file}.hybridnic.json")).await;
    let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    let length = sh(world, 1, &format!("stat -c %s /volume/saves/{file}")).await;
    assert_eq!(manifest["length"].to_string(), length.trim());
    eprintln!(
        "the file has {} octets, mapped-ram: {}, of {}",
        manifest["length"], manifest["mappedRam"], manifest["machineType"]
    );
}
