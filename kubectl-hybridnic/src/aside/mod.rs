//! `standby NAME` and `fast NAME`: tell NICs to leave their VFs, or to take one again, and show how it goes.

mod choose;
mod standing;
mod view;

use std::{collections::BTreeMap, pin::pin, process::ExitCode};

use anyhow::{Context as _, bail};
use futures::{Stream, StreamExt as _, stream};
use hybridnic_api::v1alpha1::{Aside, NicAttachment, VmHybridNic};
use hybridnic_console::Standing;
use kube::{
    Api, Resource, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use serde_json::json;

use self::standing::standing;
use crate::{canvas::Canvas, cli::Format, connect::Cluster, migrate::INTERRUPTED, print};

/// What NICs are told.
#[derive(Clone, Copy, Debug)]
pub enum Word {
    /// To leave their VFs.
    Standby {
        /// What becomes of these.
        aside: Aside,
        /// Also those that have no standby.
        cut: bool,
    },
    /// To take a VF again.
    Fast,
}

/// Tells the NICs of a name, and watches them if that is asked for.
pub async fn run(
    cluster: &Cluster,
    name: &str,
    word: Word,
    watch: bool,
    output: Format,
) -> anyhow::Result<ExitCode> {
    let aside = match word {
        Word::Standby { aside, .. } => Some(aside),
        Word::Fast => None,
    };
    let namespace = &cluster.namespace;
    let nics: Api<VmHybridNic> = Api::namespaced(cluster.client.clone(), namespace);
    let everything = ListParams::default();
    let all = cluster.ask("NICs", nics.list(&everything)).await?.items;
    let chosen = match choose::choose(name, &all) {
        Ok(chosen) => chosen,
        Err(refusal) => bail!("{refusal} (namespace {namespace})"),
    };
    if let Word::Standby { cut: false, .. } = word
        && let Some(refusal) = choose::would_cut(&chosen)
    {
        bail!("{refusal}");
    }
    let mut told = Vec::new();
    for nic in &chosen {
        told.push(tell(cluster, &nics, nic, aside).await?);
    }
    if watch {
        let follower = Follower {
            cluster,
            name,
            aside,
            output,
            told: told.into_iter().map(|nic| (nic.name_any(), nic)).collect(),
            attachments: BTreeMap::new(),
            canvas: Canvas::default(),
            last: BTreeMap::new(),
        };
        return follower.follow(nics).await;
    }
    print::value(output, &told, |told| {
        let lines = told.iter().map(|nic| {
            let name = nic.name_any();
            format!("vmhybridnic.hybridnic.io/{name} changed: {}\n", view::told(aside))
        });
        let all: String = lines.collect();
        format!("{all}See how it goes: kubectl get vhn -n {namespace} -w\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Writes it into the NIC's spec.
async fn tell(
    cluster: &Cluster,
    nics: &Api<VmHybridNic>,
    nic: &VmHybridNic,
    aside: Option<Aside>,
) -> anyhow::Result<VmHybridNic> {
    let word = if aside.is_some() { "Standby" } else { "Auto" };
    // A null takes the field away.
    let keep_vf = (aside == Some(Aside::KeepVf)).then_some(true);
    // Not a namesake that was made since.
    let patch = json!({
        "metadata": {"uid": nic.metadata.uid},
        "spec": {"path": word, "keepVf": keep_vf},
    });
    let (name, params) = (nic.name_any(), PatchParams::default());
    let patch = Patch::Merge(&patch);
    let told = nics.patch(&name, &params, &patch);
    let mut told = cluster.ask(format!("VmHybridNic {name}"), told).await?;
    told.metadata.managed_fields = None;
    Ok(told)
}

/// Watches NICs until each is where it was told to be, or says why it is not.
struct Follower<'a> {
    cluster: &'a Cluster,
    name: &'a str,
    aside: Option<Aside>,
    output: Format,
    /// The NICs by name, first as they were told, then as they are.
    told: BTreeMap<String, VmHybridNic>,
    attachments: BTreeMap<String, NicAttachment>,
    canvas: Canvas,
    /// The last line of each NIC without a terminal, so that no line is printed twice.
    last: BTreeMap<String, String>,
}

/// An object as a watch has it; `None` where it is gone.
enum Change {
    Nic(Box<VmHybridNic>, bool),
    Attachment(Box<NicAttachment>, bool),
}

impl Follower<'_> {
    async fn follow(mut self, nics: Api<VmHybridNic>) -> anyhow::Result<ExitCode> {
        let attachments: Api<NicAttachment> =
            Api::namespaced(self.cluster.client.clone(), &self.cluster.namespace);
        let everything = watcher::Config::default;
        let nics = watch(nics, everything())
            .map(|change| change.map(|(nic, there)| Change::Nic(Box::new(nic), there)));
        let attachments = watch(attachments, everything())
            .map(|change| change.map(|(attachment, there)| Change::Attachment(Box::new(attachment), there)));
        let mut changes = pin!(stream::select(nics, attachments));
        let mut interrupted = pin!(tokio::signal::ctrl_c());
        // By the generations that were written: an older status says nothing.
        let generations: BTreeMap<_, _> = self
            .told
            .iter()
            .map(|(name, nic)| (name.clone(), nic.metadata.generation))
            .collect();
        loop {
            let all = self.all(&generations);
            self.show(&all)?;
            if all.iter().all(|(_, standing)| standing.is_settled()) {
                return self.end(&all);
            }
            tokio::select! {
                change = changes.next() => match change.context("the watches have ended; the order stands")? {
                    Ok(change) => self.take(change)?,
                    Err(error) => {
                        let (text, passes) = self.cluster.explain_watch(&error);
                        if !passes {
                            bail!("{text}; the order stands");
                        }
                    }
                },
                _ = &mut interrupted => {
                    print::note(&view::goodbye(self.aside, self.name, &self.cluster.namespace))?;
                    return Ok(ExitCode::from(INTERRUPTED));
                }
            }
        }
    }

    fn take(&mut self, change: Change) -> anyhow::Result<()> {
        match change {
            Change::Nic(nic, there) => {
                let Some(known) = self.told.get_mut(&nic.name_any()) else {
                    return Ok(());
                };
                let same = known.metadata.uid == nic.metadata.uid;
                if there && same && nic.metadata.generation >= known.metadata.generation {
                    *known = *nic;
                } else if !same || !there {
                    bail!("the NIC {} was deleted", known.name_any());
                }
            }
            Change::Attachment(attachment, true) => {
                self.attachments.insert(attachment.name_any(), *attachment);
            }
            Change::Attachment(attachment, false) => {
                self.attachments.remove(&attachment.name_any());
            }
        }
        Ok(())
    }

    fn all(&self, generations: &BTreeMap<String, Option<i64>>) -> Vec<(VmHybridNic, Standing)> {
        let all = self.told.iter().map(|(name, nic)| {
            let mine = self.attachments.values().filter(|a| a.spec.nic.name == *name);
            let mine: Vec<_> = mine.cloned().collect();
            let generation = generations.get(name).copied().flatten();
            (nic.clone(), standing(nic, &mine, self.aside, generation))
        });
        all.collect()
    }

    fn show(&mut self, all: &[(VmHybridNic, Standing)]) -> anyhow::Result<()> {
        if self.output != Format::Table {
            return Ok(());
        }
        if print::is_terminal() {
            return self
                .canvas
                .draw(&view::picture(all), print::width().unwrap_or(80));
        }
        for (nic, standing) in all {
            let line = view::line(nic, standing);
            if self.last.get(&nic.name_any()) != Some(&line) {
                print::text(&format!("{line}\n"))?;
                self.last.insert(nic.name_any(), line);
            }
        }
        Ok(())
    }

    fn end(&self, all: &[(VmHybridNic, Standing)]) -> anyhow::Result<ExitCode> {
        if self.output != Format::Table {
            let mut nics: Vec<_> = all.iter().map(|(nic, _)| nic.clone()).collect();
            for nic in &mut nics {
                nic.metadata.managed_fields = None;
            }
            print::value(self.output, &nics, |_| String::new())?;
        }
        let there = all
            .iter()
            .all(|(_, standing)| matches!(standing, Standing::There(_)));
        Ok(if there {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

/// The objects of a kind as they change, and whether each is there.
pub fn watch<K>(api: Api<K>, of: watcher::Config) -> impl Stream<Item = Result<(K, bool), watcher::Error>>
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    let events = watcher::watcher(api, of).default_backoff();
    events.filter_map(async |event| match event {
        Ok(Event::Apply(object) | Event::InitApply(object)) => Some(Ok((object, true))),
        Ok(Event::Delete(object)) => Some(Ok((object, false))),
        Ok(Event::Init | Event::InitDone) => None,
        Err(error) => Some(Err(error)),
    })
}
