//! Every netdev as the kernel shows it under `/sys/class/net`, without asking netlink: a guest whose RTNL lock
//! hangs can still be looked at.

use std::fs;
use std::io;
use std::path::Path;

use hybridnic_e2e::lab::view::Netdev;

pub(crate) fn main() -> io::Result<()> {
    let mut netdevs = Vec::new();
    for entry in fs::read_dir("/sys/class/net")? {
        // One that goes while we look is simply not there.
        netdevs.extend(netdev_of(&entry?.path()));
    }
    netdevs.sort_by_key(|n| n.ifindex);
    println!("{}", serde_json::to_string(&netdevs)?);
    Ok(())
}

fn netdev_of(dir: &Path) -> Option<Netdev> {
    let text = |file: &str| {
        fs::read_to_string(dir.join(file))
            .ok()
            .map(|t| t.trim().to_owned())
    };
    let count = |file: &str| text(file).and_then(|t| t.parse().ok()).unwrap_or(0);
    let link = |file: &str| {
        fs::read_link(dir.join(file))
            .ok()?
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
    };
    let flags = text("flags")?;
    Some(Netdev {
        name: dir.file_name()?.to_string_lossy().into_owned(),
        ifindex: text("ifindex")?.parse().ok()?,
        mac: text("address")?,
        mtu: text("mtu")?.parse().ok()?,
        up: u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok()? & 1 != 0,
        operstate: text("operstate")?,
        // Reading it fails while the netdev is down.
        carrier: text("carrier").is_some_and(|t| t == "1"),
        driver: link("device/driver"),
        device: link("device"),
        master: link("master"),
        phys_port_name: text("phys_port_name").filter(|t| !t.is_empty()),
        rx_packets: count("statistics/rx_packets"),
        tx_packets: count("statistics/tx_packets"),
        rx_dropped: count("statistics/rx_dropped"),
    })
}
