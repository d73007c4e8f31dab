//! An operator's process, and what it says of itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http_body_util::{BodyExt as _, Empty};
use hybridnic_e2e::chart;
use hybridnic_e2e::controlplane::ControlPlane;
use hybridnic_e2e::usage::Usage;
use hybridnic_e2e::world::binary;
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

/// For a program to end by itself.
const END: Duration = Duration::from_secs(30);
/// At rest is a program that has not written for so long.
const QUIET: Duration = Duration::from_secs(5);

/// An operator that runs.
pub struct Operator {
    child: Child,
    address: String,
    log: PathBuf,
}

impl Operator {
    /// Starts one as the chart's service account.
    pub fn start(control_plane: &ControlPlane, log: &Path) -> Result<Self> {
        let groups = ["system:serviceaccounts", "system:authenticated"];
        // KUBECONFIG is a list of paths, and the user's name has colons.
        let kubeconfig = log.with_extension("kubeconfig");
        control_plane
            .login(chart::OPERATOR_USER, &groups)?
            .write(&kubeconfig)?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        drop(listener);
        let child = Command::new(binary("hybridnic-operator")?)
            .args(["--lease-namespace", chart::NAMESPACE, "--http-address", &address])
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(log)?)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the operator")?;
        Ok(Self {
            child,
            address,
            log: log.to_owned(),
        })
    }

    /// Asks it to end, and waits for that.
    pub async fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.pid()?.try_into()?), Signal::SIGTERM)?;
        let status = timeout(END, self.child.wait())
            .await
            .context("it does not end")??;
        ensure!(status.success(), "the operator ended with {status}");
        Ok(())
    }

    fn pid(&self) -> Result<u32> {
        self.child.id().context("the operator has ended")
    }

    /// What it uses.
    pub fn usage(&self) -> Result<Usage> {
        Usage::of_process(self.pid()?)
    }

    /// Waits until it leads and has filled its caches, which it tells its log.
    pub async fn until_filled(&self, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        while !fs::read_to_string(&self.log)?.contains("caches are filled") {
            ensure!(Instant::now() < end, "not leading after {deadline:?}");
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Waits until it has nothing to do, and has written nothing for a while.
    pub async fn until_at_rest(&self, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        let (mut seen, mut since) = (self.writes().await?, Instant::now());
        while since.elapsed() < QUIET {
            ensure!(Instant::now() < end, "no rest after {deadline:?}");
            sleep(Duration::from_millis(500)).await;
            let (now, waits) = (self.writes().await?, self.waiting().await?);
            if now != seen || waits {
                (seen, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    /// How often it has written what: verb and resource.
    pub async fn writes(&self) -> Result<BTreeMap<String, u64>> {
        let mut counts = BTreeMap::new();
        for line in self.metrics().await?.lines() {
            let Some(rest) = line.strip_prefix("hybridnic_api_requests_total{") else {
                continue;
            };
            let (labels, count) = rest.split_once("} ").context("no metric")?;
            let label = |name: &str| {
                let pair = labels.split(',').find_map(|pair| pair.strip_prefix(name));
                pair.map(|value| value.trim_matches(['=', '"']))
                    .unwrap_or_default()
            };
            let (verb, resource, result) = (label("verb"), label("resource"), label("result"));
            let writes = ["create", "update", "patch", "delete"].contains(&verb);
            if !writes || resource == "leases" {
                continue;
            }
            let refused = if result == "ok" {
                String::new()
            } else {
                format!(", {result}")
            };
            let what = format!("{verb} {resource}{refused}");
            *counts.entry(what).or_default() += count.trim().parse::<u64>()?;
        }
        Ok(counts)
    }

    /// Whether anything waits for a reconcile.
    async fn waiting(&self) -> Result<bool> {
        let metrics = self.metrics().await?;
        let mut lines = metrics.lines();
        Ok(lines.any(|line| line.starts_with("hybridnic_reconcile_queue_length{") && !line.ends_with(" 0")))
    }

    async fn metrics(&self) -> Result<String> {
        let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build_http();
        let uri: hyper::Uri = format!("http://{}/metrics", self.address).parse()?;
        loop {
            match client.get(uri.clone()).await {
                Ok(answer) => {
                    let body = answer.into_body().collect().await?.to_bytes();
                    return Ok(String::from_utf8(body.to_vec())?);
                }
                // It does not listen yet.
                Err(error) if error.is_connect() => {
                    self.pid()?;
                    sleep(Duration::from_millis(50)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
