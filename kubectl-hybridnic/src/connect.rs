//! The way to the API server, and its errors in words.

use std::{
    error::Error,
    fmt::{self, Display, Formatter},
    future::Future,
    time::Duration,
};

use anyhow::{anyhow, bail};
use kube::{
    Client, Config,
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
    core::Status,
};

use tower::util::MapResponseLayer;

use crate::{clean, cli::Global};

/// One question to the API server is answered in this time, or not at all.
const PATIENCE: Duration = Duration::from_secs(20);

/// A client, and what the command line says of it.
#[derive(Clone)]
pub struct Cluster {
    /// The client.
    pub client: Client,
    /// The namespace of what is asked for.
    pub namespace: String,
    /// Where the API server is.
    pub url: String,
}

/// What the API server was asked for and has not given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// Why, in a sentence.
    pub why: String,
    /// Whether the user may not ask for it.
    pub forbidden: bool,
}

impl Display for Unanswered {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl Error for Unanswered {}

impl From<anyhow::Error> for Unanswered {
    fn from(error: anyhow::Error) -> Self {
        let unanswered = error.downcast_ref::<Self>();
        Self {
            why: format!("{error:#}"),
            forbidden: unanswered.is_some_and(|unanswered| unanswered.forbidden),
        }
    }
}

impl Cluster {
    /// Finds the API server as kubectl does. It is not asked anything yet.
    pub async fn find(global: &Global) -> anyhow::Result<Self> {
        let mut config = config(global).await?;
        config.connect_timeout = Some(Duration::from_secs(5));
        let namespace = global
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        let url = config.cluster_url.to_string();
        let client =
            client(config).map_err(|error| anyhow!("the kubeconfig cannot be used: {}", root(&error)))?;
        Ok(Self {
            client,
            namespace,
            url,
        })
    }

    /// Waits for an answer; an error is one sentence. `what` is asked for, as in `VmHybridNic eth0`.
    pub async fn ask<T>(
        &self,
        what: impl Display,
        question: impl Future<Output = Result<T, kube::Error>>,
    ) -> anyhow::Result<T> {
        match tokio::time::timeout(PATIENCE, question).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.unanswered(what, &error).into()),
            Err(_) => Err(anyhow!(
                "{what}: no answer from the API server at {} in {PATIENCE:?}",
                self.url
            )),
        }
    }

    /// That something was not answered.
    pub fn unanswered(&self, what: impl Display, error: &kube::Error) -> Unanswered {
        Unanswered {
            why: format!("{what}: {}", self.explain(error)),
            forbidden: matches!(error, kube::Error::Api(status) if status.code == 403),
        }
    }

    /// An error of the client in words.
    pub fn explain(&self, error: &kube::Error) -> String {
        match error {
            kube::Error::Api(status) => explain_status(status),
            kube::Error::SerdeError(error) => {
                format!("the answer cannot be understood; are the CRDs of another version? ({error})")
            }
            kube::Error::Auth(error) => format!("cannot log in: {}", root(error)),
            error if root(error) == "deadline has elapsed" => {
                format!("no answer from the API server at {}", self.url)
            }
            error => format!("cannot reach the API server at {}: {}", self.url, root(error)),
        }
    }

    /// An error of a watch in words, and whether it passes by itself.
    pub fn explain_watch(&self, error: &kube::runtime::watcher::Error) -> (String, bool) {
        use kube::runtime::watcher::Error as Watch;
        match error {
            Watch::InitialListFailed(error) | Watch::WatchStartFailed(error) | Watch::WatchFailed(error) => {
                let passes =
                    !matches!(error, kube::Error::Api(status) if matches!(status.code, 401 | 403 | 404));
                (self.explain(error), passes)
            }
            Watch::WatchError(status) => (explain_status(status), true),
            Watch::NoResourceVersion => (error.to_string(), false),
        }
    }
}

/// A client whose answers are clean.
fn client(config: Config) -> Result<Client, kube::Error> {
    let clean = MapResponseLayer::new(clean::answer);
    Ok(ClientBuilder::try_from(config)?.with_layer(&clean).build())
}

fn in_pod() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

async fn config(global: &Global) -> anyhow::Result<Config> {
    let options = KubeConfigOptions {
        context: global.context.clone(),
        ..KubeConfigOptions::default()
    };
    let kubeconfig = match &global.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None if in_pod() && global.context.is_none() => {
            let config = Config::infer().await;
            return config.map_err(|error| anyhow!("no way to a cluster: {}", line(&error)));
        }
        None => Kubeconfig::read(),
    };
    let kubeconfig = kubeconfig.map_err(|error| anyhow!("no way to a cluster: {}", line(&error)))?;
    Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(|error| anyhow!("the kubeconfig cannot be used: {}", line(&error)))
}

/// Refuses what cannot be an object's name, before it becomes a part of a URL.
pub fn check_name(kind: &str, name: &str) -> anyhow::Result<()> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if name.is_empty() || name.len() > 253 || !name.chars().all(fits) || name.starts_with('.') {
        bail!("{name:?} cannot be the name of a {kind}");
    }
    Ok(())
}

/// What the API server says when it says no.
pub fn explain_status(status: &Status) -> String {
    match status.code {
        // A resource that the API server does not know has no details, or a text of its router.
        404 if status
            .details
            .as_ref()
            .is_none_or(|details| details.name.is_empty()) =>
        {
            "the cluster does not know this kind; are hybridnic's CRDs installed? (kubectl hybridnic doctor)"
                .to_owned()
        }
        404 => "there is none with this name".to_owned(),
        401 => "the API server does not know you: log in again".to_owned(),
        403 => format!("not allowed: {}", line(&status.message)),
        _ if status.message.is_empty() => format!("the API server says {} {}", status.code, status.reason),
        _ => line(&status.message),
    }
}

/// The innermost cause: the one that a person can do something about.
fn root(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    line(cause)
}

/// On one line.
fn line(text: &(impl Display + ?Sized)) -> String {
    text.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: u16, message: &str) -> Status {
        Status {
            code,
            message: message.to_owned(),
            ..Status::default()
        }
    }

    #[test]
    fn names() {
        assert!(check_name("Node", "n1.example").is_ok());
        for wrong in ["", "a b", "../x", "..", "N1", "%2e", "ü", "a/b", &"n".repeat(254)] {
            assert!(check_name("Node", wrong).is_err(), "{wrong}");
        }
    }

    /// By what the API server has answered, whatever the words are.
    #[test]
    fn what_is_forbidden_is_known_through_anything_that_is_said_around_it() {
        let forbidden = |code| {
            let config = Config::new("http://127.0.0.1:1".parse().unwrap());
            let cluster = Cluster {
                client: Client::try_from(config).unwrap(),
                namespace: "default".to_owned(),
                url: String::new(),
            };
            let error = kube::Error::Api(Box::new(answer(code, "not allowed")));
            let error = anyhow::Error::from(cluster.unanswered("Nodes", &error)).context("more");
            let unanswered = Unanswered::from(error);
            assert!(unanswered.why.starts_with("more: Nodes: "), "{unanswered}");
            unanswered.forbidden
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _within = runtime.enter();
        assert!(forbidden(403));
        assert!(!forbidden(422) && !forbidden(503));
        assert!(!Unanswered::from(anyhow!("not allowed")).forbidden);
    }

    #[test]
    fn refusals_are_one_line_and_say_what_to_do() {
        assert!(explain_status(&answer(404, "404 page not found")).contains("CRDs"));
        assert_eq!(explain_status(&answer(403, "a\n  b")), "not allowed: a b");
        assert!(explain_status(&answer(401, "Unauthorized")).contains("log in"));
        assert_eq!(explain_status(&answer(422, "spec.vm: no")), "spec.vm: no");
        let named = serde_json::from_value::<Status>(
            serde_json::json!({"code": 404, "message": "x not found", "details": {"name": "x"}}),
        );
        assert_eq!(explain_status(&named.unwrap()), "there is none with this name");
    }
}
