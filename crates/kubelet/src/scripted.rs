//! A kubelet that does what a test says: it takes registrations, follows lists of devices, gives devices to pods as the real one
//! does, and says which pods have which.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::future::ready;
use http::uri::PathAndQuery;
use tokio::{net::UnixListener, sync::watch};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Status, body::Body, client::Grpc};
use tonic_prost::ProstCodec;
use tower::service_fn;

use crate::{
    device_plugin::HEALTHY,
    directory::KUBELET,
    rpc::{self, unary},
    wire::{
        AllocateRequest, AllocateResponse, ContainerAllocateRequest, ContainerDevices,
        ContainerPreferredAllocationRequest, ContainerResources, DevicePluginOptions, Empty,
        ListAndWatchResponse, ListPodResourcesResponse, PodResources, PreferredAllocationRequest,
        PreferredAllocationResponse, RegisterRequest, path,
    },
};

/// The devices of each resource, and whether they are healthy.
pub type Devices = BTreeMap<String, BTreeMap<String, bool>>;

/// Namespace and name.
type Pod = (String, String);

#[derive(Debug, Default)]
struct State {
    /// What each pod was given: resource and ids.
    pods: BTreeMap<Pod, BTreeMap<String, BTreeSet<String>>>,
    /// Where the plugin of each resource listens.
    endpoints: BTreeMap<String, PathBuf>,
    /// The streams of devices.
    followed: BTreeMap<String, AbortOnDropHandle<()>>,
    /// So many registrations are refused.
    refuse: u32,
    /// It does not say which pods have which devices.
    mute: bool,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    state: Mutex<State>,
    devices: watch::Sender<Devices>,
    registrations: watch::Sender<u32>,
    lists: watch::Sender<u32>,
}

/// The kubelet. It is gone when it is dropped, and leaves its sockets.
#[derive(Debug)]
pub struct Kubelet {
    shared: Arc<Shared>,
    serving: Vec<AbortOnDropHandle<()>>,
}

/// Where a kubelet in `dir` has its plugins.
pub fn plugins(dir: &Path) -> PathBuf {
    dir.join("device-plugins")
}

/// Where a kubelet in `dir` says which pods have which devices.
pub fn pod_resources(dir: &Path) -> PathBuf {
    dir.join("pod-resources")
}

impl Kubelet {
    /// Starts one with its directories in `dir`.
    pub fn start(dir: &Path) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            state: Mutex::default(),
            devices: watch::Sender::default(),
            registrations: watch::Sender::default(),
            lists: watch::Sender::default(),
        });
        let serving = shared.serve()?;
        Ok(Self { shared, serving })
    }

    /// Ends and starts again, with what it has given to pods, or, where its checkpoint is lost, without.
    pub fn restart(&mut self, checkpoint_is_lost: bool) -> io::Result<()> {
        self.stop();
        if checkpoint_is_lost {
            for given in self.state().pods.values_mut() {
                given.clear();
            }
        }
        self.serving = self.shared.serve()?;
        Ok(())
    }

    /// Ends.
    pub fn stop(&mut self) {
        self.serving.clear();
        let mut state = self.state();
        state.followed.clear();
        state.endpoints.clear();
        self.shared.devices.send_replace(Devices::new());
    }

    /// Refuses so many registrations from now on.
    pub fn refuse(&self, registrations: u32) {
        self.state().refuse = registrations;
    }

    /// Whether it says which pods have which devices.
    pub fn set_mute(&self, mute: bool) {
        self.state().mute = mute;
    }

    /// Hangs up on the plugin of a resource.
    pub fn hang_up(&self, resource: &str) {
        self.state().followed.remove(resource);
    }

    /// What plugins say, each time it changes.
    pub fn devices(&self) -> watch::Receiver<Devices> {
        self.shared.devices.subscribe()
    }

    /// How many registrations there were.
    pub fn registrations(&self) -> watch::Receiver<u32> {
        self.shared.registrations.subscribe()
    }

    /// How often it was asked which pods have which devices.
    pub fn lists(&self) -> watch::Receiver<u32> {
        self.shared.lists.subscribe()
    }

    /// What a pod has of a resource.
    pub fn given(&self, namespace: &str, pod: &str, resource: &str) -> BTreeSet<String> {
        let pod = (namespace.to_owned(), pod.to_owned());
        let state = self.state();
        let given = state.pods.get(&pod).and_then(|given| given.get(resource));
        given.cloned().unwrap_or_default()
    }

    /// Runs a pod that asks for no device.
    pub fn run(&self, namespace: &str, pod: &str) {
        let pod = (namespace.to_owned(), pod.to_owned());
        self.state().pods.entry(pod).or_default();
    }

    /// Gives a pod a device of a plugin that is not asked here.
    pub fn give(&self, namespace: &str, pod: &str, resource: &str, id: &str) {
        let pod = (namespace.to_owned(), pod.to_owned());
        let mut state = self.state();
        let given = state.pods.entry(pod).or_default();
        given
            .entry(resource.to_owned())
            .or_default()
            .insert(id.to_owned());
    }

    /// Admits a pod that asks for so many devices: the ids that it gets and the paths of its device nodes, or why it is not run.
    pub async fn admit(
        &self,
        namespace: &str,
        pod: &str,
        resource: &str,
        count: usize,
    ) -> Result<(BTreeSet<String>, Vec<String>), String> {
        let chosen = self.choose(resource, count).await?;
        let answer = self.allocate(resource, &chosen).await?;
        let nodes = answer.container_responses.into_iter().flat_map(|c| c.devices);
        let pod = (namespace.to_owned(), pod.to_owned());
        let mut state = self.state();
        let given = state.pods.entry(pod).or_default();
        given.insert(resource.to_owned(), chosen.clone());
        Ok((chosen, nodes.map(|node| node.host_path).collect()))
    }

    /// Asks for these devices for a container, even if another pod has them.
    pub async fn ask_for(&self, resource: &str, ids: &BTreeSet<String>) -> Result<(), String> {
        self.allocate(resource, ids).await.map(drop)
    }

    /// A pod is over, and its devices are free.
    pub fn delete(&self, namespace: &str, pod: &str) {
        let pod = (namespace.to_owned(), pod.to_owned());
        self.state().pods.remove(&pod);
    }

    async fn choose(&self, resource: &str, count: usize) -> Result<BTreeSet<String>, String> {
        let listed = self.shared.devices.borrow().get(resource).cloned();
        let listed = listed.ok_or_else(|| format!("unregistered device {resource}"))?;
        let in_use: BTreeSet<String> = {
            let state = self.state();
            let given = state.pods.values().filter_map(|given| given.get(resource));
            given.flatten().cloned().collect()
        };
        let available: BTreeSet<String> = listed
            .into_iter()
            .filter(|(id, healthy)| *healthy && !in_use.contains(id))
            .map(|(id, _)| id)
            .collect();
        if available.len() < count {
            let there = available.len();
            return Err(format!("Requested: {count}, Available: {there}"));
        }
        if available.len() == count {
            return Ok(available);
        }
        let question = PreferredAllocationRequest {
            container_requests: vec![ContainerPreferredAllocationRequest {
                available_device_ids: available.iter().cloned().collect(),
                must_include_device_ids: vec![],
                allocation_size: i32::try_from(count).map_err(|e| e.to_string())?,
            }],
        };
        let preferred: PreferredAllocationResponse = self.call(resource, path::PREFER, question).await?;
        let preferred = preferred
            .container_responses
            .into_iter()
            .flat_map(|c| c.device_ids);
        let mut chosen: Vec<String> = preferred.filter(|id| available.contains(id)).collect();
        let rest: Vec<String> = available.into_iter().filter(|id| !chosen.contains(id)).collect();
        chosen.extend(rest);
        Ok(chosen.into_iter().take(count).collect())
    }

    async fn allocate(&self, resource: &str, ids: &BTreeSet<String>) -> Result<AllocateResponse, String> {
        let question = AllocateRequest {
            container_requests: vec![ContainerAllocateRequest {
                devices_ids: ids.iter().cloned().collect(),
            }],
        };
        self.call(resource, path::ALLOCATE, question).await
    }

    async fn call<Q, A>(&self, resource: &str, call: &'static str, question: Q) -> Result<A, String>
    where
        Q: prost::Message + Default + 'static,
        A: prost::Message + Default + 'static,
    {
        let endpoint = self.state().endpoints.get(resource).cloned();
        let endpoint = endpoint.ok_or_else(|| format!("unregistered device {resource}"))?;
        let answer = rpc::call(&endpoint, call, question).await;
        answer.map_err(|error| error.to_string())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(self: &Arc<Self>) -> io::Result<Vec<AbortOnDropHandle<()>>> {
        let (plugins, pods) = (plugins(&self.dir), pod_resources(&self.dir));
        fs::create_dir_all(&plugins)?;
        fs::create_dir_all(&pods)?;
        for dir in [&plugins, &pods] {
            for entry in fs::read_dir(dir)? {
                fs::remove_file(entry?.path())?;
            }
        }
        let mut serving = Vec::new();
        for dir in [pods, plugins] {
            let listener = UnixListener::bind(dir.join(KUBELET))?;
            let shared = Arc::clone(self);
            let service = service_fn(move |request| Arc::clone(&shared).answer(request));
            serving.push(AbortOnDropHandle::new(tokio::spawn(async move {
                // It ends with its task.
                let _ = rpc::serve(listener, service).await;
            })));
        }
        Ok(serving)
    }

    async fn answer(
        self: Arc<Self>,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, Infallible> {
        Ok(match request.uri().path() {
            path::REGISTER => unary(request, move |question| ready(self.register(question))).await,
            path::POD_RESOURCES_LIST => unary(request, move |_: Empty| ready(self.list())).await,
            other => Status::unimplemented(other.to_owned()).into_http(),
        })
    }

    fn register(self: &Arc<Self>, question: RegisterRequest) -> Result<Empty, Status> {
        let mut state = self.state();
        if state.refuse > 0 {
            state.refuse -= 1;
            return Err(Status::unavailable("not now"));
        }
        self.registrations.send_modify(|n| *n += 1);
        let endpoint = plugins(&self.dir).join(question.endpoint);
        let resource = question.resource_name;
        state.endpoints.insert(resource.clone(), endpoint.clone());
        let (shared, followed) = (Arc::clone(self), resource.clone());
        let following = tokio::spawn(async move {
            // Its end is all that there is to say of it.
            let _ = shared.follow(&followed, &endpoint).await;
            shared.devices.send_modify(|devices| {
                devices.remove(&followed);
            });
        });
        state.followed.insert(resource, AbortOnDropHandle::new(following));
        Ok(Empty {})
    }

    async fn follow(&self, resource: &str, endpoint: &Path) -> Result<(), String> {
        let _: DevicePluginOptions = rpc::call(endpoint, path::OPTIONS, Empty {})
            .await
            .map_err(|error| error.to_string())?;
        let channel = rpc::connect(endpoint).await.map_err(|error| error.to_string())?;
        let mut client = Grpc::new(channel);
        client.ready().await.map_err(|error| error.to_string())?;
        let codec = ProstCodec::<Empty, ListAndWatchResponse>::default();
        let path = PathAndQuery::from_static(path::LIST_AND_WATCH);
        let mut lists = client
            .server_streaming(Request::new(Empty {}), path, codec)
            .await
            .map_err(|status| status.to_string())?
            .into_inner();
        while let Some(list) = lists.message().await.map_err(|status| status.to_string())? {
            let devices = list.devices.into_iter().map(|d| (d.id, d.health == HEALTHY));
            let devices = devices.collect();
            self.devices
                .send_modify(|all| drop(all.insert(resource.to_owned(), devices)));
        }
        Ok(())
    }

    fn list(&self) -> Result<ListPodResourcesResponse, Status> {
        self.lists.send_modify(|n| *n += 1);
        let state = self.state();
        if state.mute {
            return Err(Status::unavailable("not now"));
        }
        let pods = state.pods.iter().map(|((namespace, name), given)| PodResources {
            name: name.clone(),
            namespace: namespace.clone(),
            containers: vec![ContainerResources {
                name: "main".to_owned(),
                devices: given
                    .iter()
                    .map(|(resource, ids)| ContainerDevices {
                        resource_name: resource.clone(),
                        device_ids: ids.iter().cloned().collect(),
                    })
                    .collect(),
            }],
        });
        Ok(ListPodResourcesResponse {
            pod_resources: pods.collect(),
        })
    }
}
