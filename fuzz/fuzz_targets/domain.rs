//! A libvirt domain and a VM as KubeVirt and other sidecars write them: any content gets an answer, and an answer that is passed in
//! again stays as it is.
#![no_main]

use hybridnic_sidecar::{domain, vmi};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &str)| {
    let (source, json) = input;
    // Most of what is read is of the domain.
    let nics = vmi::nics(json.as_bytes()).unwrap_or_else(|_| {
        vec![vmi::Nic {
            name: "fast".into(),
            model: None,
        }]
    });
    if let Ok(edited) = domain::edit(source, &nics) {
        assert_eq!(domain::edit(&edited, &nics).as_deref(), Ok(&*edited));
    }
});
