//! What the documentation tells a reader to type is typed: on a real API server, page by page in the order of the book.

use std::{ffi::OsString, fs, path::Path, process::Stdio, time::Duration};

use hybridnic_e2e::{
    controlplane::{ControlPlane, Options},
    docs::{self, Block, Page},
    world::binary,
};
use tokio::process::Command;

/// One block.
const DEADLINE: Duration = Duration::from_mins(2);

/// The pages in the order in which a newcomer reads them.
fn in_order() -> Vec<Page> {
    let mut pages = docs::pages().unwrap();
    let summary = pages
        .iter()
        .find(|p| p.path == Path::new("docs/SUMMARY.md"))
        .unwrap();
    let order: Vec<_> = summary
        .links
        .iter()
        .map(|l| Path::new("docs").join(&l.to))
        .collect();
    let place = |page: &Page| order.iter().position(|path| *path == page.path);
    pages.sort_by_key(place);
    pages
}

struct Reader {
    control_plane: ControlPlane,
    path: OsString,
    home: tempfile::TempDir,
}

impl Reader {
    async fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let options = Options::new(home.path().join("cp")).with_controllers();
        let control_plane = ControlPlane::start(options).await.unwrap();
        let tools = control_plane.tools().clone();
        let ours = binary("hybridnic-agent").unwrap();
        let mut path = OsString::new();
        for program in [&tools.kubectl, &tools.helm, &ours] {
            path.push(program.parent().unwrap());
            path.push(":");
        }
        path.push(std::env::var_os("PATH").unwrap_or_default());
        Self {
            control_plane,
            path,
            home,
        }
    }

    /// Runs `script` in a shell at the repository's root; gives what it said when it failed.
    async fn run(&self, script: &str) -> Result<(), String> {
        let mut shell = Command::new("bash");
        shell
            .args(["-euo", "pipefail", "-c", script])
            .current_dir(docs::root())
            .env("PATH", &self.path)
            .env("HOME", self.home.path())
            .env("KUBECONFIG", self.control_plane.kubeconfig_admin())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(DEADLINE, shell.output())
            .await
            .map_err(|_| format!("was not done after {DEADLINE:?}"))?
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Err(text(&output.stdout) + &text(&output.stderr))
    }

    /// What to do with a block; nothing for one that is only read.
    fn script(&self, block: &Block) -> Option<String> {
        match (block.language(), block.words()) {
            ("sh", "run") => Some(block.text.clone()),
            ("yaml", words) if words.starts_with("not-run:") => None,
            // An object that is shown must be one that the API server takes.
            ("yaml", _) if block.text.lines().any(|line| line.starts_with("apiVersion:")) => {
                let file = self.home.path().join("shown.yaml");
                fs::write(&file, &block.text).unwrap();
                Some(format!("kubectl apply --dry-run=server -f {}", file.display()))
            }
            _ => None,
        }
    }
}

#[tokio::test]
async fn commands_work_as_they_are_written() {
    let reader = Reader::new().await;
    // What `helm install` brings, and has its own tests.
    reader
        .run("kubectl apply -f crds/ && kubectl wait --for=condition=Established --timeout=60s crd --all")
        .await
        .unwrap();
    let mut wrong = Vec::new();
    let mut done = 0;
    for page in in_order() {
        for block in &page.blocks {
            let Some(script) = reader.script(block) else {
                continue;
            };
            done += 1;
            if let Err(said) = reader.run(&script).await {
                wrong.push(format!(
                    "{}:{}:\n{}{said}",
                    page.path.display(),
                    block.line,
                    block.text
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
    assert!(done > 10, "only {done} blocks were found");
}
