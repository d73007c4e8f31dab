//! What the plugin and the agent say to each other: one question as JSON in one packet (`SOCK_SEQPACKET`), with a descriptor of the pod's
//! network namespace, and one answer. If an end goes away, the other gets no more from it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Where the agent listens, on the node and in the agent's own pod.
pub const SOCKET: &str = "/run/hybridnic-agent/cni/cni.sock";
/// The name of the plugin's program, which is the `type` of a network's configuration.
pub const PLUGIN: &str = "hybridnic";
/// The most that a question or an answer may have, in octets.
pub const LIMIT: usize = 16 << 10;
/// How long the agent lets a pod wait for its NIC.
pub const WAIT: Duration = Duration::from_secs(90);
/// How long the plugin waits for the agent's answer. A kubelet gives a sandbox four minutes.
pub const PATIENCE: Duration = Duration::from_secs(100);

/// An interface that a runtime has asked for: one of one sandbox. A pod's sandbox may be made again, under another id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Attachment {
    /// The sandbox (`CNI_CONTAINERID`).
    pub container_id: String,
    /// Name of the interface in the pod (`CNI_IFNAME`).
    pub ifname: String,
}

/// A pod, by the names that the kubelet gives to its plugins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// What the plugin asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "camelCase", deny_unknown_fields)]
pub enum Question {
    /// Make the interface, in the network namespace whose descriptor comes with this.
    #[serde(rename_all = "camelCase")]
    Add {
        /// Which one.
        attachment: Attachment,
        /// For which pod.
        pod: Pod,
        /// The `HybridNetwork`.
        network: String,
        /// The device that the kubelet has given the pod.
        device_id: String,
    },
    /// Take the interface away. The descriptor comes with this where the runtime still has the namespace.
    #[serde(rename_all = "camelCase")]
    Del {
        /// Which one.
        attachment: Attachment,
    },
    /// Whether the interface is in the network namespace whose descriptor comes with this, and as it was made.
    #[serde(rename_all = "camelCase")]
    Check {
        /// Which one.
        attachment: Attachment,
        /// The MAC that it was made with.
        mac: Option<String>,
    },
    /// Whether the agent can make interfaces.
    Status,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "camelCase", deny_unknown_fields)]
pub enum Answer {
    /// The interface is there.
    #[serde(rename_all = "camelCase")]
    Added {
        /// Its MAC.
        mac: String,
        /// Its MTU, in octets.
        mtu: u32,
    },
    /// It is as was asked.
    Done,
    /// It is not.
    Refused {
        /// Why, for a program.
        why: Why,
        /// Why, for a person.
        message: String,
    },
}

/// What a refusal means for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Why {
    /// It may be otherwise in a while.
    NotNow,
    /// What was asked is wrong.
    BadQuestion,
    /// The interface is not as it was made.
    NotAsMade,
}

impl Answer {
    /// A refusal.
    pub fn refused(why: Why, message: impl Into<String>) -> Self {
        Self::Refused {
            why,
            message: message.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_and_a_plugin_of_another_version_read_the_same() {
        let question = Question::Add {
            attachment: Attachment {
                container_id: "c1".into(),
                ifname: "pod1".into(),
            },
            pod: Pod {
                namespace: "tenant".into(),
                name: "virt-launcher-1".into(),
                uid: "u1".into(),
            },
            network: "fast".into(),
            device_id: "0000:01:00.0-3".into(),
        };
        let text = concat!(
            r#"{"command":"add","attachment":{"containerId":"c1","ifname":"pod1"},"#,
            r#""pod":{"namespace":"tenant","name":"virt-launcher-1","uid":"u1"},"#,
            r#""network":"fast","deviceId":"0000:01:00.0-3"}"#
        );
        assert_eq!(serde_json::to_string(&question).unwrap(), text);
        assert_eq!(serde_json::from_str::<Question>(text).unwrap(), question);
        let answers = [
            (
                Answer::Added {
                    mac: "52:54:00:00:00:01".into(),
                    mtu: 1500,
                },
                r#"{"answer":"added","mac":"52:54:00:00:00:01","mtu":1500}"#,
            ),
            (Answer::Done, r#"{"answer":"done"}"#),
            (
                Answer::refused(Why::NotNow, "no VF is free"),
                r#"{"answer":"refused","why":"notNow","message":"no VF is free"}"#,
            ),
        ];
        for (answer, text) in answers {
            assert_eq!(serde_json::to_string(&answer).unwrap(), text);
            assert_eq!(serde_json::from_str::<Answer>(text).unwrap(), answer);
        }
    }
}
