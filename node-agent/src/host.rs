//! What every task of the agent shares of its node.

use std::{error::Error, os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Duration};

use hybridnic_api::{conditions::reasons, v1alpha1::Drain};
use hybridnic_net::{
    PciAddress,
    dev::DevNodes,
    multicast::Multicast,
    netlink::{Link, Netlink},
    sysfs::{Inventory, Sysfs},
    tap,
};
use hybridnic_process::traces::Traces;
use tokio::{
    sync::{Mutex, watch},
    time::Instant,
};
use tracing::{info, warn};

use crate::{
    broker::Broker,
    cni::Sandboxes,
    devices::{DeviceError, Devices},
    error::{HasReason, chain},
    handouts::Handouts,
    journal::{Journal, JournalError, Lent},
    lanes::Lane,
    machine::{handover::Macvtaps, qemu::tls::Keys},
    metrics::Metrics,
    nic::macs::Macs,
    node::{ledger::Ledger, own},
    offer::Offers,
    troubles::Troubles,
};

/// The interface of a PF cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the interface of the PF {pf} cannot be read")]
pub struct PfUnread {
    pf: PciAddress,
    source: Box<dyn Error + Send + Sync>,
}

impl HasReason for PfUnread {
    fn reason(&self) -> &'static str {
        reasons::VF_UNKNOWN
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
    /// How long the PF of a NIC's standby must have been fit for the NIC's VF before the VF returns to it from another PF.
    pub home_after: Duration,
    /// The most bytes per second of a migration; 0 is no limit.
    pub migration_bandwidth: u64,
    /// The VM's pause that QEMU aims at, in milliseconds.
    pub migration_downtime_ms: u64,
}

/// The node as the tasks reach it.
#[derive(Debug)]
pub struct Host {
    /// PFs, VFs and drivers. Calls that wait for a driver go through `devices`.
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
    /// Certificates of migrations that QEMU does not have yet, in memory.
    pub keys: Keys,
    /// Sandboxes of pods that have our interfaces.
    pub sandboxes: Sandboxes,
    /// Makes what the agent has given up the powers for.
    pub broker: Arc<dyn Broker>,
    /// Which NIC holds which VF.
    pub pools: Ledger,
    /// What the kubelet offers of it to pods.
    pub offers: Arc<Offers>,
    /// What is measured.
    pub metrics: Metrics,
    /// What does not work.
    pub troubles: Arc<Troubles>,
    /// Which MACs are NICs'.
    pub macs: Macs,
    /// Held while a macvtap is put on a VLAN device, or a VLAN device is removed because nothing is on it.
    pub vlan_devices: Mutex<()>,
    /// Gets how long a migration's parts take.
    pub traces: Traces,
    /// Settings.
    pub options: Settings,
    /// Counts device and link events: an earlier look at the hardware may be out of date.
    pub hardware: watch::Sender<u64>,
    /// What drivers have a part in.
    pub devices: Devices,
    /// Which descriptors of VFs somebody has.
    pub handouts: Handouts,
    /// Processes: `/proc`.
    pub proc: PathBuf,
    /// The last look at all PFs and VFs, and when it began.
    pub discovered: Discovered,
}

/// The last look at all PFs and VFs, shared by all that have waited for it.
#[derive(Debug, Default)]
pub struct Discovered(Mutex<Option<(Instant, Inventory)>>);

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
            .devices
            .lanes
            .run(
                Lane::Discovery,
                "reading sysfs",
                self.devices.deadlines.discover,
                discover,
            )
            .await??;
        own::fill_in(&self.netlink, &mut inventory).await?;
        let mut hung = self.devices.lanes.hung();
        for pf in &mut inventory.pfs {
            pf.hung = hung.remove(&pf.address);
            for vf in &mut pf.vfs {
                vf.hung = hung.remove(&vf.address);
            }
        }
        *last = Some((began, inventory.clone()));
        Ok(inventory)
    }

    /// Takes over what an earlier agent has handed out of a VF.
    pub fn take_over_handouts(&self, vf: PciAddress) {
        if let Err(error) = self.handouts.take_over(vf) {
            warn!(%vf, %error, "it is not known which process has the VF's descriptor");
        }
    }

    /// Opens a macvtap for QEMU. The kernel waits there for the lock of all links, which a driver may hold (`tap_open` in
    /// drivers/net/tap.c).
    pub async fn open_tap(&self, macvtap: &str, index: u32) -> Result<OwnedFd, DeviceError> {
        let (sysfs, dev, name) = (self.sysfs.clone(), self.dev.clone(), macvtap.to_owned());
        let open = move || tap::open_tap(&sysfs, &dev, &name, index);
        let open = self
            .devices
            .lanes
            .run(Lane::Macvtaps, "opening one", self.devices.deadlines.open, open);
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
                "it is not known which VFs are parked for good"
            ),
        }
    }

    /// Takes over from the journal which VFs' groups pods have.
    pub fn load_loans(&self) -> Result<(), JournalError> {
        for (vf, lent) in self.journal.loans()? {
            if let Lent::Unreadable(why) = &lent {
                let why = format!(
                    "the journal's file {vf}.loan cannot be read, and nobody gets the VF {vf}: {why}"
                );
                self.troubles
                    .begin(&format!("the loan of {vf}"), reasons::JOURNAL_FAILED, why);
            }
            self.pools.lend(vf, lent);
        }
        Ok(())
    }

    /// Notes whether a VF is given back with its parking MAC, because its driver takes no other.
    pub async fn note_parked(&self, vf: PciAddress, parked: bool) {
        if self.pools.note_parked(vf, parked)
            && let Err(error) = self.journal.set_parked(&self.pools.parked()).await
        {
            warn!(%vf, error = chain(&error), "the journal does not have which VFs are parked for good");
        }
    }

    /// Takes over from the journal what is drained: before the API server, or the host's file, has said it, no NIC is to go back to such a VF.
    pub fn load_drain(&self) {
        match self.journal.drain() {
            Ok(drain) => {
                self.pools.set_drain(&drain);
            }
            // It is said again.
            Err(error) => warn!(error = chain(&error), "what is drained is not known yet"),
        }
    }

    /// Takes what is to be drained.
    pub async fn note_drain(&self, drain: &Drain) {
        if *drain == self.pools.drain() {
            return;
        }
        info!(all = drain.all, pfs = ?drain.pfs, networks = ?drain.networks, "drain");
        if let Err(error) = self.journal.set_drain(drain).await {
            warn!(error = chain(&error), "the journal does not have what is drained");
        }
        self.pools.set_drain(drain);
    }

    /// The interface of a PF, found by the PF's PCI address each time, because its name may change. `None` if it has none here.
    pub async fn pf_link(&self, pf: PciAddress) -> Result<Option<Link>, PfUnread> {
        let unread = |source| PfUnread { pf, source };
        match self.sysfs.interface_index(pf).map_err(|e| unread(e.into()))? {
            None => Ok(None),
            Some(index) => self
                .netlink
                .link_by_index(index)
                .await
                .map_err(|e| unread(e.into())),
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

    use hybridnic_api::v1alpha1::Runtime;
    use hybridnic_net::{
        sysfs::{DriverState, Presence},
        testing,
    };
    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;
    use crate::{
        broker,
        calls::Caller,
        devices::{Deadlines, Places},
        lanes::{LaneError, Lanes},
        links::Links,
        machine::{process::ProcessId, socket},
        metrics::metrics,
    };
    use futures::future::BoxFuture;

    /// None that could do anything.
    #[derive(Debug)]
    struct NoBroker;

    impl Broker for NoBroker {
        fn socket<'a>(&'a self, _: &'a ProcessId, _: bool) -> BoxFuture<'a, std::io::Result<OwnedFd>> {
            Box::pin(std::future::ready(Err(std::io::ErrorKind::Unsupported.into())))
        }

        fn netlink<'a>(&'a self, _: broker::Pod<'a>) -> BoxFuture<'a, std::io::Result<OwnedFd>> {
            Box::pin(std::future::ready(Err(std::io::ErrorKind::Unsupported.into())))
        }

        fn groups<'a>(&'a self, _: broker::Pod<'a>) -> BoxFuture<'a, std::io::Result<OwnedFd>> {
            Box::pin(std::future::ready(Err(std::io::ErrorKind::Unsupported.into())))
        }

        fn memory(&self) -> BoxFuture<'_, std::io::Result<OwnedFd>> {
            Box::pin(std::future::ready(Err(std::io::ErrorKind::Unsupported.into())))
        }

        fn root<'a>(&'a self, _: &'a ProcessId) -> BoxFuture<'a, std::io::Result<OwnedFd>> {
            Box::pin(std::future::ready(Err(std::io::ErrorKind::Unsupported.into())))
        }
    }

    /// A node `n1` made of files below `dir`, with PFs that have VFs. Links are those of the machine that runs the test.
    pub(crate) fn host(dir: &Path, pfs: u8, vfs: u8) -> Arc<Host> {
        Arc::new(made(dir, pfs, vfs))
    }

    /// The same, before it is shared.
    pub(crate) fn made(dir: &Path, pfs: u8, vfs: u8) -> Host {
        let (_, metrics) = metrics();
        std::fs::create_dir(dir.join("sys")).unwrap();
        let troubles = Arc::new(Troubles::new(metrics.clone()));
        let hardware = watch::Sender::new(0);
        let (netlink, sandboxes) = (Netlink::open().unwrap(), Sandboxes::default());
        let sysfs = testing::make_sysfs(&dir.join("sys"), pfs, vfs).unwrap();
        let dev = DevNodes::new(dir.join("dev"));
        Host {
            sysfs: sysfs.clone(),
            dev: dev.clone(),
            handouts: Handouts::new(dev.clone(), Path::new("/proc"), hardware.clone()),
            macvtaps: Arc::new(Links {
                host: netlink.clone(),
                sandboxes: sandboxes.clone(),
                sysfs: sysfs.clone(),
            }),
            netlink,
            multicast: Multicast::open().unwrap(),
            journal: Journal::open(dir.join("journal")).unwrap(),
            keys: Keys::new(dir.join("tls")),
            sandboxes,
            broker: Arc::new(NoBroker),
            pools: Ledger::default(),
            offers: Arc::default(),
            metrics,
            macs: Macs::default(),
            vlan_devices: Mutex::default(),
            devices: Devices {
                sysfs,
                dev,
                lanes: Lanes::new(Arc::clone(&troubles), hardware.clone()),
                caller: Caller::Here,
                deadlines: Deadlines::default(),
                places: Places::default(),
            },
            troubles,
            traces: Traces::default(),
            options: Settings {
                node_name: "n1".into(),
                unplug_deadline: Duration::from_secs(1),
                plug_deadline: Duration::from_secs(1),
                home_after: Duration::from_mins(1),
                migration_bandwidth: 0,
                migration_downtime_ms: 100,
            },
            hardware,
            proc: dir.join("proc"),
            discovered: Discovered::default(),
        }
    }

    /// Drivers that never return, more of them than tokio has blocking threads: as a FIFO without a reader does, a write and
    /// a read of it wait for ever.
    #[tokio::test]
    async fn devices_that_hang_cost_themselves_only() {
        let dir = tempfile::tempdir().unwrap();
        let mut host = made(dir.path(), 2, 9);
        host.devices.deadlines.bind = Duration::from_millis(100);
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
        let set = |vf| host.devices.set_driver(vf, DriverState::default());
        for error in futures::future::join_all(hung.iter().copied().map(set)).await {
            let error = error.unwrap_err();
            assert_eq!(
                error.reason_or(reasons::VF_BIND_FAILED),
                reasons::DEVICE_HUNG,
                "{error}"
            );
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
            host.devices.driver_state(hung[0]).await,
            Err(DeviceError::Lane(_))
        ));
        let driver = Some("vfio-pci".to_owned());
        assert_eq!(
            host.sysfs.presence(hung[0]).unwrap(),
            Presence::Present { driver }
        );
        host.devices
            .driver_state(testing::vf_address(0, 1))
            .await
            .unwrap();
        let volume = socket::tests::volume(dir.path(), socket::tests::UID);
        let _qemu = std::os::unix::net::UnixListener::bind(volume.join("qmp.sock")).unwrap();
        socket::open(dir.path(), Runtime::Qemu, socket::tests::UID)
            .unwrap()
            .connect()
            .unwrap();
        assert_eq!(host.troubles.condition().status, Some(true));

        // The driver returns: each of them can be used again.
        let mut hardware = host.hardware.subscribe();
        tokio::task::spawn_blocking(release);
        while !host.devices.lanes.hung().is_empty() {
            hardware.changed().await.unwrap();
        }
        assert_eq!(host.troubles.condition().status, Some(false));
        host.devices.driver_state(hung[0]).await.unwrap();
    }

    /// As where a driver keeps the lock of all links. What is read of the macvtap before is a FIFO here.
    #[tokio::test]
    async fn a_macvtap_that_does_not_open_holds_up_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let mut host = made(dir.path(), 1, 1);
        host.devices.deadlines.open = Duration::from_millis(100);
        let tap = dir.path().join("sys/class/net/hna/tap7");
        std::fs::create_dir_all(&tap).unwrap();
        mkfifo(&tap.join("dev"), Mode::S_IRWXU).unwrap();
        let opened = host.open_tap("hna", 7);
        let (opened, inventory) = tokio::join!(opened, host.inventory());
        let error = opened.unwrap_err();
        assert_eq!(
            error.reason_or(reasons::STANDBY_FAILED),
            reasons::DEVICE_HUNG,
            "{error}"
        );
        assert_eq!(inventory.unwrap().pfs[0].hung, None, "it is no PF that hangs");
        tokio::task::spawn_blocking(move || std::fs::write(tap.join("dev"), "no number"))
            .await
            .unwrap()
            .unwrap();
        let error = loop {
            match host.open_tap("hna", 8).await.unwrap_err() {
                DeviceError::Lane(LaneError::Hung { .. }) => tokio::task::yield_now().await,
                error => break error,
            }
        };
        assert_eq!(
            error.reason_or(reasons::STANDBY_FAILED),
            reasons::STANDBY_FAILED,
            "{error}"
        );
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
