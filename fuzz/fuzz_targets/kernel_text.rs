//! Lines of the kernel: addresses, uevents, multicast lists, counts of interrupts. What is read means what was written.
#![no_main]

use hybridnic_net::{MacAddr, PciAddress, PciId, VlanProtocol, fuzzing};
use libfuzzer_sys::fuzz_target;

/// A text is refused, or it is what its value is written as, except for capital letters.
fn means_itself<T: std::str::FromStr<Err: std::fmt::Display> + std::fmt::Display>(text: &str) {
    match text.parse::<T>() {
        Ok(value) => assert!(value.to_string().eq_ignore_ascii_case(text), "{text:?}: {value}"),
        Err(error) => drop(error.to_string()),
    }
}

fuzz_target!(|bytes: &[u8]| {
    if let Some(uevent) = fuzzing::uevent(bytes) {
        let whole = String::from_utf8_lossy(bytes);
        assert!(whole.contains(&uevent.devpath));
        let _ = format!("{uevent:?}");
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    means_itself::<MacAddr>(text);
    means_itself::<PciId>(text);
    means_itself::<VlanProtocol>(text);
    // A domain may have any number of leading zeroes.
    if let Ok(address) = text.parse::<PciAddress>() {
        assert_eq!(address.to_string().parse(), Ok(address));
        assert!(text.len() < "ffffffff:ff:1f.70".len());
    }
    let lines = text.lines().count();
    for index in [0, 4] {
        assert!(fuzzing::multicast(text, index).len() <= lines);
    }
    let _ = fuzzing::interrupts(text);
});
