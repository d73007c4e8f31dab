//! Which account must be allowed what, and whether it is.

use futures::{StreamExt as _, stream};
use k8s_openapi::{
    api::{
        authorization::v1::{
            ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
            SubjectAccessReviewSpec,
        },
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, api::PostParams};

use super::observed::Fetched;
use crate::connect::Cluster;

/// Questions to the API server at once.
const AT_ONCE: usize = 8;
const GROUP: &str = hybridnic_api::names::GROUP;
/// Where the chart's documentation installs it.
const SYSTEM: &str = "hybridnic-system";

/// A right: verbs on a resource, and what they are for.
#[derive(Clone, Copy, Debug)]
struct Need {
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
    verbs: &'static [&'static str],
    /// Whether it is needed in all namespaces, or in the user's.
    everywhere: bool,
    what_for: &'static str,
}

const fn need(
    group: &'static str,
    resource: &'static str,
    verbs: &'static [&'static str],
    what_for: &'static str,
) -> Need {
    Need {
        group,
        resource,
        subresource: "",
        verbs,
        everywhere: true,
        what_for,
    }
}

const fn here(mut need: Need) -> Need {
    need.everywhere = false;
    need
}

const fn status_patch(resource: &'static str, what_for: &'static str) -> Need {
    let mut need = need(GROUP, resource, &["patch"], what_for);
    need.subresource = "status";
    need
}

/// What the user of this plugin needs.
const MINE: &[Need] = &[
    need(GROUP, "hybridnetworks", &["list", "watch"], "top"),
    need(
        GROUP,
        "hybridnodes",
        &["get", "list", "watch"],
        "top, node, drain-pf",
    ),
    need(GROUP, "hybridnodes", &["patch"], "drain-pf, undrain-pf"),
    here(need(
        GROUP,
        "vmhybridnics",
        &["get", "list", "watch"],
        "top, nic, migrate, standby, fast",
    )),
    here(need(GROUP, "vmhybridnics", &["patch"], "standby, fast")),
    here(need(
        GROUP,
        "nicattachments",
        &["list", "watch"],
        "nic, standby, fast",
    )),
    here(need("events.k8s.io", "events", &["list"], "nic")),
    here(need("", "pods", &["list"], "migrate")),
    here(need(
        GROUP,
        "qemumigrations",
        &["create", "list", "watch"],
        "migrate",
    )),
    here(need(
        GROUP,
        "qemumigrations",
        &["delete"],
        "to cancel a migration",
    )),
];

/// What the operator needs, as its role gives it.
const OPERATOR: &[Need] = &[
    need("", "nodes", &["list", "watch"], "pools"),
    need("", "namespaces", &["list", "watch"], "who may use a network"),
    need("", "pods", &["list", "watch"], "where VMs run"),
    need(GROUP, "hybridnetworks", &["list", "watch"], "pools"),
    need(GROUP, "vmhybridnics", &["list", "watch", "patch"], "NICs"),
    need(GROUP, "qemumigrations", &["list", "watch", "patch"], "migrations"),
    need(GROUP, "qemusaves", &["list", "watch", "patch"], "saves"),
    need(GROUP, "qemurestores", &["list", "watch", "patch"], "restores"),
    need(GROUP, "hybridnodes", &["list", "watch", "patch"], "pools"),
    need(
        GROUP,
        "nicattachments",
        &["list", "watch", "create", "patch", "delete"],
        "NICs",
    ),
    status_patch("hybridnetworks", "statuses"),
    status_patch("vmhybridnics", "statuses"),
    status_patch("qemumigrations", "statuses"),
    status_patch("qemusaves", "statuses"),
    status_patch("qemurestores", "statuses"),
    need("events.k8s.io", "events", &["create", "patch"], "events"),
];

/// What an agent needs, as its role gives it.
const AGENT: &[Need] = &[
    need(GROUP, "nicattachments", &["list", "watch", "patch"], "NICs"),
    need(GROUP, "hybridnodes", &["list", "watch", "create"], "its node"),
    status_patch("nicattachments", "statuses"),
    status_patch("hybridnodes", "statuses"),
];

/// A user in the API server's eyes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    user: String,
    groups: Vec<String>,
}

impl Account {
    /// The service account of a workload's pods.
    pub fn of_pods(meta: &ObjectMeta, template: &PodTemplateSpec) -> Option<Self> {
        let name = template.spec.as_ref()?.service_account_name.as_deref();
        Some(Self::service(
            meta.namespace.as_deref()?,
            name.unwrap_or("default"),
        ))
    }

    /// A service account.
    pub fn service(namespace: &str, name: &str) -> Self {
        Self {
            user: format!("system:serviceaccount:{namespace}:{name}"),
            groups: vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".to_owned(),
            ],
        }
    }
}

/// Somebody with needs.
pub struct Subject {
    who: Who,
    needs: &'static [Need],
    /// The namespace of what is not needed everywhere.
    namespace: String,
}

/// Who it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// The plugin's user.
    Me,
    /// The operator.
    Operator(Account),
    /// An agent.
    Agent(Account),
}

impl Who {
    /// In words, as in "… may not".
    pub fn words(&self) -> String {
        match self {
            Self::Me => "you".to_owned(),
            Self::Operator(account) => format!("the operator ({})", account.user),
            Self::Agent(account) => format!("the agents ({})", account.user),
        }
    }
}

/// The plugin's user.
pub fn me(namespace: &str) -> Subject {
    Subject {
        who: Who::Me,
        needs: MINE,
        namespace: namespace.to_owned(),
    }
}

/// The operator; if it has no pod, by the name that the chart gives its account.
pub fn operator(account: Option<Account>) -> Subject {
    let account = account.unwrap_or_else(|| Account::service(SYSTEM, "hybridnic-operator"));
    Subject {
        who: Who::Operator(account),
        needs: OPERATOR,
        namespace: String::new(),
    }
}

/// An agent; if it has no pod, by the name that the chart gives its account.
pub fn agent(account: Option<Account>) -> Subject {
    let account = account.unwrap_or_else(|| Account::service(SYSTEM, "hybridnic-agent"));
    Subject {
        who: Who::Agent(account),
        needs: AGENT,
        namespace: String::new(),
    }
}

/// What somebody may not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who it is about.
    pub who: Who,
    /// Each is the end of a sentence, as in `list/watch nodes (pools)`; or why it is not known.
    pub lacks: Fetched<Vec<String>>,
}

/// Asks the API server for every right of every subject.
pub async fn ask(cluster: &Cluster, subjects: &[Subject]) -> Vec<Answer> {
    let mut answers = Vec::new();
    for subject in subjects {
        let questions = subject
            .needs
            .iter()
            .flat_map(|need| need.verbs.iter().map(move |verb| (need, *verb)));
        let replies: Vec<Reply> = stream::iter(questions)
            .map(async |(need, verb)| (need, verb, may(cluster, subject, need, verb).await))
            .buffered(AT_ONCE)
            .collect()
            .await;
        answers.push(Answer {
            who: subject.who.clone(),
            lacks: lacks(replies),
        });
    }
    answers
}

type Reply = (&'static Need, &'static str, anyhow::Result<bool>);

/// What is refused, one text for each resource; replies come in the order of the needs.
fn lacks(replies: Vec<Reply>) -> Fetched<Vec<String>> {
    let mut lacks: Vec<(&Need, Vec<&str>)> = Vec::new();
    for (need, verb, reply) in replies {
        match reply {
            Ok(true) => {}
            Ok(false) => match lacks.last_mut() {
                Some((last, verbs)) if std::ptr::eq(*last, need) => verbs.push(verb),
                _ => lacks.push((need, vec![verb])),
            },
            Err(error) => return Err(error.into()),
        }
    }
    Ok(lacks.iter().map(|(need, verbs)| words(need, verbs)).collect())
}

fn words(need: &Need, verbs: &[&str]) -> String {
    let slash = if need.subresource.is_empty() { "" } else { "/" };
    let (verbs, resource, subresource) = (verbs.join("/"), need.resource, need.subresource);
    format!("{verbs} {resource}{slash}{subresource} ({})", need.what_for)
}

async fn may(cluster: &Cluster, subject: &Subject, need: &Need, verb: &str) -> anyhow::Result<bool> {
    let attributes = ResourceAttributes {
        group: Some(need.group.to_owned()),
        resource: Some(need.resource.to_owned()),
        subresource: (!need.subresource.is_empty()).then(|| need.subresource.to_owned()),
        verb: Some(verb.to_owned()),
        namespace: (!need.everywhere).then(|| subject.namespace.clone()),
        ..ResourceAttributes::default()
    };
    let params = PostParams::default();
    let status = match &subject.who {
        Who::Me => {
            let review = SelfSubjectAccessReview {
                spec: SelfSubjectAccessReviewSpec {
                    resource_attributes: Some(attributes),
                    ..Default::default()
                },
                ..SelfSubjectAccessReview::default()
            };
            let api: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
            cluster
                .ask("your rights", api.create(&params, &review))
                .await?
                .status
        }
        Who::Operator(account) | Who::Agent(account) => {
            let review = SubjectAccessReview {
                spec: SubjectAccessReviewSpec {
                    user: Some(account.user.clone()),
                    groups: Some(account.groups.clone()),
                    resource_attributes: Some(attributes),
                    ..SubjectAccessReviewSpec::default()
                },
                ..SubjectAccessReview::default()
            };
            let api: Api<SubjectAccessReview> = Api::all(cluster.client.clone());
            cluster
                .ask("the programs' rights", api.create(&params, &review))
                .await?
                .status
        }
    };
    Ok(status.is_some_and(|status| status.allowed))
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn accounts_of_pods() {
        let meta = ObjectMeta {
            namespace: Some("sys".to_owned()),
            ..ObjectMeta::default()
        };
        let template = from_value(json!({"spec": {"serviceAccountName": "op", "containers": []}})).unwrap();
        let account = Account::of_pods(&meta, &template).unwrap();
        assert_eq!(account.user, "system:serviceaccount:sys:op");
        assert!(account.groups.contains(&"system:serviceaccounts:sys".to_owned()));
        assert_eq!(Account::of_pods(&ObjectMeta::default(), &template), None);
    }

    #[test]
    fn what_is_lacking_is_named() {
        let lack = lacks(vec![
            (&OPERATOR[0], "list", Ok(false)),
            (&OPERATOR[0], "watch", Ok(false)),
            (&OPERATOR[1], "list", Ok(true)),
            (&AGENT[2], "patch", Ok(false)),
        ]);
        let expected = [
            "list/watch nodes (pools)",
            "patch nicattachments/status (statuses)",
        ];
        assert_eq!(lack.unwrap(), expected);
        let broken = vec![
            (&OPERATOR[0], "list", Ok(false)),
            (&OPERATOR[0], "watch", Err(anyhow::anyhow!("not allowed"))),
        ];
        assert_eq!(lacks(broken).unwrap_err().why, "not allowed");
    }
}
