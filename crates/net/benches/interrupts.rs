//! How long it takes to count the interrupts of a VF with 9 vectors on a machine with 512 processors, from a made sysfs.
#![allow(missing_docs, reason = "a program")]

use std::fs;
use std::time::{Duration, Instant};

use hybridnic_net::{PciAddress, interrupts};

const VECTORS: u32 = 9;
const CPUS: usize = 512;
const ROUNDS: usize = 101;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let vf: PciAddress = "0000:01:10.0".parse()?;
    let irqs = dir
        .path()
        .join("bus/pci/devices")
        .join(vf.to_string())
        .join("msi_irqs");
    fs::create_dir_all(&irqs)?;
    for vector in 0..VECTORS {
        let number = (1000 + vector).to_string();
        fs::write(irqs.join(&number), "msix\n")?;
        let irq = dir.path().join("kernel/irq").join(number);
        fs::create_dir_all(&irq)?;
        fs::write(irq.join("actions"), format!("vfio-msix[{vector}]({vf})\n"))?;
        fs::write(irq.join("per_cpu_count"), vec!["1234567"; CPUS].join(",") + "\n")?;
    }
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let seen = interrupts::read_below(dir.path(), vf)?;
        times.push(start.elapsed());
        if seen.vectors != VECTORS {
            return Err(format!("{seen:?}").into());
        }
    }
    times.sort_unstable();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "interrupts of a VF with {VECTORS} vectors and {CPUS} processors: median {:.3} ms, best {:.3} ms, worst {:.3} ms of {ROUNDS}",
        ms(times[ROUNDS / 2]),
        ms(times[0]),
        ms(times[ROUNDS - 1])
    );
    Ok(())
}
