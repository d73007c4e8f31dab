//! A newcomer with docs/kubevirt.md: what its commands say is typed here as it is written, but for the names of this cluster's nodes and
//! images, and for the example's disk.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hybridnic_e2e::cluster::{Cluster, TAG};
use hybridnic_e2e::docs;
use hybridnic_e2e::kubevirt::{Kind, Vm};
use hybridnic_e2e::world::binary;
use serde_json::{Value, json};
use tokio::process::Command;

use super::seen::{checked, fast, reached};
use super::{NAMESPACE, SCARCE, Story, network};

const PAGE: &str = "docs/kubevirt.md";
/// One command of it, which may wait for a VM.
const TYPED: Duration = Duration::from_mins(6);
/// What `doctor` must be content with, as the page shows it.
const CHECKS: [&str; 4] = ["kubevirt", "binding", "multus", "resources"];

/// The commands of the page that one story types.
pub struct Page {
    commands: Vec<String>,
    typed: Mutex<BTreeSet<usize>>,
    path: OsString,
    kubeconfig: PathBuf,
    /// Where files of the page's are put that had to be changed.
    dir: PathBuf,
}

impl Page {
    /// Those of the blocks that say so: `not-run: MAKE runs it`. `programs` are others that the newcomer has installed.
    pub fn read(cluster: &Cluster, make: &str, programs: &[&Path]) -> Self {
        let pages = docs::pages().unwrap();
        let page = pages.iter().find(|page| page.path == Path::new(PAGE)).unwrap();
        let mark = format!("not-run: {make} runs it");
        let marked = page.blocks.iter().filter(|block| block.words() == mark);
        let commands: Vec<_> = marked.flat_map(|block| commands(&block.text)).collect();
        assert!(!commands.is_empty(), "{PAGE} has no block {mark:?}");
        let tools = cluster.control_plane.tools();
        let ours = binary("kubectl-hybridnic").unwrap();
        let mut path = OsString::new();
        for program in [&tools.kubectl, &tools.helm, &ours]
            .map(PathBuf::as_path)
            .iter()
            .chain(programs)
        {
            path.push(program.parent().unwrap());
            path.push(":");
        }
        path.push(std::env::var_os("PATH").unwrap_or_default());
        Self {
            commands,
            typed: Mutex::default(),
            path,
            kubeconfig: cluster.control_plane.kubeconfig_admin(),
            dir: cluster.lab.dir().to_owned(),
        }
    }

    /// Types the one command that has this in it.
    pub async fn types(&self, with: &str) -> String {
        self.types_as(with, str::to_owned).await
    }

    /// The same, changed for this cluster. Gives what it printed.
    pub async fn types_as(&self, with: &str, change: impl Fn(&str) -> String) -> String {
        let found: Vec<_> = (0..self.commands.len())
            .filter(|nth| self.commands[*nth].contains(with))
            .collect();
        let [nth] = found[..] else {
            panic!(
                "not one command of {PAGE} has {with:?} in it: {:#?}",
                self.commands
            );
        };
        let command = change(&self.commands[nth]);
        let mut shell = Command::new("bash");
        shell
            .args(["-euo", "pipefail", "-c", &command])
            .current_dir(docs::root())
            .env("PATH", &self.path)
            .env("HOME", &self.dir)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(TYPED, shell.output()).await;
        let output = output
            .unwrap_or_else(|_| panic!("not done after {TYPED:?}: {command}"))
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let printed = text(&output.stdout);
        eprintln!("$ {command}\n{printed}");
        assert!(
            output.status.success(),
            "{PAGE}: {command}: {}",
            text(&output.stderr)
        );
        self.typed.lock().unwrap().insert(nth);
        printed
    }

    /// All of them have been.
    pub fn is_typed(&self) {
        let typed = self.typed.lock().unwrap();
        let left = (0..self.commands.len()).filter(|nth| !typed.contains(nth));
        let left: Vec<_> = left.map(|nth| &self.commands[nth]).collect();
        assert!(left.is_empty(), "{PAGE}: nobody has typed {left:#?}");
    }

    /// Writes a file that a command reads in place of the repository's.
    fn put(&self, name: &str, text: &str) -> String {
        let file = self.dir.join(name);
        fs::write(&file, text).unwrap();
        file.display().to_string()
    }
}

/// The commands of a block, without what it says of them; some go on in the next line.
fn commands(text: &str) -> Vec<String> {
    let mut commands = vec![String::new()];
    for line in text.lines() {
        let line = line.split("  # ").next().unwrap_or_default().trim_end();
        let last = commands.last_mut().unwrap();
        last.push_str(line);
        if line.ends_with(['|', '\\']) {
            last.push('\n');
        } else {
            commands.push(String::new());
        }
    }
    commands.retain(|command| !command.trim().is_empty());
    commands
}

/// What is in a file of the repository.
fn file(path: &str) -> String {
    fs::read_to_string(docs::root().join(path)).unwrap()
}

impl Story<'_> {
    /// Hybridnic is installed, and has a network.
    pub async fn installed_as_written(&self) -> Page {
        let page = Page::read(self.cluster, "make kubevirt-nodes", &[]);
        page.types_as("helm install", |command| {
            format!("{command} --set image.tag={TAG} --wait --timeout 5m")
        })
        .await;
        let path = "deploy/examples/network.yaml";
        // KubeVirt's own interface has one of the others.
        let (example, line) = (file(path), "# vfs: [\"0-3\", \"5\"]");
        assert!(example.contains(line), "{path} has no {line}");
        let edited = page.put("network.yaml", &example.replace(line, "vfs: [\"0-3\"]"));
        page.types_as("apply -f", |command| command.replace(path, &edited))
            .await;
        page.types("wait --for=condition=Ready hnet").await;
        page.types("get hnet").await;
        self.make_namespace().await;
        let scarce = network(SCARCE, "pfNames: [eth2], vfs: [\"6\"]", 1);
        self.cluster.apply(&scarce).await.unwrap();
        self.until_free(9).await;
        let mut kubevirt = self.kubevirt.lock().await;
        kubevirt
            .offer_vf(self.cluster, NAMESPACE, super::LENT)
            .await
            .unwrap();
        self.say("hybridnic is installed");
        page
    }

    /// The example's VM, which becomes this one, is on its VFs. Another VM starts while its guest boots: no earlier, because a launcher has
    /// 20 s for its first call, and no second try.
    pub async fn start_as_written(&self, page: &Page, vm: &Vm, other: &Vm) {
        let asked = Instant::now();
        let path = "deploy/examples/kubevirt-vm.yaml";
        let fitted = page.put("vm.json", &fitted(&file(path), &vm.object()).to_string());
        page.types_as("apply -n", |command| command.replace(path, &fitted))
            .await;
        page.types("wait -n shop --for=create").await;
        reached(self.cluster, Kind::VirtualMachineInstance, &vm.name, "Running").await;
        other.create(self.cluster).await.unwrap();
        page.types("vhn/web-fast --timeout=10m").await;
        let nics = fast(self.cluster, vm).await;
        let took = asked.elapsed().as_secs_f64();
        eprintln!("figure: {}, from asked to its fast path {took:.1} s", vm.name);
        page.types("get vhn").await;
        checked(self.cluster, vm, &nics).await;
        reached(self.cluster, Kind::VirtualMachineInstance, &other.name, "Running").await;
    }

    /// What there is to look at while nothing happens.
    pub async fn looked_at(&self, page: &Page, vm: &Vm) {
        let printed = page.types("hybridnic doctor").await;
        let well = |check: &str| {
            let words = printed.lines().map(|line| line.split_whitespace().take(2));
            words.into_iter().any(|words| words.eq(["ok", check]))
        };
        for check in CHECKS {
            assert!(well(check), "{check} is not well: {printed}");
        }
        let printed = page.types("hybridnic nic").await;
        assert!(printed.contains(&vm.first()), "{printed}");
    }
}

/// The example with what this lab's VM has besides: its kernel in place of a disk, less memory, a way in, more interfaces.
fn fitted(example: &str, lab: &Value) -> Value {
    const SPEC: &str = "/spec/template/spec";
    let mut fitted: Value = serde_saphyr::from_str(example).unwrap();
    let lab = lab.pointer(SPEC).unwrap();
    let spec = fitted.pointer_mut(SPEC).unwrap();
    // The three lines that all is about.
    let theirs = &spec["domain"]["devices"]["interfaces"];
    assert_eq!(*theirs, json!([lab["domain"]["devices"]["interfaces"][0]]));
    assert_eq!(spec["networks"], json!([lab["networks"][0]]));
    spec["networks"] = lab["networks"].clone();
    spec["terminationGracePeriodSeconds"] = lab["terminationGracePeriodSeconds"].clone();
    spec["domain"] = lab["domain"].clone();
    spec.as_object_mut().unwrap().remove("volumes").unwrap();
    fitted
}
