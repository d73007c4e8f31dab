//! What an older attachment of a NIC still holds. Pure.
//!
//! A NIC is attached to another pod only when none of its parts can be live in the previous one. Kubernetes detaches volumes by the
//! same rule: the node's own agent says so, or the node is off, or a deadline has passed that an administrator has set.

use hybridnic_api::conditions::{reasons, types};
use hybridnic_api::v1alpha1::NicAttachment;
use jiff::Timestamp;

use super::admit::Refusal;
use crate::fence::{NodeState, OUT_OF_SERVICE, PodEnd, is_abandoned, is_detached, leaves};

/// Whether an attachment that is to go may still be live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// No: its agent says so, or its node is off.
    Over,
    /// No proof, but its node has not answered for as long as the deadline says.
    Overdue,
    /// Yes, and its agent is to take it back.
    Detaching,
    /// Yes, and its agent is to take it back, but has not been there for a while, though the node is.
    Agentless,
    /// Yes, and its agent cannot be asked: the node has not been ready since then.
    Unreachable(Option<Timestamp>),
}

impl Hold {
    /// What is known of `attachment`, whose node and pod are as said, and which is over a deadline or not.
    pub fn of(attachment: &NicAttachment, pod: PodEnd, node: &NodeState, overdue: bool) -> Self {
        match node {
            _ if is_detached(attachment) || is_abandoned(pod, node) => Self::Over,
            NodeState::NotReady(_) if overdue => Self::Overdue,
            NodeState::NotReady(since) => Self::Unreachable(*since),
            _ => Self::Detaching,
        }
    }

    /// The same, if the node's agent is away: that proves nothing, and is reported.
    #[must_use]
    pub fn without_agent(self, away: bool) -> Self {
        match self {
            Self::Detaching if away => Self::Agentless,
            hold => hold,
        }
    }

    /// Why nothing else of the NIC may be attached yet.
    pub fn refusal(&self, attachment: &NicAttachment, pod: PodEnd) -> Option<Refusal> {
        let (node, name) = (&attachment.spec.node_name, &attachment.spec.pod.name);
        match self {
            Self::Over | Self::Overdue => None,
            Self::Agentless => {
                let message = format!(
                    "the agent of node {node} is to take the NIC back from the pod {name}, and has not been ready for a while. \
                     The NIC is attached nowhere else before: bring the agent back"
                );
                Some(Refusal::new(reasons::DETACH_STUCK, message))
            }
            Self::Detaching => Some(match trouble(attachment) {
                None => {
                    let message = format!(
                        "waits for the agent of node {node} to take the NIC back from the pod {name}"
                    );
                    Refusal::new(reasons::WAITING_FOR_DETACH, message)
                }
                Some((reason, said)) => {
                    let message = format!(
                        "the agent of node {node} cannot take the NIC back from the pod {name} ({reason}: {said}). The NIC is \
                         attached nowhere else before: {}",
                        remedy(reason)
                    );
                    Refusal::new(reasons::DETACH_STUCK, message)
                }
            }),
            Self::Unreachable(since) => {
                let since = since.map(|since| format!(" since {since}")).unwrap_or_default();
                let pod = match pod {
                    PodEnd::Ended => {
                        format!("its pod {name} there has ended, but nobody has taken the NIC back")
                    }
                    PodEnd::Unknown => {
                        format!("its pod {name} there is gone, which does not prove that it has ended")
                    }
                    PodEnd::Alive | PodEnd::Fenced => format!("its pod {name} there may run"),
                };
                let message = format!(
                    "the NIC may be live on node {node}, which has not been ready{since}: {pod}. It goes on once the node is \
                     back; or, if the machine is off, say so: kubectl taint node {node} \
                     {OUT_OF_SERVICE}=nodeshutdown:NoExecute, or kubectl delete node {node}"
                );
                Some(Refusal::new(reasons::NODE_UNREACHABLE, message))
            }
        }
    }
}

/// What keeps the agent from it: the reason, and its own words.
fn trouble(attachment: &NicAttachment) -> Option<(&str, &str)> {
    let mut conditions = attachment.status.iter().flat_map(|status| &status.conditions);
    // A migration ends by itself, or is stuck by itself, and then says so.
    let passes = [
        reasons::PROGRESSING,
        reasons::DETACHED,
        reasons::AGENT_PENDING,
        reasons::MIGRATING,
        // Of the time before it was to go.
        reasons::NO_FREE_VF,
        reasons::PF_DRAINED,
    ];
    let told = attachment
        .status
        .as_ref()
        .and_then(|status| status.observed_generation);
    let goes = leaves(attachment);
    if !goes || told != attachment.metadata.generation {
        return None;
    }
    conditions
        .find(|c| c.type_ == types::READY && c.status != "True" && !passes.contains(&c.reason.as_str()))
        .map(|said| (said.reason.as_str(), said.message.as_str()))
}

/// What a person can do about it. None of that makes the NIC's MAC live twice.
fn remedy(reason: &str) -> &'static str {
    match reason {
        reasons::GUEST_KEEPS_VF => "end the VM in that pod, or delete the pod",
        reasons::QMP_UNAVAILABLE | reasons::QMP_FLOOD => "let its QEMU answer, or end it: delete the pod",
        reasons::QMP_UNTRUSTED => "delete the pod",
        reasons::VF_IN_USE => "end what uses the VF on that node: fuser /dev/vfio/* /dev/hybridnic/*",
        reasons::JOURNAL_FAILED => "make room for the agent's journal there, or fix its disk",
        reasons::DEVICE_HUNG | reasons::VF_BIND_FAILED | reasons::VF_UNKNOWN | reasons::VF_LOST => {
            "see the node's kernel log; reset the card, or boot the node"
        }
        _ => "fix that; the agent tries again by itself",
    }
}

#[cfg(test)]
mod tests {
    use hybridnic_api::v1alpha1::{AttachmentState, Goal};

    use super::*;
    use crate::testing::{attachment, observe, say};

    #[test]
    fn an_attachment_is_over_by_proof_or_by_the_deadline() {
        use NodeState::{Deleted, NotReady, OutOfService, Ready, Unknown};
        let live = attachment("eth0", "a", "n1");
        let nodes = [Ready, Unknown, NotReady(None), OutOfService, Deleted];
        let of = |attachment: &NicAttachment, pod, overdue| {
            nodes
                .each_ref()
                .map(|node| Hold::of(attachment, pod, node, overdue))
        };
        let (asked, lost) = (Hold::Detaching, Hold::Unreachable(None));
        let all = |last: [Hold; 3]| {
            let [a, b, c] = last;
            [asked.clone(), asked.clone(), a, b, c]
        };
        // The row of a deleted node with a pod that lives does not come: such a pod is fenced.
        assert_eq!(
            of(&live, PodEnd::Alive, false),
            all([lost.clone(), asked.clone(), asked.clone()])
        );
        assert_eq!(
            of(&live, PodEnd::Unknown, false),
            all([lost.clone(), asked.clone(), asked.clone()])
        );
        assert_eq!(
            of(&live, PodEnd::Unknown, true),
            all([Hold::Overdue, asked.clone(), asked.clone()]),
            "a node that answers is waited for without end"
        );
        for pod in [PodEnd::Ended, PodEnd::Fenced] {
            assert_eq!(of(&live, pod, false), all([lost.clone(), Hold::Over, Hold::Over]));
        }
        let mut left = live;
        left.spec.goal = Goal::Detached;
        observe(&mut left, AttachmentState::Detached);
        for pod in [PodEnd::Alive, PodEnd::Unknown, PodEnd::Ended, PodEnd::Fenced] {
            assert_eq!(of(&left, pod, false), [const { Hold::Over }; 5]);
        }
    }

    #[test]
    fn the_message_says_where_since_when_and_what_to_do() {
        let there = attachment("eth0", "a", "n1");
        assert_eq!(Hold::Over.refusal(&there, PodEnd::Unknown), None);
        assert_eq!(Hold::Overdue.refusal(&there, PodEnd::Unknown), None);
        let asked = Hold::Detaching.refusal(&there, PodEnd::Unknown).unwrap();
        assert_eq!(asked.reason, reasons::WAITING_FOR_DETACH);
        assert!(asked.message.contains("agent of node n1"), "{}", asked.message);
        let mut stuck = there.clone();
        say(&mut stuck, reasons::PROGRESSING, "on its way");
        assert_eq!(Hold::Detaching.refusal(&stuck, PodEnd::Ended), Some(asked));
        let asked = Some(reasons::WAITING_FOR_DETACH);
        let told = |attachment: &NicAttachment| {
            let refusal = Hold::Detaching.refusal(attachment, PodEnd::Ended);
            refusal.map(|refusal| (refusal.reason, refusal.message)).unzip()
        };
        say(&mut stuck, reasons::VF_IN_USE, "a process holds it");
        observe(&mut stuck, AttachmentState::Standby);
        assert_eq!(told(&stuck).0, asked, "it has not been told to go");
        stuck.spec.goal = Goal::Detached;
        let (reason, message) = told(&stuck);
        assert_eq!(reason, Some(reasons::DETACH_STUCK));
        assert_eq!(
            message.unwrap(),
            "the agent of node n1 cannot take the NIC back from the pod a (VfInUse: a process holds it). The NIC is attached \
             nowhere else before: end what uses the VF on that node: fuser /dev/vfio/* /dev/hybridnic/*"
        );
        // What it reported about another goal says nothing about this one.
        stuck.metadata.generation = Some(9);
        assert_eq!(told(&stuck).0, asked);
        let away = Hold::Detaching.without_agent(true);
        let told = away.refusal(&stuck, PodEnd::Ended).unwrap();
        assert_eq!(told.reason, reasons::DETACH_STUCK);
        assert!(told.message.contains("bring the agent back"), "{}", told.message);
        assert_eq!(Hold::Over.without_agent(true), Hold::Over);
        assert_eq!(
            Hold::Unreachable(None).without_agent(true),
            Hold::Unreachable(None)
        );
        let lost = Hold::Unreachable(Some("2026-01-01T00:00:00Z".parse().unwrap()));
        let lost = lost.refusal(&there, PodEnd::Unknown).unwrap();
        assert_eq!(lost.reason, reasons::NODE_UNREACHABLE);
        for part in [
            "node n1",
            "since 2026-01-01T00:00:00Z",
            "pod a",
            "kubectl taint node n1 node.kubernetes.io/out-of-service=nodeshutdown:NoExecute",
            "kubectl delete node n1",
        ] {
            assert!(lost.message.contains(part), "{part}: {}", lost.message);
        }
    }
}
