//! Devices in QEMU: plugged, unplugged, found.

use std::os::fd::AsFd as _;
use std::time::Duration;

use hybridnic_api::v1alpha1::Pairing;
use hybridnic_qmp::{
    Client, EventError, QmpError,
    commands::{Announce, Queues, TapNetdev, VfioPci, VfioSource, Vhost, VirtioNet},
    wait_event,
};
use tokio::time::Instant;
use tracing::debug;

use super::{
    super::{LetGo, MachineError, PlugPath, StandbyPlug, VfDescriptors, VfPlug},
    Qemu,
};
use crate::{error::chain, nic::ids};

/// QEMU pins all guest memory when it takes a VF.
const PIN_DEADLINE: Duration = Duration::from_mins(2);
/// Id of QEMU's iommufd object, one for a VM.
const IOMMUFD: &str = "hybridnic-iommufd";

impl Qemu {
    /// Names of the ports that are free for hot plug.
    pub async fn free_ports(&self) -> Result<Vec<String>, MachineError> {
        Ok(self.client.free_root_ports().await?)
    }

    /// Whether one of them, which is there, is free for hot plug.
    pub async fn is_free_port(&self, port: &str) -> Result<bool, MachineError> {
        Ok(self.client.is_free_root_port(port).await?)
    }

    /// Names of all ports.
    pub async fn ports(&self) -> Result<Vec<String>, MachineError> {
        Ok(self.client.root_ports().await?)
    }

    /// Removes a standby's netdev that has no device: a crash, or a macvtap that was made again, leaves one.
    pub async fn clear_standby(&self, nic: &str) -> Result<(), MachineError> {
        match self.client.netdev_del(&ids::netdev(nic)).await {
            Ok(()) | Err(QmpError::Command { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Plugs a standby: descriptors of macvtap and vhost, a netdev, a virtio device. Where the guest pairs by net_failover, the device
    /// offers that.
    pub async fn plug_standby(&self, plug: &StandbyPlug) -> Result<(), MachineError> {
        let netdev = ids::netdev(&plug.nic);
        let (tap, vhost) = (format!("{netdev}-tap"), format!("{netdev}-vhost"));
        self.client.getfd(&tap, plug.tap.as_fd()).await?;
        let vhost = match &plug.vhost {
            None => Vhost::Off,
            Some(fd) => {
                self.client.getfd(&vhost, fd.as_fd()).await?;
                Vhost::Fds(vec![vhost])
            }
        };
        let with_tap = TapNetdev {
            id: netdev.clone(),
            fds: vec![tap],
            vhost,
        };
        self.client.netdev_add_tap(&with_tap).await?;
        let device = VirtioNet {
            id: plug.id.clone(),
            netdev,
            mac: plug.mac.to_string(),
            bus: plug.port.clone(),
            failover: plug.pairing == Pairing::NetFailover,
            queues: Queues::MIN,
            mtu: None,
        };
        match self.client.device_add_virtio_net(&device).await {
            Err(error) if error.is_duplicate_id() => Ok(()),
            result => Ok(result?),
        }
    }

    /// Whether it takes iommufd and passed vfio descriptors, as QEMU does since 9.0.
    pub fn takes_descriptors(&self) -> bool {
        self.client.version().at_least(9, 0)
    }

    /// Plugs a VF, by an iommufd where this QEMU has it, by its vfio group otherwise.
    pub async fn plug_vf(&self, plug: VfPlug) -> Result<PlugPath, MachineError> {
        let VfPlug {
            id,
            port,
            vf,
            descriptors,
        } = plug;
        let given = match &descriptors {
            Some(descriptors) => self.give(&id, descriptors).await?,
            None => None,
        };
        let (source, path) = match given {
            Some(source) => (source, PlugPath::Iommufd),
            None => (VfioSource::Host(vf.to_string()), PlugPath::Group),
        };
        let device = VfioPci {
            id,
            bus: port,
            source,
        };
        let patient = self.client.with_timeout(PIN_DEADLINE);
        patient.device_add_vfio(&device).await?;
        Ok(path)
    }

    /// Gives QEMU a VF's descriptors; `None` where it has no iommufd.
    async fn give(&self, id: &str, descriptors: &VfDescriptors) -> Result<Option<VfioSource>, MachineError> {
        let client = &self.client;
        let has_iommufd = async || -> Result<bool, QmpError> {
            Ok(client.qom_list("/objects").await?.contains_key(IOMMUFD))
        };
        if !has_iommufd().await? {
            client.getfd(IOMMUFD, descriptors.iommu.as_fd()).await?;
            match client.object_add_iommufd(IOMMUFD, IOMMUFD).await {
                Ok(()) => {}
                // A QEMU without iommufd; or another NIC of the VM was quicker.
                Err(QmpError::Command { .. }) => {
                    if !has_iommufd().await? {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        client.getfd(id, descriptors.device.as_fd()).await?;
        Ok(Some(VfioSource::Fd {
            fd: id.to_owned(),
            iommufd: IOMMUFD.into(),
        }))
    }

    /// Takes back a descriptor that QEMU was given and may not have used: as long as it has it, no driver lets go of the VF.
    pub async fn take_back(&self, id: &str) {
        if let Err(error) = self.client.closefd(id).await {
            debug!(id, error = chain(&error), "QEMU has no such descriptor");
        }
    }

    /// Asks the guest to let go of a device, and waits until it has.
    pub async fn unplug(&self, id: &str, deadline: Instant) -> Result<LetGo, MachineError> {
        let client = &self.client;
        let mut events = client.subscribe();
        match client.device_del(id).await {
            Ok(()) => {}
            Err(error) if error.is_device_not_found() => return Ok(LetGo::Yes),
            // An earlier request still stands.
            Err(error) if error.is_unplug_pending() || error.is_busy_guest() => {}
            Err(error) => return Err(error.into()),
        }
        let let_go = |gone| if gone { LetGo::Yes } else { LetGo::No };
        loop {
            match wait_event(&mut events, deadline, |e| {
                e.is_device_deleted(id) || e.is_unplug_refused(id)
            })
            .await
            {
                Ok(event) => return Ok(let_go(event.is_device_deleted(id))),
                Err(EventError::Timeout) => {
                    return Ok(let_go(!client.peripheral().await?.contains_key(id)));
                }
                Err(EventError::Lagged(_)) => {
                    if !client.peripheral().await?.contains_key(id) {
                        return Ok(LetGo::Yes);
                    }
                }
                Err(EventError::Closed(reason)) => return Err(MachineError::Gone(reason.to_string())),
            }
        }
    }

    /// Announces the guest's own address to the switches, from these devices.
    pub async fn announce(&self, ids: &[&str]) -> Result<(), MachineError> {
        Ok(announce(&self.client, ids).await?)
    }

    /// A device's address in the guest, where it is known.
    pub async fn address(&self, id: &str) -> Option<String> {
        let address = self.client.guest_pci_address(id).await.ok().flatten();
        address.map(|address| address.to_string())
    }
}

pub(in super::super) async fn announce(client: &Client, ids: &[&str]) -> Result<(), QmpError> {
    client.announce_self(ids, Announce::default()).await
}
