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
/// A program that has not written for so long is at rest.
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

    /// Waits until it leads and has filled its caches, which it logs.
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
    pub async fn writes(&self) -> Result<Counts> {
        let mut counts = Counts::default();
        for line in self.metrics().await?.lines() {
            let Some((labels, count)) = sample(line, "hybridnic_api_requests_total") else {
                continue;
            };
            let [verb, resource, result] = ["verb", "resource", "result"].map(|name| label(labels, name));
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
            *counts.0.entry(what).or_default() += count.parse::<u64>()?;
        }
        Ok(counts)
    }

    /// How long changes have waited for their reconciles.
    pub async fn waits(&self) -> Result<Waits> {
        let mut waits = Waits::default();
        for line in self.metrics().await?.lines() {
            let Some((labels, count)) = sample(line, "hybridnic_reconcile_wait_seconds_bucket") else {
                continue;
            };
            let bound = match label(labels, "le") {
                "+Inf" => f64::INFINITY,
                bound => bound.parse()?,
            };
            // Of the kinds that migrations are about.
            if ["VmHybridNic", "QemuMigration"].contains(&label(labels, "kind")) {
                waits.count(label(labels, "urgency"), bound, count.parse()?);
            }
        }
        Ok(waits)
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

/// Labels and value of a line of this metric.
fn sample<'a>(line: &'a str, metric: &str) -> Option<(&'a str, &'a str)> {
    line.strip_prefix(metric)?.strip_prefix('{')?.split_once("} ")
}

fn label<'a>(labels: &'a str, name: &str) -> &'a str {
    let pairs = labels.split(',').filter_map(|pair| pair.split_once('='));
    let mut values = pairs.filter(|(found, _)| *found == name);
    values
        .next()
        .map(|(_, value)| value.trim_matches('"'))
        .unwrap_or_default()
}

/// How often what was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// What there is more than there was.
    pub fn since(&self, before: &Self) -> Self {
        let more = |(what, count): (&String, &u64)| {
            let count = count - before.of(what);
            (count > 0).then(|| (what.clone(), count))
        };
        Self(self.0.iter().filter_map(more).collect())
    }

    /// Adds others.
    pub fn add(&mut self, others: &Self) {
        for (what, count) in &others.0 {
            *self.0.entry(what.clone()).or_default() += count;
        }
    }

    /// Of one kind.
    pub fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or_default()
    }

    /// What was written.
    pub fn kinds(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// Of all kinds.
    pub fn sum(&self) -> u64 {
        self.0.values().sum()
    }
}

/// How many waits were no longer than a bound, by urgency and bound in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waits(BTreeMap<String, BTreeMap<u64, u64>>);

impl Waits {
    fn count(&mut self, urgency: &str, bound: f64, count: u64) {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let bound = (bound * 1e6) as u64;
        let buckets = self.0.entry(urgency.to_owned()).or_default();
        *buckets.entry(bound).or_default() += count;
    }

    /// What there is more than there was.
    pub fn since(&self, before: &Self) -> Self {
        let mut since = self.clone();
        for (urgency, buckets) in &mut since.0 {
            for (bound, count) in buckets {
                let was = before.0.get(urgency).and_then(|buckets| buckets.get(bound));
                *count -= was.copied().unwrap_or_default();
            }
        }
        since
    }

    /// Adds others.
    pub fn add(&mut self, others: &Self) {
        for (urgency, buckets) in &others.0 {
            let own = self.0.entry(urgency.clone()).or_default();
            for (bound, count) in buckets {
                *own.entry(*bound).or_default() += count;
            }
        }
    }

    /// The median and the 99th percentile of an urgency, by the bounds of their buckets.
    pub fn told(&self, urgency: &str) -> String {
        let Some(buckets) = self.0.get(urgency) else {
            return "none".to_owned();
        };
        let all = buckets.values().max().copied().unwrap_or_default();
        let within = |hundredths: u64| {
            let bound = buckets
                .iter()
                .find(|(_, count)| **count * 100 >= all * hundredths);
            match bound {
                Some((bound, _)) if *bound < u64::MAX => {
                    let time = Duration::from_micros(*bound);
                    format!("≤ {} ms", time.as_secs_f64() * 1000.0)
                }
                _ => "longer".to_owned(),
            }
        };
        match all {
            0 => "none".to_owned(),
            all => format!("{} / {} of {all}", within(50), within(99)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_told_by_their_buckets() {
        let mut before = Waits::default();
        before.count("urgent", 0.001, 5);
        before.count("urgent", 0.025, 5);
        before.count("urgent", f64::INFINITY, 5);
        let mut now = Waits::default();
        now.count("urgent", 0.001, 65);
        now.count("urgent", 0.025, 105);
        now.count("urgent", f64::INFINITY, 105);
        assert_eq!(now.since(&before).told("urgent"), "≤ 1 ms / ≤ 25 ms of 100");
        assert_eq!(now.told("usual"), "none");
        now.count("urgent", f64::INFINITY, 100);
        assert_eq!(now.told("urgent"), "≤ 25 ms / longer of 205");
        let line = r#"hybridnic_x_total{kind="A",le="0.5"} 7"#;
        let (labels, value) = sample(line, "hybridnic_x_total").unwrap();
        assert_eq!(
            (label(labels, "kind"), label(labels, "le"), value),
            ("A", "0.5", "7")
        );
        assert!(sample(line, "hybridnic_x").is_none());
    }

    #[test]
    fn counts_are_of_what_came_since() {
        let counts = |all: &[(&str, u64)]| Counts(all.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect());
        let before = counts(&[("patch a", 2), ("patch b", 1)]);
        let mut now = counts(&[("patch a", 2), ("patch b", 4), ("create c", 1)]);
        let since = now.since(&before);
        assert_eq!(since, counts(&[("patch b", 3), ("create c", 1)]));
        assert_eq!((since.sum(), since.of("patch a")), (4, 0));
        now.add(&before);
        assert_eq!(now.of("patch b"), 5);
    }
}
