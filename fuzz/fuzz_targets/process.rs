//! What `/proc` says of a process: its control groups and its start. Nothing that a pod may write makes it another pod's.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../node-agent/src/machine/cgroup.rs"]
mod cgroup;
#[path = "../../node-agent/src/machine/stat.rs"]
mod stat;

const POD: &str = "0b2e7c1d-90aa-4f6e-8d2f-000000000001";
const OTHER: &str = "0b2e7c1d-90aa-4f6e-8d2f-000000000002";

fuzz_target!(|text: &str| {
    assert!(
        !(cgroup::is_of_pod(text, POD) && cgroup::is_of_pod(text, OTHER)),
        "{text:?}"
    );
    // A process of a pod may make groups below its own, of any name, and on no line of its own.
    let below = text.replace('\n', "");
    for group in [
        format!("0::/kubepods/burstable/pod{POD}/{below}\n"),
        format!(
            "0::/kubepods.slice/kubepods-pod{}.slice/{below}\n",
            POD.replace('-', "_")
        ),
    ] {
        assert!(
            cgroup::is_of_pod(&group, POD) && !cgroup::is_of_pod(&group, OTHER),
            "{group:?}"
        );
    }
    let _ = stat::parse(text);
    // And it may have any name.
    let line = format!("7 ({below}) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 5 6\n");
    assert_eq!(stat::parse(&line), Some(("S", 4711)), "{line:?}");
});
