//! `hybridnic-agent inventory`: what the agent would publish, without a cluster.

use std::{collections::BTreeMap, fmt::Write as _};

use hybridnic_api::v1alpha1::PfStatus;
use hybridnic_net::sysfs::Sysfs;

use crate::node::{
    drain::Draining,
    table::{self, Sources},
};

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// A table for people.
    #[default]
    Table,
    /// The `status.pfs` of the `HybridNode`.
    Json,
}

/// Discovers the node under a sysfs and renders it.
pub fn render(sysfs: &Sysfs, output: Output) -> anyhow::Result<String> {
    let inventory = sysfs.discover()?;
    let table = table::build(&Sources {
        inventory: &inventory,
        pools: &[],
        holders: &BTreeMap::new(),
        foreign: &BTreeMap::new(),
        draining: &Draining::default(),
        provision_errors: &BTreeMap::new(),
    });
    Ok(match output {
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&table.pfs)?),
        Output::Table if table.pfs.is_empty() => {
            "No PF was found: no network card here has sriov_totalvfs above zero.\n".to_owned()
        }
        Output::Table => rows(&table.pfs),
    })
}

/// PFs and their VFs, for people.
pub fn rows(pfs: &[PfStatus]) -> String {
    let header = ["PF", "VF", "PCI", "ID", "DRIVER", "IOMMU", "NUMA", "LINK", "NOTE"].map(str::to_owned);
    let mut lines = vec![header];
    for pf in pfs {
        let numa = pf.numa_node.map_or_else(|| "-".into(), |n| n.to_string());
        let made = format!("{} of {}", pf.vfs.len(), pf.total_vfs);
        lines.push([
            or_dash(&pf.name),
            made,
            pf.pci_address.clone(),
            format!("{}:{}", pf.vendor, pf.device),
            or_dash(&pf.driver),
            "-".into(),
            numa,
            if pf.link_up { "up" } else { "down" }.into(),
            pf.message.clone(),
        ]);
        for vf in &pf.vfs {
            lines.push([
                String::new(),
                vf.index.to_string(),
                vf.pci_address.clone(),
                String::new(),
                or_dash(&vf.driver),
                vf.iommu_group.map_or_else(|| "none".into(), |g| g.to_string()),
                String::new(),
                String::new(),
                vf.message.clone(),
            ]);
        }
    }
    columns(&lines)
}

/// Lines whose cells are below each other.
pub fn columns<const N: usize>(lines: &[[String; N]]) -> String {
    let width = |column: usize| lines.iter().map(|l| l[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            // Writing to a string cannot fail.
            let _ = write!(row, "{cell:width$}  ");
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

fn or_dash(text: &str) -> String {
    if text.is_empty() {
        "-".into()
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use hybridnic_net::testing;

    use super::*;

    #[test]
    fn table_and_json_show_every_vf() {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = testing::make_sysfs(dir.path(), 2, 3).unwrap();
        let table = render(&sysfs, Output::Table).unwrap();
        assert_eq!(table.lines().count(), 1 + 2 * (1 + 3), "{table}");
        let json: Vec<PfStatus> = serde_json::from_str(&render(&sysfs, Output::Json).unwrap()).unwrap();
        assert_eq!(json[1].vfs.len(), 3);
    }

    #[test]
    fn a_node_without_sriov_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = testing::make_sysfs(dir.path(), 0, 0).unwrap();
        assert!(render(&sysfs, Output::Table).unwrap().contains("No PF was found"));
    }
}
