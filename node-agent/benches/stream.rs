//! What the encryption of a migration's stream costs: two QEMUs on this machine, plain and with the agent's certificates. The guest
//! does not run, so processors and KVM do not matter. Needs `qemu-system-x86_64` and 1.5 GiB of /dev/shm.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark fails so"
)]

use std::{
    fs::{self, File},
    io,
    path::Path,
    time::Duration,
};

use hybridnic_agent::{
    broker::{Process, Started},
    machine::qemu::{
        certificates,
        tls::{self, Keys},
    },
};
use hybridnic_qmp::{
    Client,
    commands::{MigrationParameters, MigrationStatus},
};
use serde_json::{Value, json};

#[allow(dead_code, reason = "of what it has, a benchmark needs a part")]
#[path = "../../crates/qmp/tests/common/qemu.rs"]
mod qemu;

use qemu::Qemu;

/// What is sent: nothing that QEMU could leave out.
const MEMORY_MIB: u64 = 512;
const ROUNDS: usize = 5;
const UID: &str = "0b9f3f3c-7a0e-4c89-a3a5-5f1b8d0c2e4f";

/// One end of a migration.
struct End {
    qemu: Qemu,
    client: Client,
}

impl End {
    async fn start(memory: &Path, arguments: &[&str]) -> Self {
        let size = MEMORY_MIB.to_string();
        let backend = format!(
            "memory-backend-file,id=m,size={size}M,share=on,mem-path={}",
            memory.display()
        );
        let machine = "qemu-system-x86_64 -machine q35,memory-backend=m -accel tcg".split(' ');
        let command = machine.chain(["-m", &size, "-object", &backend]);
        let mut qemu = Qemu::run(command.chain(arguments.iter().copied()));
        let client = qemu.connect().await;
        Self { qemu, client }
    }

    /// Processor time so far, in clock ticks (`proc_pid_stat(5)`, fields 14 and 15).
    fn ticks(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.qemu.pid())).unwrap();
        let fields = text.rsplit_once(')').unwrap().1.split_ascii_whitespace();
        fields.skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum()
    }
}

/// Megabytes a second, and seconds of a processor at both ends together.
async fn send(memory: &Path, broker: &Process, encrypted: bool) -> (f64, f64) {
    let (full, empty) = (memory.join("full"), memory.join("empty"));
    let source = End::start(&full, &["-S"]).await;
    let target = End::start(&empty, &["-incoming", "defer"]).await;
    let keys = Keys::new(memory.join("tls"));
    let mut set_up = [
        (&source, certificates::End::Source),
        (&target, certificates::End::Target),
    ]
    .map(|(qemu, end)| (qemu, end, None));
    for (_, end, kept) in &mut set_up {
        *kept = Some(keys.make(&format!("{end:?}"), UID, *end).unwrap());
    }
    let cas = set_up
        .each_ref()
        .map(|(_, _, kept)| kept.as_ref().unwrap().ca.clone());
    for ((qemu, end, kept), peer_ca) in set_up.iter().zip(cas.iter().rev()) {
        if encrypted {
            kept.as_ref()
                .unwrap()
                .load(&qemu.client, broker, peer_ca)
                .await
                .unwrap();
        }
        let parameters = MigrationParameters {
            max_bandwidth: Some(0),
            ..tls::parameters(encrypted.then_some((UID, *end)))
        };
        qemu.client.migrate_set_parameters(&parameters).await.unwrap();
    }
    target.client.migrate_incoming("tcp:127.0.0.1:0").await.unwrap();
    let port = target.client.query_migrate().await.unwrap().listening()[0].port;
    let before = source.ticks() + target.ticks();
    source
        .client
        .migrate(&format!("tcp:127.0.0.1:{port}"))
        .await
        .unwrap();
    loop {
        let info = source.client.query_migrate().await.unwrap();
        match info.status_or_none() {
            MigrationStatus::Completed => break,
            MigrationStatus::Failed => panic!("{:?}", info.error_desc),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    let answer: Value = source.client.execute("query-migrate", &json!({})).await.unwrap();
    let number = |value: &Value| value.as_f64().unwrap();
    let megabytes = number(&answer["ram"]["transferred"]) / 1e6;
    let seconds = (number(&answer["total-time"]) - number(&answer["setup-time"])) / 1e3;
    let ticks = u32::try_from(source.ticks() + target.ticks() - before).unwrap();
    (megabytes / seconds, f64::from(ticks) / 100.0)
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let broker = Started::new(Path::new(env!("CARGO_BIN_EXE_hybridnic-agent")));
    let broker = broker.unwrap().run().unwrap();
    let noise = File::open("/dev/urandom").unwrap();
    let mut full = File::create(memory.path().join("full")).unwrap();
    io::copy(&mut io::Read::take(noise, MEMORY_MIB << 20), &mut full).unwrap();
    let mut figures = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (encrypted, figures) in [false, true].into_iter().zip(&mut figures) {
            figures.push(send(memory.path(), &broker, encrypted).await);
        }
    }
    let [plain, encrypted] = figures.map(|mut figures| {
        figures.sort_by(|a, b| a.0.total_cmp(&b.0));
        figures[ROUNDS / 2]
    });
    println!(
        "stream of {MEMORY_MIB} MiB: {:.0} MB/s encrypted, {:.0} in plain, so {:.0} %; {:.2} s of a processor at both ends, {:.2} in plain; medians of {ROUNDS}",
        encrypted.0,
        plain.0,
        100.0 * encrypted.0 / plain.0,
        encrypted.1,
        plain.1
    );
}
