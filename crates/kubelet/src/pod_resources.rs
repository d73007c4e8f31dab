//! Which devices the kubelet has given to which pods.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use tonic::transport::Channel;

use crate::{
    Error, rpc,
    wire::{Empty, ListPodResourcesResponse, path},
};

/// The kubelet's socket in its directory `pod-resources`.
pub const SOCKET: &str = "kubelet.sock";

/// A device that a pod has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Given {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name. The kubelet does not say its uid.
    pub pod: String,
    /// The resource: `domain/name`.
    pub resource: String,
    /// The device's id.
    pub id: String,
}

/// The kubelet's answer which pods have which devices.
#[derive(Debug)]
pub struct PodResources {
    socket: PathBuf,
    /// The connection by which it has answered last.
    open: Mutex<Option<Channel>>,
}

/// What the kubelet has said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// All pods that it runs: namespace and name.
    pub pods: Vec<(String, String)>,
    /// All devices of the asked domain that they have, in the kubelet's order.
    pub given: Vec<Given>,
    /// The devices of all other resources: of other plugins.
    pub others: Vec<Given>,
}

impl PodResources {
    /// Asks at the socket in this directory.
    pub fn new(directory: &Path) -> Self {
        Self {
            socket: directory.join(SOCKET),
            open: Mutex::default(),
        }
    }

    /// All pods and their devices, those of resources in `domain` apart. With it the kubelet forgets the devices of pods that are over.
    pub async fn list(&self, domain: &str) -> Result<Pods, Error> {
        let listed = self.ask().await?;
        let mut pods = Pods::default();
        for pod in listed.pod_resources {
            for devices in pod.containers.into_iter().flat_map(|c| c.devices) {
                let into = if is_of(&devices.resource_name, domain) {
                    &mut pods.given
                } else {
                    &mut pods.others
                };
                into.extend(devices.device_ids.into_iter().map(|id| Given {
                    namespace: pod.namespace.clone(),
                    pod: pod.name.clone(),
                    resource: devices.resource_name.clone(),
                    id,
                }));
            }
            pods.pods.push((pod.namespace, pod.name));
        }
        Ok(pods)
    }

    async fn ask(&self) -> Result<ListPodResourcesResponse, Error> {
        if let Some(open) = self.swap(None) {
            match self.ask_by(open).await {
                Err(error) if !matches!(error, Error::Silent { .. }) => {
                    // It may be the one of a kubelet that has been restarted.
                }
                answer => return answer,
            }
        }
        self.ask_by(rpc::connect(&self.socket).await?).await
    }

    async fn ask_by(&self, channel: Channel) -> Result<ListPodResourcesResponse, Error> {
        let answer = rpc::ask(channel.clone(), &self.socket, path::POD_RESOURCES_LIST, Empty {}).await;
        if answer.is_ok() {
            self.swap(Some(channel));
        }
        answer
    }

    fn swap(&self, open: Option<Channel>) -> Option<Channel> {
        let mut known = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut known, open)
    }
}

fn is_of(resource: &str, domain: &str) -> bool {
    resource
        .strip_prefix(domain)
        .is_some_and(|rest| rest.starts_with('/'))
}
