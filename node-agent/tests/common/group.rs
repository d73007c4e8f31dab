//! The control group of a pod, as its kubelet has made it. What is in the group ends with it.

use std::{
    fs,
    path::PathBuf,
    process::Child,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const SOON: Duration = Duration::from_secs(20);

pub struct Group(PathBuf);

impl Group {
    pub fn of(uid: &str) -> Self {
        let group = hierarchy().join("kubepods/burstable").join(format!("pod{uid}"));
        fs::create_dir_all(&group).unwrap();
        Self(group)
    }

    pub fn join(&self, process: &Child) {
        fs::write(self.0.join("cgroup.procs"), process.id().to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let end = Instant::now() + SOON;
        while fs::remove_dir(&self.0).is_err() && Instant::now() < end {
            for pid in fs::read_to_string(self.0.join("cgroup.procs"))
                .unwrap_or_default()
                .lines()
            {
                // It may have ended already.
                let _ = kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Where control groups are: one hierarchy, or with v1 that of the freezer.
fn hierarchy() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut found: Vec<_> = mounts
        .lines()
        .filter_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
            [_, at, "cgroup2", ..] => Some((0, at)),
            [_, at, "cgroup", options, ..] if options.split(',').any(|o| o == "freezer") => Some((1, at)),
            _ => None,
        })
        .collect();
    found.sort_unstable();
    PathBuf::from(found.first().expect("control groups").1)
}
