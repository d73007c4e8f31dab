//! Moves a VM to another host: `hybridnic-agent ctl migrate NIC… --to HOST`, on the host that has the VM.
//!
//! ```text
//!  ctl migrate ── NAME.order.json ──► agent of the source      NAME.migration.json: how far it is, before anybody is told
//!      │  ▲ ◄──── NAME.status.yaml ──
//!      ▼  │ ssh's standard input and output
//!  ctl serve ──── NAME.order.json ──► agent of the target
//!         ◄────── NAME.status.yaml ──
//! ```
//! | module | does | touches |
//! |---|---|---|
//! | `begin` | checks what can be known before anything is touched | the directory |
//! | [`plan`] | says what follows for both ends, by the decisions of an operator | nothing |
//! | [`reach`] | says what must be known of the target before anything is risked | nothing |
//! | [`endings`] | says what is left to be done when it is over | nothing |
//! | [`hand`] | sees and changes one end | its directory |
//! | [`serve`] | is the far end's hand | standard input and output |
//! | [`far`] | reaches it | a program, as `ssh` |
//! | [`end`] | ends a migration at one end, where the other is lost | the directory |
//! | [`drive`] | does what follows, until the migration is over | all of these |
//!
//! The driver may be killed at any moment: agents go on with what they were ordered, and the same command once more reads how far it is.

mod begin;
pub mod drive;
pub mod end;
pub mod endings;
pub mod far;

pub mod hand;
pub mod plan;
pub mod reach;
pub mod serve;

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum as _;
use hybridnic_api::v1alpha1::Decision;
use hybridnic_flight::migration::{encryption::Encryption, inputs::Deadlines};
use nix::fcntl::{Flock, FlockArg};

use super::ctl::LATE;
use crate::durable::{self, FILE_MODE, found};
use far::{Far, Way};
use hand::{Hand, Seen, SeenNic};
use plan::{Flight, Rules};

/// What is to be moved, and how.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// All NICs of the VM.
    #[arg(required = true)]
    nics: Vec<String>,
    /// The host to move it to, on which QEMU waits with -incoming defer. Not needed to go on with what has begun.
    #[arg(long)]
    to: Option<String>,
    /// The address to which QEMU sends the VM; without it, that of HOST.
    #[arg(long)]
    address: Option<IpAddr>,
    /// The QMP socket of the QEMU that waits there; without it, that of the VM here.
    #[arg(long)]
    to_socket: Option<PathBuf>,
    /// The agent's directory there; without it, that of here.
    #[arg(long)]
    to_dir: Option<PathBuf>,
    /// What runs a command on the other host; without it, ssh HOST.
    #[arg(long)]
    connect: Option<String>,
    /// The agent's program there; without it, hybridnic-agent.
    #[arg(long)]
    agent: Option<String>,
    /// Whether the VM is sent encrypted. Preferred: in plain where QEMU at an end cannot.
    #[arg(long, value_enum, default_value_t)]
    encryption: Encryption,
    /// Call off what has begun: the VM stays here.
    #[arg(long, conflicts_with = "decision")]
    cancel: bool,
    /// Decide where the VM goes on, where it was asked for that.
    #[arg(long, value_parser = decision, value_name = "ResumeSource|AbandonSource")]
    decision: Option<Decision>,
    /// Seconds that the target has to get ready.
    #[arg(long, default_value_t = 60)]
    prepare_deadline: u64,
    /// Seconds that the source has to take the VFs from the guest.
    #[arg(long, default_value_t = 120)]
    switch_deadline: u64,
    /// Seconds that the other host may be silent before this command ends. What has begun stays so, and the same command once more goes on.
    #[arg(long, default_value_t = 600)]
    patience: u64,
}

fn decision(text: &str) -> Result<Decision, String> {
    match text {
        "ResumeSource" => Ok(Decision::ResumeSource),
        "AbandonSource" => Ok(Decision::AbandonSource),
        _ => Err("ResumeSource or AbandonSource".to_owned()),
    }
}

/// How the name of a file ends in which it is kept how far a migration is.
const END: &str = ".migration.json";

/// Where it is kept how far a migration is.
fn kept(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}{END}"))
}

/// Keeps it; returns once it is on disk.
fn keep(dir: &Path, flight: Option<&Flight>, name: &str) -> anyhow::Result<()> {
    let path = kept(dir, name);
    let text = flight.map(serde_json::to_string_pretty).transpose()?;
    durable::set(dir, &path, text.as_deref().map(str::as_bytes)).with_context(|| path.display().to_string())
}

fn read(dir: &Path, name: &str) -> anyhow::Result<Option<Flight>> {
    let path = kept(dir, name);
    let text = found(fs::read_to_string(&path)).with_context(|| path.display().to_string())?;
    let flight = text.map(|text| serde_json::from_str(&text)).transpose();
    flight.with_context(|| format!("{} cannot be understood", path.display()))
}

/// Moves it, or goes on with that.
pub async fn run(dir: &Path, args: Args) -> anyhow::Result<ExitCode> {
    let nics: BTreeSet<String> = args.nics.iter().cloned().collect();
    let Some(name) = nics.first().cloned() else {
        bail!("no NIC is named");
    };
    match migrate(dir, args, nics, &name).await {
        // Where the VM is, an error does not say.
        Err(error) if has_begun(dir, &name) => {
            eprintln!(
                "{error:#}. What has begun stays as it is: say this command once more, without --to, to go on"
            );
            Ok(ExitCode::from(LATE))
        }
        done => done,
    }
}

/// Whether a migration is kept; if that is not known, one may be.
fn has_begun(dir: &Path, name: &str) -> bool {
    kept(dir, name).try_exists().unwrap_or(true)
}

async fn migrate(dir: &Path, args: Args, nics: BTreeSet<String>, name: &str) -> anyhow::Result<ExitCode> {
    let _alone = lock(dir, name)?;
    let here = Hand::new(dir, &nics);
    let source = here.look()?;
    let mut before = read(dir, name)?;
    if before
        .as_ref()
        .is_some_and(|before| is_stale(before, &args, &source))
    {
        keep(dir, None, name)?;
        before = None;
    }
    if let Some(before) = &before {
        let of: BTreeSet<String> = before.nics.keys().cloned().collect();
        ensure!(
            of == nics,
            "a migration of {} to {} has begun: name these NICs",
            of.iter().map(String::as_str).collect::<Vec<_>>().join(" "),
            before.target.node
        );
    }
    let (flight, connected) = if let Some(before) = before {
        ensure!(
            args.to.as_ref().is_none_or(|to| *to == before.host),
            "a migration of {name} to {} has begun: say the command without --to to go on with it, or with --cancel to call it off",
            before.host
        );
        let flight = again(before, &args)?;
        keep(dir, Some(&flight), name)?;
        (flight, None)
    } else {
        ensure!(
            !args.cancel && args.decision.is_none(),
            "no migration of {name} has begun"
        );
        let Some(to) = args.to.clone() else {
            bail!("no migration of {name} has begun: say where it is to go, by --to HOST");
        };
        let way = Way {
            connect: args.connect.clone().unwrap_or_else(|| format!("ssh {to}")),
            agent: args.agent.clone().unwrap_or_else(plan::agent),
        };
        let there = args.to_dir.clone().unwrap_or_else(|| dir.to_owned());
        let (far, target) = Far::connect(&way, &there, &nics)
            .await
            .with_context(|| format!("{to} does not answer, and nothing has begun"))?;
        let address = match args.address {
            Some(address) => address,
            None => resolve(&to).await?,
        };
        let mut flight = begin::checked(dir, &args, &source, &target, address)?;
        (flight.host, flight.dir) = (to, there);
        (flight.connect, flight.agent) = (way.connect, way.agent);
        (flight, Some((far, target)))
    };
    let way = Way {
        connect: flight.connect.clone(),
        agent: flight.agent.clone(),
    };
    let rules = Rules {
        deadlines: Deadlines {
            prepare: Duration::from_secs(args.prepare_deadline),
            switch: Duration::from_secs(args.switch_deadline),
        },
        encryption: Encryption::from_str(&flight.encryption, true).unwrap_or_default(),
    };
    let driver = drive::Driver {
        dir,
        rules,
        patience: Duration::from_secs(args.patience),
        here,
        there: drive::There::new(way, &flight, connected),
    };
    driver.run(flight).await
}

/// Whether it is over, nothing of it is left here, and another one is asked for: its target has never come back. The NICs are here.
fn is_stale(before: &Flight, args: &Args, source: &Seen) -> bool {
    let mut nics = before.nics.keys().map(|name| source.nics.get(name));
    let is_done = |nic: Option<&SeenNic>| {
        nic.is_some_and(|nic| {
            let ordered = nic.order.as_ref();
            nic.file.is_some() && ordered.is_none_or(|(order, _)| order.migration != before.uid)
        })
    };
    args.to.is_some() && before.status.phase.is_final() && nics.all(is_done)
}

/// Only one drives a migration. The file stays: who removes it would let two in.
fn lock(dir: &Path, name: &str) -> anyhow::Result<Flock<File>> {
    let path = dir.join(format!(".{name}.migration.lock"));
    let open = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        // Who can open it can lock it.
        .mode(FILE_MODE)
        .open(&path);
    let file = open.with_context(|| path.display().to_string())?;
    let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    locked.map_err(|(_, errno)| {
        anyhow::anyhow!("another `ctl migrate` drives the migration of {name}: {errno}")
    })
}

/// The driver starts again. How the target is reached may have changed, and is kept with it.
fn again(mut flight: Flight, args: &Args) -> anyhow::Result<Flight> {
    flight.session += 1;
    flight.connect = args.connect.clone().unwrap_or(flight.connect);
    flight.agent = args.agent.clone().unwrap_or(flight.agent);
    flight.dir = args.to_dir.clone().unwrap_or(flight.dir);
    if args.cancel {
        flight.cancelled = true;
    }
    if let Some(decision) = args.decision {
        ensure!(
            flight.status.undecided_since.is_some(),
            "a decision is taken once the migration asks for it, with the reason TargetSilent or NeedsDecision: before that the ends \
             tell where the VM runs"
        );
        ensure!(
            flight.decision.is_none_or(|before| before == decision),
            "a decision cannot be taken back"
        );
        flight.decision = Some(decision);
    }
    Ok(flight)
}

async fn resolve(host: &str) -> anyhow::Result<IpAddr> {
    let host = host.rsplit('@').next().unwrap_or(host);
    let found = tokio::net::lookup_host((host, 0)).await;
    let found = found.with_context(|| format!("the address of {host} is not known: say --address"))?;
    let mut addresses = found.map(|address| address.ip());
    let fits = addresses.find(|ip| !ip.is_loopback());
    fits.with_context(|| format!("{host} has no address to which a VM may be sent: say --address"))
}

#[cfg(test)]
mod tests;
