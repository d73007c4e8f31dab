//! A real control plane, real operators with the rights that the chart gives, and fake agents, with theirs.

use std::fmt::Debug;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use hybridnic_api::conditions::{self, types};
use hybridnic_api::v1alpha1::{
    HybridNetwork, MigrationPhase, NicAttachment, NicPhase, QemuMigration, VmHybridNic,
};
use hybridnic_e2e::chart;
use hybridnic_e2e::controlplane::login::Login;
use hybridnic_e2e::controlplane::{ControlPlane, Options};
use hybridnic_e2e::world::binary;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, Resource};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// Two operators hand over in 15 s; the machine may be busy with a build beside.
pub const DEADLINE: Duration = Duration::from_mins(1);
pub const NAMESPACE: &str = "default";

pub struct Bench {
    pub cluster: ControlPlane,
    pub client: Client,
    /// The operator's service account.
    login: Login,
    pub operators: Vec<Operator>,
    pub dir: TempDir,
}

/// An operator's process; dropped, it is killed.
pub struct Operator(Child, SocketAddr);

impl Operator {
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// No event shows when a process that has just started listens.
    async fn connect(&self) -> TcpStream {
        let end = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            match TcpStream::connect(self.1).await {
                Ok(stream) => return stream,
                Err(error) => assert!(tokio::time::Instant::now() < end, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks its HTTP server; gives status and text.
    pub async fn ask(&self, request: &str, body: &str) -> (u16, String) {
        let mut stream = self.connect().await;
        let length = body.len();
        let request = format!("{request} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, text) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, text.to_owned())
    }

    /// Its metrics, a line each.
    pub async fn metrics(&self) -> Vec<String> {
        let (status, text) = self.ask("GET /metrics", "").await;
        assert_eq!(status, 200, "{text}");
        text.lines().map(ToOwned::to_owned).collect()
    }

    /// Waits until its metrics have all these lines, and gives all of them. Its caches may be a little behind, and there is no
    /// event for metrics.
    pub async fn metrics_with(&self, lines: &[&str]) -> Vec<String> {
        let began = Instant::now();
        loop {
            let metrics = self.metrics().await;
            let Some(missing) = lines.iter().find(|line| !metrics.iter().any(|l| l == *line)) else {
                return metrics;
            };
            assert!(
                began.elapsed() < DEADLINE,
                "no {missing} in\n{}",
                metrics.join("\n")
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// SIGTERM, and its exit status.
    pub async fn terminate(mut self) -> Option<i32> {
        kill(
            Pid::from_raw(i32::try_from(self.0.id()).unwrap()),
            Signal::SIGTERM,
        )
        .unwrap();
        tokio::task::spawn_blocking(move || self.0.wait().unwrap().code())
            .await
            .unwrap()
    }

    /// Its exit status once it has ended by itself.
    pub async fn ended(mut self) -> Option<i32> {
        let wait = tokio::task::spawn_blocking(move || self.0.wait().unwrap().code());
        timeout(DEADLINE, wait)
            .await
            .expect("the operator goes on")
            .unwrap()
    }
}

/// An address of its own for each operator: all of 127.0.0.0/8 is this host.
fn http_address() -> SocketAddr {
    static LAST: AtomicU8 = AtomicU8::new(0);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let last = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    (Ipv4Addr::new(127, high, low, last), 8080).into()
}

impl Drop for Operator {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Bench {
    /// A cluster with CRDs, roles, the nodes `n1` and `n2` and the network `net`; no operator yet.
    pub async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let cluster = ControlPlane::start(Options::new(dir.path().join("cluster")))
            .await
            .unwrap();
        chart::install_without_pods(&cluster).await.unwrap();
        let login = cluster
            .login_service_account(chart::NAMESPACE, chart::OPERATOR, None)
            .await
            .unwrap();
        let client = cluster.client_admin();
        let this = Self {
            cluster,
            login,
            client,
            operators: Vec::new(),
            dir,
        };
        for node in ["n1", "n2"] {
            this.create::<Node>(json!({"metadata": {"name": node, "labels": {"sriov": "yes"}}}))
                .await;
            this.kubelet_says(node, "True").await;
        }
        this.create::<HybridNetwork>(json!({
            "metadata": {"name": "net"},
            "spec": {
                "nodeSelector": {"matchLabels": {"sriov": "yes"}}, "uplinks": [{"pfNames": ["ens*"]}],
                "macRange": {"from": "02:00:00:00:00:01", "to": "02:00:00:00:ff:ff"},
            },
        }))
        .await;
        this
    }

    /// Starts one more operator; its log is among the cluster's files.
    pub fn start_operator(&mut self) {
        self.start_operator_with(&[]);
    }

    /// The same, with more options.
    pub fn start_operator_with(&mut self, options: &[&str]) {
        let number = self.operators.len();
        let kubeconfig = self.dir.path().join("operator.kubeconfig");
        self.login.write(&kubeconfig).unwrap();
        let log = File::create(self.dir.path().join(format!("operator-{number}.log"))).unwrap();
        let address = http_address();
        let mut command = Command::new(binary("hybridnic-operator").unwrap());
        command
            .env("KUBECONFIG", kubeconfig)
            .env(
                "HYBRIDNIC_LOG",
                "info,hybridnic_operator=debug,hybridnic_process=debug",
            )
            .args([
                "--lease-namespace",
                chart::NAMESPACE,
                "--identity",
                &format!("operator-{number}"),
                "--http-address",
                &address.to_string(),
            ])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        // SAFETY: prctl(2) is async-signal-safe and touches no memory of ours.
        unsafe {
            command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into));
        }
        self.operators.push(Operator(command.spawn().unwrap(), address));
    }

    /// The operators' logs, for a failure's message.
    pub fn logs(&self) -> String {
        let log = |number| std::fs::read_to_string(self.dir.path().join(format!("operator-{number}.log")));
        (0..4).filter_map(|number| log(number).ok()).collect()
    }

    /// Waits until an operator has logged all of these in one line.
    pub async fn logged(&self, words: &[&str]) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let logs = self.logs();
            if logs
                .lines()
                .any(|line| words.iter().all(|word| line.contains(word)))
            {
                return;
            }
            assert!(Instant::now() < deadline, "no line with {words:?}: {logs}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Gives the programs all rights of the chart again.
    pub async fn restore_rights(&self) {
        chart::install_without_pods(&self.cluster).await.unwrap();
    }

    pub async fn kubectl(&self, args: &[&str]) -> String {
        let output = self.cluster.kubectl(args).await.unwrap();
        assert!(
            output.status.success(),
            "kubectl {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Changes something about all attachments, because agents look again only then. One may leave while it is asked for the others.
    pub async fn look_again(&self) {
        let annotate = ["annotate", "nicatt", "--all", "look=again"];
        let output = self.cluster.kubectl(&annotate).await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || said.contains("NotFound"), "{said}");
    }

    pub fn nics(&self) -> Api<VmHybridNic> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub fn attachments(&self) -> Api<NicAttachment> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub fn migrations(&self) -> Api<QemuMigration> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Creates a cluster-scoped object.
    pub async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
    {
        let object = serde_json::from_value(object).unwrap();
        Api::<K>::all(self.client.clone())
            .create(&PostParams::default(), &object)
            .await
            .unwrap()
    }

    pub async fn create_nic(&self, name: &str, vm: &str, mac: Option<&str>) {
        let mut nic = json!({
            "metadata": {"name": name},
            "spec": {"network": "net", "vm": {"qemu": {"name": vm}}},
        });
        if let Some(mac) = mac {
            nic["spec"]["mac"] = json!(mac);
        }
        self.nics()
            .create(&PostParams::default(), &serde_json::from_value(nic).unwrap())
            .await
            .unwrap();
    }

    /// Whether a node is ready: `True`, `False`, or `Unknown` when its kubelet does not report.
    pub async fn kubelet_says(&self, node: &str, ready: &str) {
        let condition = json!({
            "type": "Ready", "status": ready, "reason": "Test", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z", "lastHeartbeatTime": "2026-01-01T00:00:00Z",
        });
        let status = json!({"status": {"conditions": [condition]}});
        Api::<Node>::all(self.client.clone())
            .patch_status(node, &PatchParams::default(), &Patch::Merge(status))
            .await
            .unwrap();
    }

    /// A pod that runs, as a kubelet would say.
    pub async fn run_pod(&self, name: &str, vm: &str, node: &str) {
        self.run_pod_at(name, vm, node, "10.0.0.9").await;
    }

    /// The same, at an address.
    pub async fn run_pod_at(&self, name: &str, vm: &str, node: &str, ip: &str) {
        let pod = json!({
            "metadata": {"name": name, "labels": {"hybridnic.io/vm": vm}},
            "spec": {"nodeName": node, "containers": [{"name": "qemu", "image": "none"}]},
        });
        self.pods()
            .create(&PostParams::default(), &serde_json::from_value(pod).unwrap())
            .await
            .unwrap();
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
        self.patch_pod(name, &status).await;
    }

    /// The pod's processes have ended.
    pub async fn end_pod(&self, name: &str) {
        self.patch_pod(name, &json!({"status": {"phase": "Failed"}}))
            .await;
    }

    async fn patch_pod(&self, name: &str, status: &Value) {
        self.pods()
            .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await
            .unwrap();
    }

    pub async fn delete_pod(&self, name: &str) {
        self.pods()
            .delete(name, &DeleteParams::default().grace_period(0))
            .await
            .unwrap();
    }

    pub async fn migrate(&self, name: &str, vm: &str) {
        let migration = json!({"metadata": {"name": name}, "spec": {"vm": vm}});
        self.migrations()
            .create(
                &PostParams::default(),
                &serde_json::from_value(migration).unwrap(),
            )
            .await
            .unwrap();
    }

    /// Waits until an object is as `fits` says, or, with `None`, gone; gives it.
    /// Deletes an object, and waits until it is gone.
    pub async fn remove<K>(&self, api: Api<K>, name: &str)
    where
        K: Resource + Clone + Debug + Send + DeserializeOwned + 'static,
    {
        api.delete(name, &DeleteParams::default()).await.unwrap();
        self.until_object(api, name, "gone", |found| found.is_none())
            .await;
    }

    pub async fn until_object<K>(
        &self,
        api: Api<K>,
        name: &str,
        what: &str,
        fits: impl Fn(Option<&K>) -> bool,
    ) -> Option<K>
    where
        K: Resource + Clone + Debug + Send + DeserializeOwned + 'static,
    {
        let there = await_condition(api.clone(), name, fits);
        if let Ok(found) = timeout(DEADLINE, there).await {
            return found.unwrap();
        }
        let found = api.get_opt(name).await;
        panic!("{name} does not become {what}: {found:#?}\n{}", self.logs())
    }

    pub async fn nic_with(&self, name: &str, what: &str, fits: impl Fn(&VmHybridNic) -> bool) -> VmHybridNic {
        let fits = |nic: Option<&VmHybridNic>| nic.is_some_and(&fits);
        self.until_object(self.nics(), name, what, fits).await.unwrap()
    }

    pub async fn migration_with(
        &self,
        name: &str,
        what: &str,
        fits: impl Fn(&QemuMigration) -> bool,
    ) -> QemuMigration {
        let fits = |migration: Option<&QemuMigration>| migration.is_some_and(&fits);
        self.until_object(self.migrations(), name, what, fits)
            .await
            .unwrap()
    }

    /// Writes of the operators, except for their lease and events.
    pub fn writes(&self) -> Vec<String> {
        let ours = self.cluster.writes().unwrap().into_iter().filter(|write| {
            write.user == chart::OPERATOR_USER && write.resource != "leases" && write.resource != "events"
        });
        ours.map(|write| format!("{} {} {}", write.verb, write.resource, write.name))
            .collect()
    }
}

/// Whether a NIC is on its fast path.
pub fn is_fast(nic: &VmHybridNic) -> bool {
    nic.status
        .as_ref()
        .is_some_and(|status| status.phase == NicPhase::FastPath)
}

/// Whether a migration is in a phase.
pub fn is_in(phase: MigrationPhase) -> impl Fn(&QemuMigration) -> bool {
    move |migration| {
        migration
            .status
            .as_ref()
            .is_some_and(|status| status.phase == phase)
    }
}

/// The reason of a migration's condition `Succeeded`.
pub fn why(migration: &QemuMigration) -> String {
    let status = migration.status.as_ref();
    let condition = status.and_then(|status| conditions::find(&status.conditions, types::SUCCEEDED));
    condition
        .map(|condition| condition.reason.clone())
        .unwrap_or_default()
}

/// The reason of a NIC's condition.
pub fn reason<'a>(nic: &'a VmHybridNic, type_: &str) -> &'a str {
    let status = nic.status.as_ref();
    status
        .and_then(|s| conditions::find(&s.conditions, type_))
        .map(|c| c.reason.as_str())
        .unwrap_or_default()
}
