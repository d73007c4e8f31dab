//! Who wrote what to the API server: its own audit log, read back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Logs every write once, as it arrives: before it is carried out, so that a client that has its answer finds its
/// write in the log. The answer's code is therefore not known; refused writes count, as they are load too.
pub const POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [ResponseStarted, ResponseComplete, Panic]
rules:
- level: Metadata
  verbs: [create, update, patch, delete, deletecollection]
- level: None
";

/// Why the audit log could not be read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("cannot read the audit log {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("a line of the audit log is not an event: {line}")]
    Parse { line: String, source: serde_json::Error },
}

/// One write that reached the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The user's name, such as `system:serviceaccount:hybridnic:agent`.
    pub user: String,
    /// The node the user's token is bound to, for the tokens of pods.
    pub node: Option<String>,
    /// `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: String,
    /// The resource's plural, with its subresource: `nicattachments/status`.
    pub resource: String,
    /// The object's namespace; empty for cluster-scoped objects.
    pub namespace: String,
    /// The object's name; empty where the server makes it up.
    pub name: String,
    /// When it arrived, RFC 3339 with microseconds.
    pub at: String,
}

/// All writes of an audit log, in order. A last line without its end is still being written, and left out.
pub(super) fn read(path: &Path) -> Result<Vec<Write>, Error> {
    let log = match fs::read_to_string(path) {
        Ok(log) => log,
        // The server makes the file with its first event.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(Error::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    log.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(parse)
        .collect()
}

fn parse(line: &str) -> Result<Write, Error> {
    let event: Event = serde_json::from_str(line).map_err(|source| Error::Parse {
        line: line.to_owned(),
        source,
    })?;
    let object = event.object_ref;
    let resource = match object.subresource.as_str() {
        "" => object.resource,
        subresource => format!("{}/{subresource}", object.resource),
    };
    Ok(Write {
        user: event.user.username,
        node: event.user.extra.node.into_iter().next(),
        verb: event.verb,
        resource,
        namespace: object.namespace,
        name: object.name,
        at: event.request_received_timestamp,
    })
}

/// `audit.k8s.io/v1` Event, as far as it is used.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    verb: String,
    user: User,
    #[serde(default)]
    object_ref: ObjectRef,
    request_received_timestamp: String,
}

#[derive(Deserialize)]
struct User {
    #[serde(default)]
    username: String,
    #[serde(default)]
    extra: Extra,
}

#[derive(Deserialize, Default)]
struct Extra {
    #[serde(default, rename = "authentication.kubernetes.io/node-name")]
    node: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ObjectRef {
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}
