//! Demos in a row beside compilers: how far the emulation can be trusted.

use std::{
    fmt::Write as _,
    fs,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use hybridnic_e2e::world::{Fault, World, repository};
use nix::sys::{
    prctl::set_pdeathsig,
    signal::{Signal, killpg},
};
use nix::unistd::Pid;

use crate::{NETWORK, is_emulations, show::Show, start, tour};

/// A number from the environment, if there is one.
pub fn number(name: &str) -> Option<u32> {
    std::env::var(name).ok()?.parse().ok()
}

/// What the demos came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    demos: u32,
    fine: u32,
    /// Machines that were reset or are gone.
    reset: u32,
    frozen: u32,
    /// Everything else: for us to explain.
    ours: u32,
}

impl Tally {
    fn add(&mut self, result: &Result<()>) {
        self.demos += 1;
        let Err(error) = result else {
            self.fine += 1;
            return;
        };
        match error.downcast_ref::<Fault>() {
            Some(Fault::Frozen(_)) => self.frozen += 1,
            _ if is_emulations(error) => self.reset += 1,
            _ => self.ours += 1,
        }
    }

    fn line(&self) -> String {
        let Self {
            demos,
            fine,
            reset,
            frozen,
            ours,
        } = self;
        format!(
            "demos: {demos}, fine: {fine}, machines reset: {reset}, guests frozen: {frozen}, other failures: {ours}"
        )
    }
}

/// Runs so many demos, in one world as long as it is intact, and fails if one of them did.
pub async fn count(show: &Show, demos: u32) -> Result<()> {
    let mut tally = Tally::default();
    let mut world: Option<World> = None;
    for number in 1..=demos {
        show.title(&format!("Demo {number} of {demos}"));
        let result = round(show, &mut world, &format!("demo{number}")).await;
        if let Err(error) = &result {
            if let Some(world) = world.take() {
                show.output(&format!("the logs are in {}", world.lab.dir().display()));
            }
            show.trouble(&format!("{error:#}"));
        }
        tally.add(&result);
        show.done(&tally.line());
    }
    ensure!(tally.fine == tally.demos, "{}", tally.line());
    Ok(())
}

async fn round(show: &Show, world: &mut Option<World>, name: &str) -> Result<()> {
    let world = match world {
        Some(world) => world,
        None => world.insert(start(show, name).await?),
    };
    tour(show, world).await?;
    world.clear(NETWORK).await
}

/// Compilers that run until this is dropped.
pub struct Compilers(Vec<Child>);

impl Compilers {
    /// Starts so many.
    pub fn start(number: u32) -> Result<Self> {
        let mut this = Self(Vec::new());
        if number == 0 {
            return Ok(this);
        }
        let source = source()?;
        for _ in 0..number {
            let mut command = Command::new("sh");
            let again = "while :; do cc -O2 -c -o /dev/null \"$0\" || exit 1; done";
            command
                .args(["-c", again])
                .arg(&source)
                .stdin(Stdio::null())
                .process_group(0);
            // SAFETY: prctl(2) is async-signal-safe and touches no memory of ours.
            unsafe {
                command.pre_exec(|| set_pdeathsig(Signal::SIGKILL).map_err(Into::into));
            }
            this.0.push(command.spawn().context("a compiler")?);
        }
        Ok(this)
    }
}

impl Drop for Compilers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            if let Ok(pid) = i32::try_from(child.id()) {
                // The shell and the compiler that it runs.
                let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let _ = child.wait();
        }
    }
}

/// Something to compile for a while.
fn source() -> Result<PathBuf> {
    let mut text = String::new();
    for n in 0..2000 {
        writeln!(
            text,
            "int f{n}(int *p, int n) {{ int s = {n}; for (int i = 0; i < n; i++) s += p[i] * (i ^ {n}) % 7; return s; }}"
        )?;
    }
    let dir = repository("target/demo");
    fs::create_dir_all(&dir)?;
    let path = dir.join("busy.c");
    fs::write(&path, text)?;
    Ok(fs::canonicalize(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_demo_counts_as_what_it_came_to() {
        let mut tally = Tally::default();
        tally.add(&Ok(()));
        tally.add(&Err(Fault::Reset(
            "the guest web-a on n1 reset itself".to_owned(),
        )
        .into()));
        tally.add(&Err(Fault::Frozen("a guest has frozen".to_owned()).into()));
        tally.add(&Err(Fault::Ours("a QEMU ended".to_owned()).into()));
        tally.add(&Err(anyhow::anyhow!("the migration has ended as Failed")));
        assert_eq!(
            tally.line(),
            "demos: 5, fine: 1, machines reset: 1, guests frozen: 1, other failures: 2"
        );
    }
}
