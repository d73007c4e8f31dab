//! `hybridnic-agent ctl`: shows a person what files ask for and what becomes of it, and writes files. It speaks to no agent: the
//! agent sees the files, and says beside them how things are.
//!
//! It ends with 0 when it is done, 1 when the agent refuses, or something else is wrong, and 2 when it is not done in time; the agent goes on
//! then.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use clap::Subcommand;
use hybridnic_api::{
    conditions::{self, types},
    names::GROUP,
    v1alpha1::{NicPhase, StandbyKind, VmHybridNicStatus, WantedPath},
};
use hybridnic_console::{drain::Which, print};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    dir::{Change, Dir},
    drain,
    file::{self, AskedNic},
    migrate::{self, serve::serve},
    show::{line, nics, node, said, status, table},
    top,
};
use crate::durable::{self, found};

/// The agent's directory, where nobody says another.
pub const DIR: &str = "/etc/hybridnic";
/// Not done in time.
pub const LATE: u8 = 2;

/// Show and change what an agent without a cluster has.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The agent's directory.
    #[arg(long, env = "HYBRIDNIC_DIR", default_value = DIR, global = true)]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show all NICs, or all that is known of one.
    Nic {
        /// Its name.
        name: Option<String>,
    },
    /// Show the host's PFs and VFs, and the networks' pools.
    Node,
    /// Show networks, the host and its NICs, with what goes through them, and draw again whenever something changes.
    ///
    /// Where standard output is no terminal, it prints once.
    Top {
        /// Print once and end.
        #[arg(long)]
        once: bool,
    },
    /// Write the file of a NIC, and wait until the NIC is on its VF.
    Attach {
        /// The NIC's name.
        name: String,
        /// The network that it is on.
        #[arg(long)]
        network: String,
        /// The QMP socket of its VM's QEMU.
        #[arg(long)]
        socket: PathBuf,
        /// Its MAC address; without it one is made.
        #[arg(long)]
        mac: Option<String>,
        /// What carries the traffic while the VF is out; with none nothing does.
        #[arg(long, value_enum, default_value = "macvtap")]
        standby: Standby,
        #[command(flatten)]
        wait: Wait,
    },
    /// Take a NIC's VF out of the guest and keep it out, and wait until the standby carries the traffic.
    Standby {
        /// Its name.
        name: String,
        /// Keep the VF reserved for the NIC; without it, it goes back to the pool.
        #[arg(long)]
        keep_vf: bool,
        /// Also a NIC that has no standby: the VM has no network by it until `fast`.
        #[arg(long)]
        cut: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Bring a NIC back to a VF, and wait until that carries the traffic.
    Fast {
        /// Its name.
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Remove the file of a NIC, and wait until nothing of the NIC is left on the host.
    Detach {
        /// The NIC's name.
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Drain a PF of VFs, so that its firmware can be written or its number of VFs changed while VMs run, and wait until no NIC holds one.
    ///
    /// NICs leave its VFs, for VFs of other PFs where some are free and else for their standby, and none gets one until `undrain-pf`. Firmware
    /// belongs to a card: drain each PF of it.
    #[command(override_usage = "hybridnic-agent ctl drain-pf [OPTIONS] <PF|--all|--network <NETWORK>>")]
    DrainPf {
        #[command(flatten)]
        which: Which,
        /// Watch it to its end, which it does without this, too; `--timeout 0` does not.
        #[arg(short, long)]
        watch: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Let NICs have the VFs again; they come back by themselves.
    #[command(override_usage = "hybridnic-agent ctl undrain-pf [OPTIONS] <PF|--all|--network <NETWORK>>")]
    UndrainPf {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        wait: Wait,
    },
    /// Move a VM with all its NICs to another host, and wait until it runs there; or go on with that.
    Migrate(Box<migrate::Args>),
    /// End, on this host alone, the migration that has these NICs: the host that drives it is lost.
    EndMigration(migrate::end::Args),
    /// What `migrate` on another host runs here: says on standard output what is seen of NICs, and does what it is told on standard input.
    Serve {
        /// The NICs.
        #[arg(required = true)]
        nics: Vec<String>,
    },
}

/// What carries a NIC's traffic while its VF is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Standby {
    /// A virtio-net device on a macvtap.
    Macvtap,
    /// Nothing.
    None,
}

/// How long a command waits.
#[derive(Debug, clap::Args)]
pub struct Wait {
    /// Seconds to wait; 0 does not wait.
    #[arg(long, default_value_t = 120)]
    pub(super) timeout: u64,
}

/// Does what the command line says.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let dir = &args.dir;
    match args.command {
        Command::Nic { name: None } => {
            print::text(&table(&nics(dir)?))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Nic { name: Some(name) } => {
            print::text(&all_of(dir, &name)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Node => {
            print::text(&node(dir)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Top { once } => top::run(dir, once).await,
        Command::DrainPf { which, wait, .. } => drain::run(dir, &which, true, &wait).await,
        Command::UndrainPf { which, wait } => drain::run(dir, &which, false, &wait).await,
        Command::Attach {
            name,
            network,
            socket,
            mac,
            standby,
            wait,
        } => {
            let text = nic_text(&name, &network, &socket, mac.as_deref(), standby)?;
            let watched = watch(dir)?;
            make(dir, &name, &text)?;
            let generation = file::generation(&text);
            let until = |status: Option<&VmHybridNicStatus>| attached(status, generation);
            follow(&watched, dir, &name, &wait, until).await
        }
        Command::Standby {
            name,
            keep_vf,
            cut,
            wait,
        } => {
            let watched = watch(dir)?;
            let generation = set_path(dir, &name, WantedPath::Standby, keep_vf, cut)?;
            let until = |status: Option<&VmHybridNicStatus>| aside(status, generation, keep_vf);
            follow(&watched, dir, &name, &wait, until).await
        }
        Command::Fast { name, wait } => {
            let watched = watch(dir)?;
            let generation = set_path(dir, &name, WantedPath::Auto, false, false)?;
            let until = |status: Option<&VmHybridNicStatus>| attached(status, generation);
            follow(&watched, dir, &name, &wait, until).await
        }
        Command::Detach { name, wait } => {
            let watched = watch(dir)?;
            // Of what an agent has just begun with, nothing is said yet either: only what was said and is said no more has left.
            let heard = !dir.join(file::asking(&name)).exists()
                || reach(&watched, dir, &name, &wait, said_of).await?;
            let removed = remove(dir, &name)?;
            ensure!(
                removed || dir.join(file::status(&name)).exists(),
                "there is no NIC {name} in {}",
                dir.display()
            );
            if !heard {
                eprintln!("{name}: its file is removed; no agent has said anything of it");
                return Ok(ExitCode::from(LATE));
            }
            follow(&watched, dir, &name, &wait, gone).await
        }
        Command::Migrate(args) => migrate::run(dir, *args).await,
        Command::EndMigration(args) => migrate::end::run(dir, args).await,
        Command::Serve { nics } => {
            serve(dir, &nics.into_iter().collect()).await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// All that is said of a NIC.
fn all_of(dir: &Path, name: &str) -> anyhow::Result<String> {
    let path = dir.join(file::status(name));
    let text = found(fs::read_to_string(&path)).with_context(|| path.display().to_string())?;
    let why = if dir.join(file::asking(name)).exists() {
        "no agent has said anything of it: does `hybridnic-agent local` run, with this directory?"
    } else {
        "there is no such NIC; `hybridnic-agent ctl nic` shows those there are"
    };
    text.with_context(|| format!("{name}: {why} ({})", dir.display()))
}

/// Watches the directory.
pub(super) fn watch(dir: &Path) -> anyhow::Result<Dir> {
    Dir::open(dir).with_context(|| format!("the directory {}", dir.display()))
}

/// The file of a NIC, which the agent is sure to understand.
fn nic_text(
    name: &str,
    network: &str,
    socket: &Path,
    mac: Option<&str>,
    standby: Standby,
) -> anyhow::Result<String> {
    let mut document = json!({
        "apiVersion": format!("{GROUP}/v1alpha1"),
        "kind": "VmHybridNic",
        "metadata": { "name": name },
        "spec": { "network": network, "vm": { "qemu": { "socket": socket } } },
    });
    if let Some(mac) = mac {
        document["spec"]["mac"] = json!(mac);
    }
    if standby == Standby::None {
        document["spec"]["standby"] = json!(StandbyKind::None);
    }
    let text = serde_saphyr::to_string(&document)?;
    match file::parse(name, &text, None) {
        Ok(_) => Ok(text),
        Err(why) => bail!("{why}"),
    }
}

/// Makes a file that was not there, whole.
fn make(dir: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let _lock = durable::lock(dir)?;
    let path = dir.join(file::asking(name));
    match found(fs::read_to_string(&path)).with_context(|| path.display().to_string())? {
        // The same command once more.
        Some(there) if there == text => return Ok(()),
        Some(_) => bail!(
            "{} is there already, and asks for something else: change it there, or take it away first, by `ctl detach {name}`",
            path.display()
        ),
        None => {}
    }
    durable::set(dir, &path, Some(text.as_bytes())).with_context(|| path.display().to_string())
}

/// A NIC's file, and what it asks for.
fn asked(dir: &Path, name: &str) -> anyhow::Result<(String, AskedNic)> {
    let file = dir.join(file::asking(name));
    let text =
        fs::read_to_string(&file).with_context(|| format!("there is no NIC {name}: {}", file.display()))?;
    match file::asked(name, &text) {
        Ok(asked) => Ok((text, *asked)),
        Err(why) => bail!("{}: {why}", file.display()),
    }
}

/// Says in a NIC's file which path it is to take; gives the version that the file has then. `cut`: also where the VM has no network by it
/// then.
fn set_path(dir: &Path, name: &str, path: WantedPath, keep_vf: bool, cut: bool) -> anyhow::Result<i64> {
    // What another command writes between the look and the write would be lost.
    let _lock = durable::lock(dir)?;
    let file = dir.join(file::asking(name));
    let (text, asked) = asked(dir, name)?;
    let alone = asked.spec.standby == StandbyKind::None;
    ensure!(
        cut || !alone || path != WantedPath::Standby,
        "{name} has no standby: without its VF the VM has no network by it. If that is meant, say --cut"
    );
    if (asked.spec.path, asked.spec.keep_vf) == (path, keep_vf) {
        return Ok(file::generation(&text));
    }
    let mut document: Value = serde_saphyr::from_str(&text)?;
    let spec = document.get_mut("spec").and_then(Value::as_object_mut);
    let spec = spec.with_context(|| format!("{} has no spec", file.display()))?;
    spec.insert("path".to_owned(), json!(path));
    if keep_vf {
        spec.insert("keepVf".to_owned(), json!(true));
    } else {
        spec.remove("keepVf");
    }
    let text = serde_saphyr::to_string(&document)?;
    durable::set(dir, &file, Some(text.as_bytes())).with_context(|| file.display().to_string())?;
    Ok(file::generation(&text))
}

/// Whether there was one. A file that nobody understands is a NIC's, as the agent says of it.
fn remove(dir: &Path, name: &str) -> anyhow::Result<bool> {
    ensure!(name != file::NODE, "{name} is the host's own name, and no NIC");
    let _lock = durable::lock(dir)?;
    let path = dir.join(file::asking(name));
    let read = found(fs::read_to_string(&path)).with_context(|| path.display().to_string())?;
    let Some(text) = read else { return Ok(false) };
    let document: Option<Value> = serde_saphyr::from_str(&text).ok();
    let network = "HybridNetwork";
    let is_network = document.is_some_and(|document| document["kind"] == network)
        || said(dir, name)?.is_some_and(|said| said["kind"] == network);
    ensure!(
        !is_network,
        "{name} is a network; to remove it, delete {}",
        path.display()
    );
    durable::set(dir, &path, None).with_context(|| path.display().to_string())?;
    Ok(true)
}

/// What a wait has come to.
#[derive(Debug, PartialEq, Eq)]
enum Reached {
    Yes,
    NotYet,
    Never(String),
}

/// Whether a NIC whose file has this version is on its VF.
fn attached(status: Option<&VmHybridNicStatus>, generation: i64) -> Reached {
    reached(status, generation, |status| status.phase == NicPhase::FastPath)
}

/// Whether a NIC whose file has this version is off its VF, and that is where it is to be.
fn aside(status: Option<&VmHybridNicStatus>, generation: i64, keep_vf: bool) -> Reached {
    reached(status, generation, |status| {
        matches!(status.phase, NicPhase::Standby | NicPhase::Aside) && keep_vf == status.vf.is_some()
    })
}

/// Whether a NIC is so, and that is said of this version of its file.
fn reached(
    status: Option<&VmHybridNicStatus>,
    generation: i64,
    is: impl Fn(&VmHybridNicStatus) -> bool,
) -> Reached {
    let Some(status) = status.filter(|status| status.observed_generation == Some(generation)) else {
        return Reached::NotYet;
    };
    let accepted = conditions::find(&status.conditions, types::ACCEPTED);
    if let Some(refused) = accepted.filter(|accepted| accepted.status == "False") {
        return Reached::Never(format!("{}: {}", refused.reason, refused.message));
    }
    if is(status) { Reached::Yes } else { Reached::NotYet }
}

/// Whether an agent knows of a NIC.
fn said_of(status: Option<&VmHybridNicStatus>) -> Reached {
    if status.is_some() {
        Reached::Yes
    } else {
        Reached::NotYet
    }
}

/// Whether a NIC has left: nothing is said of it any more.
fn gone(status: Option<&VmHybridNicStatus>) -> Reached {
    if status.is_none() {
        Reached::Yes
    } else {
        Reached::NotYet
    }
}

/// Tells how a NIC is each time that this changes, until it is as it should be.
async fn reach(
    watched: &Dir,
    dir: &Path,
    name: &str,
    wait: &Wait,
    until: impl Fn(Option<&VmHybridNicStatus>) -> Reached,
) -> anyhow::Result<bool> {
    let mut said = String::new();
    let end = async {
        loop {
            let status: Option<VmHybridNicStatus> = status(dir, name)?;
            let now = line(name, status.as_ref());
            if now != said {
                eprintln!("{now}");
                said = now;
            }
            match until(status.as_ref()) {
                Reached::Yes => return Ok(true),
                Reached::Never(why) => bail!("{why}. The file stays"),
                Reached::NotYet => {}
            }
            ensure!(
                watched.changed().await != Change::Lost,
                "the directory {} has gone",
                dir.display()
            );
        }
    };
    if wait.timeout == 0 {
        return Ok(true);
    }
    let ended = timeout(Duration::from_secs(wait.timeout), end).await;
    ended.unwrap_or(Ok(false))
}

/// Waits for it, as [`reach`] does, and says how the command ends.
async fn follow(
    watched: &Dir,
    dir: &Path,
    name: &str,
    wait: &Wait,
    until: impl Fn(Option<&VmHybridNicStatus>) -> Reached,
) -> anyhow::Result<ExitCode> {
    if reach(watched, dir, name, wait, until).await? {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "{name}: not done within {} s; the agent, if one runs, goes on",
        wait.timeout
    );
    Ok(ExitCode::from(LATE))
}

#[cfg(test)]
#[path = "ctl_tests.rs"]
mod tests;
