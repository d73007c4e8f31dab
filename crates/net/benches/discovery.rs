//! How long it takes to find 4 PFs with 127 VFs each, from a made sysfs.
#![allow(missing_docs, reason = "a program")]

use std::time::{Duration, Instant};

use hybridnic_net::testing::{MAX_VFS, make_sysfs};

const PFS: u8 = 4;
const ROUNDS: usize = 101;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let sysfs = make_sysfs(dir.path(), PFS, MAX_VFS)?;
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let inventory = sysfs.discover()?;
        times.push(start.elapsed());
        let vfs: usize = inventory.pfs.iter().map(|pf| pf.vfs.len()).sum();
        if vfs != usize::from(PFS) * usize::from(MAX_VFS) || !inventory.problems.is_empty() {
            return Err(format!("found {vfs} VFs, and problems: {:?}", inventory.problems).into());
        }
    }
    times.sort_unstable();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "discovery of {PFS} PFs with {MAX_VFS} VFs: median {:.2} ms, best {:.2} ms, worst {:.2} ms of {ROUNDS}",
        ms(times[ROUNDS / 2]),
        ms(times[0]),
        ms(times[ROUNDS - 1])
    );
    Ok(())
}
