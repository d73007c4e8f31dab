//! Messages of rtnetlink, through the crates that decode them, to what we read of them.
#![no_main]

use hybridnic_net::fuzzing;
use hybridnic_net::netlink::{Link, LinkEvent};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut message = bytes.to_vec();
    // The kernel's messages are as long as they say.
    let length = u32::try_from(message.len()).unwrap_or_default();
    if let Some(field) = message.first_chunk_mut() {
        *field = length.to_ne_bytes();
    }
    let Some(read) = fuzzing::netlink(&message) else {
        return;
    };
    for vf in &read.vfs {
        // What is set already needs no change.
        assert_eq!(vf.changes_to(vf), []);
        for setting in hybridnic_net::netlink::VfConfig::default().changes_to(vf) {
            let _ = setting.to_string();
        }
    }
    assert!(read.vfs.is_sorted_by_key(|vf| vf.index));
    if let Some(LinkEvent::Changed(link)) = &read.event {
        let json = serde_json::to_string(link).expect("a link is written");
        assert_eq!(serde_json::from_str::<Link>(&json).expect("and read"), **link);
    }
});
