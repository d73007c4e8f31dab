//! What a plugin must answer, and the server of one resource.

use std::{collections::BTreeMap, convert::Infallible, fmt, io, path::Path, sync::Arc};

use futures::{
    Stream, StreamExt as _,
    future::{BoxFuture, ready},
    stream,
};
use tokio::{net::UnixListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, body::Body, server::Grpc};
use tonic_prost::ProstCodec;
use tower::service_fn;

use crate::{
    Error,
    rpc::{self, unary},
    wire::{
        AllocateRequest, AllocateResponse, ContainerAllocateResponse, ContainerPreferredAllocationResponse,
        Device as WireDevice, DevicePluginOptions, DeviceSpec, Empty, ListAndWatchResponse, NumaNode,
        PreferredAllocationRequest, PreferredAllocationResponse, TopologyInfo, path,
    },
};

/// The word for a device that may be given away.
pub(crate) const HEALTHY: &str = "Healthy";
pub(crate) const UNHEALTHY: &str = "Unhealthy";

/// A device as it is reported to the kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its id, at most 63 octets.
    pub id: String,
    /// Whether it may be given to a container. If a container has an unhealthy device, that keeps it from starting again.
    pub healthy: bool,
    /// The NUMA node that it is near.
    pub numa_node: Option<u16>,
}

/// What a container gets with its devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    /// Device nodes, to read and write.
    pub nodes: Vec<Node>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
}

/// A device node of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its path on the machine.
    pub host: String,
    /// Its path in the container.
    pub container: String,
}

impl Node {
    /// One that has the same path in both.
    pub fn same(path: impl Into<String>) -> Self {
        let host = path.into();
        Self {
            container: host.clone(),
            host,
        }
    }
}

/// The devices of one resource.
pub trait Plugin: fmt::Debug + Send + Sync + 'static {
    /// All of them, each time they change.
    fn devices(&self) -> watch::Receiver<Vec<Device>>;
    /// Which `count` of the available ones are best together; those of `included` are among them.
    fn prefer(&self, available: &[String], included: &[String], count: usize) -> Vec<String>;
    /// What a container gets with these; or why it does not get them, in words for the pod's status. The kubelet does nothing for other
    /// pods meanwhile.
    fn allocate<'a>(&'a self, ids: &'a [String]) -> BoxFuture<'a, Result<Allocation, String>>;
}

/// The options of each plugin.
pub(crate) fn options() -> DevicePluginOptions {
    DevicePluginOptions {
        pre_start_required: false,
        get_preferred_allocation_available: true,
    }
}

/// The server of one resource.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) plugin: Arc<dyn Plugin>,
    /// How many streams of devices are open: the kubelet has one.
    pub(crate) streams: watch::Sender<usize>,
    /// Ends the streams.
    pub(crate) end: CancellationToken,
}

impl Service {
    /// Answers all clients until it is dropped.
    pub(crate) async fn serve(self, socket: &Path, listener: UnixListener) -> Error {
        let served = rpc::serve(listener, service_fn(move |request| self.clone().answer(request))).await;
        let source = match served {
            Ok(()) => io::Error::other("it has ended"),
            Err(error) => io::Error::other(error),
        };
        Error::Listen {
            socket: socket.to_owned(),
            source,
        }
    }

    fn answer(
        self,
        request: http::Request<Body>,
    ) -> BoxFuture<'static, Result<http::Response<Body>, Infallible>> {
        Box::pin(async move {
            let plugin = Arc::clone(&self.plugin);
            Ok(match request.uri().path() {
                path::OPTIONS => unary(request, |_: Empty| ready(Ok(options()))).await,
                path::PREFER => unary(request, move |question| ready(Ok(prefer(&*plugin, &question)))).await,
                path::ALLOCATE => {
                    unary(request, move |question| allocate(Arc::clone(&plugin), question)).await
                }
                path::PRE_START => unary(request, |_: Empty| ready(Ok(Empty {}))).await,
                path::LIST_AND_WATCH => {
                    let service = service_fn(move |_: Request<Empty>| {
                        let lists: stream::BoxStream<'static, _> = Box::pin(self.clone().lists());
                        ready(Ok::<_, Status>(Response::new(lists)))
                    });
                    let codec = ProstCodec::<ListAndWatchResponse, Empty>::default();
                    Grpc::new(codec).server_streaming(service, request).await
                }
                other => Status::unimplemented(other.to_owned()).into_http(),
            })
        })
    }

    /// The devices now, and whenever they change.
    fn lists(self) -> impl Stream<Item = Result<ListAndWatchResponse, Status>> + Send {
        let open = Open::new(self.streams);
        let mut devices = self.plugin.devices();
        devices.mark_changed();
        let lists = stream::unfold((devices, open), async |(mut devices, open)| {
            devices.changed().await.ok()?;
            let devices_now = devices.borrow_and_update().iter().map(on_wire).collect();
            Some((Ok(ListAndWatchResponse { devices: devices_now }), (devices, open)))
        });
        lists.take_until(self.end.cancelled_owned())
    }
}

/// Counts an open stream.
struct Open(watch::Sender<usize>);

impl Open {
    fn new(streams: watch::Sender<usize>) -> Self {
        streams.send_modify(|n| *n += 1);
        Self(streams)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

fn on_wire(device: &Device) -> WireDevice {
    WireDevice {
        id: device.id.clone(),
        health: if device.healthy { HEALTHY } else { UNHEALTHY }.to_owned(),
        topology: device.numa_node.map(|id| TopologyInfo {
            nodes: vec![NumaNode { id: id.into() }],
        }),
    }
}

fn prefer(plugin: &dyn Plugin, question: &PreferredAllocationRequest) -> PreferredAllocationResponse {
    let containers = question.container_requests.iter().map(|container| {
        let count = usize::try_from(container.allocation_size).unwrap_or(0);
        ContainerPreferredAllocationResponse {
            device_ids: plugin.prefer(
                &container.available_device_ids,
                &container.must_include_device_ids,
                count,
            ),
        }
    });
    PreferredAllocationResponse {
        container_responses: containers.collect(),
    }
}

async fn allocate(plugin: Arc<dyn Plugin>, question: AllocateRequest) -> Result<AllocateResponse, Status> {
    let mut responses = Vec::with_capacity(question.container_requests.len());
    for container in &question.container_requests {
        let allocation = plugin.allocate(&container.devices_ids).await;
        let allocation = allocation.map_err(Status::failed_precondition)?;
        let node = |node: Node| DeviceSpec {
            container_path: node.container,
            host_path: node.host,
            permissions: "rw".to_owned(),
        };
        responses.push(ContainerAllocateResponse {
            envs: allocation.env.into_iter().collect(),
            devices: allocation.nodes.into_iter().map(node).collect(),
        });
    }
    Ok(AllocateResponse {
        container_responses: responses,
    })
}
