//! What every task of the agent shares of its node.

use std::{error::Error, os::fd::OwnedFd, sync::Arc, time::Duration};

use hybridnic_api::conditions::reasons;
use hybridnic_net::{
    PciAddress,
    dev::{DevNodes, VfioUse},
    multicast::Multicast,
    netlink::{self, Link, Netlink, NetlinkError},
    sysfs::{CreateVfsError, DiscoverError, DriverError, DriverState, Inventory, Sysfs},
    tap::{self, TapError},
};
use hybridnic_runtime::traces::Traces;
use tokio::{
    sync::{Mutex, watch},
    time::Instant,
};
use tracing::warn;

use crate::{
    broker::Broker,
    error::{StepError, chain},
    journal::Journal,
    lanes::{Lane, LaneError, Lanes},
    metrics::Metrics,
    nic::macs::Macs,
    node::{own, pool::Pools},
    troubles::Troubles,
    vm::{handover::Macvtaps, tls::Keys},
};

/// How long devices may take before they count as hung.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// For a file that takes the device's lock to be read.
    pub read: Duration,
    /// For a driver to let go of a VF and another to take it.
    pub bind: Duration,
    /// For a driver to make its VFs.
    pub create: Duration,
    /// For a look at all PFs and VFs.
    pub discover: Duration,
    /// For a macvtap to be opened.
    pub open: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            read: Duration::from_secs(5),
            bind: Duration::from_mins(1),
            create: Duration::from_mins(2),
            discover: Duration::from_secs(30),
            open: netlink::DEFAULT_DEADLINE,
        }
    }
}

/// Settings that the tasks need.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the node.
    pub node_name: String,
    /// How long a guest may take to let go of a device.
    pub unplug_deadline: Duration,
    /// How long a guest may take to use a VF.
    pub plug_deadline: Duration,
    /// The most bytes per second of a migration; 0 is no limit.
    pub migration_bandwidth: u64,
    /// The VM's pause that QEMU aims at, in milliseconds.
    pub migration_downtime_ms: u64,
}

/// The node as the tasks reach it.
#[derive(Debug)]
pub struct Host {
    /// PFs, VFs and drivers. What waits for a driver is called by the host's own functions.
    pub sysfs: Sysfs,
    /// Device nodes.
    pub dev: DevNodes,
    /// Links and VF settings.
    pub netlink: Netlink,
    /// Standbys, at a hand-over.
    pub macvtaps: Arc<dyn Macvtaps>,
    /// What macvtaps receive.
    pub multicast: Multicast,
    /// What we hold, on disk.
    pub journal: Journal,
    /// Certificates of migrations that QEMU has not got yet, in memory.
    pub keys: Keys,
    /// Makes what the agent has given up the powers for.
    pub broker: Arc<dyn Broker>,
    /// Who holds which VF.
    pub pools: Pools,
    /// What is measured.
    pub metrics: Metrics,
    /// What does not work.
    pub troubles: Arc<Troubles>,
    /// Which MACs are NICs'.
    pub macs: Macs,
    /// Held while a macvtap is put on a VLAN device, or a VLAN device is removed because nothing is on it.
    pub vlan_devices: Mutex<()>,
    /// Who wants to know where a migration's time goes.
    pub traces: Traces,
    /// Settings.
    pub options: Settings,
    /// Counts device and link events: what was seen of the hardware may be old.
    pub hardware: watch::Sender<u64>,
    /// What waits for drivers.
    pub lanes: Lanes,
    /// How long they may take.
    pub deadlines: Deadlines,
    /// The last look at all PFs and VFs, and when it began.
    pub discovered: Discovered,
}

/// The last look at all PFs and VFs, shared by all that have waited for it.
#[derive(Debug, Default)]
pub struct Discovered(Mutex<Option<(Instant, Inventory)>>);

/// A device did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// It hangs, or is busy.
    #[error(transparent)]
    Lane(#[from] LaneError),
    /// Its driver cannot be seen or changed.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// Its VFs cannot be made.
    #[error(transparent)]
    CreateVfs(#[from] CreateVfsError),
    /// Nothing can be seen of any of them.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// What the node itself does with them cannot be told.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Its descriptor cannot be had.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// It cannot be told whether vfio uses it.
    #[error("cannot tell whether vfio uses it")]
    VfioUse(#[from] std::io::Error),
}

impl DeviceError {
    /// Whether there is no such device. Any other error leaves it unknown.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Driver(DriverError::NoDevice { .. }))
    }

    /// As a step's error: with this reason, unless the device hangs.
    pub fn into_step(self, reason: &'static str) -> StepError {
        let reason = match self {
            Self::Lane(_) => reasons::DEVICE_HUNG,
            _ => reason,
        };
        StepError::from_error(reason, &self)
    }
}

impl Host {
    /// Discovers the node's PFs and VFs: as they are after this call began. Reads some files for each VF.
    pub async fn inventory(&self) -> Result<Inventory, DeviceError> {
        let asked = Instant::now();
        let mut last = self.discovered.0.lock().await;
        // An event wakes all NICs at once: one look serves all of them.
        if let Some((began, inventory)) = last.as_ref()
            && *began >= asked
        {
            return Ok(inventory.clone());
        }
        let began = Instant::now();
        let sysfs = self.sysfs.clone();
        let discover = move || sysfs.discover();
        let mut inventory = self
            .lanes
            .run(
                Lane::Discovery,
                "reading sysfs",
                self.deadlines.discover,
                discover,
            )
            .await??;
        own::fill_in(&self.netlink, &mut inventory).await?;
        let mut hung = self.lanes.hung();
        for pf in &mut inventory.pfs {
            pf.hung = hung.remove(&pf.address);
            for vf in &mut pf.vfs {
                vf.hung = hung.remove(&vf.address);
            }
        }
        *last = Some((began, inventory.clone()));
        Ok(inventory)
    }

    /// The driver of a device and its override. For the driver alone ask [`Sysfs::presence`], which waits for nothing.
    pub async fn driver_state(&self, device: PciAddress) -> Result<DriverState, DeviceError> {
        let sysfs = self.sysfs.clone();
        let read = move || sysfs.driver_state(device);
        let read = self.lanes.run(
            Lane::Device(device),
            "reading driver_override",
            self.deadlines.read,
            read,
        );
        Ok(read.await??)
    }

    /// Gives a device to a driver, or back.
    pub async fn set_driver(&self, device: PciAddress, wanted: DriverState) -> Result<(), DeviceError> {
        let (sysfs, dev) = (self.sysfs.clone(), self.dev.clone());
        let bind = move || sysfs.restore_driver(&dev, device, &wanted);
        let bind = self.lanes.run(
            Lane::Device(device),
            "changing its driver",
            self.deadlines.bind,
            bind,
        );
        Ok(bind.await??)
    }

    /// Makes the VFs of a PF that has none.
    pub async fn create_vfs(&self, pf: PciAddress, count: u16) -> Result<(), DeviceError> {
        let sysfs = self.sysfs.clone();
        let create = move || sysfs.create_vfs(pf, count);
        let create = self
            .lanes
            .run(Lane::Device(pf), "making its VFs", self.deadlines.create, create);
        Ok(create.await??)
    }

    /// Whether something holds a device's IOMMU group through vfio. The kernel may be just opening it, for seconds.
    pub async fn vfio_use(&self, device: PciAddress, group: u32) -> Result<VfioUse, DeviceError> {
        let dev = self.dev.clone();
        let look = move || dev.vfio_use(group);
        let look = self.lanes.run(
            Lane::Device(device),
            "opening its vfio group",
            self.deadlines.read,
            look,
        );
        Ok(look.await??)
    }

    /// Opens a macvtap for QEMU. The kernel waits there for the lock of all links, which a driver may hold (`tap_open` in
    /// drivers/net/tap.c).
    pub async fn open_tap(&self, macvtap: &str, index: u32) -> Result<OwnedFd, DeviceError> {
        let (sysfs, dev, name) = (self.sysfs.clone(), self.dev.clone(), macvtap.to_owned());
        let open = move || tap::open_tap(&sysfs, &dev, &name, index);
        let open = self
            .lanes
            .run(Lane::Macvtaps, "opening one", self.deadlines.open, open);
        Ok(open.await??)
    }

    /// Takes over from the journal which VFs were given back with their parking MAC before this agent started.
    pub fn load_parked(&self) {
        match self.journal.parked() {
            Ok(parked) => {
                for vf in parked {
                    self.pools.note_parked(vf, true);
                }
            }
            // Then the audit reports them, and somebody looks.
            Err(error) => warn!(
                error = chain(&error),
                "which VFs are parked for good is not known"
            ),
        }
    }

    /// Notes whether a VF is given back with its parking MAC, because its driver takes no other.
    pub async fn note_parked(&self, vf: PciAddress, parked: bool) {
        if self.pools.note_parked(vf, parked)
            && let Err(error) = self.journal.set_parked(&self.pools.parked()).await
        {
            warn!(%vf, error = chain(&error), "the journal does not have which VFs are parked for good");
        }
    }

    /// The interface of a PF, found by the PF's PCI address each time, for its name may change. `None` where it has none here.
    pub async fn pf_link(&self, pf: PciAddress) -> Result<Option<Link>, StepError> {
        let unknown = |e: &dyn Error| {
            StepError::new(
                reasons::VF_UNKNOWN,
                format!("the interface of the PF {pf} cannot be read: {}", chain(e)),
            )
        };
        match self.sysfs.interface_index(pf).map_err(|e| unknown(&e))? {
            None => Ok(None),
            Some(index) => self.netlink.link_by_index(index).await.map_err(|e| unknown(&e)),
        }
    }

    /// Notes that the hardware has changed.
    pub fn hardware_changed(&self) {
        self.hardware.send_modify(|n| *n += 1);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use hybridnic_net::{sysfs::Presence, testing};
    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;
    use crate::{
        metrics::metrics,
        vm::{process::ProcessId, socket},
    };
    use futures::future::BoxFuture;

    /// None that could do anything.
    #[derive(Debug)]
    struct NoBroker;

    impl Broker for NoBroker {
        fn socket<'a>(&'a self, _: &'a ProcessId, _: bool) -> BoxFuture<'a, std::io::Result<OwnedFd>> {
            Box::pin(std::future::ready(Err(std::io::ErrorKind::Unsupported.into())))
        }

        fn memory(&self) -> BoxFuture<'_, std::io::Result<OwnedFd>> {
            Box::pin(std::future::ready(Err(std::io::ErrorKind::Unsupported.into())))
        }
    }

    /// A node `n1` made of files below `dir`, with PFs that have VFs. Links are those of the machine that runs the test.
    pub(crate) fn host(dir: &Path, pfs: u8, vfs: u8) -> Arc<Host> {
        Arc::new(made(dir, pfs, vfs))
    }

    /// The same, to be changed yet.
    pub(crate) fn made(dir: &Path, pfs: u8, vfs: u8) -> Host {
        let (_, metrics) = metrics();
        std::fs::create_dir(dir.join("sys")).unwrap();
        let troubles = Arc::new(Troubles::new(metrics.clone()));
        let hardware = watch::Sender::new(0);
        let netlink = Netlink::open().unwrap();
        Host {
            sysfs: testing::make_sysfs(&dir.join("sys"), pfs, vfs).unwrap(),
            dev: DevNodes::new(dir.join("dev")),
            macvtaps: Arc::new(netlink.clone()),
            netlink,
            multicast: Multicast::open().unwrap(),
            journal: Journal::open(dir.join("journal")).unwrap(),
            keys: Keys::new(dir.join("tls")),
            broker: Arc::new(NoBroker),
            pools: Pools::default(),
            metrics,
            macs: Macs::default(),
            vlan_devices: Mutex::default(),
            lanes: Lanes::new(Arc::clone(&troubles), hardware.clone()),
            troubles,
            traces: Traces::default(),
            options: Settings {
                node_name: "n1".into(),
                unplug_deadline: Duration::from_secs(1),
                plug_deadline: Duration::from_secs(1),
                migration_bandwidth: 0,
                migration_downtime_ms: 100,
            },
            hardware,
            deadlines: Deadlines::default(),
            discovered: Discovered::default(),
        }
    }

    /// Drivers that never return, more of them than tokio has blocking threads: as a FIFO without a reader does, a write and
    /// a read of it wait for ever.
    #[tokio::test]
    async fn devices_that_hang_cost_themselves_only() {
        let dir = tempfile::tempdir().unwrap();
        let mut host = made(dir.path(), 2, 9);
        host.deadlines.bind = Duration::from_millis(100);
        let unbind = dir.path().join("sys/bus/pci/drivers/vfio-pci/unbind");
        std::fs::remove_file(&unbind).unwrap();
        mkfifo(&unbind, Mode::S_IRWXU).unwrap();
        let hung: Vec<_> = (0..5)
            .flat_map(|n| [testing::vf_address(0, 2 * n), testing::vf_address(1, 2 * n)])
            .collect();
        let release = move || {
            let mut reader = std::fs::File::open(&unbind).unwrap();
            std::io::copy(&mut reader, &mut std::io::sink()).unwrap()
        };
        let set = |vf| host.set_driver(vf, DriverState::default());
        for error in futures::future::join_all(hung.iter().copied().map(set)).await {
            let error = error.unwrap_err().into_step(reasons::VF_BIND_FAILED);
            assert_eq!(error.reason, reasons::DEVICE_HUNG, "{error}");
        }
        // All else goes on, and says so.
        let inventory = host.inventory().await.unwrap();
        let hanging: Vec<_> = inventory
            .pfs
            .iter()
            .flat_map(|pf| &pf.vfs)
            .filter(|vf| vf.hung.is_some())
            .collect();
        assert_eq!(hanging.len(), hung.len());
        assert!(matches!(
            host.driver_state(hung[0]).await,
            Err(DeviceError::Lane(_))
        ));
        let driver = Some("vfio-pci".to_owned());
        assert_eq!(
            host.sysfs.presence(hung[0]).unwrap(),
            Presence::Present { driver }
        );
        host.driver_state(testing::vf_address(0, 1)).await.unwrap();
        let volume = socket::tests::volume(dir.path(), socket::tests::UID);
        let _qemu = std::os::unix::net::UnixListener::bind(volume.join("qmp.sock")).unwrap();
        socket::open(dir.path(), socket::tests::UID)
            .unwrap()
            .connect()
            .unwrap();
        assert_eq!(host.troubles.condition().status, Some(true));

        // The driver returns: each of them can be used again.
        let mut hardware = host.hardware.subscribe();
        tokio::task::spawn_blocking(release);
        while !host.lanes.hung().is_empty() {
            hardware.changed().await.unwrap();
        }
        assert_eq!(host.troubles.condition().status, Some(false));
        host.driver_state(hung[0]).await.unwrap();
    }

    /// As where a driver keeps the lock of all links. What is read of the macvtap before is a FIFO here.
    #[tokio::test]
    async fn a_macvtap_that_does_not_open_holds_up_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let mut host = made(dir.path(), 1, 1);
        host.deadlines.open = Duration::from_millis(100);
        let tap = dir.path().join("sys/class/net/hna/tap7");
        std::fs::create_dir_all(&tap).unwrap();
        mkfifo(&tap.join("dev"), Mode::S_IRWXU).unwrap();
        let opened = host.open_tap("hna", 7);
        let (opened, inventory) = tokio::join!(opened, host.inventory());
        let error = opened.unwrap_err().into_step(reasons::STANDBY_FAILED);
        assert_eq!(error.reason, reasons::DEVICE_HUNG, "{error}");
        assert_eq!(inventory.unwrap().pfs[0].hung, None, "it is no PF that hangs");
        tokio::task::spawn_blocking(move || std::fs::write(tap.join("dev"), "no number"))
            .await
            .unwrap()
            .unwrap();
        let error = loop {
            match host.open_tap("hna", 8).await.unwrap_err() {
                DeviceError::Lane(LaneError::Hung { .. }) => tokio::task::yield_now().await,
                error => break error.into_step(reasons::STANDBY_FAILED),
            }
        };
        assert_eq!(error.reason, reasons::STANDBY_FAILED, "{error}");
    }

    #[tokio::test]
    async fn what_is_parked_for_good_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (before, [kept, given_back]) = (
            host(dir.path(), 1, 2),
            [0, 1].map(|vf| testing::vf_address(0, vf)),
        );
        before.note_parked(kept, true).await;
        before.note_parked(given_back, true).await;
        before.note_parked(given_back, false).await;
        std::fs::remove_dir_all(dir.path().join("sys")).unwrap();
        let after = host(dir.path(), 1, 2);
        after.load_parked();
        assert_eq!(after.pools.parked(), [kept].into());
    }
}
