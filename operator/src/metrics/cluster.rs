//! What the leader's caches hold, counted when the metrics are read, so nothing is shown that is gone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use hybridnic_api::conditions::{self, reasons};
use hybridnic_api::v1alpha1::HybridNetwork;
use hybridnic_process::metrics::{Gauge, Registry};
use jiff::Timestamp;

use crate::cache::Key;
use crate::kinds::{Agent, NicGlance};
use crate::moves::Going;
use crate::world::World;

/// What the leader sees of the cluster. Clones share it.
#[derive(Clone, Default)]
pub struct Cluster(Arc<Mutex<Option<World>>>);

impl Cluster {
    /// Adds its metrics; nothing is seen yet.
    pub fn new(registry: &mut Registry) -> Self {
        let this = Self::default();
        let gauges = Gauges::new(registry);
        let seen = this.clone();
        registry.before_reading(move || {
            let world = seen.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(world) = world {
                gauges.show(&world, Timestamp::now());
            }
        });
        this
    }

    /// Counts what `world` holds, from now on.
    pub fn set(&self, world: World) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(world);
    }
}

struct Gauges {
    vfs: Gauge<2>,
    network_nodes: Gauge<1>,
    nics: Gauge<4>,
    unreachable: Gauge<0>,
    nodes: Gauge<1>,
    migrations: Gauge<1>,
    oldest: Gauge<1>,
    undecided: Gauge<1>,
    saves: Gauge<2>,
    oldest_saves: Gauge<2>,
}

impl Gauges {
    fn new(registry: &mut Registry) -> Self {
        Self {
            vfs: registry.gauge(
                "hybridnic_network_vfs",
                ["network", "state"],
                "VFs of a network's pool, by state: free, held, unhealthy or drained; their sum is the pool",
            ),
            network_nodes: registry.gauge(
                "hybridnic_network_nodes",
                ["network"],
                "Nodes with at least one VF of the network",
            ),
            nics: registry.gauge(
                "hybridnic_nics",
                ["network", "path", "phase", "asked"],
                "NICs, by network, by the path that carries their traffic, by phase, and by the path that is asked for: Auto or Standby",
            ),
            unreachable: registry.gauge(
                "hybridnic_nics_unreachable",
                [],
                "NICs that may be live on a node that is not ready, and so are attached nowhere else",
            ),
            nodes: registry.gauge(
                "hybridnic_nodes",
                ["agent"],
                "Nodes with a HybridNode, by their agent's version: supported, unsupported, or unknown before it has reported",
            ),
            migrations: registry.gauge(
                "hybridnic_migrations_active",
                ["phase"],
                "Migrations that have not ended, by phase",
            ),
            oldest: registry.gauge(
                "hybridnic_migrations_oldest_seconds",
                ["phase"],
                "How long the migration has been in the phase that has been there longest",
            ),
            undecided: registry.gauge(
                "hybridnic_migrations_undecided",
                ["reason"],
                "Migrations whose VM is paused because the target has not said whether it has it, by the reason: TargetSilent or NeedsDecision",
            ),
            saves: registry.gauge(
                "hybridnic_saves_active",
                ["kind", "phase"],
                "Saves and restores that have not ended, by kind (save, restore) and phase",
            ),
            oldest_saves: registry.gauge(
                "hybridnic_saves_oldest_seconds",
                ["kind", "phase"],
                "How long the save or the restore has been in the phase that has been there longest, by kind; 0 if all of them wait for their user",
            ),
        }
    }

    fn show(&self, world: &World, now: Timestamp) {
        let networks = world.networks.all();
        self.vfs.replace(networks.iter().flat_map(|network| {
            let vfs = network.status.as_ref().map(|s| s.vfs).unwrap_or_default();
            let name = network.metadata.name.as_deref().unwrap_or_default();
            [
                ([name, "free"], vfs.free.into()),
                ([name, "held"], vfs.held.into()),
                ([name, "unhealthy"], vfs.unhealthy.into()),
                ([name, "drained"], vfs.drained.into()),
            ]
        }));
        self.network_nodes.replace(networks.iter().map(|network| {
            let nodes = network.status.as_ref().map_or(0, |s| s.nodes);
            (
                [network.metadata.name.as_deref().unwrap_or_default()],
                nodes.into(),
            )
        }));
        let all = world.nics.all_glances();
        self.unreachable.set([], unreachable(&all));
        let of = |network: &str| world.nics.glances(&Key::Network(network.to_owned()));
        let nics = nics(&networks, of, &all);
        self.nics.replace(
            nics.iter()
                .map(|((network, labels), n)| ([network.as_str(), labels[0], labels[1], labels[2]], *n)),
        );
        let nodes = nodes(world.hybrid_nodes.all_glances());
        self.nodes
            .replace(nodes.into_iter().map(|(agent, n)| ([agent], n)));
        let going = world.going();
        let migrations = by_phase(&going, now);
        self.migrations
            .replace(migrations.iter().map(|(phase, (n, _))| ([*phase], *n)));
        self.oldest
            .replace(migrations.iter().map(|(phase, (_, age))| ([*phase], *age)));
        self.undecided
            .replace(undecided(&going).into_iter().map(|(reason, n)| ([reason], n)));
        let going = [("save", world.saves_going()), ("restore", world.restores_going())];
        let saves: Vec<_> = going
            .iter()
            .flat_map(|(kind, going)| {
                let phases = by_phase(going, now).into_iter();
                phases.map(move |(phase, seen)| ([*kind, phase], seen))
            })
            .collect();
        self.saves
            .replace(saves.iter().map(|(labels, (n, _))| (*labels, *n)));
        self.oldest_saves
            .replace(saves.iter().map(|(labels, (_, age))| (*labels, *age)));
    }
}

/// NICs by network, and by path, phase and the path that is asked for, of what is seen of those of a network and of all. Users may name networks that do not
/// exist; those are one, without a name.
fn nics(
    networks: &[Arc<HybridNetwork>],
    of: impl Fn(&str) -> Vec<NicGlance>,
    all: &[NicGlance],
) -> BTreeMap<(String, [&'static str; 3]), i64> {
    let mut counts: BTreeMap<(String, [&'static str; 3]), i64> = BTreeMap::new();
    let mut count = |network: &str, nic: NicGlance, n: i64| {
        let labels = [nic.path.into(), nic.phase.into(), nic.asked.into()];
        let key = (network.to_owned(), labels);
        *counts.entry(key).or_default() += n;
    };
    for seen in all {
        count("", *seen, 1);
    }
    for network in networks {
        let name = network.metadata.name.as_deref().unwrap_or_default();
        for seen in of(name) {
            count(name, seen, 1);
            count("", seen, -1);
        }
    }
    counts.retain(|_, n| *n > 0);
    counts
}

/// NICs that wait for a node that does not answer.
fn unreachable(nics: &[NicGlance]) -> i64 {
    i64::try_from(nics.iter().filter(|nic| nic.lost).count()).unwrap_or(i64::MAX)
}

/// Nodes by what is known of their agent. All are shown, so that none is missed where there is none.
fn nodes(agents: Vec<Agent>) -> BTreeMap<&'static str, i64> {
    let mut counts = BTreeMap::from([("supported", 0), ("unsupported", 0), ("unknown", 0)]);
    for agent in agents {
        let agent = match agent {
            Agent::Supported => "supported",
            Agent::Unsupported => "unsupported",
            Agent::Unknown => "unknown",
        };
        *counts.entry(agent).or_default() += 1;
    }
    counts
}

/// Migrations that a person should look at. Both reasons are shown, so that an alert sees the first.
fn undecided(going: &[Going]) -> BTreeMap<&'static str, i64> {
    let mut counts = BTreeMap::from([(reasons::TARGET_SILENT, 0), (reasons::NEEDS_DECISION, 0)]);
    for reason in going.iter().filter_map(|going| going.undecided) {
        *counts.entry(reason).or_default() += 1;
    }
    counts
}

/// Migrations, saves or restores that have not ended by phase, with the age of the oldest in it, in seconds. A save that waits for its user
/// has none: it is not stuck, no matter for how long.
fn by_phase(going: &[Going], now: Timestamp) -> BTreeMap<&'static str, (i64, i64)> {
    let mut counts = BTreeMap::new();
    for going in going {
        let awaits_user = going.undecided.is_some_and(conditions::awaits_user);
        let since = going.since.filter(|_| !awaits_user).unwrap_or(now);
        let age = now.duration_since(since).as_secs().max(0);
        let (count, oldest): &mut (i64, i64) = counts.entry(going.phase).or_default();
        *count += 1;
        *oldest = age.max(*oldest);
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Object;
    use crate::testing::{network, nic, node};
    use hybridnic_api::conditions::{NewCondition, types};
    use hybridnic_api::v1alpha1::{NicPhase, Path, WantedPath};

    #[test]
    fn networks_that_do_not_exist_make_no_series() {
        let fast = NicGlance {
            path: Path::FastPath,
            phase: NicPhase::FastPath,
            ..NicGlance::default()
        };
        let told = NicGlance {
            asked: WantedPath::Standby,
            path: Path::Standby,
            phase: NicPhase::Standby,
            ..NicGlance::default()
        };
        let pending = NicGlance::default();
        let of = |network: &str| {
            if network == "net" {
                vec![fast, fast, told]
            } else {
                Vec::new()
            }
        };
        let counts = nics(
            &[Arc::new(network("net"))],
            of,
            &[fast, pending, told, fast, pending],
        );
        let key = |a: &str, labels| (a.to_owned(), labels);
        assert_eq!(
            counts,
            BTreeMap::from([
                (key("net", ["FastPath", "FastPath", "Auto"]), 2),
                (key("net", ["Standby", "Standby", "Standby"]), 1),
                (key("", ["None", "Pending", "Auto"]), 2)
            ])
        );
    }

    #[test]
    fn nics_that_wait_for_a_lost_node() {
        let with = |name: &str, reason: &str| {
            let mut nic = nic(name, "vm", "net", 1);
            let status = nic.status.get_or_insert_default();
            for type_ in [types::READY, types::FAST_PATH] {
                let condition = NewCondition::no(type_, reason, "so it is");
                conditions::set(&mut status.conditions, None, Timestamp::UNIX_EPOCH, condition);
            }
            nic.glance()
        };
        let all = [
            with("a", reasons::NODE_UNREACHABLE),
            with("b", reasons::WAITING_FOR_DETACH),
            nic("c", "vm", "net", 1).glance(),
        ];
        assert_eq!(unreachable(&all), 1);
    }

    #[test]
    fn nodes_by_their_agents() {
        let mut odd = node("n2", &[]);
        odd.status.as_mut().unwrap().agent_version = Some("99.0.0".to_owned());
        let mut silent = node("n3", &[]);
        silent.status = None;
        let counts = nodes(
            [node("n1", &[]), odd, silent]
                .iter()
                .map(Object::glance)
                .collect(),
        );
        assert_eq!(
            counts,
            BTreeMap::from([("supported", 1), ("unsupported", 1), ("unknown", 1)])
        );
    }

    #[test]
    fn both_reasons_to_look_at_a_migration_are_there_from_the_start() {
        let going = |undecided| Going {
            phase: "Transferring",
            since: None,
            undecided,
        };
        assert_eq!(undecided(&[])[reasons::NEEDS_DECISION], 0);
        let all = [going(Some(reasons::NEEDS_DECISION)), going(None)];
        assert_eq!(
            undecided(&all),
            BTreeMap::from([(reasons::NEEDS_DECISION, 1), (reasons::TARGET_SILENT, 0)])
        );
    }

    #[test]
    fn the_oldest_migration_of_each_phase() {
        let second = |s| Timestamp::from_second(s).unwrap();
        let going = |phase, since| Going {
            phase,
            since: Some(second(since)),
            undecided: None,
        };
        let all = [
            going("Pending", 90),
            going("Transferring", 40),
            going("Transferring", 70),
        ];
        assert_eq!(
            by_phase(&all, second(100)),
            BTreeMap::from([("Pending", (1, 10)), ("Transferring", (2, 60))])
        );
    }

    #[test]
    fn a_save_that_waits_for_its_user_is_not_stuck() {
        let second = |s| Timestamp::from_second(s).unwrap();
        let going = |since, undecided| Going {
            phase: "Completing",
            since: Some(second(since)),
            undecided,
        };
        let stuck = going(70, None);
        let all = [reasons::PAUSED, reasons::VM_RUNS].map(|reason| going(10, Some(reason)));
        let of = |all: &[Going]| by_phase(all, second(100))["Completing"];
        assert_eq!(of(&all), (2, 0));
        assert_eq!(of(&[all.as_slice(), &[stuck]].concat()), (3, 30));
        // A migration that waits for a decision has an alert of its own besides.
        assert_eq!(of(&[going(10, Some(reasons::NEEDS_DECISION))]), (1, 90));
    }
}
