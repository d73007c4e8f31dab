//! `migrate VM`: moves a VM, and shows how it goes.

mod kubevirt;
mod progress;
mod target;

use std::{cell::RefCell, pin::pin, process::ExitCode, time::Duration};

use anyhow::bail;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use hybridnic_api::{
    foreign::kubevirt::VirtualMachineInstanceMigration,
    names::VM_LABEL,
    v1alpha1::{MigrationPhase, QemuMigration, QemuMigrationSpec, VmHybridNic},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, ObjectMeta, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::time::timeout;

use self::progress::Shown;
use crate::{canvas::Canvas, cli::Format, connect::Cluster, print};

/// How long a NIC is waited for.
const ANSWER: Duration = Duration::from_secs(2);
/// Exit code after Ctrl-C, as a shell has it.
pub const INTERRUPTED: u8 = 130;

/// Creates the migration, and watches it if that is asked for.
pub async fn run(
    cluster: &Cluster,
    vm: &str,
    to: Option<&str>,
    watch: bool,
    output: Format,
) -> anyhow::Result<ExitCode> {
    let namespace = &cluster.namespace;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let nics: Api<VmHybridNic> = Api::namespaced(cluster.client.clone(), namespace);
    let migrations: Api<QemuMigration> = Api::namespaced(cluster.client.clone(), namespace);
    if !target::is_label_value(vm) {
        bail!("{vm:?} is not a VM's name: it must be the value of its pods' label {VM_LABEL}");
    }
    let of_vm = ListParams::default().labels(&format!("{VM_LABEL}={vm}"));
    let everything = ListParams::default();
    let (pods, nics) = tokio::join!(
        cluster.ask("pods", pods.list(&of_vm)),
        cluster.ask("NICs", nics.list(&everything)),
    );
    let (pods, nics) = (pods?.items, nics?.items);
    if kubevirt::is_kubevirts(vm, &nics) {
        let nics = kubevirt::names(vm, &nics);
        return Box::pin(by_kubevirt(cluster, vm, &nics, to, watch, output)).await;
    }
    let target = match target::choose(vm, to, &pods, &nics) {
        Ok(pod) => pod,
        Err(refusal) => bail!("{refusal} (namespace {namespace})"),
    };
    let wanted = QemuMigration {
        metadata: ObjectMeta {
            generate_name: Some(target::name_prefix(vm)),
            ..ObjectMeta::default()
        },
        spec: QemuMigrationSpec {
            vm: vm.to_owned(),
            target_pod: Some(target.pod.clone()),
            decision: None,
        },
        status: None,
    };
    let params = PostParams::default();
    let made = migrations.create(&params, &wanted);
    let mut made = cluster.ask(format!("QemuMigration of VM {vm}"), made).await?;
    let name = made.name_any();
    if !watch {
        made.metadata.managed_fields = None;
        print::value(output, &made, |_| {
            format!(
                "qemumigration.hybridnic.io/{name} created: VM {vm} moves to pod {} on {}\n\
                 See how it goes: kubectl get qmig {name} -n {namespace} -w\n",
                target.pod, target.node
            )
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let follower = Follower {
        cluster,
        name: &name,
        kind: "qmig",
        output,
        canvas: Canvas::default(),
        last: String::new(),
    };
    let changes = watcher::watch_object(migrations, &name).default_backoff();
    follower
        .follow(changes.map_ok(|migration| migration.map(Shown::from)))
        .await
}

/// Asks KubeVirt to move the VM, which chooses the node where none is named.
async fn by_kubevirt(
    cluster: &Cluster,
    vm: &str,
    nics: &[String],
    to: Option<&str>,
    watch: bool,
    output: Format,
) -> anyhow::Result<ExitCode> {
    let namespace = &cluster.namespace;
    let migrations: Api<VirtualMachineInstanceMigration> = Api::namespaced(cluster.client.clone(), namespace);
    let (params, wanted) = (PostParams::default(), kubevirt::wanted(vm, to));
    let made = migrations.create(&params, &wanted);
    let made = cluster
        .ask(format!("VirtualMachineInstanceMigration of VM {vm}"), made)
        .await?;
    let name = made.name_any();
    if !watch {
        let mut made = made;
        made.metadata.managed_fields = None;
        print::value(output, &made, |_| {
            let to = to.map(|node| format!(" to {node}")).unwrap_or_default();
            format!(
                "virtualmachineinstancemigration.kubevirt.io/{name} created: KubeVirt moves VM {vm}{to}\n\
                 See how it goes: kubectl get vmim {name} -n {namespace} -w\n"
            )
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let follower = Follower {
        cluster,
        name: &name,
        kind: "vmim",
        output,
        canvas: Canvas::default(),
        last: String::new(),
    };
    let changes = watcher::watch_object(migrations, &name).default_backoff();
    let of_nics: Api<VmHybridNic> = Api::namespaced(cluster.client.clone(), namespace);
    let seen = RefCell::new(None);
    let shown = changes.and_then(async |migration: Option<VirtualMachineInstanceMigration>| {
        let Some(migration) = migration else {
            return Ok(None);
        };
        // Without it only the way is not shown: what has happened is not held back for it.
        if let Some(nic) = nics.first()
            && !kubevirt::names_nodes(&migration)
            && let Ok(Ok(Some(nic))) = timeout(ANSWER, of_nics.get_opt(nic)).await
        {
            seen.replace(Some(nic));
        }
        Ok(Some(kubevirt::shown(&migration, nics, seen.borrow().as_ref())))
    });
    Box::pin(follower.follow(shown)).await
}

/// Watches a migration to its end.
struct Follower<'a> {
    cluster: &'a Cluster,
    name: &'a str,
    /// Short name of its kind.
    kind: &'static str,
    output: Format,
    canvas: Canvas,
    /// The last line without a terminal, so that no line is printed twice.
    last: String,
}

impl Follower<'_> {
    async fn follow(
        mut self,
        changes: impl Stream<Item = watcher::Result<Option<Shown>>>,
    ) -> anyhow::Result<ExitCode> {
        let mut changes = pin!(changes);
        // The bar of a phase that goes on grows between changes.
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        let mut interrupted = pin!(tokio::signal::ctrl_c());
        let mut known: Option<Shown> = None;
        loop {
            tokio::select! {
                change = changes.next() => match change {
                    Some(Ok(Some(shown))) => {
                        self.show(&shown)?;
                        let over = phase(&shown.migration).is_final();
                        known = Some(shown);
                        if over {
                            break;
                        }
                    }
                    // It is deleted only once it has ended; its last word may have been missed.
                    Some(Ok(None)) if known.is_some() => {
                        return self.gone(known.as_ref().map(|shown| &shown.migration));
                    }
                    // A list older than the object.
                    Some(Ok(None)) => {}
                    Some(Err(error)) => {
                        let (text, passes) = self.cluster.explain_watch(&error);
                        if !passes {
                            bail!("{text}; the migration {} goes on", self.name);
                        }
                    }
                    None => bail!("the watch has ended; the migration {} goes on", self.name),
                },
                _ = tick.tick(), if self.draws() && known.is_some() => {
                    if let Some(shown) = &known {
                        self.show(shown)?;
                    }
                }
                _ = &mut interrupted => {
                    print::note(&progress::goodbye(self.kind, self.name, &self.cluster.namespace))?;
                    return Ok(ExitCode::from(INTERRUPTED));
                }
            }
        }
        let Some(Shown { mut migration, .. }) = known else {
            bail!("the migration {} was not seen", self.name)
        };
        if self.output != Format::Table {
            migration.metadata.managed_fields = None;
            print::value(self.output, &migration, |_| String::new())?;
        }
        Ok(verdict(phase(&migration)))
    }

    /// Whether the picture is drawn over and over.
    fn draws(&self) -> bool {
        self.output == Format::Table && print::is_terminal()
    }

    fn show(&mut self, shown: &Shown) -> anyhow::Result<()> {
        if self.draws() {
            let width = print::width().unwrap_or(80);
            self.canvas
                .draw(&progress::picture(shown, Timestamp::now(), width), width)?;
        } else if self.output == Format::Table {
            if phase(&shown.migration).is_final() {
                return print::text(&progress::picture(shown, Timestamp::now(), 80));
            }
            let line = progress::line(shown);
            if line != self.last {
                print::text(&format!("{line}\n"))?;
                self.last = line;
            }
        }
        Ok(())
    }

    fn gone(&self, known: Option<&QemuMigration>) -> anyhow::Result<ExitCode> {
        if self.output != Format::Table {
            print::value(self.output, &known, |_| String::new())?;
        }
        bail!(
            "the migration {} was deleted, and so cancelled: kubectl hybridnic top shows where the VM is",
            self.name
        )
    }
}

fn phase(migration: &QemuMigration) -> MigrationPhase {
    migration
        .status
        .as_ref()
        .map(|status| status.phase)
        .unwrap_or_default()
}

fn verdict(phase: MigrationPhase) -> ExitCode {
    if phase == MigrationPhase::Succeeded {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
