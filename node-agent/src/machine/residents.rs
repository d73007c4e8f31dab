//! Whether a pod has processes: one of them may still have what it was given.

use std::{fs, io, path::Path};

use super::{cgroup, stat};

/// Whether a process of this pod lives, by a `proc_pid_cgroup(5)` of each below `proc`. The answer is no only when all could be read.
///
/// A process that is made meanwhile may be missed.
pub fn has_any(proc: &Path, pod_uid: &str) -> io::Result<bool> {
    Ok(find(proc, pod_uid)?.is_some())
}

/// A process of this pod that lives. That there is none is said only when all could be read.
pub fn find(proc: &Path, pod_uid: &str) -> io::Result<Option<i32>> {
    for entry in fs::read_dir(proc)? {
        let process = entry?.path();
        let name = process.file_name().and_then(|name| name.to_str());
        let Some(pid) = name.and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Some(groups) = read(&process.join("cgroup"))? else {
            continue;
        };
        if cgroup::is_of_pod(&groups, pod_uid) && !is_zombie(&process)? {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// Whether only its exit status is left: its descriptors are closed.
fn is_zombie(process: &Path) -> io::Result<bool> {
    let stat = read(&process.join("stat"))?;
    Ok(stat.is_none_or(|stat| stat::parse(&stat).is_some_and(|(state, _)| matches!(state, "Z" | "X" | "x"))))
}

/// A file of a process; none where that has ended.
fn read(file: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::PathBuf;

    use super::*;

    const POD: &str = "0b2e7c1d-90aa-4f6e-8d2f-000000000001";

    /// A process of a pod, as `proc` shows it.
    pub(crate) fn add(proc: &Path, pid: u32, state: &str, pod_uid: &str) -> PathBuf {
        let process = proc.join(pid.to_string());
        fs::create_dir_all(&process).unwrap();
        fs::write(
            process.join("cgroup"),
            format!("0::/kubepods/burstable/pod{pod_uid}/c1\n"),
        )
        .unwrap();
        let stat = format!("{pid} (x) {state} 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 5 6\n");
        fs::write(process.join("stat"), stat).unwrap();
        process
    }

    #[test]
    fn a_pod_has_none_only_when_all_could_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let proc = dir.path();
        fs::create_dir(proc.join("sys")).unwrap();
        assert!(has_any(&proc.join("none"), POD).is_err());
        add(proc, 1, "S", "another");
        add(proc, 2, "Z", POD);
        assert!(!has_any(proc, POD).unwrap());
        let lives = add(proc, 3, "D", POD);
        assert!(has_any(proc, POD).unwrap());
        fs::remove_file(lives.join("cgroup")).unwrap();
        assert!(!has_any(proc, POD).unwrap(), "it has just ended");
        fs::create_dir(lives.join("cgroup")).unwrap();
        assert!(has_any(proc, POD).is_err(), "it cannot be read");
    }

    #[test]
    fn this_process_is_of_no_pod() {
        assert!(!has_any(Path::new("/proc"), POD).unwrap());
    }
}
