//! The address of a NIC that is new. Pure.

use std::{collections::BTreeSet, sync::Arc};

use hybridnic_api::{
    conditions::reasons,
    v1alpha1::{HybridNetworkSpec, VmHybridNic, VmHybridNicStatus},
};
use hybridnic_decisions::mac::{self, HandedOut, Lookup, Mac, Rules};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{
    decide::{Host, NAMESPACE, State},
    file::{Asked, AskedNic},
};

impl State {
    /// The address of a NIC that is new.
    pub(super) fn mac(
        &self,
        name: &str,
        asked: &AskedNic,
        network: &HybridNetworkSpec,
        host: &Host,
    ) -> Result<String, (&'static str, String)> {
        let Some(cards) = &host.cards else {
            return Err((
                reasons::VF_UNKNOWN,
                "the host's PFs cannot be read, and none of their addresses may be the NIC's".to_owned(),
            ));
        };
        let refused = |error: mac::Error| (error.reason(), error.to_string());
        let range = match &network.mac_range {
            Some(range) => mac::Range::parse(range).map_err(|error| refused(error.into()))?,
            None => mac::Range::of_network(&host.seed, &asked.spec.network),
        };
        let rules = Rules {
            range,
            macs: network.macs,
            whose: mac::hash(&[&host.seed]),
        };
        let others = self.objects(name);
        let holders = |mac: Mac| -> Vec<Arc<VmHybridNic>> {
            let is_it = |text: Option<&str>| text.and_then(|text| text.parse::<Mac>().ok()) == Some(mac);
            let has = |nic: &&Arc<VmHybridNic>| {
                is_it(nic.spec.mac.as_deref())
                    || is_it(nic.status.as_ref().and_then(|status| status.mac.as_deref()))
            };
            others.iter().filter(has).cloned().collect()
        };
        let lookup = Lookup {
            holders: &holders,
            is_card: &|mac| cards.contains(&mac.to_string()),
            is_unread: &|_| false,
        };
        let nic = object(name, asked, None);
        let given = mac::assign(&nic, rules, false, &lookup, &mut HandedOut::default());
        Ok(given.map_err(refused)?.mac.to_string())
    }

    /// The other NICs, as the decision on addresses looks at them.
    fn objects(&self, but: &str) -> Vec<Arc<VmHybridNic>> {
        let names: BTreeSet<&String> = self.nics.keys().chain(self.readings.keys()).collect();
        let others = names.into_iter().filter(|name| *name != but);
        let nic = |name: &String| {
            let Some(Asked::Nic(asked)) = self.understood.get(name) else {
                return None;
            };
            let has = self.nics.get(name).map(|nic| nic.want.spec.mac.clone());
            Some(Arc::new(object(name, asked, has)))
        };
        // Of one whose file is not understood only what it has is known.
        let has = |name: &String| {
            let want = &self.nics.get(name)?.want;
            let spec = serde_json::json!({ "network": want.spec.network, "vm": {} });
            let mut nic = VmHybridNic::new(name, serde_json::from_value(spec).ok()?);
            nic.metadata.namespace = Some(NAMESPACE.to_owned());
            nic.metadata.uid = Some(name.clone());
            nic.status.get_or_insert_default().mac = Some(want.spec.mac.clone());
            Some(Arc::new(nic))
        };
        others
            .filter_map(|name| nic(name).or_else(|| has(name)))
            .collect()
    }
}

/// A NIC, as the decision on addresses looks at it. No file says when it was made: the first by name comes first.
fn object(name: &str, asked: &AskedNic, mac: Option<String>) -> VmHybridNic {
    let mut nic = VmHybridNic::new(name, asked.spec.clone());
    nic.metadata.namespace = Some(NAMESPACE.to_owned());
    nic.metadata.uid = Some(name.to_owned());
    nic.metadata.creation_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
    nic.status = Some(VmHybridNicStatus {
        mac,
        ..VmHybridNicStatus::default()
    });
    nic
}
