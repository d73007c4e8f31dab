//! Devices and objects (QEMU `qapi/qdev.json`, `qom.json`, `virtio.json`).

use std::num::NonZeroU16;

use serde::Deserialize;
use serde_json::{Value, json};

use super::QemuVersion;
use crate::{Client, QmpError};

/// How many queue pairs a virtio-net device has: as many as its netdev has descriptors.
pub type Queues = NonZeroU16;

/// `device_add` of a `virtio-net-pci` that is a standby, without an option ROM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtioNet {
    /// The device's id.
    pub id: String,
    /// The id of its netdev.
    pub netdev: String,
    /// Its MAC address.
    pub mac: String,
    /// The `pcie-root-port` it is plugged into.
    pub bus: String,
    /// Whether the guest is offered `VIRTIO_NET_F_STANDBY`, to pair it by itself. Without that, it is a plain virtio-net.
    pub failover: bool,
    /// Its queue pairs.
    pub queues: Queues,
    /// The MTU to tell the guest (`VIRTIO_NET_F_MTU`), in bytes. It must be equal at a migration's two ends.
    pub mtu: Option<u16>,
}

impl VirtioNet {
    fn arguments(&self) -> Value {
        let mut arguments = json!({
            "driver": "virtio-net-pci",
            "id": self.id,
            "netdev": self.netdev,
            "mac": self.mac,
            "bus": self.bus,
            "failover": self.failover,
            "romfile": "",
        });
        if self.queues.get() > 1 {
            arguments["mq"] = true.into();
            // One for each queue of each pair, one for the control queue, one for configuration changes.
            arguments["vectors"] = (2 * u32::from(self.queues.get()) + 2).into();
        }
        if let Some(mtu) = self.mtu {
            arguments["host_mtu"] = mtu.into();
        }
        arguments
    }
}

/// Which device vfio passes through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VfioSource {
    /// By its host PCI address, `0000:5e:02.1`: QEMU opens the device's vfio group by itself.
    Host(String),
    /// By its open `/dev/vfio/devices/vfioN`, named by [`Client::getfd`], in the [`iommufd`](Client::object_add_iommufd)
    /// object with this id.
    Fd {
        /// The descriptor's name.
        fd: String,
        /// The object's id.
        iommufd: String,
    },
}

/// `device_add` of a `vfio-pci`. It never gets a `failover_pair_id`: the guest pairs by MAC address alone, and with
/// one a guest reset would plug the device again with its first options. And QEMU never migrates it: as long as it is plugged it is a
/// blocker of every migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VfioPci {
    /// The device's id.
    pub id: String,
    /// The `pcie-root-port` it is plugged into.
    pub bus: String,
    /// The VF.
    pub source: VfioSource,
}

impl VfioPci {
    fn arguments(&self, qemu: &QemuVersion) -> Value {
        let mut arguments = json!({ "driver": "vfio-pci", "id": self.id, "bus": self.bus });
        // QEMU could migrate a VF whose driver in the kernel can save its state, and would then not refuse to migrate with it. Before 8.1
        // the property was experimental, had another name, and was off.
        if qemu.at_least(8, 1) {
            arguments["enable-migration"] = "off".into();
        }
        match &self.source {
            VfioSource::Host(address) => arguments["host"] = address.as_str().into(),
            VfioSource::Fd { fd, iommufd } => {
                arguments["fd"] = fd.as_str().into();
                arguments["iommufd"] = iommufd.as_str().into();
            }
        }
        arguments
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct VirtioStatus {
    guest_features: VirtioFeatures,
    status: VirtioDeviceStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct VirtioFeatures {
    dev_features: Vec<String>,
}

#[derive(Deserialize)]
struct VirtioDeviceStatus {
    statuses: Vec<String>,
}

impl VirtioStatus {
    /// Features and statuses are texts of the form `VIRTIO_NET_F_STANDBY: Device acting as ...`.
    fn standby_negotiated(&self) -> Option<bool> {
        let has = |texts: &[String], name: &str| {
            texts
                .iter()
                .any(|text| text.split(':').next().is_some_and(|head| head.trim() == name))
        };
        // A legacy driver (virtio 0.9) never sets FEATURES_OK.
        let negotiated = has(&self.status.statuses, "VIRTIO_CONFIG_S_FEATURES_OK")
            || has(&self.status.statuses, "VIRTIO_CONFIG_S_DRIVER_OK");
        negotiated.then(|| has(&self.guest_features.dev_features, "VIRTIO_NET_F_STANDBY"))
    }
}

impl Client {
    /// `device_add` of the standby.
    pub async fn device_add_virtio_net(&self, device: &VirtioNet) -> Result<(), QmpError> {
        self.run("device_add", &device.arguments()).await
    }

    /// `device_add` of the VF. It returns when QEMU has the device, which includes pinning all guest memory: give
    /// large guests a longer deadline. No event reports when the guest uses it.
    pub async fn device_add_vfio(&self, device: &VfioPci) -> Result<(), QmpError> {
        self.run("device_add", &device.arguments(self.version())).await
    }

    /// `device_del`: asks the guest to let go; done at
    /// [`DEVICE_DELETED`](crate::Event::is_device_deleted), which a guest may never grant.
    pub async fn device_del(&self, id: &str) -> Result<(), QmpError> {
        self.run("device_del", &json!({ "id": id })).await
    }

    /// `object-add` of an `iommufd` on the open `/dev/iommu` named by [`getfd`](Self::getfd).
    pub async fn object_add_iommufd(&self, id: &str, fd: &str) -> Result<(), QmpError> {
        self.run(
            "object-add",
            &json!({ "qom-type": "iommufd", "id": id, "fd": fd }),
        )
        .await
    }

    /// `object-del`.
    pub async fn object_del(&self, id: &str) -> Result<(), QmpError> {
        self.run("object-del", &json!({ "id": id })).await
    }

    /// Whether the guest's driver of the virtio-net device with this id took `VIRTIO_NET_F_STANDBY`, for a caller that missed
    /// `FAILOVER_NEGOTIATED`. `None` if no driver has negotiated features yet.
    ///
    /// Uses `x-query-virtio-status` (QEMU 7.2), which is unstable: a refusal
    /// ([`is_command_not_found`](QmpError::is_command_not_found)) or [`QmpError::Decode`] means it cannot be told.
    pub async fn standby_negotiated(&self, id: &str) -> Result<Option<bool>, QmpError> {
        let path = format!("/machine/peripheral/{id}/virtio-backend");
        let status: VirtioStatus = self
            .execute("x-query-virtio-status", &json!({ "path": path }))
            .await?;
        Ok(status.standby_negotiated())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::Release;

    #[test]
    fn multiqueue_needs_vectors() {
        let mut device = VirtioNet {
            id: "sb-a".to_owned(),
            netdev: "hn-a".to_owned(),
            mac: "52:54:00:00:00:01".to_owned(),
            bus: "rpa".to_owned(),
            failover: true,
            queues: Queues::MIN,
            mtu: None,
        };
        let single = device.arguments();
        assert!(single.get("mq").is_none() && single.get("host_mtu").is_none());
        assert_eq!(single["failover"], true);
        device.failover = false;
        assert_eq!(device.arguments()["failover"], false);
        device.queues = Queues::new(4).unwrap();
        device.mtu = Some(9000);
        let four = device.arguments();
        assert_eq!(
            (&four["mq"], &four["vectors"], &four["host_mtu"]),
            (&json!(true), &json!(10), &json!(9000))
        );
    }

    #[test]
    fn a_vf_has_no_pair_id_and_is_never_migrated() {
        let source = VfioSource::Fd {
            fd: "vfd".to_owned(),
            iommufd: "iommu".to_owned(),
        };
        let device = VfioPci {
            id: "vf-a-g1".to_owned(),
            bus: "rpb".to_owned(),
            source,
        };
        let qemu = |major, minor| QemuVersion {
            qemu: Release {
                major,
                minor,
                micro: 0,
            },
            package: String::new(),
        };
        let mut wanted = json!({"driver":"vfio-pci","id":"vf-a-g1","bus":"rpb","fd":"vfd","iommufd":"iommu"});
        assert_eq!(device.arguments(&qemu(8, 0)), wanted);
        wanted["enable-migration"] = "off".into();
        for (major, minor) in [(8, 1), (9, 0), (10, 0)] {
            assert_eq!(device.arguments(&qemu(major, minor)), wanted);
        }
    }

    #[test]
    fn standby_is_told_only_after_negotiation() {
        let status = |features: &[&str], statuses: &[&str]| {
            let answer = json!({
                "guest-features": {"dev-features": features, "transports": []},
                "status": {"statuses": statuses},
                "name": "virtio-net",
            });
            serde_json::from_value::<VirtioStatus>(answer)
                .unwrap()
                .standby_negotiated()
        };
        let acknowledged = "VIRTIO_CONFIG_S_ACKNOWLEDGE: Valid virtio device found";
        let ok = "VIRTIO_CONFIG_S_FEATURES_OK: Feature negotiation complete";
        let standby = "VIRTIO_NET_F_STANDBY: Device acting as standby";
        let other = "VIRTIO_NET_F_MAC: like VIRTIO_NET_F_STANDBY: no";
        assert_eq!(status(&[], &[acknowledged]), None);
        assert_eq!(status(&[standby, other], &[acknowledged, ok]), Some(true));
        assert_eq!(status(&[other], &[ok]), Some(false));
    }
}
