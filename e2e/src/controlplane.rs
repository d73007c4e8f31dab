//! A real control plane for tests: etcd, kube-apiserver and, where asked for, kube-controller-manager.
//!
//! Each cluster has its own directory, certificate authority, port and etcd, so any number may run at once. The API
//! server listens on all addresses of the host's network namespace; the lab's nodes reach it over their management
//! network. Everything is gone when the [`ControlPlane`] is dropped, or when its process ends in any way.

pub mod audit;
mod flags;
pub mod login;
mod paths;
pub mod pki;
pub mod port;
pub mod process;
pub mod tools;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep, timeout};

use audit::Write;
use login::Login;
use port::ReservedPort;
use process::Daemon;
use tools::Tools;

/// From start to `/readyz`: about five seconds on an idle machine, more beside a build.
const READY_DEADLINE: Duration = Duration::from_mins(1);
/// One call of kubectl or helm, `wait` and `rollout status` included.
const COMMAND_DEADLINE: Duration = Duration::from_mins(3);
/// Tokens outlive the longest run of the tests.
const TOKEN_SECONDS: i64 = 24 * 3600;

/// Why the control plane failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error(transparent)]
    Tools(#[from] tools::Error),
    #[error(transparent)]
    Certificates(#[from] pki::Error),
    #[error(transparent)]
    Login(#[from] login::Error),
    #[error(transparent)]
    Process(#[from] process::Error),
    #[error(transparent)]
    Audit(#[from] audit::Error),
    #[error("cannot make the directory {path}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("{0} holds another cluster; each needs a directory of its own")]
    DirectoryInUse(PathBuf),
    #[error("cannot reserve a port")]
    Port(#[source] io::Error),
    #[error("{what} not ready after {READY_DEADLINE:?}; see the logs in {dir}")]
    NotReady { what: &'static str, dir: PathBuf },
    #[error("cannot watch for the default service account")]
    Watch(#[source] Box<kube::runtime::wait::Error>),
    #[error("cannot get a token for {account}")]
    Token {
        account: String,
        source: Box<kube::Error>,
    },
    #[error("cannot run {program}")]
    Run { program: PathBuf, source: io::Error },
    #[error("{program} was not done after {COMMAND_DEADLINE:?}")]
    Deadline { program: PathBuf },
    #[error("{program} failed:\n{message}")]
    Refused { program: PathBuf, message: String },
}

/// How much of kube-controller-manager runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Controllers {
    /// None of it, so no service accounts, no deletion of namespaces, no garbage collection.
    None,
    /// What a chart relies on; the harness plays the kubelet.
    Some,
    /// All, and kube-scheduler: for real nodes.
    All,
}

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    dir: PathBuf,
    addresses: Vec<IpAddr>,
    controllers: Controllers,
}

impl Options {
    /// A cluster with its files and logs in `dir`, which is made, and must hold no other cluster.
    ///
    /// By default: reachable at 127.0.0.1, no controller manager, so no service accounts, no deletion of
    /// namespaces, no garbage collection.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            addresses: vec![Ipv4Addr::LOCALHOST.into()],
            controllers: Controllers::None,
        }
    }

    /// Another address that clients use, for the server's certificate. No interface need have it yet.
    #[must_use]
    pub fn reachable_at(mut self, address: IpAddr) -> Self {
        self.addresses.push(address);
        self
    }

    /// With kube-controller-manager.
    #[must_use]
    pub fn with_controllers(mut self) -> Self {
        self.controllers = Controllers::Some;
        self
    }

    /// With all controllers and the scheduler: kubelets can join, by TLS bootstrap.
    #[must_use]
    pub fn with_nodes(mut self) -> Self {
        self.controllers = Controllers::All;
        self
    }
}

/// A running control plane.
pub struct ControlPlane {
    // Dropped in this order: a process that depends on another goes first.
    scheduler: Option<Daemon>,
    controllers: Option<Daemon>,
    apiserver: Daemon,
    etcd: Daemon,
    port: ReservedPort,
    dir: PathBuf,
    tools: Tools,
    authority: pki::Authority,
    admin: Login,
    client: Client,
}

impl ControlPlane {
    /// Starts a cluster and waits until it is ready.
    ///
    /// Builds the binaries where they are missing, which takes minutes; see [`Tools::ready`].
    pub async fn start(options: Options) -> Result<Self, Error> {
        let tools = Tools::ready(options.controllers == Controllers::All).await?;
        let dir = make_directory(&options.dir)?;
        let port = ReservedPort::any().map_err(Error::Port)?;
        let authority = pki::Authority::new()?;
        write_files(&dir, &authority, &options.addresses)?;
        let admin = authority.client("admin", &["system:masters"])?;
        let admin = Login::certificate(port.number(), authority.certificate(), admin);
        admin.write(&dir.join(paths::ADMIN_KUBECONFIG))?;

        // The last one named is the one that others reach; the first is loopback.
        let advertise = options
            .addresses
            .last()
            .copied()
            .unwrap_or_else(|| Ipv4Addr::LOCALHOST.into());
        let flags = flags::apiserver(port.number(), advertise, options.controllers);
        let mut this = Self {
            scheduler: None,
            controllers: None,
            apiserver: Daemon::new("kube-apiserver", &tools.apiserver, flags, &dir),
            etcd: Daemon::new("etcd", &tools.etcd, flags::etcd(), &dir),
            client: admin.client().await?,
            port,
            dir,
            tools,
            authority,
            admin,
        };
        this.etcd.start()?;
        this.start_api().await?;
        if options.controllers != Controllers::None {
            this.start_controllers(options.controllers).await?;
        }
        if options.controllers == Controllers::All {
            this.start_scheduler()?;
        }
        Ok(this)
    }

    /// Where the cluster's files and logs are, absolute.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The API server's port, on all addresses. It stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The administrator's login.
    pub fn admin(&self) -> &Login {
        &self.admin
    }

    /// The administrator's kubeconfig file.
    pub fn kubeconfig_admin(&self) -> PathBuf {
        self.dir.join(paths::ADMIN_KUBECONFIG)
    }

    /// The binaries.
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// The certificate authority's own certificate, PEM.
    pub fn authority(&self) -> String {
        self.authority.certificate()
    }

    /// The certificate of a server that clients of the cluster trust, such as a webhook's.
    pub fn server_certificate(&self, server: &str, address: IpAddr) -> Result<pki::Pair, Error> {
        Ok(self.authority.server(server, &[], &[address])?)
    }

    /// The certificate of a client of such servers.
    pub fn client_certificate(&self, client: &str) -> Result<pki::Pair, Error> {
        Ok(self.authority.client(client, &[])?)
    }

    /// A login by a bearer token that the API server knows, such as a bootstrap token.
    pub fn login_token(&self, token: &str) -> Login {
        Login::token(self.port(), self.authority.certificate(), token)
    }

    /// A client with the administrator's rights.
    pub fn client_admin(&self) -> Client {
        self.client.clone()
    }

    /// A login by client certificate; RBAC decides what it may do. At most two groups.
    pub fn login(&self, user: &str, groups: &[&str]) -> Result<Login, Error> {
        let pair = self.authority.client(user, groups)?;
        Ok(Login::certificate(
            self.port(),
            self.authority.certificate(),
            pair,
        ))
    }

    /// Writes a kubeconfig with a client certificate, for use on this host; gives its path.
    pub fn kubeconfig_for(&self, user: &str, groups: &[&str]) -> Result<PathBuf, Error> {
        // A user's name may hold slashes; a file's name may not.
        let path = self.dir.join(format!("{}.kubeconfig", user.replace('/', "_")));
        self.login(user, groups)?.write(&path)?;
        Ok(path)
    }

    /// A login by a service account's token. Bound to a pod (`("Pod", name)`) or a node (`("Node", name)`), the token
    /// carries the node's name, and dies with the object.
    pub async fn login_service_account(
        &self,
        namespace: &str,
        name: &str,
        bound_to: Option<(&str, &str)>,
    ) -> Result<Login, Error> {
        let request = TokenRequest {
            spec: TokenRequestSpec {
                expiration_seconds: Some(TOKEN_SECONDS),
                bound_object_ref: bound_to.map(|(kind, name)| BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some(kind.to_owned()),
                    name: Some(name.to_owned()),
                    uid: None,
                }),
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        let failed = |source| Error::Token {
            account: format!("{namespace}/{name}"),
            source: Box::new(source),
        };
        let accounts = Api::<ServiceAccount>::namespaced(self.client_admin(), namespace);
        let answer: Result<TokenRequest, _> = accounts
            .create_subresource("token", name, &PostParams::default(), &request)
            .await;
        let token = answer
            .map_err(failed)?
            .status
            .map(|status| status.token)
            .unwrap_or_default();
        Ok(Login::token(self.port(), self.authority.certificate(), &token))
    }

    /// Runs kubectl as the administrator. Its failure is in the output, not an error.
    pub async fn kubectl<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Output, Error> {
        self.run(&self.tools.kubectl, args).await
    }

    /// Runs helm as the administrator. Its failure is in the output, not an error.
    pub async fn helm<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Output, Error> {
        self.run(&self.tools.helm, args).await
    }

    /// `kubectl apply -f` of a file or of a directory's files; gives what it printed. A refusal is an error, with the
    /// API server's message.
    pub async fn apply(&self, path: &Path) -> Result<String, Error> {
        let output = self
            .kubectl(&[OsStr::new("apply"), OsStr::new("-f"), path.as_os_str()])
            .await?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(Error::Refused {
                program: self.tools.kubectl.clone(),
                message,
            })
        }
    }

    /// Stops the API server's clock (`SIGSTOP`): connections stay open and nothing answers.
    pub fn pause_api(&self) -> Result<(), Error> {
        Ok(self.apiserver.stop()?)
    }

    /// Ends [`pause_api`](Self::pause_api).
    pub fn resume_api(&self) -> Result<(), Error> {
        Ok(self.apiserver.signal(Signal::SIGCONT)?)
    }

    /// Kills the API server (`SIGKILL`): connections break and new ones are refused. The data stays.
    pub fn kill_api(&mut self) {
        self.apiserver.kill();
    }

    /// Starts the API server again, on the same data and port, and waits until it is ready.
    pub async fn start_api(&mut self) -> Result<(), Error> {
        self.apiserver.start()?;
        let deadline = Instant::now() + READY_DEADLINE;
        while !is_ready(&self.client).await {
            self.etcd.check()?;
            self.apiserver.check()?;
            if Instant::now() >= deadline {
                return Err(Error::NotReady {
                    what: "kube-apiserver",
                    dir: self.dir.clone(),
                });
            }
            // /readyz is all there is: it cannot be watched.
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// All writes that reached the API server so far, in order.
    pub fn writes(&self) -> Result<Vec<Write>, Error> {
        Ok(audit::read(&self.dir.join(paths::AUDIT_LOG))?)
    }

    /// How many writes reached the API server so far from users whose name starts so.
    pub fn count_writes(&self, user_prefix: &str) -> Result<usize, Error> {
        Ok(self
            .writes()?
            .iter()
            .filter(|write| write.user.starts_with(user_prefix))
            .count())
    }

    /// The resident memory of each process that runs, in KiB (`VmRSS` of proc(5)).
    pub fn resident_kib(&self) -> Vec<(&'static str, u64)> {
        let daemons = self.daemons();
        daemons
            .filter_map(|daemon| Some((daemon.name(), daemon.resident_kib()?)))
            .collect()
    }

    /// The processes that run.
    pub fn pids(&self) -> Vec<u32> {
        self.daemons().filter_map(Daemon::pid).collect()
    }

    /// Where etcd listens: a Unix socket, for its own API over HTTP.
    pub fn etcd_socket(&self) -> PathBuf {
        self.dir.join(flags::ETCD.trim_start_matches("unix://"))
    }

    fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        let daemons = [
            Some(&self.etcd),
            Some(&self.apiserver),
            self.controllers.as_ref(),
            self.scheduler.as_ref(),
        ];
        daemons.into_iter().flatten()
    }

    fn start_scheduler(&mut self) -> Result<(), Error> {
        let Some(nodes) = self.tools.nodes.clone() else {
            return Ok(());
        };
        let login = self.login("system:kube-scheduler", &[])?;
        login.write(&self.dir.join(paths::SCHEDULER_KUBECONFIG))?;
        let daemon = Daemon::new("kube-scheduler", &nodes.scheduler, flags::scheduler(), &self.dir);
        Ok(self.scheduler.insert(daemon).start()?)
    }

    async fn start_controllers(&mut self, controllers: Controllers) -> Result<(), Error> {
        let login = self.login("system:kube-controller-manager", &[])?;
        login.write(&self.dir.join(paths::CONTROLLER_KUBECONFIG))?;
        let program = &self.tools.controller_manager;
        let flags = flags::controller_manager(controllers);
        let daemon =
            self.controllers
                .insert(Daemon::new("kube-controller-manager", program, flags, &self.dir));
        daemon.start()?;
        // Its first visible work, without which no pod is admitted.
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), "default");
        let made = await_condition(accounts, "default", |account: Option<&ServiceAccount>| {
            account.is_some()
        });
        let made = timeout(READY_DEADLINE, made).await;
        daemon.check()?;
        let what = "kube-controller-manager";
        made.map_err(|_| Error::NotReady {
            what,
            dir: self.dir.clone(),
        })?
        .map_err(|error| Error::Watch(Box::new(error)))?;
        Ok(())
    }

    async fn run<S: AsRef<OsStr>>(&self, program: &Path, args: &[S]) -> Result<Output, Error> {
        let mut command = tokio::process::Command::new(program);
        command.args(args).stdin(Stdio::null()).kill_on_drop(true);
        command.env("KUBECONFIG", self.kubeconfig_admin());
        command.env("GOGC", process::GOGC);
        // Nothing of the user's own settings and caches.
        command
            .env("KUBERC", "off")
            .env("KUBECACHEDIR", self.dir.join("kubectl-cache"));
        for home in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(home, self.dir.join("helm"));
        }
        let output = timeout(COMMAND_DEADLINE, command.output()).await;
        let output = output.map_err(|_| Error::Deadline {
            program: program.to_owned(),
        })?;
        output.map_err(|source| Error::Run {
            program: program.to_owned(),
            source,
        })
    }
}

async fn is_ready(client: &Client) -> bool {
    let Ok(request) = http::Request::get("/readyz").body(Vec::new()) else {
        return false;
    };
    let answer = timeout(Duration::from_secs(2), client.request_text(request)).await;
    answer.is_ok_and(|answer| answer.is_ok())
}

fn make_directory(dir: &Path) -> Result<PathBuf, Error> {
    let made = fs::create_dir_all(dir).and_then(|()| dir.canonicalize());
    let dir = made.map_err(|source| Error::Directory {
        path: dir.to_owned(),
        source,
    })?;
    if dir.join(paths::ETCD_DATA).exists() {
        Err(Error::DirectoryInUse(dir))
    } else {
        Ok(dir)
    }
}

fn write_files(dir: &Path, authority: &pki::Authority, addresses: &[IpAddr]) -> Result<(), Error> {
    let names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    let addresses: Vec<_> = addresses.iter().copied().chain([flags::API_SERVICE]).collect();
    let server = authority.server("kube-apiserver", &names, &addresses)?;
    let (token_key, token_public_key) = pki::signing_key()?;
    let kubelet_client = authority.client("kube-apiserver-kubelet-client", &["system:masters"])?;
    let proxy_client = authority.client(flags::PROXY_CLIENT, &[])?;
    let files = [
        (paths::CA_CERT, authority.certificate()),
        (paths::CA_KEY, authority.key()),
        (paths::KUBELET_CLIENT_CERT, kubelet_client.certificate),
        (paths::KUBELET_CLIENT_KEY, kubelet_client.key),
        (paths::PROXY_CLIENT_CERT, proxy_client.certificate),
        (paths::PROXY_CLIENT_KEY, proxy_client.key),
        (paths::SERVER_CERT, server.certificate),
        (paths::SERVER_KEY, server.key),
        (paths::TOKEN_KEY, token_key),
        (paths::TOKEN_PUBLIC_KEY, token_public_key),
        (paths::AUDIT_POLICY, audit::POLICY.to_owned()),
    ];
    for (name, text) in files {
        login::write_private(&dir.join(name), &text)?;
    }
    Ok(())
}
