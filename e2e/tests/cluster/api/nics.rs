//! What a `VmHybridNic` may be.

use hybridnic_e2e::controlplane::ControlPlane;
use serde_json::{Value, json};

use super::{Case, judge};

pub(super) async fn rules(control_plane: &ControlPlane) {
    let base = json!({ "network": "fast", "vm": { "qemu": { "name": "web" } } });
    judge(
        control_plane,
        "VmHybridNic",
        &base,
        vec![
            Case("/network", Value::Null, "Required value"),
            Case("/network", json!(""), "should be at least 1 chars long"),
            Case("/network", json!("n".repeat(50)), ""),
            Case("/network", json!("n".repeat(51)), "Too long"),
            Case(
                "/vm",
                json!({}),
                "vm must name exactly one runtime, as in vm: {qemu: {name: my-vm}} or vm: {kubevirt: {name: my-vm}}",
            ),
            Case(
                "/vm",
                json!({"qemu": {"name": "web"}, "kubevirt": {"name": "web"}}),
                "vm must name exactly one runtime",
            ),
            // As files have it where there is no cluster.
            Case(
                "/vm",
                json!({"qemu": {"socket": "/run/vms/web.qmp"}}),
                "Required value",
            ),
            Case("/vm", json!({"kubevirt": {"name": "web.a"}}), ""),
            Case("/vm", json!({"kubevirt": {"name": "web", "interface": "fast_0"}}), ""),
            Case(
                "/vm",
                json!({"kubevirt": {"name": "Web"}}),
                "the name of a VirtualMachine",
            ),
            Case(
                "/vm",
                json!({"kubevirt": {"name": "web", "interface": "a.b"}}),
                "interface must be the name of an interface of the VM",
            ),
            Case("/path", json!("Auto"), ""),
            Case("/path", json!("Standby"), ""),
            Case("/path", json!("FastPath"), "Unsupported value"),
            Case("/keepVf", json!(false), ""),
            Case(
                "/keepVf",
                json!(true),
                "keepVf says what becomes of the VF under path: Standby",
            ),
            Case("/keepVf", json!("yes"), "must be of type boolean"),
            Case("/pairing", json!("NetFailover"), ""),
            Case("/pairing", json!("Bond"), ""),
            Case("/pairing", json!("Team"), "Unsupported value"),
            Case("/standby", json!("Macvtap"), ""),
            Case("/standby", json!("None"), ""),
            Case("/standby", json!("Bridge"), "Unsupported value"),
            Case(
                "/portInstanceId",
                json!("09b11c53-8B5C-4eeb-8f00-d84eaa0aaa4f"),
                "",
            ),
            Case(
                "/portInstanceId",
                json!("09b11c53-8b5c-4eeb-8f00"),
                "portInstanceId must be a UUID",
            ),
            Case("/vm/qemu/name", json!("web.1"), ""),
            Case("/vm/qemu/name", json!("-web"), "label hybridnic.io/vm"),
            Case("/vm/qemu/name", json!("a b"), "label hybridnic.io/vm"),
            Case("/vm/qemu/name", json!("v".repeat(63)), ""),
            Case("/vm/qemu/name", json!("v".repeat(64)), "Too long"),
            Case("/mac", json!("52:54:00:AA:bb:01"), ""),
            Case(
                "/mac",
                json!("52:54:00:aa:bb"),
                "mac must be six hexadecimal pairs with colons",
            ),
            Case(
                "/mac",
                json!("52-54-00-aa-bb-01"),
                "mac must be six hexadecimal pairs with colons",
            ),
            Case(
                "/mac",
                json!("01:54:00:aa:bb:01"),
                "mac must be a unicast address",
            ),
            Case("/mac", json!("00:00:00:00:00:00"), "mac must not be all zeros"),
            Case(
                "/mac",
                json!("ff:ff:ff:ff:ff:ff"),
                "mac must be a unicast address",
            ),
            Case("/mac", json!("06:00:00:aa:bb:01"), "mac must not begin with 06"),
            Case(
                "/mac",
                json!("00:00:5E:00:01:01"),
                "mac must not be one of virtual routers",
            ),
            Case(
                "/mac",
                json!("00:00:5e:00:02:ff"),
                "mac must not be one of virtual routers",
            ),
            Case(
                "/mac",
                json!("00:00:0c:07:ac:01"),
                "mac must not be one of virtual routers",
            ),
            Case(
                "/mac",
                json!("00:00:0C:9F:F1:23"),
                "mac must not be one of virtual routers",
            ),
            Case(
                "/mac",
                json!("00:05:73:a0:0f:ff"),
                "mac must not be one of virtual routers",
            ),
            Case(
                "/mac",
                json!("00:07:b4:00:01:02"),
                "mac must not be one of virtual routers",
            ),
            Case("/mac", json!("00:00:5e:00:03:01"), ""),
            Case("/mac", json!("00:05:73:a0:10:00"), ""),
            Case("/noFreeVf", json!("Wait"), ""),
            Case("/noFreeVf", json!("Panic"), "Unsupported value"),
        ],
    )
    .await;
    judge(
        control_plane,
        "VmHybridNic",
        &json!({ "network": "fast", "vm": { "kubevirt": { "name": "web" } } }),
        vec![
            Case("/pairing", json!("NetFailover"), ""),
            Case("/vm/kubevirt/name", json!("v".repeat(63)), ""),
            Case("/vm/kubevirt/name", json!("v".repeat(64)), "Too long"),
            Case("/vm/kubevirt/interface", json!("i".repeat(63)), ""),
            Case("/vm/kubevirt/interface", json!("i".repeat(64)), "Too long"),
            Case("/pairing", json!("Bond"), "pairing: Bond is for VMs in QEMU pods"),
            Case("/standby", json!("Macvtap"), ""),
            Case("/standby", json!("None"), "standby: None is for VMs in QEMU pods"),
        ],
    )
    .await;
    judge(
        control_plane,
        "VmHybridNic",
        &json!({ "network": "fast", "vm": { "qemu": { "name": "web" } }, "standby": "None" }),
        vec![
            Case("/pairing", json!("NetFailover"), ""),
            Case("/pairing", json!("Bond"), "with standby: None leave it out"),
            // On request the VF is out, and the VM has no network through the NIC.
            Case("/path", json!("Standby"), ""),
            Case("/noFreeVf", json!("Wait"), ""),
            Case("/noFreeVf", json!("Standby"), ""),
        ],
    )
    .await;
}
