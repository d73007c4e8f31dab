//! `kubectl hybridnic`: what an administrator looks at.
//!
//! Each command fetches, decides and draws separately: what is drawn is a pure function of what was fetched, the terminal's
//! width and the time.

mod aside;
mod clean;
mod cli;
mod complete;
mod connect;
mod doctor;
mod drain;
mod migrate;
mod nic;
mod node;
mod print;
mod time;
mod timeline;
mod top;

use std::process::ExitCode;

use clap::Parser as _;

use cli::{Cli, Command};
use connect::Cluster;
use hybridnic_api::v1alpha1::Aside;
use hybridnic_console::{canvas, style};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            // If this fails there is no reader left.
            let _ = print::error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    hybridnic_process::tls::install_provider();
    match &cli.command {
        Command::Completion { shell } => complete::script(*shell).map(|()| ExitCode::SUCCESS),
        Command::Complete { words } => complete::answer(words).map(|()| ExitCode::SUCCESS),
        _ => runtime()?.block_on(ask(cli)),
    }
}

/// One thread: all that it does is wait.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

async fn ask(cli: Cli) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::find(&cli.global).await?;
    let output = cli.global.output;
    match cli.command {
        Command::Top { once, all_namespaces } => top::run(&cluster, all_namespaces, once, output).await,
        Command::Nic { name } => nic::run(&cluster, &name, output).await,
        Command::Node { name } => node::run(&cluster, &name, output).await,
        Command::Migrate { vm, to, watch } => migrate::run(&cluster, &vm, to.as_deref(), watch, output).await,
        Command::Standby {
            name,
            keep_vf,
            cut,
            watch,
        } => {
            let aside = if keep_vf { Aside::KeepVf } else { Aside::GiveVfBack };
            aside::run(
                &cluster,
                &name,
                aside::Word::Standby { aside, cut },
                watch,
                output,
            )
            .await
        }
        Command::Fast { name, watch } => aside::run(&cluster, &name, aside::Word::Fast, watch, output).await,
        Command::DrainPf { node, which, watch } => {
            drain::run(&cluster, &node, &which, drain::Word::Drain { watch }, output).await
        }
        Command::UndrainPf { node, which } => {
            drain::run(&cluster, &node, &which, drain::Word::Undrain, output).await
        }
        Command::Doctor => Box::pin(doctor::run(&cluster, output)).await,
        Command::Completion { .. } | Command::Complete { .. } => Ok(ExitCode::SUCCESS),
    }
}
