//! A QEMU process of a test or a benchmark. Other crates' bring this file in by its path.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use hybridnic_qmp::{Client, Options, QmpError};
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
    /// Runs QEMU with a QMP socket, by `command`: its program, or what becomes it, with arguments.
    pub fn run<'a>(command: impl IntoIterator<Item = &'a str>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // It may run as somebody else.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let mut command = command.into_iter();
        let child = Command::new(command.next().unwrap())
            .args(command)
            .args("-nodefaults -display none -qmp".split(' '))
            .arg(format!(
                "unix:{},server=on,wait=off",
                directory.path().join("qmp.sock").display()
            ))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("qemu-system-x86_64 is installed");
        Self { child, directory }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("qmp.sock")
    }

    pub fn pid(&self) -> u32 {
        self.child.id().unwrap()
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
                    // No event shows when another process listens on its socket.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(e) => panic!("no QMP session: {e:?}"),
            }
        }
    }
}
