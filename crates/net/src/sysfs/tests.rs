use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::*;
use crate::dev::DevNodes;
use crate::testing::{make_sysfs, pf_address, vf_address};

struct Tree {
    dir: tempfile::TempDir,
    sysfs: Sysfs,
}

impl Tree {
    fn new(pfs: u8, vfs: u8) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = make_sysfs(dir.path(), pfs, vfs).unwrap();
        Self { dir, sysfs }
    }

    fn device(&self, address: PciAddress, attribute: &str) -> PathBuf {
        self.sysfs.pci_device(address).join(attribute)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.dir.path().join(path)).unwrap()
    }

    /// No device nodes: nothing is in use.
    fn dev(&self) -> DevNodes {
        DevNodes::new(self.dir.path().join("dev"))
    }
}

#[test]
fn finds_pfs_with_their_vfs() {
    let tree = Tree::new(2, 7);
    let inventory = tree.sysfs.discover().unwrap();
    assert_eq!(inventory.problems, []);
    assert_eq!(
        inventory.pfs.iter().map(|pf| pf.address).collect::<Vec<_>>(),
        [pf_address(0), pf_address(1)]
    );
    let pf = &inventory.pfs[1];
    assert_eq!(pf.name.as_deref(), Some("ens1"));
    assert_eq!(pf.id.unwrap().to_string(), "8086:10c9");
    assert_eq!(pf.driver.as_deref(), Some("igb"));
    assert_eq!(pf.mac, Some("00:1b:21:01:00:00".parse().unwrap()));
    assert_eq!(
        (pf.ifindex, pf.mtu, pf.carrier),
        (Some(3), Some(1500), Some(true))
    );
    assert_eq!((pf.total_vfs, pf.num_vfs, pf.vfs.len()), (127, 7, 7));
    assert_eq!((pf.numa_node, &pf.master), (None, &None));
    assert_eq!(
        pf.vfs[2],
        Vf {
            index: 2,
            address: vf_address(1, 2),
            driver: Some("vfio-pci".into()),
            iommu_group: Some(130),
            vfio_cdev: Some("vfio130".into()),
            group_peers: Vec::new(),
            netdev: None,
            hung: None,
        }
    );
    let netdev = pf.vfs[3].netdev.as_ref().unwrap();
    assert_eq!(
        (
            netdev.name.as_str(),
            netdev.ifindex,
            netdev.up,
            &netdev.uppers[..]
        ),
        ("ens1v3", Some(1131), true, &[][..])
    );
}

/// Adds an interface with a `phys_port_name` to a PF's directory.
fn add_port(tree: &Tree, pf: u8, name: &str, phys_port_name: &str) {
    let dir = tree.device(pf_address(pf), "net").join(name);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("ifindex"), "50\n").unwrap();
    fs::write(dir.join("phys_port_name"), format!("{phys_port_name}\n")).unwrap();
}

#[test]
fn a_representor_is_not_taken_for_the_pf() {
    let tree = Tree::new(2, 3);
    // Before the PF's own name in any order.
    for (name, port) in [
        ("a0", "pf0vf0"),
        ("a1", "pf0vf1"),
        ("z0", "c1pf0sf88"),
        ("z1", "pf0"),
    ] {
        add_port(&tree, 0, name, port);
    }
    for (pf, port) in [(0, "p0"), (1, "p0s1")] {
        let own = tree
            .device(pf_address(pf), "net")
            .join(format!("ens{pf}/phys_port_name"));
        fs::write(own, format!("{port}\n")).unwrap();
    }
    let pfs = tree.sysfs.discover().unwrap().pfs;
    assert_eq!((pfs[0].name.as_deref(), pfs[0].ifindex), (Some("ens0"), Some(2)));
    assert_eq!(pfs[0].representors, ["a0", "a1", "z0", "z1"]);
    assert_eq!(pfs[1].name.as_deref(), Some("ens1"));
    assert!(pfs[1].representors.is_empty());
    // One whose uplink is in another namespace.
    fs::remove_dir_all(tree.device(pf_address(0), "net/ens0")).unwrap();
    assert_eq!(tree.sysfs.discover().unwrap().pfs[0].name, None);
}

#[test]
fn infiniband_is_told_by_its_interface_or_else_by_its_class() {
    let tree = Tree::new(4, 1);
    let layers = || -> Vec<_> {
        let pfs = tree.sysfs.discover().unwrap().pfs;
        pfs.iter().map(|pf| pf.link_layer).collect()
    };
    assert_eq!(layers(), [LinkLayer::Ethernet; 4]);
    let long = "80:00:02:08:fe:80:00:00:00:00:00:00:24:8a:07:03:00:55:00:01\n";
    fs::write(tree.device(pf_address(0), "net/ens0/type"), "32\n").unwrap();
    fs::write(tree.device(pf_address(0), "net/ens0/address"), long).unwrap();
    fs::write(tree.device(pf_address(1), "class"), "0x020700\n").unwrap();
    fs::remove_dir_all(tree.device(pf_address(1), "net")).unwrap();
    fs::write(tree.device(pf_address(2), "class"), "0x020700\n").unwrap();
    fs::write(tree.device(pf_address(3), "net/ens3/type"), "24\n").unwrap();
    assert_eq!(
        layers(),
        [
            LinkLayer::InfiniBand,
            LinkLayer::InfiniBand,
            LinkLayer::Ethernet,
            LinkLayer::Other(24)
        ]
    );
    assert_eq!(tree.sysfs.discover().unwrap().problems, []);
}

#[test]
fn tells_what_is_on_top_of_a_vfs_interface() {
    let tree = Tree::new(1, 2);
    let dir = tree.device(vf_address(0, 1), "net/ens0v1");
    symlink("../br0", dir.join("upper_br0")).unwrap();
    fs::write(dir.join("flags"), "0x1002\n").unwrap();
    let vf = tree.sysfs.vf(vf_address(0, 1)).unwrap().unwrap();
    let netdev = vf.netdev.unwrap();
    assert_eq!((netdev.up, &netdev.uppers[..]), (false, &["br0".to_owned()][..]));
}

#[test]
fn bridges_apart_a_groups_functions_are_peers() {
    let tree = Tree::new(1, 3);
    let group = tree.sysfs.root().join("kernel/iommu_groups/1/devices");
    let bridge = tree.sysfs.root().join("bus/pci/devices").read_dir().unwrap();
    let bridge = bridge
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .find(|name| name.starts_with("0000:00:00"))
        .unwrap();
    for function in [bridge, vf_address(0, 1).to_string()] {
        symlink(tree.dir.path(), group.join(function)).unwrap();
    }
    let pf = &tree.sysfs.discover().unwrap().pfs[0];
    assert_eq!(pf.vfs[0].group_peers, [vf_address(0, 1)]);
    assert!(pf.vfs[2].group_peers.is_empty());
}

#[test]
fn a_whole_node_is_found() {
    let tree = Tree::new(4, 127);
    let inventory = tree.sysfs.discover().unwrap();
    assert_eq!(inventory.problems, []);
    assert_eq!(inventory.pfs.len(), 4);
    for (number, pf) in (0..).zip(&inventory.pfs) {
        let found: Vec<_> = pf.vfs.iter().map(|vf| (vf.index, vf.address)).collect();
        let made: Vec<_> = (0..127)
            .map(|vf| (u16::from(vf), vf_address(number, vf)))
            .collect();
        assert_eq!(found, made);
    }
}

#[test]
fn one_bad_attribute_hides_nothing_else() {
    let tree = Tree::new(2, 3);
    fs::write(tree.device(pf_address(0), "net/ens0/mtu"), "many\n").unwrap();
    fs::remove_file(tree.device(pf_address(0), "net/ens0/address")).unwrap();
    fs::create_dir(tree.device(pf_address(0), "net/ens0/address")).unwrap();
    let inventory = tree.sysfs.discover().unwrap();
    let pf = &inventory.pfs[0];
    assert_eq!((pf.mtu, pf.mac, pf.vfs.len()), (None, None, 3));
    assert_eq!(inventory.pfs.len(), 2);
    let paths: Vec<_> = inventory
        .problems
        .iter()
        .map(|p| p.path.file_name().unwrap().to_owned())
        .collect();
    assert_eq!(paths, ["address", "mtu"]);
    assert!(
        inventory.problems[1].reason.contains("many"),
        "{:?}",
        inventory.problems[1]
    );
}

#[test]
fn a_vf_that_is_half_there_is_left_out_or_bare() {
    let tree = Tree::new(1, 3);
    // The PF's link is there before the VF's directory, and stays after it.
    fs::remove_file(
        tree.sysfs
            .root()
            .join("bus/pci/devices")
            .join(vf_address(0, 1).to_string()),
    )
    .unwrap();
    fs::remove_file(tree.device(pf_address(0), "virtfn2")).unwrap();
    let inventory = tree.sysfs.discover().unwrap();
    assert_eq!(inventory.problems, []);
    let vfs = &inventory.pfs[0].vfs;
    assert_eq!(vfs.len(), 2);
    assert_eq!((vfs[1].address, &vfs[1].driver), (vf_address(0, 1), &None));
}

#[test]
fn tells_what_an_interface_has_dropped() {
    let tree = Tree::new(1, 0);
    let statistics = tree.sysfs.net_device("ens0").join("statistics");
    fs::create_dir(&statistics).unwrap();
    fs::write(statistics.join("tx_dropped"), "17\n").unwrap();
    assert_eq!(tree.sysfs.tx_dropped("ens0").unwrap(), 17);
    assert_eq!(
        tree.sysfs.tx_dropped("ens9").unwrap_err().kind(),
        io::ErrorKind::NotFound
    );
    fs::write(statistics.join("tx_dropped"), "?\n").unwrap();
    assert!(tree.sysfs.tx_dropped("ens0").is_err());
}

#[test]
fn tells_what_a_pf_is_enslaved_to() {
    let tree = Tree::new(3, 0);
    for (pf, master) in ["bond0", "br0", "ovs-system"].into_iter().enumerate() {
        let dir = tree.dir.path().join("devices/virtual/net").join(master);
        fs::create_dir_all(&dir).unwrap();
        symlink(&dir, tree.sysfs.net_device(master)).unwrap();
        symlink(&dir, tree.sysfs.net_device(&format!("ens{pf}")).join("master")).unwrap();
    }
    fs::create_dir(tree.sysfs.net_device("bond0").join("bonding")).unwrap();
    fs::write(tree.sysfs.net_device("bond0").join("bonding/mode"), "802.3ad 4\n").unwrap();
    fs::create_dir(tree.sysfs.net_device("br0").join("bridge")).unwrap();
    let masters: Vec<_> = tree
        .sysfs
        .discover()
        .unwrap()
        .pfs
        .into_iter()
        .map(|pf| pf.master.unwrap())
        .collect();
    assert_eq!(
        masters
            .iter()
            .map(|master| (master.name.as_str(), &master.kind))
            .collect::<Vec<_>>(),
        [
            ("bond0", &MasterKind::Bond("802.3ad".into())),
            ("br0", &MasterKind::Bridge),
            ("ovs-system", &MasterKind::Other)
        ]
    );
}

#[test]
fn looks_up_one_vf() {
    let tree = Tree::new(2, 3);
    assert_eq!(tree.sysfs.physfn(vf_address(1, 2)).unwrap(), Some(pf_address(1)));
    assert_eq!(tree.sysfs.physfn(pf_address(1)).unwrap(), None);
    assert_eq!(
        tree.sysfs.vf(vf_address(1, 2)).unwrap().unwrap(),
        tree.sysfs.discover().unwrap().pfs[1].vfs[2]
    );
    assert_eq!(tree.sysfs.vf(vf_address(1, 3)).unwrap(), None);
}

#[test]
fn a_machine_without_pci_has_no_pfs() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Sysfs::new(dir.path()).discover().unwrap(), Inventory::default());
}

#[test]
fn the_machine_this_runs_on_can_be_read() {
    Sysfs::default().discover().unwrap();
}

#[test]
fn makes_vfs_only_where_there_are_none() {
    let tree = Tree::new(1, 0);
    tree.sysfs.create_vfs(pf_address(0), 7).unwrap();
    assert_eq!(
        fs::read_to_string(tree.device(pf_address(0), "sriov_numvfs")).unwrap(),
        "7"
    );
    tree.sysfs.create_vfs(pf_address(0), 7).unwrap();
    let error = tree.sysfs.create_vfs(pf_address(0), 8).unwrap_err();
    assert!(
        matches!(error, CreateVfsError::Exist { existing: 7, .. }),
        "{error}"
    );
    let error = tree.sysfs.create_vfs(pf_address(0), 128).unwrap_err();
    assert!(
        matches!(error, CreateVfsError::TooMany { total: 127, .. }),
        "{error}"
    );
    let error = tree.sysfs.create_vfs(pf_address(1), 1).unwrap_err();
    assert!(matches!(error, CreateVfsError::NotPf { .. }), "{error}");
}

#[test]
fn reads_the_state_of_a_driver() {
    let tree = Tree::new(1, 1);
    let vf = vf_address(0, 0);
    let state = tree.sysfs.driver_state(vf).unwrap();
    assert_eq!(
        state,
        DriverState {
            driver: Some("vfio-pci".into()),
            driver_override: None
        }
    );
    fs::write(tree.device(vf, "driver_override"), "vfio-pci\n").unwrap();
    assert_eq!(
        tree.sysfs.driver_state(vf).unwrap().driver_override.as_deref(),
        Some("vfio-pci")
    );
    assert!(matches!(
        tree.sysfs.driver_state(vf_address(0, 1)),
        Err(DriverError::NoDevice { .. })
    ));
}

/// What the kernel then does with it is seen on real functions, in `tests/sriov.rs`.
#[test]
fn writes_override_unbind_and_bind() {
    let tree = Tree::new(1, 2);
    let vf = vf_address(0, 1);
    tree.sysfs.bind_driver(&tree.dev(), vf, "vfio-pci").unwrap();
    assert_eq!(
        fs::read_to_string(tree.device(vf, "driver_override")).unwrap(),
        "vfio-pci"
    );
    assert_eq!(tree.read("bus/pci/drivers/igbvf/unbind"), vf.to_string());
    assert_eq!(tree.read("bus/pci/drivers/vfio-pci/bind"), vf.to_string());
}

#[test]
fn a_driver_that_has_the_function_is_left_alone() {
    let tree = Tree::new(1, 1);
    let vf = vf_address(0, 0);
    tree.sysfs.bind_driver(&tree.dev(), vf, "vfio-pci").unwrap();
    assert_eq!(tree.read("bus/pci/drivers/vfio-pci/unbind"), "");
    let unset = DriverState {
        driver: Some("vfio-pci".into()),
        driver_override: None,
    };
    tree.sysfs.restore_driver(&tree.dev(), vf, &unset).unwrap();
    assert_eq!(
        fs::read_to_string(tree.device(vf, "driver_override")).unwrap(),
        "\n"
    );
}

#[test]
fn a_driver_that_is_not_loaded_changes_nothing() {
    let tree = Tree::new(1, 2);
    let error = tree
        .sysfs
        .bind_driver(&tree.dev(), vf_address(0, 1), "mlx5_vfio_pci")
        .unwrap_err();
    assert!(matches!(error, DriverError::NoDriver { .. }), "{error}");
    assert_eq!(tree.read("bus/pci/drivers/igbvf/unbind"), "");
}

#[test]
fn a_refusal_names_the_step() {
    let tree = Tree::new(1, 2);
    fs::remove_file(tree.dir.path().join("bus/pci/drivers/vfio-pci/bind")).unwrap();
    let error = tree
        .sysfs
        .bind_driver(&tree.dev(), vf_address(0, 1), "vfio-pci")
        .unwrap_err();
    assert_eq!(error.to_string(), "cannot bind 0000:01:10.1 to vfio-pci");
    let source = std::error::Error::source(&error)
        .unwrap()
        .downcast_ref::<io::Error>()
        .unwrap();
    assert_eq!(source.kind(), io::ErrorKind::NotFound);
}
