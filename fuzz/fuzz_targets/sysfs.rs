//! A sysfs with anything in its files and names. One bad file hides nothing else: the other PF is found, no matter what is in the first
//! one's files. Each line of the input is what one of them holds. The files are in memory, and still slow.
#![no_main]

use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;

use hybridnic_net::sysfs::Sysfs;
use hybridnic_net::{interrupts, testing};
use libfuzzer_sys::fuzz_target;

const FUNCTION: [&str; 5] = ["sriov_totalvfs", "class", "vendor", "device", "numa_node"];
const INTERFACE: [&str; 7] = [
    "ifindex",
    "address",
    "mtu",
    "carrier",
    "operstate",
    "type",
    "phys_port_name",
];
const VF: [&str; 2] = ["driver_override", "class"];
const IRQ: [&str; 2] = ["actions", "per_cpu_count"];

struct Tree {
    dir: tempfile::TempDir,
    sysfs: Sysfs,
    files: Vec<PathBuf>,
    before: Vec<Vec<u8>>,
}

impl Tree {
    fn make() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let root = dir.path();
        let sysfs = testing::make_sysfs(root, 2, 1).expect("a sysfs");
        let function = |address| root.join(format!("bus/pci/devices/{address}"));
        let (pf, vf) = (
            function(testing::pf_address(0)),
            function(testing::vf_address(0, 0)),
        );
        let net = pf.join("net/ens0");
        fs::create_dir_all(net.join("statistics")).expect("a directory");
        let irq = root.join("kernel/irq/45");
        fs::create_dir_all(&irq).expect("a directory");
        fs::create_dir_all(vf.join("msi_irqs/45")).expect("a directory");
        let bond = root.join("class/net/bond0");
        fs::create_dir_all(bond.join("bonding")).expect("a directory");
        std::os::unix::fs::symlink(&bond, net.join("master")).expect("a link");
        let files: Vec<_> = FUNCTION
            .map(|name| pf.join(name))
            .into_iter()
            .chain(INTERFACE.map(|name| net.join(name)))
            .chain(VF.map(|name| vf.join(name)))
            .chain(IRQ.map(|name| irq.join(name)))
            .chain([net.join("statistics/tx_dropped"), bond.join("bonding/mode")])
            .collect();
        let before = files
            .iter()
            .map(|file| fs::read(file).unwrap_or_default())
            .collect();
        Self {
            dir,
            sysfs,
            files,
            before,
        }
    }
}

thread_local! {
    static TREE: RefCell<Tree> = RefCell::new(Tree::make());
}

fuzz_target!(|bytes: &[u8]| {
    TREE.with_borrow_mut(|tree| {
        let lines: Vec<&[u8]> = bytes
            .split(|byte| *byte == b'\n')
            .take(tree.files.len())
            .collect();
        for (file, line) in tree.files.iter().zip(&lines) {
            // An empty line leaves the file as it is.
            if !line.is_empty() {
                fs::write(file, line).expect("a file is written");
            }
        }
        let found = tree.sysfs.discover().expect("it can be listed");
        let beside = found.pfs.iter().find(|pf| pf.address == testing::pf_address(1));
        assert_eq!(beside.map(|pf| pf.vfs.len()), Some(1), "{found:?}");
        let _ = tree
            .sysfs
            .vf(testing::vf_address(0, 0))
            .expect("its links are whole");
        let _ = tree.sysfs.driver_state(testing::vf_address(0, 0));
        let _ = tree.sysfs.interface_index(testing::pf_address(0));
        let _ = tree.sysfs.tx_dropped("ens0");
        let _ = interrupts::read_below(tree.dir.path(), testing::vf_address(0, 0));
        for ((file, before), line) in tree.files.iter().zip(&tree.before).zip(&lines) {
            if !line.is_empty() {
                fs::write(file, before).expect("a file is written");
            }
        }
    });
});
