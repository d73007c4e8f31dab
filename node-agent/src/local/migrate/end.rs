//! Ends a migration at this end alone: `hybridnic-agent ctl end-migration NIC…`, where the host that drives it is lost. Its order would
//! keep the NIC for ever, and with it the socket of its VM.
//!
//! This end does not guess where the VM is: its QEMU's own word proves it, or the administrator says it.

use std::{fs, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail, ensure};
use hybridnic_api::{
    names::GROUP,
    v1alpha1::{Aside, MigrationState, MigrationStep, WantedPath},
};
use serde_json::json;
use tokio::time::timeout;

use super::{
    super::{
        ctl::LATE,
        dir::{Change, Dir},
        file,
        order::{Attached, Order, Says},
    },
    END,
    endings::is_taken,
    hand::{Command, Hand, SeenNic},
    plan::Flight,
};

/// Which migration is ended.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The NICs that it has.
    #[arg(required = true)]
    nics: Vec<String>,
    /// Where the VM is, where QEMU here has not said it. Be sure: what is here of a VM that is elsewhere is taken away, and a NIC that is
    /// live at two places breaks both.
    #[arg(long, value_enum)]
    vm: Option<Whereabouts>,
    /// Seconds to wait for the agent.
    #[arg(long, default_value_t = 120)]
    timeout: u64,
}

/// Where the VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Whereabouts {
    /// On this host.
    Here,
    /// Not on this host.
    Elsewhere,
}

/// Ends it, and waits until the agent has taken that in.
pub async fn run(dir: &Path, args: Args) -> anyhow::Result<ExitCode> {
    let hand = Hand::new(dir, &args.nics.iter().cloned().collect());
    let watched = Dir::open(dir).with_context(|| format!("the directory {}", dir.display()))?;
    let mut ended = Vec::new();
    for (name, nic) in hand.look()?.nics {
        let Some((order, _)) = &nic.order else {
            bail!("no migration has the NIC {name}");
        };
        is_driven_here(dir, &order.migration)?;
        let place = whereabouts(order, &nic, args.vm).with_context(|| name.clone())?;
        for command in commands(&name, &nic, place)? {
            hand.apply(&command).with_context(|| name.clone())?;
        }
        ended.push((name, place));
    }
    let taken = async {
        loop {
            let seen = hand.look()?;
            let mut waits = false;
            for (name, place) in &ended {
                let nic = &seen.nics[name];
                let Some((order, _)) = &nic.order else { continue };
                if is_taken(nic, *place == Whereabouts::Here) {
                    hand.apply(&Command::Forget {
                        nic: name.clone(),
                        migration: order.migration.clone(),
                        session: order.session,
                    })?;
                } else {
                    waits = true;
                }
            }
            if !waits {
                return Ok(ExitCode::SUCCESS);
            }
            ensure!(
                watched.changed().await != Change::Lost,
                "the directory {} has gone",
                dir.display()
            );
        }
    };
    if let Ok(done) = timeout(Duration::from_secs(args.timeout), taken).await {
        return done;
    }
    eprintln!(
        "the agent has not taken it in within {} s: it goes on, and the same command once more looks after it",
        args.timeout
    );
    Ok(ExitCode::from(LATE))
}

/// A migration that this host drives is ended by its driver, which asks both ends.
fn is_driven_here(dir: &Path, migration: &str) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir)? {
        let file = entry?.file_name();
        let Some(name) = file.to_str().and_then(|file| file.strip_suffix(END)) else {
            continue;
        };
        let flight: Option<Flight> = super::read(dir, name)?;
        if let Some(flight) = flight.filter(|flight| flight.uid == migration) {
            bail!(
                "this host drives the migration: say {}, with --cancel or --decision if need be",
                flight.command(dir)
            );
        }
    }
    Ok(())
}

/// Where the VM is, by QEMU's word here or, without one, by the administrator's.
fn whereabouts(order: &Order, nic: &SeenNic, said: Option<Whereabouts>) -> anyhow::Result<Whereabouts> {
    let be = match &order.says {
        Says::Be(be) => be,
        // It has been ended already: by its file.
        Says::Over if nic.file.is_some() => return Ok(Whereabouts::Here),
        Says::Over => return Ok(Whereabouts::Elsewhere),
    };
    let step = be.spec.migration.as_ref().map(|order| order.step);
    let attached = nic.attached.as_ref();
    let attached = attached.filter(|attached| attached.spec.nic.uid == be.spec.nic.uid);
    let status = attached.and_then(|attached| attached.status.as_ref());
    let report = status.and_then(|status| status.migration.as_ref());
    let state = report
        .filter(|report| report.uid == order.migration)
        .map(|report| report.state);
    let proven = match (step, state) {
        (Some(MigrationStep::Listen | MigrationStep::GiveUp), Some(state)) => match state {
            MigrationState::Completed => Some(Whereabouts::Here),
            MigrationState::Lost | MigrationState::Failed | MigrationState::Ended => {
                Some(Whereabouts::Elsewhere)
            }
            _ => None,
        },
        // What has left from here only the other end knows.
        _ => None,
    };
    match (proven, said) {
        (Some(proven), Some(said)) if proven != said => {
            bail!("QEMU here says otherwise: leave --vm out")
        }
        (Some(place), _) | (None, Some(place)) => Ok(place),
        (None, None) => bail!(
            "QEMU here has not said whether it has the VM. If you are sure, say --vm here or --vm elsewhere; end the QEMU that does not \
             have it first"
        ),
    }
}

/// What makes the NIC's file right for that, and the order end.
fn commands(name: &str, nic: &SeenNic, place: Whereabouts) -> anyhow::Result<Vec<Command>> {
    let Some((order, _)) = &nic.order else {
        return Ok(Vec::new());
    };
    let mut commands = Vec::new();
    if order.says == Says::Over {
        return Ok(commands);
    }
    let file = |text| Command::File {
        nic: name.to_owned(),
        text,
        migration: order.migration.clone(),
        session: order.session,
    };
    match (place, &nic.file) {
        (Whereabouts::Here, None) => {
            let attached = nic.attached.as_ref();
            let attached =
                attached.context("the agent says nothing of the NIC, of which a file could be made")?;
            commands.push(file(Some(text(name, attached)?)));
        }
        (Whereabouts::Elsewhere, Some(_)) => commands.push(file(None)),
        (Whereabouts::Here, Some(_)) | (Whereabouts::Elsewhere, None) => {}
    }
    commands.push(Command::Order {
        nic: name.to_owned(),
        order: Box::new(Order {
            serial: order.serial + 1,
            says: Says::Over,
            ..order.clone()
        }),
    });
    Ok(commands)
}

/// The file that asks for a NIC as it is.
fn text(name: &str, attached: &Attached) -> anyhow::Result<String> {
    let spec = &attached.spec;
    let mut document = json!({
        "apiVersion": format!("{GROUP}/v1alpha1"),
        "kind": "VmHybridNic",
        "metadata": { "name": name },
        "spec": {
            "network": spec.network,
            "vm": { "qemu": { "socket": attached.socket } },
            "mac": spec.mac,
            "standby": spec.standby,
            "noFreeVf": spec.no_free_vf,
            "pairing": spec.pairing,
        },
    });
    if let Some(id) = &spec.port_instance_id {
        document["spec"]["portInstanceId"] = json!(id);
    }
    if let Some(aside) = spec.aside {
        document["spec"]["path"] = json!(WantedPath::Standby);
        if aside == Aside::KeepVf {
            document["spec"]["keepVf"] = json!(true);
        }
    }
    let text = serde_saphyr::to_string(&document)?;
    match file::asked(name, &text) {
        Ok(_) => Ok(text),
        Err(why) => bail!("{}: {why}", file::asking(name)),
    }
}

#[cfg(test)]
#[path = "end_tests.rs"]
mod tests;
