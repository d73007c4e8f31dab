//! A way into the cluster: its address, its certificate authority, and the client's identity.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use k8s_openapi::ByteString;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use serde_json::{Value, json};

use super::pki::Pair;

/// Why a kubeconfig could not be written or used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("kube does not take the kubeconfig")]
    Kubeconfig(#[source] KubeconfigError),
    #[error("cannot make a client")]
    Client(#[source] Box<kube::Error>),
}

/// Credentials for one cluster, to be used as a client or written as a kubeconfig.
#[derive(Clone)]
pub struct Login {
    address: SocketAddr,
    authority: String,
    user: Value,
}

impl Login {
    pub(super) fn certificate(port: u16, authority: String, pair: Pair) -> Self {
        let user = json!({
            "client-certificate-data": ByteString(pair.certificate.into_bytes()),
            "client-key-data": ByteString(pair.key.into_bytes()),
        });
        Self::new(port, authority, user)
    }

    pub(super) fn token(port: u16, authority: String, token: &str) -> Self {
        Self::new(port, authority, json!({ "token": token }))
    }

    fn new(port: u16, authority: String, user: Value) -> Self {
        Self {
            address: (Ipv4Addr::LOCALHOST, port).into(),
            authority,
            user,
        }
    }

    /// The token, of a login by one.
    pub fn bearer(&self) -> Option<&str> {
        self.user["token"].as_str()
    }

    /// The same credentials with the API server's address as seen from elsewhere, such as from a node of the lab.
    #[must_use]
    pub fn at(mut self, address: IpAddr) -> Self {
        self.address.set_ip(address);
        self
    }

    /// The kubeconfig's text: JSON, which is YAML too. It needs no other file.
    pub fn kubeconfig(&self) -> String {
        let cluster = json!({
            "server": format!("https://{}", self.address),
            "certificate-authority-data": ByteString(self.authority.clone().into_bytes()),
        });
        let document = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": cluster }],
            "users": [{ "name": "test", "user": self.user }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
            "current-context": "test",
        });
        format!("{document:#}\n")
    }

    /// Writes the kubeconfig, readable by its owner only.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        write_private(path, &self.kubeconfig())
    }

    /// A client with these credentials.
    pub async fn client(&self) -> Result<kube::Client, Error> {
        let kubeconfig = Kubeconfig::from_yaml(&self.kubeconfig()).map_err(Error::Kubeconfig)?;
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
        kube::Client::try_from(config.map_err(Error::Kubeconfig)?).map_err(|e| Error::Client(Box::new(e)))
    }
}

/// Writes a file that holds a secret.
pub(super) fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|source| Error::Write {
        path: path.to_owned(),
        source,
    })
}
