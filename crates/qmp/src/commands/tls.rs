//! Certificates for encrypted migrations (QEMU `qapi/crypto.json`, `misc.json`, `qom.json`).

use std::os::fd::BorrowedFd;

use serde::Deserialize;
use serde_json::json;

use crate::{Client, QmpError};

/// An end of an encrypted connection (`QCryptoTLSCredsEndpoint`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsEndpoint {
    /// It listens: a migration's target.
    Server,
    /// It connects: a migration's source.
    Client,
}

impl TlsEndpoint {
    /// QEMU's name of it, with which the names of its files begin.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }
}

/// A descriptor that QEMU has got (`AddfdInfo`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PassedFd {
    /// The set that holds it.
    pub fdset_id: u32,
    /// Its number in QEMU.
    pub fd: u32,
}

/// A set of descriptors (`FdsetInfo`).
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FdSet {
    fdset_id: u32,
    fds: Vec<NamedFd>,
}

#[derive(Deserialize)]
struct NamedFd {
    opaque: Option<String>,
}

#[derive(Deserialize)]
struct Property {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

impl Client {
    /// `add-fd`: gives QEMU a duplicate of `fd`, and says which number it has there.
    pub async fn add_fd(&self, fd: BorrowedFd<'_>) -> Result<PassedFd, QmpError> {
        self.execute_with_fd("add-fd", &json!({}), "add-fd", fd).await
    }

    /// As [`add_fd`](Self::add_fd), with a name by which [`remove_named_fds`](Self::remove_named_fds) finds it again.
    pub async fn add_named_fd(&self, fd: BorrowedFd<'_>, name: &str) -> Result<PassedFd, QmpError> {
        self.execute_with_fd("add-fd", &json!({ "opaque": name }), name, fd)
            .await
    }

    /// `remove-fd` of each set that has a descriptor of this name (`query-fdsets`). A QEMU before 9.1 closes it only while the VM runs.
    pub async fn remove_named_fds(&self, name: &str) -> Result<(), QmpError> {
        let sets: Vec<FdSet> = self.execute("query-fdsets", &json!({})).await?;
        let has_it = |set: &&FdSet| set.fds.iter().any(|fd| fd.opaque.as_deref() == Some(name));
        for FdSet { fdset_id, .. } in sets.iter().filter(has_it) {
            self.run("remove-fd", &json!({ "fdset-id": fdset_id })).await?;
        }
        Ok(())
    }

    /// `remove-fd`: QEMU closes what [`add_fd`](Self::add_fd) gave it.
    pub async fn remove_fd(&self, passed: PassedFd) -> Result<(), QmpError> {
        self.run("remove-fd", &json!({ "fdset-id": passed.fdset_id }))
            .await
    }

    /// `object-add` of a `tls-creds-x509` whose files are in the directory that [`add_fd`](Self::add_fd) gave. QEMU reads them
    /// now, and never again. It talks only to peers whose certificate a CA in `ca-cert.pem` has signed.
    pub async fn object_add_tls_creds(
        &self,
        id: &str,
        endpoint: TlsEndpoint,
        directory: PassedFd,
    ) -> Result<(), QmpError> {
        let arguments = json!({
            "qom-type": "tls-creds-x509",
            "id": id,
            "endpoint": endpoint.as_str(),
            "dir": format!("/proc/self/fd/{}", directory.fd),
            "verify-peer": true,
        });
        self.run("object-add", &arguments).await
    }

    /// Whether there is a `tls-creds-x509` with this id.
    pub async fn has_tls_creds(&self, id: &str) -> Result<bool, QmpError> {
        let objects: Vec<Property> = self.execute("qom-list", &json!({ "path": "/objects" })).await?;
        let is_it = |object: &Property| object.name == id && object.kind == "child<tls-creds-x509>";
        Ok(objects.iter().any(is_it))
    }
}
