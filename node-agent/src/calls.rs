//! Calls of a device's driver, each in a process of its own.
//!
//! A call runs a driver, or waits for the lock that a driver holds, and a driver may never return. Nothing can abort such a call, and a process
//! with a thread in it does not end either: that would be the agent, and the next agent would run into the same. So the agent starts its
//! own program once more for each call, and can stop waiting for that process at any time.
//!
//! The next agent must know about a call that hangs. The call's process has a locked file as its standard input, one
//! for each device, in a directory in memory. The kernel keeps that lock (`flock(2)`) exactly as long as the process lives, no matter what
//! happens to the agent: nothing has to be written down and cleaned up, and there is no pid that may belong to another process by now.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::unix::{
        fs::{DirBuilderExt as _, OpenOptionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
};

use hybridnic_net::{
    PciAddress,
    dev::DevNodes,
    sysfs::{DriverState, Sysfs},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::error::chain;

/// Something that involves a driver, or its device's lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Call {
    /// See [`Sysfs::driver_state`].
    DriverState {
        /// The function.
        device: PciAddress,
    },
    /// See [`Sysfs::restore_driver`].
    SetDriver {
        /// The function.
        device: PciAddress,
        /// Driver and override that it gets.
        wanted: DriverState,
    },
    /// See [`Sysfs::create_vfs`].
    CreateVfs {
        /// The PF.
        device: PciAddress,
        /// How many.
        count: u16,
    },
    /// See [`DevNodes::vfio_use`].
    VfioUse {
        /// The function.
        device: PciAddress,
        /// Its IOMMU group.
        group: u32,
    },
}

/// What the kernel or a driver did not do, as a sentence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(String);

/// A call could not be made, or its process was ended.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It was refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A call of an earlier agent has not returned.
    #[error("{0} is busy: a call that an earlier agent made has not returned yet")]
    Earlier(PciAddress),
    /// There is no process for it, or no answer.
    #[error("no process can be started to ask a device")]
    Process(#[from] io::Error),
}

impl Call {
    /// The device that it asks.
    pub fn device(&self) -> PciAddress {
        match self {
            Self::DriverState { device }
            | Self::SetDriver { device, .. }
            | Self::CreateVfs { device, .. }
            | Self::VfioUse { device, .. } => *device,
        }
    }

    /// What it asks, for people.
    pub fn what(&self) -> &'static str {
        match self {
            Self::DriverState { .. } => "reading driver_override",
            Self::SetDriver { .. } => "changing its driver",
            Self::CreateVfs { .. } => "making its VFs",
            Self::VfioUse { .. } => "opening its vfio group",
        }
    }

    fn make(&self, sysfs: &Sysfs, dev: &DevNodes) -> Result<Value, Refusal> {
        fn told<T: Serialize, E: std::error::Error>(done: Result<T, E>) -> Result<Value, Refusal> {
            let done = done.map_err(|error| Refusal(chain(&error)))?;
            serde_json::to_value(done).map_err(|error| Refusal(error.to_string()))
        }
        match self {
            Self::DriverState { device } => told(sysfs.driver_state(*device)),
            Self::SetDriver { device, wanted } => told(sysfs.restore_driver(dev, *device, wanted)),
            Self::CreateVfs { device, count } => told(sysfs.create_vfs(*device, *count)),
            Self::VfioUse { group, .. } => told(dev.vfio_use(*group)),
        }
    }
}

/// How calls are made.
#[derive(Clone, Debug)]
pub enum Caller {
    /// On the thread that makes them, for tests.
    Here,
    /// By a process each.
    Processes {
        /// The agent's program.
        program: PathBuf,
        /// The directory of the files that they lock.
        locks: PathBuf,
    },
}

impl Caller {
    /// Makes a call, and waits for its end.
    pub fn make<T: DeserializeOwned>(
        &self,
        call: &Call,
        sysfs: &Sysfs,
        dev: &DevNodes,
    ) -> Result<T, CallError> {
        let answer = match self {
            Self::Here => call.make(sysfs, dev),
            Self::Processes { program, locks } => {
                let device = call.device();
                let child = {
                    // A process that is just being started has a copy of all that is open, other devices' locks, too.
                    let _one = STARTS.lock().unwrap_or_else(PoisonError::into_inner);
                    let lock = lock(locks, &device.to_string())?.ok_or(CallError::Earlier(device))?;
                    start(program, call, sysfs, dev, lock)?
                };
                answer(child)?
            }
        };
        Ok(serde_json::from_value(answer?).map_err(io::Error::from)?)
    }

    /// The devices for which an earlier agent's call has not returned, and for each a file that can be locked once it has.
    pub fn earlier(&self) -> io::Result<Vec<(PciAddress, File)>> {
        let Self::Processes { locks, .. } = self else {
            return Ok(Vec::new());
        };
        let entries = match fs::read_dir(locks) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut held = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let Some(device) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let file = open(&entry.path())?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => held.push((device, file)),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Ok(held)
    }
}

/// The file that the node's agent keeps locked for as long as it lives; `None` where another agent does. Two agents with a journal each
/// would not know about each other's VFs.
pub fn only_agent(locks: &Path) -> io::Result<Option<File>> {
    lock(locks, "agent")
}

/// A file of this name, locked; `None` where another process has locked it.
fn lock(dir: &Path, name: &str) -> io::Result<Option<File>> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let file = open(&dir.join(name))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// Held while a process is started.
static STARTS: Mutex<()> = Mutex::new(());

/// Has a process make a call. From its start it alone has the lock.
fn start(program: &Path, call: &Call, sysfs: &Sysfs, dev: &DevNodes, lock: File) -> io::Result<Child> {
    Command::new(program)
        .arg0("hybridnic-call")
        .arg("call")
        .arg(serde_json::to_string(call)?)
        .args([sysfs.root(), dev.root()])
        .stdin(Stdio::from(lock))
        .stdout(Stdio::piped())
        // A reader of the agent's output waits until all processes that could write there have ended.
        .stderr(Stdio::null())
        .env_clear()
        .spawn()
}

/// What it says.
fn answer(child: Child) -> io::Result<Result<Value, Refusal>> {
    let output = child.wait_with_output()?;
    if output.stdout.is_empty() {
        return Err(io::Error::other(format!("it has ended with {}", output.status)));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The process.
pub fn serve(call: &str, sysfs: PathBuf, dev: PathBuf) -> anyhow::Result<()> {
    let call: Call = serde_json::from_str(call)?;
    let answer = call.make(&Sysfs::new(sysfs), &DevNodes::new(dev));
    serde_json::to_writer(io::stdout(), &answer)?;
    Ok(())
}
