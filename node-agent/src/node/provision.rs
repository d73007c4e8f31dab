//! Creates VFs if a network asks for some and a PF has none. Never changes the number of a PF that has some.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hybridnic_api::v1alpha1::{Drain, NodePool};
use hybridnic_net::{
    PciAddress,
    sysfs::{Inventory, Pf},
};
use tracing::{info, warn};

use super::select;
use crate::{error::chain, host::Host};

/// The PFs that should get VFs, and how many. A PF that is drained is left to its administrator. Pure.
pub fn wanted(inventory: &Inventory, pools: &[NodePool], drain: &Drain) -> Vec<(PciAddress, u16)> {
    let want = |pf: &Pf| {
        pools
            .iter()
            .filter_map(|p| select::wanted_vfs(&p.uplinks, pf))
            .max()
    };
    inventory
        .pfs
        .iter()
        .filter(|pf| pf.num_vfs == 0 && select::pf_problem(pf).is_none())
        .filter(|pf| !drain.covers_pf(&pf.address.to_string()))
        .filter_map(|pf| Some((pf.address, want(pf)?)))
        .collect()
}

/// How long a PF that has refused is left alone.
const PAUSE: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct Work {
    /// Its VFs are being made, or it is left alone after a refusal.
    busy: bool,
    error: Option<String>,
}

/// Creates VFs beside everything else: some hardware takes a minute, and a driver that hangs never finishes.
#[derive(Clone, Debug, Default)]
pub struct Provisioner(Arc<Mutex<BTreeMap<PciAddress, Work>>>);

impl Provisioner {
    /// Begins to create what is wanted and not begun yet. The answer has each PF's refusal; changes of that come as
    /// changes of the hardware.
    pub fn begin(&self, host: &Arc<Host>, inventory: &Inventory) -> BTreeMap<PciAddress, String> {
        let wanted = wanted(inventory, &host.pools.pools(), &host.pools.drain());
        let mut work = self.work();
        let mut errors = BTreeMap::new();
        work.retain(|pf, work| work.busy || wanted.iter().any(|(wanted, _)| wanted == pf));
        for (pf, count) in wanted {
            let work = work.entry(pf).or_default();
            errors.extend(work.error.clone().map(|error| (pf, error)));
            if !work.busy {
                work.busy = true;
                tokio::spawn(self.clone().create(Arc::clone(host), pf, count));
            }
        }
        errors
    }

    async fn create(self, host: Arc<Host>, pf: PciAddress, count: u16) {
        match host.devices.create_vfs(pf, count).await {
            Ok(()) => {
                info!(%pf, count, "VFs created");
                self.work().remove(&pf);
            }
            Err(error) => {
                let error = chain(&error);
                warn!(%pf, count, error, "cannot create VFs");
                self.work().entry(pf).or_default().error = Some(error);
                host.hardware_changed();
                tokio::time::sleep(PAUSE).await;
                self.work().entry(pf).or_default().busy = false;
            }
        }
        host.hardware_changed();
    }

    fn work(&self) -> MutexGuard<'_, BTreeMap<PciAddress, Work>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use hybridnic_api::v1alpha1::Uplink;
    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;
    use crate::host::tests::made;

    #[tokio::test]
    async fn a_pf_that_hangs_holds_up_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let mut host = made(dir.path(), 2, 0);
        host.devices.deadlines.create = Duration::from_millis(50);
        let host = Arc::new(host);
        host.pools.set_pools(&[NodePool {
            network: "n".into(),
            uplinks: vec![Uplink {
                pf_names: vec!["*".into()],
                num_vfs: Some(4),
                ..Uplink::default()
            }],
            tags: hybridnic_api::v1alpha1::PoolTags::None,
            standby_slots: 0,
            l2: None,
        }]);
        let inventory = host.inventory().await.unwrap();
        let file = |pf: usize| {
            let function = inventory.pfs[pf].address.to_string();
            dir.path()
                .join("sys/bus/pci/devices")
                .join(function)
                .join("sriov_numvfs")
        };
        std::fs::remove_file(file(0)).unwrap();
        mkfifo(&file(0), Mode::S_IRWXU).unwrap();
        let provisioner = Provisioner::default();
        let mut hardware = host.hardware.subscribe();
        assert_eq!(
            provisioner.begin(&host, &inventory),
            BTreeMap::new(),
            "nobody waits"
        );
        while host.devices.lanes.hung().is_empty() || std::fs::read_to_string(file(1)).unwrap() != "4" {
            hardware.changed().await.unwrap();
        }
        let inventory = host.inventory().await.unwrap();
        let hung = inventory.pfs[0].hung.as_deref();
        assert!(
            hung.is_some_and(|hung| hung.contains("making its VFs")),
            "{hung:?}"
        );
        // Its reader goes with the test.
        let _reader = std::fs::File::options()
            .read(true)
            .write(true)
            .open(file(0))
            .unwrap();
    }
}
