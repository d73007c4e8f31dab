//! Command line of the operator.

use std::time::Duration;

use clap::{Parser, Subcommand};
use hybridnic_process::http::HttpOptions;
use hybridnic_process::telemetry::LogOptions;
use hybridnic_process::traces::TraceOptions;

use crate::kubevirt::Settings;
use crate::migration::encryption::Encryption;
use crate::presence::AgentPods;

/// Decides what should be true of hybrid NICs across a cluster's nodes.
///
/// It finds the API server as kubectl does, by KUBECONFIG or within a pod.
#[derive(Clone, Debug, Parser)]
#[command(name = "hybridnic-operator", version)]
pub struct Options {
    /// Namespace of the leader election's lease; without it, the pod's own
    #[arg(long, env = "POD_NAMESPACE")]
    pub lease_namespace: Option<String>,
    /// Name of the leader election's lease
    #[arg(long, default_value = "hybridnic-operator")]
    pub lease_name: String,
    /// Name of this process in the leader election, which no other may have; without it, host name and a random part
    #[arg(long)]
    pub identity: Option<String>,
    /// Probes, metrics, log level
    #[command(flatten)]
    pub http: HttpOptions,
    /// Seconds that a migration's target has to get ready
    #[arg(long, value_parser = seconds, default_value = "60")]
    pub prepare_deadline: Duration,
    /// Seconds that a migration's source has to take the VFs from the guest
    #[arg(long, value_parser = seconds, default_value = "120")]
    pub switch_deadline: Duration,
    /// Whether migrations are encrypted. Preferred: in plain where QEMU at an end cannot, which its status says
    #[arg(long, value_enum, default_value_t)]
    pub migration_tls: Encryption,
    /// Seconds after which a NIC goes to another node though the one before, whose pod has vanished, is not ready and nothing
    /// proves that it is off; 0 is never. Its VM may then run twice, and its MAC be live on two nodes
    #[arg(long, value_parser = seconds, default_value = "0")]
    pub node_loss_timeout: Duration,
    /// Labels of the agents' pods, which are in the lease's namespace; without it, it is not known which agents are there
    #[arg(long, global = true)]
    pub agents: Option<String>,
    /// Seconds that an agent's pod may not be ready, as when it is started again, before the VFs of its node do not count
    #[arg(long, value_parser = seconds, default_value = "120")]
    pub agent_patience: Duration,
    /// Whether VMs of KubeVirt are served. It need not be there yet
    #[arg(long)]
    pub kubevirt: bool,
    /// Image of the sidecar in the pods of KubeVirt's VMs. Without it the network binding is registered by somebody else
    #[arg(long, default_value = "")]
    pub kubevirt_sidecar: String,
    /// Whether the network binding is registered in KubeVirt's configuration
    #[arg(long)]
    pub kubevirt_register: bool,
    /// Logs
    #[command(flatten)]
    pub log: LogOptions,
    /// Traces
    #[command(flatten)]
    pub traces: TraceOptions,
    /// What to do instead of to operate
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the operator can do besides.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Check that the kinds are served, that an operator leads, and that the agents have published their nodes
    Check,
}

impl Options {
    /// Namespace of the lease.
    pub fn namespace(&self, client: &kube::Client) -> String {
        let own = || client.default_namespace().to_owned();
        self.lease_namespace.clone().unwrap_or_else(own)
    }

    /// How VMs of KubeVirt are served, if they are.
    pub fn kubevirt(&self, client: &kube::Client) -> Option<Settings> {
        self.kubevirt.then(|| Settings {
            sidecar: self.kubevirt_sidecar.clone(),
            register: self.kubevirt_register,
            namespace: self.namespace(client),
        })
    }

    /// The agents' pods, if it was said which they are.
    pub fn agent_pods(&self, client: &kube::Client) -> Option<AgentPods> {
        Some(AgentPods {
            namespace: self.namespace(client),
            labels: self.agents.clone()?,
            patience: self.agent_patience,
        })
    }
}

fn seconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.parse().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Options::command().debug_assert();
        let options = Options::parse_from(["x", "--prepare-deadline", "5"]);
        assert_eq!(options.prepare_deadline, Duration::from_secs(5));
        for order in [
            ["x", "check", "--agents", "a=b"],
            ["x", "--agents", "a=b", "check"],
        ] {
            assert_eq!(Options::parse_from(order).agents.as_deref(), Some("a=b"));
        }
    }
}
