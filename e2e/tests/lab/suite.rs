//! What the tests run in: one world after another, each for as long as it is as it should be.
//!
//! To make a world takes half a minute, so tests share one. In return each is held to leave nothing: after it, VMs and NICs
//! are removed, and both nodes must be as they were before the first.
//!
//! Two runs can share the tests, each with a world of its own: `LAB_SHARED` names a directory that is the same for both, and was empty before
//! the first. The run that reaches a test first runs it; one with `LAB_LAST_FIRST` goes through them from the end.

use std::{
    env,
    fs::File,
    io, mem,
    panic::{AssertUnwindSafe, resume_unwind},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use anyhow::Result;
use futures::FutureExt as _;
use hybridnic_api::v1alpha1::HybridNode;
use hybridnic_e2e::{
    lab::{Kernel, Lab, LabOptions, Node},
    world::{NETWORK, NETWORK_YAML, World, WorldOptions},
};
use libtest_mimic::{Completion, Trial};
use tokio::runtime::Runtime;

use crate::common::{SOON, twice, whole};

/// Runs tests one after another.
pub struct Suite {
    runtime: Runtime,
    /// What nodes and guests run, where a test does not say.
    kernel: Kernel,
    /// Where runs that share the tests say which they have taken.
    shared: Option<PathBuf>,
    place: Mutex<Place>,
}

#[derive(Default)]
struct Place {
    /// `None` before the first test, and after one that has failed.
    world: Option<Shared>,
    /// How many there have been.
    worlds: usize,
}

/// A world with the network of all VFs, which are there.
struct Shared {
    kernel: Kernel,
    world: World,
    /// What each node looks like with nothing on it.
    clean: Vec<String>,
}

impl Suite {
    pub fn new(kernel: Kernel) -> Arc<Self> {
        Arc::new(Self {
            kernel,
            runtime: Runtime::new().expect("a runtime"),
            shared: env::var_os("LAB_SHARED")
                .filter(|dir| !dir.is_empty())
                .map(PathBuf::from),
            place: Mutex::default(),
        })
    }

    /// A test in a world.
    pub fn test(
        self: &Arc<Self>,
        name: &'static str,
        test: impl AsyncFn(&mut World) + Send + 'static,
    ) -> Trial {
        self.test_on(self.kernel, name, test)
    }

    /// A test in a world on this kernel.
    pub fn test_on(
        self: &Arc<Self>,
        kernel: Kernel,
        name: &'static str,
        test: impl AsyncFn(&mut World) + Send + 'static,
    ) -> Trial {
        self.trial(name, move |suite, place| {
            suite.runtime.block_on(case(place, kernel, name, &test));
        })
    }

    /// A test, unless another run has it.
    fn trial(
        self: &Arc<Self>,
        name: &'static str,
        test: impl FnOnce(&Self, &mut Place) + Send + 'static,
    ) -> Trial {
        let suite = Arc::clone(self);
        Trial::ignorable_test(name, move || {
            if !suite.takes(name)? {
                return Ok(Completion::ignored_with("another run has it"));
            }
            // What a failed test has left in it is nothing: see `attempt`.
            let place = &mut *suite.place.lock().unwrap_or_else(PoisonError::into_inner);
            let began = Instant::now();
            test(&suite, place);
            eprintln!("--- {:.0} s", began.elapsed().as_secs_f64());
            Ok(Completion::Completed)
        })
    }

    /// Takes a test for this run, if no other has.
    fn takes(&self, name: &str) -> io::Result<bool> {
        let Some(shared) = &self.shared else {
            return Ok(true);
        };
        match File::create_new(shared.join(name)) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(io::Error::new(
                e.kind(),
                format!("LAB_SHARED {}: {e}", shared.display()),
            )),
        }
    }

    /// A test in a world of its own, as `options` makes it of the world's name. There is no other meanwhile.
    pub fn alone(
        self: &Arc<Self>,
        name: &'static str,
        options: fn(&str) -> WorldOptions,
        test: impl AsyncFn(&World) + Send + 'static,
    ) -> Trial {
        self.trial(name, move |suite, place| {
            suite.runtime.block_on(async {
                drop(place.world.take());
                twice(name, async |name| {
                    // The first world on a machine waits for its kernel to be built: that is not the test's time.
                    let world = World::start(options(name), |what| eprintln!("--- {what}")).await;
                    let world = world.expect("a world");
                    whole(test(&world), world.broken()).await;
                })
                .await;
            });
        })
    }

    /// A test on a node alone, without a control plane. There is no world meanwhile.
    pub fn bare(self: &Arc<Self>, name: &'static str, test: impl AsyncFn(&Lab) + Send + 'static) -> Trial {
        self.bare_of(1, name, test)
    }

    /// The same on so many nodes.
    pub fn bare_of(
        self: &Arc<Self>,
        nodes: u8,
        name: &'static str,
        test: impl AsyncFn(&Lab) + Send + 'static,
    ) -> Trial {
        self.trial(name, move |suite, place| {
            suite.runtime.block_on(async {
                drop(place.world.take());
                twice(name, async |name| {
                    // Its kernel may have to be built first: that is not the test's time.
                    Lab::prepare(suite.kernel).await.expect("a lab");
                    let options = LabOptions {
                        kernel: suite.kernel,
                        nodes,
                        ..LabOptions::new(name)
                    };
                    let lab = Lab::start(options).await.expect("a lab");
                    whole(test(&lab), lab.node_ended()).await;
                })
                .await;
            });
        })
    }
}

impl Drop for Suite {
    fn drop(&mut self) {
        let _runtime = self.runtime.enter();
        drop(mem::take(&mut self.place));
    }
}

/// Nested emulation on two cores fails now and then for reasons that are not ours (docs/testing.md); so a test that fails is
/// started again, in a new world, and that is said, with what it failed of: `make test` counts those lines.
async fn case(place: &mut Place, kernel: Kernel, name: &str, test: &impl AsyncFn(&mut World)) {
    let place = tokio::sync::Mutex::new(place);
    twice(name, async |_| {
        attempt(&mut **place.lock().await, kernel, name, test).await;
    })
    .await;
    // To leave something is no fault of the emulation.
    let place = place.into_inner();
    if let Some(shared) = place.world.take() {
        shared.clear().await.expect("a test leaves nothing");
        place.world = Some(shared);
    }
}

/// Leaves a world behind only if the test has succeeded.
async fn attempt(place: &mut Place, kernel: Kernel, name: &str, test: &impl AsyncFn(&mut World)) {
    let mut shared = match place.world.take() {
        Some(shared) if shared.kernel == kernel => shared,
        other => {
            drop(other);
            place.worlds += 1;
            Shared::start(kernel, place.worlds).await.expect("a world")
        }
    };
    let broken = shared.world.broken();
    let result = AssertUnwindSafe(whole(test(&mut shared.world), broken))
        .catch_unwind()
        .await;
    let Err(panic) = result else {
        place.world = Some(shared);
        return;
    };
    eprintln!("--- the logs are in {}", shared.world.lab.dir().display());
    if shared.world.lost().is_some_and(|fault| fault.is_emulations()) {
        eprintln!("RESET: the emulation reset a guest in {name}");
    } else if let Some(fault) = shared.world.find_frozen().await {
        eprintln!("FROZEN: the emulation lost a guest's timer in {name}");
        resume_unwind(Box::new(fault.to_string()));
    }
    resume_unwind(panic);
}

impl Shared {
    async fn start(kernel: Kernel, number: usize) -> Result<Self> {
        let options = WorldOptions {
            kernel,
            traces: true,
            ..WorldOptions::new(&format!("world{number}"))
        };
        let world = World::start(options, |what| eprintln!("--- {what}")).await?;
        world.apply(NETWORK_YAML).await?;
        let mut clean = Vec::new();
        for node in 1..=world.lab.nodes().len() {
            until_free(&world, node).await?;
            give_macs(world.node(node)).await?;
            clean.push(world.footprint(node).await?);
        }
        Ok(Self { kernel, world, clean })
    }

    /// Removes what a test has left to be removed, and sees that nothing else is there.
    async fn clear(&self) -> Result<()> {
        self.world.clear(NETWORK).await?;
        for (node, clean) in (1..).zip(&self.clean) {
            self.world.until_footprint(node, clean).await?;
            until_free(&self.world, node).await?;
        }
        Ok(())
    }
}

/// Waits until all VFs of a node are there, and free.
pub async fn until_free(world: &World, node: usize) -> Result<HybridNode> {
    let free = |node: &HybridNode| node.status.as_ref().is_some_and(|s| s.vfs.free == 14);
    world.until_node(node, SOON, "with 14 free VFs", free).await
}

/// Gives every VF a MAC, as an administrator may have: it must come back. (Without one, igbvf makes one up.)
pub async fn give_macs(node: &Node) -> Result<()> {
    let number = node.number();
    let script = format!(
        "for pf in 1 2; do n=$(ls /sys/bus/pci/devices/0000:0$pf:00.0/net); ip link set $n up; \
           for vf in 0 1 2 3 4 5 6; do ip link set $n vf $vf mac 02:ad:0{number}:0$pf:00:0$vf; done; done"
    );
    node.run(&script, SOON).await?;
    Ok(())
}
