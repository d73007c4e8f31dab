//! The nodes of groups, on a node of files.

use std::os::unix::fs::FileTypeExt as _;

use hybridnic_net::testing::{pf_address, vf_address};

use super::*;
use crate::{host, journal::tests::held_vf};

fn loan(vf: u8) -> Loan {
    let device = DeviceId::new(pf_address(0), vf.into()).unwrap();
    Loan::new(device, "fast", L2Settings::default(), held_vf(0, vf))
}

/// What the number of a node is.
fn number(path: &PathBuf) -> u64 {
    let node = fs::symlink_metadata(path).unwrap();
    assert!(node.file_type().is_char_device(), "{}", path.display());
    node.rdev()
}

#[tokio::test]
async fn a_container_gets_the_group_of_its_own_vf_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let host = host::tests::host(dir.path(), 1, 2);
    let loan = loan(0);
    let group = loan.vf.iommu_group;
    make_node(&host, &loan, group).expect_err("vfio has no such group");
    let node = |group, minor| {
        let path = host.dev.vfio_group(group);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        mknodat(
            CWD,
            path,
            FileType::CharacterDevice,
            Mode::RUSR,
            makedev(243, minor),
        )
        .unwrap();
    };
    node(group, 7);
    node(group + 1, 8);
    let path = make_node(&host, &loan, group).unwrap();
    assert_eq!(number(&path), makedev(243, 7));
    // The group was made again.
    fs::remove_file(host.dev.vfio_group(group)).unwrap();
    node(group, 9);
    make_node(&host, &loan, group).unwrap();
    assert_eq!(number(&path), makedev(243, 9));
    // After a boot that number is another VF's group, and what the container was given is not this VF's any more.
    make_node(&host, &loan, group + 1).unwrap();
    assert_eq!(number(&path), makedev(NULL.0, NULL.1));
}

#[tokio::test]
async fn a_vf_that_has_gone_is_no_loan_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let host = host::tests::host(dir.path(), 1, 2);
    let loan = loan(0);
    host.journal.write_loan(&loan).await.unwrap();
    host.load_loans().unwrap();
    assert!(host.pools.is_lent(vf_address(0, 0)));
    // As long as it is there, and its PF is not, nothing is concluded.
    take_back(&host, &loan).await.unwrap_err();
    assert!(host.pools.is_lent(vf_address(0, 0)));
    assert_eq!(host.journal.loans().unwrap().len(), 1);
    let function = format!("sys/bus/pci/devices/{}", vf_address(0, 0));
    fs::remove_file(dir.path().join(function)).unwrap();
    take_back(&host, &loan).await.unwrap();
    assert!(!host.pools.is_lent(vf_address(0, 0)));
    assert_eq!(host.journal.loans().unwrap(), []);
}
