//! The networks: one between the nodes' cards, with a peer to talk to; one between the nodes and the host.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{self, Output, Stdio};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::{MissedTickBehavior, interval};

use super::site::Site;

/// The peer's side of the network between the cards.
pub const BRIDGE: &str = "br0";
/// Guests' subnets: the peer is 10.77.N.1/24 for each N below this, so that a guest's NICs can have one each.
pub const SUBNETS: u8 = 16;
/// How soon the peer asks again for a guest's MAC, in milliseconds: what is lost shows within this.
const ASK_AGAIN: &str = "250";

/// The IPv6 address of the guest at this address, fd77:0:0:N::X for 10.77.N.X; likewise the peer's.
pub fn ipv6(address: Ipv4Addr) -> Ipv6Addr {
    let [_, _, net, host] = address.octets();
    Ipv6Addr::new(0xfd77, 0, 0, net.into(), 0, 0, 0, host.into())
}

/// The group that the guest at this address has joined, 239.77.N.X for 10.77.N.X.
pub fn group(guest: Ipv4Addr) -> Ipv4Addr {
    let [_, _, net, host] = guest.octets();
    Ipv4Addr::new(239, 77, net, host)
}

/// The networks could not be made or asked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("run ip")]
    Run(#[source] io::Error),
    #[error("ip {what}: {stderr}")]
    Ip { what: String, stderr: String },
    #[error("open the network namespace")]
    Namespace(#[source] io::Error),
    #[error("open a socket at the peer")]
    Socket(#[source] io::Error),
}

/// The lab's network namespace and what is in it.
#[derive(Debug)]
pub struct Net {
    site: Site,
    name: String,
    ns: File,
}

impl Net {
    /// Removes what dead runs have left, then makes everything again. The caller holds the site.
    pub(crate) async fn create(site: Site, nodes: u8) -> Result<Self, Error> {
        reap(site).await;
        let name = format!("{}{}", site.prefix(), process::id());
        ip(&["netns", "add", &name], None).await?;
        let ns = File::open(Path::new("/run/netns").join(&name)).map_err(Error::Namespace)?;
        // From here on Drop cleans up.
        let net = Self { site, name, ns };
        let link = net.site.link();
        net.in_namespace(|| {
            for scope in ["all", "default"] {
                fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1")?;
            }
            Ok(())
        })
        .map_err(Error::Namespace)?;
        net.batch(&inner_network(nodes)).await?;
        net.in_namespace(|| {
            fs::write(format!("/proc/sys/net/ipv6/conf/{BRIDGE}/disable_ipv6"), "0")?;
            fs::write(
                format!("/proc/sys/net/ipv6/neigh/{BRIDGE}/retrans_time_ms"),
                ASK_AGAIN,
            )
        })
        .map_err(Error::Namespace)?;
        net.batch(&ipv6_addresses()).await?;
        ip(
            &[
                "link", "add", &link, "type", "veth", "peer", "name", "host", "netns", &net.name,
            ],
            None,
        )
        .await?;
        ip(
            &["addr", "add", &format!("{}/24", site.host()), "dev", &link],
            None,
        )
        .await?;
        ip(&["link", "set", &link, "up"], None).await?;
        net.batch("link set host master adm up\n").await?;
        Ok(net)
    }

    /// Name of the network namespace: `ip -n NAME` works on it.
    pub fn namespace(&self) -> &str {
        &self.name
    }

    pub(crate) fn file(&self) -> &File {
        &self.ns
    }

    /// The tap behind a port of a node: node 1 and port 0 are `n1p0`.
    pub fn tap(node: u8, port: u8) -> String {
        format!("n{node}p{port}")
    }

    /// Makes the peer forget which MAC a guest has, again and again: it has to ask for it, by multicast. Ends when it is
    /// dropped.
    pub(crate) fn forget(&self, guest: Ipv6Addr, every: Duration) -> impl Future<Output = ()> + use<> {
        let (name, guest) = (self.name.clone(), guest.to_string());
        async move {
            let mut ticks = interval(every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                // It may not know it yet.
                let _ = ip(&["-n", &name, "neigh", "del", &guest, "dev", BRIDGE], None).await;
            }
        }
    }

    /// Runs `ip ARGS` in the lab's namespace and gives its output.
    pub async fn ip(&self, args: &[&str]) -> Result<String, Error> {
        let args = [&["-n", &self.name], args].concat();
        ip(&args, None).await
    }

    /// Routes a subnet on the host through a machine of the management network.
    pub async fn route(&self, subnet: &str, via: IpAddr) -> Result<(), Error> {
        let args = [
            "route",
            "replace",
            subnet,
            "via",
            &via.to_string(),
            "dev",
            &self.site.link(),
        ];
        ip(&args, None).await.map(|_| ())
    }

    /// The bridge's ports that have learned a MAC address: where the outer network believes it to be.
    pub async fn learned_at(&self, mac: &str) -> Result<Vec<String>, Error> {
        let output = Command::new("bridge")
            .args(["-n", &self.name, "fdb", "show", "br", BRIDGE])
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(Error::Run)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let port = |line: &str| {
            let mut words = line.split_whitespace();
            (words.next()? == mac).then(|| words.nth(1).map(str::to_owned))?
        };
        Ok(text.lines().filter_map(port).collect())
    }

    /// A UDP socket at the peer.
    pub(crate) fn udp(&self, bind: IpAddr) -> Result<UdpSocket, Error> {
        self.in_namespace(|| UdpSocket::bind((bind, 0)))
            .map_err(Error::Socket)
    }

    /// Runs something on a thread that is in the lab's namespace. Sockets made there stay there.
    fn in_namespace<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(self.ns.as_fd(), CloneFlags::CLONE_NEWNET)?;
                work()
            });
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("panicked in the namespace")))
        })
    }

    async fn batch(&self, commands: &str) -> Result<(), Error> {
        ip(&["-n", &self.name, "-batch", "-"], Some(commands))
            .await
            .map(|_| ())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for args in [["link", "del", &self.site.link()], ["netns", "del", &self.name]] {
            // What stays behind the next run removes.
            let _ = process::Command::new("ip")
                .args(args)
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// The batch that makes bridges and taps.
fn inner_network(nodes: u8) -> String {
    let mut batch = String::from("link set lo up\n");
    // No forward delay: a port works from the moment it is up. No snooping: it would withhold multicast.
    for bridge in [BRIDGE, "adm"] {
        let _ = writeln!(
            batch,
            "link add {bridge} type bridge forward_delay 0 mcast_snooping 0"
        );
        let _ = writeln!(batch, "link set {bridge} up");
    }
    let mut tap = |name: &str, bridge: &str| {
        let _ = writeln!(
            batch,
            "tuntap add {name} mode tap\nlink set {name} master {bridge} up"
        );
    };
    for node in 1..=nodes {
        tap(&Net::tap(node, 0), BRIDGE);
        tap(&Net::tap(node, 1), BRIDGE);
        tap(&format!("n{node}adm"), "adm");
    }
    for subnet in 0..SUBNETS {
        let _ = writeln!(batch, "addr add 10.77.{subnet}.1/24 dev {BRIDGE}");
    }
    batch
}

/// The batch that gives the peer its IPv6 addresses.
fn ipv6_addresses() -> String {
    let mut batch = String::new();
    for subnet in 0..SUBNETS {
        let address = ipv6(Ipv4Addr::new(10, 77, subnet, 1));
        let _ = writeln!(batch, "addr add {address}/64 dev {BRIDGE} nodad");
    }
    batch
}

/// Removes namespaces of dead runs: we hold the site, so every one of it is dead.
async fn reap(site: Site) {
    let _ = ip(&["link", "del", &site.link()], None).await;
    let Ok(entries) = fs::read_dir("/run/netns") else {
        return;
    };
    let prefix = site.prefix();
    for entry in entries.flatten() {
        if let Some(name) = entry
            .file_name()
            .to_str()
            .filter(|name| name.starts_with(&prefix))
        {
            let _ = ip(&["netns", "del", name], None).await;
        }
    }
}

async fn ip(args: &[&str], input: Option<&str>) -> Result<String, Error> {
    let mut command = Command::new("ip");
    command
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command.stdin(if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    });
    let mut child = command.spawn().map_err(Error::Run)?;
    if let (Some(mut stdin), Some(text)) = (child.stdin.take(), input) {
        stdin.write_all(text.as_bytes()).await.map_err(Error::Run)?;
    }
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output().await.map_err(Error::Run)?;
    if status.success() {
        Ok(String::from_utf8_lossy(&stdout).into_owned())
    } else {
        Err(Error::Ip {
            what: args.join(" "),
            stderr: String::from_utf8_lossy(&stderr).trim().into(),
        })
    }
}
