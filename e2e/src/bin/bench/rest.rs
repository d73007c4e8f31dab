//! How much of a processor the programs use while they only answer a kubelet: on this machine's own, because in the lab
//! processors are emulated, and a wake-up costs many times what it does on a real one.
//!
//! There are no VMs, and only the cards that this machine has.

use std::{fs, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures::future::select_all;
use http_body_util::Empty;
use hybridnic_e2e::{
    chart,
    controlplane::{ControlPlane, Options, login::Login},
    usage::Usage,
    world::{binary, repository},
};
use hyper::{StatusCode, body::Bytes};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{
    process::{Child, Command},
    time::{interval, sleep, timeout},
};

use crate::{PATIENCE, Row, say};

/// Name of the agent's node.
const NODE: &str = "bench";
/// The chart's periods, of liveness and readiness.
const PROBES: [(&str, Duration); 2] = [
    ("livez", Duration::from_secs(10)),
    ("readyz", Duration::from_secs(5)),
];
/// After which nothing of the start is left to do.
const SETTLED: Duration = Duration::from_secs(20);
/// How long is looked.
const REST: Duration = Duration::from_mins(2);

/// A program and where it answers probes.
struct Program {
    what: &'static str,
    child: Child,
    address: String,
}

/// Starts a control plane, two operators and an agent, and lets them rest.
pub async fn measure() -> Result<Vec<Row>> {
    let dir = repository("target/bench-rest");
    let _ = fs::remove_dir_all(&dir);
    say("starting a control plane, two operators and an agent");
    let control_plane = ControlPlane::start(Options::new(&dir).with_controllers()).await?;
    chart::install_without_pods(&control_plane).await?;
    let node = dir.join("node.yaml");
    let labels = format!("{{kubernetes.io/hostname: {NODE}, kubernetes.io/os: linux}}");
    fs::write(
        &node,
        format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {NODE}, labels: {labels}}}\n"),
    )?;
    control_plane.apply(&node).await?;

    let login = async |account, bound| {
        control_plane
            .login_service_account(chart::NAMESPACE, account, bound)
            .await
    };
    let operator = login(chart::OPERATOR, None).await?;
    let agent = login(chart::AGENT, Some(("Node", NODE))).await?;
    let lead = ["--lease-namespace", chart::NAMESPACE, "--identity", "leads"];
    let stand = ["--lease-namespace", chart::NAMESPACE, "--identity", "stands by"];
    let pods = dir.display().to_string();
    let journal = dir.join("journal").display().to_string();
    let watch = ["--node-name", NODE, "--pods-dir", &pods, "--journal", &journal];
    // One after the other: the first operator is the one that leads.
    let mut programs = Vec::new();
    for (what, name, login, args) in [
        (
            "the operator that leads",
            "hybridnic-operator",
            &operator,
            &lead[..],
        ),
        (
            "the operator that stands by",
            "hybridnic-operator",
            &operator,
            &stand,
        ),
        ("the agent", "hybridnic-agent", &agent, &watch),
    ] {
        let program = start(what, name, login, args)?;
        timeout(PATIENCE, ready(&program)).await.context(what)?;
        programs.push(program);
    }

    say(&format!("resting for {REST:?}"));
    let rested = async {
        sleep(SETTLED).await;
        let before = usage(&programs)?;
        sleep(REST).await;
        Ok::<_, anyhow::Error>((before, usage(&programs)?))
    };
    let (before, after) = tokio::select! {
        rested = rested => rested?,
        failed = select_all(programs.iter().map(|program| Box::pin(probe(program)))) => return failed.0,
    };
    let share = |(before, after): (&Usage, &Usage)| {
        let share = after.cpu.saturating_sub(before.cpu).as_secs_f64() / REST.as_secs_f64();
        format!("{:.2} millicores", share * 1000.0)
    };
    let shares = before.iter().zip(&after).map(share);
    Ok(programs
        .iter()
        .map(|program| format!("CPU of {} at rest, with its probes, not emulated", program.what))
        .zip(shares)
        .collect())
}

/// Starts a program of the release builds on this host; its log goes to a file of its own.
fn start(what: &'static str, name: &str, login: &Login, args: &[&str]) -> Result<Program> {
    let dir = repository("target/bench-rest");
    let kubeconfig = dir.join(format!("{what}.kubeconfig"));
    login.write(&kubeconfig)?;
    let address = free_address()?;
    let log = fs::File::create(dir.join(format!("{what}.log")))?;
    let child = Command::new(binary(name)?)
        .args(args)
        .args(["--http-address", &address])
        .env("KUBECONFIG", &kubeconfig)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| what.to_owned())?;
    Ok(Program { what, child, address })
}

/// An address that nobody listens on: the kernel does not give a port again at once.
fn free_address() -> Result<String> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?.to_string())
}

/// Asks as a kubelet does: by a connection of its own each time.
async fn ask(program: &Program, page: &str) -> Result<StatusCode> {
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build_http();
    let uri = format!("http://{}/{page}", program.address).parse()?;
    Ok(client.get(uri).await?.status())
}

/// Only the program itself, when asked, tells that it is ready.
async fn ready(program: &Program) {
    while !matches!(ask(program, "readyz").await, Ok(StatusCode::OK)) {
        sleep(Duration::from_millis(200)).await;
    }
}

/// Probes a program until an answer is not what it should be.
async fn probe<T>(program: &Program) -> Result<T> {
    let pages = PROBES.map(|(page, period)| async move {
        let mut ticks = interval(period);
        loop {
            ticks.tick().await;
            let status = ask(program, page).await?;
            ensure!(status == StatusCode::OK, "{page} of {}: {status}", program.what);
        }
    });
    select_all(pages.map(Box::pin)).await.0
}

fn usage(programs: &[Program]) -> Result<Vec<Usage>> {
    let of = |program: &Program| Usage::of_process(program.child.id().context(program.what)?);
    programs.iter().map(of).collect()
}
