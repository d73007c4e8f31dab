//! KubeVirt's migrations of a VM of ours, which a user asks for by `kubectl hybridnic migrate`, and what is said of them.

use std::process::Stdio;

use futures::TryStreamExt as _;
use kube::runtime::{WatchStreamExt as _, watcher};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Child;

use super::*;

/// One that goes on, as `kubectl hybridnic migrate --watch` has asked for it.
struct Going {
    command: Child,
    migration: DynamicObject,
    target: Pod,
}

impl Going {
    fn name(&self) -> String {
        self.migration.name_any()
    }

    /// Its command's exit code and what it printed, once it has ended.
    async fn ended(self) -> (Option<i32>, String) {
        let output = tokio::time::timeout(SOON, self.command.wait_with_output());
        let output = output
            .await
            .expect("the command ends with the migration")
            .unwrap();
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    }
}

impl Play {
    /// A migration whose target waits for its links: the source is on its standbys, and the gate is closed.
    async fn held(&self, source: &Pod) -> Going {
        let command = self
            .plugin(&["migrate", VM, "--to", "n2", "--watch"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let migration = self.asked_for().await;
        let name = migration.name_any();
        let to = json!({ "vmiName": VM, "addedNodeSelector": { "kubernetes.io/hostname": "n2" } });
        for (field, value) in to.as_object().unwrap() {
            assert_eq!(&migration.data["spec"][field], value);
        }
        let target = self.stage.target(&migration, source).await;
        for attachment in self.until_goal(&target, Goal::Reserved).await {
            let order = attachment.spec.migration.unwrap();
            assert_eq!(order.step, MigrationStep::Watch);
            assert_eq!(Some(order.migration.uid), migration.uid());
            assert_eq!(order.nics, NICS);
        }
        for attachment in self.until_goal(source, Goal::FastPath).await {
            assert!(
                attachment.spec.migration.is_some(),
                "it is watched from the start"
            );
        }
        self.say(
            source,
            AttachmentState::FastPath,
            Some((MigrationState::Prepared, true)),
        )
        .await;
        self.say(&target, AttachmentState::Reserved, None).await;
        self.until_goal(source, Goal::Standby).await;
        self.stage.held(&name).await;
        let moves = format!("KubeVirt's migration {name} moves the VM from n1 to n2");
        self.tells(reasons::MIGRATING, &moves).await;
        Going {
            command,
            migration,
            target,
        }
    }

    /// The one of the VM's migrations that has not ended.
    async fn asked_for(&self) -> DynamicObject {
        let stream = watcher(self.stage.migrations(), watcher::Config::default()).applied_objects();
        let going = stream.try_filter(|migration| {
            let is_over =
                ["Succeeded", "Failed"].contains(&at(migration, "/status/phase").as_str().unwrap_or(""));
            let is_its = *at(migration, "/spec/vmiName") == VM;
            std::future::ready(is_its && !is_over)
        });
        futures::pin_mut!(going);
        let found = tokio::time::timeout(SOON, going.try_next()).await;
        found.expect("a migration is made").unwrap().unwrap()
    }

    /// Both NICs have an event.
    async fn tells(&self, reason: &str, words: &str) {
        for nic in NICS {
            event(&self.stage.client, NAMESPACE, nic, reason, words).await;
        }
    }

    /// The source's agents say that it runs the VM, on its standbys, and sends it nowhere.
    async fn gives_back(&self, source: &Pod) {
        let asked = |a: &NicAttachment| {
            let order = a.spec.migration.as_ref();
            order.is_some_and(|order| order.step == MigrationStep::Cancel)
        };
        self.until_all(source, "asked once more", asked).await;
        self.say(
            source,
            AttachmentState::Standby,
            Some((MigrationState::Cancelled, true)),
        )
        .await;
        for attachment in self.until_goal(source, Goal::FastPath).await {
            assert_eq!(attachment.spec.migration, None);
        }
        self.say(source, AttachmentState::FastPath, None).await;
        for name in NICS {
            let is = |nic: &VmHybridNic| nic.status.as_ref().is_some_and(|s| s.phase == NicPhase::FastPath);
            self.until_nic(name, "on its VF again", is).await;
        }
    }

    /// The source's agents say that the VM is on its standbys: the gate opens.
    async fn steps_aside(&self, source: &Pod, target: &Pod) {
        self.say(
            source,
            AttachmentState::Standby,
            Some((MigrationState::Prepared, true)),
        )
        .await;
        self.until_goal(target, Goal::Standby).await;
    }

    /// The agents at the target say that nothing is left.
    async fn is_detached(&self, target: &Pod) {
        self.until_goal(target, Goal::Detached).await;
        self.say(target, AttachmentState::Detached, None).await;
        for nic in NICS {
            let name = hybridnic_api::names::attachment_name(nic, &target.uid().unwrap());
            let gone = kube::runtime::wait::await_condition(
                self.attachments(),
                &name,
                |a: Option<&NicAttachment>| a.is_none(),
            );
            tokio::time::timeout(SOON, gone).await.unwrap().unwrap();
        }
    }

    pub(super) async fn a_migration_that_is_deleted(&self, source: &Pod) {
        let going = self.held(source).await;
        let (name, target) = (going.name(), going.target.clone());
        self.is_shown_at("n1", &name, "goes on").await;
        self.stage
            .migrations()
            .delete(&name, &DeleteParams::default())
            .await
            .unwrap();
        self.stage.gone(&name).await;
        // KubeVirt lets it fail before it goes: the command sees one or the other.
        let (code, said) = going.ended().await;
        assert_eq!(code, Some(1), "{said}");
        let deleted = "was deleted, and so cancelled";
        assert!(
            said.contains(deleted) || said.contains("Failed  TransferFailed"),
            "{said}"
        );
        self.stage.n2.end(&target).await.unwrap();
        self.until_goal(&target, Goal::Detached).await;
        self.gives_back(source).await;
        self.is_detached(&target).await;
        let stayed = format!("the migration {name} was deleted; the VM has stayed on n1");
        self.tells(reasons::CANCELLED, &stayed).await;
    }

    pub(super) async fn a_migration_whose_target_is_gone(&self, source: &Pod) {
        let going = self.held(source).await;
        let (name, target) = (going.name(), going.target.clone());
        self.steps_aside(source, &target).await;
        self.stage.n2.end(&target).await.unwrap();
        self.stage.until_phase(&name, "Failed").await;
        let (code, said) = going.ended().await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("Failed  TransferFailed: "), "{said}");
        self.gives_back(source).await;
        self.is_detached(&target).await;
        let failed = |nic: &VmHybridNic| {
            let last = nic
                .status
                .as_ref()
                .and_then(|status| status.last_migration.as_ref());
            last.is_some_and(|last| last.name == name && last.result.as_deref() == Some("Failed"))
        };
        self.until_nic("web-fast", "with the failed migration", failed)
            .await;
        let stayed = format!("the migration {name} has failed; the VM has stayed on n1");
        self.tells(reasons::TRANSFER_FAILED, &stayed).await;
    }

    pub(super) async fn a_migration(&self, source: &Pod) {
        let going = self.held(source).await;
        let (name, target) = (going.name(), going.target.clone());
        self.steps_aside(source, &target).await;
        self.stage.hand_over(&going.migration, source, &target).await;
        self.say(
            source,
            AttachmentState::Standby,
            Some((MigrationState::Active, false)),
        )
        .await;
        self.say(
            &target,
            AttachmentState::Reserved,
            Some((MigrationState::Listening, false)),
        )
        .await;
        // It has come, and KubeVirt does not know it yet.
        self.say(
            &target,
            AttachmentState::Standby,
            Some((MigrationState::Completed, false)),
        )
        .await;
        self.until_goal(&target, Goal::FastPath).await;
        self.until_goal(source, Goal::Detached).await;
        self.say(
            &target,
            AttachmentState::FastPath,
            Some((MigrationState::Completed, false)),
        )
        .await;
        self.stage.finish(&name, &target).await;
        self.stage.n1.end(source).await.unwrap();
        self.say(
            source,
            AttachmentState::Detached,
            Some((MigrationState::Lost, false)),
        )
        .await;
        for nic in NICS {
            let nic = self
                .until_nic(nic, "at its target", |nic| {
                    nic.status.as_ref().is_some_and(|status| {
                        status.phase == NicPhase::FastPath && status.node_name.as_deref() == Some("n2")
                    })
                })
                .await;
            let last = nic.status.unwrap().last_migration.unwrap();
            assert_eq!(
                (last.name.as_str(), last.from.as_str(), last.to.as_str()),
                (name.as_str(), "n1", "n2")
            );
            assert_eq!(last.result.as_deref(), Some("Succeeded"));
        }
        for attachment in self.until_goal(&target, Goal::FastPath).await {
            let name = attachment.name_any();
            let is = |a: &NicAttachment| a.spec.migration.is_none();
            until(self.attachments(), &name, SOON, "without an order", is)
                .await
                .unwrap();
        }
        let moved = format!("the migration {name} has moved the VM from n1 to n2");
        self.tells(reasons::COMPLETED, &moved).await;
        self.is_shown_at("n2", &name, "Succeeded").await;
        let (code, said) = going.ended().await;
        assert_eq!(code, Some(0), "{said}");
        for part in [
            "Scheduling  Migrating: the pod at the target starts, once the VM is on its standbys\n",
            "Running  Migrating: QEMU sends the VM\n",
            "Succeeded  Completed: the VM runs at its target\n",
            // KubeVirt writes the nodes there only when the migration is over; the NICs have them.
            "  n1 → n2, VM web\n",
            "NICs: web-fast, web-other\n",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    /// Each once, though the VM has two NICs.
    pub(super) async fn migrations_are_counted(&self) {
        let mut stream = TcpStream::connect(Operator::address(&self.stage.cluster))
            .await
            .unwrap();
        let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut metrics = String::new();
        stream.read_to_string(&mut metrics).await.unwrap();
        for (result, reason) in [
            ("succeeded", reasons::COMPLETED),
            ("cancelled", reasons::CANCELLED),
            ("failed", reasons::TRANSFER_FAILED),
        ] {
            let ended = format!("hybridnic_migrations_total{{result=\"{result}\",reason=\"{reason}\"}} 1\n");
            let took = format!("hybridnic_migration_duration_seconds_count{{result=\"{result}\"}} 1\n");
            assert!(metrics.contains(&ended) && metrics.contains(&took), "{metrics}");
        }
    }
}
