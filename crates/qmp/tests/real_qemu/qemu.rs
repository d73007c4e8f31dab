//! A QEMU process of a test, and a tap for it.

use std::ffi::c_short;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use hybridnic_qmp::{Client, Options, QmpError};
use nix::libc;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::Instant;

/// The deadline of everything that should simply happen. Generous: TCG on a loaded machine is slow.
pub const SOON: Duration = Duration::from_mins(1);

pub struct Qemu {
    pub child: Child,
    directory: TempDir,
}

impl Qemu {
    /// A q35 without devices but three root ports, the last of them not hot-pluggable.
    pub fn start(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("qmp.sock");
        let child = Command::new("qemu-system-x86_64")
            .args("-machine q35 -accel tcg -m 64 -nodefaults -display none".split(' '))
            .args("-device pcie-root-port,id=rpa,chassis=1,slot=1".split(' '))
            .args("-device pcie-root-port,id=rpb,chassis=2,slot=2".split(' '))
            .args("-device pcie-root-port,id=rpc,chassis=3,slot=3,hotplug=off".split(' '))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("qemu-system-x86_64 is installed");
        Self { child, directory }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("qmp.sock")
    }

    /// Connects as soon as QEMU listens.
    pub async fn connect(&mut self) -> Client {
        let options = Options {
            greeting_timeout: SOON,
            command_timeout: SOON,
            ..Options::default()
        };
        let deadline = Instant::now() + SOON;
        loop {
            match Client::connect(self.socket(), &options).await {
                Ok(client) => return client,
                Err(QmpError::Connect { .. }) if Instant::now() < deadline => {
                    assert_eq!(self.child.try_wait().unwrap(), None, "QEMU is gone");
                    // Nothing tells when another process listens on its socket.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(e) => panic!("no QMP session: {e:?}"),
            }
        }
    }
}

/// A new tap interface. It lives as long as its descriptor.
pub fn tap() -> File {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    // SAFETY: all-zero is a valid ifreq: a C structure of plain integers and arrays.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"qmptest%d") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags =
        c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).unwrap();
    // SAFETY: the descriptor is open and the request is a valid ifreq that outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
    assert_eq!(result, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
    file
}
