//! Completion: scripts, and answers with the names that the cluster has.
//!
//! kubectl asks a plugin's `kubectl_complete-NAME` as cobra's programs answer: a candidate a line, a tab and a
//! description where there is one, and last a colon with a number that says what the shell may add.

use std::{ffi::OsString, time::Duration};

use anyhow::Context as _;
use clap::{Command, CommandFactory as _, Parser as _};
use clap_complete::{
    CompletionCandidate,
    aot::{self, generate},
    engine::{self, ArgValueCandidates},
};
use hybridnic_api::{
    names::VM_LABEL,
    v1alpha1::{HybridNode, VmHybridNic},
};
use k8s_openapi::{NamespaceResourceScope, api::core::v1::Pod};
use kube::{Api, Resource, ResourceExt as _, api::ListParams};
use serde::de::DeserializeOwned;

use crate::{
    cli::{Cli, Global, Shell},
    connect::Cluster,
    print,
};

/// A shell waits for it at each press of a key.
const PATIENCE: Duration = Duration::from_secs(3);
/// cobra's ShellCompDirectiveNoFileComp: these are all, and files are none of them.
const NO_FILES: &str = ":4";

/// What kubectl runs to complete `kubectl hybridnic`.
const KUBECTL: &str = "#!/bin/sh
# kubectl runs this to complete `kubectl hybridnic`: put it on the PATH, executable, as kubectl_complete-hybridnic.
exec kubectl-hybridnic __complete -- \"$@\"
";

/// Prints a completion script.
pub fn script(shell: Shell) -> anyhow::Result<()> {
    let mut text = Vec::new();
    let command = &mut Cli::command();
    let name = "kubectl-hybridnic";
    match shell {
        Shell::Bash => generate(aot::Bash, command, name, &mut text),
        Shell::Zsh => generate(aot::Zsh, command, name, &mut text),
        Shell::Fish => generate(aot::Fish, command, name, &mut text),
        Shell::Kubectl => text.extend_from_slice(KUBECTL.as_bytes()),
    }
    print::text(&String::from_utf8(text).context("a completion script is not text")?)
}

/// Prints what the last of `words` can become.
pub fn answer(words: &[String]) -> anyhow::Result<()> {
    let lines: String = candidates(words, command(words))?
        .iter()
        .map(|candidate| {
            let value = candidate.get_value().to_string_lossy();
            match candidate.get_help() {
                Some(help) => format!("{value}\t{help}\n"),
                None => format!("{value}\n"),
            }
        })
        .collect();
    print::text(&format!("{lines}{NO_FILES}\n"))
}

fn candidates(words: &[String], mut command: Command) -> anyhow::Result<Vec<CompletionCandidate>> {
    let mut args: Vec<OsString> = vec!["kubectl-hybridnic".into()];
    args.extend(words.iter().map(OsString::from));
    if words.is_empty() {
        args.push(OsString::new());
    }
    let last = args.len() - 1;
    // There are many options; they are offered once the user has begun one.
    let option = args[last].to_string_lossy().starts_with('-');
    let mut candidates = engine::complete(&mut command, args, last, None).context("cannot complete")?;
    candidates.retain(|candidate| option || !candidate.get_value().to_string_lossy().starts_with('-'));
    Ok(candidates)
}

/// The command line, with the cluster's names where it takes names.
fn command(words: &[String]) -> Command {
    let global = global(words);
    let names = |of: fn(Cluster) -> Names| {
        let global = global.clone();
        ArgValueCandidates::new(move || ask(&global, of))
    };
    Cli::command()
        .mut_subcommand("nic", |c| {
            c.mut_arg("name", |arg| arg.add(names(|c| Box::pin(nics(c)))))
        })
        .mut_subcommand("node", |c| {
            c.mut_arg("name", |arg| arg.add(names(|c| Box::pin(nodes(c)))))
        })
        .mut_subcommand("migrate", |c| {
            c.mut_arg("vm", |arg| arg.add(names(|c| Box::pin(vms(c)))))
                .mut_arg("to", |arg| arg.add(names(|c| Box::pin(nodes(c)))))
        })
        .mut_subcommand("standby", |c| {
            c.mut_arg("name", |arg| arg.add(names(|c| Box::pin(nics_and_vms(c)))))
        })
        .mut_subcommand("fast", |c| {
            c.mut_arg("name", |arg| arg.add(names(|c| Box::pin(nics_and_vms(c)))))
        })
        .mut_subcommand("drain-pf", |c| {
            c.mut_arg("node", |arg| arg.add(names(|c| Box::pin(nodes(c)))))
                .mut_arg("pf", |arg| arg.add(names(|c| Box::pin(pfs(c)))))
        })
        .mut_subcommand("undrain-pf", |c| {
            c.mut_arg("node", |arg| arg.add(names(|c| Box::pin(nodes(c)))))
                .mut_arg("pf", |arg| arg.add(names(|c| Box::pin(pfs(c)))))
        })
}

/// The options so far that say which cluster and namespace; words that are not finished yet must not disturb it.
fn global(words: &[String]) -> Global {
    let mut global = Global::default();
    for pair in words.windows(2) {
        let value = || Some(pair[1].clone());
        match pair[0].as_str() {
            "-n" | "--namespace" => global.namespace = value(),
            "--context" => global.context = value(),
            "--kubeconfig" => global.kubeconfig = value().map(Into::into),
            _ => {}
        }
    }
    for word in words {
        // As one word.
        if word.starts_with("--")
            && word.contains('=')
            && let Ok(cli) = Cli::try_parse_from(["x", "doctor", word])
        {
            global.namespace = global.namespace.or(cli.global.namespace);
            global.context = global.context.or(cli.global.context);
            global.kubeconfig = global.kubeconfig.or(cli.global.kubeconfig);
        }
    }
    global
}

type Names = std::pin::Pin<Box<dyn Future<Output = anyhow::Result<Vec<String>>>>>;

/// Names from the cluster; none if it does not answer, because a completion cannot show errors.
fn ask(global: &Global, of: fn(Cluster) -> Names) -> Vec<CompletionCandidate> {
    let names = async {
        let cluster = Cluster::find(global).await?;
        tokio::time::timeout(PATIENCE, of(cluster)).await?
    };
    let names = crate::runtime().and_then(|runtime| runtime.block_on(names));
    names
        .unwrap_or_default()
        .into_iter()
        .map(CompletionCandidate::new)
        .collect()
}

async fn nics(cluster: Cluster) -> anyhow::Result<Vec<String>> {
    let nics = list::<VmHybridNic>(&cluster, &ListParams::default()).await?;
    Ok(nics.iter().map(kube::ResourceExt::name_any).collect())
}

/// NICs, and the VMs that have some.
async fn nics_and_vms(cluster: Cluster) -> anyhow::Result<Vec<String>> {
    let nics = list::<VmHybridNic>(&cluster, &ListParams::default()).await?;
    let vms = nics
        .iter()
        .filter_map(|nic| nic.spec.vm.name().map(ToOwned::to_owned));
    let mut all: Vec<_> = vms.chain(nics.iter().map(kube::ResourceExt::name_any)).collect();
    all.sort();
    all.dedup();
    Ok(all)
}

async fn nodes(cluster: Cluster) -> anyhow::Result<Vec<String>> {
    let nodes: Api<HybridNode> = Api::all(cluster.client);
    let nodes = nodes.list(&ListParams::default()).await?;
    Ok(nodes.items.iter().map(kube::ResourceExt::name_any).collect())
}

/// The PFs of all nodes: nodes of a kind have the same.
async fn pfs(cluster: Cluster) -> anyhow::Result<Vec<String>> {
    let nodes: Api<HybridNode> = Api::all(cluster.client);
    let nodes = nodes.list(&ListParams::default()).await?.items;
    let pfs = nodes.into_iter().filter_map(|node| node.status);
    let mut pfs: Vec<_> = pfs.flat_map(|status| status.pfs).map(|pf| pf.name).collect();
    pfs.retain(|name| !name.is_empty());
    pfs.sort();
    pfs.dedup();
    Ok(pfs)
}

async fn vms(cluster: Cluster) -> anyhow::Result<Vec<String>> {
    let pods = list::<Pod>(&cluster, &ListParams::default().labels(VM_LABEL)).await?;
    let mut vms: Vec<_> = pods
        .iter()
        .filter_map(|pod| pod.labels().get(VM_LABEL).cloned())
        .collect();
    vms.sort();
    vms.dedup();
    Ok(vms)
}

async fn list<K>(cluster: &Cluster, params: &ListParams) -> anyhow::Result<Vec<K>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    Ok(api.list(params).await?.items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(words: &[&str]) -> Vec<String> {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        let candidates = candidates(&words, Cli::command()).unwrap();
        candidates
            .iter()
            .map(|c| c.get_value().to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn commands_and_options_are_completed() {
        assert_eq!(values(&["mi"]), ["migrate"]);
        assert!(values(&[]).contains(&"doctor".to_owned()));
        assert!(!values(&[]).contains(&"__complete".to_owned()));
        assert_eq!(values(&["top", "--on"]), ["--once"]);
        assert_eq!(values(&["nic", "eth0", "-o", "y"]), ["yaml"]);
    }

    #[test]
    fn the_cluster_is_found_among_the_words() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let found = global(&words(&[
            "-n",
            "shop",
            "nic",
            "--context=prod",
            "--kubeconfig",
            "/k",
            "",
        ]));
        assert_eq!(found.namespace.as_deref(), Some("shop"));
        assert_eq!(found.context.as_deref(), Some("prod"));
        assert_eq!(found.kubeconfig.as_deref(), Some(std::path::Path::new("/k")));
        assert_eq!(global(&words(&["nic", "-n"])).namespace, None);
    }

    #[test]
    fn the_scripts_are_there() {
        assert!(KUBECTL.starts_with("#!/bin/sh\n") && KUBECTL.contains("__complete -- \"$@\""));
    }
}
