//! Runs the plugin as users do, and checks what every command promises: one line on an error, and no panic.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use hybridnic_e2e::{controlplane::tools::Tools, world::binary};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

/// For one command; the machine may be busy with a build beside.
const DEADLINE: Duration = Duration::from_mins(1);

/// The plugin with a kubeconfig.
pub struct Plugin {
    program: PathBuf,
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    /// A directory of its own on the PATH, and for kubectl's cache.
    dir: tempfile::TempDir,
}

/// What a command said.
pub struct Said {
    what: String,
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    fn new(what: String, output: &Output) -> Self {
        let said = Self {
            what,
            code: output.status.code(),
            out: String::from_utf8(output.stdout.clone()).unwrap(),
            err: String::from_utf8(output.stderr.clone()).unwrap(),
        };
        let all = format!("{}{}", said.out, said.err);
        assert!(
            !all.contains("panicked") && !all.contains("backtrace"),
            "{}: {all}",
            said.what
        );
        assert!(
            !all.contains('\u{1b}'),
            "{}: colours where there is no terminal: {all}",
            said.what
        );
        // With --nocapture this is what the documentation shows.
        eprintln!(
            "$ {}\n{}{}(exit code {:?})\n",
            said.what, said.out, said.err, said.code
        );
        said
    }

    /// Standard output of a command that has gone well.
    pub fn ok(self) -> String {
        assert_eq!(
            (self.code, self.err.as_str()),
            (Some(0), ""),
            "{}\n{}",
            self.what,
            self.out
        );
        self.out
    }

    /// Standard output of a command, however it has gone.
    pub fn out(&self) -> &str {
        &self.out
    }

    /// The one line of a command that could do nothing.
    pub fn refusal(self) -> String {
        assert_eq!(
            (self.code, self.out.as_str()),
            (Some(1), ""),
            "{}\n{}",
            self.what,
            self.err
        );
        assert!(
            self.err.starts_with("error: ") && self.err.trim_end().lines().count() == 1,
            "{}: not one line: {}",
            self.what,
            self.err
        );
        self.err
    }

    /// Both outputs of a command that ends with this code.
    pub fn with_code(self, code: i32) -> (String, String) {
        assert_eq!(self.code, Some(code), "{}\n{}{}", self.what, self.out, self.err);
        (self.out, self.err)
    }
}

impl Plugin {
    /// The plugin as cargo has built it.
    pub async fn new(kubeconfig: &Path) -> Self {
        let program = binary("kubectl-hybridnic").unwrap();
        Self {
            program,
            kubectl: Tools::ready(false).await.unwrap().kubectl,
            kubeconfig: kubeconfig.to_owned(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// The same with another kubeconfig.
    pub fn with(&self, kubeconfig: &Path) -> Self {
        Self {
            program: self.program.clone(),
            kubectl: self.kubectl.clone(),
            kubeconfig: kubeconfig.to_owned(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn prepared(&self, program: &Path) -> Command {
        let mut path = OsString::from(self.dir.path());
        for part in [self.program.parent(), self.kubectl.parent()]
            .into_iter()
            .flatten()
        {
            path.push(":");
            path.push(part);
        }
        path.push(":/usr/bin:/bin");
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.dir.path())
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBERC", "off")
            .env("KUBECACHEDIR", self.dir.path().join("cache"))
            .env("TERM", "xterm-256color")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn said(mut command: Command, what: String) -> Said {
        let output = timeout(DEADLINE, command.output()).await;
        Said::new(
            what.clone(),
            &output.unwrap_or_else(|_| panic!("{what}: no end")).unwrap(),
        )
    }

    /// Runs the plugin itself.
    pub async fn run(&self, args: &[&str]) -> Said {
        let mut command = self.prepared(&self.program);
        command.args(args);
        Self::said(command, format!("kubectl-hybridnic {}", args.join(" "))).await
    }

    /// Runs the plugin as on a terminal with colours; returns what it prints, no matter how it ends.
    pub async fn coloured(&self, args: &[&str]) -> String {
        let mut command = self.prepared(&self.program);
        command.args(args).env("CLICOLOR_FORCE", "1");
        let output = timeout(DEADLINE, command.output()).await.unwrap().unwrap();
        let all = [output.stdout, output.stderr].concat();
        String::from_utf8(all).unwrap()
    }

    /// Runs it as kubectl does.
    pub async fn kubectl(&self, args: &[&str]) -> Said {
        let mut command = self.prepared(&self.kubectl);
        command.args(args);
        Self::said(command, format!("kubectl {}", args.join(" "))).await
    }

    /// Puts a script on the PATH.
    pub fn install(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Starts the plugin without waiting for its end; both outputs are pipes.
    pub fn start(&self, args: &[&str]) -> Running {
        let mut command = self.prepared(&self.program);
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running::new(command.spawn().unwrap())
    }

    /// Starts the plugin on a terminal of 160 columns and 60 lines, with `NO_COLOR` where that is asked for.
    pub fn start_on_terminal(&self, args: &str, colours: bool) -> Running {
        let mut command = self.prepared(Path::new("/usr/bin/script"));
        if !colours {
            command.env("NO_COLOR", "1");
        }
        let line = format!("stty cols 160 rows 60; exec {} {args}", self.program.display());
        command
            .args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        Running::new(command.spawn().unwrap())
    }
}

/// A command that runs.
pub struct Running {
    child: Child,
    keys: Option<ChildStdin>,
    screen: ChildStdout,
    seen: String,
}

impl Running {
    fn new(mut child: Child) -> Self {
        let keys = child.stdin.take();
        let screen = child.stdout.take().unwrap();
        Self {
            child,
            keys,
            screen,
            seen: String::new(),
        }
    }

    /// Waits until all of it was printed since the last call.
    pub async fn shows(&mut self, what: &[&str]) {
        let mut buffer = [0; 4096];
        let all = async {
            while !what.iter().all(|what| self.seen.contains(what)) {
                let read = self.screen.read(&mut buffer).await.unwrap();
                assert!(read > 0, "it has ended without showing {what:?}: {}", self.seen);
                self.seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
        };
        let shown = timeout(DEADLINE, all).await;
        assert!(shown.is_ok(), "it does not show {what:?}: {}", self.seen);
        self.seen.clear();
    }

    /// Presses keys.
    pub async fn press(&mut self, keys: &str) {
        let terminal = self.keys.as_mut().unwrap();
        terminal.write_all(keys.as_bytes()).await.unwrap();
        terminal.flush().await.unwrap();
    }

    /// Presses Ctrl-C, as a shell passes it on.
    pub fn interrupt(&self) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGINT).unwrap();
    }

    /// Its exit code, the rest of what it printed, and its errors.
    pub async fn end(mut self) -> (Option<i32>, String, String) {
        let rest = async {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            self.screen.read_to_end(&mut out).await.unwrap();
            if let Some(errors) = &mut self.child.stderr {
                errors.read_to_end(&mut err).await.unwrap();
            }
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            (self.child.wait().await.unwrap().code(), text(out), text(err))
        };
        let said = timeout(DEADLINE, rest).await.expect("it does not end");
        eprintln!("{}(exit code {:?})\n", said.2, said.0);
        assert!(
            !said.1.contains("panicked") && !said.2.contains("panicked"),
            "{}{}",
            said.1,
            said.2
        );
        said
    }
}
