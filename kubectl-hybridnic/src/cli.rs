//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use hybridnic_console::drain::Which;

/// Hybrid NICs at a glance: SR-IOV speed with live migration.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-hybridnic",
    bin_name = "kubectl hybridnic",
    version,
    max_term_width = 110
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Which cluster.
    #[command(flatten)]
    pub global: Global,
}

/// Options of every command.
#[derive(Clone, Debug, Default, Args)]
pub struct Global {
    /// Namespace; without it, that of the kubeconfig's context
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,
    /// Context of the kubeconfig; without it, the current one
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// Kubeconfig file; without it, as kubectl finds it
    #[arg(long, global = true)]
    pub kubeconfig: Option<PathBuf>,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t)]
    pub output: Format,
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
    /// For both
    Yaml,
}

/// What the plugin can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show networks, nodes and NICs, and redraw whenever one changes
    ///
    /// If standard output is not a terminal, or with -o json or yaml, it prints once.
    Top {
        /// Print once and end
        #[arg(long)]
        once: bool,
        /// NICs of all namespaces
        #[arg(short = 'A', long)]
        all_namespaces: bool,
    },
    /// Show everything about one NIC
    Nic {
        /// Name of the VmHybridNic
        name: String,
    },
    /// Show the PFs and VFs of a node as a map
    Node {
        /// Name of the node
        name: String,
    },
    /// Move a VM to another of its pods
    ///
    /// Plain QEMU: the pod must be there already, and its QEMU must run with `-incoming defer`. KubeVirt makes the pod itself.
    Migrate {
        /// Name of the VM: the label hybridnic.io/vm of its pods, or KubeVirt's own
        vm: String,
        /// Node to move to; needed where the VM has several other pods of plain QEMU
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
        /// Watch it to its end; the exit code is 0 only when it succeeds
        #[arg(short, long)]
        watch: bool,
    },
    /// Take a VM, or one NIC, off its VFs: the traffic runs on the standby until `fast`
    ///
    /// For a tool that needs the VF, or to see how well the standby works. The card stays in use, because the standby is on it. The VM may
    /// migrate meanwhile. A NIC without a standby needs --cut.
    Standby {
        /// Name of a VmHybridNic, or of a VM for all of its NICs; nic/NAME or vm/NAME if both exist
        name: String,
        /// Keep the VF reserved for the NIC; without it, it goes back to the pool, and another NIC may get it
        #[arg(long)]
        keep_vf: bool,
        /// Also NICs without a standby: the VM has no network through them until `fast`
        #[arg(long)]
        cut: bool,
        /// Watch it to its end; the exit code is 0 only when no NIC whose VM runs is on a VF
        #[arg(short, long)]
        watch: bool,
    },
    /// Bring a VM, or one NIC, back to its VFs
    Fast {
        /// Name of a VmHybridNic, or of a VM for all of its NICs; nic/NAME or vm/NAME if both exist
        name: String,
        /// Watch it to its end; the exit code is 0 only when each NIC whose VM runs is on a VF
        #[arg(short, long)]
        watch: bool,
    },
    /// Drain a PF of VFs, so that its firmware can be written or its number of VFs changed while VMs run
    ///
    /// NICs leave its VFs: for VFs of other PFs where some are free, otherwise for their standby. No NIC gets one until `undrain-pf`.
    /// Firmware belongs to a card: drain each PF of it.
    #[command(override_usage = "kubectl hybridnic drain-pf [OPTIONS] <NODE> <PF|--all|--network <NETWORK>>")]
    DrainPf {
        /// Name of the node
        node: String,
        /// What of the node
        #[command(flatten)]
        which: Which,
        /// Watch it to its end; the exit code is 0 only when no NIC holds a VF of it
        #[arg(short, long)]
        watch: bool,
    },
    /// Let NICs have the VFs again; they come back by themselves
    #[command(
        override_usage = "kubectl hybridnic undrain-pf [OPTIONS] <NODE> <PF|--all|--network <NETWORK>>"
    )]
    UndrainPf {
        /// Name of the node
        node: String,
        /// What of the node
        #[command(flatten)]
        which: Which,
    },
    /// Check the cluster, and say how to fix what is wrong
    ///
    /// The exit code is 1 when a check fails. Warnings do not count.
    Doctor,
    /// Print a completion script
    ///
    /// bash, zsh and fish complete `kubectl-hybridnic`. For `kubectl hybridnic`, write the script `kubectl` to an
    /// executable file kubectl_complete-hybridnic on the PATH.
    Completion {
        /// Which
        shell: Shell,
    },
    /// Answer kubectl_complete-hybridnic
    #[command(name = "__complete", hide = true)]
    Complete {
        /// The words so far; the last one is to be completed.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

/// Who asks for completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// `source <(kubectl hybridnic completion bash)`
    Bash,
    /// `source <(kubectl hybridnic completion zsh)`
    Zsh,
    /// `kubectl hybridnic completion fish | source`
    Fish,
    /// The file kubectl_complete-hybridnic
    Kubectl,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let cli = Cli::parse_from(["x", "migrate", "web", "--to", "n2", "-n", "prod", "-o", "json"]);
        assert_eq!(cli.global.namespace.as_deref(), Some("prod"));
        assert_eq!(cli.global.output, Format::Json);
        assert!(
            matches!(cli.command, Command::Migrate { vm, to: Some(to), watch: false } if vm == "web" && to == "n2")
        );
        let cli = Cli::parse_from(["x", "standby", "vm/web", "--keep-vf", "-w"]);
        assert!(
            matches!(cli.command, Command::Standby { name, keep_vf: true, cut: false, watch: true } if name == "vm/web")
        );
        let cli = Cli::parse_from(["x", "fast", "eth0"]);
        assert!(matches!(cli.command, Command::Fast { name, watch: false } if name == "eth0"));
        let cli = Cli::parse_from(["x", "drain-pf", "n1", "ens1f0", "-w"]);
        assert!(
            matches!(cli.command, Command::DrainPf { node, which, watch: true } if node == "n1" && which.pf.as_deref() == Some("ens1f0"))
        );
        let cli = Cli::parse_from(["x", "undrain-pf", "n1", "--all"]);
        assert!(matches!(cli.command, Command::UndrainPf { which, .. } if which.all));
        for wrong in [
            &["x", "drain-pf", "n1"][..],
            &["x", "drain-pf", "n1", "ens1f0", "--all"],
        ] {
            Cli::try_parse_from(wrong).unwrap_err();
        }
    }
}
