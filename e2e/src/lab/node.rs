//! A node: an emulated machine with two SR-IOV cards that can run virtual machines itself.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::accel::Accel;
use super::exec::{self, Follower, Output, Process, State, Target, await_state};
use super::fate::{has_reset_a_guest, last_words};
use super::hardware::{NodeOptions, command_line, netdev};
use super::image::Images;
use super::launch::launch;
use super::net::Net;
use super::site::Site;
use super::view::{IpLink, Macvtap, Vf};
use super::wire::{self, NODE_PORT, UP};
use super::{guest, qmp};

/// A node's directory that is shared with the host: [`Node::share`].
pub const SHARE: &str = "/host";

/// A node boots in 4 to 10 s on an idle machine, in 40 s beside two compilers.
const BOOT_DEADLINE: Duration = Duration::from_mins(3);
const LOOK_DEADLINE: Duration = Duration::from_secs(30);

/// Something about a node went wrong.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("fill the node's directory {path}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("start QEMU for {name}")]
    Launch { name: String, source: io::Error },
    #[error("{name} did not come up in {deadline:?}: see {log}")]
    Deadline {
        name: String,
        deadline: Duration,
        log: PathBuf,
    },
    #[error("QEMU of {name} ended: {stderr}")]
    Ended { name: String, stderr: String },
    #[error("run a command")]
    Exec(#[from] exec::Error),
    #[error("ask QEMU")]
    Qmp(#[from] qmp::Error),
    #[error("no netdev {0}")]
    NoNetdev(String),
}

/// A running node. Clones are the same node; it ends with the [`super::Lab`] or the last clone.
#[derive(Debug, Clone)]
pub struct Node(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    number: u8,
    site: Site,
    name: String,
    dir: PathBuf,
    qemu: Mutex<Child>,
    state: watch::Receiver<State>,
    next_cid: AtomicU32,
}

impl Node {
    /// Boots node `number` (1 to 9) in a directory of its own below `run`.
    pub(crate) async fn boot(
        number: u8,
        site: Site,
        options: &NodeOptions,
        images: &Images,
        accel: Accel,
        net: &Net,
        run: &Path,
    ) -> Result<Self, Error> {
        let name = format!("n{number}");
        let dir = run.join(&name);
        fill(&dir, images).map_err(|source| Error::Directory {
            path: dir.clone(),
            source,
        })?;
        let launch_error = |source| Error::Launch {
            name: name.clone(),
            source,
        };
        let mut command = command_line(number, site, options, images, accel);
        let log = |file: &str| File::create(dir.join(file)).map_err(launch_error);
        command
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log("qemu.log")?);
        let mut qemu = launch(command, net.file()).map_err(launch_error)?;
        let (sender, state) = watch::channel(State::default());
        if let Some(console) = qemu.stdout.take() {
            let log = log("console.log")?;
            thread::spawn(move || follow(console, log, &sender));
        }
        let inner = Inner {
            number,
            site,
            name,
            dir,
            qemu: Mutex::new(qemu),
            state,
            next_cid: AtomicU32::new(3),
        };
        let node = Self(Arc::new(inner));
        node.wait_until_up().await?;
        Ok(node)
    }

    async fn wait_until_up(&self) -> Result<(), Error> {
        let name = || self.0.name.clone();
        match await_state(self.0.state.clone(), BOOT_DEADLINE, |state| state.marked).await {
            Some(state) if state.marked && !state.ended => self.wait_until_it_answers().await,
            Some(_) => {
                let stderr = fs::read_to_string(self.0.dir.join("qemu.log")).unwrap_or_default();
                Err(Error::Ended { name: name(), stderr })
            }
            None => {
                let log = self.0.dir.join("console.log");
                Err(Error::Deadline {
                    name: name(),
                    deadline: BOOT_DEADLINE,
                    log,
                })
            }
        }
    }

    /// A message on its console does not mean that it can be reached: no event shows that the network works.
    async fn wait_until_it_answers(&self) -> Result<(), Error> {
        let answers = async {
            loop {
                match timeout(Duration::from_secs(5), self.run("true", LOOK_DEADLINE)).await {
                    Ok(Ok(_)) => return,
                    Ok(Err(e)) => eprintln!("--- {} is up and does not answer yet: {e}", self.name()),
                    Err(_) => eprintln!("--- {} is up and does not answer yet", self.name()),
                }
                sleep(Duration::from_millis(200)).await;
            }
        };
        timeout(BOOT_DEADLINE, answers)
            .await
            .map_err(|_| Error::Deadline {
                name: self.0.name.clone(),
                deadline: BOOT_DEADLINE,
                log: self.0.dir.join("console.log"),
            })
    }

    /// `n1`, `n2` ...
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// 1, 2 ...
    pub fn number(&self) -> u8 {
        self.0.number
    }

    /// Its lab's place on the machine.
    pub fn site(&self) -> Site {
        self.0.site
    }

    /// Its address on the management network.
    pub fn address(&self) -> IpAddr {
        self.0.site.node(self.0.number).into()
    }

    /// Its IPv6 address there.
    pub fn address6(&self) -> IpAddr {
        self.0.site.node6(self.0.number).into()
    }

    /// Where its logs are.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Directory on this host that the node sees as [`SHARE`]: what is put there is there at once.
    pub fn share(&self) -> PathBuf {
        self.0.dir.join("share")
    }

    /// PCI address of a card's PF, 0 or 1.
    pub fn pf_address(pf: u8) -> String {
        format!("0000:{:02x}:00.0", pf + 1)
    }

    /// Whether a guest on it was reset by the emulation, which shows only here.
    pub fn has_reset_a_guest(&self) -> bool {
        has_reset_a_guest(&console_of(&self.0.dir))
    }

    /// Waits until the machine is gone, as it is after a panic of its kernel, and gives the last that its console said. Does
    /// not keep the machine alive.
    pub fn ended(&self) -> impl Future<Output = String> + use<> {
        let (mut state, dir) = (self.0.state.clone(), self.0.dir.clone());
        let name = self.0.name.clone();
        async move {
            // An error means that nothing follows the console any more: it is over too.
            let _ = state.wait_for(|state| state.ended).await;
            let console = console_of(&dir);
            let panic = console.lines().rev().find(|line| line.contains("Kernel panic"));
            format!(
                "{name} is gone: {}\n{}",
                panic.unwrap_or("without a panic"),
                last_words(&console)
            )
        }
    }

    pub(crate) fn target(&self) -> Target {
        Target {
            node: (self.address(), NODE_PORT).into(),
            guest: None,
        }
    }

    pub(crate) fn next_cid(&self) -> u32 {
        self.0.next_cid.fetch_add(1, Ordering::Relaxed)
    }

    /// Runs a shell command to its end, successful or not. At the deadline it is killed with all it has started.
    pub async fn exec(&self, script: &str, deadline: Duration) -> Result<Output, Error> {
        Ok(self.target().shell(script, deadline).await?)
    }

    /// Runs a shell command that must succeed, and gives its stdout.
    pub async fn run(&self, script: &str, deadline: Duration) -> Result<String, Error> {
        let target = self.target();
        Ok(target.shell(script, deadline).await?.success(target, script)?)
    }

    /// Starts a program that goes on until it ends or its [`Process`] is dropped. Its output goes to `LOG.log` in
    /// the node's directory on this host, after that of earlier programs with the same log.
    pub async fn spawn(&self, argv: &[&str], env: &[(&str, &str)], log: &str) -> Result<Process, Error> {
        let command = wire::Command {
            argv: argv.iter().map(|&arg| arg.into()).collect(),
            env: env
                .iter()
                .map(|&(name, value)| (name.into(), value.into()))
                .collect(),
        };
        Ok(self
            .target()
            .spawn(command, self.0.dir.join(format!("{log}.log")), "")
            .await?)
    }

    /// Copies a program into the node, executable, replacing one of the same name; gives its path there.
    pub fn install(&self, program: &Path) -> Result<String, Error> {
        let name = program.file_name().unwrap_or_default();
        let to = self.share().join(name);
        let copied = replace(program, &to);
        copied.map_err(|source| Error::Directory { path: to, source })?;
        Ok(format!("{SHARE}/{}", name.to_string_lossy()))
    }

    /// Puts an initramfs where guests find theirs.
    pub(crate) fn add_initrd(&self, initrd: &Path, name: &str) -> Result<(), Error> {
        let to = self.share().join("guest").join(name);
        // One of this name may be there from an earlier test.
        let _ = fs::remove_file(&to);
        link(initrd, &to).map_err(|source| Error::Directory { path: to, source })
    }

    /// Writes a file in the node with this mode, making its directories.
    pub async fn put(&self, path: &str, content: &[u8], mode: u32) -> Result<(), Error> {
        let script = format!(r#"mkdir -p "$(dirname "$0")" && cat >"$0" && chmod {mode:o} "$0""#);
        let argv = ["sh", "-c", &script, path].map(str::to_owned).to_vec();
        let command = wire::Command {
            argv,
            env: Vec::new(),
        };
        let target = self.target();
        target
            .run(command, content, LOOK_DEADLINE)
            .await?
            .success(target, path)?;
        Ok(())
    }

    /// Starts a virtual machine in the node: once it is up or, if it waits for a migration, once its monitor answers.
    pub async fn start_guest(&self, spec: guest::GuestSpec) -> Result<guest::Guest, guest::Error> {
        guest::Guest::start(self, spec).await
    }

    /// The VF table of a PF, by the PF's netdev.
    pub async fn vfs(&self, pf: &str) -> Result<Vec<Vf>, Error> {
        let links: Vec<IpLink> = self.json(&format!("ip -j -d link show dev {pf}")).await?;
        links
            .into_iter()
            .next()
            .map(|link| link.vfinfo_list)
            .ok_or_else(|| Error::NoNetdev(pf.into()))
    }

    /// All macvtaps of the node, also in the network namespaces of pods whose QEMU runs.
    pub async fn macvtaps(&self) -> Result<Vec<Macvtap>, Error> {
        // By its path: nsenter is busybox's, and has an `ip` of its own.
        let show = "$ip -j -d -s link show";
        let script = format!(
            "ip=$(command -v ip); echo \"[$({show})\"; for pid in $(pidof qemu-system-x86_64); do \
               links=$(nsenter --net=/proc/$pid/ns/net {show} 2>/dev/null) && echo \",$links\"; done; echo ]"
        );
        let namespaces: Vec<Vec<IpLink>> = self.json(&script).await?;
        let links = namespaces.into_iter().flatten();
        let mut macvtaps: Vec<Macvtap> = links.filter_map(IpLink::into_macvtap).collect();
        // Two processes may be in one namespace; in two, links may have one index.
        let which = |macvtap: &Macvtap| (macvtap.ifindex, macvtap.mac.clone());
        macvtaps.sort_by_key(which);
        macvtaps.dedup_by_key(|macvtap| which(macvtap));
        Ok(macvtaps)
    }

    /// Name of the netdev of a PCI device, such as a PF; `None` if its driver made none.
    pub async fn netdev_of(&self, pci: &str) -> Result<Option<String>, Error> {
        let listed = self
            .exec(&format!("ls /sys/bus/pci/devices/{pci}/net"), LOOK_DEADLINE)
            .await?;
        Ok(listed.stdout.lines().next().map(str::to_owned))
    }

    /// Driver that a PCI device is bound to.
    pub async fn driver_of(&self, pci: &str) -> Result<Option<String>, Error> {
        let link = self
            .exec(
                &format!("readlink /sys/bus/pci/devices/{pci}/driver"),
                LOOK_DEADLINE,
            )
            .await?
            .stdout;
        Ok(link
            .trim()
            .rsplit('/')
            .next()
            .filter(|name| !name.is_empty())
            .map(str::to_owned))
    }

    async fn json<T: DeserializeOwned>(&self, script: &str) -> Result<T, Error> {
        let text = self.run(script, LOOK_DEADLINE).await?;
        serde_json::from_str(&text).map_err(|source| {
            exec::Error::Parse {
                what: script.into(),
                text,
                source,
            }
            .into()
        })
    }

    /// Stops the node's processors: to its peers it hangs.
    pub async fn pause(&self) -> Result<(), Error> {
        self.qmp("stop").await
    }

    /// Lets it go on.
    pub async fn resume(&self) -> Result<(), Error> {
        self.qmp("cont").await
    }

    /// Resets the machine and waits until it is up again. Only what is below [`SHARE`] is left.
    pub async fn reboot(&self) -> Result<(), Error> {
        const BOOT: &str = "cat /proc/sys/kernel/random/boot_id";
        let before = self.run(BOOT, LOOK_DEADLINE).await?;
        // By itself it ends at a reset, so that a kernel's panic is seen.
        self.qmp_with("set-action", json!({ "reboot": "reset" })).await?;
        self.qmp("system_reset").await?;
        let up = async {
            loop {
                // Only the machine itself shows that it has booted; a dead one's connection hangs.
                let now = timeout(Duration::from_secs(2), self.run(BOOT, LOOK_DEADLINE)).await;
                if matches!(now, Ok(Ok(now)) if now != before) {
                    return;
                }
                sleep(Duration::from_millis(200)).await;
            }
        };
        timeout(BOOT_DEADLINE, up).await.map_err(|_| Error::Deadline {
            name: self.0.name.clone(),
            deadline: BOOT_DEADLINE,
            log: self.0.dir.join("console.log"),
        })
    }

    /// Pulls or plugs the cable of a card, 0 or 1: its driver notices.
    pub async fn set_cable(&self, pf: u8, plugged: bool) -> Result<(), Error> {
        let arguments = json!({ "name": netdev(pf), "up": plugged });
        self.qmp_with("set_link", arguments).await
    }

    async fn qmp(&self, command: &str) -> Result<(), Error> {
        self.qmp_with(command, json!({})).await
    }

    async fn qmp_with(&self, command: &str, arguments: serde_json::Value) -> Result<(), Error> {
        let stream = UnixStream::connect(self.0.dir.join("qmp.sock"))
            .await
            .map_err(qmp::Error::Talk)?;
        let stream = tokio::io::BufReader::new(stream);
        qmp::call(stream, command, arguments, LOOK_DEADLINE).await?;
        Ok(())
    }
}

impl Inner {
    fn kill(&self) {
        let mut qemu = self.qemu.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have ended by itself.
        let _ = qemu.kill();
        let _ = qemu.wait();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Makes the node's directory with what it finds under [`SHARE`].
fn fill(dir: &Path, images: &Images) -> io::Result<()> {
    let share = dir.join("share");
    fs::create_dir_all(share.join("guest"))?;
    fs::create_dir_all(dir.join("../common"))?;
    replace(&images.lab_exec, &share.join("lab-exec"))?;
    for (from, to) in [
        (&images.guest_kernel, "guest/vmlinux"),
        (&images.guest_initrd, "guest/initrd"),
    ] {
        link(from, &share.join(to))?;
    }
    Ok(())
}

/// The cache may be on another file system.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(|_| ()))
}

/// Copies beside and renames: a program that runs cannot be written to.
fn replace(from: &Path, to: &Path) -> io::Result<()> {
    let part = to.with_extension("part");
    fs::copy(from, &part)?;
    fs::set_permissions(&part, fs::Permissions::from_mode(0o755))?;
    fs::rename(part, to)
}

/// All that a node's console has said so far.
fn console_of(dir: &Path) -> String {
    let console = fs::read(dir.join("console.log")).unwrap_or_default();
    String::from_utf8_lossy(&console).into_owned()
}

fn follow(mut console: impl Read, log: File, sender: &watch::Sender<State>) {
    let mut follower = Follower::new(log, UP);
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = console.read(&mut buffer) {
        follower.take(&buffer[..n], sender);
    }
    sender.send_modify(|state| state.ended = true);
}
