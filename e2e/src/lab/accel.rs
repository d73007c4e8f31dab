//! Whether nodes can run on this machine's own KVM, or must be emulated.
//!
//! A `/dev/kvm` alone proves nothing: under PVM, for example, it runs no stock kernel. So a kernel is started and has
//! to print its first line.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::image::Images;
use super::launch::launch;

/// On KVM a kernel's first line takes a tenth of this.
const FIRST_LINE_DEADLINE: Duration = Duration::from_secs(5);

/// What runs a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The machine's KVM, an AMD one that can nest.
    Kvm,
    /// Emulation with one thread to a processor; guests run on emulated SVM.
    Tcg,
}

impl Accel {
    /// Tries. `HYBRIDNIC_LAB_ACCEL` (`kvm`, `tcg`) decides instead where it is set.
    pub(crate) fn probe(images: &Images, netns: &File) -> io::Result<Self> {
        match std::env::var("HYBRIDNIC_LAB_ACCEL").as_deref() {
            Ok("kvm") => return Ok(Self::Kvm),
            Ok("tcg") => return Ok(Self::Tcg),
            _ => {}
        }
        let works = nesting_is_on() && Path::new("/dev/kvm").exists() && kernel_starts(images, netns)?;
        Ok(if works { Self::Kvm } else { Self::Tcg })
    }

    /// QEMU's options for it.
    pub(crate) fn args(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // Without the last three, kernel and libc move and clear memory by `rep` with single octets: the processor says
            // that this is the fastest way, but emulated it is by far the slowest.
            Self::Tcg => [
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max,+svm,+npt,-erms,-fsrm,-fzrm",
            ],
        }
    }
}

/// Nodes have kvm_amd only: on emulated SVM, and on AMD's processors.
fn nesting_is_on() -> bool {
    fs::read_to_string("/sys/module/kvm_amd/parameters/nested")
        .is_ok_and(|value| matches!(value.trim(), "1" | "Y"))
}

fn kernel_starts(images: &Images, netns: &File) -> io::Result<bool> {
    let mut command = Command::new(&images.node_qemu);
    command.args([
        "-nodefaults",
        "-nographic",
        "-no-reboot",
        "-M",
        "q35",
        "-m",
        "256",
        "-serial",
        "stdio",
    ]);
    command
        .args(Accel::Kvm.args())
        .arg("-kernel")
        .arg(&images.node_kernel);
    command.args(["-append", "console=ttyS0 earlyprintk=ttyS0 panic=-1"]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut qemu = launch(command, netns)?;
    let (sender, lines) = mpsc::channel();
    if let Some(console) = qemu.stdout.take() {
        thread::spawn(move || {
            // The firmware speaks first; only a kernel says its version.
            let kernel = BufReader::new(console).split(b'\n').map_while(Result::ok);
            let spoke = kernel
                .into_iter()
                .any(|line| line.windows(13).any(|w| w == b"Linux version"));
            let _ = sender.send(spoke);
        });
    }
    let spoke = lines.recv_timeout(FIRST_LINE_DEADLINE).unwrap_or(false);
    // Whatever it did, it has done.
    let _ = qemu.kill();
    qemu.wait()?;
    Ok(spoke)
}
