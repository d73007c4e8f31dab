//! One end of a migration, as its driver sees and changes it: by the files of that host's directory.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use hybridnic_api::{
    conditions::{self, types},
    v1alpha1::MigrationStep,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::super::{
    file,
    order::{self, Attached, Order, Says},
};
use crate::durable::{self, found};

/// What both ends must speak: another number is another language.
pub const PROTOCOL: u32 = 1;

/// What is seen of an end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// The host's name, as its agent says it.
    pub node: String,
    /// The networks that there are.
    pub networks: BTreeSet<String>,
    /// The NICs that are asked about.
    pub nics: BTreeMap<String, SeenNic>,
}

/// What is seen of a NIC.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeenNic {
    /// The text of its file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// What is ordered of it, and in which version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<(Order, i64)>,
    /// Whether the agent says anything of it.
    #[serde(default)]
    pub said: bool,
    /// How it is, by the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached: Option<Attached>,
    /// Why the agent does not do what it is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
}

/// What to change. Each may be done twice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Command {
    /// Nothing: is anybody there?
    Look,
    /// Order this of a NIC.
    Order {
        /// The NIC.
        nic: String,
        /// What is ordered.
        order: Box<Order>,
    },
    /// Write or remove the file of a NIC of which this migration has ordered something.
    File {
        /// The NIC.
        nic: String,
        /// The file's text; without it, it is removed.
        text: Option<String>,
        /// The uid of the migration.
        migration: String,
        /// The start of its driver.
        session: u64,
    },
    /// Remove the order of a migration that is over.
    Forget {
        /// The NIC.
        nic: String,
        /// The uid of the migration.
        migration: String,
        /// The start of its driver.
        session: u64,
    },
}

/// One end.
#[derive(Clone, Debug)]
pub struct Hand {
    dir: PathBuf,
    nics: BTreeSet<String>,
}

impl Hand {
    /// For these NICs of this directory.
    pub fn new(dir: &Path, nics: &BTreeSet<String>) -> Self {
        Self {
            dir: dir.to_owned(),
            nics: nics.clone(),
        }
    }

    /// What is there.
    pub fn look(&self) -> io::Result<Seen> {
        let node: Option<Value> = self.yaml(&file::status(file::NODE))?;
        let node = node
            .as_ref()
            .and_then(|node| node.pointer("/metadata/name")?.as_str());
        let node = node.ok_or_else(|| {
            io::Error::other(format!("no agent has said anything in {}", self.dir.display()))
        })?;
        let mut seen = Seen {
            protocol: PROTOCOL,
            node: node.to_owned(),
            ..Seen::default()
        };
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str().and_then(file::told) else {
                continue;
            };
            // What of the NICs cannot be understood is an error below; what of others cannot says nothing.
            let text = self.text(&file::status(name))?;
            let said: Option<Value> = text.and_then(|text| serde_saphyr::from_str(&text).ok());
            let is_network = said.is_some_and(|said| said["kind"] == "HybridNetwork");
            if is_network {
                seen.networks.insert(name.to_owned());
            }
        }
        for name in &self.nics {
            seen.nics.insert(name.clone(), self.nic(name)?);
        }
        Ok(seen)
    }

    fn nic(&self, name: &str) -> io::Result<SeenNic> {
        let said: Option<Value> = self.yaml(&file::status(name))?;
        let part = |pointer: &str| said.as_ref().and_then(|said| said.pointer(pointer)).cloned();
        let attached = part("/attached").map(serde_json::from_value).transpose()?;
        let list: Vec<Condition> = part("/status/conditions")
            .map(serde_json::from_value)
            .transpose()?
            .unwrap_or_default();
        let refused = conditions::find(&list, types::ACCEPTED).filter(|accepted| accepted.status == "False");
        Ok(SeenNic {
            file: self.text(&file::asking(name))?,
            order: self.order(name)?,
            said: said.is_some(),
            attached,
            refusal: refused.map(|refused| format!("{}: {}", refused.reason, refused.message)),
        })
    }

    /// Does it; returns once it is on disk. An error: it was not done.
    pub fn apply(&self, command: &Command) -> io::Result<()> {
        // Between the look and the write nobody else writes.
        let _lock = durable::lock(&self.dir)?;
        match command {
            Command::Look => Ok(()),
            Command::Order { nic, order } => {
                self.check_order(nic, order)?;
                let text = serde_json::to_string_pretty(order)?;
                self.set(&order::file(nic), Some(&text))
            }
            Command::File {
                nic,
                text,
                migration,
                session,
            } => {
                self.check_ordered(nic, migration, *session)?;
                self.set(&file::asking(nic), text.as_deref())
            }
            Command::Forget {
                nic,
                migration,
                session,
            } => {
                if self.order(nic)?.is_none() {
                    return Ok(());
                }
                self.check_ordered(nic, migration, *session)?;
                self.set(&order::file(nic), None)
            }
        }
    }

    /// A NIC that is another migration's, or another NIC of that name, is not ordered about.
    fn check_order(&self, name: &str, order: &Order) -> io::Result<()> {
        self.check(name)?;
        let Some((there, _)) = self.order(name)? else {
            let Says::Be(be) = &order.says else {
                return Err(refused(format!("no migration has the NIC {name}")));
            };
            let nic = self.nic(name)?;
            let step = be.spec.migration.as_ref().map(|order| order.step);
            let comes = matches!(step, Some(MigrationStep::Listen | MigrationStep::GiveUp));
            if comes && nic.file.is_some() {
                return Err(taken(name));
            }
            let same = |attached: &Attached| attached.spec.nic.uid == be.spec.nic.uid;
            let other = match &nic.attached {
                Some(attached) => !same(attached),
                None => nic.file.is_some() || nic.said,
            };
            return if other { Err(taken(name)) } else { Ok(()) };
        };
        if there.migration != order.migration {
            return Err(refused(format!("another migration has the NIC {name}")));
        }
        is_late(there.session, order.session)?;
        // What was on its way in a connection that is lost must not undo what was said since by another.
        let comes_late = (order.session, order.serial) < (there.session, there.serial);
        if comes_late || (order.session, order.serial) == (there.session, there.serial) && *order != there {
            return Err(refused(format!("a later order of the NIC {name} is here")));
        }
        if there.says == Says::Over && order.says != Says::Over {
            return Err(refused(format!("the migration of the NIC {name} was ended here")));
        }
        Ok(())
    }

    fn check_ordered(&self, name: &str, migration: &str, session: u64) -> io::Result<()> {
        self.check(name)?;
        match self.order(name)? {
            Some((there, _)) if there.migration == migration => is_late(there.session, session),
            _ => Err(refused(format!(
                "this migration has not ordered anything of the NIC {name}"
            ))),
        }
    }

    fn check(&self, name: &str) -> io::Result<()> {
        if self.nics.contains(name) {
            Ok(())
        } else {
            Err(refused(format!("{name} is none of the migration's NICs")))
        }
    }

    fn order(&self, name: &str) -> io::Result<Option<(Order, i64)>> {
        let file = order::file(name);
        let Some(text) = self.text(&file)? else {
            return Ok(None);
        };
        match order::parse(&text) {
            order::Reading::Says(order, version) => Ok(Some((*order, version))),
            order::Reading::Unknown(why) => Err(io::Error::other(format!("{file}: {why}"))),
        }
    }

    fn text(&self, file: &str) -> io::Result<Option<String>> {
        found(fs::read_to_string(self.dir.join(file)))
    }

    fn yaml<T: DeserializeOwned>(&self, file: &str) -> io::Result<Option<T>> {
        let Some(text) = self.text(file)? else {
            return Ok(None);
        };
        let read = serde_saphyr::from_str(&text);
        read.map(Some)
            .map_err(|error| io::Error::other(format!("{file} cannot be understood: {error}")))
    }

    fn set(&self, file: &str, text: Option<&str>) -> io::Result<()> {
        durable::set(&self.dir, &self.dir.join(file), text.map(str::as_bytes))
    }
}

fn taken(name: &str) -> io::Error {
    refused(format!(
        "there is another NIC {name}: detach it first, or call it otherwise"
    ))
}

fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

fn is_late(there: u64, session: u64) -> io::Result<()> {
    if there <= session {
        Ok(())
    } else {
        Err(refused("a later `ctl migrate` drives this migration".to_owned()))
    }
}

#[cfg(test)]
#[path = "hand_tests.rs"]
mod tests;
