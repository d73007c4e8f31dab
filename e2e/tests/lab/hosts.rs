//! Two hosts without a cluster: a VM moves from one to the other by one command, under traffic. It reaches the other one by OpenSSH.

use std::{sync::Arc, time::Duration};

use hybridnic_api::v1alpha1::NicPhase;
use hybridnic_e2e::{
    lab::{Guest, Lab, Process},
    world::{Fault, NETWORK, NETWORK_YAML, footprint},
};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    common::{SOON, watch, watched, whole},
    local::{ADDRESS, DEATH, DIR, Host, MAC, NIC, all_free},
    suite::{Suite, give_macs},
};

/// What remains of a migration's loss beside QEMU's own pause: the emulation jitters.
const JITTER: Duration = Duration::from_millis(500);
/// Between two pings.
const PING: Duration = Duration::from_millis(20);

pub fn tests(suite: &Arc<Suite>) -> Vec<Trial> {
    vec![
        suite.bare_of(2, "two_hosts_migrate_a_vm_by_one_command", async |lab| {
            Box::pin(two(lab)).await;
        }),
    ]
}

/// A host with its agent, its network, and all of its VFs; and how it looks then.
async fn host(lab: &Lab, number: usize) -> (Host<'_>, String) {
    let mut host = Host::of(lab, number).await;
    host.start().await;
    host.write(NETWORK, NETWORK_YAML).await;
    host.until("node", "with 14 free VFs", all_free).await;
    give_macs(host.node).await.unwrap();
    let clean = footprint(host.node).await.unwrap();
    (host, clean)
}

async fn two(lab: &Lab) {
    let (mut first, clean_first) = host(lab, 1).await;
    let (mut second, clean_second) = host(lab, 2).await;
    lab.add_ssh().await.unwrap();
    let _sshd = second.node.sshd().await.unwrap();
    first.node.logs_in_to(second.node).await.unwrap();

    let guest = first.start_guest().await;
    let (code, said) = first.attach("").await;
    assert_eq!(code, 0, "{said}");
    let refused = Box::pin(refused(&first, &second, &guest, &clean_second));
    whole(refused, Fault::of_guest(&guest)).await;
    let target = second.start_qemu(true).await;
    let hosts = [&mut first, &mut second];
    let moves = Box::pin(moves(lab, hosts, [&guest, &target], &clean_first));
    whole(moves, Fault::of_guest(&target)).await;
    // There it is a NIC like any other.
    let (code, said) = second.ctl(&format!("detach {NIC}")).await;
    assert_eq!(code, 0, "{said}");
    second.until_clean(&clean_second).await;
}

/// What follows `ctl --dir DIR`.
fn migrate(second: &Host<'_>, more: &str) -> String {
    let to = second.node.name();
    format!("migrate {NIC} --to root@{to} --agent {} {more}", second.program)
}

/// The files of the NIC and its migration on a host.
async fn files(host: &Host<'_>) -> Vec<String> {
    let list = format!("ls {DIR}");
    let list = host.node.run(&list, SOON).await.unwrap();
    let mut names: Vec<String> = list
        .lines()
        .filter(|name| name.starts_with(NIC))
        .map(str::to_owned)
        .collect();
    names.sort();
    names
}

/// Nothing has begun, or all is as it was: the VM runs on with its VF.
async fn refused(first: &Host<'_>, second: &Host<'_>, guest: &Guest, clean: &str) {
    let before = first.fast(guest).await;
    let here = files(first).await;

    // Nobody is there to be asked whether this is its key.
    let (code, said) = first.ctl(&migrate(second, "")).await;
    assert!(
        code == 1 && said.contains("Host key verification failed"),
        "{said}"
    );
    assert!(said.contains("does not answer, and nothing has begun"), "{said}");
    first.node.knows(second.node).await.unwrap();
    let (code, said) = first.ctl(&migrate(second, "--connect false")).await;
    assert!(
        code == 1 && said.contains("does not answer, and nothing has begun"),
        "{said}"
    );
    let (code, said) = first.ctl(&format!("migrate {NIC} --cancel")).await;
    assert!(
        code == 1 && said.contains("no migration of eth0 has begun"),
        "{said}"
    );

    // No QEMU waits there.
    let (code, said) = first.ctl(&migrate(second, "--prepare-deadline 8")).await;
    assert!(code == 1 && said.contains("TargetNotReady"), "{said}");
    assert!(said.contains("n2 is not ready for eth0"), "{said}");
    let after = first.fast(guest).await;
    let vf = |nic: &hybridnic_api::v1alpha1::VmHybridNic| nic.status.as_ref().unwrap().vf.clone();
    assert_eq!(vf(&before), vf(&after), "it was plugged again");
    assert_eq!(files(first).await, here);
    assert_eq!(files(second).await, Vec::<String>::new());
    second.until_clean(clean).await;
}

/// Starts the command, and kills it once it has said so much.
async fn killed_at(first: &Host<'_>, more: &str, phase: &str) {
    let line = format!("{} ctl --dir {DIR} {more}", first.program);
    let argv: Vec<&str> = line.split_whitespace().collect();
    let driver: Process = first.node.spawn(&argv, &[], "migrate").await.unwrap();
    assert!(
        driver.logged(phase, SOON).await.unwrap(),
        "{}",
        driver.read_log().unwrap()
    );
    driver.kill(DEATH).await.unwrap();
}

async fn moves(lab: &Lab, hosts: [&mut Host<'_>; 2], guests: [&Guest; 2], clean: &str) {
    let [first, second] = hosts;
    let [guest, target] = guests;
    let before = first.fast(guest).await;
    let pinger = watch(lab, ADDRESS, 50).await;

    // Its driver dies twice, and with it the source's agent, and then the target's: each goes on where it was.
    let begin = migrate(second, "");
    killed_at(first, &begin, "SwitchingToStandby").await;
    // What an agent had begun with waits for the next one.
    let mut away = first.replace().await;
    let (code, said) = first.ctl(&begin.replace("n2", "n3")).await;
    assert!(code == 2 && said.contains("has begun"), "{said}");
    let again = format!("migrate {NIC} --agent {}", second.program);
    killed_at(first, &again, "Transferring").await;
    // The VM may arrive while there is none, and runs there once there is one.
    away += second.replace().await;
    let (code, said) = first.ctl(&again).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("Succeeded"), "{said}");
    eprintln!("{said}");

    let arrived = second.until_nic("on a VF there", |status| status.phase == NicPhase::FastPath);
    arrived.await;
    let nic = second.fast(target).await;
    let status = nic.status.as_ref().unwrap();
    assert_eq!(status.mac.as_deref(), Some(MAC));
    assert_eq!(status.node_name.as_deref(), Some(second.node.name()));
    assert_eq!(target.status().await.unwrap(), "running");

    // Nothing is left where it was.
    let code = guest.qemu().wait(DEATH).await.unwrap();
    assert_eq!(code, Some(0), "the source's QEMU is ended");
    first.until(NIC, "gone", Value::is_null).await;
    first.until_clean(clean).await;
    assert_eq!(files(first).await, Vec::<String>::new());
    let there = [format!("{NIC}.status.yaml"), format!("{NIC}.yaml")];
    assert_eq!(files(second).await, there);
    assert!(before.status.unwrap().vf.is_some());

    assert!(pinger.answered(50, SOON).await, "no answer after all");
    let report = watched(pinger).await;
    for gap in &report.round_trip.gaps {
        eprintln!("gap of {:?}, {} lost", gap.length, gap.lost);
    }
    let lost = PING * u32::try_from(report.round_trip.lost()).unwrap();
    let pause = pause(&said);
    eprintln!("lost {lost:?}, QEMU's own pause {pause:?}, no agent for {away:?}");
    assert!(lost <= pause + away + JITTER, "{:#?}", report.round_trip.gaps);
}

/// The VM's pause, as the command says it at its end.
fn pause(said: &str) -> Duration {
    let words = said.split("the VM's pause ").nth(1);
    let ms = words.and_then(|words| words.split_whitespace().next()?.parse().ok());
    Duration::from_millis(ms.expect("the pause is said"))
}
