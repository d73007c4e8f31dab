//! What is asked of a device is asked by a process of its own: one that hangs costs its device only, outlives its agent, and is known to the
//! next one. A FIFO that nobody reads stands for the file of a driver that does not return.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test fails so"
)]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use hybridnic_agent::{
    calls::{CallError, Caller},
    devices::{Deadlines, DeviceError, Devices, Places},
    lanes::{LaneError, Lanes},
    metrics::metrics,
    troubles::Troubles,
};
use hybridnic_api::conditions::reasons;
use hybridnic_net::{
    PciAddress,
    dev::{DevNodes, VfioUse},
    sysfs::{DriverState, Sysfs},
    testing::{make_sysfs, vf_address},
};
use nix::{sys::stat::Mode, unistd::mkfifo};
use tokio::{sync::watch, time::timeout};

const SOON: Duration = Duration::from_secs(20);
/// With a directory in it, this program is an agent, which asks a device something and is ended.
const FIRST: &str = "HYBRIDNIC_TEST_FIRST_AGENT";

struct Agent {
    devices: Devices,
    troubles: Arc<Troubles>,
    hardware: watch::Receiver<u64>,
}

/// An agent, as far as devices are concerned.
fn agent(dir: &Path) -> Agent {
    let troubles = Arc::new(Troubles::new(metrics().1));
    let (changed, hardware) = watch::channel(0);
    let devices = Devices {
        sysfs: Sysfs::new(dir.join("sys")),
        dev: DevNodes::new(dir.join("dev")),
        lanes: Lanes::new(Arc::clone(&troubles), changed),
        caller: Caller::Processes {
            program: env!("CARGO_BIN_EXE_hybridnic-agent").into(),
            locks: dir.join("calls"),
        },
        deadlines: Deadlines {
            bind: Duration::from_millis(100),
            // Another process is not to be late on a busy machine.
            read: SOON,
            ..Deadlines::default()
        },
        places: Places::default(),
    };
    Agent {
        devices,
        troubles,
        hardware,
    }
}

/// A node whose vfio-pci lets go of nothing.
fn node() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("sys")).unwrap();
    make_sysfs(&dir.path().join("sys"), 1, 4).unwrap();
    let unbind = dir.path().join("sys/bus/pci/drivers/vfio-pci/unbind");
    fs::remove_file(&unbind).unwrap();
    mkfifo(&unbind, Mode::S_IRWXU).unwrap();
    (dir, unbind)
}

fn hung() -> PciAddress {
    vf_address(0, 0)
}

async fn unbind_of(agent: &Agent, vf: PciAddress) -> Result<(), DeviceError> {
    agent.devices.set_driver(vf, DriverState::default()).await
}

/// Ends when it goes out of scope.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The agent that is ended: it is started by the next test.
#[tokio::test]
async fn first_agent() {
    let Some(dir) = std::env::var_os(FIRST) else {
        return;
    };
    let agent = agent(Path::new(&dir));
    let error = unbind_of(&agent, hung()).await.unwrap_err();
    println!("\nwaited: {error}");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_call_that_hangs_outlives_its_agent_and_the_next_one_knows() {
    let (dir, unbind) = node();
    let mut first = Command::new(std::env::current_exe().unwrap());
    first.args(["--exact", "first_agent", "--nocapture"]);
    let first = first.env(FIRST, dir.path()).stdout(Stdio::piped()).spawn();
    let mut first = Killed(first.unwrap());
    let said = BufReader::new(first.0.stdout.take().unwrap()).lines();
    let waited = said
        .map(Result::unwrap)
        .find(|line| line.starts_with("waited"))
        .unwrap();
    assert!(
        waited.contains("0000:01:10.0 hangs: changing its driver has not"),
        "{waited}"
    );
    // It ends, although a thread that waited for a driver would prevent that.
    drop(first);

    // However often an agent is restarted.
    for _ in 0..2 {
        let next = agent(dir.path());
        next.devices.take_over().await.unwrap();
        let known: Vec<_> = next.devices.lanes.hung().into_keys().collect();
        assert_eq!(known, [hung()]);
        let said = next.troubles.condition();
        assert_eq!(said.reason, reasons::DEVICE_HUNG);
        assert!(said.message.contains("an earlier agent"), "{}", said.message);
    }
    let mut next = agent(dir.path());
    next.devices.take_over().await.unwrap();
    let error = timeout(Duration::from_secs(1), unbind_of(&next, hung())).await;
    assert!(
        matches!(&error, Ok(Err(DeviceError::Lane(LaneError::Hung { .. })))),
        "at once, and nothing is started: {error:?}"
    );
    // The others are not concerned.
    let other = next.devices.driver_state(vf_address(0, 2)).await.unwrap();
    assert_eq!(other.driver.as_deref(), Some("vfio-pci"));

    // The driver returns: once, because nothing was asked a second time.
    next.hardware.mark_unchanged();
    let written = tokio::task::spawn_blocking({
        let unbind = unbind.clone();
        move || fs::read_to_string(unbind).unwrap()
    });
    assert_eq!(timeout(SOON, written).await.unwrap().unwrap(), hung().to_string());
    while !next.devices.lanes.hung().is_empty() {
        timeout(SOON, next.hardware.changed()).await.unwrap().unwrap();
    }
    assert_eq!(next.troubles.condition().status, Some(false));
    fs::remove_file(&unbind).unwrap();
    fs::write(&unbind, "").unwrap();
    next.devices.deadlines.bind = SOON;
    unbind_of(&next, hung()).await.unwrap();
    assert_eq!(fs::read_to_string(&unbind).unwrap(), hung().to_string());
}

#[tokio::test]
async fn two_agents_do_not_ask_one_device_at_once() {
    let (dir, _) = node();
    let (one, two) = (agent(dir.path()), agent(dir.path()));
    let error = unbind_of(&one, hung()).await.unwrap_err();
    assert!(matches!(error, DeviceError::Lane(_)), "{error}");
    let error = two.devices.driver_state(hung()).await.unwrap_err();
    assert!(
        matches!(error, DeviceError::Call(CallError::Earlier(vf)) if vf == hung()),
        "{error}"
    );
    assert_eq!(error.reason_or(reasons::VF_BIND_FAILED), reasons::DEVICE_HUNG);
    // What waits ends with the test.
    let unbind = dir.path().join("sys/bus/pci/drivers/vfio-pci/unbind");
    fs::read_to_string(unbind).unwrap();
}

#[tokio::test]
async fn answers_and_refusals_come_back_from_the_process() {
    let (dir, _) = node();
    let agent = agent(dir.path());
    let state = agent.devices.driver_state(vf_address(0, 1)).await.unwrap();
    assert_eq!(
        (state.driver.as_deref(), state.driver_override),
        (Some("igbvf"), None)
    );
    let unknown = agent.devices.vfio_use(hung(), 7).await.unwrap();
    assert_eq!(unknown, VfioUse::Unknown);
    let nowhere = vf_address(1, 0);
    let error = agent.devices.driver_state(nowhere).await.unwrap_err();
    assert_eq!(error.to_string(), format!("there is no PCI function {nowhere}"));
    assert_eq!(error.reason_or(reasons::VF_BIND_FAILED), reasons::VF_BIND_FAILED);
    assert_eq!(agent.devices.lanes.hung().len(), 0);
}
