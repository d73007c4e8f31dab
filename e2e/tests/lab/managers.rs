//! Guests whose network is systemd-networkd's or NetworkManager's, with the rules that `docs/guests.md` prints: one DHCP client, and it
//! is the master's, whatever becomes of the VF. And without the rules it is not so.

use std::{collections::BTreeSet, net::Ipv4Addr, path::Path, sync::Arc, time::Duration};

use hybridnic_e2e::{
    docs,
    lab::{
        Dhcp, Manager,
        dhcp::{LEASE, Message},
    },
    world::{NicSpec, Vm, VmSpec, World},
};
use libtest_mimic::Trial;
use tokio::time::{sleep, timeout};

use crate::{
    aside::{AUTO, STANDBY, tell, told},
    common::{LATER, SOON, check_fast_path, fast_on, trio, vm_on_fast_path},
    flight::move_to,
    suite::Suite,
};

const RULES: &str = "docs/guests.md";
/// A guest tells of no change by itself.
const LOOK: Duration = Duration::from_millis(300);

pub fn tests(suite: &Arc<Suite>) -> Vec<Trial> {
    vec![
        suite.test("systemd_networkd_leaves_both_below_the_master_alone", async |w| {
            one_lease(w, Manager::Networkd).await
        }),
        suite.test("network_manager_leaves_both_below_the_master_alone", async |w| {
            one_lease(w, Manager::NetworkManager).await
        }),
    ]
}

async fn one_lease(world: &World, manager: Manager) {
    let rules = rules();
    world.lab.add_managed(&rules).await.unwrap();
    let server = world.lab.dhcp().unwrap();
    let wire = world.lab.capture_at_peer("udp port 67").await.unwrap();
    let spec = VmSpec::new("web", &[NicSpec::new(0, 51)]).managed(manager);
    let first = vm_on_fast_path(world, &spec, "web-a", 1, "fast").await.unwrap();
    let nic = fast_on(world, "web-0", 1).await.unwrap();
    check_fast_path(world, &first, &nic).await.unwrap();
    let address = leased(&first, &spec).await;
    only_the_master(&first, &spec, manager, address, true).await;
    let pinger = world.lab.pinger(address, 100).unwrap();
    assert!(pinger.answered(50, SOON).await, "no answer by the VF");

    // Out of the guest, and in again.
    tell(world, "web-0", STANDBY).await;
    told(world, "web-0", 1).await;
    only_the_master(&first, &spec, manager, address, false).await;
    assert!(pinger.answered(50, SOON).await, "no answer by the standby");
    tell(world, "web-0", AUTO).await;
    let nic = fast_on(world, "web-0", 1).await.unwrap();
    only_the_master(&first, &spec, manager, address, true).await;

    // Another VF, of another node; and the lease is good for another term there.
    let second = world.start_vm(&spec, "web-b", 2, true).await.unwrap();
    move_to(world, "there", "web-b", &second, &nic).await;
    only_the_master(&second, &spec, manager, address, true).await;
    another_term(&server).await;
    only_the_master(&second, &spec, manager, address, true).await;
    assert!(pinger.answered(50, SOON).await, "no answer after the migration");
    for gap in &pinger.stop().await.round_trip.gaps {
        eprintln!("gap of {:?}, {} lost", gap.length, gap.lost);
    }

    let frames = wire.stop().unwrap();
    let messages: Vec<_> = frames.iter().filter_map(Message::of).collect();
    one_client(&messages, address);

    without(&second, &rules, manager).await;
    tell(world, "web-0", STANDBY).await;
    told(world, "web-0", 2).await;
    tell(world, "web-0", AUTO).await;
    the_vf_has_one_too(&second, &spec).await;
}

/// The files that the documentation prints, by their paths in the guest.
fn rules() -> Vec<(String, String)> {
    let pages = docs::pages().unwrap();
    let page = pages.iter().find(|page| page.path == Path::new(RULES)).unwrap();
    let rules: Vec<_> = page
        .blocks
        .iter()
        .filter_map(|block| {
            Some((
                block.words().strip_prefix("file=")?.to_owned(),
                block.text.clone(),
            ))
        })
        .collect();
    assert_eq!(
        rules.len(),
        3,
        "one for udev, two for systemd-networkd: {rules:#?}"
    );
    rules
}

/// Waits until the master has an address, and gives it.
async fn leased(vm: &Vm, spec: &VmSpec) -> Ipv4Addr {
    let looking = async {
        loop {
            let view = vm.guest.net().await.unwrap();
            let master = &trio(&view, &spec.nics[0].mac).unwrap().0.name;
            if let Some(addresses) = vm.guest.addresses().await.unwrap().get(master) {
                return addresses[0].parse().unwrap();
            }
            sleep(LOOK).await;
        }
    };
    timeout(LATER, looking).await.expect("the master gets an address")
}

/// Waits until the manager is done with all devices of the NIC; then the master alone is its own, and alone has an address.
async fn only_the_master(vm: &Vm, spec: &VmSpec, manager: Manager, address: Ipv4Addr, with_vf: bool) {
    let done = async {
        loop {
            let view = vm.guest.net().await.unwrap();
            let (master, standby, primary) = trio(&view, &spec.nics[0].mac).unwrap();
            assert_eq!(primary.is_some(), with_vf, "{view:#?}");
            let addresses = vm.guest.addresses().await.unwrap();
            let only = [(master.name.clone(), vec![address.to_string()])].into();
            assert_eq!(addresses, only, "{view:#?}");
            let states = manager.states(&vm.guest).await.unwrap();
            let is = |device: &str, state: &str| states.get(device).is_some_and(|s| s == state);
            if is(&master.name, manager.configured())
                && is(&standby.name, "unmanaged")
                && primary.is_none_or(|vf| is(&vf.name, "unmanaged"))
            {
                return;
            }
            eprintln!("not yet: {states:?}");
            sleep(LOOK).await;
        }
    };
    timeout(SOON, done)
        .await
        .expect("the manager has the master only");
}

/// Waits until the client has asked for another term, as it does after half of one.
async fn another_term(server: &Dhcp) {
    let given = server.given();
    let asking = async {
        while server.given() == given {
            // What the server says is in a file.
            sleep(LOOK).await;
        }
    };
    let term = Duration::from_secs(LEASE.into());
    timeout(term, asking).await.expect("another term of the lease");
}

/// All that was said was said with one client, which asked for an address once and has kept it.
fn one_client(messages: &[Message], address: Ipv4Addr) {
    let set = |kind: &str, of: fn(&Message) -> Option<&String>| -> BTreeSet<_> {
        let of_kind = messages.iter().filter(|m| kind.is_empty() || m.kind == kind);
        of_kind.filter_map(of).collect()
    };
    assert_eq!(set("", |m| m.client.as_ref()).len(), 1, "{messages:#?}");
    let address = address.to_string();
    assert_eq!(set("", |m| m.given.as_ref()), [&address].into(), "{messages:#?}");
    let first = messages.iter().position(|m| m.kind == "ACK").unwrap();
    let later = &messages[first..];
    // NetworkManager's client repeats itself under another number. But one that has what it wants is done, and so is the number.
    let began = set("Discover", |m| Some(&m.xid));
    let ended = set("ACK", |m| Some(&m.xid));
    assert!(began.intersection(&ended).count() <= 1, "{messages:#?}");
    assert!(!later.iter().any(|m| m.kind == "Discover"), "{messages:#?}");
    let refused = |m: &Message| !["Discover", "Offer", "Request", "ACK"].contains(&m.kind.as_str());
    assert!(!messages.iter().any(refused), "{messages:#?}");
}

/// Takes the rules away. systemd-networkd is told to set up each Ethernet device, as it often is; NetworkManager does by itself.
async fn without(vm: &Vm, rules: &[(String, String)], manager: Manager) {
    let paths: Vec<_> = rules.iter().map(|(path, _)| path.as_str()).collect();
    let mut script = format!("rm {} && udevadm control --reload", paths.join(" "));
    if manager == Manager::Networkd {
        script.push_str(
            r" && printf '[Match]\nName=en*\n\n[Network]\nDHCP=yes\n' >/etc/systemd/network/20-any.network && networkctl reload",
        );
    }
    vm.guest.run(&script, SOON).await.unwrap();
}

/// Waits until the manager has given the VF an address: what the rules are for, and what they were seen to prevent.
async fn the_vf_has_one_too(vm: &Vm, spec: &VmSpec) {
    let looking = async {
        loop {
            let view = vm.guest.net().await.unwrap();
            let vf = trio(&view, &spec.nics[0].mac).unwrap().2;
            if let Some(vf) = vf
                && vm.guest.addresses().await.unwrap().contains_key(&vf.name)
            {
                return;
            }
            sleep(LOOK).await;
        }
    };
    timeout(LATER, looking)
        .await
        .expect("the VF gets an address without the rules");
}
