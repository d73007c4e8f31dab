//! What the journal has of a VF whose vfio group a pod was given.

use std::{fmt, fs, path::PathBuf};

use hybridnic_api::v1alpha1::L2Settings;
use hybridnic_net::{DeviceId, PciAddress};
use serde::{Deserialize, Serialize};

use super::{Journal, JournalError, VERSION, VfRecord, record::understand};

/// The ending of a loan file's name. The name begins with the VF's address, so that the VF is known even if the file cannot be read.
const LOAN: &str = "loan";

/// A VF whose vfio group a pod was given before its NIC is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Loan {
    /// The version of the agent's records that this one was written by.
    pub version: u32,
    /// The device that the pod has.
    pub device: DeviceId,
    /// Its network.
    pub network: String,
    /// The network's settings when it was lent.
    pub l2: L2Settings,
    /// The VF, and how it was before.
    pub vf: VfRecord,
}

/// What is known of a VF that is lent.
#[derive(Clone, Debug, PartialEq)]
pub enum Lent {
    /// To whom, and how it was.
    Known(Box<Loan>),
    /// Its file cannot be read, and this is why.
    Unreadable(String),
}

impl fmt::Display for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(loan) => write!(
                f,
                "a pod has its vfio group, with the device {} of the network {}",
                loan.device, loan.network
            ),
            Self::Unreadable(why) => write!(
                f,
                "a pod has its vfio group, and the journal's file about that cannot be read, so the VF is given to nobody: {why}"
            ),
        }
    }
}

impl Loan {
    /// Of this agent.
    pub fn new(device: DeviceId, network: &str, l2: L2Settings, vf: VfRecord) -> Self {
        Self {
            version: VERSION,
            device,
            network: network.to_owned(),
            l2,
            vf,
        }
    }
}

impl Journal {
    /// All VFs that are lent, at start. A file that cannot be read stays where it is, and its VF is given to nobody.
    pub fn loans(&self) -> Result<Vec<(PciAddress, Lent)>, JournalError> {
        let mut loans = Vec::new();
        for path in self.list()? {
            if path.extension().is_none_or(|end| end != LOAN) {
                continue;
            }
            let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
            let Some(vf) = name.and_then(|name| name.parse().ok()) else {
                continue;
            };
            let read = fs::read(&path).map_err(|error| error.to_string());
            let loan = read.and_then(|text| understand::<Loan>(&text));
            let loan = match loan {
                Ok(loan) if loan.vf.address == vf => Lent::Known(Box::new(loan)),
                Ok(loan) => Lent::Unreadable(format!("it is about the VF {}", loan.vf.address)),
                Err(why) => Lent::Unreadable(why),
            };
            loans.push((vf, loan));
        }
        Ok(loans)
    }

    /// Writes a loan and returns once it is on disk.
    pub fn write_loan(&self, loan: &Loan) -> impl Future<Output = Result<(), JournalError>> + use<> {
        let text = serde_json::to_vec_pretty(loan).map_err(std::io::Error::from);
        self.put("write", self.loan_path(loan.vf.address), text.map(Some))
    }

    /// Removes a loan; nothing to do where there is none.
    pub fn remove_loan(&self, vf: PciAddress) -> impl Future<Output = Result<(), JournalError>> + use<> {
        self.put("remove", self.loan_path(vf), Ok(None))
    }

    fn loan_path(&self, vf: PciAddress) -> PathBuf {
        // Not `with_extension`: an address has a dot.
        self.dir.join(format!("{vf}.{LOAN}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::tests::held_vf;

    #[tokio::test]
    async fn a_loan_is_read_again_and_of_one_that_cannot_be_read_the_vf_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.loans().unwrap(), []);
        let vf = held_vf(0, 1);
        let loan = Loan::new(
            "0000:01:00.0-3".parse().unwrap(),
            "fast",
            L2Settings::default(),
            vf.clone(),
        );
        journal.write_loan(&loan).await.unwrap();
        let [(address, Lent::Known(read))] = &journal.loans().unwrap()[..] else {
            panic!("not one loan");
        };
        assert_eq!((*address, &**read), (vf.address, &loan));
        assert!(
            journal.load().unwrap().records.is_empty(),
            "it is no NIC's record"
        );

        let file = dir.path().join(format!("{}.loan", vf.address));
        for text in ["{", r#"{"version": 99}"#] {
            fs::write(&file, text).unwrap();
            let [(address, Lent::Unreadable(_))] = &journal.loans().unwrap()[..] else {
                panic!("it was understood");
            };
            assert_eq!(*address, vf.address);
        }
        journal.remove_loan(vf.address).await.unwrap();
        assert_eq!(journal.loans().unwrap(), []);
    }
}
