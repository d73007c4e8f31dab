//! The plugin's own program, the agent's server, and macvtaps in network namespaces of pods. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test fails so"
)]

mod node;

use std::{
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::MetadataExt as _,
    },
    path::Path,
    time::Duration,
};

use hybridnic_agent::{
    broker,
    cni::{Inside, Made, Sandbox},
};
use hybridnic_cni::wire::{Attachment, LIMIT, Pod};
use hybridnic_net::{dev::DevNodes, netns::NetNs, tap_node};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket};
use serde_json::{Value, json};
use tokio::time::timeout;

use node::{Here, MAC, Netns, Node, SOON, UID, on_a_node, result};

#[test]
fn a_pod_gets_its_interface_and_gives_it_back() {
    on_a_node(|| async {
        let (node, netns) = (Node::new().await, Netns::new());
        let path = netns.path();
        assert_eq!(node.does("STATUS", "", None).await, Ok(Value::Null));
        let made = node.does("ADD", "c1", Some(&path)).await.unwrap();
        let interface = json!({"name": "pod1", "mac": "52:54:00:00:00:01", "mtu": 1400, "sandbox": path});
        let expected = json!({"cniVersion": "1.1.0", "interfaces": [interface], "ips": [], "dns": {}});
        assert_eq!(made, expected);
        let link = netns.links_inside().link("pod1").await.unwrap().unwrap();
        assert_eq!((link.index, link.up), (node.device.ifindex(), false));
        let device = tap_node::path(&DevNodes::default(), link.index);
        assert_eq!(std::fs::metadata(device).unwrap().uid(), 107);
        assert!(
            node.sandboxes
                .of(UID, "pod1")
                .is_some_and(|sandbox| !sandbox.waits)
        );

        let check = async |mac: &str| {
            let made = json!({"prevResult": {"interfaces": [{"name": "pod1", "mac": mac}]}});
            result(node.plugin("CHECK", "c1", Some(&path), &made)).await
        };
        assert_eq!(check("52:54:00:00:00:01").await, Ok(Value::Null));
        let other = check("52:54:00:00:00:02").await.unwrap_err();
        assert_eq!(other["code"], 100, "{other}");

        for _ in 0..2 {
            assert_eq!(node.does("DEL", "c1", Some(&path)).await, Ok(Value::Null));
            assert!(!netns.has("pod1").await);
            assert_eq!(
                node.does("DEL", "c1", None).await,
                Ok(Value::Null),
                "without its namespace"
            );
        }
        assert!(node.sandboxes.of(UID, "pod1").is_none());
        let gone = check("52:54:00:00:00:01").await.unwrap_err();
        assert_eq!(gone["code"], 100, "{gone}");
        node.gone().await;
    });
}

#[test]
fn the_latest_sandbox_of_a_pod_has_the_interface() {
    on_a_node(|| async {
        let node = Node::new().await;
        let (first, second) = (Netns::new(), Netns::new());
        node.does("ADD", "c1", Some(&first.path())).await.unwrap();
        // The kubelet has begun once more; the first sandbox is still there.
        node.does("ADD", "c2", Some(&second.path())).await.unwrap();
        assert!(!first.has("pod1").await && second.has("pod1").await);
        node.does("DEL", "c1", Some(&first.path())).await.unwrap();
        assert!(second.has("pod1").await);
        // The runtime asks again for the same.
        node.does("ADD", "c2", Some(&second.path())).await.unwrap();
        assert!(second.has("pod1").await);
        // The pod's network goes without notice, and nothing of ours holds it once the NIC has gone.
        drop(second);
        node.sandboxes.forget(UID, "pod1");
        node.gone().await;
    });
}

#[test]
fn each_caller_gets_an_answer_or_has_gone() {
    on_a_node(|| async {
        let (mut node, netns) = (Node::new().await, Netns::new());
        let path = netns.path();
        let waits = |sandbox: Option<Sandbox>| sandbox.is_some_and(|sandbox| sandbox.waits);

        // The plugin is killed. Then nothing waits, and nothing keeps the pod's network.
        let mut killed = node.plugin("ADD", "c1", Some(&path), &json!({}));
        node.until(waits).await;
        killed.kill().await.unwrap();
        node.until(|sandbox| sandbox.is_none()).await;
        let made = Made { mac: MAC, mtu: 1500 };
        assert!(!node.sandboxes.answer(UID, "pod1", "c1", made), "too late");

        // It is taken away while it waits.
        let waiting = node.plugin("ADD", "c2", Some(&path), &json!({}));
        node.until(waits).await;
        assert!(
            !node.sandboxes.answer(UID, "pod1", "c1", made),
            "of another sandbox"
        );
        result(node.plugin("DEL", "c2", None, &json!({}))).await.unwrap();
        let error = result(waiting).await.unwrap_err();
        assert_eq!(error["msg"], "the runtime has taken the sandbox away");

        // Its NIC says no.
        let waiting = node.plugin("ADD", "c3", Some(&path), &json!({}));
        node.until(waits).await;
        assert!(
            node.sandboxes
                .refuse(UID, "pod1", "c3", "the PF has no interface")
        );
        let error = result(waiting).await.unwrap_err();
        assert_eq!(
            (&error["code"], &error["msg"]),
            (&json!(11), &json!("the PF has no interface"))
        );

        // The agent ends, and another one starts.
        let waiting = node.plugin("ADD", "c4", Some(&path), &json!({}));
        node.until(waits).await;
        node.start(Duration::from_millis(300));
        let error = result(waiting).await.unwrap_err();
        assert_eq!(error["msg"], "hybridnic's agent has not answered: it has ended");

        // It takes too long.
        let waiting = node.plugin("ADD", "c5", Some(&path), &json!({}));
        node.until(waits).await;
        node.sandboxes
            .hold(UID, "pod1", "the source is not on its standby yet");
        let error = result(waiting).await.unwrap_err();
        assert_eq!(error["msg"], "the source is not on its standby yet");
        drop(netns);
        node.gone().await;
    });
}

#[test]
fn an_agent_that_starts_again_goes_on_with_what_there_is() {
    on_a_node(|| async {
        let (mut node, netns) = (Node::new().await, Netns::new());
        let path = netns.path();
        node.does("ADD", "c1", Some(&path)).await.unwrap();
        node.start(SOON);
        assert!(netns.has("pod1").await);
        let made = json!({"prevResult": {"interfaces": [{"name": "pod1", "mac": "52:54:00:00:00:01"}]}});
        let check = node.plugin("CHECK", "c1", Some(&path), &made);
        assert_eq!(result(check).await, Ok(Value::Null));

        let adopt = async || {
            let pod = Pod {
                namespace: "tenant".into(),
                name: "vm-1".into(),
                uid: UID.into(),
            };
            let attachment = Attachment {
                container_id: "c1".into(),
                ifname: "pod1".into(),
            };
            let namespace = NetNs::open(&path).unwrap();
            let inside = Inside::of(&Here, broker::Pod::NetNs(&namespace)).await.unwrap();
            node.sandboxes.adopt(&pod, attachment, node.device, inside)
        };
        assert!(adopt().await);
        assert!(
            node.sandboxes
                .of(UID, "pod1")
                .is_some_and(|sandbox| !sandbox.waits)
        );
        assert!(!adopt().await);
        node.does("DEL", "c1", Some(&path)).await.unwrap();
        assert!(!netns.has("pod1").await);

        // One that nobody has told the new agent of.
        node.does("ADD", "c2", Some(&path)).await.unwrap();
        node.start(SOON);
        node.does("DEL", "c2", Some(&path)).await.unwrap();
        assert!(!netns.has("pod1").await);
        node.gone().await;
    });
}

#[test]
fn who_may_not_or_makes_no_sense_is_refused() {
    on_a_node(|| async {
        let (node, netns) = (Node::new().await, Netns::new());
        let path = netns.path();
        let thief = node.run("ADD", "c1", "thief", Some(&path), &json!({}));
        let error = result(thief).await.unwrap_err();
        let expected = format!("{} of fast is another pod's", node.device);
        assert_eq!((&error["code"], &error["msg"]), (&json!(11), &json!(expected)));

        // The node's own network, and what is no network.
        for (bad, named) in [
            ("/proc/thread-self/ns/net", "hostNetwork"),
            ("/proc/self/ns/mnt", "not a network namespace"),
            ("/dev/null", "not a network namespace"),
        ] {
            let error = node.does("ADD", "c1", Some(Path::new(bad))).await.unwrap_err();
            assert!(error["msg"].as_str().unwrap().contains(named), "{error}");
            assert_eq!(error["code"], 7, "{error}");
        }
        let error = result(node.plugin(
            "ADD",
            "c1",
            Some(&path),
            &json!({"deviceID": "eth0", "pciBusID": "eth0"}),
        ));
        assert_eq!(error.await.unwrap_err()["code"], 7);
        assert!(node.sandboxes.of(UID, "pod1").is_none());

        // Only root gets to the socket.
        let meta = std::fs::metadata(node.socket()).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o777), (0, 0o600));
        let directory = std::fs::metadata(node.socket().parent().unwrap()).unwrap();
        assert_eq!(directory.mode() & 0o777, 0o700);

        // No question, one that is too long, and one that nobody knows.
        for (said, answer) in [
            (vec![b'x'; LIMIT + 1], None),
            (b"{}".to_vec(), Some("does not understand")),
        ] {
            let socket = socket(
                AddressFamily::Unix,
                SockType::SeqPacket,
                SockFlag::SOCK_CLOEXEC,
                None,
            )
            .unwrap();
            connect(socket.as_raw_fd(), &UnixAddr::new(&node.socket()).unwrap()).unwrap();
            send(socket.as_raw_fd(), &said, MsgFlags::empty()).unwrap();
            let heard = tokio::task::spawn_blocking(move || {
                let mut text = vec![0; LIMIT];
                let length = recv(socket.as_fd().as_raw_fd(), &mut text, MsgFlags::empty()).unwrap_or(0);
                text.truncate(length);
                String::from_utf8(text).unwrap()
            });
            let heard = timeout(SOON, heard).await.unwrap().unwrap();
            match answer {
                None => assert_eq!(heard, ""),
                Some(answer) => assert!(heard.contains(answer), "{heard}"),
            }
        }
    });
}
