use hybridnic_api::v1alpha1::{
    Aside, AttachmentState, Decision, GuestDevices, MigrationState, Pairing, Vlan,
};

use super::*;
use crate::testing::{a_move, attachment, nic, observe};

fn end(pod: &str, node: &str, ip: &str) -> MigrationEnd {
    MigrationEnd {
        node_name: node.to_owned(),
        pod: ObjectRef {
            name: pod.to_owned(),
            uid: format!("{pod}-uid"),
        },
        pod_ip: Some(ip.to_owned()),
    }
}

fn moving(stage: Stage) -> Move {
    Move {
        source: end("a", "n1", "10.0.0.1"),
        target: end("b", "n2", "fd00::2"),
        stage,
        ..a_move("m", "a", "b")
    }
}

fn specs(existing: &[Arc<NicAttachment>], place: Place<'_>) -> Vec<NicAttachmentSpec> {
    let nic = nic("eth0", "vm", "net", 1);
    let inputs = Inputs {
        nic: &nic,
        mac: "02:00:00:00:00:01",
        l2: None,
        interface: None,
        existing,
        pods: &[],
        place,
    };
    desired_attachments(&inputs)
}

/// Goal and order of source and target.
fn wishes(stage: Stage, ends: &Ends) -> (Wish, Wish) {
    let of = moving(stage);
    let specs = specs(&[], Place::Moving(&of, ends));
    let wish = |spec: &NicAttachmentSpec| (spec.goal, spec.migration.as_ref().map(|order| order.step));
    assert_eq!(
        (specs[0].node_name.as_str(), specs[1].node_name.as_str()),
        ("n1", "n2")
    );
    (wish(&specs[0]), wish(&specs[1]))
}

fn said(source: Option<MigrationState>, target: Option<MigrationState>) -> Ends {
    let word = |state: Option<MigrationState>| {
        let mut attachment = attachment("eth0", "a", "n1");
        crate::testing::report(&mut attachment, state?);
        attachment.status?.migration
    };
    Ends {
        begun: true,
        source: word(source),
        target: word(target),
        ..Ends::default()
    }
}

#[test]
fn at_rest_there_is_one() {
    assert_eq!(specs(&[], Place::Nowhere), []);
    let pod = ObjectRef {
        name: "a".to_owned(),
        uid: "a-uid".to_owned(),
    };
    let specs = specs(&[], Place::At(pod.clone(), "n1".to_owned()));
    assert_eq!(specs.len(), 1);
    let spec = &specs[0];
    assert_eq!(
        (spec.goal, &spec.migration, &spec.placement),
        (Goal::FastPath, &None, &None)
    );
    assert_eq!(
        (&spec.pod, spec.node_name.as_str(), spec.vm.name()),
        (&pod, "n1", "vm")
    );
}

#[test]
fn an_attached_nic_keeps_its_vlan_and_mtu_wherever_it_goes() {
    let vlan = |id| Vlan {
        id,
        qos: 0,
        protocol: hybridnic_api::v1alpha1::VlanProtocol::Dot1q,
    };
    // Deleted and made again, with another VLAN.
    let network = L2Settings {
        vlan: Some(vlan(666)),
        mtu: Some(9000),
        trust: true,
        ..L2Settings::default()
    };
    let mut source = attachment("eth0", "a", "n1");
    source.spec.l2.vlan = Some(vlan(42));
    let existing = [Arc::new(source)];
    let (nic, ends, of) = (
        nic("eth0", "vm", "net", 1),
        Ends::default(),
        moving(Stage::Preparing),
    );
    let place = || Place::Moving(&of, &ends);
    let l2 = |l2: Option<L2Settings>, existing: &[Arc<NicAttachment>]| {
        let inputs = Inputs {
            nic: &nic,
            mac: "02:00:00:00:00:01",
            l2,
            interface: None,
            existing,
            pods: &[],
            place: place(),
        };
        let specs = desired_attachments(&inputs);
        assert_eq!(
            (specs.len(), &specs[0].l2),
            (2, &specs[1].l2),
            "source and target"
        );
        specs[0].l2.clone()
    };
    let kept = l2(Some(network.clone()), &existing);
    assert_eq!((kept.vlan, kept.mtu, kept.trust), (Some(vlan(42)), None, true));
    assert_eq!(l2(None, &existing), existing[0].spec.l2, "the network is gone");
    assert_eq!(
        l2(Some(network.clone()), &[]),
        network,
        "it is attached for the first time"
    );
}

/// It is in the guest's device: what the NIC of that name says now counts only where there is no device yet.
#[test]
fn both_ends_of_a_migration_pair_in_the_same_way() {
    let mut bonded = nic("eth0", "vm", "net", 1);
    bonded.spec.pairing = Pairing::Bond;
    let (ends, of) = (Ends::default(), moving(Stage::Preparing));
    let pairings = |existing: &[Arc<NicAttachment>]| {
        let inputs = Inputs {
            nic: &bonded,
            mac: "02:00:00:00:00:01",
            l2: None,
            interface: None,
            existing,
            pods: &[],
            place: Place::Moving(&of, &ends),
        };
        let specs = desired_attachments(&inputs);
        specs.iter().map(|spec| spec.pairing).collect::<Vec<_>>()
    };
    assert_eq!(pairings(&[]), [Pairing::Bond; 2]);
    let source = Arc::new(attachment("eth0", "a", "n1"));
    assert_eq!(source.spec.pairing, Pairing::NetFailover);
    assert_eq!(pairings(&[source]), [Pairing::NetFailover; 2]);
}

/// The API server lets nobody change it in an attachment: one that an earlier operator made without it could be told nothing any more.
#[test]
fn an_attached_nic_keeps_its_name_at_the_switch_or_goes_without_one_wherever_it_goes() {
    let mut profiled = nic("eth0", "vm", "net", 1);
    profiled.spec.port_instance_id = Some("0b6e1f7a-1c5d-4a39-9d2e-5f0c8a7b6d43".to_owned());
    let (ends, of) = (Ends::default(), moving(Stage::Preparing));
    let ids = |existing: &[Arc<NicAttachment>]| {
        let inputs = Inputs {
            nic: &profiled,
            mac: "02:00:00:00:00:01",
            l2: None,
            interface: None,
            existing,
            pods: &[],
            place: Place::Moving(&of, &ends),
        };
        let specs = desired_attachments(&inputs);
        specs
            .into_iter()
            .map(|spec| spec.port_instance_id)
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(&[]), [(); 2].map(|()| profiled.spec.port_instance_id.clone()));
    let mut source = attachment("eth0", "a", "n1");
    for id in [None, Some("another".to_owned())] {
        source.spec.port_instance_id.clone_from(&id);
        assert_eq!(ids(&[Arc::new(source.clone())]), [id.clone(), id]);
    }
}

/// The guest finds its VF at the same place: its port goes along, and there is no other.
#[test]
fn both_ends_of_a_migration_lack_a_standby() {
    let mut alone = nic("eth0", "vm", "net", 1);
    alone.spec.standby = StandbyKind::None;
    let (ends, of) = (Ends::default(), moving(Stage::Preparing));
    let specs = |existing: &[Arc<NicAttachment>]| {
        desired_attachments(&Inputs {
            nic: &alone,
            mac: "02:00:00:00:00:01",
            l2: None,
            interface: None,
            existing,
            pods: &[],
            place: Place::Moving(&of, &ends),
        })
    };
    let kinds = |existing: &[Arc<NicAttachment>]| {
        let specs = specs(existing);
        specs.iter().map(|spec| spec.standby).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&[]), [StandbyKind::None; 2]);
    let mut source = attachment("eth0", "a", "n1");
    assert_eq!(kinds(&[Arc::new(source.clone())]), [StandbyKind::Macvtap; 2]);
    source.spec.standby = StandbyKind::None;
    source.status.get_or_insert_default().guest = GuestDevices {
        vf_port: Some("rp1".to_owned()),
        ..GuestDevices::default()
    };
    let ports = GuestPorts {
        standby: None,
        vf: "rp1".to_owned(),
    };
    assert_eq!(specs(&[Arc::new(source)])[1].root_ports(), Some(&ports));
}

#[test]
fn a_nic_that_is_told_to_stay_on_its_standby_has_the_goals_of_any_other() {
    use hybridnic_api::v1alpha1::WantedPath;

    let (ends, pod) = (
        Ends::default(),
        ObjectRef {
            name: "a".to_owned(),
            uid: "a-uid".to_owned(),
        },
    );
    let of = moving(Stage::Preparing);
    let places = || [Place::At(pod.clone(), "n1".to_owned()), Place::Moving(&of, &ends)];
    let specs = |path, keep_vf, place| {
        let mut nic = nic("eth0", "vm", "net", 1);
        (nic.spec.path, nic.spec.keep_vf) = (path, keep_vf);
        let inputs = Inputs {
            nic: &nic,
            mac: "02:00:00:00:00:01",
            l2: None,
            interface: None,
            existing: &[],
            pods: &[],
            place,
        };
        desired_attachments(&inputs)
    };
    for (n, place) in places().into_iter().enumerate() {
        let plain = specs(WantedPath::Auto, false, place);
        assert_eq!(plain.len(), n + 1);
        for (keep_vf, aside) in [(false, Aside::GiveVfBack), (true, Aside::KeepVf)] {
            let place = places().into_iter().nth(n).unwrap();
            let told = specs(WantedPath::Standby, keep_vf, place);
            let expected = plain.iter().cloned().map(|spec| NicAttachmentSpec {
                aside: Some(aside),
                ..spec
            });
            assert_eq!(told, expected.collect::<Vec<_>>());
        }
    }
}

#[test]
fn each_stage_has_its_goals() {
    use MigrationStep::{Listen, Prepare, Transfer};
    let receive = (Goal::FastPath, Some(Listen));
    let ends = Ends::default();
    assert_eq!(wishes(Stage::Preparing, &ends), ((Goal::FastPath, None), receive));
    assert_eq!(
        wishes(Stage::Leaving, &ends),
        ((Goal::Standby, Some(Prepare)), receive)
    );
    assert_eq!(
        wishes(Stage::Moving, &ends),
        ((Goal::Standby, Some(Transfer)), receive)
    );
    assert_eq!(
        wishes(Stage::Arrived, &ends),
        ((Goal::Detached, Some(Transfer)), receive)
    );
}

#[test]
fn a_rollback_gives_the_vf_back_only_when_the_vm_is_known_to_be_there() {
    use MigrationState::{Active, Cancelled, Completed, Ended, Failed, Listening, Lost};
    use MigrationStep::{Cancel, GiveUp, Listen};
    let rollback = |ends: &Ends| wishes(Stage::Returning, ends);
    let (receive, revoke) = ((Goal::FastPath, Some(Listen)), (Goal::Detached, Some(GiveUp)));
    let last = (Goal::Detached, Some(Listen));
    assert_eq!(
        rollback(&Ends::default()),
        ((Goal::FastPath, None), revoke),
        "never begun"
    );
    let gone = |ends: Ends| Ends {
        target_gone: true,
        target_over: true,
        ..ends
    };
    let decided = |ends: Ends, decision| Ends {
        decision: Some(decision),
        ..ends
    };
    let kept = |mut ends: Ends| {
        ends.source.as_mut().unwrap().kept = true;
        ends
    };
    let wait = (Goal::Standby, Cancel);
    let cases = [
        (said(None, Some(Listening)), wait, receive),
        (said(Some(Active), Some(Active)), wait, receive),
        (gone(said(Some(Active), Some(Active))), wait, receive),
        // The target's report that it ran decides, no matter what else is reported.
        (said(Some(Completed), Some(Completed)), wait, receive),
        (said(Some(Cancelled), Some(Completed)), wait, receive),
        (said(Some(Failed), Some(Completed)), wait, receive),
        (gone(said(Some(Completed), Some(Completed))), wait, receive),
        (gone(said(Some(Completed), Some(Ended))), wait, receive),
        (gone(said(Some(Failed), Some(Ended))), wait, receive),
        // No report means unknown, no matter what has become of the pod.
        (said(Some(Completed), Some(Active)), wait, revoke),
        (said(Some(Failed), Some(Active)), wait, revoke),
        (gone(said(Some(Completed), Some(Active))), wait, revoke),
        (gone(said(Some(Completed), None)), wait, revoke),
        (gone(said(Some(Failed), Some(Listening))), wait, revoke),
        // Nothing is at the source any more.
        (said(Some(Lost), Some(Active)), wait, last),
        (
            decided(said(Some(Lost), Some(Lost)), Decision::ResumeSource),
            wait,
            last,
        ),
        // The source's report that it never let go.
        (
            said(Some(Cancelled), Some(Active)),
            (Goal::FastPath, Cancel),
            revoke,
        ),
        (
            kept(said(Some(Failed), Some(Active))),
            (Goal::FastPath, Cancel),
            revoke,
        ),
        // A person's decision, if there is no report of the ends.
        (
            decided(gone(said(Some(Completed), None)), Decision::ResumeSource),
            wait,
            revoke,
        ),
        (
            decided(said(Some(Completed), None), Decision::AbandonSource),
            wait,
            receive,
        ),
        (
            decided(said(Some(Cancelled), Some(Completed)), Decision::ResumeSource),
            (Goal::FastPath, Cancel),
            revoke,
        ),
        (
            decided(said(Some(Completed), Some(Ended)), Decision::ResumeSource),
            wait,
            receive,
        ),
        (
            decided(said(Some(Active), None), Decision::ResumeSource),
            wait,
            receive,
        ),
    ];
    for (ends, (goal, step), target) in cases {
        assert_eq!(rollback(&ends), ((goal, Some(step)), target), "{ends:?}");
    }
}

#[test]
fn the_target_gets_the_ports_of_the_source() {
    let mut source = attachment("eth0", "a", "n1");
    observe(&mut source, AttachmentState::FastPath);
    source.status.as_mut().unwrap().guest = GuestDevices {
        vf_port: Some("rp1".to_owned()),
        standby_port: Some("rp2".to_owned()),
        ..GuestDevices::default()
    };
    let (of, ends) = (moving(Stage::Preparing), Ends::default());
    let first = specs(&[Arc::new(source.clone())], Place::Moving(&of, &ends));
    assert_eq!(first[0].placement, None);
    assert_eq!(
        first[1].root_ports(),
        Some(&GuestPorts {
            standby: Some("rp2".to_owned()),
            vf: "rp1".to_owned()
        })
    );

    // They stay when the source forgets them.
    let mut target = attachment("eth0", "b", "n2");
    target.spec.placement.clone_from(&first[1].placement);
    source.status = None;
    let later = specs(&[Arc::new(source), Arc::new(target)], Place::Moving(&of, &ends));
    assert_eq!(later[1].placement, first[1].placement);
}

#[test]
fn the_vm_is_sent_to_where_the_target_listens() {
    let of = moving(Stage::Moving);
    let ends = said(None, Some(MigrationState::Listening));
    let first = specs(&[], Place::Moving(&of, &ends));
    let order = first[0].migration.clone().unwrap();
    assert_eq!(order.target_uri.as_deref(), Some("tcp:[fd00::2]:4444"));
    assert_eq!(
        order.migration,
        ObjectRef {
            name: "m".to_owned(),
            uid: "m-uid".to_owned()
        }
    );
    let listen = first[1].migration.as_ref().unwrap();
    assert_eq!(
        (listen.target_uri.as_deref(), listen.listen_address.as_deref()),
        (None, Some("fd00::2"))
    );

    // It stays when the target says no port any more.
    let mut source = attachment("eth0", "a", "n1");
    source.spec.migration = Some(order.clone());
    let later = specs(
        &[Arc::new(source)],
        Place::Moving(&of, &said(None, Some(MigrationState::Active))),
    );
    assert_eq!(later[0].migration, Some(order));
    assert_eq!(
        uri(&end("b", "n2", "10.0.0.2"), 1).as_deref(),
        Some("tcp:10.0.0.2:1")
    );
    assert_eq!(uri(&end("b", "n2", "tcp:evil"), 1), None);
}

#[test]
fn settings_of_a_network_that_is_no_more_stay() {
    let mut there = attachment("eth0", "a", "n1");
    there.spec.l2.mtu = Some(9000);
    let pod = there.spec.pod.clone();
    let specs = specs(&[Arc::new(there)], Place::At(pod, "n1".to_owned()));
    assert_eq!(specs[0].l2.mtu, Some(9000));
}

#[test]
fn the_source_runs_on_once_the_status_says_so_and_then_whatever_is_heard() {
    use MigrationState::{Active, Cancelled, Completed, Ended, Failed, Listening, Lost};
    use MigrationStep::{Cancel, GiveUp, Listen, Resume};
    let rollback = |ends: &Ends| wishes(Stage::Returning, ends);
    let (receive, revoke) = ((Goal::FastPath, Some(Listen)), (Goal::Detached, Some(GiveUp)));
    let (wait, resume) = ((Goal::Standby, Cancel), (Goal::Standby, Resume));
    let told = |ends: Ends| Ends {
        resuming: true,
        ..ends
    };
    let kept = |mut ends: Ends| {
        ends.source.as_mut().unwrap().kept = true;
        ends
    };
    let given_up = |ends: Ends| Ends {
        given_up: true,
        ..ends
    };
    let cases = [
        // The target's report that it never ran, before the migration's status says what follows, and after.
        (said(Some(Completed), Some(Failed)), wait, revoke),
        (told(said(Some(Completed), Some(Failed))), resume, revoke),
        (said(Some(Completed), Some(Lost)), wait, revoke),
        (told(said(Some(Completed), Some(Lost))), resume, revoke),
        (said(Some(Failed), Some(Lost)), wait, revoke),
        (told(said(Some(Failed), Some(Lost))), resume, revoke),
        // It stands, no matter what either end reports, until the source has done it.
        (told(said(None, Some(Lost))), resume, revoke),
        (told(said(None, Some(Ended))), resume, revoke),
        (told(said(Some(Active), None)), resume, revoke),
        // It notes that it has the VM before it runs it.
        (told(kept(said(Some(Failed), Some(Lost)))), resume, revoke),
        (
            told(said(Some(Cancelled), Some(Lost))),
            (Goal::FastPath, Cancel),
            revoke,
        ),
        // Its pod may be gone, and it still runs.
        (
            told(Ends {
                source_gone: true,
                ..said(Some(Completed), None)
            }),
            wait,
            revoke,
        ),
        // A target that was told to give up is not told to listen again.
        (given_up(said(None, Some(Listening))), wait, revoke),
        (given_up(said(Some(Completed), Some(Completed))), wait, receive),
    ];
    for (ends, (goal, step), target) in cases {
        assert_eq!(rollback(&ends), ((goal, Some(step)), target), "{ends:?}");
    }
}
