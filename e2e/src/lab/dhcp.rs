//! A DHCP server at the peer, and what clients and server say to each other.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::capture::Frame;
use super::launch::launch;
use super::{Lab, net};

/// How long a lease is valid, in seconds. The shortest that the server supports: a client renews it after half of that.
pub const LEASE: u32 = 60;

/// busybox's DHCP server. Dropping it ends it.
#[derive(Debug)]
pub struct Dhcp {
    server: Child,
    log: PathBuf,
}

impl Lab {
    /// Starts a DHCP server at the peer that gives 10.77.0.200 and what follows.
    pub fn dhcp(&self) -> io::Result<Dhcp> {
        let path = |suffix: &str| self.dir.join(format!("dhcp.{suffix}"));
        let (leases, pid, conf, log) = (path("leases"), path("pid"), path("conf"), path("log"));
        let text = format!(
            "start 10.77.0.200\nend 10.77.0.219\ninterface {}\nmax_leases 20\nmin_lease {LEASE}\nopt lease {LEASE}\n\
             opt subnet 255.255.255.0\nopt router 10.77.0.1\nlease_file {}\npidfile {}\n",
            net::BRIDGE,
            leases.display(),
            pid.display(),
        );
        File::create(leases)?;
        fs::write(&conf, text)?;
        let mut command = Command::new("busybox");
        // Before it gives an address it asks whether it is in use, and need not wait long: it never is.
        command.args(["udhcpd", "-f", "-a", "100"]).arg(conf);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&log)?);
        Ok(Dhcp {
            server: launch(command, self.net.file())?,
            log,
        })
    }
}

impl Dhcp {
    /// How many leases it has given, each new term counted.
    pub fn given(&self) -> usize {
        fs::read_to_string(&self.log)
            .unwrap_or_default()
            .matches("sending ACK to")
            .count()
    }
}

impl Drop for Dhcp {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// What a DHCP client or server has sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `Discover`, `Offer`, `Request`, `ACK` ...
    pub kind: String,
    /// Its number: an answer has that of its question.
    pub xid: String,
    /// How the client calls itself.
    pub client: Option<String>,
    /// The address that the server gives.
    pub given: Option<String>,
}

impl Message {
    /// Of a frame from [`Lab::capture_at_peer`].
    pub fn of(frame: &Frame) -> Option<Self> {
        let lines = || frame.text.lines().map(str::trim);
        let after = |key: &str| lines().find_map(|line| line.strip_prefix(key));
        let option = |key: &str| after(key)?.split_once(": ").map(|(_, value)| value.to_owned());
        let (_, xid) = frame.text.split_once("xid ")?;
        Some(Self {
            kind: option("DHCP-Message (53)")?,
            xid: xid.split(',').next()?.to_owned(),
            client: option("Client-ID (61)"),
            given: after("Your-IP ").map(str::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::capture::frames;

    #[test]
    fn who_asks_and_what_is_given_is_read_from_tcpdump() {
        let text = "1700000000.100000 52:54:00:77:00:50 > ff:ff:ff:ff:ff:ff, ethertype IPv4 (0x0800), length 325: (tos 0xc0, ttl 64)\n\
            \x20   0.0.0.0.68 > 255.255.255.255.67: BOOTP/DHCP, Request from 52:54:00:77:00:50, length 283, xid 0x944a1da1, secs 1, Flags [none]\n\
            \t  Client-Ethernet-Address 52:54:00:77:00:50\n\
            \t  Vendor-rfc1048 Extensions\n\
            \t    DHCP-Message (53), length 1: Discover\n\
            \t    Client-ID (61), length 7: ether 52:54:00:77:00:50\n\
            1700000000.200000 02:00:00:00:00:01 > ff:ff:ff:ff:ff:ff, ethertype IPv4 (0x0800), length 590: (tos 0x10, ttl 64)\n\
            \x20   10.77.0.1.67 > 255.255.255.255.68: BOOTP/DHCP, Reply, length 548, xid 0x944a1da1, Flags [none]\n\
            \t  Your-IP 10.77.0.200\n\
            \t    DHCP-Message (53), length 1: ACK\n\
            1700000000.300000 02:00:00:00:00:01 > 52:54:00:77:00:50, ethertype ARP (0x0806), length 42: Request\n";
        let messages: Vec<_> = frames(text).iter().map(Message::of).collect();
        let message = |kind: &str, client: Option<&str>, given: Option<&str>| {
            Some(Message {
                kind: kind.into(),
                xid: "0x944a1da1".into(),
                client: client.map(Into::into),
                given: given.map(Into::into),
            })
        };
        assert_eq!(
            messages,
            [
                message("Discover", Some("ether 52:54:00:77:00:50"), None),
                message("ACK", None, Some("10.77.0.200")),
                None
            ]
        );
    }
}
