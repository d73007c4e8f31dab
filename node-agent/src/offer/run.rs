//! Keeps the kubelet up to date about the node's devices.

use std::{collections::BTreeMap, convert::Infallible, path::Path, sync::Arc, time::Duration};

use hybridnic_api::conditions::reasons;
use hybridnic_kubelet::{
    device_plugin::{Device, Plugin},
    directory::Directory,
    registration::{self, State},
    resource::Resource,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::{DOMAIN, devices::Offer, lend, placeholder, plugin::Network};
use crate::host::Host;

/// How often the kubelet is asked which pod has which device: it does not report when a pod has ended.
const LOOK: Duration = Duration::from_secs(10);
/// How often it is asked where no pod can have a device of ours.
const SELDOM: Duration = Duration::from_mins(1);
/// Changes of the node come in bursts.
const BURST: Duration = Duration::from_millis(200);
/// A kubelet that is restarted may be away for this long without anything being wrong.
const PATIENCE: Duration = Duration::from_secs(20);

/// A network's devices at the kubelet.
struct Registered {
    devices: watch::Sender<Vec<Device>>,
    state: watch::Receiver<State>,
    _task: AbortOnDropHandle<Infallible>,
}

/// What is wrong, and since when.
#[derive(Default)]
struct Wrong(BTreeMap<String, Instant>);

impl Wrong {
    /// Whether `what` has been wrong for so long that it is no restart.
    fn lasts(&mut self, what: &str, is_wrong: bool) -> bool {
        if !is_wrong {
            self.0.remove(what);
            return false;
        }
        let since = *self.0.entry(what.to_owned()).or_insert_with(Instant::now);
        since.elapsed() >= PATIENCE
    }
}

/// Offers the devices of this node's networks to the kubelet whose directory of plugins this is, for as long as it is polled.
pub async fn run(host: Arc<Host>, plugins: &Path) -> Infallible {
    let directory = Directory::new(plugins);
    let _watch = AbortOnDropHandle::new(tokio::spawn(directory.clone().run()));
    let mut ledger = host.pools.subscribe();
    let mut hardware = host.hardware.subscribe();
    let mut offered = host.offers.subscribe();
    let _lent = AbortOnDropHandle::new(tokio::spawn(lend::keep(Arc::clone(&host))));
    let mut registered: BTreeMap<String, Registered> = BTreeMap::new();
    let mut wrong = Wrong::default();
    let (mut heard, mut is_old, mut asked) = (false, true, Instant::now());
    loop {
        host.offers.learn_nodes(&host.proc);
        ledger.mark_unchanged();
        // Also what has changed in the pause after another change.
        is_old |= hardware.has_changed().unwrap_or(true);
        hardware.mark_unchanged();
        // That takes some files of each VF, so it is done when the hardware has changed and not at each change of the ledger.
        if is_old {
            match host.inventory().await {
                Ok(inventory) => {
                    host.offers.see(inventory);
                    is_old = false;
                }
                // What is offered stays as it was.
                Err(error) => warn!(%error, "the node's devices cannot be looked at"),
            }
        }
        // A pod without a device gets one only through this plugin. Pods of other plugins do not come here, so the kubelet is asked at times
        // nevertheless.
        if !heard || asked.elapsed() >= SELDOM || host.offers.may_be_given(&host.pools) {
            asked = Instant::now();
            let answer = host.offers.ask().await;
            tell_pods(&host, &mut wrong, &answer);
            if answer.is_ok() {
                host.offers.tell_elsewhere(&host.pools);
                host.offers.give_tickets(&host.pools);
            }
            if answer.is_ok() && !heard {
                // A boot takes the device nodes away, and the kubelet asks for no device again that it has given before.
                remake_nodes(&host);
                host.pools.look_again();
            }
            heard = answer.is_ok();
        }
        host.offers.update(&host.pools);
        let used = |id| host.offers.is_used(&host.pools, id);
        if let Err(error) = placeholder::sweep(host.dev.root(), used) {
            warn!(%error, "device nodes that lead nowhere may be left");
        }
        let has_changed = loop {
            offered.mark_unchanged();
            follow(&host, &directory, &mut registered);
            report(&host, &registered, &mut wrong);
            tokio::select! {
                _ = offered.changed() => {}
                _ = ledger.changed() => break true,
                _ = hardware.changed() => break {
                    is_old = true;
                    true
                },
                () = host.offers.asked.notified() => break false,
                () = sleep(LOOK) => break false,
            }
        };
        if has_changed {
            sleep(BURST).await;
        }
    }
}

/// Makes the device nodes that containers were promised.
fn remake_nodes(host: &Host) {
    for id in host.offers.given() {
        if let Err(error) = placeholder::make(host.dev.root(), id) {
            warn!(%error, device = %id, "the node that a container was promised cannot be made");
        }
    }
}

/// Registers networks that have come, and passes on what has changed.
fn follow(host: &Arc<Host>, directory: &Directory, registered: &mut BTreeMap<String, Registered>) {
    let offers = host.offers.offers();
    registered.retain(|network, _| {
        let stays = offers.iter().any(|offer| offer.network == *network);
        if !stays {
            host.metrics.show_devices(network, &[]);
            host.troubles.end(&what(network));
        }
        stays
    });
    for offer in offers {
        let devices: Vec<Device> = offer.devices.iter().map(for_kubelet).collect();
        host.metrics.show_devices(&offer.network, &offer.devices);
        if let Some(registered) = registered.get(&offer.network) {
            registered.devices.send_if_modified(|old| {
                let changed = *old != devices;
                *old = devices;
                changed
            });
        } else if let Some(new) = register(host, directory, &offer, devices) {
            registered.insert(offer.network, new);
        }
    }
}

fn register(
    host: &Arc<Host>,
    directory: &Directory,
    offer: &Offer,
    devices: Vec<Device>,
) -> Option<Registered> {
    let resource = match Resource::new(DOMAIN, &offer.network) {
        Ok(resource) => resource,
        Err(error) => {
            let what = what(&offer.network);
            host.troubles
                .begin(&what, reasons::NOT_OFFERED, error.to_string());
            return None;
        }
    };
    let devices = watch::Sender::new(devices);
    let plugin: Arc<dyn Plugin> = Arc::new(Network {
        host: Arc::clone(host),
        name: offer.network.clone(),
        devices: devices.clone(),
    });
    let (sender, state) = watch::channel(State::Unknown("not registered yet".into()));
    let (metrics, network) = (host.metrics.clone(), offer.network.clone());
    let count = move || metrics.registered(&network);
    let keep = registration::keep(directory.clone(), resource, plugin, sender, count);
    Some(Registered {
        devices,
        state,
        _task: AbortOnDropHandle::new(tokio::spawn(keep)),
    })
}

fn for_kubelet(device: &super::devices::Device) -> Device {
    Device {
        id: device.id.to_string(),
        healthy: device.healthy,
        numa_node: device.numa_node,
    }
}

/// What has the trouble that a network's devices may have.
fn what(network: &str) -> String {
    format!("devices of the network {network}")
}

/// Says that the kubelet does not say which pod has which device.
fn tell_pods(host: &Host, wrong: &mut Wrong, answer: &Result<(), String>) {
    const WHAT: &str = "devices of pods";
    match answer {
        Err(why) if wrong.lasts(WHAT, true) => host.troubles.begin(
            WHAT,
            reasons::KUBELET_UNREACHABLE,
            format!("which pods have devices is not known, and NICs of new pods wait: {why}"),
        ),
        Err(_) => {}
        Ok(()) => {
            wrong.lasts(WHAT, false);
            host.troubles.end(WHAT);
        }
    }
}

/// Reports which networks' devices the kubelet does not get, or why they are not offered.
fn report(host: &Host, registered: &BTreeMap<String, Registered>, wrong: &mut Wrong) {
    for offer in host.offers.offers() {
        let Some(registered) = registered.get(&offer.network) else {
            continue;
        };
        let what = what(&offer.network);
        let state = registered.state.borrow().clone();
        let lasts = wrong.lasts(&what, state != State::Registered);
        match state {
            State::Unknown(why) if lasts => host.troubles.begin(
                &what,
                reasons::KUBELET_UNREACHABLE,
                format!("the kubelet does not get the {what}: {why}"),
            ),
            State::Unknown(_) => {}
            State::Registered if offer.left_out.is_empty() => host.troubles.end(&what),
            State::Registered => {
                let pfs: Vec<String> = offer.left_out.iter().map(ToString::to_string).collect();
                let why = "VFs of PFs in PCI domains above 3 are not offered";
                host.troubles.begin(
                    &what,
                    reasons::NOT_OFFERED,
                    format!("{what}: {why}: {}", pfs.join(", ")),
                );
            }
        }
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
