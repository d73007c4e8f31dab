//! The commands of a CNI plugin.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::AsFd as _,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    agent::{NoAnswer, ask},
    spec::{AddResult, Config, Environment, ErrorResult, Failure, Interface, VERSIONS, codes},
    wire::{Answer, PATIENCE, Question, SOCKET, Why},
};

/// Where the agent listens, if that is another place than [`SOCKET`]. It comes from the environment, because users write the configuration.
pub const SOCKET_VARIABLE: &str = "HYBRIDNIC_CNI_SOCKET";
/// How long a deletion or a check may take.
const SOON: Duration = Duration::from_secs(30);
/// How long it may take to say whether there is an agent.
const AT_ONCE: Duration = Duration::from_secs(5);
/// The most that a configuration may have, in octets.
const CONFIG_LIMIT: u64 = 1 << 20;

/// Does what the environment says with the configuration of standard input, and answers on standard output.
pub fn run(variable: impl Fn(&str) -> Option<String>, input: impl Read, mut output: impl Write) -> ExitCode {
    let mut text = Vec::new();
    let read = input.take(CONFIG_LIMIT).read_to_end(&mut text);
    let (version, result) = match read {
        Ok(_) => execute(&Environment(variable), &text),
        Err(e) => {
            let message = format!("the network's configuration cannot be read: {e}");
            (None, Err(Failure::new(codes::IO, message)))
        }
    };
    let (said, code) = match &result {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(result)) => (serde_json::to_string(result), ExitCode::SUCCESS),
        Err(failure) => {
            let error = ErrorResult {
                // If the runtime did not name a version, the answer is in the newest.
                cni_version: version.as_deref().unwrap_or(VERSIONS[VERSIONS.len() - 1]),
                code: failure.code,
                msg: &failure.message,
            };
            (serde_json::to_string(&error), ExitCode::FAILURE)
        }
    };
    match said.map(|said| writeln!(output, "{said}")) {
        Ok(Ok(())) => code,
        // If this fails the caller has given up.
        _ => ExitCode::FAILURE,
    }
}

type Said = Result<Option<Value>, Failure>;

fn execute<F: Fn(&str) -> Option<String>>(
    environment: &Environment<F>,
    text: &[u8],
) -> (Option<String>, Said) {
    let command = match environment.get("CNI_COMMAND") {
        Ok(command) => command,
        Err(failure) => return (None, Err(failure)),
    };
    let config = match Config::read(text) {
        Ok(config) => config,
        Err(failure) => return (None, Err(failure)),
    };
    let plugin = Plugin {
        environment,
        config: &config,
    };
    let said = match &*command {
        "VERSION" => Ok(Some(plugin.version())),
        "ADD" => plugin.add(),
        "DEL" => plugin.del(),
        "CHECK" => plugin.check(),
        "STATUS" => plugin.agent_answers(),
        // The agent learns from the kubelet and the cluster what is stale. This plugin is a delegate of Multus, which passes no list of
        // valid attachments (`CmdGC` of Multus 4.2), and an attachment that is not listed is not proven to be gone.
        "GC" => config.check_version().map(|()| None),
        other => {
            let message = format!("CNI_COMMAND is {other:?}, which this plugin does not know");
            Err(Failure::new(codes::ENVIRONMENT, message))
        }
    };
    (config.cni_version, said)
}

struct Plugin<'a, F> {
    environment: &'a Environment<F>,
    config: &'a Config,
}

impl<F: Fn(&str) -> Option<String>> Plugin<'_, F> {
    fn version(&self) -> Value {
        let newest = VERSIONS[VERSIONS.len() - 1];
        let asked = self.config.cni_version.as_deref();
        let answered = asked.filter(|asked| VERSIONS.contains(asked)).unwrap_or(newest);
        json!({"cniVersion": answered, "supportedVersions": VERSIONS})
    }

    fn add(&self) -> Said {
        self.config.check_version()?;
        let question = Question::Add {
            attachment: self.environment.attachment()?,
            pod: self.environment.pod()?,
            network: self.config.network()?,
            device_id: self.config.device()?,
        };
        let path = self.environment.get("CNI_NETNS")?;
        let netns = open(&path)?;
        match self.ask(&question, Some(&netns), PATIENCE)? {
            Answer::Added { mac, mtu } => {
                let version = self.config.version();
                let interface = Interface {
                    name: self.environment.attachment()?.ifname,
                    mac: Some(mac),
                    mtu: (version == "1.1.0").then_some(mtu),
                    sandbox: Some(path),
                };
                let result = AddResult {
                    cni_version: Some(version.to_owned()),
                    interfaces: vec![interface],
                    ..AddResult::default()
                };
                Ok(Some(json!(result)))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Without an agent nothing is held: the interface goes with its network namespace, and the agent, when it comes, sees that
    /// the pod has gone. A failure would keep the pod for ever once hybridnic is uninstalled.
    fn del(&self) -> Said {
        let question = Question::Del {
            attachment: self.environment.attachment()?,
        };
        // The runtime may have taken it away already.
        let netns = self
            .environment
            .optional("CNI_NETNS")
            .and_then(|path| File::open(path).ok());
        let netns = netns.as_ref().map(|netns| netns.as_fd());
        match ask(&self.socket(), &question, netns, SOON) {
            Err(NoAnswer::Nobody(_)) => Ok(None),
            Err(lost) => Err(Failure::new(codes::TRY_AGAIN, lost.to_string())),
            Ok(answer) => done(answer),
        }
    }

    fn check(&self) -> Said {
        self.config.check_version()?;
        let attachment = self.environment.attachment()?;
        let made = self.config.prev_result.as_ref().ok_or_else(|| {
            Failure::new(
                codes::DECODE,
                "the network's configuration lacks prevResult, what ADD has answered",
            )
        })?;
        let mac = made
            .interfaces
            .iter()
            .find(|interface| interface.name == attachment.ifname)
            .and_then(|interface| interface.mac.clone());
        let netns = open(&self.environment.get("CNI_NETNS")?)?;
        done(self.ask(&Question::Check { attachment, mac }, Some(&netns), SOON)?)
    }

    fn agent_answers(&self) -> Said {
        self.config.check_version()?;
        let not_available = |message| Failure::new(codes::NOT_AVAILABLE, message);
        match ask(&self.socket(), &Question::Status, None, AT_ONCE) {
            Ok(Answer::Done) => Ok(None),
            Ok(Answer::Refused { message, .. }) => Err(not_available(message)),
            Ok(other) => Err(unexpected(&other)),
            Err(none) => Err(not_available(none.to_string())),
        }
    }

    fn ask(&self, question: &Question, netns: Option<&File>, patience: Duration) -> Result<Answer, Failure> {
        let netns = netns.map(|netns| netns.as_fd());
        match ask(&self.socket(), question, netns, patience) {
            Ok(Answer::Refused { why, message }) => Err(refused(why, message)),
            Ok(answer) => Ok(answer),
            Err(none) => Err(Failure::new(codes::TRY_AGAIN, none.to_string())),
        }
    }

    fn socket(&self) -> PathBuf {
        self.environment
            .optional(SOCKET_VARIABLE)
            .unwrap_or_else(|| SOCKET.to_owned())
            .into()
    }
}

fn open(netns: &str) -> Result<File, Failure> {
    File::open(netns).map_err(|e| {
        let message = format!("the pod's network namespace {netns} (CNI_NETNS) cannot be opened: {e}");
        Failure::new(codes::IO, message)
    })
}

fn done(answer: Answer) -> Said {
    match answer {
        Answer::Done => Ok(None),
        Answer::Refused { why, message } => Err(refused(why, message)),
        other @ Answer::Added { .. } => Err(unexpected(&other)),
    }
}

fn refused(why: Why, message: String) -> Failure {
    let code = match why {
        Why::NotNow => codes::TRY_AGAIN,
        Why::BadQuestion => codes::CONFIG,
        Why::NotAsMade => codes::NOT_AS_MADE,
    };
    Failure::new(code, message)
}

fn unexpected(answer: &Answer) -> Failure {
    let said = serde_json::to_string(answer).unwrap_or_default();
    Failure::new(
        codes::DECODE,
        format!("hybridnic's agent has answered something else than was asked: {said}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the plugin says, where no agent is.
    fn said(command: &str, pairs: &[(&str, &str)], config: &str) -> (ExitCode, String) {
        let variable = |name: &str| match name {
            "CNI_COMMAND" => Some(command.to_owned()),
            SOCKET_VARIABLE => Some("/nonexistent/cni.sock".to_owned()),
            _ => pairs
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned()),
        };
        let mut output = Vec::new();
        let code = run(variable, config.as_bytes(), &mut output);
        (code, String::from_utf8(output).unwrap())
    }

    const POD: [(&str, &str); 4] = [
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "pod1"),
        ("CNI_NETNS", "/proc/self/ns/net"),
        (
            "CNI_ARGS",
            "K8S_POD_NAMESPACE=tenant;K8S_POD_NAME=vm-1;K8S_POD_UID=u1",
        ),
    ];
    const CONFIG: &str =
        r#"{"cniVersion":"1.0.0","type":"hybridnic","network":"fast","deviceID":"0000:01:00.0-3"}"#;

    #[test]
    fn versions_are_said_without_an_agent() {
        let (code, text) = said("VERSION", &[], r#"{"cniVersion":"1.0.0"}"#);
        assert_eq!(code, ExitCode::SUCCESS);
        let expected =
            r#"{"cniVersion":"1.0.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#;
        assert_eq!(text.trim_end(), expected);
    }

    #[test]
    fn without_an_agent_an_interface_is_not_made_and_is_gone() {
        let (code, text) = said("ADD", &POD, CONFIG);
        assert_eq!(code, ExitCode::FAILURE);
        let expected = concat!(
            r#"{"cniVersion":"1.0.0","code":11,"msg":"hybridnic's agent does not run on this node, or is being started: "#,
            r#"No such file or directory"}"#
        );
        assert_eq!(text.trim_end(), expected);
        assert_eq!(said("DEL", &POD, CONFIG), (ExitCode::SUCCESS, String::new()));
        assert_eq!(said("GC", &[], CONFIG), (ExitCode::SUCCESS, String::new()));
        let (_, text) = said("STATUS", &[], CONFIG);
        assert!(text.contains(r#""code":50"#), "{text}");
    }

    #[test]
    fn what_is_missing_is_named() {
        for (command, pairs, config, code, named) in [
            (
                "ADD",
                &POD[..],
                r#"{"cniVersion":"1.0.0","deviceID":"d"}"#,
                7,
                "HybridNetwork",
            ),
            (
                "ADD",
                &POD[..],
                r#"{"cniVersion":"1.0.0","network":"fast"}"#,
                7,
                "resourceName",
            ),
            ("ADD", &POD[..], r#"{"cniVersion":"9.0.0"}"#, 1, "9.0.0"),
            ("ADD", &POD[..], "{}", 1, "0.1.0"),
            ("ADD", &POD[..], "no JSON", 6, "cannot be read"),
            ("ADD", &POD[..2], CONFIG, 4, "CNI_ARGS"),
            ("ADD", &[], CONFIG, 4, "CNI_CONTAINERID"),
            ("CHECK", &POD[..], CONFIG, 6, "prevResult"),
            ("DEL", &[], CONFIG, 4, "CNI_CONTAINERID"),
            ("SHOW", &POD[..], CONFIG, 4, "SHOW"),
        ] {
            let (exit, text) = said(command, pairs, config);
            assert_eq!(exit, ExitCode::FAILURE, "{text}");
            let error: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(error["code"], code, "{text}");
            assert!(error["msg"].as_str().unwrap().contains(named), "{text}");
        }
    }
}
