//! That a guest's driver has started is told to the NICs that have no other way to hear of it.

use hybridnic_api::v1alpha1::{MigrationOrder, ObjectRef};
use serde_json::json;

use super::*;
use crate::{host, machine::qemu::peer::Peer};

fn order(step: MigrationStep) -> MigrationOrder {
    MigrationOrder {
        migration: ObjectRef {
            name: "m".into(),
            uid: "m".into(),
        },
        nics: vec!["a".into()],
        step,
        target_uri: None,
        listen_address: None,
        tls: None,
        file: None,
    }
}

#[tokio::test]
async fn a_driver_that_starts_is_news_where_the_guest_bonds_and_the_vm_does_not_leave() {
    let dir = tempfile::tempdir().unwrap();
    let host = host::tests::made(dir.path(), 1, 1);
    let (client, mut peer) = Peer::connect().await;
    let event = Event {
        name: "NIC_RX_FILTER_CHANGED".into(),
        data: json!({"name": "sb-a", "path": "/machine/peripheral/sb-a/virtio-backend"}),
        timestamp: None,
    };
    for (pairing, step, is_news) in [
        (Pairing::NetFailover, None, false),
        (Pairing::Bond, None, true),
        (Pairing::Bond, Some(MigrationStep::Listen), true),
        (Pairing::Bond, Some(MigrationStep::Transfer), false),
    ] {
        let vm = Vm::new(Runtime::Qemu, "ns", "pod", "pod-uid");
        vm.update_nic("a", |nic| {
            nic.nic = "a".into();
            (nic.pairing, nic.order) = (pairing, step.map(order));
        });
        let before = *vm.pulse().borrow();
        assert!(
            !on_event(&vm, &host, &client, &event).await,
            "the migration goes on as before"
        );
        let after = *vm.pulse().borrow();
        assert_eq!(after.any > before.any, is_news, "{pairing:?} {step:?}");
        assert_eq!(
            after.fresh, before.fresh,
            "what had failed is not tried again for it"
        );
    }
    peer.is_left_alone(Duration::from_millis(100)).await;
}
