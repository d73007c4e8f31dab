//! PFs and VFs where their drivers are involved: one call at a time for each, with a deadline.

use std::{io, sync::Arc, time::Duration};

use hybridnic_api::conditions::reasons;
use hybridnic_net::{
    PciAddress,
    dev::{DevNodes, VfioUse},
    netlink,
    netlink::NetlinkError,
    sysfs::{DiscoverError, DriverState, Sysfs},
    tap::TapError,
};
use serde::de::DeserializeOwned;
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    calls::{Call, CallError, Caller},
    error::HasReason,
    lanes::{Lane, LaneError, Lanes},
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

/// A device did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// It hangs, or is busy.
    #[error(transparent)]
    Lane(#[from] LaneError),
    /// It refused, or could not be asked.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Nothing can be seen of any of them.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// It is not known what the node itself does with them.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Its descriptor cannot be had.
    #[error(transparent)]
    Tap(#[from] TapError),
}

impl DeviceError {
    /// That the device hangs, or else this reason.
    pub fn reason_or(&self, reason: &'static str) -> &'static str {
        match self {
            Self::Lane(_) | Self::Call(CallError::Earlier(_)) => reasons::DEVICE_HUNG,
            _ => reason,
        }
    }
}

impl HasReason for DeviceError {
    fn reason(&self) -> &'static str {
        self.reason_or(reasons::VF_UNKNOWN)
    }
}

/// What a call of an earlier agent is, for people.
const EARLIER: &str = "what an earlier agent has asked of it";

/// How many calls are made at once: each is a process, and all NICs of a node may want one in the same moment.
const AT_ONCE: usize = 8;
/// A call that takes longer gives its place to another.
const PATIENCE: Duration = Duration::from_secs(1);

/// Places for calls.
#[derive(Clone, Debug)]
pub struct Places(Arc<Semaphore>);

impl Default for Places {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

/// The way to ask them.
#[derive(Clone, Debug)]
pub struct Devices {
    /// PFs, VFs and drivers.
    pub sysfs: Sysfs,
    /// Device nodes.
    pub dev: DevNodes,
    /// One call at a time.
    pub lanes: Lanes,
    /// How calls are made.
    pub caller: Caller,
    /// How long they may take.
    pub deadlines: Deadlines,
    /// How many are made at once.
    pub places: Places,
}

impl Devices {
    /// The driver of a device and its override. For the driver alone use [`Sysfs::presence`], which waits for nothing.
    pub async fn driver_state(&self, device: PciAddress) -> Result<DriverState, DeviceError> {
        self.ask(Call::DriverState { device }, self.deadlines.read).await
    }

    /// Gives a device to a driver, or back.
    pub async fn set_driver(&self, device: PciAddress, wanted: DriverState) -> Result<(), DeviceError> {
        self.ask(Call::SetDriver { device, wanted }, self.deadlines.bind)
            .await
    }

    /// Makes the VFs of a PF that has none.
    pub async fn create_vfs(&self, pf: PciAddress, count: u16) -> Result<(), DeviceError> {
        let call = Call::CreateVfs { device: pf, count };
        self.ask(call, self.deadlines.create).await
    }

    /// Whether something holds a device's IOMMU group through vfio. The kernel may be just opening it, for seconds.
    pub async fn vfio_use(&self, device: PciAddress, group: u32) -> Result<VfioUse, DeviceError> {
        self.ask(Call::VfioUse { device, group }, self.deadlines.read)
            .await
    }

    async fn ask<T: DeserializeOwned + Send + 'static>(
        &self,
        call: Call,
        deadline: Duration,
    ) -> Result<T, DeviceError> {
        let (caller, sysfs, dev) = (self.caller.clone(), self.sysfs.clone(), self.dev.clone());
        let (lane, what) = (Lane::Device(call.device()), call.what());
        let make = move || caller.make(&call, &sysfs, &dev);
        // It is never closed.
        let place = self.places.0.acquire().await.ok();
        let call = self.lanes.run(lane, what, deadline, make);
        tokio::pin!(call);
        let answer = if let Ok(answer) = timeout(PATIENCE, &mut call).await {
            answer
        } else {
            drop(place);
            call.await
        };
        Ok(answer??)
    }

    /// Takes over the calls of an earlier agent that have not returned: their devices hang until they have. Before any other call.
    pub async fn take_over(&self) -> io::Result<()> {
        for (device, file) in self.caller.earlier()? {
            let returned = move || file.lock();
            let lane = Lane::Device(device);
            // It has had its time.
            let over = self.lanes.run(lane, EARLIER, Duration::ZERO, returned).await;
            if let Ok(locked) = over {
                locked?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use hybridnic_net::testing::vf_address;
    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;
    use crate::host::tests::made;

    /// As after a restart. A FIFO without a writer is a device that does not answer.
    #[tokio::test]
    async fn calls_wait_for_each_other_but_not_for_those_that_hang() {
        let dir = tempfile::tempdir().unwrap();
        let mut devices = made(dir.path(), 1, 12).devices;
        devices.deadlines.read = Duration::from_mins(5);
        let file = |n| {
            let device = format!("sys/bus/pci/devices/{}/driver_override", vf_address(0, n));
            dir.path().join(device)
        };
        for n in 0..8 {
            std::fs::remove_file(file(n)).unwrap();
            mkfifo(&file(n), Mode::S_IRWXU).unwrap();
        }
        let mut hang: Vec<_> = (0..8)
            .map(|n| Box::pin(devices.driver_state(vf_address(0, n))))
            .collect();
        for call in &mut hang {
            assert!(futures::poll!(call).is_pending());
        }
        assert_eq!(devices.places.0.available_permits(), 0);
        let hang = futures::future::select_all(hang);
        let other = devices.driver_state(vf_address(0, 8));
        tokio::select! {
            _ = hang => panic!("one has answered"),
            answer = other => { answer.unwrap(); }
        }
        for n in 0..8 {
            // What waits ends with the test.
            std::fs::write(file(n), "(null)").unwrap();
        }
    }
}
