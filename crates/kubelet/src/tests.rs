//! A plugin against a scripted kubelet.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use futures::future::{BoxFuture, ready};
use tokio::{sync::watch, time::timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    device_plugin::{Allocation, Device, Node, Plugin},
    directory::Directory,
    pod_resources::PodResources,
    registration::{State, keep},
    resource::Resource,
    scripted::{self, Kubelet},
};

const RESOURCE: &str = "hybridnic.io/fast";

#[derive(Debug)]
struct Some(watch::Sender<Vec<Device>>);

impl Plugin for Some {
    fn devices(&self) -> watch::Receiver<Vec<Device>> {
        self.0.subscribe()
    }

    fn prefer(&self, available: &[String], included: &[String], count: usize) -> Vec<String> {
        let last = available.iter().rev().filter(|id| !included.contains(id));
        included.iter().chain(last).take(count).cloned().collect()
    }

    fn allocate<'a>(&'a self, ids: &'a [String]) -> BoxFuture<'a, Result<Allocation, String>> {
        let node = |id: &String| Node::same(format!("/dev/{id}"));
        Box::pin(ready(if ids.iter().any(|id| id == "c") {
            Err("c is broken".into())
        } else {
            Ok(Allocation {
                nodes: ids.iter().map(node).collect(),
                env: [].into(),
            })
        }))
    }
}

fn devices(ids: &[&str]) -> Vec<Device> {
    let device = |id: &&str| Device {
        id: (*id).to_owned(),
        healthy: true,
        numa_node: std::option::Option::Some(1),
    };
    ids.iter().map(device).collect()
}

struct Offered {
    plugin: Arc<Some>,
    state: watch::Receiver<State>,
    _tasks: [AbortOnDropHandle<std::convert::Infallible>; 2],
}

fn offer(dir: &Path, ids: &[&str]) -> Offered {
    let directory = Directory::new(scripted::plugins(dir));
    let plugin = Arc::new(Some(watch::Sender::new(devices(ids))));
    let (sender, state) = watch::channel(State::Unknown("not yet".into()));
    let resource = Resource::new("hybridnic.io", "fast").unwrap();
    let run = tokio::spawn(directory.clone().run());
    let keep = tokio::spawn(keep(directory, resource, plugin.clone(), sender, || ()));
    Offered {
        plugin,
        state,
        _tasks: [AbortOnDropHandle::new(run), AbortOnDropHandle::new(keep)],
    }
}

/// Long enough on a busy machine.
async fn soon<T>(it: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), it).await.expect("not soon")
}

async fn hears(kubelet: &Kubelet, ids: &[&str]) {
    let mut devices = kubelet.devices();
    let is = |devices: &scripted::Devices| {
        devices
            .get(RESOURCE)
            .is_some_and(|devices| devices.keys().eq(ids.iter()))
    };
    soon(devices.wait_for(is)).await.unwrap();
}

#[tokio::test]
async fn the_kubelet_hears_of_devices_and_gives_them_to_pods() {
    let dir = tempfile::tempdir().unwrap();
    let mut kubelet = Kubelet::start(dir.path()).unwrap();
    let mut offered = offer(dir.path(), &["a", "b"]);
    hears(&kubelet, &["a", "b"]).await;
    soon(offered.state.wait_for(|s| *s == State::Registered))
        .await
        .unwrap();
    let (ids, nodes) = kubelet.admit("ns", "one", RESOURCE, 1).await.unwrap();
    assert!(ids.iter().eq(["b"]), "the preferred one, and not {ids:?}");
    assert_eq!(nodes, ["/dev/b"]);
    offered.plugin.0.send_replace(devices(&["a", "b", "c"]));
    hears(&kubelet, &["a", "b", "c"]).await;
    // What the plugin refuses is given to nobody, and its message becomes the pod's.
    let error = kubelet.admit("ns", "two", RESOURCE, 2).await.unwrap_err();
    assert!(error.contains("c is broken"), "{error}");
    kubelet.run("ns", "three");

    let pods = PodResources::new(&scripted::pod_resources(dir.path()));
    let listed = pods.list("hybridnic.io").await.unwrap();
    let given: Vec<_> = listed
        .given
        .iter()
        .map(|g| (g.pod.as_str(), g.id.as_str()))
        .collect();
    assert_eq!(given, [("one", "b")]);
    assert_eq!((listed.pods.len(), listed.others.len()), (2, 0));
    kubelet.give("ns", "four", "intel.com/sriov", "0000:01:10.0");
    let listed = pods.list("hybridnic").await.unwrap();
    assert_eq!(listed.given, [], "of another domain");
    let others: Vec<_> = listed
        .others
        .iter()
        .map(|g| (g.pod.as_str(), g.resource.as_str(), g.id.as_str()))
        .collect();
    assert_eq!(
        others,
        [
            ("four", "intel.com/sriov", "0000:01:10.0"),
            ("one", RESOURCE, "b")
        ]
    );
    kubelet.set_mute(true);
    let error = pods.list("hybridnic.io").await.unwrap_err().to_string();
    assert!(error.contains("not now"), "{error}");
    kubelet.set_mute(false);
    pods.list("hybridnic.io").await.unwrap();
    // One connection serves all questions: nobody listens at the path any more.
    std::fs::remove_file(scripted::pod_resources(dir.path()).join("kubelet.sock")).unwrap();
    pods.list("hybridnic.io").await.unwrap();
    kubelet.restart(false).unwrap();
    assert_eq!(pods.list("hybridnic.io").await.unwrap().pods.len(), 3);
    let nobody = PodResources::new(dir.path());
    let error = nobody.list("hybridnic.io").await.unwrap_err().to_string();
    assert!(error.contains("no kubelet"), "{error}");
}

#[tokio::test]
async fn a_kubelet_that_starts_again_is_told_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut kubelet = Kubelet::start(dir.path()).unwrap();
    let mut offered = offer(dir.path(), &["a"]);
    for _ in 0..3 {
        hears(&kubelet, &["a"]).await;
        soon(offered.state.wait_for(|s| *s == State::Registered))
            .await
            .unwrap();
        kubelet.stop();
        soon(offered.state.wait_for(|s| *s != State::Registered))
            .await
            .unwrap();
        kubelet.restart(false).unwrap();
    }
    hears(&kubelet, &["a"]).await;
}

#[tokio::test]
async fn a_registration_that_is_refused_or_dropped_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let kubelet = Kubelet::start(dir.path()).unwrap();
    kubelet.refuse(2);
    let began = std::time::Instant::now();
    let mut offered = offer(dir.path(), &["a"]);
    let refused = |state: &State| matches!(state, State::Unknown(why) if why.contains("not now"));
    soon(offered.state.wait_for(refused)).await.unwrap();
    hears(&kubelet, &["a"]).await;
    // Our own socket comes and goes with each try, and that is not a new kubelet.
    assert!(
        began.elapsed() > Duration::from_millis(1500),
        "after {:?}",
        began.elapsed()
    );
    let before = *kubelet.registrations().borrow();
    kubelet.hang_up(RESOURCE);
    soon(kubelet.registrations().wait_for(|n| *n > before))
        .await
        .unwrap();
    hears(&kubelet, &["a"]).await;
}

#[tokio::test]
async fn a_plugin_that_is_there_first_waits_for_the_kubelet() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(scripted::plugins(dir.path())).unwrap();
    let mut offered = offer(dir.path(), &["a"]);
    let absent = |state: &State| matches!(state, State::Unknown(why) if why.contains("no kubelet"));
    soon(offered.state.wait_for(absent)).await.unwrap();
    let kubelet = Kubelet::start(dir.path()).unwrap();
    hears(&kubelet, &["a"]).await;
    // The next agent takes the place of one that has ended, which has left nothing.
    drop(offered);
    let socket = scripted::plugins(dir.path()).join("hybridnic-fast.sock");
    soon(async {
        while socket.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let _offered = offer(dir.path(), &["b"]);
    hears(&kubelet, &["b"]).await;
    let unknown: BTreeSet<String> = ["x".to_owned()].into();
    kubelet.ask_for(RESOURCE, &unknown).await.unwrap();
}
