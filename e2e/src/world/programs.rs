//! The operator on this host and the agents on the nodes: started, killed, started again.

use std::{
    fs::{self, OpenOptions},
    path::PathBuf,
    process::{self, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use super::{World, repository};
use crate::{chart, lab::Process};

/// How long a program may take to die.
const DEATH: Duration = Duration::from_secs(20);

/// A program of ours that runs.
pub enum Program {
    /// On this host.
    Here(Child),
    /// On a node.
    OnNode(Process),
}

impl Program {
    /// Its process id, by the numbers of where it runs; `None` if it has ended.
    fn pid(&self) -> Option<u32> {
        match self {
            Self::Here(child) => child.id(),
            Self::OnNode(process) => Some(process.pid()),
        }
    }

    async fn kill(mut self) -> Result<()> {
        match &mut self {
            Self::Here(child) => child.kill().await?,
            Self::OnNode(process) => process.kill(DEATH).await?,
        }
        Ok(())
    }

    /// Asks a program of this host to end, and waits until it has.
    async fn end(mut self) -> Result<()> {
        if let Self::Here(child) = &mut self {
            let pid = child.id().context("it has ended already")?.try_into()?;
            signal::kill(Pid::from_raw(pid), Signal::SIGTERM)?;
            timeout(DEATH, child.wait()).await.context("it goes on")??;
        }
        Ok(())
    }
}

/// A program of this workspace, as cargo has built it beside the test that runs.
pub fn binary(name: &str) -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("HYBRIDNIC_BIN") {
        return Ok(PathBuf::from(dir).join(name));
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository("target"), PathBuf::from);
    let path = target.join("debug").join(name);
    anyhow::ensure!(
        path.is_file(),
        "{} is not built: run `make build`",
        path.display()
    );
    Ok(path)
}

impl World {
    /// Starts the operator on this host, as the chart's service account.
    pub fn start_operator(&mut self) -> Result<()> {
        let kubeconfig = self.lab.dir().join("operator.kubeconfig");
        self.operator_login.write(&kubeconfig)?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.lab.dir().join("operator.log"))?;
        let mut command = Command::new(binary("hybridnic-operator")?);
        command
            .env("KUBECONFIG", &kubeconfig)
            .env("HYBRIDNIC_LOG", "info,hybridnic_operator=debug")
            .args(["--lease-namespace", chart::NAMESPACE])
            .args(&self.options.operator_args)
            .args(self.trace_args())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        // SAFETY: prctl(2) is async-signal-safe and touches no memory of ours.
        unsafe {
            command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into));
        }
        self.operator = Some(Program::Here(command.spawn().context("the operator")?));
        Ok(())
    }

    fn trace_args(&self) -> Vec<String> {
        let collector = self.collector.iter();
        collector
            .flat_map(|collector| ["--otlp-endpoint".to_owned(), collector.endpoint()])
            .collect()
    }

    /// kill -9.
    pub async fn kill_operator(&mut self) -> Result<()> {
        match self.operator.take() {
            Some(program) => program.kill().await,
            None => Ok(()),
        }
    }

    /// Ends the operator as a kubelet does, so that it gives its lease back, and starts it again, with these arguments added.
    pub async fn restart_operator(&mut self, arguments: &[&str]) -> Result<()> {
        if let Some(program) = self.operator.take() {
            program.end().await?;
        }
        self.options.operator_args = arguments.iter().map(ToString::to_string).collect();
        self.start_operator()
    }

    /// The operator's process id on this host; `None` while it is dead.
    pub fn operator_pid(&self) -> Option<u32> {
        self.operator.as_ref().and_then(Program::pid)
    }

    /// The process id of the agent of node `number`, in the node's numbers; `None` while it is dead.
    pub fn agent_pid(&self, number: usize) -> Option<u32> {
        self.agents[number - 1].as_ref().and_then(Program::pid)
    }

    /// Starts the agent of node `number`, as the chart's service account with a token that names the node.
    pub async fn start_agent(&mut self, number: usize) -> Result<()> {
        let node = self.node(number).clone();
        let bound = Some(("Node", node.name()));
        let login = self
            .control_plane
            .login_service_account(chart::NAMESPACE, chart::AGENT, bound)
            .await?;
        let kubeconfig = login.at(self.lab.site().host().into()).kubeconfig();
        node.put("/run/agent.kubeconfig", kubeconfig.as_bytes(), 0o600)
            .await?;
        let program = node.install(&stripped("hybridnic-agent", &self.lab.dir().join("bin"))?)?;
        let mut argv: Vec<&str> = vec![
            &program,
            "--node-name",
            node.name(),
            "--journal",
            "/run/hybridnic/journal",
        ];
        argv.extend(self.options.agent_args.iter().map(String::as_str));
        let traces = self.trace_args();
        argv.extend(traces.iter().map(String::as_str));
        let env = [
            ("KUBECONFIG", "/run/agent.kubeconfig"),
            ("HYBRIDNIC_LOG", "info,hybridnic_agent=debug"),
        ];
        let process = node.spawn(&argv, &env, "agent").await?;
        self.agents[number - 1] = Some(Program::OnNode(process));
        Ok(())
    }

    /// kill -9.
    pub async fn kill_agent(&mut self, number: usize) -> Result<()> {
        match self.agents[number - 1].take() {
            Some(program) => program.kill().await,
            None => Ok(()),
        }
    }

    /// kill -9, and another one at once.
    pub async fn restart_agent(&mut self, number: usize) -> Result<()> {
        self.kill_agent(number).await?;
        self.start_agent(number).await
    }
}

/// A copy of a program of this workspace without debug information: it travels into each node.
pub fn stripped(name: &str, dir: &std::path::Path) -> Result<PathBuf> {
    let to = dir.join(name);
    if !to.is_file() {
        fs::create_dir_all(dir)?;
        let status = process::Command::new("strip")
            .arg("-o")
            .arg(&to)
            .arg(binary(name)?)
            .status()?;
        anyhow::ensure!(status.success(), "cannot strip {name}");
    }
    Ok(to)
}
