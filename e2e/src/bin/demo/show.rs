//! What a person sees.

use std::{
    io::{IsTerminal as _, stdout},
    time::Instant,
};

use futures::TryStreamExt as _;
use hybridnic_api::{conditions, v1alpha1::VmHybridNic};
use hybridnic_e2e::world::NAMESPACE;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use tokio_util::task::AbortOnDropHandle;

use crate::report::Migration;

/// Prints with the time since the start; in colour on a terminal only.
#[derive(Clone, Copy)]
pub struct Show {
    start: Instant,
    colour: bool,
}

impl Show {
    /// Starts the clock.
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            colour: stdout().is_terminal(),
        }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn line(self, mark: &str, text: &str) {
        println!(
            "{} {mark} {text}",
            self.paint("2", &format!("{:6.1} s", self.start.elapsed().as_secs_f64()))
        );
    }

    /// A part begins.
    pub fn title(self, text: &str) {
        println!("\n{}", self.paint("1", text));
    }

    /// Something is being done.
    pub fn step(self, text: &str) {
        self.line(&self.paint("36", "…"), text);
    }

    /// Something is done.
    pub fn done(self, text: &str) {
        self.line(&self.paint("32", "✓"), text);
    }

    /// A command as a user would type it.
    pub fn command(self, text: &str) {
        self.line(&self.paint("33", "$"), text);
    }

    /// What a command printed.
    pub fn output(self, text: &str) {
        for line in text.lines() {
            println!("{} {line}", self.paint("2", "         │"));
        }
    }

    /// Something went wrong, and it is tried again.
    pub fn trouble(self, text: &str) {
        for (number, line) in text.lines().enumerate() {
            if number == 0 {
                self.line(&self.paint("33", "!"), line);
            } else {
                self.output(line);
            }
        }
    }

    /// It did not work.
    pub fn failure(self, error: &anyhow::Error) {
        self.line(&self.paint("31", "✗"), &format!("{error:#}"));
    }

    /// Prints a NIC whenever it changes, as `kubectl get vhn -w` does.
    pub fn watch(self, client: Client, nic: &str) -> AbortOnDropHandle<()> {
        let api: Api<VmHybridNic> = Api::namespaced(client, NAMESPACE);
        let config = watcher::Config::default().fields(&format!("metadata.name={nic}"));
        AbortOnDropHandle::new(tokio::spawn(async move {
            let stream = watcher(api, config).default_backoff().applied_objects();
            futures::pin_mut!(stream);
            let mut last = String::new();
            loop {
                let Ok(Some(nic)) = stream.try_next().await else {
                    continue;
                };
                let row = row(&nic);
                if row != last {
                    self.line(&self.paint("35", "vhn"), &row);
                    last = row;
                }
            }
        }))
    }

    /// A migration as a timeline.
    pub fn timeline(self, migration: &Migration) {
        let total = migration.phases.iter().map(|p| p.ms).sum::<i64>().max(1);
        self.done(&format!(
            "moved from {} ({} on {}) to {} ({} on {})",
            migration.from,
            migration.vf_before.pci,
            migration.vf_before.pf,
            migration.to,
            migration.vf_after.pci,
            migration.vf_after.pf,
        ));
        println!();
        for phase in &migration.phases {
            let width = usize::try_from((phase.ms * 40 / total).clamp(1, 40)).unwrap_or(1);
            let bar = self.paint(if phase.lost == 0 { "32" } else { "33" }, &"━".repeat(width));
            let lost = if phase.lost == 0 {
                "no packet lost".into()
            } else {
                format!("{} packets lost", phase.lost)
            };
            println!(
                "           {:<20} {:>7} ms  {bar}{} {lost}",
                phase.name,
                phase.ms,
                " ".repeat(40 - width)
            );
        }
        println!(
            "\n           {}",
            migration.packets.beside(migration.qemu_downtime_ms)
        );
        if let Some(unplug) = &migration.unplug {
            println!("           {}", unplug.line());
        }
        println!();
    }
}

fn row(nic: &VmHybridNic) -> String {
    let Some(status) = &nic.status else {
        return "new".into();
    };
    let why =
        conditions::find(&status.conditions, conditions::types::FAST_PATH).map_or("", |c| c.reason.as_str());
    let (pf, vf) = status
        .vf
        .as_ref()
        .map_or(("-", "-"), |v| (v.pf.as_str(), v.pci_address.as_str()));
    format!(
        "{:<10} path {:<8} {:<16} node {:<3} {pf:<5} {vf}",
        format!("{:?}", status.phase),
        format!("{:?}", status.path),
        why,
        status.node_name.as_deref().unwrap_or("-"),
    )
}
