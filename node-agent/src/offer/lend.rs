//! VFs whose vfio groups pods have, where the kernel has groups only.
//!
//! QEMU opens a VF's group by its path, and a container has only nodes that it was given when it was made. So a VF is bound and parked when the
//! kubelet asks for its device, and its group is given to the container. From then on only that pod may have the VF, and it stays with vfio
//! until the pod is over: a group that is made again may get another device number, and the container's node would lead to another VF.
//!
//! The container gets the group by a node of our own, which is named by the VF's address: the kernel may number its groups in another order after
//! a boot, and the kubelet asks for nothing again. Without that node the runtime makes no container, and with it none gets another VF's group.

use std::{
    convert::Infallible,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use hybridnic_api::{conditions::reasons, v1alpha1::L2Settings};
use hybridnic_kubelet::device_plugin::Node;
use hybridnic_net::{
    DeviceId, PciAddress,
    sysfs::{Inventory, Pf, Presence, Vf},
};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, info, warn};

use super::devices::vf_of;
use crate::{
    error::{HasReason, chain},
    host::Host,
    journal::{JournalError, Lent, Loan},
    nic::{
        macs::original,
        observe::VFIO_DRIVER,
        settings::parked,
        vf::{self, VfError, is_vfio},
    },
    node::{choice::Choice, select},
};

/// How long a NIC whose pod is over may take to leave. Meanwhile the kubelet does nothing else.
const LEAVES: Duration = Duration::from_secs(5);
/// How long drivers may take, for the same reason.
const BINDS: Duration = Duration::from_secs(30);
/// Changes of the node come in bursts.
const BURST: Duration = Duration::from_millis(200);
/// The node that QEMU needs beside any group.
const CONTAINER: &str = "/dev/vfio/vfio";
/// What `/dev/null` is.
const NULL: (u32, u32) = (1, 3);

/// A VF is not lent, or not taken back.
#[derive(Debug, thiserror::Error)]
enum LendError {
    #[error("the VF {0} cannot be used: {1}")]
    Unfit(PciAddress, String),
    #[error("it is not known yet which settings the network {0} has")]
    NoSettings(String),
    #[error("the VF {0} is not there")]
    Absent(PciAddress),
    #[error(transparent)]
    Vf(#[from] VfError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("the node of the VF's group cannot be made: {0}")]
    Node(io::Error),
}

impl HasReason for LendError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Unfit(..) | Self::NoSettings(_) | Self::Node(_) => reasons::VF_BIND_FAILED,
            Self::Absent(_) => reasons::VF_LOST,
            Self::Vf(error) => error.reason(),
            Self::Journal(error) => error.reason(),
        }
    }
}

/// Waits a while until no NIC uses these devices: the kubelet gives them to the next pod as soon as the last one is over.
pub(super) async fn until_left(host: &Host, ids: &[DeviceId]) {
    let mut ledger = host.pools.subscribe();
    let deadline = Instant::now() + LEAVES;
    while ids.iter().any(|id| host.offers.has_nic(&host.pools, *id)) {
        // A pod that would have to wait longer is refused, with the reason.
        if !matches!(timeout_at(deadline, ledger.changed()).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// Lends the VFs of these devices, which are promised: their nodes for the container. After an error they are taken back.
pub(super) async fn lend(host: &Arc<Host>, network: &str, ids: &[DeviceId]) -> Result<Vec<Node>, String> {
    let lending = async {
        let _turn = host.offers.lending.lock().await;
        host.offers.renew(network, ids);
        let asked = host.offers.look_elsewhere(&host.pools).await;
        let inventory = host.inventory().await.map_err(VfError::Unread)?;
        let mut nodes = Vec::new();
        for id in ids {
            // A standby slot comes without.
            if let Some((pf, vf)) = vf_of(&inventory, *id) {
                nodes.push(lend_one(host, network, *id, (pf, vf), &asked).await?);
            }
        }
        if !nodes.is_empty() {
            nodes.push(Node::same(CONTAINER));
        }
        // Before the turn is over: what is no longer promised is taken back.
        host.offers.renew(network, ids);
        Ok(nodes)
    };
    match timeout(BINDS, lending).await {
        Ok(lent) => lent.map_err(|error: LendError| chain(&error)),
        Err(_) => Err(format!(
            "drivers have not given VFs to vfio-pci within {} s",
            BINDS.as_secs()
        )),
    }
}

async fn lend_one(
    host: &Arc<Host>,
    network: &str,
    id: DeviceId,
    (pf, vf): (&Pf, &Vf),
    asked: &Result<(), String>,
) -> Result<Node, LendError> {
    let l2 = settings_of(host, network)?;
    let (limits, lent) = (l2.rate.is_some(), host.pools.loan_by(id));
    let is_new = lent.is_none();
    let mut loan = if let Some(loan) = lent {
        // Its pod is over, and the next one gets it.
        vf::nobody_holds(host, &loan.vf).await?;
        Loan::new(id, network, l2, loan.vf)
    } else {
        let unfit = |why| LendError::Unfit(vf.address, why);
        if let Some(why) = select::vf_problem(pf, vf) {
            return Err(unfit(why));
        }
        let choice = Choice {
            pf: pf.clone(),
            vf: vf.clone(),
        };
        if let Some(why) = vf::foreign(host, &choice, asked).await? {
            host.pools.mark_foreign(vf.address, why.clone());
            return Err(unfit(why));
        }
        Loan::new(id, network, l2, vf::describe(host, choice).await?)
    };
    loan.vf.rate_set |= limits;
    loan.vf.iommu_group = vf.iommu_group.unwrap_or(loan.vf.iommu_group);
    if !host.pools.lend_free(&loan) {
        let why = "a NIC has just taken it".to_owned();
        return Err(LendError::Unfit(vf.address, why));
    }
    if let Err(error) = host.journal.write_loan(&loan).await {
        // Nothing was done to it yet, or its file says how it was.
        if is_new {
            host.pools.unlend(vf.address);
        }
        return Err(error.into());
    }
    bind_and_park(host, &loan).await?;
    let path = make_node(host, &loan, loan.vf.iommu_group).map_err(LendError::Node)?;
    info!(device = %id, vf = %vf.address, pf = pf.name, group = loan.vf.iommu_group, "lent to a pod");
    Ok(Node {
        host: path.display().to_string(),
        container: format!("/dev/vfio/{}", loan.vf.iommu_group),
    })
}

fn settings_of(host: &Host, network: &str) -> Result<L2Settings, LendError> {
    let pools = host.pools.pools();
    let pool = pools.into_iter().find(|pool| pool.network == network);
    let l2 = pool.and_then(|pool| pool.l2);
    l2.ok_or_else(|| LendError::NoSettings(network.to_owned()))
}

async fn bind_and_park(host: &Host, loan: &Loan) -> Result<(), LendError> {
    vf::bind(host, loan.vf.address).await?;
    Ok(vf::apply(host, &loan.vf, &parked(&loan.vf, &loan.l2)).await?)
}

/// Makes the node through which a container gets the group of a VF, which is this one now. If it is not the one that the container was
/// given, the node leads nowhere: a runtime makes the container, and QEMU finds no VF.
fn make_node(host: &Host, loan: &Loan, group: u32) -> io::Result<PathBuf> {
    let number = if group == loan.vf.iommu_group {
        fs::metadata(host.dev.vfio_group(group))?.rdev()
    } else {
        makedev(NULL.0, NULL.1)
    };
    let path = node_of(host, loan.vf.address);
    match fs::symlink_metadata(&path) {
        Ok(node) if node.rdev() == number => return Ok(path),
        Ok(_) => fs::remove_file(&path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    mknodat(
        CWD,
        &path,
        FileType::CharacterDevice,
        Mode::RUSR | Mode::WUSR,
        number,
    )?;
    Ok(path)
}

fn node_of(host: &Host, vf: PciAddress) -> PathBuf {
    host.dev.root().join("hybridnic").join(format!("group-{vf}"))
}

/// Keeps VFs that are lent as their pods need them, and takes back those whose pods are over, for as long as it is polled.
pub(super) async fn keep(host: Arc<Host>) -> Infallible {
    let mut ledger = host.pools.subscribe();
    let mut hardware = host.hardware.subscribe();
    let mut heard = host.offers.heard();
    let mut is_old = true;
    loop {
        ledger.mark_unchanged();
        heard.mark_unchanged();
        is_old |= hardware.has_changed().unwrap_or(true);
        hardware.mark_unchanged();
        // Looking at all VFs reads some files of each, so it is done only when they may have changed.
        is_old = !settle(&host, is_old).await;
        tokio::select! {
            _ = ledger.changed() => {}
            _ = hardware.changed() => is_old = true,
            // What has failed is tried again then.
            _ = heard.changed() => {}
        }
        sleep(BURST).await;
    }
}

/// Takes back what no pod has. `look`: also whether pods still have what they need; says whether that is known.
async fn settle(host: &Arc<Host>, look: bool) -> bool {
    if host.pools.lent().is_empty() {
        return true;
    }
    let _turn = host.offers.lending.lock().await;
    let inventory = if look {
        host.inventory().await.map_err(|error| chain(&error))
    } else {
        Ok(Inventory::default())
    };
    if let Err(error) = &inventory {
        warn!(error, "VFs whose groups pods have cannot be looked at");
    }
    let mut all = inventory.is_ok();
    let holders = host.pools.holders();
    for loan in host.pools.lent().into_values() {
        let Lent::Known(loan) = loan else { continue };
        let vf = loan.vf.address;
        let (used, held) = (
            host.offers.is_used(&host.pools, loan.device),
            holders.contains_key(&vf),
        );
        let done = match &inventory {
            _ if !used && !held => take_back(host, &loan).await,
            Ok(inventory) if look => {
                let ensured = ensure(host, inventory, &loan, held).await;
                all &= matches!(ensured, Ok(true));
                ensured.map(drop)
            }
            _ => continue,
        };
        all &= done.is_ok();
        let what = format!("the loan of {vf}");
        match done {
            Ok(()) => host.troubles.end(&what),
            // The pod's last process ends.
            Err(LendError::Vf(error @ VfError::Held(_))) => {
                debug!(%vf, error = chain(&error), "not taken back yet");
            }
            Err(error) => {
                let why = format!("the VF {vf}, whose vfio group a pod has: {}", chain(&error));
                host.troubles.begin(&what, error.reason(), why);
            }
        }
    }
    all
}

/// A boot takes binding, settings and node away, and the kubelet does not ask again. `false` where the VF is left alone for now: its PF is
/// drained, so that somebody may work on it.
async fn ensure(host: &Arc<Host>, inventory: &Inventory, loan: &Loan, held: bool) -> Result<bool, LendError> {
    let Some((_, vf)) = vf_of(inventory, loan.device) else {
        return Err(LendError::Absent(loan.vf.address));
    };
    // Its NIC binds and sets it up itself.
    let is_bound = vf.driver.as_deref() == Some(VFIO_DRIVER);
    if !is_bound && !held && host.pools.is_drained(&loan.network, loan.vf.pf) {
        return Ok(false);
    }
    if !is_bound && !held {
        bind_and_park(host, loan).await?;
        info!(vf = %loan.vf.address, "bound again for the pod that has its group");
    }
    let group = vf.iommu_group.unwrap_or(loan.vf.iommu_group);
    make_node(host, loan, group).map_err(LendError::Node)?;
    Ok(true)
}

/// No pod has the device: the VF goes back to the pool as it was.
async fn take_back(host: &Arc<Host>, loan: &Loan) -> Result<(), LendError> {
    let vf = loan.vf.address;
    match fs::remove_file(node_of(host, vf)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(LendError::Node(error)),
        _ => {}
    }
    let presence = host.sysfs.presence(vf);
    let presence = presence.map_err(|source| VfError::Presence { vf, source })?;
    if let Presence::Present { driver } = presence {
        let driver = vf::driver_of(host, vf, driver).await?;
        if is_vfio(driver.as_deref()) {
            vf::nobody_holds(host, &loan.vf).await?;
            vf::unbind(host, vf).await?;
        }
        host.handouts.forget(vf);
        let saved = original(&vf::before(&loan.vf), loan.vf.parking_mac, &host.macs);
        vf::give_back(host, &loan.vf, saved).await?;
    }
    host.journal.remove_loan(vf).await?;
    host.pools.unlend(vf);
    info!(%vf, device = %loan.device, "its pod is over, and nobody has its group");
    Ok(())
}

#[cfg(test)]
#[path = "lend_tests.rs"]
mod tests;
