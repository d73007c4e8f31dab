//! What the NIC asks of the node's VFs: whether it waits for one, and whether there is a better one than its own.

use hybridnic_api::{
    conditions::reasons,
    limits,
    v1alpha1::{Goal, OnLinkLoss},
};
use hybridnic_net::{DeviceId, PciAddress, sysfs::Inventory};
use tokio::time::Instant;

use super::{
    super::{
        ids,
        observe::{self, ObserveError, Observed, Own},
        plan::{self, Ask, Decision, Learnt, Step, TRIES},
        quirks,
        seen::{Offer, QemuSeen, Seen},
    },
    NicTask,
};
use crate::{
    devices::DeviceError,
    journal::{Loan, Record},
    node::{
        choice::{Pick, Wish},
        select,
    },
};

impl NicTask {
    /// What is asked of the plan.
    pub(super) fn ask(&self) -> Ask {
        let driver = self.cx.record.vf.as_ref().map_or("", |vf| vf.pf_driver.as_str());
        let spec = &self.cx.record.spec;
        let pf = self.cx.record.vf.as_ref().map(|vf| vf.pf);
        let drained = pf.is_some_and(|pf| self.cx.host.pools.is_drained(&spec.network, pf));
        Ask::of(spec, quirks::driver_order(driver), self.cx.vm.duties(), drained)
    }

    /// What kernel and QEMU show of the NIC.
    pub(super) async fn observe(&self) -> Result<Observed, ObserveError> {
        let (cx, own) = (
            &self.cx,
            Own {
                recorded: self.cx.recorded,
                disused: self.cx.disused,
            },
        );
        observe::observe(&cx.host, &cx.vm, &cx.record, cx.mac, own).await
    }

    /// What the node's VFs offer to a NIC in this state.
    pub(super) async fn offer(&mut self, seen: &Seen) -> Result<Offer, DeviceError> {
        self.no_ticket = None;
        let pools = &self.cx.host.pools;
        let tied = self.device().map(|id| pools.tie(&self.cx.record.uid, id));
        if self.cx.record.vf.is_some() || self.cx.record.spec.goal == Goal::Detached {
            let offer = self.look_elsewhere(seen, Instant::now()).await;
            let queued = offer.home_vf || offer.other_vf && self.ask().is_alone();
            if !queued {
                self.cx.host.pools.stop_waiting(&self.cx.claimant);
            }
            return Ok(offer);
        }
        if let Some(Err(other)) = tied {
            pools.stop_waiting(&self.cx.claimant);
            let why = format!(
                "the pod has the device of a NIC that has not left yet, of the pod {}/{}",
                other.namespace, other.pod
            );
            self.no_ticket = Some((reasons::NO_FREE_VF, why));
            return Ok(Offer::default());
        }
        // Once QEMU runs, so does its pod, and the kubelet knows which devices that has.
        if matches!(seen.qemu, QemuSeen::Up(_))
            && let Err(why) = self.ticket().await
        {
            // With one of another PF's VFs, or a standby there, the NIC would take what was promised to others.
            pools.stop_waiting(&self.cx.claimant);
            let why =
                format!("whether the kubelet has given a device to the pod, and which, is not known: {why}");
            self.no_ticket = Some((reasons::KUBELET_UNREACHABLE, why));
            return Ok(Offer::default());
        }
        let inventory = self.cx.host.inventory().await?;
        let wish = Wish {
            network: &self.cx.record.spec.network,
            pick: self.cx.pick(&inventory),
            standby_pf: self.cx.record.standby.as_ref().map(|s| s.pf),
        };
        let uplink = pools
            .standby_pf(&inventory, wish.network, self.cx.pick_standby(&inventory))
            .is_some();
        let lacks_group = self.cx.lacks_group();
        let could =
            lacks_group.is_none() && could_take_vf(&self.ask(), &Seen { uplink, ..*seen }, &self.cx.learnt);
        // With no PF for a standby either, that is what is said.
        if let Some(why) = lacks_group.filter(|_| uplink) {
            self.no_ticket = Some((reasons::NO_VFIO_GROUP, why));
        }
        if !could {
            pools.stop_waiting(&self.cx.claimant);
        }
        let vf = could && pools.offers(&inventory, &self.cx.claimant, &wish);
        if could
            && !vf
            && let Some(loan) = self.cx.loan()
        {
            self.no_ticket = Some(if pools.is_drained(wish.network, loan.vf.pf) {
                let (vf, pf) = (loan.vf.address, loan.vf.pf);
                let why = format!(
                    "the VM's pod has the vfio group of the VF {vf} and of no other, and its PF {pf} is drained"
                );
                (reasons::PF_DRAINED, why)
            } else {
                (reasons::NO_FREE_VF, no_other(&inventory, &loan))
            });
        }
        Ok(Offer {
            vf,
            uplink,
            ..Offer::default()
        })
    }

    /// Asks which of its pod's devices is the NIC's, unless its spec changes meanwhile: a kubelet may be silent.
    async fn ticket(&self) -> Result<(), String> {
        let Record { uid, spec, .. } = &self.cx.record;
        let host = &self.cx.host;
        let mut wanted = self.wanted.clone();
        tokio::select! {
            ticket = host.offers.ticket(&host.pools, uid, spec.pod_devices) => ticket.map(|_| ()),
            _ = wanted.changed() => Err("the kubelet has not answered yet".to_owned()),
        }
    }

    /// The device of the link in the NIC's pod: as the journal has it, or as the pod's sandbox says.
    fn device(&self) -> Option<DeviceId> {
        let record = &self.cx.record;
        let made = record.standby.as_ref().and_then(|standby| standby.pod.as_ref());
        made.map(|pod| pod.device).or_else(|| {
            let ifname = ids::ifname(&record.spec)?;
            let sandbox = self.cx.host.sandboxes.of(&record.spec.pod.uid, &ifname)?;
            Some(sandbox.device)
        })
    }

    /// If a NIC finds no PF or VF because another network keeps it from those that exist, it says so.
    pub(super) async fn explain(&self, decision: &mut Decision) {
        let Decision::Wait(wait) = decision else {
            return;
        };
        if wait.reason == reasons::PF_DRAINED
            && let Some(vf) = &self.cx.record.vf
        {
            wait.message = format!("{}: {} ({})", wait.message, vf.pf_name, vf.pf);
        }
        if ![reasons::NO_UPLINK, reasons::NO_FREE_VF].contains(&wait.reason) {
            return;
        }
        if let Some((reason, why)) = &self.no_ticket {
            (wait.reason, wait.message) = (reason, limits::text(why));
            return;
        }
        let Ok(inventory) = self.cx.host.inventory().await else {
            return;
        };
        let (pools, network) = (&self.cx.host.pools, &self.cx.record.spec.network);
        let wish = Wish {
            network,
            pick: self.cx.pick(&inventory),
            standby_pf: None,
        };
        if let Some(why) = pools.barred(&inventory, network) {
            wait.message = format!("{}: {why}", wait.message);
        } else if wait.reason == reasons::NO_FREE_VF
            && let Some(pfs) = pools.kept_free(&inventory, &self.cx.claimant, &wish)
        {
            wait.reason = reasons::PF_DRAINED;
            wait.message = format!(
                "{}; kept free, because drained (spec.drain of the HybridNode): VFs of {pfs}",
                wait.message
            );
        }
    }

    /// Whether the NIC may leave its VF, or is to, and there is a better one.
    pub(super) async fn look_elsewhere(&mut self, seen: &Seen, time: Instant) -> Offer {
        let mut offer = Offer::default();
        let standby_link = seen.standby_link == Some(true);
        let plugged = matches!(seen.qemu, QemuSeen::Up(guest) if guest.vf);
        let (Some(seen), Some(pf)) = (seen.there(), self.cx.record.vf.as_ref().map(|vf| vf.pf)) else {
            return offer;
        };
        if self.cx.record.spec.goal == Goal::Detached {
            return offer;
        }
        let stays = self.cx.record.spec.l2.on_link_loss == OnLinkLoss::Stay;
        let dark = self.link_loss.is_lost(pf, seen.link || stays, time);
        offer.dark = dark && !stays;
        let dark = (offer.dark && !seen.link).then_some(pf);
        let home = self.home(standby_link, time);
        let leaves = dark.is_some() || self.ask().leaves_vf() || self.cx.learnt.vf_failures >= TRIES;
        if !leaves && home.is_none() {
            return offer;
        }
        // Without an inventory it is unknown whether anything is better.
        let Ok(inventory) = self.cx.host.inventory().await else {
            return offer;
        };
        let pools = &self.cx.host.pools;
        let mut wish = Wish {
            network: &self.cx.record.spec.network,
            pick: self.cx.pick_elsewhere(),
            standby_pf: None,
        };
        offer.other_vf = leaves
            && if self.ask().is_alone() {
                // It leaves all that it has only for what it would take then.
                wish.pick = self.cx.pick(&inventory);
                let kept = seen.held && !plugged;
                self.may_exchange(kept) && pools.offers_sole(&inventory, &self.cx.claimant, &wish, dark)
            } else {
                pools.offers_better(&inventory, &self.cx.claimant, &wish, dark)
            };
        // What it would take then must be of that PF.
        let pick = self.cx.pick(&inventory);
        let home = home.filter(|home| [Pick::Any, Pick::OnPf(*home)].contains(&pick));
        offer.home_vf =
            home.is_some_and(|home| pools.offers_home(&inventory, &self.cx.claimant, wish.network, home));
        offer
    }

    /// Whether a NIC without a standby would leave its VF for another: it must not keep from others a VF that it does not take. `kept`:
    /// somebody has a descriptor of the VF, which is not in the guest. Such a VF is left only if it is drained.
    fn may_exchange(&self, kept: bool) -> bool {
        let ask = self.ask();
        ask.goal == Goal::FastPath && !self.cx.learnt.keeps_vf && (!kept || ask.leaves_vf())
    }

    /// The PF of the standby, where the NIC is split and may go back there.
    fn home(&mut self, link: bool, time: Instant) -> Option<PciAddress> {
        let ask = self.ask();
        let Record {
            vf, standby, spec, ..
        } = &self.cx.record;
        let (vf, standby) = (vf.as_ref()?, standby.as_ref()?);
        let fit = ask.goal == Goal::FastPath
            && vf.pf != standby.pf
            && !ask.ordered
            && link
            && !self.cx.host.pools.is_drained(&spec.network, standby.pf);
        let clear = self.way_home.is_clear(fit.then_some((vf.pf, standby.pf)), time);
        clear.then_some(standby.pf)
    }
}

/// Why a NIC gets no VF whose pod has the group of one and of no other.
fn no_other(inventory: &Inventory, loan: &Loan) -> String {
    let own = loan.vf.address;
    let mut vfs = inventory
        .pfs
        .iter()
        .flat_map(|pf| pf.vfs.iter().map(move |vf| (pf, vf)));
    let problem = match vfs.find(|(_, vf)| vf.address == own) {
        Some((pf, vf)) => select::vf_problem(pf, vf).unwrap_or_else(|| "it is in use".to_owned()),
        None => "it is not there".to_owned(),
    };
    format!(
        "the VM's pod has the vfio group of the VF {own} and of no other, and that VF cannot be used: {problem}"
    )
}

/// Whether a VF is all that is missing: the plan would take one. A NIC that waits for its QEMU keeps none from others.
pub(super) fn could_take_vf(ask: &Ask, seen: &Seen, learnt: &Learnt) -> bool {
    let offered = Seen {
        vf_offered: true,
        ..*seen
    };
    seen.vf.is_none()
        && ask.wants_vf()
        && learnt.vf_failed.is_none()
        && plan::next(ask, &offered, learnt) == Decision::Do(Step::Reserve)
}
