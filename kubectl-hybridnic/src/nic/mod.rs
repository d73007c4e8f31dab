//! `nic NAME`: everything about one NIC.

mod order;
mod view;

use std::process::ExitCode;

use hybridnic_api::{
    names::NIC_LABEL,
    v1alpha1::{NicAttachment, VmHybridNic},
};
use k8s_openapi::api::events::v1::Event;
use kube::{Api, api::ListParams};
use serde::Serialize;

use crate::{
    cli::Format,
    connect::{Cluster, check_name},
    print,
};

/// What is observed of a NIC.
#[derive(Debug, Serialize)]
pub struct Observed {
    /// The NIC.
    nic: VmHybridNic,
    /// Where it is, and, during a migration, where it goes.
    attachments: Vec<NicAttachment>,
    /// Its events, oldest first.
    events: Vec<Event>,
    /// What could not be asked for, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<String>,
}

/// Shows a NIC.
pub async fn run(cluster: &Cluster, name: &str, output: Format) -> anyhow::Result<ExitCode> {
    check_name("VmHybridNic", name)?;
    let (client, namespace) = (cluster.client.clone(), cluster.namespace.as_str());
    let nics: Api<VmHybridNic> = Api::namespaced(client.clone(), namespace);
    let attachments: Api<NicAttachment> = Api::namespaced(client.clone(), namespace);
    let events: Api<Event> = Api::namespaced(client, namespace);
    let of_nic = ListParams::default().labels(&format!("{NIC_LABEL}={name}"));
    let about = ListParams::default().fields(&format!("regarding.kind=VmHybridNic,regarding.name={name}"));
    let nic = cluster
        .ask(format!("VmHybridNic {namespace}/{name}"), nics.get(name))
        .await?;
    let (attachments, events) = tokio::join!(
        cluster.ask("attachments", attachments.list(&of_nic)),
        cluster.ask("events", events.list(&about)),
    );
    let mut observed = Observed {
        nic,
        attachments: Vec::new(),
        events: Vec::new(),
        errors: Vec::new(),
    };
    match attachments {
        Ok(list) => observed.attachments = list.items,
        Err(error) => observed.errors.push(format!("{error:#}")),
    }
    match events {
        Ok(list) => observed.events = list.items,
        Err(error) => observed.errors.push(format!("{error:#}")),
    }
    observed
        .attachments
        .sort_by_key(|attachment| attachment.metadata.creation_timestamp.clone());
    observed.events.sort_by_key(view::last_time);
    // Which program wrote which field does not matter here.
    observed.nic.metadata.managed_fields = None;
    for attachment in &mut observed.attachments {
        attachment.metadata.managed_fields = None;
    }
    for event in &mut observed.events {
        event.metadata.managed_fields = None;
    }
    let now = jiff::Timestamp::now();
    print::value(output, &observed, |observed| {
        view::draw(observed, now, print::width())
    })?;
    Ok(ExitCode::SUCCESS)
}
