//! The ways into the sandboxes whose links an earlier agent has made: through a process of the pod, because the sandbox itself is not known any more.

use std::path::Path;

use hybridnic_cni::wire::{Attachment, Pod};
use hybridnic_net::tap_node;
use tracing::{info, warn};

use super::super::{Vm, process::ProcessId, residents};
use crate::{
    broker,
    cni::Inside,
    error::chain,
    host::Host,
    links::{LinkAt, PodLink},
};

/// Finds them again, where a link is there. The answer says whether all were found: without the way in, a link cannot
/// be silenced.
pub(in super::super) async fn adopt(vm: &Vm, host: &Host) -> bool {
    let mut all = true;
    for nic in vm.nics().into_values() {
        let Some(LinkAt { name, pod: Some(pod) }) = nic.macvtap else {
            continue;
        };
        if host.sandboxes.of(&pod.pod_uid, &name).is_some() {
            continue;
        }
        match tap_node::numbers(&host.sysfs, pod.device.ifindex()) {
            Ok(numbers) if numbers.is_empty() => continue,
            Ok(_) => {}
            Err(error) => warn!(%error, "whether the pod has its link is not known"),
        }
        if let Err(error) = find(vm, host, &name, &pod).await {
            all = false;
            warn!(
                interface = name,
                error, "the network of the pod is not found again"
            );
        }
    }
    all
}

async fn find(vm: &Vm, host: &Host, name: &str, pod: &PodLink) -> Result<(), String> {
    let process = process_of(vm)?;
    let inside = Inside::of(&*host.broker, broker::Pod::Process(&process)).await;
    let inside = inside.map_err(|error| chain(&error))?;
    let link = inside.netlink.link_by_index(pod.device.ifindex()).await;
    if link
        .map_err(|error| chain(&error))?
        .is_none_or(|link| link.name != name)
    {
        return Err("the network of the pod's processes does not have it".to_owned());
    }
    let its = Pod {
        namespace: vm.namespace.clone(),
        name: vm.pod.clone(),
        uid: vm.pod_uid.clone(),
    };
    let attachment = Attachment {
        container_id: pod.container.clone(),
        ifname: name.to_owned(),
    };
    if host.sandboxes.adopt(&its, attachment, pod.device, inside) {
        info!(
            interface = name,
            sandbox = pod.container,
            "the pod's network is found again"
        );
    }
    Ok(())
}

/// A process of the pod: its QEMU, or any other.
fn process_of(vm: &Vm) -> Result<ProcessId, String> {
    if let Some(process) = vm.peer().filter(|process| !process.has_ended()) {
        return Ok(process);
    }
    let pid = residents::find(Path::new("/proc"), &vm.pod_uid).map_err(|error| error.to_string())?;
    let id = pid
        .map(ProcessId::of)
        .transpose()
        .map_err(|error| error.to_string())?;
    id.flatten().ok_or_else(|| "the pod has no process".to_owned())
}
